"""The noise schedule: alpha_bar along the timesteps that are really visited. No model.

`alpha_bar_t` is the cumulative product `alphas_cumprod[t]`; `s` is the next, less noisy timestep of
the schedule in use (never `t - 1000 // n`), with `alpha_bar_s` one past the last timestep.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from diffusers import DDIMScheduler

from profusion_cli.errors import ConfigError


def timesteps_of(scheduler: DDIMScheduler, steps: int) -> list[int]:
    """The timesteps of a schedule of so many steps, decreasing.

    Raises:
        ConfigError: more steps than the schedule has timesteps for.
    """
    train_steps = scheduler.config.num_train_timesteps
    scheduler.set_timesteps(min(steps, train_steps))
    timesteps = [int(t) for t in scheduler.timesteps]
    if steps > train_steps or timesteps[0] >= train_steps:
        raise ConfigError(f"sample.steps={steps} is more than this schedule holds.", f"Use fewer than {train_steps}.")
    return timesteps


def schedule_pairs(
    timesteps: Sequence[int], alphas_cumprod: torch.Tensor, final_alpha_cumprod: float
) -> list[tuple[int, float, float]]:
    """`(t, alpha_bar_t, alpha_bar_s)` for every step of a decreasing schedule.

    Args:
        timesteps: strictly decreasing, any spacing, starting anywhere, each in `[0, len(alphas_cumprod))`.
        alphas_cumprod: shape (train timesteps,), decreasing, in (0, 1].
        final_alpha_cumprod: alpha_bar after the last step (`DDIMScheduler.final_alpha_cumprod`), in (0, 1].

    Raises:
        ValueError: timesteps that are empty, out of range or not strictly decreasing.
    """
    steps = [int(t) for t in timesteps]
    if not steps:
        raise ValueError("the schedule has no timesteps")
    if any(t <= s for t, s in pairwise(steps)):
        raise ValueError(f"timesteps must decrease strictly, got {steps}")
    if steps[0] >= len(alphas_cumprod) or steps[-1] < 0:
        raise ValueError(f"timesteps must lie in [0, {len(alphas_cumprod)}), got {steps}")
    known = alphas_cumprod.tolist()
    alpha_bars = [*(known[t] for t in steps), float(final_alpha_cumprod)]
    return list(zip(steps, alpha_bars, alpha_bars[1:], strict=False))


def check_schedule(timesteps: torch.Tensor, alphas_cumprod: torch.Tensor) -> None:
    """A schedule as a base model describes it can be followed.

    Raises:
        ValueError: an alpha_bar outside of [0, 1], or a timestep that has none.
    """
    if not ((alphas_cumprod >= 0) & (alphas_cumprod <= 1)).all():
        raise ValueError("it has less than no noise, or more than noise alone")
    if not ((timesteps >= 0) & (timesteps < len(alphas_cumprod))).all():
        raise ValueError(f"its timesteps do not lie in [0, {len(alphas_cumprod)})")


def ddim_sigma(alpha_bar_t: float, alpha_bar_s: float, eta: float) -> float:
    """Standard deviation of the noise in a DDIM step t -> s (DDIM, arXiv 2010.02502, eq. 16).

    sigma^2 = eta^2 (1 - alpha_bar_s) / (1 - alpha_bar_t) (1 - alpha_bar_t / alpha_bar_s)
    """
    if alpha_bar_t >= 1.0:
        return 0.0
    variance = (1 - alpha_bar_s) / (1 - alpha_bar_t) * (1 - alpha_bar_t / alpha_bar_s)
    return eta * max(variance, 0.0) ** 0.5


def fusion_fraction(alpha_bar_t: float, alpha_bar_s: float, eta: float) -> float:
    """u in [0, eta^2]: how much of the noise in x_t one fusion update replaces.

    u = eta^2 (alpha_bar_s - alpha_bar_t) / (alpha_bar_s (1 - alpha_bar_t)), which is
    sigma_t^2 / (1 - alpha_bar_s) wherever alpha_bar_s < 1, and eta^2 where the literal eq. (11) is 0/0.
    """
    if alpha_bar_t >= 1.0:
        return 0.0
    return eta**2 * max(alpha_bar_s - alpha_bar_t, 0.0) / (alpha_bar_s * (1 - alpha_bar_t))


def alpha_bar_of(alphas_cumprod: torch.Tensor, timesteps: torch.Tensor, ndim: int) -> torch.Tensor:
    """`alphas_cumprod[timesteps]`, shape (B,), with trailing ones up to `ndim` dimensions."""
    return alphas_cumprod.to(timesteps.device)[timesteps].reshape(-1, *[1] * (ndim - 1))


def add_noise(
    latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor, alphas_cumprod: torch.Tensor
) -> torch.Tensor:
    """x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) noise; all of shape (B, C, H, W), timesteps (B,)."""
    alpha_bar = alpha_bar_of(alphas_cumprod, timesteps, latents.ndim).to(latents.dtype)
    return alpha_bar.sqrt() * latents + (1 - alpha_bar).sqrt() * noise


def velocity(
    latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor, alphas_cumprod: torch.Tensor
) -> torch.Tensor:
    """v = sqrt(alpha_bar_t) noise - sqrt(1 - alpha_bar_t) x_0 (arXiv 2202.00512, appendix D)."""
    alpha_bar = alpha_bar_of(alphas_cumprod, timesteps, latents.ndim).to(latents.dtype)
    return alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * latents


def epsilon_from(
    prediction: torch.Tensor, latents: torch.Tensor, alpha_bar_t: float, prediction_type: str
) -> torch.Tensor:
    """The predicted noise eps, whatever the UNet predicts.

    Args:
        prediction: the UNet's output at (`latents` = x_t, t), shape (B, C, H, W).
        prediction_type: `epsilon` or `v_prediction`.

    Raises:
        ValueError: another prediction type.
    """
    if prediction_type == "epsilon":
        return prediction
    if prediction_type == "v_prediction":
        return alpha_bar_t**0.5 * prediction + (1 - alpha_bar_t) ** 0.5 * latents
    raise ValueError(f"unknown prediction_type {prediction_type!r}")
