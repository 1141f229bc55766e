"""Plots of a study: two columns of scores along families of methods."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

from profusion_cli.errors import UnavailableError
from profusion_cli.evaluation.report.tables import NO_SETS, Row, SetsOf, methods_of, summarise
from profusion_cli.evaluation.study.schema import Figure, Study


def curve_svg(study: Study, output: Figure, rows: Sequence[Row], sets: SetsOf = NO_SETS) -> str:
    """A plot of two columns with their intervals, families of methods as lines.

    Args:
        study, output: see above.
        rows, sets: see `summarise`.

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
            summarise(rows, method.name, (output.x, output.y), sets)["scores"]
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
