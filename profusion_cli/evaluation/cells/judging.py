"""Having the pictures of cells judged; what is judged is not judged again."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from profusion_cli.console import Output
from profusion_cli.errors import UnavailableError
from profusion_cli.evaluation.cells.cell import Cell
from profusion_cli.evaluation.cells.marks import Marks
from profusion_cli.evaluation.folder import read_json, slug
from profusion_cli.evaluation.metrics import SECOND, Judged, Metric
from profusion_cli.evaluation.study.schema import Study
from profusion_cli.evaluation.study.subjects import StudySubject, other_pictures, photo_of
from profusion_cli.faceworld.world import identity
from profusion_cli.files import write_json
from profusion_cli.prompts import parse_prompt
from profusion_cli.runtime.sampling import present_words

Scores = list[dict[str, float | None]]
"""By column, of each picture of a cell."""


class Jury:
    """The metrics of a run, and their scores in the folders of its cells.

    Args:
        study: see above.
        metrics: with their options.
        marks: of what scores depend on.
        output: where progress goes.
        share: see `Processes`.
    """

    def __init__(
        self,
        study: Study,
        metrics: Sequence[tuple[Metric, Mapping[str, Any]]],
        marks: Marks,
        output: Output,
        share: str = "",
    ) -> None:
        self.study, self.output, self.share, self._marks = study, output, share, marks
        self.missing: dict[str, str] = {}
        """Why metrics are missing, by their names."""
        self.judged: dict[str, str] = {}
        """Marks of the metrics that have judged something in this process, by their names."""
        self._waiting = list(metrics)
        self._mark_of = {metric.name: marks.of_metric(metric, options) for metric, options in metrics}

    @property
    def names(self) -> list[str]:
        """Of all metrics."""
        return list(self._mark_of)

    def judge(self, cells: Sequence[Cell]) -> None:
        """Have every metric judge what it has not judged yet; one that cannot is told of, and the others go on."""
        finished = [cell for cell in cells if cell.made is not None]
        while self._waiting:
            metric, options = self._waiting.pop(0)  # so that its model is let go before the next is loaded
            todo = [cell for cell in finished if self.scores(cell, metric.name) is None]
            try:
                with self.output.progress(f"Judging: {metric.name}{self.share}", len(todo)) as step:
                    for number, cell in enumerate(todo):
                        found = self._judge(cell, metric)
                        if number == 0:  # a library may have fetched the weights only now
                            self.judged[metric.name] = self._marks.of_metric(metric, options)
                            self._mark_of |= self.judged
                        write_json(_score_file(cell, metric.name), {**found, "mark": self._mark_of[metric.name]})
                        step(number + 1)
            except UnavailableError as error:
                self._miss(metric.name, f"{error.message} {error.hint}")

    def hear(self, missing: Mapping[str, str], judged: Mapping[str, str]) -> None:
        """Take over what another process says in `missing` and `judged`."""
        self._mark_of |= judged
        for name in missing.keys() - self.missing.keys():
            self._miss(name, missing[name])

    def _miss(self, name: str, why: str) -> None:
        self.missing[name] = why
        self.output.warn(f"{name}: {why}")

    def scores(self, cell: Cell, metric: str) -> Scores | None:
        """The scores of a cell by a metric; None where it has not been judged as it is now."""
        record, marks = read_json(_score_file(cell, metric)), [cell.mark, self._mark_of[metric]]
        return record["scores"] if record is not None and [record["cell"], record["mark"]] == marks else None

    def seconds(self, cells: Sequence[Cell]) -> dict[str, float]:
        """What each metric took for these cells."""
        spent = {}
        for name in self.names:
            records = [read_json(_score_file(cell, name)) for cell in cells]
            spent[name] = sum(record["seconds"] for record in records if record is not None)
        return spent

    def _judge(self, cell: Cell, metric: Metric) -> dict[str, Any]:
        """A cell's scores, and what it took."""
        started = time.perf_counter()
        scores: Scores = [{} for _ in cell.made["pictures"]]
        for prefix, subject in zip(("", SECOND), cell.subjects, strict=False):
            for found, new in zip(scores, metric.score(self._judged(cell, subject)), strict=True):
                found |= {prefix + column: value for column, value in new.items()}
        seconds = round(time.perf_counter() - started, 2)
        return {"cell": cell.mark, "seconds": seconds, "scores": scores}

    def _judged(self, cell: Cell, subject: StudySubject) -> list[Judged]:
        judged, words = [], present_words(cell.class_words, cell.weights)
        photo = photo_of(subject, cell.config, subject.photo_context(cell.method))
        traits = identity(subject.seed).traits() if subject.file is None else {}
        for picture in cell.made["pictures"]:
            with Image.open(cell.folder / picture["file"]) as image:
                text = parse_prompt(picture["prompt"], subjects=len(words)).twin(words)
                asks = self.study.asks(picture["prompt"])
                others = other_pictures(subject.seed, asks, image.width) if subject.file is None else ()
                judged.append(Judged(image.convert("RGB"), photo, text, asks, others, traits))
        return judged


def _score_file(cell: Cell, metric: str) -> Path:
    return cell.folder / f"scores-{slug(metric)}.json"
