"""What raters answered."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from profusion_cli.errors import InputError, UsageError
from profusion_cli.evaluation.pairs.reading import DAMAGED, read_object

CHOICES = LEFT, RIGHT, EQUAL = ("left", "right", "equal")
KIND = "answers"


@dataclass(frozen=True)
class Answers:
    """What one rater answered: `choices` are `left`, `right` or `equal` by the pair's id."""

    source: str
    page: str
    rater: str
    choices: Mapping[str, str]


def read_answers(paths: Sequence[str | Path]) -> list[Answers]:
    """The answers that raters downloaded from a page, one file for each rater.

    Raises:
        UsageError: no file.
        InputError: a file that is missing or damaged, or no file of answers; the same rater twice.
    """
    if not paths:
        raise UsageError("There are no files of answers.", "Name the files that the raters downloaded.")
    found: list[Answers] = []
    for path in paths:
        content = read_object(path, KIND, "a file of answers")
        page, rater, choices = (content.get(name) for name in ("page", "rater", "answers"))
        if not (isinstance(page, str) and isinstance(rater, str) and rater.strip() and isinstance(choices, dict)):
            raise InputError(f"'{path}' is damaged: page, rater or answers are missing.", DAMAGED)
        if wrong := [choice for choice in choices.values() if choice not in CHOICES]:
            raise InputError(f"'{path}' is damaged: {json.dumps(wrong[0])} is no answer.", DAMAGED)
        rater = " ".join(rater.split())
        for other in found:
            if other.rater.casefold() == rater.casefold():
                raise InputError(
                    f"'{other.source}' and '{path}' are both by the rater '{rater}'.",
                    "Give the newer one alone; if they are two people, change one name in the file.",
                )
        found.append(Answers(str(path), page, rater, choices))
    return found
