"""What all answers say: how often our method is preferred, and how far raters agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import isnan
from typing import Any

from profusion_cli.errors import InputError
from profusion_cli.evaluation.pairs.answers import CHOICES, EQUAL, LEFT, RIGHT, Answers
from profusion_cli.evaluation.pairs.key import PairsKey
from profusion_cli.evaluation.pairs.reading import DAMAGED
from profusion_cli.evaluation.statistics import Preference, fleiss_kappa, preference


@dataclass(frozen=True)
class MethodPreference:
    """Our method against one other.

    Args:
        other: the other method.
        preference: how often ours was preferred, with its interval over subjects.
        subjects: of the answered pairs.
        pairs: that any rater answered.
        kappa: Fleiss' kappa of left, right and equal, over the pairs that two or more raters answered. Sides are
            random, so that raters who all prefer one method agree beyond chance. NaN without such pairs.
        kappa_pairs: how many these are.
    """

    other: str
    preference: Preference
    subjects: int
    pairs: int
    kappa: float
    kappa_pairs: int


@dataclass(frozen=True)
class Summary:
    """What all raters said: a preference over each of the others, and `warnings`, sentences the user should read."""

    page: str
    ours: str
    raters: tuple[str, ...]
    comparisons: tuple[MethodPreference, ...]
    warnings: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON; null is what the answers cannot tell."""
        return _plain(asdict(self))


def summarise(key: PairsKey, answers: Sequence[Answers]) -> Summary:
    """Preference rates for our method against each of the others, and how far raters agree.

    Raises:
        InputError: answers to another page, or to a pair that the page does not have.
    """
    warnings = []
    for one in answers:
        if one.page != key.page:
            raise InputError(
                f"'{one.source}' answers another page ({one.page}, not {key.page}).",
                "Leave it out, or give the key of its page.",
            )
        if unknown := [id for id in one.choices if id not in key.pairs]:
            raise InputError(f"'{one.source}' is damaged: the page has no pair '{unknown[0]}'.", DAMAGED)
        if len(one.choices) < len(key.pairs):
            warnings.append(
                f"'{one.source}' is unfinished: '{one.rater}' answered {len(one.choices)} of {len(key.pairs)} pairs."
            )
    others = dict.fromkeys(pair.other(key.ours) for pair in key.pairs.values())
    preferences = [_preference_over(other, key, answers) for other in others]
    unanswered = [one.other for one in preferences if not one.pairs]
    warnings += [f"Nobody has answered a pair of '{key.ours}' and '{other}'." for other in unanswered]
    preferences.sort(key=lambda one: one.other)
    return Summary(key.page, key.ours, tuple(one.rater for one in answers), tuple(preferences), tuple(warnings))


def _preference_over(other: str, key: PairsKey, answers: Sequence[Answers]) -> MethodPreference:
    """How far ours is preferred over one other method."""
    outcomes: dict[str, list[float]] = {}
    table = []
    for id, pair in key.pairs.items():
        if pair.other(key.ours) != other:
            continue
        given = [one.choices[id] for one in answers if id in one.choices]
        table.append([given.count(choice) for choice in CHOICES])
        ours = LEFT if pair.left == key.ours else RIGHT
        outcomes.setdefault(pair.subject, []).extend(
            0.5 if choice == EQUAL else float(choice == ours) for choice in given
        )
    rated = [sum(row) for row in table]
    return MethodPreference(
        other=other,
        preference=preference(outcomes),
        subjects=sum(bool(values) for values in outcomes.values()),
        pairs=sum(number > 0 for number in rated),
        kappa=fleiss_kappa(table),
        kappa_pairs=sum(number > 1 for number in rated),
    )


def table(summary: Summary) -> str:
    """The comparisons as a Markdown table; a dash is what the answers cannot tell."""

    def percent(value: float) -> str:
        return "–" if isnan(value) else f"{100 * value:.1f}"

    head = ("subjects", "pairs", "answers", "preferred, %", "ties, %", "Fleiss' kappa (pairs)")
    lines = [f"| {_cell(summary.ours)} against | {' | '.join(head)} |", "| --- " * 7 + "|"]
    for one in summary.comparisons:
        rate = one.preference.rate
        interval = "" if isnan(rate.low) else f" [{percent(rate.low)}, {percent(rate.high)}]"
        kappa = "–" if isnan(one.kappa) else f"{one.kappa:.2f} ({one.kappa_pairs})"
        lines.append(
            f"| {_cell(one.other)} | {one.subjects} | {one.pairs} | {one.preference.answers} "
            f"| {percent(rate.mean)}{interval} | {percent(one.preference.ties)} | {kappa} |"
        )
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        fields = getattr(value, "_fields", None)
        return {name: _plain(getattr(value, name)) for name in fields} if fields else [_plain(one) for one in value]
    return None if isinstance(value, float) and isnan(value) else value
