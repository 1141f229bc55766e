"""Kernel distances of sets of pictures: the estimator without a model."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from profusion_cli.evaluation.statistics import FeatureSet, Interval, kernel_difference, kernel_distance

WIDTH = 16
Features = dict[str, np.ndarray]


def people(seed: int, count: int) -> np.ndarray:
    """What is of each person, which all of their pictures share."""
    return np.random.default_rng(seed).normal(size=(count, 1, WIDTH))


def pictures(seed: int, of: np.ndarray, each: int, shift: float = 0.0, name: str = "") -> Features:
    """Pictures of people, alike within each."""
    noise = np.random.default_rng([seed, each]).normal(size=(len(of), each, WIDTH))
    return {f"{name}{number}": person + shift + 0.5 * own for number, (person, own) in enumerate(zip(of, noise))}  # noqa: B905


def distance(x: Features, y: Features) -> Interval:
    return kernel_distance(FeatureSet(x), FeatureSet(y))


def by_loops(x: Features, y: Features) -> float:
    """The estimator as it is defined."""

    def term(one: Features, other: Features) -> float:
        pairs = [(a, b) for a in one for b in other if a != b]
        kernels = [np.mean([(u @ v / WIDTH + 1) ** 3 for u in one[a] for v in other[b]]) for a, b in pairs]
        return float(np.mean(kernels))

    return term(x, x) + term(y, y) - 2 * term(x, y)


def without(name: str, features: Features) -> Features:
    return {other: rows for other, rows in features.items() if other != name}


@pytest.mark.parametrize("shared", [0, 2, 4])
def test_the_distance_is_its_definition(shared: int) -> None:
    """Of which so many people are in both sets, with any number of pictures each."""
    x, y = pictures(0, people(0, 4), 3), pictures(1, people(1, 5), 2)
    x["1"], y["2"] = x["1"][:1], y["2"][:1]
    y = {name if int(name) < shared else f"real {name}": rows for name, rows in y.items()}
    found = distance(x, y)
    assert found.mean == pytest.approx(by_loops(x, y), rel=1e-12)
    variance = 0.0
    for names in (list(x), [name for name in y if name not in x]):
        left = [by_loops(without(name, x), without(name, y)) for name in names]
        variance += (len(left) - 1) * np.var(left)
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * variance**0.5, rel=1e-9)
    turned = [{name: rows[::-1] for name, rows in reversed(of.items())} for of in (x, y)]
    assert distance(*turned) == pytest.approx(found, rel=1e-12)


def test_many_pictures_are_compared_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = pictures(0, people(0, 7), 3), pictures(1, people(1, 7), 2)
    whole = distance(x, y)
    monkeypatch.setattr("profusion_cli.evaluation.statistics.BLOCK", 4)
    assert distance(x, y) == pytest.approx(whole, rel=1e-12)


def test_pictures_of_one_distribution_have_no_distance_and_shifts_are_ordered() -> None:
    """In expectation, although the pictures of a person are alike, and are of the same people as the true ones."""
    for same in (True, False):
        found = []
        for seed in range(200):
            ours = people(seed, 8)
            theirs = ours if same else people(seed + 1000, 12)
            found.append(distance(pictures(seed, ours, 2), pictures(seed, theirs, 3, name="" if same else "real ")))
        means = np.array([one.mean for one in found])
        assert abs(means.mean()) < 3 * means.std() / len(means) ** 0.5
        assert np.mean([one.low <= 0 <= one.high for one in found]) > 0.93
    ours = people(0, 24)
    shifts = [distance(pictures(0, ours, 2, shift), pictures(1, ours, 3)) for shift in (0, 0.1, 0.2, 0.4, 0.8, 1.6)]
    assert all(one.mean < other.mean for one, other in pairwise(shifts))
    assert shifts[0].low < 0 < shifts[0].high and shifts[-1].low > 0


def test_pairs_of_one_person_would_make_a_distance_where_there_is_none() -> None:
    """As where every picture is taken for another person's."""
    found = []
    for seed in range(60):
        alone = {
            f"{name} {number}": rows[[number]]
            for name, rows in pictures(seed, people(seed, 8), 2).items()
            for number in range(2)
        }
        found.append(distance(alone, pictures(seed, people(seed + 1000, 12), 3, name="real ")).mean)
    assert np.mean(found) > 3 * np.std(found) / len(found) ** 0.5


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Of a distance, and of the difference of two by the same people; the truth is from many of them."""
    many = people(9, 800)
    true = {shift: distance(pictures(8, many, 2, shift), pictures(9, many, 2)).mean for shift in (0.3, 0.6)}
    held, differs, wide = [], [], []
    for seed in range(120):
        ours = people(seed, 24)
        near, far = (FeatureSet(pictures(seed, ours, 2, shift)) for shift in (0.3, 0.6))
        real = FeatureSet(pictures(seed, ours, 4))
        one, other = kernel_distance(near, real), kernel_distance(far, real)
        less = kernel_difference((far, real), (near, real))
        assert less.mean == pytest.approx(other.mean - one.mean)
        held.append(one.low <= true[0.3] <= one.high)
        differs.append(less.low <= true[0.6] - true[0.3] <= less.high)
        wide.append((less.high - less.low) / np.hypot(one.high - one.low, other.high - other.low))
    assert 0.88 < np.mean(held) <= 0.99 and 0.88 < np.mean(differs) <= 0.99
    assert np.mean(wide) < 0.8, "the same people: more is known than of two sets of different ones"


def test_what_too_few_people_cannot_tell_is_not_told() -> None:
    x, y = pictures(0, people(0, 5), 2), pictures(1, people(0, 5), 2)
    few = dict(list(x.items())[:2])
    for one, other in ((few, y), (y, few), ({}, y), ({**few, "2": np.zeros((0, WIDTH))}, y)):
        assert np.isnan(distance(one, other)).all()
    real = FeatureSet(y)
    assert np.isnan(kernel_difference((FeatureSet(x), real), (FeatureSet(few), real))).all()
    rest = without("0", x)
    less = kernel_difference((FeatureSet(x), real), (FeatureSet({**rest, "9": 5 + x["0"]}), real))
    assert less == (0, 0, 0), "by the people that both have"
