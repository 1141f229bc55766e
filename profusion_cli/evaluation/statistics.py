"""Means over subjects with bootstrap intervals, preference rates, and agreement of raters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

RESAMPLED = 2000


class Interval(NamedTuple):
    """A mean and the ends of its 95 % interval; NaN is what the data cannot tell."""

    mean: float
    low: float
    high: float


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
