"""Training objectives, eqs (1) and (2) of arXiv 2305.13579."""

from __future__ import annotations

import torch

from profusion_cli.runtime.schedule import velocity


def diffusion_target(
    latents: torch.Tensor,
    noise: torch.Tensor,
    timesteps: torch.Tensor,
    alphas_cumprod: torch.Tensor,
    prediction_type: str,
) -> torch.Tensor:
    """What the UNet should predict; shapes (B, C, H, W), timesteps (B,).

    Raises:
        ValueError: a prediction type other than `epsilon` and `v_prediction`.
    """
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "v_prediction":
        return velocity(latents, noise, timesteps, alphas_cumprod)
    raise ValueError(f"unknown prediction_type {prediction_type!r}")


def diffusion_loss(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Eq. (1): mean squared error in float32, without weighting or regularisation; a scalar."""
    return (prediction.float() - target.float()).square().mean()


def embedding_l2(pseudo_words: torch.Tensor) -> torch.Tensor:
    """The regulariser ||S*||^2 of eq. (2), as the authors compute it: the mean over all elements; a scalar."""
    return pseudo_words.float().square().mean()


def prior_preservation_loss(
    prediction: torch.Tensor, target: torch.Tensor, is_prior: torch.Tensor, prior_weight: float
) -> torch.Tensor:
    """DreamBooth's loss, eq. (2) of arXiv 2208.12242: eq. (1) on the subject's pictures, and weighed on the class's.

    The mean over a batch is that over its parts, whichever pictures they hold.

    Args:
        prediction, target: shape (B, C, H, W).
        is_prior: which are pictures of the class, bool, shape (B,): every other one of a whole batch.
        prior_weight: of the class's mean error beside the subject's.

    Returns:
        A float32 scalar: means over half the batch each, added.
    """
    errors = (prediction.float() - target.float()).square().flatten(1).mean(1)
    weights = torch.where(is_prior, prior_weight, 1.0)
    return 2 * (errors * weights).mean()
