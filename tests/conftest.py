"""Shared fixtures: a tiny base model of random weights, and subjects made on it."""

from __future__ import annotations

import copy
import functools
import gc
import io
import os
import pickle
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # each of the processes has a core

import pytest
from PIL import Image, ImageDraw
from typer.testing import CliRunner, Result

from profusion_cli.app import app
from profusion_cli.bundle import make_bundle, read_bundle
from tests.hub_server import PIECE, StandIn, serving

if TYPE_CHECKING:
    from profusion_cli.runtime.sampling import Sampler

SHARED = Path(__file__).resolve().parents[2] / "shared"
REFERENCE = SHARED / "reference"
needs_reference = pytest.mark.skipif(not REFERENCE.is_dir(), reason="the recorded reference data is not here")


SLOWEST = (
    *("test_previews", "test_each", "test_evaluate", "test_sampling", "test_faceworld_method", "test_cli"),
    *("test_speed", "test_shards", "test_pretrain", "test_docs", "test_fitting", "test_base_models", "test_training"),
    *("test_estimates", "test_reference", "test_adapters", "test_processes", "test_augment", "test_interpolate"),
)
"""The modules that take longest, which start first where several processes share the work."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: SLOWEST.index(item.path.stem) if item.path.stem in SLOWEST else len(SLOWEST))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Each process takes whole modules, whose tests share what they make."""
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False
    return LoadFileScheduling(config, log)


def copy_quickly(network: Any) -> None:
    """Make `copy.deepcopy` of a network several times as quick: pickle writes all but its tensors, once."""
    import torch

    tensors: list[torch.Tensor] = []

    class Writer(pickle.Pickler):
        def persistent_id(self, part: object) -> int | None:
            if not isinstance(part, torch.Tensor):
                return None
            tensors.append(part)
            return len(tensors) - 1

    written = io.BytesIO()
    Writer(written, pickle.HIGHEST_PROTOCOL).dump(network)

    def deepcopy(memory: dict[int, Any]) -> Any:
        reader = pickle.Unpickler(io.BytesIO(written.getvalue()))
        reader.persistent_load = lambda number: copy.deepcopy(tensors[number], memory)
        return reader.load()

    network.__deepcopy__ = deepcopy


def prepare_for_commands() -> None:
    """What makes many commands in one process quick.

    Models of random weights and their tokenizer are built once, and copied quickly; and the garbage collector, which
    every command calls several times, looks at nothing that is older than the command.
    """
    from profusion_cli.runtime import backbone, inpaint, random_base, sampling, training  # noqa: F401

    gc.collect()
    gc.freeze()
    build = random_base.random_models
    if hasattr(build, "__wrapped__"):
        return  # it is done, perhaps by this file under the other name that pytest imports it by

    @functools.cache
    def build_once(*arguments: object) -> dict[str, Any]:
        models = build(*arguments)
        for network in models.values():
            copy_quickly(network)
        return models

    @functools.wraps(build)
    def built(size: str, *arguments: object) -> dict[str, Any]:
        return (build_once if size == "tiny" else build)(size, *arguments)

    random_base.random_models = built
    random_base.clip_tokenizer = functools.cache(random_base.clip_tokenizer)


def run(*arguments: object, **options: object) -> Result:
    """One command in this process; `exit_code`, `stdout` and `stderr` of the result are what a shell would see."""
    prepare_for_commands()
    return CliRunner().invoke(app, [str(argument) for argument in arguments], **options)


def ok(*arguments: object, **options: object) -> Result:
    """One command that must succeed."""
    result = run(*arguments, **options)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, f"{arguments}\n{result.stderr}"
    return result


def write_bundle(target: object, manifest: dict, files: dict, preview: bytes | None = None, force: bool = False) -> str:
    """A bundle as a file; its SHA-256."""
    bundle = make_bundle(manifest, files, preview)
    bundle.save(target, force)
    return bundle.sha256


def draw_photo(path: Path, colour: str = "tan", size: tuple[int, int] = (160, 140)) -> Path:
    """A picture that is no square and not symmetric."""
    image = Image.new("RGB", size, "steelblue")
    draw = ImageDraw.Draw(image)
    draw.ellipse((40, 20, 110, 120), fill=colour)
    draw.rectangle((60, 50, 70, 60), fill="black")
    image.save(path)
    return path


@pytest.fixture(scope="session", autouse=True)
def _same_on_every_cpu() -> Iterator[None]:
    """`auto` is float32, as on a CPU that does not compute bfloat16."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("profusion_cli.runtime.device.cpu_computes_bfloat16", lambda: False)
        yield


@pytest.fixture(scope="session", autouse=True)
def _consents_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The user's own configuration folder is left alone, by the processes that tests start too."""
    folder = tmp_path_factory.mktemp("configuration")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("typer.get_app_dir", lambda name: str(folder / name))
        patch.setenv("XDG_CONFIG_HOME", str(folder))
        yield


def like_float16(monkeypatch: pytest.MonkeyPatch, trains: ModuleType, steepness: float = 1.0) -> None:
    """Train as on a GPU in float16: losses are scaled, and steps whose gradients overflow are skipped.

    Of the gradients only the first, of the loss, is in float16; it is the scale itself, of which 65536 is too much.

    Args:
        monkeypatch: pytest's.
        trains: the module that makes the accelerator.
        steepness: times the first gradient.
    """
    import torch

    from profusion_cli.runtime import training

    make, loss_of = trains.make_accelerator, training.diffusion_loss

    def scaling(placement: Any, gradient_accumulation: int) -> Any:
        accelerator = make(placement, gradient_accumulation)
        scaler = torch.amp.GradScaler("cpu", init_scale=65536.0 * gradient_accumulation)
        accelerator.scaler = scaler
        # accelerate itself does so only on a GPU
        accelerator.unscale_gradients = lambda: [scaler.unscale_(each.optimizer) for each in accelerator._optimizers]
        return accelerator

    def in_half(*arguments: Any) -> Any:
        loss = loss_of(*arguments)
        loss.register_hook(lambda gradient: (gradient * steepness).half().float())
        return loss

    monkeypatch.setattr(trains, "make_accelerator", scaling)
    monkeypatch.setattr(training, "diffusion_loss", in_half)


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds what is made once for all modules that a process runs."""
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds what is made once for a module, whose names no other module takes."""
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="session")
def photo(shared: Path) -> Path:
    return draw_photo(shared / "face.png")


@pytest.fixture(scope="session")
def base_folder(shared: Path) -> Path:
    """A tiny base model in diffusers' layout, on the disk."""
    from profusion_cli.runtime.random_base import build_random_base

    folder = shared / "base"
    build_random_base(folder)
    return folder


@pytest.fixture
def hub(base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """A stand-in for the Hub, of which every repository holds the tiny base model; and an empty cache."""
    from huggingface_hub import constants

    with serving(base_folder) as served:
        monkeypatch.setattr(constants, "ENDPOINT", served.endpoint)
        template = served.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", PIECE)
        yield served


@pytest.fixture(scope="session")
def subject(shared: Path, photo: Path) -> Path:
    """A subject bundle fine-tuned for two steps on the preset `tiny-random`."""
    target = shared / "me.pfz"
    ok("finetune", photo, "--preset", "tiny-random", "--steps", 2, "--lr", "1e-3", "-o", target)
    return target


@pytest.fixture(scope="session")
def other_subject(shared: Path) -> Path:
    """A second subject, of another photo and class."""
    target = shared / "you.pfz"
    picture = draw_photo(shared / "thing.png", "olive")
    ok(
        "finetune",
        picture,
        "--no-augment",
        "--preset",
        "tiny-random",
        "--steps",
        1,
        "--class-word",
        "a dog",
        "-o",
        target,
    )
    return target


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter:
    """Counts the networks' calls, with the batch size of each."""
    from diffusers import UNet2DConditionModel

    from profusion_cli.runtime.promptnet import PromptNet
    from profusion_cli.runtime.text import TextConditioner

    log: Counter = Counter()

    def count(cls, method, name, batch_of):
        original = getattr(cls, method)

        def counted(self, *args, **kwargs):
            if not args[0].is_meta:  # else memory is counted, and nothing computed
                log[name, batch_of(args)] += 1
            return original(self, *args, **kwargs)

        monkeypatch.setattr(cls, method, counted)

    count(UNet2DConditionModel, "forward", "unet", lambda args: args[0].shape[0])
    count(PromptNet, "forward", "promptnet", lambda args: args[0].shape[0])
    count(TextConditioner, "hidden_states", "text", lambda args: args[0].shape[0])
    return log


@contextmanager
def opened_sampler(subject: Path, steps: int, settings: dict[str, Any] | None = None) -> Iterator[Sampler]:
    """One subject, loaded, to be drawn in so many steps, by further settings of `sample`."""
    from profusion_cli.config import build_config
    from profusion_cli.jobs.configuration import remembered_config
    from profusion_cli.mappings import merge
    from profusion_cli.prompts import parse_prompt
    from profusion_cli.runtime.backbone import BaseModel
    from profusion_cli.runtime.device import resolve_placement
    from profusion_cli.runtime.sampling import Sampler

    bundle = read_bundle(subject.read_bytes(), "me.pfz")
    config = build_config(merge(remembered_config(bundle), {"sample": {"steps": steps, **(settings or {})}}))
    prompts = [parse_prompt("S* in style", config.placeholder, 1)]
    with BaseModel(config.base, resolve_placement("cpu", "float32", training=False)) as base:
        sampler = Sampler(base, [bundle], ["a person"], prompts, config)
        sampler.weigh([1.0])
        yield sampler
