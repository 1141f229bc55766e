"""Tables of a study: means over subjects, their intervals, and differences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from profusion_cli.evaluation.metrics import FOUND, FOUND_IN_PHOTO, RECONSTRUCTION, SECOND
from profusion_cli.evaluation.statistics import Interval, bootstrap
from profusion_cli.evaluation.study.schema import Figure, Method, Study

Row = Mapping[str, Any]
"""A picture with its scores, of `Run.results`."""


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


def summarise(rows: Sequence[Row], method: str, columns: Sequence[str]) -> dict[str, Any]:
    """Number of subjects and of pictures (of the prompts), and each column with its interval over subjects."""
    mine = [row for row in rows if row["method"] == method]
    return {
        "method": method,
        "subjects": len({row["subject"] for row in mine}),
        "pictures": sum(not row["reconstruction"] for row in mine),
        "reconstructions": sum(row["reconstruction"] for row in mine),
        "scores": {column: bootstrap(values_of(mine, method, column)) for column in columns},
    }


def shown(interval: Interval) -> str:
    """A mean and its interval, or nothing where there was nothing to judge."""
    mean, low, high = interval
    if math.isnan(mean):
        return ""
    return f"{mean:.3f}" + ("" if math.isnan(low) else f" [{low:.3f}, {high:.3f}]")


def methods_of(study: Study, output: Figure) -> list[Method]:
    """The methods of an output in its order, families unrolled."""
    wanted = output.methods or tuple(dict.fromkeys(method.family for method in study.methods))
    chosen = {m.name: m for name in wanted for m in study.methods if name in (m.name, m.family)}
    return list(chosen.values())


def table_of(study: Study, output: Figure, rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Head and body of a table; methods without a picture stand in it too."""
    methods = methods_of(study, output)
    names = {method.name for method in methods}
    columns = list(output.columns) or columns_of([row for row in rows if row["method"] in names])
    head, body = ["method", "subjects", "pictures"], []
    for column in columns:
        head += [column, f"less that of {output.against}"] if output.against else [column]
    for method in methods:
        summary = summarise(rows, method.name, columns)
        line = [method.name, str(summary["subjects"]), str(summary["pictures"])]
        for column in columns:
            line.append(shown(summary["scores"][column]))
            if output.against == method.name:
                line.append("")
            elif output.against:
                line.append(signed(difference(rows, method.name, output.against, column)))
        body.append(line)
    return head, body


def difference(rows: Sequence[Row], method: str, other: str, column: str) -> Interval:
    """How much more one method scores than another, subject by subject, over the subjects that both have."""
    one, two = (values_of(rows, name, column) for name in (method, other))
    return bootstrap({subject: [mean(one[subject]) - mean(two[subject])] for subject in one if subject in two})


def signed(interval: Interval) -> str:
    """A difference and its interval, or nothing where there was nothing to compare."""
    value, low, high = interval
    if math.isnan(value):
        return ""
    return f"{value:+.3f}" + ("" if math.isnan(low) else f" [{low:+.3f}, {high:+.3f}]")


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
