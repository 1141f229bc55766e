"""The random numbers of a training step."""

from __future__ import annotations

import pytest
import torch

from profusion_cli.runtime.device import step_generator
from profusion_cli.runtime.draws import draw_indices, draw_timesteps

STEPS = 400


@pytest.mark.parametrize("count", [1, 3, 8, 1000])
def test_stratified_timesteps_lie_one_in_each_span(count):
    for step in range(20):
        timesteps = draw_timesteps(count, 1000, step_generator(0, step), True)
        assert timesteps.dtype == torch.int64
        assert ((timesteps >= 0) & (timesteps < 1000)).all()
        spans = torch.arange(count) * 1000 // count
        assert (timesteps.sort().values >= spans).all()
        assert (timesteps.sort().values[:-1] <= spans[1:]).all()


@pytest.mark.parametrize("stratified", [False, True])
def test_every_place_of_the_batch_draws_from_all(stratified):
    """By each of its places, a timestep is uniform: its mean over many steps is that of all timesteps."""
    drawn = [draw_timesteps(4, 1000, step_generator(0, step), stratified) for step in range(STEPS)]
    means = torch.stack(drawn).double().mean(0)
    assert (means - 499.5).abs().max() < 4 * 1000 / 12**0.5 / STEPS**0.5
    views = torch.stack([draw_indices(3, 5, step_generator(0, step), stratified) for step in range(STEPS)])
    shares = torch.stack([(views == view).double().mean(0) for view in range(5)])
    assert (shares - 0.2).abs().max() < 4 * (0.2 * 0.8 / STEPS) ** 0.5


def test_the_mean_of_a_step_varies_less():
    def variance(stratified: bool) -> float:
        drawn = [draw_timesteps(8, 1000, step_generator(0, step), stratified) for step in range(STEPS)]
        return float(torch.stack(drawn).double().mean(1).var())

    assert variance(True) < variance(False) / 5  # an eighth expected, of 8 pictures


@pytest.mark.parametrize("count", [4, 5, 7, 12])
def test_no_view_comes_again_before_all_have_come(count):
    drawn = draw_indices(count, 5, step_generator(0, 0), True)
    assert drawn.shape == (count,)
    for start in range(0, count, 5):
        group = drawn[start : start + 5]
        assert len(group.unique()) == len(group)
    assert not draw_indices(40, 5, step_generator(0, 0), True).equal(draw_indices(40, 5, step_generator(0, 1), True))
