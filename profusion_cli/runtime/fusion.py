"""Fusion Sampling (arXiv 2305.13579, section 3.2 and Algorithm 1) as pure functions.

    x_t                noisy latents at timestep t, shape (B, C, H, W)
    s                  the next, less noisy timestep of the schedule in use
    alpha_bar_t        cumulative product of the schedule at t
    eps                predicted noise, same shape as x_t
    S*                 the pseudo-word of the subject; C the text without it
    gamma              weight of S* in the fusion stage, in [0, 1]
    guidance scale     1 + omega in the paper's notation
    z                  standard normal noise, given by the caller

Nothing here knows of models: noise predictions come from a callable `eps(x_t, t, conditions)` that
answers all conditions at once, and every random number comes from a callable `noise(i, j)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from profusion_cli.plans import Plan, exact_plan
from profusion_cli.runtime.schedule import ddim_sigma, fusion_fraction, schedule_pairs


@dataclass(frozen=True)
class Condition:
    """What one noise prediction is conditioned on.

    Args:
        kind: `none` (unconditional, or the negative prompt), `text` (C), `subject` (S* of one
            subject), `fused` (gamma S* together with C).
        subject: which subject, from 0; None where the condition is of all of them or of none.
        gamma: weight of S*, in [0, 1]; 1 outside the fusion stage.
    """

    kind: Literal["none", "text", "subject", "fused"]
    subject: int | None = None
    gamma: float = 1.0


NONE = Condition("none")
TEXT = Condition("text")

Eps = Callable[[torch.Tensor, int, Sequence[Condition]], Sequence[torch.Tensor]]
Noise = Callable[[int, int], torch.Tensor]


def guided(eps_none: torch.Tensor, eps_condition: torch.Tensor, guidance_scale: float) -> torch.Tensor:
    """Eq. (3): eps_none + guidance_scale (eps_condition - eps_none), with guidance_scale = 1 + omega."""
    return eps_none + guidance_scale * (eps_condition - eps_none)


def independent(
    eps_none: torch.Tensor, eps_conditions: Sequence[torch.Tensor], guidance_scales: Sequence[float | torch.Tensor]
) -> torch.Tensor:
    """Eq. (6) for any number of conditions: eps_none + sum_i scale_i (eps_i - eps_none).

    With the conditions (S*, C) this is the paper's refinement; with (S*_1, ..., S*_k, C) its form for
    k subjects. A scale may differ from place to place: a tensor that broadcasts to eps.
    """
    result = eps_none
    for eps_condition, scale in zip(eps_conditions, guidance_scales, strict=True):
        result = result + scale * (eps_condition - eps_none)
    return result


def area_weights(spans: Sequence[tuple[float, float]], width: int) -> torch.Tensor:
    """How much of each column of a picture belongs to each of several spans of its width.

    Args:
        spans: from and to, in [0, 1]; they may overlap, or leave columns to nobody, which all then share.
        width: number of columns.

    Returns:
        Float64 of shape (spans, 1, 1, 1, width); the weights of each column sum to 1.
    """
    edges = torch.arange(width + 1, dtype=torch.float64) / width
    covered = torch.stack([(edges[1:].clamp(max=b) - edges[:-1].clamp(min=a)).clamp(min=0) for a, b in spans])
    covered = torch.where(covered.sum(0) > 0, covered, torch.ones(()))
    return (covered / covered.sum(0))[:, None, None, None]


def clean_estimate(x_t: torch.Tensor, eps: torch.Tensor, alpha_bar_t: float) -> torch.Tensor:
    """x~_0 of eq. (8): (x_t - sqrt(1 - alpha_bar_t) eps) / sqrt(alpha_bar_t)."""
    return (x_t - (1 - alpha_bar_t) ** 0.5 * eps) / alpha_bar_t**0.5


def ddim_step(
    x_t: torch.Tensor,
    eps: torch.Tensor,
    alpha_bar_t: float,
    alpha_bar_s: float,
    sigma: float = 0.0,
    z: torch.Tensor | None = None,
) -> torch.Tensor:
    """Eq. (8), the DDIM step t -> s.

    x_s = sqrt(alpha_bar_s) x~_0 + sqrt(1 - alpha_bar_s - sigma^2) eps + sigma z, where
    x~_0 = (x_t - sqrt(1 - alpha_bar_t) eps) / sqrt(alpha_bar_t).

    Raises:
        ValueError: sigma > 0 without z.
    """
    x_0 = clean_estimate(x_t, eps, alpha_bar_t)
    x_s = alpha_bar_s**0.5 * x_0 + max(1 - alpha_bar_s - sigma**2, 0.0) ** 0.5 * eps
    if sigma == 0:
        return x_s
    if z is None:
        raise ValueError("a step with sigma > 0 needs noise")
    return x_s + sigma * z


def dpm_solver_step(
    x_t: torch.Tensor,
    eps: torch.Tensor,
    x_0_before: torch.Tensor,
    alpha_bar_r: float,
    alpha_bar_t: float,
    alpha_bar_s: float,
) -> torch.Tensor:
    """DPM-Solver++(2M), the step t -> s (arXiv 2211.01095, Algorithm 2).

    x_s = sqrt((1 - alpha_bar_s) / (1 - alpha_bar_t)) x_t + sqrt(alpha_bar_s) (1 - e^-h) D, where
    D = x~_0 + (x~_0 - x_0_before) / 2r, lambda = log(alpha_bar / (1 - alpha_bar)) / 2, h = lambda_s - lambda_t and
    r = (lambda_t - lambda_r) / h.

    Args:
        x_0_before: x~_0 at the timestep r before t, from which x_t was stepped to.
        alpha_bar_s: below 1.
    """
    lambda_r, lambda_t, lambda_s = (0.5 * math.log(a / (1 - a)) for a in (alpha_bar_r, alpha_bar_t, alpha_bar_s))
    h = lambda_s - lambda_t
    x_0 = clean_estimate(x_t, eps, alpha_bar_t)
    extrapolated = x_0 + h / (2 * (lambda_t - lambda_r)) * (x_0 - x_0_before)
    return ((1 - alpha_bar_s) / (1 - alpha_bar_t)) ** 0.5 * x_t - alpha_bar_s**0.5 * math.expm1(-h) * extrapolated


def fusion_update(
    x_t: torch.Tensor, eps: torch.Tensor, alpha_bar_t: float, alpha_bar_s: float, eta: float, z: torch.Tensor
) -> torch.Tensor:
    """Eq. (11): one step t -> s with the fused prediction, and the noise put back, in one expression.

    x_t <- x_t - sqrt(1 - alpha_bar_t) (u eps - sqrt(u (2 - u)) z), with u from `fusion_fraction`.
    This form keeps the variance, is defined for any alpha_bar_s > alpha_bar_t, alpha_bar_s = 1
    included, and consecutive updates compose as u = 1 - prod(1 - u_i).
    """
    u = fusion_fraction(alpha_bar_t, alpha_bar_s, eta)
    return x_t - (1 - alpha_bar_t) ** 0.5 * (u * eps - max(u * (2 - u), 0.0) ** 0.5 * z)


def blended(
    x_t: torch.Tensor, latents: torch.Tensor, mask: torch.Tensor, alpha_bar_t: float, z: torch.Tensor
) -> torch.Tensor:
    """Blended latents (arXiv 2206.02779, Algorithm 1): what is known, noised as x_t is, outside of a mask.

    m x_t + (1 - m) (sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) z)

    Args:
        latents: x_0 of what is known.
        mask: m, 1 where x_t stays, of a shape that broadcasts to it.
        z: the same at every t.
    """
    return mask * x_t + (1 - mask) * (alpha_bar_t**0.5 * latents + (1 - alpha_bar_t) ** 0.5 * z)


@dataclass(frozen=True)
class Guidance:
    """Which conditions Algorithm 1 asks for, and how it weighs them.

    Args:
        subject: guidance scale of each subject in the refinement, one or more, each >= 0.
        text: guidance scale of the text C in the refinement; at 0 the term is left out.
        fusion: guidance scale of the fused condition in the fusion stage.
        gamma: weight of S* in the fusion stage, in [0, 1].
        joint: all subjects stand in one prompt, which the fusion stage sees whole; otherwise each
            subject has its own fused prediction, and they are averaged with weights s_i / sum(s).
        areas: the share of each subject in every place, from `area_weights`: there its guidance scale is multiplied by
            it, and it weighs the subject's fused prediction; None: every subject is everywhere.
    """

    subject: tuple[float, ...]
    text: float
    fusion: float
    gamma: float
    joint: bool = False
    areas: torch.Tensor | None = None

    def __post_init__(self) -> None:
        if not self.subject or min(self.subject) < 0 or sum(self.subject) <= 0:
            raise ValueError(f"subject guidance scales must be >= 0 and not all 0, got {self.subject}")

    def fused_conditions(self) -> tuple[list[Condition], list[float | torch.Tensor]]:
        """Conditions of the fusion stage and their weights, which sum to 1."""
        if self.areas is not None:
            return [Condition("fused", i, self.gamma) for i in range(len(self.subject))], list(self.areas)
        if self.joint or len(self.subject) == 1:
            return [Condition("fused", None if self.joint else 0, self.gamma)], [1.0]
        total = sum(self.subject)
        shares = {i: s / total for i, s in enumerate(self.subject) if s > 0}
        return [Condition("fused", i, self.gamma) for i in shares], list(shares.values())

    def refined_conditions(self) -> tuple[list[Condition], list[float | torch.Tensor]]:
        """Conditions of the refinement stage and their guidance scales; terms of scale 0 are left out."""
        terms = [(Condition("subject", i), s) for i, s in enumerate(self.subject)] + [(TEXT, self.text)]
        terms = [(condition, scale) for condition, scale in terms if scale != 0]
        conditions = [condition for condition, _ in terms]
        if self.areas is None:
            return conditions, [scale for _, scale in terms]
        areas = [1.0 if condition.subject is None else self.areas[condition.subject] for condition in conditions]
        return conditions, [scale * area for (_, scale), area in zip(terms, areas, strict=True)]


def fused_eps(eps: Eps, x_t: torch.Tensor, t: int, guidance: Guidance) -> torch.Tensor:
    """Eq. (3) with (gamma S*, C), averaged over the subjects where each has a prompt of its own."""
    conditions, weights = guidance.fused_conditions()
    eps_none, *eps_fused = eps(x_t, t, [NONE, *conditions])
    average = sum(weight * fused for weight, fused in zip(weights, eps_fused, strict=True))
    return guided(eps_none, average, guidance.fusion)


def refined_eps(eps: Eps, x_t: torch.Tensor, t: int, guidance: Guidance) -> torch.Tensor:
    """Eq. (6), in its form for k subjects."""
    conditions, scales = guidance.refined_conditions()
    eps_none, *eps_conditions = eps(x_t, t, [NONE, *conditions])
    return independent(eps_none, eps_conditions, scales)


class KeptDifferences:
    """Noise predictions whose guidance differences eps_condition - eps_none can be used again in later steps.

    A difference changes slowly along a schedule, and little where the fusion stage puts noise back, which renews most
    of eps_none: that is asked for at every call.

    Args:
        eps: of all conditions at once; NONE is the first of them.
    """

    def __init__(self, eps: Eps) -> None:
        self._eps = eps
        self._kept: dict[Condition, torch.Tensor] = {}

    def fresh(self, x_t: torch.Tensor, t: int, conditions: Sequence[Condition]) -> Sequence[torch.Tensor]:
        """All of them asked for; the differences are kept."""
        predictions = self._eps(x_t, t, conditions)
        for condition, prediction in zip(conditions[1:], predictions[1:], strict=True):
            self._kept[condition] = prediction - predictions[0]
        return predictions

    def kept(self, x_t: torch.Tensor, t: int, conditions: Sequence[Condition]) -> Sequence[torch.Tensor]:
        """eps_none asked for, and the differences that are kept added to it."""
        (eps_none,) = self._eps(x_t, t, conditions[:1])
        return [eps_none, *(eps_none + self._kept[condition] for condition in conditions[1:])]


def sample_fusion(
    eps: Eps,
    latents: torch.Tensor,
    timesteps: Sequence[int],
    alphas_cumprod: torch.Tensor,
    guidance: Guidance,
    noise: Noise,
    *,
    final_alpha_cumprod: float = 1.0,
    plan: Plan | None = None,
    fusion_eta: float = 1.0,
    eta: float = 0.0,
    keep: Callable[[torch.Tensor, float], torch.Tensor] = lambda x_t, alpha_bar_t: x_t,
    callback: Callable[[int], None] | None = None,
) -> torch.Tensor:
    """Algorithm 1 along a whole schedule, or as much of it as a plan asks for.

    At each step t -> s the fusion stage runs as often as the plan says: fused prediction by eq. (3), then
    eq. (11). The refinement predicts by eq. (6) and takes the step by eq. (8), or by DPM-Solver++(2M). Without the
    refinement (line 11 of Algorithm 1) the last fused prediction itself takes the step t -> s by eq. (8).

    Args:
        eps: `eps(x_t, t, conditions)`, one prediction of x_t's shape per condition, in their order.
        latents: x_t at the first timestep, shape (B, C, H, W).
        timesteps: strictly decreasing, any spacing, starting anywhere in the schedule.
        alphas_cumprod: shape (train timesteps,).
        guidance: the conditions and their weights.
        noise: `noise(i, j)`, standard normal of latents' shape, for step i (from 0). The fusion stage
            asks for j = 0 ... updates - 1, the refinement for j = updates, and only when the
            step uses it (`eta`, `fusion_eta` > 0); always in increasing order.
        final_alpha_cumprod: alpha_bar behind the last timestep.
        plan: a step for each timestep; None: Algorithm 1 with one fusion update a step.
        fusion_eta: eta of the fusion stage, in [0, 1].
        eta: DDIM eta of the refinement, in [0, 1].
        keep: what becomes of x_t, at alpha_bar_t, after each update and each step; `blended` keeps what is known.
        callback: called with the number of steps done, after each.

    Returns:
        The latents behind the last timestep, shape (B, C, H, W).

    Raises:
        ValueError: a schedule that does not decrease, or a plan of another length.
    """
    pairs = schedule_pairs(timesteps, alphas_cumprod, final_alpha_cumprod)
    steps = (exact_plan(len(pairs)) if plan is None else plan).steps
    if len(steps) != len(pairs):
        raise ValueError(f"a plan of {len(steps)} steps does not fit {len(pairs)} timesteps")
    x_t, differences = latents, KeptDifferences(eps)
    fresh = eps if all(step.fresh for step in steps) else differences.fresh
    before: tuple[torch.Tensor, torch.Tensor, float] = (latents, latents, 1.0)  # no plan begins with the second order
    for i, (step, (t, alpha_bar_t, alpha_bar_s)) in enumerate(zip(steps, pairs, strict=True)):
        asked = fresh if step.fresh else differences.kept
        for j in range(step.updates):
            fused = fused_eps(asked, x_t, t, guidance)
            z = noise(i, j) if fusion_eta > 0 else torch.zeros_like(x_t)
            x_t = keep(fusion_update(x_t, fused, alpha_bar_t, alpha_bar_s, fusion_eta, z), alpha_bar_t)
        prediction = (refined_eps if step.refine else fused_eps)(asked, x_t, t, guidance)
        taken = x_t, prediction, alpha_bar_t
        if step.order == 2:
            x_t = dpm_solver_step(x_t, prediction, clean_estimate(*before), before[2], alpha_bar_t, alpha_bar_s)
        else:
            sigma = ddim_sigma(alpha_bar_t, alpha_bar_s, eta if step.refine else fusion_eta)
            z = noise(i, step.updates) if sigma > 0 else None
            x_t = ddim_step(x_t, prediction, alpha_bar_t, alpha_bar_s, sigma, z)
        x_t, before = keep(x_t, alpha_bar_s), taken
        if callback is not None:
            callback(i + 1)
    return x_t
