"""`finetune --train lora`: adapters, what they change, and the PromptNet that they are for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from profusion_cli.bundle import Bundle, make_bundle, read_bundle
from profusion_cli.bundle.kinds import ADAPTERS_FILE, PROMPTNET_FILE, UNET_FILE, VIEWS_FILE
from profusion_cli.bundle.manifest import PARENT
from profusion_cli.config import BaseConfig, FinetuneConfig, RandomConfig
from profusion_cli.errors import BundleError, ConfigError
from profusion_cli.jobs.parents import STORE
from profusion_cli.jobs.remembered import entries_of, path_of
from profusion_cli.lora import AdapterConfig
from profusion_cli.runtime.adapters import Adapters, targets
from profusion_cli.runtime.backbone import BaseModel
from profusion_cli.runtime.changes import LowRank, add_changes, changes_of, read_changes
from profusion_cli.runtime.device import resolve_placement
from profusion_cli.runtime.promptnet import PromptNet
from profusion_cli.runtime.training import select_trainable
from profusion_cli.runtime.weights import pack
from tests.conftest import ok, run

TUNED = ("--preset", "tiny-random", "--train", "lora", "--no-augment", "--steps", 2, "--lr", "1e-3", "--rank", 4)
DRAWN = ("S* in style", "--steps", 3)


@pytest.fixture(scope="module")
def networks() -> dict[str, torch.nn.Module]:
    """A tiny UNet, and a PromptNet started from it."""
    config = BaseConfig("tiny-random", random=RandomConfig())
    with BaseModel(config, resolve_placement("cpu", "float32", training=True)) as base:
        unet = base.unet
    return {"unet": unet, "promptnet": PromptNet.from_unet(unet, 32, 32, 2, 16)}


@pytest.fixture(autouse=True)
def _nothing_remembered() -> Iterator[None]:
    path_of(STORE).unlink(missing_ok=True)
    yield
    path_of(STORE).unlink(missing_ok=True)


@pytest.fixture(scope="module")
def parent(work: Path, photo: Path) -> Path:
    target = work / "parent.pfz"
    ok("pretrain", photo, "--preset", "tiny-random", "--steps", 1, "-o", target, "--save-dtype", "float32")
    return target


@pytest.fixture(scope="module")
def adapted(work: Path, photo: Path, parent: Path) -> Path:
    """A subject that holds adapters for the parent."""
    target = work / "adapted.pfz"
    ok("finetune", photo, "--promptnet", parent, *TUNED, "-o", target)
    return target


def bundle_of(path: Path) -> Bundle:
    return read_bundle(path.read_bytes(), path.name)


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def called(networks: dict[str, torch.nn.Module]) -> list[torch.Tensor]:
    """What the networks make of the same input."""
    generator = torch.Generator().manual_seed(0)
    latents, tokens = (torch.randn(shape, generator=generator) for shape in ((1, 4, 16, 16), (1, 5, 32)))
    with torch.no_grad():
        words = networks["promptnet"](latents, latents, 300, tokens)
        return [words, networks["unet"](latents, 300, tokens, return_dict=False)[0]]


@torch.no_grad()
def trained(networks: dict[str, torch.nn.Module], adapters: Adapters) -> None:
    """As if adapters had been trained: B is 0 at first."""
    generator = torch.Generator().manual_seed(1)
    for network in networks.values():
        for name, parameter in network.named_parameters():
            if "lora_B" in name:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)


def test_what_adapters_change_is_what_peft_computes(networks):
    """Linear layers and convolutions, with an alpha that is not the rank; and the networks are as before."""
    before, names = called(networks), {name: set(network.state_dict()) for name, network in networks.items()}
    adapters = Adapters(networks, AdapterConfig(rank=3, alpha=5.0), seed=0)
    for a, b in zip(called(networks), before, strict=True):
        torch.testing.assert_close(a, b)
    trained(networks, adapters)
    peft = called(networks)
    assert all((a - b).abs().max() > 1e-3 for a, b in zip(peft, before, strict=True))
    taken = adapters.take()
    assert {name: set(network.state_dict()) for name, network in networks.items()} == names
    for a, b in zip(called(networks), before, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    kept = {
        name: {key: value.clone() for key, value in network.state_dict().items()} for name, network in networks.items()
    }
    for name, network in networks.items():
        add_changes(network, changes_of(taken, name))
    ours = called(networks)
    for name, network in networks.items():
        network.load_state_dict(kept[name])
    for a, b in zip(ours, peft, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_adapters_alone_are_trained(networks):
    chosen = select_trainable(networks["promptnet"], networks["unet"], FinetuneConfig(train="lora"), seed=0)
    required = {name for network in networks.values() for name, one in network.named_parameters() if one.requires_grad}
    chosen.adapters.take()
    assert required and all("lora_" in name for name in required)


def test_adapters_learn_at_four_times_the_rate(photo, parent, tmp_path):
    def adapters(name: str, *options: object) -> bytes:
        ok("finetune", photo, *TUNED, "--promptnet", parent, *options, "-o", tmp_path / name)
        return bundle_of(tmp_path / name).read(ADAPTERS_FILE)

    scale = "finetune.adapters.learning_rate_scale"
    default = adapters("default.pfz")
    assert adapters("scaled.pfz", "--lr", "4e-3", "--set", f"{scale}=1") == default
    assert adapters("slower.pfz", "--set", f"{scale}=1") != default


def test_the_seed_decides_adapters(networks):
    def first(seed: int) -> dict[str, torch.Tensor]:
        return Adapters(networks, AdapterConfig(rank=2), seed).take()

    once, again, other = first(1), first(1), first(2)
    assert all(torch.equal(once[name], again[name]) for name in once)
    assert any(not torch.equal(once[name], other[name]) for name in once)


def test_targets_are_named_by_the_ends_of_paths(networks):
    chosen = targets(networks["promptnet"], ["to_q", "down_prompt_projections"])
    assert all(path.endswith("to_q") or path.startswith("down_prompt_projections.") for path in chosen)
    assert sum(path.startswith("down_prompt") for path in chosen) == len(networks["promptnet"].down_prompt_projections)
    assert not targets(networks["promptnet"], ["o_q"])
    with pytest.raises(ConfigError, match="names no layer of the promptnet"):
        Adapters({"promptnet": networks["promptnet"]}, AdapterConfig(targets=("nothing",)), 0)


def test_a_subject_of_adapters_is_small_and_draws(adapted, parent, tmp_path):
    bundle = bundle_of(adapted)
    assert set(bundle.files) == {VIEWS_FILE, ADAPTERS_FILE}
    assert bundle.size < parent.stat().st_size / 3
    assert {name.partition(".")[0] for name in bundle.shapes(ADAPTERS_FILE)} == {"unet", "promptnet"}
    ok("sample", adapted, *DRAWN, "-o", tmp_path / "x.png", "--promptnet", parent)
    assert "adapters" in ok("inspect", adapted).stdout


def test_self_contained_bundles_draw_the_same(adapted, parent, photo, tmp_path):
    whole = tmp_path / "whole.pfz"
    ok("finetune", photo, "--promptnet", parent, *TUNED, "--self-contained", "-o", whole, "--save-dtype", "float32")
    small = tmp_path / "small.pfz"
    ok("finetune", photo, "--promptnet", parent, *TUNED, "-o", small, "--save-dtype", "float32")
    assert PROMPTNET_FILE in bundle_of(whole).files
    ok("sample", whole, *DRAWN, "-o", tmp_path / "whole.png")
    ok("sample", small, *DRAWN, "-o", tmp_path / "small.png", "--promptnet", parent)
    assert abs(pixels(tmp_path / "whole.png") - pixels(tmp_path / "small.png")).max() <= 1
    refused = run("sample", whole, *DRAWN, "-o", tmp_path / "x.png", "--promptnet", parent)
    assert refused.exit_code == 2 and "--promptnet has no effect" in refused.stderr


def test_a_parent_is_found_again_where_it_was(parent, photo, tmp_path):
    """And one that has gone is named, with the ways to get it; nothing else is taken for it."""
    own, mine = tmp_path / "own.pfz", tmp_path / "mine.pfz"
    own.write_bytes(parent.read_bytes())
    ok("finetune", photo, "--promptnet", own, *TUNED, "-o", mine)
    (entry,) = entries_of(STORE)
    digits = bundle_of(mine).manifest[PARENT]
    assert entry["fingerprint"] == digits and entry["weights"] == str(own)
    ok("sample", mine, *DRAWN, "-o", tmp_path / "found.png")
    own.rename(tmp_path / "moved.pfz")
    lost = run("sample", mine, *DRAWN, "-o", tmp_path / "lost.png")
    assert lost.exit_code == 8
    assert digits in lost.stderr and "--promptnet" in lost.stderr and "--self-contained" in lost.stderr
    ok("sample", mine, *DRAWN, "-o", tmp_path / "named.png", "--promptnet", tmp_path / "moved.pfz")
    assert not abs(pixels(tmp_path / "found.png") - pixels(tmp_path / "named.png")).max()


def test_another_parent_is_refused(adapted, photo, tmp_path):
    other = tmp_path / "other.pfz"
    ok("pretrain", photo, "--preset", "tiny-random", "--steps", 1, "--lr", "1e-2", "--seed", 5, "-o", other)
    refused = run("sample", adapted, *DRAWN, "-o", tmp_path / "x.png", "--promptnet", other)
    assert refused.exit_code == 4
    assert bundle_of(adapted).manifest[PARENT] in refused.stderr and "other.pfz" in refused.stderr


def test_a_way_leads_from_adapters_to_whole_weights(adapted, parent, other_subject, tmp_path):
    ok(
        *("interpolate", adapted, other_subject, DRAWN[0], "--steps", 3, "--frames", 3, "--promptnet", parent),
        "-o",
        tmp_path / "w.png",
    )
    ok("sample", adapted, *DRAWN, "-o", tmp_path / "end.png", "--promptnet", parent)
    strip, end = Image.open(tmp_path / "w.png"), Image.open(tmp_path / "end.png")
    first = np.asarray(strip.convert("RGB").crop((256, 0, 512, 256)).resize(end.size, Image.Resampling.BOX)).astype(int)
    assert abs(first - pixels(tmp_path / "end.png")).mean() < 3


def test_dreambooth_tunes_adapters_too(photo, tmp_path):
    target = tmp_path / "booth.pfz"
    options = ("--method", "dreambooth", "--set", "finetune.prior_pictures=0")
    ok("finetune", photo, "--preset", "tiny-random", *options, "--train", "lora", "--steps", 1, "-o", target)
    assert {name.partition(".")[0] for name in bundle_of(target).shapes(ADAPTERS_FILE)} == {"unet"}
    ok("sample", target, *DRAWN, "-o", tmp_path / "x.png")


@pytest.mark.parametrize(
    "tensors",
    [
        {"vae.conv_in.diff": (4,)},
        {"unet.nowhere.lora_A.weight": (2, 8), "unet.nowhere.lora_B.weight": (8, 2)},
        {"unet.a.lora_A.weight": (2, 8)},
        {"unet.a.lora_B.weight": (8, 2)},
        {"unet.a.lora_A.weight": (2, 8), "unet.a.lora_B.weight": (8, 3)},
        {"unet.a.lora_A.weight": (2, 7), "unet.a.lora_B.weight": (8, 2)},
        {"unet.c.lora_A.weight": (2, 8), "unet.c.lora_B.weight": (8, 2)},
        {"unet.c.lora_A.weight": (2, 8, 3, 3), "unet.c.lora_B.weight": (8, 2, 3, 3)},
        {"unet.b.lora_A.weight": (2,), "unet.b.lora_B.weight": (8, 2)},
        {"unet.b.diff": (7,)},
        {"unet.a.weight": (8, 8)},
    ],
    ids=str,
)
def test_changes_that_fit_nothing_are_refused(adapted, tensors):
    parameters = {"a.weight": torch.empty(8, 8), "b.weight": torch.empty(8), "b": torch.empty(8)}
    parameters["c.weight"] = torch.empty(8, 8, 3, 3)
    real = bundle_of(adapted)

    def holding(shapes: dict[str, tuple[int, ...]]) -> Bundle:
        files = {VIEWS_FILE: bytes(real.read(VIEWS_FILE))}
        files[ADAPTERS_FILE] = pack({name: torch.ones(shape) for name, shape in shapes.items()})
        return make_bundle(real.manifest, files)

    good = {"unet.a.lora_A.weight": (2, 8), "unet.a.lora_B.weight": (8, 2), "unet.b.diff": (8,)}
    good |= {"unet.c.lora_A.weight": (2, 8, 3, 3), "unet.c.lora_B.weight": (8, 2, 1, 1), "promptnet.x.diff": (1,)}
    changes = read_changes(holding(good), "unet", parameters)
    assert {name: tuple(change.shape) for name, change in changes.items()} == {
        "a.weight": (8, 8),
        "c.weight": (8, 8, 3, 3),
        "b": (8,),
    }
    assert isinstance(changes["a.weight"], LowRank) and torch.equal(
        changes["a.weight"].whole(), torch.full((8, 8), 2.0)
    )
    with pytest.raises(BundleError, match="fits nothing in"):
        read_changes(holding(tensors), "unet", parameters)


def test_a_bundle_without_its_parents_fingerprint_is_refused(adapted):
    real = bundle_of(adapted)
    manifest = {key: value for key, value in real.manifest.items() if key != PARENT}
    with pytest.raises(Exception, match=PARENT):
        make_bundle(manifest, {name: bytes(real.read(name)) for name in real.files})


def test_bundles_without_adapters_are_of_the_first_schema(subject, adapted):
    """So that versions of before read them, and say what to do of those that they cannot."""
    assert bundle_of(subject).manifest["schema_version"] == 1 and UNET_FILE in bundle_of(subject).files
    assert bundle_of(adapted).manifest["schema_version"] == 2
