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
from profusion_cli.runtime.choosing import candidates, fit, foreseen
from profusion_cli.runtime.counting import Peak
from profusion_cli.runtime.device import Placement, resolve_placement
from profusion_cli.runtime.estimates import finetuning_estimate, sampling_estimate
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
        config = replace(config, base=replace(config.base, id=str(folder), random=None, resolution=256))
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
        side = config.base.resolution // 8
        generator = torch.Generator().manual_seed(0)
        latents = torch.randn(2, 4, side, side, generator=generator)
        tokens = torch.randn(2, 257, 32, generator=generator)
        width = base.text.embedding_dim
        promptnet = PromptNet.from_unet(base.unet, 32, width, 2, 16)
        views = Views(latents, torch.zeros_like(latents), tokens)
        training.finetune(base, promptnet, views, own, config.concept_prompt, 0, lambda *_: None)
    return peak[0]


CASES = {
    "attention": {"train": "attention", "gradient_accumulation": 2},
    "adapters": {"train": "lora", "gradient_accumulation": 2},
    "computed twice": {"train": "attention", "gradient_accumulation": 2, "gradient_checkpointing": True},
    "adapters, computed twice": {"train": "lora", "gradient_accumulation": 1, "gradient_checkpointing": True},
    "PromptNet": {"train": "promptnet", "gradient_accumulation": 4},
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", CASES)
def test_what_is_told_is_what_is_held(case, dtype, middle, monkeypatch):
    """Within a tenth, of tensors that live at once in real steps on the CPU, their copies for autocast included."""
    config = config_of(middle, **CASES[case])
    told = finetuning_estimate(config, resolve_placement("cpu", dtype, training=True), augments=False).tuning
    expected = told.gradients + told.optimizer + told.activations
    found = held(config, dtype, monkeypatch)
    print(case, dtype, found / 1e6, expected / 1e6, found / expected)
    assert found == pytest.approx(expected, rel=TOLERANCE)


def test_tiny_steps_are_counted_too(monkeypatch):
    config = config_of(None, gradient_accumulation=2)
    told = finetuning_estimate(config, resolve_placement("cpu", "float32", training=True), augments=False).tuning
    found = held(config, "float32", monkeypatch)
    assert found == pytest.approx(told.gradients + told.optimizer + told.activations, rel=TOLERANCE)
