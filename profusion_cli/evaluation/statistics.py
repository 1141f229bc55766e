"""Means over subjects with bootstrap intervals, kernel distances, preference rates, and agreement of raters."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

RESAMPLED = 2000
NORMAL = 1.96
"""Standard errors on either side of a mean, of a 95 % interval."""
FEWEST = 3
"""People without whom a kernel distance has no interval: the jackknife leaves one out, and the rest must be a pair."""
BLOCK = 1024
"""Pictures of one set whose kernels with all of another are in memory at a time."""


class Interval(NamedTuple):
    """A mean and the ends of its 95 % interval; NaN is what the data cannot tell."""

    mean: float
    low: float
    high: float


UNKNOWN = Interval(np.nan, np.nan, np.nan)
"""Of what the data cannot tell at all."""


class Preference(NamedTuple):
    """How often one of two methods was preferred.

    Args:
        rate: share of the answers for it, in [0, 1], a tie being half an answer; mean over subjects.
        ties: share of the answers that preferred neither, in [0, 1].
        answers: how many there are.
    """

    rate: Interval
    ties: float
    answers: int


def bootstrap(values: Mapping[str, Sequence[float]]) -> Interval:
    """Mean over subjects of their means, and its 95 % percentile interval over resampled subjects.

    Subjects are drawn anew because what is claimed is about other subjects; pictures and raters are not. The draw is
    seeded: the same values give the same interval.

    Args:
        values: scores by subject; a subject without scores counts for nothing.

    Returns:
        NaN three times without a score, and NaN for both ends with a single subject.
    """
    means = np.array([np.mean(scores) for scores in values.values() if len(scores)])
    if len(means) < 2:
        return Interval(float(means[0]) if len(means) else np.nan, np.nan, np.nan)
    resampled = np.random.default_rng(0).choice(means, (RESAMPLED, len(means))).mean(axis=1)
    low, high = np.percentile(resampled, (2.5, 97.5))
    return Interval(float(means.mean()), float(low), float(high))


class FeatureSet:
    """Features of pictures by person, in float64. What a kernel distance needs of one set alone is computed once.

    Args:
        by_person: of each person, shape (pictures, width); a person without pictures counts for nothing.
    """

    def __init__(self, by_person: Mapping[str, ArrayLike]) -> None:
        given = {name: np.asarray(features, dtype=np.float64) for name, features in by_person.items()}
        self.by_person = {name: features for name, features in given.items() if len(features)}

    def of(self, names: Collection[str]) -> FeatureSet:
        """The set of these people alone; itself where they are all."""
        kept = {name: features for name, features in self.by_person.items() if name in names}
        return self if len(kept) == len(self.by_person) else FeatureSet(kept)

    @cached_property
    def within(self) -> dict[str, float]:
        """`kernel_sums` of the set and itself."""
        return kernel_sums(self, self)


Sets = tuple[FeatureSet, FeatureSet]
"""A method's pictures, and the true pictures that they are compared with."""


def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The polynomial kernel of the kernel inception distance (https://arxiv.org/abs/1801.01401), (x . y / width + 1)^3.

    Args:
        x, y: shape (pictures, width).

    Returns:
        Shape (pictures of x, pictures of y).
    """
    return (x @ y.T / x.shape[1] + 1) ** 3


def kernel_sums(one: FeatureSet, other: FeatureSet) -> dict[str, float]:
    """For each person of one set, the mean kernel of their pictures with those of a person of the other set, summed
    over the people there that are somebody else."""
    if not one.by_person or not other.by_person:
        return dict.fromkeys(one.by_person, 0.0)
    theirs = np.concatenate(list(other.by_person.values()))
    weights = np.concatenate([np.full(len(features), 1 / len(features)) for features in other.by_person.values()])
    ours = np.concatenate(list(one.by_person.values()))
    blocks = np.array_split(ours, -(-len(ours) // BLOCK))
    of_picture = np.concatenate([kernel(block, theirs) @ weights for block in blocks])
    ends = np.cumsum([len(features) for features in one.by_person.values()])
    sums = {name: of.mean() for name, of in zip(one.by_person, np.split(of_picture, ends[:-1]), strict=True)}
    for name in one.by_person.keys() & other.by_person.keys():
        sums[name] -= kernel(one.by_person[name], other.by_person[name]).mean()
    return {name: float(value) for name, value in sums.items()}


def kernel_distance(pictures: FeatureSet, references: FeatureSet) -> Interval:
    """The unbiased kernel distance (KID, https://arxiv.org/abs/1801.01401) of pictures from true ones: the squared
    maximum mean discrepancy by `kernel`, with people as the unit.

    Only pairs of different people enter any of its three terms, and the pictures of a person are averaged over within a
    pair: so its expectation is 0 where both sets are of one distribution, however alike the pictures of one person are,
    and a value may be below 0. The interval is the jackknife's over people (Efron and Stein 1981,
    https://doi.org/10.1214/aos/1176345462), which leaves each out in both sets at once; those who are in the references
    alone are a sample of their own. A bootstrap would pair a person who is drawn twice with themself, and so be biased.
    Where the two distributions are nearly the same, the interval is too wide rather than too narrow.

    Args:
        pictures: of a method.
        references: true pictures, of the same people, by their names, or of others.

    Returns:
        NaN three times where one of the sets has fewer than `FEWEST` people.
    """
    return _jackknife(*_distances(pictures, references), pictures.by_person)


def kernel_difference(one: Sets, other: Sets) -> Interval:
    """How much further one method's pictures are from true ones than another's, and the jackknife's interval, in which
    each person is left out of both distances at once.

    Args:
        one, other: of each method; only people whose pictures both have are compared. With the same references in both,
            these alone count nothing.

    Returns:
        NaN three times where one of the sets has fewer than `FEWEST` people.
    """
    (pictures, references), (other_pictures, other_references) = one, other
    people = pictures.by_person.keys() & other_pictures.by_person.keys()
    true = references.by_person.keys() & other_references.by_person.keys()
    value, without = _distances(pictures.of(people), references.of(true))
    other_value, other_without = _distances(other_pictures.of(people), other_references.of(true))
    return _jackknife(value - other_value, {name: without[name] - other_without[name] for name in without}, people)


def _distances(pictures: FeatureSet, references: FeatureSet) -> tuple[float, dict[str, float]]:
    """The kernel distance, and what it is without each of the people of either set; NaN where there are too few."""
    n, m = len(pictures.by_person), len(references.by_person)
    if min(n, m) < FEWEST:
        return np.nan, {}
    xx, yy = pictures.within, references.within
    xy, yx = kernel_sums(pictures, references), kernel_sums(references, pictures)
    all_xx, all_yy, all_xy, both = sum(xx.values()), sum(yy.values()), sum(xy.values()), len(xx.keys() & yy.keys())

    def without(name: str | None) -> float:
        x, y = n - (name in xx), m - (name in yy)
        same = both - (name in xx and name in yy)
        own = (all_xx - 2 * xx.get(name, 0.0)) / (x * (x - 1)) + (all_yy - 2 * yy.get(name, 0.0)) / (y * (y - 1))
        return own - 2 * (all_xy - xy.get(name, 0.0) - yx.get(name, 0.0)) / (x * y - same)

    return without(None), {name: without(name) for name in {**xx, **yy}}


def _jackknife(value: float, without: Mapping[str, float], people: Collection[str]) -> Interval:
    """An estimate with its interval, from what it is without each person: those of `people`, and the others."""
    if not without:
        return UNKNOWN
    variance = 0.0
    for own in (True, False):
        left = np.array([rest for name, rest in without.items() if (name in people) == own])
        variance += (len(left) - 1) * left.var() if len(left) else 0.0
    error = NORMAL * variance**0.5
    return Interval(float(value), float(value - error), float(value + error))


def preference(outcomes: Mapping[str, Sequence[float]]) -> Preference:
    """Preference rate and ties of the answers to a question of two.

    Args:
        outcomes: by subject; of each answer 1 for the method, 0 for the other, 0.5 for neither.

    Returns:
        NaN for rate and ties without an answer.
    """
    answers = [outcome for several in outcomes.values() for outcome in several]
    ties = answers.count(0.5) / len(answers) if answers else np.nan
    return Preference(bootstrap(outcomes), ties, len(answers))


def fleiss_kappa(counts: ArrayLike) -> float:
    """Agreement of raters beyond chance (Fleiss 1971), where items may have different numbers of raters.

    Args:
        counts: shape (items, answers): how many raters gave which answer. Items of fewer than two raters are left out.

    Returns:
        1 is perfect agreement, 0 is chance, below is worse than chance; NaN without an item of two raters, or where
        all gave one and the same answer to everything.
    """
    table = np.asarray(counts, dtype=float)
    table = table[table.sum(axis=1) >= 2] if table.size else table
    if not len(table):
        return float("nan")
    raters = table.sum(axis=1)
    observed = ((table * (table - 1)).sum(axis=1) / (raters * (raters - 1))).mean()
    expected = ((table.sum(axis=0) / table.sum()) ** 2).sum()
    return float("nan") if expected == 1 else float((observed - expected) / (1 - expected))
