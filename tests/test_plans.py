"""Plans of sampling: what they ask for, what that costs, and that they draw the exact algorithm's pictures."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from profusion_cli.errors import ConfigError
from profusion_cli.plans import Asked, PlanConfig, PlansConfig, asked_of, cost_of, exact_plan, plan_of, short_plan
from profusion_cli.presets import resolve_config
from profusion_cli.runtime.fusion import (
    NONE,
    TEXT,
    Condition,
    clean_estimate,
    dpm_solver_step,
    sample_fusion,
)
from profusion_cli.runtime.noise import NoisePath, composed_noise
from profusion_cli.runtime.schedule import schedule_pairs
from profusion_cli.samplers import SAMPLERS
from profusion_cli.sampling import SampleConfig
from tests.test_fusion import ALPHAS, ONE_SUBJECT, normal

SCHEDULE = [int(t) for t in torch.linspace(981, 1, 50)]
EXACT = PlanConfig(steps=50, keep=1, word_once=False)


def no_noise(i: int, j: int) -> torch.Tensor:
    return torch.zeros(1, 2, 2, 2, dtype=torch.float64)


class Drifting:
    """A noise predictor whose guidance differences change by `drift` from t = 1000 to 0; logs what it is asked."""

    def __init__(self, drift: float = 0.0) -> None:
        self.drift = drift
        self.asked: list[tuple[Condition, ...]] = []

    def __call__(self, x_t, t, conditions):
        self.asked.append(tuple(conditions))
        kinds = {"none": 0.0, "text": 0.3, "subject": 0.5, "fused": 0.7}
        gain = 1 + self.drift * (1 - t / 1000)
        return [0.1 * x_t + kinds[condition.kind] * gain for condition in conditions]


def walked(plan, eps, start=None) -> torch.Tensor:
    timesteps = [SCHEDULE[step.index] for step in plan.steps]
    start = normal(1, 2, 2, 2) if start is None else start
    return sample_fusion(eps, start, timesteps, ALPHAS, ONE_SUBJECT, no_noise, plan=plan)


def test_a_plan_that_leaves_nothing_out_is_the_exact_one():
    assert short_plan(EXACT, 50, 1, True, 0.0) == exact_plan(50)
    assert short_plan(EXACT, 50, 2, False, 0.0) == exact_plan(50, 2, refine=False)
    assert short_plan(EXACT, 50, 0, True, 0.0) == exact_plan(50, 0)


def test_kept_differences_are_added_to_a_fresh_eps_none():
    """Differences that do not change make no difference; what does change is off by what it changed since."""
    kept = short_plan(replace(EXACT, keep=3), 50, 1, True, 0.0)
    asked = Drifting()
    torch.testing.assert_close(walked(kept, asked), walked(exact_plan(50), Drifting()))
    fresh = [(NONE, Condition("fused", 0, 0.6)), (NONE, Condition("subject", 0), TEXT)]
    assert asked.asked[:6] == [*fresh, *[(NONE,)] * 4]
    assert asked.asked[6:8] == fresh
    errors = []
    for keep in (2, 4):
        plan = short_plan(replace(EXACT, keep=keep), 50, 1, True, 0.0)
        errors.append((walked(plan, Drifting(1.0)) - walked(exact_plan(50), Drifting(1.0))).norm().item())
    assert 0 < errors[0] < errors[1]


def test_noises_compose_as_what_renews_them():
    """Several renewals of a noise are one, that keeps the product of what each keeps, with the composed z."""
    zs, kept, noise = [normal(64, seed=seed) for seed in (1, 2, 3)], [0.7, 0.9, 0.55], normal(64, seed=4)
    expected, left = noise, 1.0
    for z, k in zip(zs, kept, strict=True):
        expected, left = k * expected + (1 - k**2) ** 0.5 * z, left * k
    torch.testing.assert_close(left * noise + (1 - left**2) ** 0.5 * composed_noise(zs, kept), expected)
    many = composed_noise([normal(100_000, seed=seed) for seed in (5, 6, 7)], kept)
    assert many.std().item() == pytest.approx(1, abs=0.01)
    assert composed_noise(zs[:1], [0.2]) is zs[0]
    assert composed_noise(zs, [1.0] * 3) is zs[-1]
    assert composed_noise(zs, [1 - 1e-12] * 3).isfinite().all()


@pytest.mark.parametrize(
    "shape", [PlanConfig(), PlanConfig(steps=25), PlanConfig(steps=11, keep=3), PlanConfig(steps=49)]
)
@pytest.mark.parametrize(
    "settings",
    [
        SampleConfig(),
        SampleConfig(fusion_steps=0, eta=1.0),
        SampleConfig(sampler="fusion-only"),
    ],
)
def test_a_plan_draws_the_same_picture_of_the_same_seed(shape, settings):
    """Where x_t is all noise, and eps is that noise, every plan leaves the very same of it; so it is with one noise a
    step, of eta 1, whose renewals are as large together as one over all of their steps."""
    kind = SAMPLERS[settings.sampler]
    stages = (kind.fusion_steps(settings.fusion_steps), kind.refinement)

    def remaining(plan) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)

        def draw() -> torch.Tensor:
            return torch.randn(1, 2, 2, 2, generator=generator, dtype=torch.float64)

        def eps(x_t, t, conditions):
            return [x_t / (1 - float(ALPHAS[t])) ** 0.5] * len(conditions)

        start = draw() * (1 - float(ALPHAS[SCHEDULE[0]])) ** 0.5
        pairs = [alpha_bars for _, *alpha_bars in schedule_pairs(SCHEDULE, ALPHAS, 0.9999)]
        return sample_fusion(
            eps,
            start,
            [SCHEDULE[step.index] for step in plan.steps],
            ALPHAS,
            ONE_SUBJECT,
            NoisePath(draw, plan, pairs, settings).noise,
            plan=plan,
            final_alpha_cumprod=0.9999,
            fusion_eta=settings.fusion_eta,
            eta=settings.eta,
        )

    short = short_plan(shape, 50, *stages, settings.eta)
    torch.testing.assert_close(remaining(short), remaining(exact_plan(50, *stages)))


def test_the_timesteps_of_a_plan_are_spread_over_those_of_the_exact_one():
    for count in (1, 2, 7, 17, 25, 49, 50, 80):
        plan = short_plan(replace(EXACT, steps=count), 50, 1, True, 0.0)
        indices = plan.indices()
        assert len(plan.steps) == min(count, 50)
        assert indices[0] == 0
        assert indices[-1] == 50
        gaps = [after - before for before, after in pairwise(indices[:-1])]
        assert all(gap > 0 for gap in gaps)
        assert not gaps or max(gaps) - min(gaps) <= 1


def test_cost_counts_what_is_asked_for():
    """By the numbers of eq. (3) and (6): 2 evaluations for a fused prediction, 3 for a refined one."""
    assert cost_of(exact_plan(50)).units() == pytest.approx(290.2)
    assert cost_of(exact_plan(50, 0), Asked(text=False)).units() == pytest.approx(100 + 50 * (0.346 + 0.056))
    for plan in (exact_plan(6), exact_plan(6, 2), exact_plan(6, 2, refine=False)):
        asked = Drifting()
        walked(replace(plan, schedule=50), asked)
        assert cost_of(plan).unet == sum(map(len, asked.asked))
    own = SampleConfig()
    two = cost_of(exact_plan(10), asked_of(own, (3.0, 4.0)))
    assert (two.unet, two.promptnet, two.text_encoder) == (10 * (3 + 4), 10 * 4, 10 * 4)
    joint = cost_of(exact_plan(10), asked_of(own, (3.0, 4.0), joint=True))
    assert (joint.unet, joint.promptnet, joint.text_encoder) == (10 * (2 + 4), 10 * 4, 10 * 3)
    word = cost_of(exact_plan(10), learned=False)
    assert (word.unet, word.promptnet, word.text_encoder) == (50, 0, 0)


def test_the_shipped_plans_cost_what_is_promised():
    """As plain guidance in 50 steps without a subject or less, and 60 or less."""
    shipped, config = PlansConfig(), SampleConfig()
    fast, draft = (
        short_plan(one, config.steps, config.fusion_steps, True, config.eta) for one in (shipped.fast, shipped.draft)
    )
    assert cost_of(fast).units() == pytest.approx(17 * (5 + 0.346 + 2 * 0.056))
    assert cost_of(fast).units() <= 100
    assert cost_of(draft).units() == pytest.approx(8 * (5 + 0.346 + 2 * 0.056) + 8 * 2)
    assert cost_of(draft).units() <= 60


@pytest.mark.parametrize("preset", ["sd2", "sd2-768", "faceworld"])
def test_pictures_cost_no_more_than_plain_guidance_unless_asked_for(preset):
    config = resolve_config(preset, None, {})
    assert cost_of(plan_of(config)).units() <= 100 < cost_of(exact_plan(config.sample.steps)).units()


def test_the_authors_preset_draws_as_the_authors_do():
    assert plan_of(resolve_config("authors", None, {})) == exact_plan(50)


def test_a_fusion_stage_that_never_runs_is_refused_or_asks_for_nothing():
    with pytest.raises(ConfigError, match="fusion_until"):
        PlanConfig(fusion_from=0.8, fusion_until=0.2)
    narrow = short_plan(replace(EXACT, fusion_from=0.995), 50, 1, True, 0.0)
    assert [step.index for step in narrow.steps if step.updates] == [49]
    without = short_plan(replace(EXACT, keep=4, fusion_from=0.5), 50, 0, True, 0.0)
    assert [step.index for step in without.steps if step.fresh] == list(range(0, 50, 4))


def test_dpm_solver_is_the_scheduler_of_diffusers():
    from diffusers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1, solver_order=2
    )
    scheduler.set_timesteps(8)
    r, t, s = (int(one) for one in scheduler.timesteps[:3])
    x_r, eps_r, eps_t = (normal(1, 2, 4, 4, seed=seed) for seed in (1, 2, 3))
    x_t = scheduler.step(eps_r, r, x_r).prev_sample
    theirs = scheduler.step(eps_t, t, x_t).prev_sample
    a_r, a_t, a_s = (float(scheduler.alphas_cumprod[one]) for one in (r, t, s))
    ours = dpm_solver_step(x_t, eps_t, clean_estimate(x_r, eps_r, a_r), a_r, a_t, a_s)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_the_second_order_follows_steps_that_put_no_noise_back():
    """Its history is of the step before, and the last step, to no noise at all, is of the first order."""
    shape = replace(EXACT, steps=8, fusion_until=0.5, solver="dpm-solver++")
    assert [step.order for step in short_plan(shape, 50, 1, True, 0.0).steps] == [1, 1, 1, 1, 2, 2, 2, 1]
    assert {step.order for step in short_plan(shape, 50, 1, True, 0.5).steps} == {1}
    assert [step.order for step in short_plan(shape, 50, 0, True, 0.0).steps] == [1, *[2] * 6, 1]


def test_what_is_kept_was_asked_for_once():
    """Where the fusion stage begins between two fresh steps, its condition is new."""
    shape = replace(EXACT, steps=10, keep=4, fusion_from=0.2, fusion_until=0.7)
    plan, asked = short_plan(shape, 50, 1, True, 0.0), Drifting()
    assert [step.updates for step in plan.steps] == [0, 0, 1, 1, 1, 1, 1, 0, 0, 0]
    assert [step.fresh for step in plan.steps] == [i in (0, 2, 4, 8) for i in range(10)]
    walked(plan, asked)
    assert cost_of(plan).unet == sum(map(len, asked.asked))


@pytest.mark.parametrize("given", ["sample.steps=7", "sample.sampler=cfg", "sample.fusion_steps=0"])
def test_who_says_how_to_sample_means_it_exactly(given):
    fast = {**resolve_config("tiny-random", None, {}).as_dict()}
    fast["sample"]["speed"] = "fast"
    key, value = given.split("=")
    for flags, settings in (({}, [given]), ({key: int(value) if value.isdigit() else value}, [])):
        assert resolve_config(None, fast, flags, settings).sample.speed == "exact"
        assert resolve_config(None, fast, {**flags, "sample.speed": "draft"}, settings).sample.speed == "draft"
    assert resolve_config(None, fast, {"sample.gamma": 0.3}).sample.speed == "fast"
    assert plan_of(resolve_config(None, fast, {"sample.gamma": 0.3})) != exact_plan(10)
