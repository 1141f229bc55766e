"""A cell: one method on one subject, the unit of work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from profusion_cli.config import Config
from profusion_cli.evaluation.cells.marks import Marks, precision_of
from profusion_cli.evaluation.folder import CELL_FILE, read_json, slug
from profusion_cli.evaluation.study.schema import TWO, Method, Study
from profusion_cli.evaluation.study.subjects import StudySubject


@dataclass(frozen=True)
class Cell:
    """One method on one subject.

    Args:
        method: see above.
        subjects: the subject, and behind it the one that it is drawn together with, if any.
        class_words: of the subjects.
        number: of the subject, from 0, which its noise depends on.
        config: the resolved configuration.
        jobs: prompts and numbers of its pictures.
        mark: a digest of all that its pictures depend on.
        folder: where its pictures are.
    """

    method: Method
    subjects: tuple[StudySubject, ...]
    class_words: tuple[str, ...]
    number: int
    config: Config
    jobs: tuple[tuple[str, int], ...]
    mark: str
    folder: Path

    @property
    def subject(self) -> StudySubject:
        """Whose cell it is."""
        return self.subjects[0]

    @property
    def weights(self) -> tuple[float, ...]:
        """The subjects' weights, which sum to 1."""
        return (1.0 - self.method.share, self.method.share) if self.method.kind == TWO else (1.0,)

    @property
    def record(self) -> dict[str, Any] | None:
        """What `cell.json` says of finished pictures, be they of these settings or not: pictures and seconds."""
        return read_json(self.folder / CELL_FILE)

    @property
    def made(self) -> dict[str, Any] | None:
        """The record of the finished cell; None where it is to be made."""
        record = self.record
        return record if record is not None and record.get("mark") == self.mark else None


def cells_of(
    study: Study,
    everyone: Sequence[StudySubject],
    method: Method,
    limit: int | None,
    marks: Marks,
    folder: Path,
    elsewhere: bool,
) -> list[Cell]:
    """The cells of a method.

    Args:
        study: see above.
        everyone: all subjects of the study.
        method: one of the study's; `two` has no cells where there is one subject only.
        limit: how many of the subjects; None: all.
        marks: of what the cells depend on.
        folder: of the run.
        elsewhere: finished pictures may be in a precision that `auto` does not mean on this machine.
    """
    if method.kind == TWO and len(everyone) < 2:
        return []
    config, cells = study.config(method), []
    for number, subject in enumerate(everyone[:limit][: study.counts_of(method).subjects]):
        with_next = (subject, everyone[(number + 1) % len(everyone)])
        subjects = with_next if method.kind == TWO else with_next[:1]
        words = tuple(one.class_word or config.class_word for one in subjects)
        own = replace(config, class_word=words[0])
        jobs = tuple(study.jobs(method, number, own.concept_prompt))
        place = folder / "cells" / slug(method.name) / slug(subject.name)
        made = read_json(place / CELL_FILE) or {}
        precision = made.get("precision") if elsewhere else precision_of(method, own)
        mark = marks.of_cell(method, subjects, own, jobs, precision)
        cells.append(Cell(method, subjects, words, number, own, jobs, mark, place))
    return cells
