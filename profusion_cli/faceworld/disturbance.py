"""What a judge is to overlook: small losses of pictures in training, so that it does not look for a perfect drawing."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def disturbed(pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A little blur and noise on half of the pictures, shape (B, 3, side, side) in [0, 1]."""
    chosen = (torch.rand(len(pixels), 1, 1, 1, generator=generator) < 0.5).float()
    blurred = F.avg_pool2d(F.pad(pixels, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    blur = torch.rand(len(pixels), 1, 1, 1, generator=generator) * chosen
    noise = torch.randn(pixels.shape, generator=generator) * 0.03 * chosen
    return (pixels * (1 - blur) + blurred * blur + noise).clamp(0, 1)


def worn(pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Half of the pictures as from a lossy code: the finest details are lost, and blotches of several sizes come in.

    Args:
        pixels: shape (B, 3, side, side), in [0, 1]; the side is a multiple of 16.
        generator: says which ones, and how much.
    """
    side = pixels.shape[-1]
    chosen = (torch.rand(len(pixels), 1, 1, 1, generator=generator) < 0.5).float()
    coarse = F.interpolate(F.avg_pool2d(pixels, 2), side, mode="bilinear")
    lost = torch.rand(len(pixels), 1, 1, 1, generator=generator) * chosen
    blotches = torch.zeros_like(pixels)
    for cells in (side // 16, side // 8, side // 4):
        noise = torch.randn(len(pixels), 3, cells, cells, generator=generator)
        blotches += F.interpolate(noise, side, mode="bilinear")
    amount = 0.03 * torch.rand(len(pixels), 1, 1, 1, generator=generator) * chosen
    return (pixels + (coarse - pixels) * lost + blotches * amount).clamp(0, 1)
