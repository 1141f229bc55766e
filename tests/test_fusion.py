"""Fusion Sampling's equations in float64, without a model."""

from __future__ import annotations

import math

import pytest
import torch

from profusion_cli.plans import exact_plan
from profusion_cli.runtime.fusion import (
    NONE,
    TEXT,
    Condition,
    Guidance,
    area_weights,
    ddim_step,
    fused_eps,
    fusion_update,
    guided,
    independent,
    refined_eps,
    sample_fusion,
)
from profusion_cli.runtime.schedule import (
    add_noise,
    ddim_sigma,
    epsilon_from,
    fusion_fraction,
    schedule_pairs,
    velocity,
)

ALPHAS = (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2).cumprod(0)
PAIRS = [(901, 801), (601, 599), (500, 3), (1, 0)]
ONE_SUBJECT = Guidance((7.0,), 5.0, 7.0, 0.6)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def posterior_mean(x_s, x_0, a_t, a_s, sigma):
    """Eqs (9)-(10), corrected: the mean of q(x_t | x_s, x_0) that belongs to DDIM's sigma.

    Printed with another coefficient of x~_0; it must be sqrt(alpha_bar_t) (1 - alpha_bar_s).
    """
    gain = math.sqrt((1 - a_t) * max(1 - a_s - sigma**2, 0))
    return (math.sqrt(a_t) * (1 - a_s) * x_0 + gain * (x_s - math.sqrt(a_s) * x_0)) / (1 - a_s)


def posterior_variance(a_t, a_s, sigma):
    """Sigma of eq. (10); z is multiplied by its square root, not by itself as printed."""
    return (1 - a_t) * sigma**2 / (1 - a_s)


@pytest.mark.parametrize(("t", "s"), PAIRS)
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_step_down_and_posterior_back_up_make_the_update(t, s, eta):
    """(8) and then the corrected (10) equal (11): in the mean, and in the variance of the two noises."""
    a_t, a_s = float(ALPHAS[t]), float(ALPHAS[s])
    x_t, eps = normal(64, seed=1), normal(64, seed=2)
    zero, one = torch.zeros_like(x_t), torch.ones_like(x_t)
    sigma = ddim_sigma(a_t, a_s, eta)
    x_0 = (x_t - math.sqrt(1 - a_t) * eps) / math.sqrt(a_t)

    down = ddim_step(x_t, eps, a_t, a_s, sigma, zero)
    up = posterior_mean(down, x_0, a_t, a_s, sigma)
    gain_of_first_noise = (posterior_mean(down + sigma * one, x_0, a_t, a_s, sigma) - up)[0].item()
    variance = gain_of_first_noise**2 + posterior_variance(a_t, a_s, sigma)

    mean = fusion_update(x_t, eps, a_t, a_s, eta, zero)
    scale = (fusion_update(x_t, eps, a_t, a_s, eta, one) - mean)[0].item()
    torch.testing.assert_close(mean, up, rtol=1e-9, atol=1e-11)
    assert scale**2 == pytest.approx(variance, rel=1e-9, abs=1e-14)


@pytest.mark.parametrize(("t", "s"), PAIRS)
@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_u_form_is_the_literal_eq_11(t, s, eta):
    """x_t - sigma^2 sqrt(1-a_t)/(1-a_s) eps + sqrt((1-a_t)(2-2a_s-sigma^2)) sigma/(1-a_s) z."""
    a_t, a_s = float(ALPHAS[t]), float(ALPHAS[s])
    x_t, eps, z = normal(64, seed=1), normal(64, seed=2), normal(64, seed=3)
    sigma = ddim_sigma(a_t, a_s, eta)
    literal = x_t - sigma**2 * math.sqrt(1 - a_t) / (1 - a_s) * eps
    literal = literal + math.sqrt((1 - a_t) * (2 - 2 * a_s - sigma**2)) / (1 - a_s) * sigma * z
    torch.testing.assert_close(fusion_update(x_t, eps, a_t, a_s, eta, z), literal, rtol=1e-9, atol=1e-12)
    assert fusion_fraction(a_t, a_s, eta) == pytest.approx(sigma**2 / (1 - a_s), rel=1e-9)


def test_update_is_defined_where_the_literal_form_is_zero_over_zero():
    """alpha_bar_s = 1: u = eta^2."""
    assert fusion_fraction(0.99, 1.0, 1.0) == pytest.approx(1.0)
    assert fusion_fraction(0.99, 1.0, 0.5) == pytest.approx(0.25)
    x_t, eps, z = normal(8, seed=1), normal(8, seed=2), normal(8, seed=3)
    assert fusion_update(x_t, eps, 0.99, 1.0, 1.0, z).isfinite().all()
    assert fusion_update(x_t, eps, 1.0, 1.0, 1.0, z).equal(x_t)


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_update_keeps_the_variance(eta):
    """x_t = sqrt(a_t) x_0 + sqrt(1-a_t) eps with the true eps stays distributed so: (1-u)^2 + u(2-u) = 1."""
    a_t, a_s = float(ALPHAS[500]), float(ALPHAS[400])
    x_0, eps, z = 2.0, normal(200_000, seed=1), normal(200_000, seed=2)
    x_t = math.sqrt(a_t) * x_0 + math.sqrt(1 - a_t) * eps
    updated = fusion_update(x_t, eps, a_t, a_s, eta, z)
    noise = (updated - math.sqrt(a_t) * x_0) / math.sqrt(1 - a_t)
    assert noise.mean().item() == pytest.approx(0, abs=0.01)
    assert noise.std().item() == pytest.approx(1, abs=0.01)


def test_small_steps_are_langevin_steps():
    """Remark 1 as a limit: for u -> 0, eq. (11) is x_t + (step / 2) score + sqrt(step) z, step = 2 u (1 - a_t)."""
    a_t = float(ALPHAS[500])
    x_t, eps, z = normal(64, seed=1), normal(64, seed=2), normal(64, seed=3)
    score = -eps / math.sqrt(1 - a_t)
    errors = []
    for eta in (1e-1, 1e-2, 1e-3):
        u = fusion_fraction(a_t, float(ALPHAS[400]), eta)
        step = 2 * u * (1 - a_t)
        langevin = x_t + step / 2 * score + math.sqrt(step) * z
        update = fusion_update(x_t, eps, a_t, float(ALPHAS[400]), eta, z)
        errors.append(((update - langevin).norm() / (update - x_t).norm()).item())
    assert errors[0] > 10 * errors[1] > 100 * errors[2]
    assert errors[2] < 1e-6


def test_u_of_one_renoises_the_clean_estimate():
    """Remark 2: with sigma^2 = 1 - a_s, x_t <- sqrt(a_t) x~_0 + sqrt(1 - a_t) z."""
    a_t, a_s = float(ALPHAS[300]), 1.0
    x_t, eps, z = normal(64, seed=1), normal(64, seed=2), normal(64, seed=3)
    x_0 = (x_t - math.sqrt(1 - a_t) * eps) / math.sqrt(a_t)
    assert fusion_fraction(a_t, a_s, 1.0) == pytest.approx(1.0)
    expected = math.sqrt(a_t) * x_0 + math.sqrt(1 - a_t) * z
    torch.testing.assert_close(fusion_update(x_t, eps, a_t, a_s, 1.0, z), expected, rtol=1e-12, atol=1e-12)


def test_updates_compose():
    """Two updates with the true eps keep the share (1 - u_1)(1 - u_2) of the noise: one with u = 1 - prod(1 - u_i)."""
    a_t, zero = float(ALPHAS[700]), torch.zeros(1, dtype=torch.float64)
    u_1, u_2 = (fusion_fraction(a_t, float(ALPHAS[s]), 1.0) for s in (600, 400))
    noise, scale = torch.ones(1, dtype=torch.float64), math.sqrt(1 - a_t)
    for s in (600, 400):
        noise = fusion_update(scale * noise, noise, a_t, float(ALPHAS[s]), 1.0, zero) / scale
    assert noise.item() == pytest.approx((1 - u_1) * (1 - u_2), rel=1e-12)


def test_ddim_step_inverts_add_noise():
    x_0, noise = normal(2, 4, 8, 8, seed=1), normal(2, 4, 8, 8, seed=2)
    t, s = torch.tensor([700, 700]), torch.tensor([200, 200])
    x_t, x_s = add_noise(x_0, noise, t, ALPHAS), add_noise(x_0, noise, s, ALPHAS)
    torch.testing.assert_close(ddim_step(x_t, noise, float(ALPHAS[700]), float(ALPHAS[200])), x_s)
    with pytest.raises(ValueError, match="noise"):
        ddim_step(x_t, noise, 0.1, 0.2, sigma=0.1)


def test_ddim_step_is_the_scheduler_of_diffusers():
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1, clip_sample=False
    )
    scheduler.set_timesteps(10)
    x_t, eps, z = normal(1, 4, 8, 8, seed=1), normal(1, 4, 8, 8, seed=2), normal(1, 4, 8, 8, seed=3)
    for eta in (0.0, 0.7):
        theirs = scheduler.step(eps, 601, x_t, eta=eta, variance_noise=z).prev_sample
        a_t, a_s = float(scheduler.alphas_cumprod[601]), float(scheduler.alphas_cumprod[501])
        ours = ddim_step(x_t, eps, a_t, a_s, ddim_sigma(a_t, a_s, eta), z)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_v_prediction_gives_the_same_eps():
    x_0, noise = normal(2, 4, 8, 8, seed=1), normal(2, 4, 8, 8, seed=2)
    t = torch.tensor([420, 420])
    x_t, v = add_noise(x_0, noise, t, ALPHAS), velocity(x_0, noise, t, ALPHAS)
    torch.testing.assert_close(epsilon_from(v, x_t, float(ALPHAS[420]), "v_prediction"), noise)
    assert epsilon_from(noise, x_t, 0.5, "epsilon") is noise
    with pytest.raises(ValueError, match="sample"):
        epsilon_from(noise, x_t, 0.5, "sample")


def test_guidance_equations():
    none, a, b = normal(4, seed=1), normal(4, seed=2), normal(4, seed=3)
    omega = 6.0
    torch.testing.assert_close(guided(none, a, 1 + omega), (1 + omega) * a - omega * none)  # eq. (3)
    torch.testing.assert_close(independent(none, [a, b], [2.0, 3.0]), none + 2 * (a - none) + 3 * (b - none))
    torch.testing.assert_close(independent(none, [a], [7.0]), guided(none, a, 7.0))
    assert independent(none, [], []).equal(none)


class Toy:
    """A noise predictor that is linear in x_t, different for every condition, and keeps a log."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, tuple[Condition, ...]]] = []

    def value(self, condition: Condition) -> float:
        kinds = {"none": 0.1, "text": 0.3, "subject": 0.5, "fused": 0.7}
        return kinds[condition.kind] + 0.05 * (condition.subject or 0) + 0.01 * condition.gamma

    def __call__(self, x_t, t, conditions):
        self.calls.append((t, tuple(conditions)))
        return [self.value(condition) * x_t + t / 1000 for condition in conditions]


def counting_noise(log):
    def noise(i, j):
        log.append((i, j))
        return normal(1, 2, 2, 2, seed=100 * i + j)

    return noise


def test_algorithm_1_step_by_step():
    """One step of `sample_fusion` is what Algorithm 1 says, for m = 0, 1, 2, and in the right order."""
    x, (t, s) = normal(1, 2, 2, 2, seed=5), (601, 501)
    a_t, a_s = float(ALPHAS[t]), float(ALPHAS[s])
    for m in (0, 1, 2):
        toy, drawn = Toy(), []
        out = sample_fusion(
            toy, x, [t], ALPHAS, ONE_SUBJECT, counting_noise(drawn), final_alpha_cumprod=a_s, plan=exact_plan(1, m)
        )
        expected = x
        for j in range(m):
            eps = fused_eps(Toy(), expected, t, ONE_SUBJECT)
            expected = fusion_update(expected, eps, a_t, a_s, 1.0, normal(1, 2, 2, 2, seed=j))
        expected = ddim_step(expected, refined_eps(Toy(), expected, t, ONE_SUBJECT), a_t, a_s)
        torch.testing.assert_close(out, expected)
        assert drawn == [(0, j) for j in range(m)]
        assert [conditions for _, conditions in toy.calls] == [(NONE, Condition("fused", 0, 0.6))] * m + [
            (NONE, Condition("subject", 0), TEXT)
        ]


def test_without_refinement_the_fused_prediction_takes_the_step():
    """Algorithm 1, line 11: with m = 1 this is classifier-free guidance on (gamma S*, C) with eta."""
    x, a_t, a_s = normal(1, 2, 2, 2, seed=5), float(ALPHAS[601]), float(ALPHAS[501])
    toy, drawn = Toy(), []
    out = sample_fusion(
        toy,
        x,
        [601],
        ALPHAS,
        ONE_SUBJECT,
        counting_noise(drawn),
        final_alpha_cumprod=a_s,
        plan=exact_plan(1, refine=False),
    )
    eps = fused_eps(Toy(), x, 601, ONE_SUBJECT)
    torch.testing.assert_close(out, ddim_step(x, eps, a_t, a_s, ddim_sigma(a_t, a_s, 1.0), normal(1, 2, 2, 2, seed=0)))
    assert len(toy.calls) == 1
    with pytest.raises(ValueError, match="nothing to do"):
        exact_plan(1, fusion_steps=0, refine=False)


def test_any_decreasing_schedule_is_walked_exactly():
    """Non-uniform timesteps from the middle: alpha_bar_s is that of the next timestep, and the last is final."""
    steps = [750, 749, 300, 7]
    pairs = schedule_pairs(steps, ALPHAS, 0.9995)
    assert [t for t, _, _ in pairs] == steps
    assert [s for _, _, s in pairs] == [float(ALPHAS[t]) for t in steps[1:]] + [0.9995]
    toy = Toy()
    sample_fusion(toy, normal(1, 2, 2, 2), steps, ALPHAS, ONE_SUBJECT, counting_noise([]))
    assert [t for t, _ in toy.calls] == [t for t in steps for _ in range(2)]
    for wrong in ([], [5, 5], [3, 9], [1000], [-1]):
        with pytest.raises(ValueError, match="timesteps"):
            schedule_pairs(wrong, ALPHAS, 1.0)


def test_noise_is_asked_for_in_order_and_only_when_used():
    for eta, fusion_eta, expected in (
        (0.0, 1.0, [(0, 0), (0, 1), (1, 0), (1, 1)]),
        (0.5, 1.0, [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]),
        (0.0, 0.0, []),
        (0.5, 0.0, [(0, 2), (1, 2)]),
    ):
        drawn: list[tuple[int, int]] = []
        sample_fusion(
            Toy(),
            normal(1, 2, 2, 2),
            [600, 300],
            ALPHAS,
            ONE_SUBJECT,
            counting_noise(drawn),
            final_alpha_cumprod=0.999,
            plan=exact_plan(2, 2),
            eta=eta,
            fusion_eta=fusion_eta,
        )
        assert drawn == expected


def test_several_subjects_share_the_fusion_stage_by_their_guidance():
    """Two images with 7 and 4: 7/11 and 4/11 of the fusion stage; each its own term in the refinement."""
    guidance = Guidance((7.0, 4.0), 5.0, 6.0, 0.6)
    conditions, weights = guidance.fused_conditions()
    assert conditions == [Condition("fused", 0, 0.6), Condition("fused", 1, 0.6)]
    assert weights == pytest.approx([7 / 11, 4 / 11])
    x, toy = normal(1, 2, 2, 2), Toy()
    eps = {
        c: toy.value(c) * x + 0.6 for c in (NONE, TEXT, *conditions, Condition("subject", 0), Condition("subject", 1))
    }
    fused = 7 / 11 * eps[conditions[0]] + 4 / 11 * eps[conditions[1]]
    torch.testing.assert_close(fused_eps(toy, x, 600, guidance), eps[NONE] + 6 * (fused - eps[NONE]))
    expected = eps[NONE] + 5 * (eps[TEXT] - eps[NONE])
    expected = (
        expected + 7 * (eps[Condition("subject", 0)] - eps[NONE]) + 4 * (eps[Condition("subject", 1)] - eps[NONE])
    )
    torch.testing.assert_close(refined_eps(toy, x, 600, guidance), expected)


def test_terms_of_no_weight_are_not_computed():
    toy = Toy()
    refined_eps(toy, normal(1, 2, 2, 2), 600, Guidance((7.0, 0.0), 0.0, 6.0, 0.6))
    fused_eps(toy, normal(1, 2, 2, 2), 600, Guidance((7.0, 0.0), 0.0, 6.0, 0.6))
    assert [conditions for _, conditions in toy.calls] == [
        (NONE, Condition("subject", 0)),
        (NONE, Condition("fused", 0, 0.6)),
    ]


def test_subjects_in_one_prompt_are_fused_jointly():
    guidance = Guidance((3.0, 2.0), 1.0, 6.0, 0.4, joint=True)
    assert guidance.fused_conditions() == ([Condition("fused", None, 0.4)], [1.0])
    assert [condition.subject for condition in guidance.refined_conditions()[0]] == [0, 1, None]


def test_every_column_belongs_to_the_areas_in_full():
    """Each by how much of it is covered; what nobody covers, and what several do, is shared."""
    halves = area_weights([(0, 0.5), (0.5, 1)], 5)
    assert halves.shape == (2, 1, 1, 1, 5)
    assert halves[0].flatten().tolist() == pytest.approx([1, 1, 0.5, 0, 0])
    assert area_weights([(0, 0.25), (0.75, 1)], 4)[0].flatten().tolist() == [1, 0.5, 0.5, 0]
    assert area_weights([(0, 1), (0.5, 1)], 2)[1].flatten().tolist() == [0, 0.5]
    total = area_weights([(0, 0.3), (0.2, 0.9), (0.1, 0.4)], 64).sum(0)
    torch.testing.assert_close(total, torch.ones_like(total))


@pytest.mark.parametrize("predict", [refined_eps, fused_eps])
def test_in_the_area_of_a_subject_the_picture_is_that_subjects_alone(predict):
    x, toy = normal(1, 2, 2, 6), Toy()
    both = predict(toy, x, 600, Guidance((7.0, 4.0), 5.0, 6.0, 0.6, areas=area_weights([(0, 0.5), (0.5, 1)], 6)))
    first = predict(toy, x, 600, Guidance((7.0, 0.0), 5.0, 6.0, 0.6))
    second = predict(toy, x, 600, Guidance((0.0, 4.0), 5.0, 6.0, 0.6))
    torch.testing.assert_close(both, torch.cat([first[..., :3], second[..., 3:]], -1))
    assert not torch.allclose(first, second)


def test_areas_of_everything_are_the_mean_of_the_subjects():
    x, toy = normal(1, 2, 2, 6), Toy()
    areas = area_weights([(0, 1), (0, 1)], 6)
    both = refined_eps(toy, x, 600, Guidance((7.0, 4.0), 5.0, 6.0, 0.6, areas=areas))
    torch.testing.assert_close(both, refined_eps(toy, x, 600, Guidance((3.5, 2.0), 5.0, 6.0, 0.6)))


@pytest.mark.parametrize("subject", [(), (0.0,), (-1.0, 3.0), (0.0, 0.0)])
def test_guidance_that_divides_by_zero_is_refused(subject):
    with pytest.raises(ValueError, match="guidance"):
        Guidance(subject, 5.0, 7.0, 0.6)
