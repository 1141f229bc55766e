"""Running out of memory: the same result in smaller parts, wherever it happens, or a sentence on what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image

from profusion_cli.bundle import read_bundle
from profusion_cli.runtime.promptnet import PromptNet
from profusion_cli.runtime.training import Batch
from tests.conftest import ok, run

TUNED = ("--preset", "tiny-random", "--no-augment", "--steps", 3, "--batch-size", 8, "--lr", "1e-3")
EXHAUSTED = "CUDA out of memory. Tried to allocate 9 GiB"


def size_of(arguments: Any) -> int:
    """How many pictures a network or a batch is given."""
    return len(arguments[0])


def is_counted(arguments: Any) -> bool:
    """Whether a network computes nothing, on tensors without memory."""
    return bool(arguments) and isinstance(arguments[0], torch.Tensor) and arguments[0].is_meta


def fails_above(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, most: int) -> list[int]:
    """No memory for more pictures than these; the sizes that were asked for."""
    original, asked = getattr(owner, name), []

    def limited(self: Any, *arguments: Any, **options: Any) -> Any:
        if is_counted(arguments):
            return original(self, *arguments, **options)
        size = len(self) if owner is Batch else size_of(arguments)
        asked.append(size)
        if size > most:
            raise torch.OutOfMemoryError(EXHAUSTED)
        return original(self, *arguments, **options)

    monkeypatch.setattr(owner, name, limited)
    return asked


def fails_once(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, call: int) -> list[int]:
    """No memory in the call of this number."""
    original, calls = getattr(owner, name), []

    def limited(self: Any, *arguments: Any, **options: Any) -> Any:
        if is_counted(arguments):
            return original(self, *arguments, **options)
        calls.append(len(calls))
        if len(calls) == call:
            raise torch.OutOfMemoryError(EXHAUSTED)
        return original(self, *arguments, **options)

    monkeypatch.setattr(owner, name, limited)
    return calls


def tensors(path: Path) -> dict[str, torch.Tensor]:
    bundle = read_bundle(path.read_bytes(), path.name)
    held = {name: safetensors.torch.load(bytes(bundle.read(name))) for name in bundle.files}
    return {f"{file}:{name}": tensor for file, own in held.items() for name, tensor in own.items()}


@pytest.fixture(scope="module")
def tuned(work: Path, photo: Path) -> tuple[Path, dict[str, Any]]:
    """A subject tuned with memory enough, and what was told of it."""
    target = work / "enough.pfz"
    return target, json.loads(ok("finetune", photo, *TUNED, "--save-dtype", "float32", "-o", target, "--json").stdout)


WHERE: dict[str, Callable[[pytest.MonkeyPatch], list[int]]] = {
    "UNet": lambda patch: fails_above(patch, UNet2DConditionModel, "forward", 2),
    "PromptNet": lambda patch: fails_above(patch, PromptNet, "forward", 3),
    "data": lambda patch: fails_above(patch, Batch, "to", 4),
    "optimiser": lambda patch: fails_once(patch, torch.optim.AdamW, "step", 2),
    "UNet, in the middle of a step": lambda patch: fails_once(patch, UNet2DConditionModel, "forward", 4),
}


@pytest.mark.parametrize("where", WHERE)
def test_training_goes_on_from_the_last_whole_step(tuned, photo, tmp_path, monkeypatch, where):
    expected, told = tuned
    calls, target = WHERE[where](monkeypatch), tmp_path / "little.pfz"
    parts = ("--gradient-accumulation", 2) if "middle" in where else ()
    result = ok("finetune", photo, *TUNED, *parts, "--save-dtype", "float32", "-o", target, "--json")
    assert calls and "Memory ran out in step" in result.stderr
    summary = json.loads(result.stdout)
    for name in ("first_loss", "last_loss"):
        assert summary[name] == pytest.approx(told[name], rel=1e-4)
    ours, theirs = tensors(target), tensors(expected)
    assert ours.keys() == theirs.keys()
    for name in theirs:
        torch.testing.assert_close(ours[name].float(), theirs[name].float(), rtol=1e-3, atol=2e-4)


def test_no_memory_for_one_picture_is_told(photo, tmp_path, monkeypatch):
    asked = fails_above(monkeypatch, UNet2DConditionModel, "forward", 0)
    result = run("finetune", photo, *TUNED, "-o", tmp_path / "x.pfz")
    assert result.exit_code == 6 and "--train" in result.stderr and "9 GiB" in result.stderr
    assert asked == [8, 4, 2, 1]
    assert not list(tmp_path.iterdir())


def test_no_memory_for_encoding_is_told(photo, tmp_path, monkeypatch):
    fails_above(monkeypatch, AutoencoderKL, "encode", 0)
    result = run("finetune", photo, *TUNED, "-o", tmp_path / "x.pfz")
    assert result.exit_code == 6 and "9 GiB" in result.stderr
    assert not list(tmp_path.iterdir())


def test_fewer_pictures_are_drawn_at_once(subject, tmp_path, monkeypatch):
    """The same pictures, since each has noise of its own; and half as many at once from then on."""
    drawn = ("S* in style", "S* at sea", "-n", 4, "--batch-size", 4, "--steps", 3)
    ok("sample", subject, *drawn, "-o", tmp_path / "enough")
    asked = fails_above(monkeypatch, UNet2DConditionModel, "forward", 2 * 3)
    result = ok("sample", subject, *drawn, "-o", tmp_path / "little")
    assert result.stderr.count("Memory ran out") == 1 and "2 in place of 4" in result.stderr
    assert sum(size > 6 for size in asked) == 1
    names = sorted(path.name for path in (tmp_path / "enough").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "little").iterdir()) and len(names) == 8
    for name in names:
        ours, theirs = (np.asarray(Image.open(tmp_path / kind / name)).astype(int) for kind in ("little", "enough"))
        assert abs(ours - theirs).max() <= 1


def test_no_memory_for_decoding_one_picture_is_told(subject, tmp_path, monkeypatch):
    fails_above(monkeypatch, AutoencoderKL, "decode", 0)
    result = run("sample", subject, "S* in style", "--steps", 3, "-o", tmp_path / "x.png")
    assert result.exit_code == 6 and "--batch-size" in result.stderr
    assert not list(tmp_path.iterdir())
