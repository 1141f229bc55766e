"""Tables of a study: means over subjects, their intervals, and differences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import mean
from types import MappingProxyType
from typing import Any

from profusion_cli.evaluation.metrics import FOUND, FOUND_IN_PHOTO, RECONSTRUCTION, SECOND
from profusion_cli.evaluation.statistics import UNKNOWN, Interval, Sets, bootstrap, kernel_difference, kernel_distance
from profusion_cli.evaluation.study.schema import Figure, Method, Study

Row = Mapping[str, Any]
"""A picture with its scores, of `Run.results`."""
SetsOf = Mapping[str, Mapping[str, Sets]]
"""What distances are computed from, by column and by method, of `Jury.sets`."""
NO_SETS: SetsOf = MappingProxyType({})
DIGITS = 3
"""Behind the point of a score; a distance, which is small, has one more."""


def values_of(rows: Sequence[Row], method: str, column: str) -> dict[str, list[float]]:
    """Scores of one method by subject; `reconstruction: ` before the column asks for pictures of "a photo of S*"."""
    concept, name = column.startswith(RECONSTRUCTION), column.removeprefix(RECONSTRUCTION)
    found: dict[str, list[float]] = {}
    for row in rows:
        value = row["scores"].get(name)
        if row["method"] == method and row["reconstruction"] == concept and value is not None:
            found.setdefault(row["subject"], []).append(value)
    return found


def columns_of(rows: Sequence[Row]) -> list[str]:
    """All columns that any picture has a score in."""
    found = {
        (RECONSTRUCTION if row["reconstruction"] else "") + name: None
        for row in sorted(rows, key=lambda row: row["reconstruction"])
        for name, value in row["scores"].items()
        if value is not None
    }
    return list(found)


def summarise(rows: Sequence[Row], method: str, columns: Sequence[str], sets: SetsOf = NO_SETS) -> dict[str, Any]:
    """Number of subjects and of pictures (of the prompts), and each column with its interval over subjects.

    Args:
        rows: of pictures, of any methods.
        method: the one that is told of.
        columns: of scores of single pictures, which `rows` hold, or of distances, which `sets` hold.
        sets: of all methods.
    """
    mine = [row for row in rows if row["method"] == method]
    return {
        "method": method,
        "subjects": len({row["subject"] for row in mine}),
        "pictures": sum(not row["reconstruction"] for row in mine),
        "reconstructions": sum(row["reconstruction"] for row in mine),
        "scores": {
            column: _distance(sets[column], method) if column in sets else bootstrap(values_of(mine, method, column))
            for column in columns
        },
    }


def _distance(of_method: Mapping[str, Sets], method: str) -> Interval:
    return kernel_distance(*of_method[method]) if method in of_method else UNKNOWN


def shown(interval: Interval, digits: int = DIGITS, sign: str = "") -> str:
    """A mean and its interval, or nothing where there was nothing to judge.

    Args:
        interval: see above.
        digits: behind the point.
        sign: `+` for a difference.
    """
    mean, *ends = (f"{value:{sign}.{digits}f}" for value in interval)
    if math.isnan(interval.mean):
        return ""
    return mean + ("" if math.isnan(interval.low) else f" [{', '.join(ends)}]")


def methods_of(study: Study, output: Figure) -> list[Method]:
    """The methods of an output in its order, families unrolled."""
    wanted = output.methods or tuple(dict.fromkeys(method.family for method in study.methods))
    chosen = {m.name: m for name in wanted for m in study.methods if name in (m.name, m.family)}
    return list(chosen.values())


def shown_columns(study: Study, output: Figure, rows: Sequence[Row], sets: SetsOf = NO_SETS) -> list[str]:
    """The columns of a table: those that it names, or all there are."""
    names = {method.name for method in methods_of(study, output)}
    return list(output.columns) or [
        *columns_of([row for row in rows if row["method"] in names]),
        *(column for column, of_method in sets.items() if names & of_method.keys()),
    ]


def subjects_in(rows: Sequence[Row], methods: Sequence[Method], column: str) -> list[tuple[int, int]]:
    """How many subjects of each method have a score in a column, and how many have pictures; without those of none."""
    counts = [
        (
            len(values_of(rows, method.name, column)),
            len({row["subject"] for row in rows if row["method"] == method.name}),
        )
        for method in methods
    ]
    return [(scored, drawn) for scored, drawn in counts if scored]


def _of_fewer(counts: Sequence[tuple[int, int]]) -> str:
    """What stands behind a column's name that is not about all subjects, such as what only some photos have."""
    fewer = [scored for scored, drawn in counts if scored < drawn]
    return f" (of {' to '.join(map(str, sorted({min(fewer), max(fewer)})))})" if fewer else ""


def table_of(
    study: Study, output: Figure, rows: Sequence[Row], sets: SetsOf = NO_SETS
) -> tuple[list[str], list[list[str]]]:
    """Head and body of a table; methods without a picture stand in it too, and columns of fewer subjects say so.

    Args:
        study, output: see above.
        rows, sets: see `summarise`.
    """
    methods, columns = methods_of(study, output), shown_columns(study, output, rows, sets)
    head, body = ["method", "subjects", "pictures"], []
    for column in columns:
        name = f"{column}{_of_fewer(subjects_in(rows, methods, column))}"
        head += [name, f"less that of {output.against}"] if output.against else [name]
    for method in methods:
        summary = summarise(rows, method.name, columns, sets)
        line = [method.name, str(summary["subjects"]), str(summary["pictures"])]
        for column in columns:
            digits = DIGITS + (column in sets)
            line.append(shown(summary["scores"][column], digits))
            if output.against == method.name:
                line.append("")
            elif output.against:
                line.append(shown(difference(rows, method.name, output.against, column, sets), digits, "+"))
        body.append(line)
    return head, body


def difference(rows: Sequence[Row], method: str, other: str, column: str, sets: SetsOf = NO_SETS) -> Interval:
    """How much more one method scores than another, subject by subject, over the subjects that both have."""
    if column in sets:
        both = [sets[column].get(name) for name in (method, other)]
        return kernel_difference(*both) if all(both) else UNKNOWN
    one, two = (values_of(rows, name, column) for name in (method, other))
    return bootstrap({subject: [mean(one[subject]) - mean(two[subject])] for subject in one if subject in two})


def faceless(rows: Sequence[Row]) -> list[str]:
    """What is to be told of pictures and photos without a face."""
    found: dict[str, list[float]] = {}
    photos: dict[str, None] = {}
    for row in rows:
        for name, score in row["scores"].items():
            if name.endswith(FOUND):
                found.setdefault(name, []).append(score)
            if name.endswith(FOUND_IN_PHOTO) and not name.startswith(SECOND) and score == 0:
                photos[row["subject"]] = None
    told = [
        f"{scores.count(0)} of {len(scores)} pictures have no face by '{name}': their identity counts 0."
        for name, scores in found.items()
        if 0 in scores and not name.startswith(SECOND)
    ]
    if photos:
        told.append(f"No face was found in the photo of {', '.join(photos)}: left out of the identity.")
    return told
