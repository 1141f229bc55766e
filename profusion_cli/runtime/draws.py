"""The random numbers of a training step: which views, and which timesteps.

Stratified draws have the same expectation as independent ones, each being uniform by itself, and less variance:
https://arxiv.org/abs/2107.00630, appendix I.1.
"""

from __future__ import annotations

import torch


def draw_timesteps(count: int, train_timesteps: int, generator: torch.Generator, stratified: bool) -> torch.Tensor:
    """Timesteps, shape (count,), each uniform in [0, train_timesteps).

    Args:
        count: of the pictures.
        train_timesteps: of the noise schedule.
        generator: of the step.
        stratified: one lies in each of `count` equal spans, all at the same place in it, in any order.
    """
    if not stratified:
        return torch.randint(train_timesteps, (count,), generator=generator)
    places = (torch.arange(count) + torch.rand(1, generator=generator, dtype=torch.float64)) / count
    return (places * train_timesteps).long()[torch.randperm(count, generator=generator)]


def draw_indices(count: int, views: int, generator: torch.Generator, stratified: bool) -> torch.Tensor:
    """Indices, shape (count,), each uniform in [0, views).

    Args:
        count: of the pictures.
        views: that there are.
        generator: of the step.
        stratified: none comes again before all have come.
    """
    if not stratified:
        return torch.randint(views, (count,), generator=generator)
    rounds = -(-count // views)
    return torch.cat([torch.randperm(views, generator=generator) for _ in range(rounds)])[:count]
