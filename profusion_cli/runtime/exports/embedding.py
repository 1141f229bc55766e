"""S* as one word that does not change, for tools that know textual inversion."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from profusion_cli.runtime.denoiser import PromptNetSubject
from profusion_cli.runtime.device import picture_generator
from profusion_cli.runtime.schedule import add_noise

LEVELS = 16
"""Noise levels that S* is averaged over, evenly spread."""


def levels(train_timesteps: int) -> list[int]:
    """The timesteps in the middle of so many equal spans of a schedule."""
    return [(2 * level + 1) * train_timesteps // (2 * LEVELS) for level in range(LEVELS)]


@torch.inference_mode()
def average_word(
    subject: PromptNetSubject, alphas_cumprod: torch.Tensor, timesteps: Sequence[int], seed: int
) -> tuple[torch.Tensor, float]:
    """The mean of S* at some timesteps, at each of which its own reference view is noised.

    Args:
        subject: on its device.
        alphas_cumprod: shape (train timesteps,).
        timesteps: one or more.
        seed: of the noise.

    Returns:
        Float32 of shape (words, embedding_dim), on the CPU, and how far S* is from it, relative: the root of the mean
        of ||S*_t - mean||^2 / ||mean||^2; of one timestep that is 0.
    """
    latents, found = subject.ref_latents, []
    generator = picture_generator(seed, 0)
    for t in timesteps:
        noise = torch.randn(latents.shape, generator=generator).to(latents)
        at = torch.tensor([t], device=latents.device)
        x_t = add_noise(latents, noise, at, alphas_cumprod)
        found.append(subject.pseudo_word(x_t, at[0])[0].float().cpu())
    words = torch.stack(found)
    mean = words.mean(0)
    return mean, float(((words - mean).flatten(1).norm(dim=1) ** 2).mean().sqrt() / mean.norm())
