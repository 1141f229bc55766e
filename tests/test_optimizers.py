"""AdamW with its state in 8 bits: the same losses as AdamW's within a band, a quarter of the state."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.optim import AdamW8bit
from torch import nn

from profusion_cli.bundle import read_bundle
from profusion_cli.runtime.optimizers import SMALLEST, eight_bit_adamw, state_bytes
from tests.conftest import ok, run

TUNED = ("--preset", "tiny-random", "--no-augment", "--batch-size", 2, "--lr", "1e-3")
EIGHT_BIT = ("--optimizer", "adamw8bit")
BAND = 0.02
"""Of the loss, by which a step's may differ."""


def losses_of(photo: Path, monkeypatch: pytest.MonkeyPatch, *options: Any) -> list[float]:
    """Of every step of a fine-tuning, by command."""
    from profusion_cli.runtime import training

    seen, steps = [], training.fit

    def heard(*arguments: Any, **settings: Any) -> Any:
        for step in steps(*arguments, **settings):
            seen.append(step.loss)
            yield step

    with monkeypatch.context() as patch:
        patch.setattr(training, "fit", heard)
        ok("finetune", photo, *TUNED, "--steps", 12, *options, "--force", "-o", photo.parent / "curve.pfz")
    return seen


def test_the_losses_are_those_of_adamw(photo, monkeypatch):
    """Within 2 % at every step, on a curve that falls by far more."""
    eight, whole = (losses_of(photo, monkeypatch, *options) for options in (EIGHT_BIT, ()))
    still = losses_of(photo, monkeypatch, "--lr", "0")
    assert len(eight) == len(whole) == 12
    assert max(abs(a / b - 1) for a, b in zip(eight, whole, strict=True)) < BAND
    assert max(abs(a / b - 1) for a, b in zip(still, whole, strict=True)) > 3 * BAND
    assert eight != whole


def test_the_state_is_as_large_as_is_told():
    """In 8 bits where a parameter is large enough for it."""
    parameters = [nn.Parameter(torch.randn(size)) for size in (SMALLEST - 1, SMALLEST, 3 * SMALLEST + 5)]
    optimizer = eight_bit_adamw(parameters, 1e-3, 0.01)
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    shared = ("qmap1", "qmap2")  # one table for all
    held = sum(
        value.numel() * value.element_size()
        for state in optimizer.state.values()
        for name, value in state.items()
        if isinstance(value, torch.Tensor) and name not in shared
    )
    assert held == state_bytes(parameters, "adamw8bit") < state_bytes(parameters, "adamw")
    large = [nn.Parameter(torch.empty(4096, 4096, device="meta"))]
    assert state_bytes(large, "adamw8bit") < 0.26 * state_bytes(large, "adamw")


def test_the_bundle_says_so_and_the_estimate_is_smaller(photo, tmp_path):
    told = {}
    for name in ("adamw", "adamw8bit"):
        target = tmp_path / f"{name}.pfz"
        result = ok("finetune", photo, *TUNED, "--steps", 1, "--optimizer", name, "-o", target, "--json")
        told[name] = json.loads(result.stdout)["estimate"]
        assert read_bundle(target.read_bytes(), "x").manifest["config"]["finetune"]["optimizer"] == name
    assert told["adamw8bit"]["optimizer_bytes"] < 0.5 * told["adamw"]["optimizer_bytes"]
    assert told["adamw8bit"]["gradients_bytes"] == told["adamw"]["gradients_bytes"]


def test_a_broken_step_is_not_done_again(photo, tmp_path, monkeypatch):
    """It has changed some of the parameters, unlike a fused one."""
    calls, step = [], AdamW8bit.step

    def limited(self: Any, *arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
        return step(self, *arguments, **options)

    monkeypatch.setattr(AdamW8bit, "step", limited)
    result = run("finetune", photo, *TUNED, *EIGHT_BIT, "--steps", 3, "-o", tmp_path / "x.pfz")
    assert result.exit_code == 6 and "9 GiB" in result.stderr and len(calls) == 2
    assert not list(tmp_path.iterdir())


def test_without_its_library_it_says_where_to_get_it(photo, tmp_path, monkeypatch):
    """Before anything is loaded."""
    original = builtins.__import__

    def without(name: str, *arguments: Any, **options: Any) -> Any:
        if name.partition(".")[0] == "bitsandbytes":
            raise ImportError("No module named 'bitsandbytes'")
        return original(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    result = run("finetune", photo, *TUNED, *EIGHT_BIT, "-o", tmp_path / "x.pfz")
    assert result.exit_code == 8 and "profusion[eight-bit]" in result.stderr
    assert run("finetune", photo, *TUNED, "--optimizer", "sgd", "-o", tmp_path / "x.pfz").exit_code == 3
    assert not list(tmp_path.iterdir())
