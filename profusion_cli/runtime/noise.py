"""The noise that plans draw, so that pictures of one seed are the same pictures by all of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from profusion_cli.plans import Plan
from profusion_cli.runtime.schedule import fusion_fraction
from profusion_cli.samplers import SAMPLERS
from profusion_cli.sampling import SampleConfig


def composed_noise(noises: Sequence[torch.Tensor], kept: Sequence[float]) -> torch.Tensor:
    """The z of the one renewal of x_t's noise that consecutive ones compose to.

    The i-th keeps k_i of the noise that was there and puts sqrt(1 - k_i^2) z_i in: a fusion update, eq. (11), with
    k = 1 - u, and a DDIM step with eta, eq. (8), with k = sqrt(1 - u). Together they keep prod(k_i), and put in
    sum_i sqrt(1 - k_i^2) prod_{j > i} k_j z_i.

    Args:
        noises: z_i of each, standard normal.
        kept: k_i of each, in [0, 1].

    Returns:
        Standard normal, of the same shape; of a single one its own z, to the bit, and of those that all keep everything
        the last z.
    """
    if len(noises) == 1:
        return noises[0]
    left, weights = 1.0, []
    for k in reversed(kept):
        weights.append(left * (1 - k**2) ** 0.5)
        left *= k
    norm = math.hypot(*weights)
    if norm == 0:
        return noises[-1]
    return sum(weight / norm * z for z, weight in zip(reversed(noises), weights, strict=True))


class NoisePath:
    """The noise of a plan: what the exact algorithm would draw, composed where one step stands for several.

    So a picture of one seed is the same picture by every plan that renews all of the noise as the exact algorithm does:
    the very same noise is left where there is one renewal a step, with eta 1, and nearly so where there are several, or
    eta is less; not where the fusion stage leaves steps out.

    Args:
        draw: the next of the exact algorithm's, in its order.
        plan: of the picture.
        pairs: alpha_bar_t and alpha_bar_s of each of the exact algorithm's steps.
        settings: of the sampler.
    """

    def __init__(
        self, draw: Callable[[], torch.Tensor], plan: Plan, pairs: Sequence[tuple[float, float]], settings: SampleConfig
    ) -> None:
        kind = SAMPLERS[settings.sampler]
        updates = kind.fusion_steps(settings.fusion_steps) - (not kind.refinement)
        eta = settings.eta if kind.refinement else settings.fusion_eta
        self._draw, self._plan = draw, plan
        self._each = (updates if settings.fusion_eta > 0 else 0) + (eta > 0)
        self._updated = [1 - fusion_fraction(*pair, settings.fusion_eta) for pair in pairs]
        self._taken = [(1 - fusion_fraction(*pair, eta)) ** 0.5 for pair in pairs]
        self._drawn: dict[int, list[torch.Tensor]] = {}
        self._next = 0

    def noise(self, i: int, j: int) -> torch.Tensor:
        """For `sample_fusion`: the j-th of step i, standard normal; asked for in increasing order."""
        indices, step = self._plan.indices(), self._plan.steps[i]
        first, behind = indices[i : i + 2]
        while self._next < behind:
            self._drawn[self._next] = [self._draw() for _ in range(self._each)]
            self._next += 1
        for past in [index for index in self._drawn if index < first]:
            del self._drawn[past]
        takes_step = j == step.updates
        noises = [self._drawn[index][-1 if takes_step else j] for index in range(first, behind)]
        return composed_noise(noises, (self._taken if takes_step else self._updated)[first:behind])


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the CPU on a device; nobody waits for its arrival there."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
