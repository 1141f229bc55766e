"""Making the pictures of cells; what is finished is never done again."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from itertools import groupby
from typing import Any

from PIL import Image

from profusion_cli.config import Config
from profusion_cli.console import Output
from profusion_cli.errors import OutputError, ProfusionError, UnavailableError
from profusion_cli.evaluation.cells import jobs, work
from profusion_cli.evaluation.cells.bundles import Bundles, bundle_key
from profusion_cli.evaluation.cells.cell import Cell
from profusion_cli.evaluation.cells.marks import precision_of
from profusion_cli.evaluation.cells.studio import Studio, draw_text, draw_world
from profusion_cli.evaluation.cells.work import Meter
from profusion_cli.evaluation.folder import CELL_FILE, words_of
from profusion_cli.evaluation.study.schema import BASE, DESCRIBED, DRAWN, SUBJECT, TWO, Method, Study, digest
from profusion_cli.files import atomic_output, write_json
from profusion_cli.images.marks import TRAINED, made_by, png_info
from profusion_cli.pace import clock
from profusion_cli.runtime.backbone import BaseModel, quiet_libraries
from profusion_cli.runtime.device import compiling, repeatable, resolve_placement
from profusion_cli.runtime.pipelines import TextToImage

KIND_ORDER = (DRAWN, BASE, DESCRIBED, SUBJECT, TWO)
Draw = Callable[[str, Sequence[int], Callable[[float], None]], list[Image.Image]]
"""Of a prompt, the pictures of these numbers; what it calls hears of the share that is done."""


class Maker:
    """Makes the pictures of cells.

    Args:
        study: see above.
        bundles: that cells draw from.
        output: where progress goes.
        share: see `Processes`.
    """

    def __init__(self, study: Study, bundles: Bundles, output: Output, share: str = "") -> None:
        self.study, self.bundles, self.output, self.share = study, bundles, output, share
        self.failed: list[dict[str, Any]] = []
        """What is to be told of the cells that failed."""
        self._unavailable: dict[str, ProfusionError] = {}
        self._open: tuple[Any, BaseModel] | None = None
        self._needed_twice = False
        self._meter = Meter(lambda done, remark="": None, 0.0)

    def make(self, cells: Sequence[Cell], needed_twice: bool) -> None:
        """Make the pictures of all cells that have none yet.

        A cell that fails is told of and left out, and made when the study is run again. Where a model or a library
        cannot be had, the method is not tried again for every subject.

        Args:
            cells: see above.
            needed_twice: bundles stay when their pictures are made; see `needs_twice`.

        Raises:
            OutputError: nothing more can be written.
        """
        groups = _groups(cells)
        wanted = [cell for group in groups for cell in group]
        self._needed_twice = needed_twice
        plan, done = self._plan(groups), 0
        total = plan[-1] if plan else 0.0
        with (
            self.output.progress(f"Making{self.share}", total, counted=False) as step,
            ExitStack() as stack,
            quiet_libraries(),
        ):
            meter = self._meter = Meter(step, total)
            for members, reached in zip(groups, plan, strict=True):
                meter.at(f"cell {done + 1} of {len(wanted)}: {members[0].method.name}, {members[0].subject.name}")
                self._try_group(members, stack)
                meter.reach(reached)
                done += len(members)
                if not self.output.stderr.is_terminal:
                    left = meter.left()
                    last = f"{members[-1].subject.name}, {members[-1].method.name}"
                    then = "." if left is None else f"; {clock(left)} left."
                    self.output.note(f"{done} of {len(wanted)} cells{self.share}: {last}{then}")
        self._open = None

    def pretrain(self, methods: Sequence[Method]) -> None:
        """Make the PromptNets of methods; why one cannot be made is told of each of its cells."""
        works = [sum(work.pretraining(self.study.config(method))) for method in methods]
        with self.output.progress(f"Pre-training{self.share}", sum(works), counted=False) as step:
            meter = Meter(step, sum(works))
            for method in methods:
                meter.at(method.name)
                with suppress(ProfusionError):  # it is remembered
                    self.bundles.promptnet(method, meter)

    def hear(self, failed: Sequence[Mapping[str, Any]]) -> None:
        """Take over what another process says in `failed`."""
        for told in failed:
            self._tell(told)

    def _plan(self, groups: Sequence[Sequence[Cell]]) -> list[float]:
        """How much work is done when each group is; what several of them need counts for the first."""
        known: set[object] = set()

        def once(key: object, amount: float) -> float:
            fresh = key not in known
            known.add(key)
            return amount * fresh

        total, plan = 0.0, []
        for cells in groups:
            first, method = cells[0], cells[0].method
            if method.pretrain and not (file := self.bundles.promptnet_file(method)).exists():
                total += once(file, sum(work.pretraining(first.config)))
            if method.kind in (SUBJECT, TWO):
                amount = jobs.work_of_subject(first.config, augmented=method.augment)
                total += sum(once((subject.name, bundle_key(first)), amount) for subject in first.subjects)
            total += sum(map(work.drawing, cells))
            plan.append(total)
        return plan

    def _try_group(self, cells: Sequence[Cell], stack: ExitStack) -> None:
        """Make the cells of a group, but for those of methods that cannot be had."""
        lost = [cell for cell in cells if cell.method.name in self._unavailable]
        for cell in lost:
            self._fail([cell], self._unavailable[cell.method.name])
        possible = [cell for cell in cells if cell not in lost]
        try:
            if possible:
                self._make_group(possible, stack)
        except ProfusionError as error:
            self._fail(possible, error)

    def _fail(self, cells: Sequence[Cell], error: ProfusionError) -> None:
        if error.exit_code == OutputError.exit_code:
            raise error
        for cell in cells:
            if error.exit_code == UnavailableError.exit_code:
                self._unavailable[cell.method.name] = error
            told = {"method": cell.method.name, "subject": cell.subject.name, "error": error.message}
            self._tell({**told, "hint": error.hint, "exit_code": error.exit_code})

    def _tell(self, failed: Mapping[str, Any]) -> None:
        self.output.warn("{method}, {subject}: {error} {hint}".format(**failed).rstrip())
        self.failed.append(dict(failed))

    def _make_group(self, cells: Sequence[Cell], stack: ExitStack) -> None:
        """Cells of one kind and subject that draw from the same bundle."""
        kind = cells[0].method.kind
        if kind == DRAWN:
            for cell in cells:
                self._save(cell, partial(draw_world, self.study, cell))
        elif kind in (BASE, DESCRIBED):
            for cell in cells:
                model = self._model(TextToImage, cell.config, stack)
                self._save(cell, partial(draw_text, model, cell), **_made_on(model))
        else:
            self._make_subjects(cells, self._model(BaseModel, cells[0].config, stack))

    def _make_subjects(self, cells: Sequence[Cell], base: BaseModel) -> None:
        """Cells that draw from the same bundles."""
        base.release("unet")  # the last subject's changes are in it, and fine-tuning wants the memory
        bundles = self.bundles.of(cells[0], self._meter)
        for _, alike in groupby(sorted(cells, key=_view), key=_view):
            members = list(alike)
            base.release("unet")
            try:
                studio = Studio(base, bundles, members[0].class_words, members[0].config)
            except ProfusionError as error:
                self._fail(members, error)
                continue
            for cell in members:
                draw = partial(studio.draw, cell.config, cell.weights)
                self._save(cell, draw, base=studio.base, bundles=studio.sha256, **_made_on(base))
        if not self._needed_twice:
            self.bundles.let_go(bundles)

    def _model(self, cls: type[BaseModel], config: Config, stack: ExitStack) -> Any:
        """The base model, loaded once for all cells that use it in the same way."""
        key = (cls, config.base, config.device, config.dtype, config.deterministic)
        if self._open is None or self._open[0] != key:
            stack.close()
            stack.enter_context(repeatable(config.deterministic))
            placement = resolve_placement(config.device, config.dtype, training=False)
            self._open = key, stack.enter_context(cls(config.base, placement))
        return self._open[1]

    def _save(self, cell: Cell, draw: Draw, **origin: Any) -> None:
        """Draw all pictures of a cell; a failure is told of."""
        try:
            with self._meter.part(work.drawing(cell)) as share, compiling(cell.config.compile):
                save_pictures(cell, draw, origin, share)
        except ProfusionError as error:
            self._fail([cell], error)


def needs_twice(cells: Sequence[Cell]) -> bool:
    """Whether bundles are needed again for pictures of two subjects, when those of one are made."""
    return any(cell.method.kind == TWO and cell.made is None for cell in cells)


def _groups(cells: Sequence[Cell]) -> list[list[Cell]]:
    """Those of the cells that are to be made, in order; those of one kind and subject that draw from one bundle."""
    wanted = [cell for cell in cells if cell.made is None]
    keys = {cell.folder: bundle_key(cell) for cell in wanted}
    order = {key: number for number, key in enumerate(dict.fromkeys(keys.values()))}
    wanted.sort(key=lambda cell: (KIND_ORDER.index(cell.method.kind), cell.number, order[keys[cell.folder]]))
    grouped = groupby(wanted, lambda cell: (cell.method.kind, cell.number, keys[cell.folder]))
    return [list(group) for _, group in grouped]


def save_pictures(cell: Cell, draw: Draw, origin: Mapping[str, Any], progress: Callable[[float], None]) -> None:
    """Draw all pictures of a cell; it is finished when `cell.json` is there, which also tells of the origin.

    Args:
        cell: see above.
        draw: draws those of one prompt.
        origin: for `cell.json`.
        progress: called with the share that is done.
    """
    started = time.perf_counter()
    (cell.folder / CELL_FILE).unlink(missing_ok=True)
    for left in cell.folder.glob("*.png"):
        left.unlink()
    pictures, mark = [], {} if cell.method.kind == DRAWN else made_by(TRAINED, cell.config.mark)
    for text, group in groupby(cell.jobs, lambda job: job[0]):
        indices = [index for _, index in group]

        def report(share: float, before: int = len(pictures), count: int = len(indices)) -> None:
            progress((before + count * share) / len(cell.jobs))

        for index, image in zip(indices, draw(text, indices, report), strict=True):
            name = f"{words_of(text)}-{index}.png"
            with atomic_output(cell.folder / name, force=True) as file:
                image.save(file, "PNG", pnginfo=png_info(mark))
            pictures.append({"prompt": text, "index": index, "file": name})
    seconds = round(time.perf_counter() - started, 2)
    record = {"mark": cell.mark, "method": cell.method.name, "subject": cell.subject.name, "seconds": seconds}
    record["precision"] = precision_of(cell.method, cell.config)
    write_json(cell.folder / CELL_FILE, {**record, **origin, "pictures": pictures})


def _made_on(model: BaseModel) -> dict[str, str]:
    return {"device": str(model.placement.device), "dtype": str(model.placement.dtype)}


def _view(cell: Cell) -> str:
    """What is fixed when a subject is loaded for sampling."""
    sample = cell.config.sample
    return digest([sample.width, sample.height, sample.reference, sample.references, cell.config.compile])
