"""Encoded pictures of a subject."""

from __future__ import annotations

from dataclasses import dataclass

import torch

VIEW_TENSORS = ("latents_mean", "latents_std", "image_tokens")
"""Names of their tensors in a bundle."""


@dataclass(frozen=True)
class Views:
    """Encoded pictures of a subject, on the CPU in float32.

    Args:
        latents_mean, latents_std: of the VAE posterior, unscaled, shape (V, 4, h, w).
        image_tokens: shape (V, tokens, width).
    """

    latents_mean: torch.Tensor
    latents_std: torch.Tensor
    image_tokens: torch.Tensor

    def __len__(self) -> int:
        return len(self.latents_mean)

    def first(self, count: int) -> Views:
        """The first `count` views."""
        return Views(*(getattr(self, name)[:count].clone() for name in self.__dataclass_fields__))

    def draw_latents(self, index: torch.Tensor, noise: torch.Tensor, scaling_factor: float) -> torch.Tensor:
        """Scaled VAE samples of the views `index`, shape (B, 4, h, w), with the given standard normal noise."""
        return (self.latents_mean[index] + self.latents_std[index] * noise) * scaling_factor
