"""Pictures of one prompt, from what is loaded: tokens, latents, pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from PIL import Image

from profusion_cli.plans import Plan
from profusion_cli.prompts import Prompt
from profusion_cli.runtime.denoiser import PromptDenoiser, PromptTokens, Subject, tokenize_prompt
from profusion_cli.runtime.fusion import NONE, Guidance, area_weights, blended, sample_fusion
from profusion_cli.runtime.noise import NoisePath, to_device
from profusion_cli.runtime.schedule import add_noise, schedule_pairs, timesteps_of
from profusion_cli.runtime.text import TextConditioner
from profusion_cli.samplers import SAMPLERS, parse_areas
from profusion_cli.sampling import SampleConfig


class DrawingBase(Protocol):
    """What of a base model drawing takes, beside the UNet.

    Attributes:
        text: the text conditioner, on the device that all is computed on.
        scheduler: of its noise schedule.
    """

    text: TextConditioner
    scheduler: DDIMScheduler

    def size_of(self, settings: SampleConfig) -> tuple[int, int]:
        """Height and width of the latents of a picture."""


@dataclass(frozen=True)
class Beginning:
    """What pictures are drawn over, encoded.

    Args:
        latents: scaled, shape (1, C, h, w).
        mask: 1 where it is drawn over, shape (1, 1, h, w); None: everywhere.
    """

    latents: torch.Tensor
    mask: torch.Tensor | None


def tokenize(
    base: DrawingBase,
    prompt: Prompt,
    subjects: Sequence[Subject],
    class_words: Sequence[str],
    settings: SampleConfig,
    concept_prompt: str,
) -> PromptTokens:
    """A prompt's tokens for the sampler of the settings, with these words for the subjects in its text twin.

    Raises:
        InputError: a prompt so long that its placeholder falls off the end.
    """
    return tokenize_prompt(
        prompt,
        base.text,
        class_words,
        [subject.words for subject in subjects],
        negative_prompt=settings.negative_prompt,
        concept_prompt=concept_prompt,
        subject_prompt=settings.subject_prompt if SAMPLERS[settings.sampler].text else "full",
        apart=settings.areas is not None,
    )


@torch.inference_mode()
def draw_latents(
    base: DrawingBase,
    unet: UNet2DConditionModel,
    subjects: Sequence[Subject],
    tokens: PromptTokens,
    settings: SampleConfig,
    plan: Plan,
    scales: tuple[float, ...],
    generators: Sequence[torch.Generator],
    progress: Callable[[int], None] | None = None,
    beginning: Beginning | None = None,
) -> torch.Tensor:
    """Scaled latents of one picture of a prompt from each generator, by the sampler of the settings.

    Args:
        base: the base model.
        unet: the (tuned) UNet, on the device.
        subjects: of the prompt.
        tokens: of the prompt, from `tokenize`.
        settings: sampler, size and weights; neither the steps, which the plan has, nor the number of pictures.
        plan: of the sampler.
        scales: guidance scale of each subject.
        generators: on the CPU.
        progress: called with the number of sampler steps done.
        beginning: what the first step of the plan starts from, noised; None: noise alone.
    """
    kind, scheduler, device = SAMPLERS[settings.sampler], base.scheduler, base.text.device
    alphas_cumprod, final_alpha_cumprod = scheduler.alphas_cumprod, float(scheduler.final_alpha_cumprod)
    shape = (1, unet.config.in_channels, *base.size_of(settings))
    timesteps = timesteps_of(scheduler, plan.schedule)

    def draw() -> torch.Tensor:
        return torch.cat([torch.randn(shape, generator=generator) for generator in generators])

    start = noise = to_device(draw(), device)
    pairs = schedule_pairs(timesteps, alphas_cumprod, final_alpha_cumprod)
    options: dict[str, Any] = {}
    if beginning is not None:
        latents = beginning.latents.to(start)
        at = torch.tensor([timesteps[plan.steps[0].index]], device=device)
        start = add_noise(latents.expand_as(noise), noise, at, alphas_cumprod)
        if beginning.mask is not None:
            mask = beginning.mask.to(start)
            options["keep"] = lambda x_t, alpha_bar_t: blended(x_t, latents, mask, alpha_bar_t, noise)
    path = NoisePath(draw, plan, [alpha_bars for _, *alpha_bars in pairs], settings)
    guidance = Guidance(
        scales,
        settings.text_guidance if kind.text else 0.0,
        settings.fusion_guidance,
        settings.gamma,
        tokens.prompt.joint and settings.areas is None,
        None if settings.areas is None else area_weights(parse_areas(settings.areas), shape[-1]).to(start),
    )
    prediction_type = scheduler.config.prediction_type
    denoiser = PromptDenoiser(
        unet, base.text, subjects, tokens, alphas_cumprod, prediction_type, settings.gamma_on, plan.word_once
    )
    denoiser.prepare([NONE, *guidance.fused_conditions()[0], *guidance.refined_conditions()[0]])
    return sample_fusion(
        denoiser,
        start,
        [timesteps[step.index] for step in plan.steps],
        alphas_cumprod,
        guidance,
        lambda i, j: to_device(path.noise(i, j), device),
        final_alpha_cumprod=final_alpha_cumprod,
        plan=plan,
        fusion_eta=settings.fusion_eta,
        eta=settings.eta,
        callback=progress,
        **options,
    )


@torch.inference_mode()
def decode(vae: AutoencoderKL, latents: torch.Tensor, scaling_factor: float) -> list[Image.Image]:
    """Pictures of scaled latents, shape (B, 4, h, w), decoded one at a time."""
    pictures = []
    for latent in latents:
        scaled = (latent[None] / scaling_factor).to(vae.device, vae.dtype)
        pixels = (vae.decode(scaled).sample.float() / 2 + 0.5).clamp(0, 1)
        array = (pixels[0].permute(1, 2, 0) * 255).round().byte().cpu().numpy()
        pictures.append(Image.fromarray(array))
    return pictures
