"""How much work cells are, in evaluations of the UNet on one picture; and how far a run is, step by step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from profusion_cli.config import Config
from profusion_cli.console import Output
from profusion_cli.evaluation.cells.cell import Cell
from profusion_cli.evaluation.study.schema import BASE, DESCRIBED, DRAWN
from profusion_cli.listener import Progress
from profusion_cli.methods import is_word_method
from profusion_cli.pace import Pace
from profusion_cli.plans import Cost, asked_of, cost_of, plan_of

PLAIN = 2
"""Evaluations in a step of plain guidance: with and without the text."""
TRAINING = 3
"""A training step in evaluations: forwards, and twice as much backwards."""


def picture_cost(cell: Cell) -> Cost:
    """Of one picture of a cell; the face world's renderer does without networks."""
    kind, config = cell.method.kind, cell.config
    if kind == DRAWN:
        return Cost(0, 0, 0)
    if kind in (BASE, DESCRIBED):
        return Cost(PLAIN * config.sample.steps, 0, 0)
    learned = not is_word_method(config.finetune.method)
    return cost_of(plan_of(config), asked_of(config.sample, cell.weights), learned)


def drawing(cell: Cell) -> int:
    """Of the pictures of a cell."""
    return len(cell.jobs) * picture_cost(cell).unet


def views(config: Config) -> int:
    """Of the augmentation of a photo."""
    own = config.augment
    return own.views * own.steps * PLAIN if own.inpaint else 0


def tuning(config: Config) -> tuple[int, ...]:
    """Of a fine-tuning: its pictures of the class where it has any, and its steps."""
    own = config.finetune
    steps = own.steps * own.batch_size * TRAINING
    if not is_word_method(own.method) or own.prior_pictures == 0:
        return (steps,)
    return own.prior_pictures * config.sample.steps * PLAIN, 2 * steps  # a batch holds as many of the class


def pretraining(config: Config) -> tuple[int, int, int]:
    """Of a pre-training: reading and encoding its pictures, which count for nothing, and its steps."""
    own = config.pretrain
    return 0, 0, own.steps * own.batch_size * TRAINING


class Meter:
    """How far a run is.

    Args:
        step: shows it.
        total: all of its work.
    """

    def __init__(self, step: Progress, total: float) -> None:
        self.done, self.remark = 0.0, ""
        self._step, self._pace = step, Pace(total)
        self.reach(0.0)

    def at(self, remark: str) -> None:
        """What is being done now."""
        self.remark = remark
        self.reach(self.done)

    def reach(self, done: float) -> None:
        """So much work is done by now."""
        self.done = done
        self._pace.report(done, time.monotonic())
        self._step(done, self.remark)

    def left(self) -> float | None:
        """Seconds that the rest will take; None: not known yet."""
        return self._pace.left(time.monotonic())

    @contextmanager
    def part(self, work: float) -> Iterator[Callable[[float], None]]:
        """A piece of so much work; call with the share that is done, from 0 to 1."""
        before = self.done
        yield lambda share: self.reach(before + work * share)
        self.reach(before + work)


class Within(Output):
    """Of a job within a run only how far it is is heard of.

    Args:
        meter: of the run.
        works: of the job's pieces that show their progress, in order.
    """

    def __init__(self, meter: Meter, works: Sequence[float]) -> None:
        super().__init__(quiet=True)
        self._meter, self._works = meter, iter(works)

    @contextmanager
    def progress(self, title: str, total: float, counted: bool = True) -> Iterator[Progress]:
        """The next of the pieces."""
        with self._meter.part(next(self._works, 0.0)) as share:
            yield lambda done, remark="": share(done / total)
