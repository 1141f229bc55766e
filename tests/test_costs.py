"""What pre-training is said to cost: counted operations, the numbers of `--dry-run`, and those of the plan on paper."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from profusion_cli.bench.measure import operations
from profusion_cli.config import PretrainConfig
from profusion_cli.costs import VAE_ENCODER, VISION_TOWER, training_cost
from profusion_cli.plans import PROMPTNET
from profusion_cli.runtime import promptnet as networks
from profusion_cli.runtime.promptnet import PromptNet
from profusion_cli.runtime.random_base import random_models
from tests.conftest import draw_photo, ok

PLAN = Path(__file__).resolve().parents[1] / "presets" / "pretraining.md"
FFHQ = 70_000


def test_the_cost_is_told_beforehand(tmp_path):
    for name in ("a", "b", "c"):
        draw_photo(tmp_path / f"{name}.png")
    common = ["pretrain", tmp_path, "--preset", "tiny-random", "--dry-run", "--batch-size", 2, "-o", tmp_path / "x.pfz"]
    for steps, options, words in (
        (10, [], "68 U, evaluations of the UNet: 20 samples of 3.15 U and 3 pictures to encode of 1.80 U."),
        (1, [], "10 U, evaluations of the UNet: 2 samples of 3.15 U and 2 pictures to encode"),
        (10, ["--no-cache"], "99 U, evaluations of the UNet at most: 20 samples of 3.15 U and 20 pictures to encode"),
        (10, ["--set", "pretrain.gradient_checkpointing=true"], "20 samples of 4.50 U"),
    ):
        said = ok(*common, "--steps", steps, *options).stdout
        assert f"# {steps} steps take " in said and words in said, said
        assert ("Encoded pictures are not kept." in said) == ("--no-cache" in options)


def test_the_plan_is_what_the_arithmetic_gives():
    text = PLAN.read_text(encoding="utf-8")
    own = PretrainConfig(steps=195_313, batch_size=2048)
    large, pictures = training_cost(own, own.steps * own.batch_size, False), own.steps * own.batch_size
    unit = float(re.search(r"(\d+) GFLOP\.", text)[1]) * 1e9
    assert pictures == pytest.approx(400e6, rel=1e-4)
    each = large.units / pictures
    assert f"| together | {each:.2f} | {each * unit / 1e12:.2f} TFLOP |" in text
    assert f"{large.units / 1e9:.2f} billion U" in text
    rates = [0.4 * peak * 1e12 / (each * unit) for peak in (312, 989)]
    steps = [own.batch_size / (64 * rate) for rate in rates]
    for row in (
        f"| pictures a second, each GPU | {rates[0]:.0f} | {rates[1]:.0f} |",
        f"| pictures a second, 64 GPUs | {64 * rates[0]:,.0f} | {64 * rates[1]:,.0f} |",
        f"| seconds a step | {steps[0]:.2f} | {steps[1]:.2f} |",
        f"| hours | {pictures / rates[0] / 64 / 3600:.0f} | {pictures / rates[1] / 64 / 3600:.1f} |",
        f"| 100 kB a picture | {64 * rates[0] / 10:.0f} MB | {64 * rates[1] / 10:.0f} MB |",
        f"| 3.22 GB a step | {3.216 / steps[0]:.1f} GB | {3.216 / steps[1]:.0f} GB |",
        f"| 4.9 GB | {4.9 / steps[0]:.1f} MB | {4.9 / steps[1]:.0f} MB |",
    ):
        assert row in text, row
    papers = PretrainConfig(steps=80_000, batch_size=64)
    for cost in (training_cost(papers, FFHQ, True), training_cost(papers, 64 * 80_000, False)):
        readme = (PLAN.parents[1] / "README.md").read_text(encoding="utf-8")
        assert f"{cost.units / 1e6:.1f}" in text and f"{cost.units / 1e6:.1f}" in readme


@pytest.mark.slow
def test_the_shares_are_those_of_stable_diffusion_2(monkeypatch):
    """Counted on networks without weights; a step, by what its networks take forwards, to 3 %."""
    monkeypatch.setattr(networks, "float32_copies", lambda tensors: {k: v.detach().clone() for k, v in tensors.items()})
    with torch.device("meta"):
        models = random_models("sd2", 0, False)
        unet, text, vision, vae = (models[name] for name in ("unet", "text_encoder", "vision", "vae"))
        shape = {"image_token_dim": 1280, "embedding_dim": 1024, "region_kernel_size": 8, "region_proj_channels": 128}
        promptnet = PromptNet.from_unet(unet, **shape, seed=0).requires_grad_(True)
        noisy, t, tokens = torch.zeros(1, 4, 64, 64), torch.zeros(1, dtype=torch.long), torch.zeros(1, 257, 1280)
        with torch.no_grad():
            unit = operations(lambda: unet(noisy, t, torch.zeros(1, 77, 1024)))
            shares = {
                PROMPTNET: operations(lambda: promptnet(noisy, noisy, t, tokens)),
                VAE_ENCODER: operations(lambda: vae.encode(torch.zeros(1, 3, 512, 512))),
                VISION_TOWER: operations(lambda: vision(torch.zeros(1, 3, 224, 224))),
            }
        for share, counted in shares.items():
            assert counted / unit == pytest.approx(share, abs=5e-4)
        for network in models.values():
            network.requires_grad_(False)

        def step() -> None:
            words = torch.cat([promptnet(noisy, noisy, t, tokens), torch.zeros(1, 76, 1024)], 1)
            states = text.encoder(inputs_embeds=words).last_hidden_state
            unet(noisy, t, states).sample.sum().backward()

        assert operations(step) / unit == pytest.approx(training_cost(PretrainConfig(), 0, True).sample, rel=0.03)
    assert f"{unit / 1e9:.0f} GFLOP" in PLAN.read_text(encoding="utf-8")
    weights = sum(parameter.numel() for parameter in promptnet.parameters())
    assert f"{weights / 1e6:.0f} million weights" in PLAN.read_text(encoding="utf-8")
