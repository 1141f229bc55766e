"""The bundles that cells draw from, each made once in a run's folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from profusion_cli.config import Config
from profusion_cli.errors import ProfusionError
from profusion_cli.evaluation.cells import jobs
from profusion_cli.evaluation.cells.cell import Cell
from profusion_cli.evaluation.cells.marks import Marks, subject_settings, views_settings
from profusion_cli.evaluation.cells.work import Meter
from profusion_cli.evaluation.folder import slug
from profusion_cli.evaluation.study.schema import SUBJECT, TWO, Method, Study, digest
from profusion_cli.evaluation.study.subjects import SIDE, StudySubject, photo_file
from profusion_cli.faceworld.data import draw_portraits
from profusion_cli.files import output_hint
from profusion_cli.runtime.device import resolve_dtype

KEPT, UNKEPT, PROMPTNETS = "bundles", "work", "promptnets"
"""Folders of a run for bundles that are asked for, those that go when their pictures are made, and PromptNets."""


class Bundles:
    """Subjects' bundles, and the PromptNets that methods pre-train for themselves.

    Args:
        folder: of the run.
        study: see above.
        marks: of what they depend on.
        keep: the subjects' bundles when their pictures are made.
        shared: a folder that several runs keep them in, each made by the first that needs it; None: the run's. The
            pictures of a folder may change, so that PromptNets pre-trained on them, and what is made with these, stay
            in the run's.
    """

    def __init__(self, folder: Path, study: Study, marks: Marks, keep: bool, shared: Path | None = None) -> None:
        self.folder, self.study, self.marks, self.shared = folder, study, marks, shared
        self.keep = keep
        self.untrained: dict[Path, ProfusionError] = {}
        """Why PromptNets are missing, by their files; they are not tried again."""

    def of(self, cell: Cell, meter: Meter) -> list[Path]:
        """The bundles of a cell's subjects.

        Args:
            cell: see above.
            meter: hears how far those are that are made only now.

        Raises:
            ProfusionError: one cannot be made.
        """
        return [
            self._of(cell, subject, replace(cell.config, class_word=word), meter)
            for subject, word in zip(cell.subjects, cell.class_words, strict=True)
        ]

    def names_of(self, cell: Cell) -> list[str]:
        """What is made for a cell's own subject: its bundle and, where it is tuned on views, these."""
        if cell.method.kind not in (SUBJECT, TWO):
            return []
        views, bundle, _ = self._planned(cell, cell.subject, cell.config)
        return [bundle, *views]

    def let_go(self, bundles: Iterable[Path]) -> None:
        """Delete those of the bundles that are not to be kept."""
        for path in bundles:
            if path.is_relative_to(self.folder / UNKEPT):
                path.unlink()

    def clear(self) -> None:
        """Delete all that are not to be kept."""
        if (self.folder / UNKEPT).exists():
            shutil.rmtree(self.folder / UNKEPT)

    def promptnet_file(self, method: Method) -> Path:
        """Where the PromptNet that a method pre-trains for itself is, or will be."""
        name = f"{self.marks.of_pretraining(method)}.pfz"
        own = self.folder / PROMPTNETS / name
        return own if own.exists() else (self._shared_for(method) or self.folder) / PROMPTNETS / name

    def promptnet(self, method: Method, meter: Meter) -> Path:
        """The PromptNet that a method pre-trains for itself, once for all subjects.

        Raises:
            ProfusionError: it cannot be made, or could not when it was tried.
        """
        target = self.promptnet_file(method)
        if target in self.untrained:
            raise self.untrained[target]
        if not target.exists():
            config = self.study.config(method)
            try:
                with output_hint("Wait where another run is at it, or make room; and run the same command again."):
                    pictures = self.pictures()
                    cache = target.parent / "cache"
                    jobs.make_promptnet(pictures, target, target.with_suffix(".work"), cache, meter, config)
            except ProfusionError as error:
                self.untrained[target] = error
                raise
        return target

    def pictures(self) -> str | Path:
        """What PromptNets are pre-trained on; portraits are drawn where they are not there yet."""
        given = self.study.pretrain_on
        if isinstance(given, int):
            return draw_portraits((self.shared or self.folder) / PROMPTNETS / f"portraits-{given}", given, SIDE)
        return given

    def _shared_for(self, method: Method) -> Path | None:
        """The folder that other runs share what is made for this method in, if they do."""
        given = method.pretrain and not isinstance(self.study.pretrain_on, int)
        return None if given else self.shared

    def _of(self, cell: Cell, subject: StudySubject, config: Config, meter: Meter) -> Path:
        source = photo_file(subject, subject.photo_context(cell.method), self.folder / "photos")
        if cell.method.pretrain:
            self.promptnet(cell.method, meter)
        views, bundle, config = self._planned(cell, subject, config)
        for name in views:
            own = _in_precision(config, training=False)
            make = partial(jobs.make_views, source, meter=meter, config=own)
            source = self._made("augment", name, make, self.shared)
        own = _in_precision(config, training=config.finetune.steps > 0)
        tune = partial(jobs.make_subject, source, meter=meter, config=own, augmented=bool(views))
        return self._made("finetune", bundle, tune, self._shared_for(cell.method))

    def _planned(self, cell: Cell, subject: StudySubject, config: Config) -> tuple[list[str], str, Config]:
        """Names of a subject's views, one or none, and of its bundle; and the configuration that both are made with."""
        known = [self.marks.of_photo(subject, cell.method), self.marks.of_weights(cell.method, config)]
        own = self.promptnet_file(cell.method) if cell.method.pretrain else None

        def name(*depends_on: Any) -> str:
            return f"{slug(subject.name)}-{digest(depends_on)}.pfz"

        trained = config.finetune.steps > 0
        augmented = cell.method.augment and trained
        drawing, training = (_in_precision(config, training) for training in (False, trained))
        switches = [] if augmented else ["--no-augment"]
        bundle = name("finetune", [*known, *([own.stem] if own else [])], subject_settings(training), switches)
        if own:  # which cells do not name
            promptnet = replace(config.promptnet, weights=str(own), sha256=None, note="")
            config = replace(config, promptnet=promptnet, finetune=replace(config.finetune, self_contained=True))
        return [name("augment", known, views_settings(drawing), [])] if augmented else [], bundle, config

    def _made(self, kind: str, name: str, make: Callable[[Path], None], shared: Path | None) -> Path:
        """A subject's bundle, from the disk where it was made before under the same name."""
        folders = [*([shared] if shared else []), self.folder / KEPT, self.folder / UNKEPT]
        places = [folder / kind / name for folder in folders]
        target = next((place for place in places if place.exists()), places[0 if shared or self.keep else -1])
        if not target.exists():
            make(target)
        return target


def _in_precision(config: Config, training: bool) -> Config:
    """The configuration with what `auto` means on this machine."""
    return replace(config, dtype=resolve_dtype(config.device, config.dtype, training))


def bundle_key(cell: Cell) -> str:
    """What the bundle of a cell depends on beside its subject; nothing where it needs none."""
    if cell.method.kind not in (SUBJECT, TWO):
        return ""
    known = [cell.method.augment, dict(cell.method.photo), subject_settings(cell.config)]
    return digest([*known, cell.config.as_dict()["pretrain"], dict(cell.method.pretrain)])
