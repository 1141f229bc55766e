"""The UNet as the rest of the code sees it: a prediction of noisy latents, a timestep and what it is conditioned on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import UNet2DConditionModel


@dataclass(frozen=True)
class Conditioning:
    """What the UNet is told besides the noisy latents and the timestep; every tensor has the batch first.

    Args:
        encoder_hidden_states: of the text encoder, shape (B, length, width).
    """

    encoder_hidden_states: torch.Tensor


def predict(
    unet: UNet2DConditionModel, x_t: torch.Tensor, t: torch.Tensor | int, conditioning: Conditioning
) -> torch.Tensor:
    """What the UNet predicts of x_t, noise or velocity, in its own precision.

    Args:
        unet: it is given everything in the precision of its first layer.
        x_t: noisy latents, shape (B, C, h, w).
        t: timestep, an integer or shape (B,).
        conditioning: of the same batch.

    Returns:
        Shape (B, 4, h, w).
    """
    dtype = unet.conv_in.weight.dtype
    states = conditioning.encoder_hidden_states.to(dtype)
    return unet(x_t.to(dtype), t, encoder_hidden_states=states, return_dict=False)[0]
