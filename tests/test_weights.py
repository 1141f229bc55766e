"""What bundles say of their tensors is compared with these before anything is allocated."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy
import torch

from profusion_cli.bundle import make_bundle, read_bundle
from profusion_cli.errors import BundleError, ConfigError
from profusion_cli.runtime.architecture import MAX_LAYERS, PromptNetConfig
from profusion_cli.runtime.changes import read_changes
from profusion_cli.runtime.weights import promptnet_from_bundle, read_views, read_word, shapes_of

HOSTILE = {
    "image_token_dim": [20_000_000, 10**30, 0, -1, True, "8", None, 2.0],
    "embedding_dim": [20_000_000, 2**31 - 1],
    "region_kernel_size": [2000, 40_000],
    "region_proj_channels": [2**30, []],
    "surprise": [1],
    "unet": [None, 5, [], {}],
    "unet.layers_per_block": [20_000, [2, 2, 2, 20_000], [2, 2], 3, 0, "2", [[2]] * 4],
    "unet.transformer_layers_per_block": [20_000, [1, 1, 1, 30], 2],
    "unet.block_out_channels": [[2**30] * 4, [32] * 4, [32] * 100_000, [], "32", [2**62] * 4, [33, 32, 64, 64]],
    "unet.down_block_types": [["DownBlock2D"] * 100_000, ["KDownBlock2D"] * 4, ["os.system"] * 4, 5],
    "unet.mid_block_type": [None, "UNetMidBlock2D"],
    "unet.cross_attention_dim": [2**30, [32] * 4],
    "unet.attention_head_dim": [2**30, 0, 3],
    "unet.norm_num_groups": [7, 2**30],
    "unet.conv_in_kernel": [2001, 30_000],
    "unet.in_channels": [2**30],
    "unet.downsample_padding": [100_000],
    "unet.norm_eps": [float("nan"), 0.0, -1.0],
    "unet.mid_block_scale_factor": [0, float("inf")],
    "unet.freq_shift": [float("nan")],
    "unet.time_embedding_type": ["fourier", "none"],
    "unet.num_class_embeds": [10**9],
    "unet.attention_type": ["gated"],
}
"""Values in a manifest that tensors do not bear out."""


def described_otherwise(section, key, value):
    changed = copy.deepcopy(section)
    *inner, last = key.split(".")
    (changed[inner[0]] if inner else changed)[last] = value
    return changed


CHILD = """
import json, pickle, resource, sys, time
from dataclasses import replace
from profusion_cli.bundle import read_bundle
from profusion_cli.errors import BundleError
from profusion_cli.runtime.weights import promptnet_from_bundle

path, cases = sys.argv[1], pickle.load(sys.stdin.buffer)
bundle = read_bundle(open(path, "rb").read(), "me.pfz")
told = []
for key, section in cases:
    memory, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    try:
        promptnet_from_bundle(replace(bundle, manifest=bundle.manifest | {"promptnet": section}))
        message = ""
    except BundleError as error:
        message = error.message
    growth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory
    told.append((message, time.process_time() - began, growth * (1 if sys.platform == "darwin" else 1024)))
print(json.dumps(told))
"""


def test_descriptions_that_tensors_do_not_bear_out_cost_nothing(subject):
    pytest.importorskip("resource")
    section = read_bundle(subject.read_bytes(), "me.pfz").manifest["promptnet"]
    cases = [(key, described_otherwise(section, key, value)) for key, values in HOSTILE.items() for value in values]
    child = subprocess.run([sys.executable, "-c", CHILD, subject], input=pickle.dumps(cases), capture_output=True)
    assert child.returncode == 0, child.stderr.decode()
    told = json.loads(child.stdout)
    assert len(told) == len(cases) > 50
    for (key, section), (message, seconds, growth) in zip(cases, told, strict=True):
        assert message.startswith("The PromptNet in 'me.pfz' ") and message.endswith("."), (key, section, message)
        assert seconds < 1 and growth < 200 << 20, (key, seconds, growth)
    assert sum(growth for _, _, growth in told) < 200 << 20


def test_weights_of_a_bundle_are_its_promptnets_own(subject):
    """Writable, float32, and nobody else's memory."""
    bundle = read_bundle(subject.read_bytes(), "me.pfz")
    before = bytes(bundle.data)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        promptnet = promptnet_from_bundle(bundle)
        torch.manual_seed(1)
        again = promptnet_from_bundle(bundle)
    for one, other in zip(promptnet.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other) and one.requires_grad
        assert (one.dtype, one.device.type) == (torch.float32, "cpu") and one.is_contiguous()
        assert one.data_ptr() != other.data_ptr()
        with torch.no_grad():
            one.add_(1)
    assert bytes(bundle.data) == before
    assert not list(promptnet.buffers())


def test_how_many_layers_there_are(subject):
    section = read_bundle(subject.read_bytes(), "me.pfz").manifest["promptnet"]
    for each, layers in ((2, 4 * 2 * 2 + 2 + 1), (7, 4 * 7 * 2 + 2 + 1)):
        assert PromptNetConfig(**described_otherwise(section, "unet.layers_per_block", each)).layers == layers
    assert layers <= MAX_LAYERS
    with pytest.raises(ConfigError, match=r"unet\.num_class_embeds=5"):
        PromptNetConfig(**described_otherwise(section, "unet.num_class_embeds", 5))


def subject_with(real, **files):
    """The subject with other tensors, given by their shapes."""
    held = {name: real.read(name) for name in real.files if name.split(".")[0] not in files}
    made = {
        f"{name}.safetensors": safetensors.numpy.save({key: np.zeros(shape, np.float16) for key, shape in held.items()})
        for name, held in files.items()
    }
    return make_bundle({key: real.manifest[key] for key in real.manifest if key != "preview"}, held | made)


@pytest.mark.parametrize(
    "change",
    [
        {"latents_mean": None},
        {"latents_std": (1, 4, 16, 8)},
        {"latents_mean": (2, 4, 16, 16), "latents_std": (2, 4, 16, 16)},
        {"latents_mean": (1, 3, 16, 16), "latents_std": (1, 3, 16, 16)},
        {"latents_mean": (1, 4, 16, 300), "latents_std": (1, 4, 16, 300)},
        {"latents_mean": (1, 4, 4, 4), "latents_std": (1, 4, 4, 4)},
        {"latents_mean": (0, 4, 16, 16), "latents_std": (0, 4, 16, 16), "image_tokens": (0, 5, 32)},
        {"image_tokens": (1, 0, 32)},
        {"image_tokens": (1, 5, 31)},
        {"image_tokens": (1, 20_000, 32)},
        {"image_tokens": (1, 5, 32, 1)},
    ],
)
def test_views_that_promptnet_cannot_take(subject, change):
    real = read_bundle(subject.read_bytes(), "me.pfz")
    promptnet = promptnet_from_bundle(real)
    fitting = {"latents_mean": (1, 4, 16, 16), "latents_std": (1, 4, 16, 16), "image_tokens": (1, 5, 32)}
    assert len(read_views(subject_with(real, views=fitting), promptnet)) == 1
    shapes = {name: shape for name, shape in (fitting | change).items() if shape is not None}
    with pytest.raises(BundleError, match=r"reference views in 'subject\.pfz' do not fit its PromptNet"):
        read_views(subject_with(real, views=shapes), promptnet)


@pytest.mark.parametrize(
    "shapes", [{"other": (1, 8)}, {"embedding": (8,)}, {"embedding": (0, 8)}, {"embedding": (1, 7)}]
)
def test_words_that_the_text_encoder_cannot_take(subject, shapes):
    real = read_bundle(subject.read_bytes(), "me.pfz")
    assert read_word(subject_with(real, word={"embedding": (2, 8)}), 8).shape == (2, 8)
    with pytest.raises(BundleError, match=r"word in 'subject\.pfz' does not fit"):
        read_word(subject_with(real, word=shapes), 8)


def test_changes_that_the_unet_cannot_take(subject):
    real = read_bundle(subject.read_bytes(), "me.pfz")
    parameters = {name: torch.empty(shape) for name, shape in shapes_of(real, "unet.safetensors").items()}
    assert {name: one.shape for name, one in read_changes(real, "unet", parameters).items()} == {
        name: one.shape for name, one in parameters.items()
    }
    for shapes in ({"nowhere": (2,)}, {next(iter(parameters)): (2, 2)}):
        with pytest.raises(BundleError, match=r"'subject\.pfz' changes .* which fits nothing"):
            read_changes(subject_with(real, unet=shapes), "unet", parameters)
