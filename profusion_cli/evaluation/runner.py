"""A run of a study: a folder with its pictures, their scores, and what is told of them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image

from profusion_cli.console import Output
from profusion_cli.errors import ConfigError, InputError, OutputError, ProfusionError
from profusion_cli.evaluation.cells.bundles import Bundles
from profusion_cli.evaluation.cells.cell import Cell, cells_of
from profusion_cli.evaluation.cells.judging import Jury
from profusion_cli.evaluation.cells.making import Maker, needs_twice
from profusion_cli.evaluation.cells.marks import Marks
from profusion_cli.evaluation.cells.sharing import share_out, units_of, work_of
from profusion_cli.evaluation.cells.work import picture_cost
from profusion_cli.evaluation.folder import STUDY_FILE, claimed
from profusion_cli.evaluation.metrics import COST, make_metrics
from profusion_cli.evaluation.report.page import write_report
from profusion_cli.evaluation.report.tables import faceless
from profusion_cli.evaluation.report.versions import versions
from profusion_cli.evaluation.study.checking import check_columns, names_cost
from profusion_cli.evaluation.study.schema import TWO, Method, Study, is_reconstruction
from profusion_cli.evaluation.study.subjects import subjects_of
from profusion_cli.files import atomic_output, make_folder, write_json
from profusion_cli.runtime.processes import Processes

RESULTS = "results.json"


class Run:
    """A folder with everything that a study leaves behind.

    Args:
        folder: it is made where it is not there.
        study: see above.
        limit: how many of the subjects; None: all.
        output: where progress goes.
        device: that metrics run on.
        keep_bundles: keep the subjects' bundles, of which every method makes one for every subject.
        bundles: a folder to keep them in that other runs share; None: the run's own.
        elsewhere: pictures may have been made in a precision that `auto` does not mean on this machine.
        processes: that work on the run; the first of them has the folder, and tells what the others found too.

    Raises:
        ConfigError: subjects, metrics or columns that are not there.
        InputError: nothing where what to pre-train on should be.
    """

    def __init__(
        self,
        folder: Path,
        study: Study,
        limit: int | None = None,
        output: Output | None = None,
        device: torch.device | None = None,
        keep_bundles: bool = False,
        bundles: Path | None = None,
        elsewhere: bool = False,
        processes: Processes | None = None,
    ) -> None:
        self.folder, self.study, self.limit, self.elsewhere = folder, study, limit, elsewhere
        self.output = output = output or Output(quiet=True)
        self.processes = processes or Processes()
        self.everyone = subjects_of(study)
        metrics = [
            (metric, options)
            for key, options in study.metrics.items()
            for metric in make_metrics(key, options, device or torch.device("cpu"))
        ]
        self.marks = Marks(study)
        self.bundles = Bundles(folder, study, self.marks, keep_bundles, bundles)
        self.maker = Maker(study, self.bundles, output, self.processes.share)
        self.jury = Jury(folder, study, metrics, self.marks, output, self.processes.share)
        lonely = [method.name for method in study.methods if method.kind == TWO and len(self.everyone) < 2]
        if lonely:
            output.warn(f"There is one subject only, so that these methods are left out: {'; '.join(lonely)}.")
        for method in study.methods:
            self._check_pretraining(method)
        check_columns(
            study,
            [column for metric, _ in metrics for column in metric.columns],
            [distance.column for metric, _ in metrics for distance in metric.distances],
        )

    @contextmanager
    def open(self, go_on: bool) -> Iterator[None]:
        """Make the folder, or go on in it; no process of another command works there until the block ends.

        Args:
            go_on: even where the study, or anything else that pictures depend on, has changed since; what has changed
                is made again.

        Raises:
            OutputError: the folder holds a run of another study, or it or that of bundles cannot be written, or another
                process is at work.
        """
        with ExitStack() as stack:
            self.processes.first(lambda: self._claim(stack.enter_context(claimed(self.folder)), go_on))
            yield

    def cells(self, methods: Sequence[Method], everyone: bool = False) -> list[Cell]:
        """All cells of these methods, of the subjects within the limit or of everyone."""
        limit = None if everyone else self.limit
        return [
            cell
            for method in methods
            for cell in cells_of(self.study, self.everyone, method, limit, self.marks, self.folder, self.elsewhere)
        ]

    def make(self, cells: Sequence[Cell], needed_twice: bool | None = None) -> None:
        """Make the pictures of all cells that have none yet; see `Maker.make`."""
        self.maker.make(cells, needs_twice(cells) if needed_twice is None else needed_twice)

    def judge(self, cells: Sequence[Cell]) -> None:
        """Have every metric judge what it has not judged yet; see `Jury.judge`."""
        self.jury.judge(cells)

    def make_and_report(self, cells: Sequence[Cell], photos: Mapping[str, Image.Image]) -> tuple[int, list[str]]:
        """Make the pictures, have them judged, and report; what is there is told of, whatever stops the rest.

        Args:
            cells: see `make`; of all processes, which each do a share.
            photos: see `report`.

        Returns:
            As `report`; nothing but in the first process.

        Raises:
            InputError: the processes see different folders, or different cells.
        """
        try:
            self._do_share(cells)
        except BaseException:
            if self.processes.is_main:
                try:
                    self.report(photos)
                except OutputError as error:
                    self.output.warn(f"There is no report: {error.message}")
            raise
        return self.report(photos) if self.processes.is_main else (0, [])

    def results(self, cells: Sequence[Cell]) -> list[dict[str, Any]]:
        """Every picture of these cells that is finished, with its scores."""
        return [row for cell in cells if cell.made is not None for row in self._rows(cell)]

    def report(self, photos: Mapping[str, Image.Image]) -> tuple[int, list[str]]:
        """Write what the folder holds by now: `results.json`, `tables.md` and `report.html`.

        Args:
            photos: of the subjects, by name, in the study's order.

        Returns:
            How many pictures there are; and what could not be told, in sentences.
        """
        cells = [cell for cell in self.cells(self.study.methods, everyone=True) if cell.made is not None]
        rows, record = self.results(cells), self._record(cells)
        write_json(self.folder / RESULTS, {**record, "pictures": rows})
        problems = write_report(self.folder, self.study, rows, record, photos, self.jury.sets(cells))
        return len(rows), [*problems, *faceless(rows)]

    def _do_share(self, cells: Sequence[Cell]) -> None:
        """This process's share of the work, and what the others have to say of theirs."""
        twice, error = needs_twice(cells), None
        mine = self._share(cells)
        try:
            self.make(mine, twice)
            self.judge(mine)
        except ProfusionError as stopped:
            error = stopped
        told = self.processes.gather((self.maker.failed, self.jury.missing, self.jury.judged, error))
        if not self.processes.is_main:
            return
        for failed, missing, judged, _ in told[1:]:
            self.maker.hear(failed)
            self.jury.hear(missing, judged)
        for *_, stopped in told:
            if stopped is not None:
                raise stopped
        self.bundles.clear()

    def _share(self, cells: Sequence[Cell]) -> list[Cell]:
        """The cells of this process; the PromptNets that are pre-trained for any of them are there."""
        processes = self.processes
        if processes.count == 1:
            return list(cells)
        units = units_of(cells, self.bundles.names_of)
        ranks = share_out([work_of(unit) for unit in units], processes.count)
        own = {cell.folder for unit, rank in zip(units, ranks, strict=True) if rank == processes.rank for cell in unit}
        mine = [cell for cell in cells if cell.folder in own]
        waiting = {
            self.bundles.promptnet_file(cell.method): cell.method
            for cell in cells
            if cell.made is None and cell.method.pretrain
        }
        methods = [method for file, method in waiting.items() if not file.exists()]
        begun, marks = (self.folder / STUDY_FILE).exists(), [cell.mark for unit in units for cell in unit]
        seen = [begun, marks, ranks, len(methods)]
        if any(other != seen for other in processes.gather(seen)):
            raise InputError(
                f"The {processes.count} processes do not see the same run in '{self.folder}'.",
                "Machines must share the folder and the photos; and set `dtype` in the study where their CPUs differ.",
            )
        self.output.note(f"{processes.count} processes share {len(cells)} cells; this one has {len(mine)} of them.")
        if methods:
            self._pretrain(methods)
        return mine

    def _pretrain(self, methods: Sequence[Method]) -> None:
        """Make the PromptNets of methods, each in one of the processes; all wait for all of them."""
        self.processes.first(self.bundles.pictures)
        ranks = share_out([1.0] * len(methods), self.processes.count)
        self.maker.pretrain(
            [method for method, rank in zip(methods, ranks, strict=True) if rank == self.processes.rank]
        )
        for untrained in self.processes.gather(self.bundles.untrained):
            self.bundles.untrained |= untrained

    def _check_pretraining(self, method: Method) -> None:
        """There is something to pre-train on where it is wanted.

        Raises:
            ConfigError: it is not told of.
            InputError: it is not there.
        """
        place = self.study.pretrain_on
        if not method.pretrain:
            return
        if place is None:
            raise ConfigError(
                f"methods.{method.name}: there is nothing to pre-train on.",
                "Give pictures with --pretrain-on, or set pretrain_on.",
            )
        missing = isinstance(place, str) and not os.path.exists(place)
        if missing and not self.bundles.promptnet_file(method).exists():
            raise InputError(f"There is no '{place}' to pre-train on.", "Check the name.")

    def _claim(self, before: str | None, go_on: bool) -> None:
        """Write the study's file, unless the run that was there before is another's; and make the folder of bundles."""
        text = yaml.safe_dump(dict(self.study.source), sort_keys=False, allow_unicode=True)
        hint = (
            "Name another folder with -o, or add --continue: cells that have changed are then made again, and the "
            "others are kept."
        )
        if before is not None and before != text and not go_on:
            raise OutputError(
                f"'{self.folder}' holds a run of a study that is not the same as '{self.study.name}' is now.", hint
            )
        stale = [cell for cell in self.cells(self.study.methods, everyone=True) if cell.made is None and cell.record]
        if stale and not go_on:
            raise OutputError(
                f"{len(stale)} finished cells in '{self.folder}' were made with settings, a preset, weights, photos or "
                f"a precision that have changed since, such as {stale[0].method.name}, {stale[0].subject.name}.",
                hint,
            )
        if before != text:
            with atomic_output(self.folder / STUDY_FILE, force=True) as file:
                file.write(text.encode())
        if self.bundles.shared is not None:
            make_folder(self.bundles.shared, "folder of bundles", "Name another with --bundles.")

    def _rows(self, cell: Cell) -> Iterator[dict[str, Any]]:
        """The pictures of a finished cell."""
        costs = {COST: picture_cost(cell).units()} if names_cost(self.study) else {}
        scores = [self.jury.scores(cell, name) for name in self.jury.names]
        for number, picture in enumerate(cell.made["pictures"]):
            values: dict[str, float | None] = dict(costs)
            for judged in scores:
                values |= judged[number] if judged is not None else {}
            yield {
                "method": cell.method.name,
                "family": cell.method.family,
                "subject": cell.subject.name,
                "prompt": picture["prompt"],
                "reconstruction": is_reconstruction(picture["index"]),
                "index": picture["index"],
                "file": os.path.relpath(cell.folder / picture["file"], self.folder),
                "scores": values,
            }

    def _record(self, cells: Sequence[Cell]) -> dict[str, Any]:
        """What is told of a run beside its pictures; seconds without fine-tuning."""
        made = {f"{cell.method.name} / {cell.subject.name}": (cell.mark, cell.made) for cell in cells}
        records = [record for _, record in made.values()]
        seconds = {"pictures": sum(record["seconds"] for record in records), **self.jury.seconds(cells)}
        return {
            "study": self.study.name,
            "versions": versions(),
            "devices": sorted({f"{record['device']}, {record['dtype']}" for record in records if "device" in record}),
            "seeds": sorted({cell.config.seed for cell in cells}),
            "base": next((record["base"] for record in records if "base" in record), None),
            "cells": {
                name: {"mark": mark, "bundles": record.get("bundles", [])} for name, (mark, record) in made.items()
            },
            "seconds": {name: round(value, 2) for name, value in seconds.items()},
            "missing": self.jury.missing,
            "failed": self.maker.failed,
        }
