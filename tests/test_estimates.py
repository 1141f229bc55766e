"""What a fine-tuning will need of memory: told before it starts, true, and what `auto` picks by it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from profusion_cli.bundle import read_bundle
from profusion_cli.config import Config
from profusion_cli.jobs.configuration import load_config
from profusion_cli.runtime import choosing, random_base, training
from profusion_cli.runtime.backbone import BaseModel
from profusion_cli.runtime.choosing import candidates, fit
from profusion_cli.runtime.counting import Peak
from profusion_cli.runtime.device import Placement, resolve_placement
from profusion_cli.runtime.estimates import finetuning_estimate, sampling_estimate
from profusion_cli.runtime.pixels import image_token_count
from profusion_cli.runtime.promptnet import PromptNet
from profusion_cli.runtime.random_base import build_random_base
from profusion_cli.runtime.views import Views
from tests.conftest import ok, run

TUNED = ("--preset", "tiny-random", "--no-augment", "--steps", 1)
TOLERANCE = 0.1
"""Of what is counted in advance, by which what is held may differ."""
MIDDLE = {
    "unet": {
        "sample_size": 32,
        "block_out_channels": (64, 128, 256, 256),
        "attention_head_dim": (2, 4, 8, 8),
        "norm_num_groups": 16,
        "cross_attention_dim": 128,
    },
    "vae": random_base.ARCHITECTURES["tiny"]["vae"],
    "text_encoder": {**random_base.ARCHITECTURES["tiny"]["text_encoder"], "hidden_size": 128},
    "vision": random_base.ARCHITECTURES["tiny"]["vision"],
}
GPU = Placement(torch.device("cuda"), torch.bfloat16, torch.bfloat16, "bf16")


@pytest.fixture(scope="module")
def middle(work: Path) -> Path:
    """A base model of 30 million weights, on the disk."""
    folder = work / "middle"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(random_base.ARCHITECTURES, "middle", MIDDLE)
        build_random_base(folder, "middle")
    return folder


def config_of(folder: Path | None = None, **own: Any) -> Config:
    settings = {"finetune.steps": 2, "finetune.batch_size": 4, **{f"finetune.{name}": own[name] for name in own}}
    config = load_config("tiny-random", settings)
    if folder is not None:
        config = replace(config, base=replace(config.base, id=str(folder), random=None, resolution=128))
    return config


def held(config: Config, dtype: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """The most bytes that two real steps hold at once beside the weights, gradients and optimiser's state included."""
    placement, own, peak = resolve_placement("cpu", dtype, training=True), config.finetune, []
    steps = training.fit

    def counted(accelerator: Any, objective: Any, *arguments: Any, **options: Any) -> Any:
        text = accelerator.unwrap_model(objective)._text.text_encoder
        existing = [*objective.parameters(), *objective.buffers(), *text.parameters(), *text.buffers()]
        with Peak(existing) as counting:
            yield from steps(accelerator, objective, *arguments, **options)
        peak.append(counting.bytes)

    monkeypatch.setattr(training, "fit", counted)
    with BaseModel(config.base, placement) as base:
        side, vision, source = config.base.resolution // 8, base.vision.config, config.promptnet
        generator = torch.Generator().manual_seed(0)
        latents = torch.randn(2, 4, side, side, generator=generator)
        tokens = torch.randn(2, image_token_count(vision), vision.hidden_size, generator=generator)
        own_shape = (base.text.embedding_dim, source.region_kernel_size, source.region_proj_channels)
        promptnet = PromptNet.from_unet(base.unet, vision.hidden_size, *own_shape)
        base.release("vision")
        views = Views(latents, torch.zeros_like(latents), tokens)
        training.finetune(base, promptnet, views, own, config.concept_prompt, 0, lambda *_: None)
    return peak[0]


TWICE = {"gradient_checkpointing": True}
CASES = {
    ("attention", "float32"): {"train": "attention"},
    ("attention", "bfloat16"): {"train": "attention"},
    ("attention, computed twice", "bfloat16"): {"train": "attention", **TWICE},
    ("adapters", "bfloat16"): {"train": "lora"},
    ("adapters, computed twice", "float32"): {"train": "lora", **TWICE},
}


@pytest.mark.parametrize(("case", "dtype"), CASES)
def test_what_is_told_is_what_is_held(case, dtype, middle, monkeypatch):
    """Within a tenth, of tensors that live at once in real steps on the CPU, their copies for autocast included."""
    config = config_of(middle, **{"gradient_accumulation": 2, **CASES[case, dtype]})
    told = finetuning_estimate(config, resolve_placement("cpu", dtype, training=True), augments=False).tuning
    expected = told.beside_weights
    found = held(config, dtype, monkeypatch)
    print(case, dtype, found / 1e6, expected / 1e6, found / expected)
    assert found == pytest.approx(expected, rel=TOLERANCE)


def test_tiny_steps_are_counted_too(monkeypatch):
    config = config_of(None, gradient_accumulation=2)
    told = finetuning_estimate(config, resolve_placement("cpu", "float32", training=True), augments=False).tuning
    found = held(config, "float32", monkeypatch)
    assert found == pytest.approx(told.beside_weights, rel=TOLERANCE)


def test_a_gpu_normalises_in_float32(monkeypatch):
    """Under autocast, and so keeps more than a CPU does."""
    config = config_of(None)
    cpu = Placement(torch.device("cpu"), torch.bfloat16, torch.bfloat16, "fp16")  # which leaves attention as it is
    on_gpu, on_cpu = (finetuning_estimate(config, place, augments=False).tuning for place in (GPU, cpu))
    assert on_gpu.activations > 1.1 * on_cpu.activations


def test_drawing_is_counted(subject, monkeypatch):
    """Real evaluations of the UNet and the decoding, beside the weights."""
    from tests.conftest import opened_sampler

    with opened_sampler(subject, 2) as sampler, torch.inference_mode(False):
        config = config_of(None)
        networks = [sampler.unet, sampler.subjects[0].promptnet, sampler.base.text.text_encoder, sampler.base.vae]
        weights = [tensor for network in networks for tensor in (*network.parameters(), *network.buffers())]
        with Peak(weights) as peak:
            sampler.draw_batch(sampler.tokens[0], (7.0,), [0], lambda _: None)
    told = sampling_estimate(config, resolve_placement("cpu", "float32", training=False), 1)
    real = sum(tensor.numel() * tensor.element_size() for tensor in weights) + peak.bytes
    assert real == pytest.approx(told, rel=TOLERANCE)


def sizes() -> tuple[int, int, int]:
    """What tuning attention needs: in one part, in as many as there are pictures, and computed twice in addition."""
    placement = resolve_placement("cpu", "float32", training=True)
    ways = ({}, {"gradient_accumulation": 4}, {"gradient_accumulation": 4, "gradient_checkpointing": True})
    return tuple(finetuning_estimate(config_of(None, **way), placement, augments=False).total for way in ways)


AUTO = {"train": "auto", "gradient_accumulation": "auto", "gradient_checkpointing": "auto"}


def test_auto_takes_the_fastest_that_fits():
    """With a tenth of what is free left alone."""
    placement, config = resolve_placement("cpu", "float32", training=True), config_of(None, **AUTO)
    whole, parts, twice = sizes()
    assert whole > parts > twice

    def picked(available: float) -> tuple[str, int, bool]:
        own = fit(config, False, placement, int(available)).config.finetune
        return own.train, own.gradient_accumulation, own.gradient_checkpointing

    assert picked(whole / 0.9 + 10) == ("attention", 1, False)
    assert picked(whole / 0.9 - 10) == ("attention", 2, False)
    assert picked(parts / 0.9 + 10) == ("attention", 4, False)
    assert picked(parts / 0.9 - 10)[::2] == ("attention", True)
    assert picked(twice / 0.9 - 10)[0] == "lora"
    assert picked(1) == ("lora", 4, True)


def test_what_is_said_is_not_chosen():
    own = config_of(None, train="auto", gradient_accumulation=2).finetune
    assert [(one.train, one.gradient_accumulation) for one in candidates(own)] == [("attention", 2), ("lora", 2)]
    assert list(candidates(config_of(None).finetune)) == [config_of(None).finetune]


def test_the_bundle_holds_what_was_chosen(photo, tmp_path, monkeypatch):
    """And never `auto`, so that it can be made again anywhere."""
    _, parts, twice = sizes()
    monkeypatch.setattr(choosing, "free", lambda device: int((parts + twice) / 2 / 0.9))
    settings = [f"--set=finetune.{name}=auto" for name in AUTO]
    target = tmp_path / "me.pfz"
    result = ok("finetune", photo, *TUNED, "--batch-size", 4, *settings, "-o", target, "--json")
    own = read_bundle(target.read_bytes(), "me.pfz").manifest["config"]["finetune"]
    assert own["train"] == "attention" and own["gradient_checkpointing"] is True
    assert own["gradient_accumulation"] in (1, 2, 4)
    assert "finetune.gradient_checkpointing=true" in result.stderr and "Needs about" in result.stderr
    told = json.loads(result.stdout)
    assert told["free_bytes"] > 0 and told["estimate"]["needed_bytes"] > told["estimate"]["weights_bytes"] > 0
    again = tmp_path / "again.pfz"
    ok("finetune", photo, *TUNED, "--batch-size", 4, *settings, "-o", again)
    assert again.read_bytes() == target.read_bytes()


def test_too_little_is_warned_of(photo, tmp_path, monkeypatch):
    monkeypatch.setattr(choosing, "free", lambda device: 1000)
    result = ok("finetune", photo, *TUNED, "-o", tmp_path / "me.pfz")
    assert "more than fits" in result.stderr and "--train auto" in result.stderr


def test_dry_run_tells_and_loads_nothing(photo, hub, monkeypatch):
    """Of a model that would have to be downloaded nothing is known; of a device that is not here, what would be."""
    dry = ("finetune", photo, "--no-augment", "--dry-run", "-o", "x.pfz")
    assert "is told when the files" in ok(*dry, "--preset", "sd2").stdout and not hub.bodies(("",))
    assert "Needs about" in ok(*dry, "--preset", "tiny-random").stdout
    there = ok(*dry, "--preset", "tiny-random", "--device", "cuda").stdout
    assert "not in this machine" in there and "optimiser" in there
    assert "given for finetune.train." in ok(*dry, "--preset", "tiny-random", "--device=cuda", "--train=auto").stdout
    assert run(*dry, "--preset", "tiny-random", "--device", "nonsense").exit_code == 6


def test_views_count_where_they_are_made():
    config, placement = config_of(None), resolve_placement("cpu", "float32", training=True)
    without, with_views = (finetuning_estimate(config, placement, augments=one) for one in (False, True))
    assert without.views == 0 < with_views.views and without.tuning == with_views.tuning
    plain = replace(config, augment=replace(config.augment, inpaint=False))
    assert finetuning_estimate(plain, placement, augments=True).views == 0


@pytest.mark.parametrize("method", ["textual-inversion", "dreambooth"])
def test_baselines_are_told_of(method, photo):
    shown = ok("finetune", photo, "--preset", "tiny-random", "--method", method, "--dry-run", "-o", "x.pfz").stdout
    assert "# Needs about" in shown


def test_stable_diffusion_fits(photo):
    """The targets: adapters in 8 GB and attention in 16 GB at a batch of 8 in parts, a picture in 4 GB, on a GPU."""
    size = {"base.random.size": "sd2", "base.resolution": 512}
    of_promptnet = {"promptnet.region_kernel_size": 8, "promptnet.region_proj_channels": 128}
    own = {"finetune.batch_size": 8, "finetune.gradient_accumulation": 4, "sample.batch_size": 1}
    config = load_config("tiny-random", {**size, **of_promptnet, **own})
    adapters = replace(config, finetune=replace(config.finetune, train="lora"))
    assert finetuning_estimate(config, GPU, augments=False).total < 16e9
    assert finetuning_estimate(adapters, GPU, augments=False).total < 8e9
    assert sampling_estimate(config, GPU, 1) < 4e9
