"""Making the pictures of a study and having them judged; what is finished is never done again."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from hashlib import sha256
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
import typer
import yaml
from PIL import Image

from profusion_cli.bundle import read_bundle
from profusion_cli.config import BaseConfig, Config
from profusion_cli.console import Output
from profusion_cli.errors import ConfigError, InputError, OutputError, ProfusionError, UnavailableError
from profusion_cli.evaluation.metrics import Judged, Metric, make_metrics
from profusion_cli.evaluation.pairs import Entry
from profusion_cli.evaluation.report import RECONSTRUCTION, SECOND
from profusion_cli.evaluation.study import (
    BASE,
    DESCRIBED,
    DRAWN,
    SUBJECT,
    TWO,
    Method,
    Study,
    digest,
    is_reconstruction,
    near,
    read_study,
)
from profusion_cli.evaluation.subjects import SIDE, Subject, drawn, photo_file, photo_of, subjects_of
from profusion_cli.faceworld.data import draw_portraits
from profusion_cli.files import atomic_output, locked, write_json
from profusion_cli.mappings import changed, flat
from profusion_cli.methods import class_noun
from profusion_cli.presets import local_path
from profusion_cli.prompts import parse_prompt
from profusion_cli.runtime.backbone import BaseModel, quiet_libraries
from profusion_cli.runtime.device import resolve_dtype, resolve_placement
from profusion_cli.runtime.hub import tree_sha256
from profusion_cli.runtime.parts import WEIGHTY, parts_for
from profusion_cli.runtime.pipelines import TextToImage
from profusion_cli.runtime.sampling import Sampler, present_words
from profusion_cli.runtime.weights import BESIDE_BASE

STUDY_FILE, CELL_FILE = "study.yaml", "cell.json"
KEPT, UNKEPT = "bundles", "work"
"""Folders of a run for bundles that are asked for, and for those that go when their pictures are made."""
PRETRAINING = ("base", "promptnet", "pretrain", "class_word", "concept_prompt", "seed")
"""What of the configuration a pre-training depends on."""
KIND_ORDER = (DRAWN, BASE, DESCRIBED, SUBJECT, TWO)


@dataclass(frozen=True)
class Cell:
    """One method on one subject: the unit of work.

    Args:
        method, subject: see above.
        number: of the subject, from 0, which its noise depends on.
        config: the resolved configuration.
        mark: a digest of all that its pictures depend on.
        folder: where its pictures are.
    """

    method: Method
    subject: Subject
    number: int
    config: Config
    mark: str
    folder: Path

    @property
    def record(self) -> dict[str, Any] | None:
        """What `cell.json` says of finished pictures, be they of these settings or not: pictures and seconds."""
        return read_json(self.folder / CELL_FILE)

    @property
    def made(self) -> dict[str, Any] | None:
        """The record of the finished cell; None where it is to be made."""
        record = self.record
        return record if record is not None and record.get("mark") == self.mark else None


def read_json(path: Path) -> Any:
    """What a JSON file of a run holds, or None where there is none, or none that is whole."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def slug(name: str) -> str:
    """A name as part of a file name; names that look alike get different ones."""
    words = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")[:60]
    return f"{words}-{sha256(name.encode()).hexdigest()[:6]}"


Draw = Callable[[str, Sequence[int]], list[Image.Image]]


class CommandError(ProfusionError):
    """A command that a cell needs has failed, and said why."""

    def __init__(self, command: str, exit_code: int) -> None:
        super().__init__(f"`profusion {command}` failed with exit code {exit_code}; what it said stands above.")
        self.exit_code = exit_code


class Run:
    """A folder with everything that a study leaves behind.

    Args:
        folder: it is made where it is not there.
        study: see above.
        limit: how many of the subjects; None: all.
        output: where progress goes.
        device: that metrics run on.
        keep_bundles: keep the subjects' bundles, of which every method makes one for every subject.
        elsewhere: pictures may have been made in a precision that `auto` does not mean on this machine.

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
        elsewhere: bool = False,
    ) -> None:
        self.folder, self.study, self.keep_bundles, self.elsewhere = folder, study, keep_bundles, elsewhere
        self.output = output or Output(quiet=True)
        self.everyone = subjects_of(study)
        self.subjects = self.everyone[:limit]
        self.metrics = [
            (metric, options)
            for key, options in study.metrics.items()
            for metric in make_metrics(key, options, device or torch.device("cpu"))
        ]
        self.failed: list[dict[str, Any]] = []
        self.missing: dict[str, str] = {}
        self._base_marks: dict[Any, dict[str, str]] = {}
        self._file_marks: dict[Path, dict[str, str]] = {}
        self.marks = {metric.name: self._metric_mark(metric, options) for metric, options in self.metrics}
        self._unavailable: dict[str, ProfusionError] = {}
        self._untrained: dict[Path, CommandError] = {}
        self._open: tuple[Any, BaseModel] | None = None
        self._needed_twice = False
        lonely = [method.name for method in study.methods if method.kind == TWO and len(self.everyone) < 2]
        if lonely:
            self.output.warn(f"There is one subject only, so that these methods are left out: {'; '.join(lonely)}.")
        self._check()

    def _check(self) -> None:
        """There is something to pre-train on where it is wanted, and tables and plots name columns that metrics have.

        Raises:
            ConfigError: it is not so.
            InputError: what to pre-train on is not there.
        """
        place = self.study.pretrain_on
        for method in self.study.methods:
            if method.pretrain and place is None:
                raise ConfigError(
                    f"methods.{method.name}: there is nothing to pre-train on.",
                    "Give pictures with --pretrain-on, or set pretrain_on.",
                )
            missing = method.pretrain and isinstance(place, str) and not os.path.exists(place)
            if missing and not self._promptnet_file(method).exists():
                raise InputError(f"There is no '{place}' to pre-train on.", "Check the name.")
        columns = [column for metric, _ in self.metrics for column in metric.columns]
        for key, output in self.study.outputs.items():
            for wanted in filter(None, (*output.columns, output.x, output.y)):
                if wanted.removeprefix(RECONSTRUCTION).removeprefix(SECOND) not in columns:
                    raise ConfigError(f"outputs.{key}: no metric has a column '{wanted}'.", near(wanted, columns))

    @contextmanager
    def open(self, go_on: bool) -> Iterator[None]:
        """Make the folder, or go on in it; no other process works there until the block ends.

        Args:
            go_on: even where the study, or anything else that pictures depend on, has changed since; what has changed
                is made again.

        Raises:
            OutputError: the folder holds a run of another study, or cannot be written, or another process is at work.
        """
        path, busy = self.folder / STUDY_FILE, f"Another `profusion evaluate` is at work in '{self.folder}'."
        with ExitStack() as stack:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(locked(self.folder, busy, "Wait for its end."))
                before = path.read_text(encoding="utf-8") if path.exists() else None
                if before is None and any(self.folder.iterdir()):
                    raise OutputError(
                        f"'{self.folder}' holds something else than a run.", "Name another folder with -o."
                    )
            except OSError as error:
                raise OutputError(
                    f"'{self.folder}' cannot be a run's folder: {error.strerror}.", "Name another with -o."
                ) from error
            self._claim(before, go_on)
            yield

    def _claim(self, before: str | None, go_on: bool) -> None:
        """Write the study's file, unless the run that was there before is another's."""
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

    def cells(self, methods: Sequence[Method], everyone: bool = False) -> list[Cell]:
        """All cells of these methods, of the subjects within the limit or of everyone."""
        found = []
        for method in methods:
            if method.kind == TWO and len(self.everyone) < 2:
                continue
            config = self.study.config(method)
            subjects = self.everyone if everyone else self.subjects
            for number, subject in enumerate(subjects[: self.study.counts_of(method).subjects]):
                own = _config_of(config, subject)
                folder = self.folder / "cells" / slug(method.name) / slug(subject.name)
                made = read_json(folder / CELL_FILE) or {}
                precision = made.get("precision") if self.elsewhere else _precision(method, own)
                mark = self._mark(method, subject, number, own, precision)
                found.append(Cell(method, subject, number, own, mark, folder))
        return found

    def _mark(self, method: Method, subject: Subject, number: int, config: Config, precision: str | None) -> str:
        jobs = [[*job, dict(self.study.asks(job[0]))] for job in self._jobs(method, number, config)]
        known: list[Any] = [method.kind, self._photo_mark(subject, method), jobs]
        if method.kind != DRAWN:
            known.append(self._base_mark(config.base, *parts_for("draws")))
            kept = ("base", "sample", "class_word", "concept_prompt", "seed")
            kept += () if method.kind in (BASE, DESCRIBED) else ("promptnet", "augment", "finetune")
            kept += ("pretrain",) if method.pretrain else ()
            settings = {key: value for key, value in changed(config).items() if key in kept}
            known.append({**settings, "dtype": precision})
        if method.kind == DESCRIBED:
            known.append(subject.description)
        if method.kind in (SUBJECT, TWO):
            known += [method.augment, self._weights(method, config)]
        if method.pretrain:
            known.append(self._pretraining(method))
        if method.kind == TWO:
            other = self._next(number)
            known += [method.share, self._photo_mark(other, method), other.class_word]
        return digest(known)

    def _base_mark(self, config: BaseConfig, *parts: str) -> dict[str, str]:
        """Fingerprints of those parts of a base model that lie in folders; on the Hub, id and revision name them."""
        key = (config, parts)
        if key not in self._base_marks:
            model = BaseModel(config, resolve_placement("cpu", "float32", training=False))
            local = [part for part in parts if config.random is None and model.source(part).is_local]
            self._base_marks[key] = model.fingerprints(*local)
        return self._base_marks[key]

    def _weights(self, method: Method, config: Config) -> list[Any]:
        """Marks of the weights that a subject's bundle and pictures depend on."""
        known: list[Any] = [self._base_mark(config.base, *WEIGHTY), self._promptnet_mark(config)]
        if method.augment and config.augment.inpaint and config.finetune.steps > 0:
            model = config.augment.model
            base = BaseConfig(model.id or "", model.revision, model.unet, random=model.random)
            known.append(self._base_mark(base, "unet"))
        return known

    def _promptnet_mark(self, config: Config) -> dict[str, str]:
        """SHA-256 of PromptNet's files, where they lie on this machine."""
        source = config.promptnet
        place = Path(local_path((config.base.id if source.weights == BESIDE_BASE else source.weights) or ""))
        if place.is_file():
            return self._files_mark(place)
        return self._files_mark(place / source.subfolder) if source.weights and place.is_dir() else {}

    def _photo_mark(self, subject: Subject, method: Method) -> Any:
        return [*self._files_mark(subject.file).values()] if subject.file else [subject.seed, dict(method.photo)]

    def _files_mark(self, place: Path) -> dict[str, str]:
        """SHA-256 of a file, or of those in a folder, each read once; what is not there may come."""
        if not self._file_marks.get(place):
            self._file_marks[place] = tree_sha256(place)
        return self._file_marks[place]

    def _metric_mark(self, metric: Metric, options: Mapping[str, Any]) -> str:
        """A digest of all that scores depend on beside the pictures."""
        own = {key: value for key, value in options.items() if key != "models"}
        return digest([metric.name, own, [self._files_mark(place) for place in metric.weights]])

    def _pretraining(self, method: Method) -> list[Any]:
        """What a method's own PromptNet depends on; pictures by their place alone."""
        config = self.study.config(method)
        settings = {key: value for key, value in changed(config).items() if key in PRETRAINING}
        return [settings, self.study.pretrain_on, self._base_mark(config.base, *WEIGHTY)]

    def _next(self, number: int) -> Subject:
        """Whom the method `two` draws together with a subject."""
        return self.everyone[(number + 1) % len(self.everyone)]

    def _jobs(self, method: Method, number: int, config: Config) -> Iterator[tuple[str, int]]:
        return self.study.jobs(method, number, config.concept_prompt)

    def make(self, cells: Sequence[Cell]) -> None:
        """Make the pictures of all cells that have none yet.

        A cell that fails is told of and left out, and made when the study is run again. Where a model or a library
        cannot be had, the method is not tried again for every subject.

        Raises:
            OutputError: nothing more can be written.
        """
        wanted = [cell for cell in cells if cell.made is None]
        keys = {cell.folder: _bundle_key(cell) for cell in wanted}
        order = {key: number for number, key in enumerate(dict.fromkeys(keys.values()))}
        wanted.sort(key=lambda cell: (KIND_ORDER.index(cell.method.kind), cell.number, order[keys[cell.folder]]))
        self._needed_twice = any(cell.method.kind == TWO for cell in wanted)
        started, done = time.perf_counter(), 0
        with self.output.progress("Making", len(wanted)) as step, ExitStack() as stack, quiet_libraries():
            for _, group in groupby(wanted, lambda cell: (cell.method.kind, cell.number, keys[cell.folder])):
                members = list(group)
                lost = [cell for cell in members if cell.method.name in self._unavailable]
                for cell in lost:
                    self._fail([cell], self._unavailable[cell.method.name])
                possible = [cell for cell in members if cell not in lost]
                try:
                    if possible:
                        self._make_group(possible, stack)
                except ProfusionError as error:
                    self._fail(possible, error)
                done += len(members)
                spent = time.perf_counter() - started
                step(done, members[-1].method.name)
                if not self.output.stderr.is_terminal:
                    left = timedelta(seconds=round(spent / done * (len(wanted) - done)))
                    self.output.note(
                        f"{done} of {len(wanted)} cells: {members[-1].subject.name}, {members[-1].method.name}; "
                        f"{left} left."
                    )
        self._open = None
        if (self.folder / UNKEPT).exists():
            shutil.rmtree(self.folder / UNKEPT)

    def _fail(self, cells: Sequence[Cell], error: ProfusionError) -> None:
        if error.exit_code == OutputError.exit_code:
            raise error
        for cell in cells:
            if error.exit_code == UnavailableError.exit_code:
                self._unavailable[cell.method.name] = error
            self.output.warn(f"{cell.method.name}, {cell.subject.name}: {error.message} {error.hint}".rstrip())
            told = {"method": cell.method.name, "subject": cell.subject.name, "error": error.message}
            self.failed.append({**told, "exit_code": error.exit_code})

    def _make_group(self, cells: Sequence[Cell], stack: ExitStack) -> None:
        """Cells of one kind and subject that draw from the same bundle."""
        first = cells[0]
        if first.method.kind == DRAWN:
            for cell in cells:
                self._save(cell, partial(self._drawn, cell))
            return
        if first.method.kind in (BASE, DESCRIBED):
            for cell in cells:
                model = self._model(TextToImage, cell.config, stack)
                self._save(cell, partial(_draw_text, model, cell), **_made_on(model))
            return
        base = self._model(BaseModel, first.config, stack)
        base.release("unet")  # the last subject's changes are in it, and fine-tuning wants the memory
        pair, words = self._subjects_of(first)
        bundles = [self.bundle(first, subject) for subject in pair]
        for _, alike in groupby(sorted(cells, key=_view), key=_view):
            members = list(alike)
            base.release("unet")
            try:
                studio = Studio(base, bundles, words, members[0].config)
            except ProfusionError as error:
                self._fail(members, error)
                continue
            for cell in members:
                draw = partial(studio.draw, cell.config, _weights_of(cell.method))
                self._save(cell, draw, base=studio.base, bundles=studio.sha256, **_made_on(base))
        if not self._needed_twice:
            self._let_go(bundles)

    def _subjects_of(self, cell: Cell) -> tuple[list[Subject], list[str]]:
        """The subject of a cell, or both of two, and their class words."""
        subjects, words = [cell.subject], [cell.config.class_word]
        if cell.method.kind == TWO:
            other = self._next(cell.number)
            subjects.append(other)
            words.append(_config_of(self.study.config(cell.method), other).class_word)
        return subjects, words

    def _let_go(self, bundles: Iterable[Path]) -> None:
        """Delete those of the bundles that are not to be kept."""
        for path in bundles:
            if path.is_relative_to(self.folder / UNKEPT):
                path.unlink()

    def _model(self, cls: type[BaseModel], config: Config, stack: ExitStack) -> Any:
        """The base model, loaded once for all cells that use it in the same way."""
        key = (cls, config.base, config.device, config.dtype)
        if self._open is None or self._open[0] != key:
            stack.close()
            placement = resolve_placement(config.device, config.dtype, training=False)
            self._open = key, stack.enter_context(cls(config.base, placement))
        return self._open[1]

    def _save(self, cell: Cell, draw: Draw, **origin: Any) -> None:
        """Draw all pictures of a cell; it is finished when `cell.json` is there, which also tells of the origin."""
        try:
            self._draw(cell, draw, origin)
        except ProfusionError as error:
            self._fail([cell], error)

    def _draw(self, cell: Cell, draw: Draw, origin: Mapping[str, Any]) -> None:
        started = time.perf_counter()
        (cell.folder / CELL_FILE).unlink(missing_ok=True)
        for left in cell.folder.glob("*.png"):
            left.unlink()
        pictures = []
        jobs = self._jobs(cell.method, cell.number, cell.config)
        for text, group in groupby(jobs, lambda job: job[0]):
            indices = [index for _, index in group]
            for index, image in zip(indices, draw(text, indices), strict=True):
                name = f"{re.sub(r'[^A-Za-z0-9]+', '-', text).strip('-')[:60]}-{index}.png"
                with atomic_output(cell.folder / name, force=True) as file:
                    image.save(file, "PNG")
                pictures.append({"prompt": text, "index": index, "file": name})
        seconds = round(time.perf_counter() - started, 2)
        record = {"mark": cell.mark, "method": cell.method.name, "subject": cell.subject.name, "seconds": seconds}
        record["precision"] = _precision(cell.method, cell.config)
        write_json(cell.folder / CELL_FILE, {**record, **origin, "pictures": pictures})

    def _drawn(self, cell: Cell, text: str, indices: Sequence[int]) -> list[Image.Image]:
        return [drawn(cell.subject.seed, self.study.asks(text), index) for index in indices]

    def bundle(self, cell: Cell, subject: Subject) -> Path:
        """The bundle of a subject under a cell's method, by the ordinary commands."""
        photo = photo_file(subject, cell.method.photo, self.folder / "photos")
        unused = ("preset", "sample", "pretrain")
        config = _config_of(self.study.config(cell.method), subject)
        settings = {key: value for key, value in config.as_dict().items() if key not in unused}
        settings["dtype"] = resolve_dtype(config.device, config.dtype, training=config.finetune.steps > 0)
        known = [self._photo_mark(subject, cell.method), self._weights(cell.method, config)]
        if cell.method.pretrain:
            settings["promptnet"] |= {"weights": str(self._promptnet(cell.method)), "sha256": None, "note": ""}
        source, flags = photo, ["--no-augment"]
        if cell.method.augment and cell.config.finetune.steps > 0:
            chosen = {key: settings[key] for key in ("augment", "class_word", "base", "seed", "device")}
            if settings["augment"]["inpaint"]:
                chosen["dtype"] = resolve_dtype(config.device, config.dtype, training=False)
            source, flags = self._command("augment", subject, known, photo, chosen), []
        return self._command("finetune", subject, known, source, settings, *flags)

    def _promptnet(self, method: Method) -> Path:
        """The PromptNet that a method pre-trains for itself, once for all subjects; it goes on where it was cut off."""
        config = self.study.config(method)
        folder, target = self.folder / "promptnets", self._promptnet_file(method)
        if target.exists():
            return target
        if target in self._untrained:
            raise self._untrained[target]
        listing = self.study.pretrain_on
        if isinstance(listing, int):
            listing = draw_portraits(folder / f"portraits-{listing}", listing, SIDE)
        work = target.with_suffix(".work")
        flags = ["--work", str(work), "--cache", str(folder / "cache"), "--dtype", config.dtype]
        flags += ["--device", config.device]
        flags += ["--resume"] if any(work.glob("checkpoint-*")) else ["--force"]
        settings = {key: value for key, value in config.as_dict().items() if key in PRETRAINING}
        try:
            self._run("pretrain", str(listing), target, settings, *flags)
        except CommandError as error:
            self._untrained[target] = error
            raise
        return target

    def _promptnet_file(self, method: Method) -> Path:
        return self.folder / "promptnets" / f"{digest(self._pretraining(method))}.pfz"

    def _command(
        self, command: str, subject: Subject, known: Any, source: Path, settings: Mapping[str, Any], *flags: str
    ) -> Path:
        """What a command makes of a source, from the disk where it was made before of what is `known`."""
        name = f"{slug(subject.name)}-{digest([command, known, settings, flags])}.pfz"
        places = [self.folder / folder / command / name for folder in (KEPT, UNKEPT)]
        target = next((place for place in places if place.exists()), places[0 if self.keep_bundles else 1])
        if not target.exists():
            self._run(command, str(source), target, settings, "--force", *flags)
        return target

    def _run(self, command: str, source: str, target: Path, settings: Mapping[str, Any], *flags: str) -> None:
        from profusion_cli.app import app

        given = [f"--set={key}={json.dumps(value)}" for key, value in flat(settings).items()]
        arguments = [command, source, "-o", str(target), "--preset", self.study.preset, "-q", *given]
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):  # standard output is the results'
            code = app([*arguments, *flags], standalone_mode=False)
        if code in (130, 143):  # the command has said that it was interrupted
            raise typer.Exit(code)
        if code:
            raise CommandError(command, code)

    def judge(self, cells: Sequence[Cell]) -> None:
        """Have every metric judge what it has not judged yet; one that cannot is told of, and the others go on."""
        finished = [cell for cell in cells if cell.made is not None]
        while self.metrics:
            metric, options = self.metrics.pop(0)  # so that its model is let go before the next is loaded
            todo = [cell for cell in finished if self._scores(cell, metric.name) is None]
            try:
                with self.output.progress(f"Judging: {metric.name}", len(todo)) as step:
                    for number, cell in enumerate(todo):
                        found = self._judge(cell, metric)
                        if number == 0:  # a library may have fetched the weights only now
                            self.marks[metric.name] = self._metric_mark(metric, options)
                        write_json(self._score_file(cell, metric.name), {**found, "mark": self.marks[metric.name]})
                        step(number + 1)
            except UnavailableError as error:
                self.missing[metric.name] = f"{error.message} {error.hint}"
                self.output.warn(f"{metric.name}: {self.missing[metric.name]}")

    def _score_file(self, cell: Cell, metric: str) -> Path:
        return cell.folder / f"scores-{slug(metric)}.json"

    def _scores(self, cell: Cell, metric: str) -> list[dict[str, float | None]] | None:
        record, marks = read_json(self._score_file(cell, metric)), [cell.mark, self.marks[metric]]
        return record["scores"] if record is not None and [record["cell"], record["mark"]] == marks else None

    def _judge(self, cell: Cell, metric: Metric) -> dict[str, Any]:
        """A cell's scores, and what it took."""
        started = time.perf_counter()
        photos = {"": photo_of(cell.subject, cell.config)}
        if cell.method.kind == TWO:
            photos[SECOND] = photo_of(self._next(cell.number), cell.config)
        scores: list[dict[str, float | None]] = [{} for _ in cell.made["pictures"]]
        for prefix, photo in photos.items():
            for found, new in zip(scores, metric.score(self._judged(cell, photo)), strict=True):
                found |= {prefix + column: value for column, value in new.items()}
        seconds = round(time.perf_counter() - started, 2)
        return {"cell": cell.mark, "seconds": seconds, "scores": scores}

    def _judged(self, cell: Cell, photo: Image.Image) -> list[Judged]:
        judged, words = [], present_words(self._subjects_of(cell)[1], _weights_of(cell.method))
        for picture in cell.made["pictures"]:
            with Image.open(cell.folder / picture["file"]) as image:
                text = parse_prompt(picture["prompt"], subjects=len(words)).twin(words)
                judged.append(Judged(image.convert("RGB"), photo, text, self.study.asks(picture["prompt"])))
        return judged

    def seconds(self, cells: Sequence[Cell]) -> dict[str, float]:
        """What the finished cells took: their pictures without fine-tuning, and each metric."""
        finished = [cell for cell in cells if cell.made is not None]
        spent = {"pictures": sum(cell.made["seconds"] for cell in finished)}
        for name in self.marks:
            records = [read_json(self._score_file(cell, name)) for cell in finished]
            spent[name] = sum(record["seconds"] for record in records if record is not None)
        return {name: round(value, 2) for name, value in spent.items()}

    def results(self, cells: Sequence[Cell]) -> list[dict[str, Any]]:
        """Every picture of these cells that is finished, with its scores."""
        rows = []
        for cell in cells:
            if cell.made is None:
                continue
            scores = [self._scores(cell, name) for name in self.marks]
            for number, picture in enumerate(cell.made["pictures"]):
                values: dict[str, float | None] = {}
                for judged in scores:
                    values |= judged[number] if judged is not None else {}
                rows.append(
                    {
                        "method": cell.method.name,
                        "family": cell.method.family,
                        "subject": cell.subject.name,
                        "prompt": picture["prompt"],
                        "reconstruction": is_reconstruction(picture["index"]),
                        "index": picture["index"],
                        "file": os.path.relpath(cell.folder / picture["file"], self.folder),
                        "scores": values,
                    }
                )
        return rows


class Studio:
    """Draws one subject, or two together, under many sampling settings without loading anything twice."""

    def __init__(self, base: BaseModel, bundles: Sequence[Path], class_words: Sequence[str], config: Config) -> None:
        opened = [read_bundle(path.read_bytes(), path.name) for path in bundles]
        self.base, self.sha256 = opened[0].manifest["base"], [bundle.sha256 for bundle in opened]
        self.class_words, self.weights = class_words, ()
        concept = [parse_prompt(config.concept_prompt, subjects=len(bundles))]
        self.sampler = Sampler(base, opened, class_words, concept, config)

    def draw(self, config: Config, weights: tuple[float, ...], text: str, indices: Sequence[int]) -> list[Image.Image]:
        """Pictures j of a prompt; each has the noise of seed + j. The weights are the subjects', and sum to 1."""
        if weights != self.weights:
            self.sampler.weigh(weights)
            self.weights = weights
        self.sampler.settings = config.sample
        self.sampler.timesteps = self.sampler.base.timesteps(config.sample.steps)
        prompt = parse_prompt(text, subjects=len(weights))
        tokens = self.sampler.tokenize(prompt, present_words(self.class_words, weights))
        scales = tuple(config.sample.subject_guidance[0] * weight for weight in weights)
        size, images = config.sample.batch_size, []
        for first in range(0, len(indices), size):
            images += self.sampler.draw_batch(tokens, scales, indices[first : first + size], lambda _: None)
        return images


def _draw_text(model: TextToImage, cell: Cell, text: str, indices: Sequence[int]) -> list[Image.Image]:
    """The base model alone, with the class word for S*, at the method's text guidance."""
    settings = cell.config.sample
    words = cell.subject.description if cell.method.kind == DESCRIBED else cell.config.class_word
    prompt = parse_prompt(text).twin([words])
    return model.draw(prompt, indices, settings, settings.text_guidance, cell.config.seed)


def _config_of(config: Config, subject: Subject) -> Config:
    """A method's configuration for one subject: what it is may be its own."""
    return replace(config, class_word=subject.class_word or config.class_word)


def _precision(method: Method, config: Config) -> str:
    """In what pictures are drawn on this machine, and in what subjects are made where that is something else."""
    trained = method.kind in (SUBJECT, TWO) and config.finetune.steps > 0
    chosen = [resolve_dtype(config.device, config.dtype, training) for training in (False, trained)]
    return "/".join(dict.fromkeys(chosen))


def _made_on(model: BaseModel) -> dict[str, str]:
    return {"device": str(model.placement.device), "dtype": str(model.placement.dtype)}


def _weights_of(method: Method) -> tuple[float, ...]:
    """The subjects' weights, which sum to 1."""
    return (1.0 - method.share, method.share) if method.kind == TWO else (1.0,)


def _view(cell: Cell) -> str:
    """What is fixed when a subject is loaded for sampling."""
    sample = cell.config.sample
    return digest([sample.width, sample.height, sample.reference])


def _bundle_key(cell: Cell) -> str:
    """What the bundle of a cell depends on beside its subject."""
    if cell.method.kind not in (SUBJECT, TWO):
        return ""
    settings = {key: value for key, value in cell.config.as_dict().items() if key != "sample"}
    return digest([cell.method.augment, dict(cell.method.photo), dict(cell.method.pretrain), settings])


def comparison_of(folder: Path) -> tuple[Study, list[Entry], int, int]:
    """The study of a run, its finished pictures for people to compare, the seed, and how many cells are unfinished.

    Raises:
        InputError: no run.
        ConfigError: a study that names no methods to compare.
    """
    path = folder / STUDY_FILE
    if not path.is_file():
        raise InputError(f"'{folder}' holds no run.", "Make one with `profusion evaluate STUDY -o DIR`.")
    study = read_study(str(path))
    if study.pairs is None:
        raise ConfigError(
            f"The study in '{folder}' names no methods to compare.", "Add `pairs: {ours: ..., others: [...]}` to it."
        )
    run = Run(folder, replace(study, metrics={}, outputs={}), elsewhere=True)
    chosen = [method for method in study.methods if method.name in (study.pairs.ours, *study.pairs.others)]
    entries, unfinished = [], 0
    for cell in run.cells(chosen):
        unfinished += cell.made is None
        photo = photo_file(cell.subject, {}, folder / "photos")
        for picture in cell.made["pictures"] if cell.made is not None else ():
            if is_reconstruction(picture["index"]):
                continue
            file = cell.folder / picture["file"]
            prompt = parse_prompt(picture["prompt"]).twin([f"this {class_noun(cell.config.class_word)}"])
            entries.append(Entry(cell.method.name, cell.subject.name, prompt, picture["index"], file, photo))
    return study, entries, study.config(chosen[0]).seed, unfinished
