"""What a study found: `results.json`, `tables.md` and `report.html`."""

from __future__ import annotations

import base64
import html
import io
import math
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from PIL import Image

from profusion_cli import __version__
from profusion_cli.errors import UnavailableError
from profusion_cli.evaluation.metrics import FOUND, FOUND_IN_PHOTO
from profusion_cli.evaluation.statistics import Interval, bootstrap
from profusion_cli.evaluation.study import TWO, Figure, Method, Study
from profusion_cli.files import atomic_output, write_json
from profusion_cli.images import contact_sheet

if TYPE_CHECKING:
    from profusion_cli.evaluation.runner import Run

RESULTS = "results.json"
LIBRARIES = ("torch", "diffusers", "transformers", "open_clip_torch", "deepface")
RECONSTRUCTION = "reconstruction: "
SECOND = "second: "
"""Before the columns of the other one of two subjects."""
CELL = 96
FEW = 8
"""Subjects, of whom a percentile bootstrap tells too little."""
Row = Mapping[str, Any]


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


def markdown(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def curve_svg(study: Study, output: Figure, rows: Sequence[Row]) -> str:
    """A plot of two columns with their intervals, families of methods as lines.

    Raises:
        UnavailableError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure as Plot
    except ImportError:
        raise UnavailableError(
            "Plots need matplotlib, which is not installed.", "Install it: pip install 'profusion[evaluation]'."
        ) from None
    plot = Plot(figsize=(8, 5.5), layout="constrained")
    axes = plot.add_subplot()
    families = dict.fromkeys(method.family for method in methods_of(study, output))
    for number, family in enumerate(families):
        points = [
            summarise(rows, method.name, (output.x, output.y))["scores"]
            for method in methods_of(study, output)
            if method.family == family
        ]
        points = [point for point in points if not math.isnan(point[output.x].mean + point[output.y].mean)]
        if not points:
            continue
        means, errors = {}, {}
        for column in (output.x, output.y):
            means[column] = [point[column].mean for point in points]
            errors[column] = [
                [
                    math.nan if math.isnan(point[column].low) else abs(point[column][end] - point[column].mean)
                    for point in points
                ]
                for end in (1, 2)
            ]
        axes.errorbar(
            means[output.x], means[output.y], xerr=errors[output.x], yerr=errors[output.y], label=family,
            elinewidth=0.6, capsize=2, marker="osD^vPX*"[number % 8], markersize=5, linewidth=1.2, alpha=0.85,
        )  # fmt: skip
    axes.set(xlabel=output.x, ylabel=output.y)
    axes.grid(alpha=0.3)
    if axes.has_data():
        axes.legend(fontsize=8)
    buffer = io.StringIO()
    plot.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


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


def versions() -> dict[str, str]:
    """Of everything that the numbers may depend on."""
    found = {"profusion": __version__, "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1200px; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse; font-size: 13px } td, th { padding: 4px 10px; border-bottom: 1px solid #ddd;
text-align: left } th { border-bottom: 2px solid #999 } img, svg { max-width: 100%; height: auto } code, pre {
font-size: 12px; background: #f5f5f3; padding: 2px 4px } .warn { background: #fff3d6; padding: .5em 1em } """


def report(run: Run, photos: Mapping[str, Image.Image]) -> tuple[int, list[str]]:
    """Write what a run's folder holds by now: `results.json`, `tables.md` and `report.html`.

    Args:
        run: see above.
        photos: of the subjects, by name, in the study's order.

    Returns:
        How many pictures there are; and what could not be told, in sentences.
    """
    cells = [cell for cell in run.cells(run.study.methods, everyone=True) if cell.made is not None]
    rows = run.results(cells)
    record = {
        "study": run.study.name,
        "versions": versions(),
        "devices": sorted({f"{cell.made['device']}, {cell.made['dtype']}" for cell in cells if "device" in cell.made}),
        "seeds": sorted({cell.config.seed for cell in cells}),
        "base": next((cell.made["base"] for cell in cells if "base" in cell.made), None),
        "cells": {
            f"{cell.method.name} / {cell.subject.name}": {"mark": cell.mark, "bundles": cell.made.get("bundles", [])}
            for cell in cells
        },
        "seconds": run.seconds(cells),
        "missing": run.missing,
        "failed": run.failed,
    }
    write_json(run.folder / RESULTS, {**record, "pictures": rows})
    problems = write_report(run.folder, run.study, rows, record, photos)
    return len(rows), [*problems, *faceless(rows)]


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


def write_report(
    folder: Path,
    study: Study,
    rows: Sequence[Row],
    record: Mapping[str, Any],
    photos: Mapping[str, Image.Image],
) -> list[str]:
    """Write `tables.md` and `report.html`.

    Args:
        folder: of the run.
        study: see above.
        rows: of `Run.results`.
        record: what is told of the run beside: versions, hashes, failures.
        photos: of the subjects, by name, in the study's order.

    Returns:
        What could not be made, in sentences.
    """
    outputs = study.outputs or {"all": Figure("All methods")}
    problems: list[str] = []
    text, page = [f"# {study.name}", study.description], [f"<h1>{html.escape(study.name)}</h1>"]
    page.append(f"<p>{html.escape(study.description)}</p>")
    for warning in [f"Not judged: {key}: {why}" for key, why in record["missing"].items()] + [
        f"Failed: {item['method']}, {item['subject']}: {item['error']}" for item in record["failed"]
    ]:
        page.append(f'<p class="warn">{html.escape(warning)}</p>')
        text.append(f"> {warning}")
    for key, output in outputs.items():
        text.append(f"## {output.title}")
        page.append(f"<h2 id='{html.escape(key)}'>{html.escape(output.title)}</h2>")
        if output.kind == "sheet":
            made = sheet_of(study, output, rows, folder, photos)
            if made is None:
                text.append("No pictures yet.")
                page.append("<p>No pictures yet.</p>")
                continue
            name, (sheet, prompts) = f"{key}.png", made
            with atomic_output(folder / name, force=True) as file:
                sheet.quantize(240, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
            data = base64.b64encode((folder / name).read_bytes()).decode()
            columns = " | ".join(prompts)
            text.append(f"![{output.title}]({name})\n\n{columns}")
            page.append(f'<img alt="{html.escape(output.title)}" src="data:image/png;base64,{data}">')
            page.append(f"<p>{html.escape(columns)}</p>")
            continue
        if output.kind == "curve":
            try:
                svg = curve_svg(study, output, rows)
            except UnavailableError as error:
                problems.append(f"{error.message} {error.hint}")
                page.append(f'<p class="warn">{html.escape(problems[-1])}</p>')
            else:
                with atomic_output(folder / f"{key}.svg", force=True) as file:
                    file.write(svg.encode())
                text.append(f"![{output.title}]({key}.svg)")
                page.append(svg)
            if not output.columns:
                output = Figure(output.title, "table", output.methods, (output.x, output.y))
        head, body = table_of(study, output, rows)
        text.append(markdown(head, body))
        cells = ["".join(f"<th>{html.escape(cell)}</th>" for cell in head)]
        cells += ["".join(f"<td>{html.escape(cell)}</td>" for cell in line) for line in body]
        page.append(f"<table>{''.join(f'<tr>{line}</tr>' for line in cells)}</table>")
    note = "Means over subjects, with 95 % bootstrap intervals over subjects."
    people = [{row["subject"] for row in rows if row["method"] == method.name} for method in study.methods]
    if any(0 < len(names) < FEW for names in people):
        note += f" Intervals over fewer than {FEW} subjects are too narrow."
    text.append(note)
    page.append(f"<p>{note}</p><h2>How it was made</h2><pre>{html.escape(details(record))}</pre>")
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(study.name)}</title>'
    document = f"{head}<style>{STYLE}</style><body>{''.join(page)}</body></html>\n"
    for name, content in {"tables.md": "\n\n".join(text) + "\n", "report.html": document}.items():
        with atomic_output(folder / name, force=True) as file:
            file.write(content.encode())
    return problems


def details(record: Mapping[str, Any]) -> str:
    """Versions, seeds and hashes as readable YAML."""
    import yaml

    return yaml.safe_dump(dict(record), sort_keys=False, allow_unicode=True, width=120)
