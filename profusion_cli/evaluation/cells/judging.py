"""Having the pictures of cells judged; what is judged is not judged again."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from profusion_cli.console import Output
from profusion_cli.errors import UnavailableError
from profusion_cli.evaluation.cells.cell import Cell
from profusion_cli.evaluation.cells.features import features_of_photos, is_marked, read_features, write_features
from profusion_cli.evaluation.cells.marks import Marks
from profusion_cli.evaluation.folder import read_json, slug
from profusion_cli.evaluation.metrics import SECOND, Judged, Metric
from profusion_cli.evaluation.statistics import FeatureSet, Sets
from profusion_cli.evaluation.study.schema import TWO, Study, digest, is_reconstruction
from profusion_cli.evaluation.study.subjects import StudySubject, held_out_of, other_pictures, photo_of, unasked_traits
from profusion_cli.files import write_json
from profusion_cli.prompts import parse_prompt
from profusion_cli.runtime.sampling import present_words

Scores = list[dict[str, float | None]]
"""By column, of each picture of a cell."""
PICTURES, REFERENCES = "pictures", "references"
"""Names of the arrays in a cell's file of features."""


class Jury:
    """The metrics of a run, and their scores and features in the folders of its cells.

    Args:
        folder: of the run.
        study: see above.
        metrics: with their options.
        marks: of what scores depend on.
        output: where progress goes.
        share: see `Processes`.
    """

    def __init__(
        self,
        folder: Path,
        study: Study,
        metrics: Sequence[tuple[Metric, Mapping[str, Any]]],
        marks: Marks,
        output: Output,
        share: str = "",
    ) -> None:
        self.folder, self.study, self.output, self.share, self._marks = folder, study, output, share, marks
        self.missing: dict[str, str] = {}
        """Why metrics are missing, by their names."""
        self.judged: dict[str, str] = {}
        """Marks of the metrics that have judged something in this process, by their names."""
        self._waiting = list(metrics)
        self._mark_of = {metric.name: marks.of_metric(metric, options) for metric, options in metrics}
        self._distances = {
            metric.name: {distance.column: bool(distance.photos) for distance in metric.distances}
            for metric, _ in metrics
        }
        """Of each metric the columns of distances, and whether those are from photographs that are the same for all."""

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
                        found, features = self._judge(cell, metric)
                        if number == 0:  # a library may have fetched the weights only now
                            self.judged[metric.name] = self._marks.of_metric(metric, options)
                            self._mark_of |= self.judged
                        mark = self._mark(cell, metric.name)
                        for column, arrays in features.items():  # first, so that scores are of a cell that is done
                            write_features(_feature_file(cell, column), arrays, _together(cell, mark))
                        write_json(_score_file(cell, metric.name), {**found, "mark": mark})
                        step(number + 1)
                if finished:
                    self._keep_photos(metric)
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
        record, mark = read_json(_score_file(cell, metric)), self._mark(cell, metric)
        if record is None or [record["cell"], record["mark"]] != [cell.mark, mark]:
            return None
        files = [_feature_file(cell, column) for column in self._distances[metric] if cell.method.kind != TWO]
        return record["scores"] if all(is_marked(file, _together(cell, mark)) for file in files) else None

    def sets(self, cells: Sequence[Cell]) -> dict[str, dict[str, Sets]]:
        """What distances are computed from, by column and by method: the pictures of the prompts, and the true ones, by
        person, of the cells that have been judged as they are now; without methods that have no true ones."""
        return {
            column: self._sets(cells, metric, column, for_all)
            for metric, columns in self._distances.items()
            for column, for_all in columns.items()
        }

    def _sets(self, cells: Sequence[Cell], metric: str, column: str, for_all: bool) -> dict[str, Sets]:
        photos = FeatureSet(read_features(self._photo_file(column), self._mark_of[metric]) if for_all else {})
        found: dict[str, dict[str, dict[str, np.ndarray]]] = {}
        for cell in cells:
            arrays = read_features(_feature_file(cell, column), _together(cell, self._mark(cell, metric)))
            for name, features in arrays.items():
                found.setdefault(cell.method.name, {}).setdefault(name, {})[cell.subject.name] = features
        sets = {
            method: (FeatureSet(of[PICTURES]), photos if for_all else FeatureSet(of.get(REFERENCES, {})))
            for method, of in found.items()
        }
        return {method: both for method, both in sets.items() if both[1].by_person}

    def seconds(self, cells: Sequence[Cell]) -> dict[str, float]:
        """What each metric took for these cells."""
        spent = {}
        for name in self.names:
            records = [read_json(_score_file(cell, name)) for cell in cells]
            spent[name] = sum(record["seconds"] for record in records if record is not None)
        return spent

    def _mark(self, cell: Cell, metric: str) -> str:
        """A digest of all that a metric's scores of a cell depend on beside the pictures."""
        held_out = self._marks.of_held_out(cell.subjects)
        return digest([self._mark_of[metric], held_out]) if held_out else self._mark_of[metric]

    def _judge(self, cell: Cell, metric: Metric) -> tuple[dict[str, Any], dict[str, dict[str, np.ndarray]]]:
        """A cell's scores, and what it took; and by column its features, where it shows one subject."""
        started = time.perf_counter()
        judged = [self._judged(cell, subject) for subject in cell.subjects]
        scores: Scores = [{} for _ in cell.made["pictures"]]
        for prefix, pictures in zip(("", SECOND), judged, strict=False):
            for found, new in zip(scores, metric.score(pictures), strict=True):
                found |= {prefix + column: value for column, value in new.items()}
        features = _features(cell, metric, judged[0]) if cell.method.kind != TWO else {}
        seconds = round(time.perf_counter() - started, 2)
        return {"cell": cell.mark, "seconds": seconds, "scores": scores}, features

    def _judged(self, cell: Cell, subject: StudySubject) -> list[Judged]:
        judged, words = [], present_words(cell.class_words, cell.weights)
        photo = photo_of(subject, cell.config, subject.photo_context(cell.method))
        held_out = held_out_of(subject, cell.config)
        for picture in cell.made["pictures"]:
            with Image.open(cell.folder / picture["file"]) as image:
                text = parse_prompt(picture["prompt"], subjects=len(words)).twin(words)
                asks = self.study.asks(picture["prompt"])
                others = other_pictures(subject.seed, asks) if subject.file is None else held_out
                traits = unasked_traits(subject.seed, asks) if subject.file is None else {}
                judged.append(Judged(image.convert("RGB"), photo, text, asks, others, traits))
        return judged

    def _keep_photos(self, metric: Metric) -> None:
        """Write the features of the photographs that all methods are compared with, unless they are there."""
        for distance in metric.distances:
            file, mark = self._photo_file(distance.column), self._mark_of[metric.name]
            if distance.photos and not is_marked(file, mark):
                count = sum(map(len, distance.photos.values()))
                with self.output.progress(f"Reading photographs: {metric.name}{self.share}", count) as step:
                    write_features(file, features_of_photos(distance, step), mark)

    def _photo_file(self, column: str) -> Path:
        return self.folder / f"photographs-{slug(column)}.safetensors"


def _features(cell: Cell, metric: Metric, judged: Sequence[Judged]) -> dict[str, dict[str, np.ndarray]]:
    """By column of distances, features of a cell's pictures of the prompts, and of the true ones beside them."""
    numbered = zip(cell.made["pictures"], judged, strict=True)
    kept = [item for picture, item in numbered if not is_reconstruction(picture["index"])]
    found: dict[str, dict[str, np.ndarray]] = {}
    for distance in metric.distances:
        shown = {PICTURES: [item.picture for item in kept]}
        if not distance.photos:
            shown[REFERENCES] = [other for item in kept for other in item.others]
        found[distance.column] = {name: np.stack(distance.features(of)) for name, of in shown.items() if of}
    return found


def _score_file(cell: Cell, metric: str) -> Path:
    return cell.folder / f"scores-{slug(metric)}.json"


def _feature_file(cell: Cell, column: str) -> Path:
    return cell.folder / f"features-{slug(column)}.safetensors"


def _together(cell: Cell, mark: str) -> str:
    """The mark of features: what the pictures and what the scores depend on."""
    return f"{cell.mark} {mark}"
