"""The report of a study: `tables.md` and `report.html`."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from profusion_cli.errors import UnavailableError
from profusion_cli.evaluation.metrics import METRICS
from profusion_cli.evaluation.rendering import render
from profusion_cli.evaluation.report.curves import curve_svg
from profusion_cli.evaluation.report.sheets import sheet_of
from profusion_cli.evaluation.report.tables import (
    NO_SETS,
    Row,
    SetsOf,
    methods_of,
    shown_columns,
    subjects_in,
    table_of,
)
from profusion_cli.evaluation.statistics import FEWEST
from profusion_cli.evaluation.study.schema import Figure, Study
from profusion_cli.files import atomic_output
from profusion_cli.images.marks import SOURCE_TYPE, TRAINED, png_info

FEW = 8
"""Subjects, of whom a percentile bootstrap tells too little."""


@dataclass(frozen=True)
class Section:
    """One output of a study, as the templates show it.

    Args:
        key: its name in the study.
        title: above it.
        empty: there are no pictures for its sheet yet.
        picture: name of the file beside the report; "" without one.
        png: of a sheet, in base64.
        svg: of a plot.
        caption: below a sheet.
        problem: why there is no plot.
        head, body: of its table; empty without one.
    """

    key: str
    title: str
    empty: bool = False
    picture: str = ""
    png: str = ""
    svg: str = ""
    caption: str = ""
    problem: str = ""
    head: Sequence[str] = ()
    body: Sequence[Sequence[str]] = ()


def write_report(
    folder: Path,
    study: Study,
    rows: Sequence[Row],
    record: Mapping[str, Any],
    photos: Mapping[str, Image.Image],
    sets: SetsOf = NO_SETS,
) -> list[str]:
    """Write `tables.md` and `report.html`, and the sheets and plots beside them.

    Args:
        folder: of the run.
        study: see above.
        rows: of `Run.results`.
        record: what is told of the run beside: versions, hashes, failures.
        photos: of the subjects, by name, in the study's order.
        sets: of `Jury.sets`.

    Returns:
        What could not be made, in sentences.
    """
    outputs = {key: _with_columns(output) for key, output in (study.outputs or {"all": Figure("All methods")}).items()}
    sections = [_section(folder, study, key, output, rows, photos, sets) for key, output in outputs.items()]
    values = {
        "study": study,
        "warnings": [f"Not judged: {key}: {why}" for key, why in record["missing"].items()]
        + [f"Failed: {item['method']}, {item['subject']}: {item['error']}" for item in record["failed"]],
        "sections": sections,
        "note": _note(study, [output for output in outputs.values() if output.kind != "sheet"], rows, sets),
        "details": yaml.safe_dump(dict(record), sort_keys=False, allow_unicode=True, width=120),
    }
    for name in ("tables.md", "report.html"):
        with atomic_output(folder / name, force=True) as file:
            file.write(render(name, **values).encode())
    return [section.problem for section in sections if section.problem]


def _section(
    folder: Path,
    study: Study,
    key: str,
    output: Figure,
    rows: Sequence[Row],
    photos: Mapping[str, Image.Image],
    sets: SetsOf,
) -> Section:
    """What there is of an output by now; its picture is written."""
    section = Section(key, output.title)
    if output.kind == "sheet":
        return _with_sheet(section, folder, sheet_of(study, output, rows, folder, photos))
    if output.kind == "curve":
        section = _with_plot(section, folder, study, output, rows, sets)
    head, body = table_of(study, output, rows, sets)
    return replace(section, head=head, body=body)


def _with_sheet(section: Section, folder: Path, made: tuple[Image.Image, list[str]] | None) -> Section:
    if made is None:
        return replace(section, empty=True)
    name, (sheet, prompts) = f"{section.key}.png", made
    with atomic_output(folder / name, force=True) as file:
        sheet.quantize(240, dither=Image.Dither.NONE).save(
            file, "PNG", optimize=True, pnginfo=png_info({SOURCE_TYPE: TRAINED})
        )
    png = base64.b64encode((folder / name).read_bytes()).decode()
    return replace(section, picture=name, png=png, caption=" | ".join(prompts))


def _with_plot(
    section: Section, folder: Path, study: Study, output: Figure, rows: Sequence[Row], sets: SetsOf
) -> Section:
    try:
        svg = curve_svg(study, output, rows, sets)
    except UnavailableError as error:
        return replace(section, problem=f"{error.message} {error.hint}")
    name = f"{section.key}.svg"
    with atomic_output(folder / name, force=True) as file:
        file.write(svg.encode())
    return replace(section, picture=name, svg=svg)


def _with_columns(output: Figure) -> Figure:
    """A plot has a table too, of its two columns unless it names others."""
    return replace(output, columns=output.columns or (output.x, output.y)) if output.kind == "curve" else output


def _note(study: Study, outputs: Sequence[Figure], rows: Sequence[Row], sets: SetsOf) -> str:
    """What intervals are of, and what pictures are compared with where that says less than it seems to."""
    note = "Means over subjects, with 95 % bootstrap intervals over subjects."
    told = [
        scored
        for output in outputs
        for column in shown_columns(study, output, rows, sets)
        for scored, _ in subjects_in(rows, methods_of(study, output), column)
    ]
    if told and min(told) < FEW:
        note += f" Intervals over fewer than {FEW} subjects are too narrow."
    if compared := [column for column, of_method in sets.items() if of_method]:
        note += (
            f" {', '.join(compared)}: the kernel distance of all pictures of the prompts together from true ones, 0 in "
            f"expectation for these, with 95 % jackknife intervals over subjects, of whom it wants {FEWEST} or more."
        )
    tuned_on = [photo.name or Path(photo.file).stem for photo in study.subjects.photos if not photo.held_out]
    if tuned_on and any(METRICS[name].likeness for name in study.metrics):
        who = "" if len(tuned_on) == len(study.subjects.photos) else f" of {', '.join(tuned_on)}"
        note += (
            f" Identity{who} is measured against the tuned photo itself, so that copying it scores highest: the study "
            "names no held-out photos."
        )
    return note
