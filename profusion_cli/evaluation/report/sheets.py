"""Sheets of a study's pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from profusion_cli.evaluation.report.tables import Row, methods_of
from profusion_cli.evaluation.study.schema import TWO, Figure, Study
from profusion_cli.images import contact_sheet

CELL = 96
"""Side of a picture in a sheet, in pixels."""


def sheet_of(
    study: Study, output: Figure, rows: Sequence[Row], folder: Path, photos: Mapping[str, Image.Image]
) -> tuple[Image.Image, list[str]] | None:
    """Pictures of one subject, a row for each method and a column for each prompt; None where there are none.

    Returns:
        The sheet, and the prompts of its columns; blank where a method did not draw one.
    """
    names, number = list(photos), output.subject
    if number >= len(names):
        return None
    methods = methods_of(study, output)
    files: dict[str, dict[str, Path]] = {method.name: {} for method in methods}
    for row in rows:
        if row["method"] in files and row["subject"] == names[number] and not row["reconstruction"]:
            files[row["method"]].setdefault(row["prompt"], folder / row["file"])
    prompts = [prompt.text for prompt in study.prompts if any(prompt.text in drawn for drawn in files.values())]
    lines = [(name, [_cell(drawn.get(prompt)) for prompt in prompts]) for name, drawn in files.items() if drawn]
    both = any(method.kind == TWO for method in methods)
    told = [names[number], *([names[(number + 1) % len(names)]] if both else [])]
    references = [(name, photos[name].resize((CELL, CELL))) for name in told]
    return (contact_sheet(lines, references, CELL, heads=prompts), prompts) if lines else None


def _cell(file: Path | None) -> Image.Image:
    if file is None:
        return Image.new("RGB", (CELL, CELL), "white")
    with Image.open(file) as image:
        return image.convert("RGB").resize((CELL, CELL), Image.Resampling.LANCZOS)
