"""The steps of a training, with its checkpoints, log and sample sheets."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from accelerate import Accelerator

from profusion_cli.costs import millions
from profusion_cli.errors import DeviceError, InputError, Interrupted, OutputError
from profusion_cli.listener import Listener
from profusion_cli.pace import Smoothed, clock
from profusion_cli.runtime.fitting import REPEATED, Step, Tensors, fit
from profusion_cli.runtime.pretraining.batches import Chance
from profusion_cli.runtime.pretraining.checkpoints import save_checkpoint
from profusion_cli.runtime.pretraining.interrupts import Interrupts
from profusion_cli.runtime.pretraining.log import Log
from profusion_cli.runtime.pretraining.sheet import draw_sheet
from profusion_cli.runtime.pretraining.sources import Pictures
from profusion_cli.runtime.pretraining.stream import lost_readers
from profusion_cli.runtime.pretraining.trainer import Trainer, warmed_up
from profusion_cli.runtime.processes import lost_processes

SILENCE = 600.0
"""Seconds after which a line tells how far it is, where no checkpoint has."""


class Saving:
    """Checkpoints of a training, by the main process alone, each state once.

    Args:
        trainer: what is saved.
        work: the folder.
    """

    def __init__(self, trainer: Trainer, work: Path) -> None:
        self.trainer, self.work = trainer, work
        self.saved = trainer.start

    def __call__(self, number: int) -> None:
        """Save the state after step `number`.

        Raises:
            OutputError: it cannot be written.
        """
        trainer = self.trainer
        if trainer.accelerator.is_main_process and number > self.saved:
            save_checkpoint(self.work, trainer.checkpoint(number), trainer.config.pretrain.keep_checkpoints)
            self.saved = number


def steps_of(trainer: Trainer, batches: Callable[[int], Tensors], work: Path) -> Iterator[Step]:
    """The optimiser steps that are left, each taken into the average."""
    own = trainer.config.pretrain
    for step in fit(
        trainer.accelerator,
        trainer.objective,
        trainer.optimizer,
        batches,
        own.batch_size,
        own.steps,
        own.max_grad_norm,
        start=trainer.start,
        learning_rate=lambda number: warmed_up(own, number),
        kept=f"the checkpoints in '{work}' are kept",
    ):
        if trainer.average is not None:
            trainer.average.update(trainer.promptnet, step.number)
        yield step


def asked_to_stop(accelerator: Accelerator, interrupts: Interrupts) -> int:
    """The number of a signal that any of the processes was given, or 0."""
    if accelerator.num_processes == 1:
        return interrupts.asked
    return int(accelerator.gather(torch.tensor([interrupts.asked], device=accelerator.device)).max())


def train(
    trainer: Trainer, pictures: Pictures, batches: Callable[[int], Tensors], work: Path, listener: Listener
) -> Iterator[tuple[Step, float]]:
    """Every step that is left, with checkpoints, log and sample sheets; yields steps and samples per second.

    Raises:
        Interrupted: a signal; the checkpoint is saved.
        DivergedError: a loss that is not finite; the last checkpoint is kept.
        OutputError, InputError, DeviceError: disk full, pictures gone, or another process has ended; the state so
            far is saved if it can be.
    """
    own, accelerator = trainer.config.pretrain, trainer.accelerator
    main = accelerator.is_main_process
    log = Log(work, trainer.start) if main else None
    save = Saving(trainer, work)
    number, before = trainer.start, time.perf_counter()
    with Interrupts(main and not listener.quiet, accelerator.num_processes) as interrupts:
        try:
            with lost_processes(accelerator.num_processes), lost_readers():
                for step in steps_of(trainer, batches, work):
                    number = step.number
                    rate = own.batch_size / max(time.perf_counter() - before, 1e-9)
                    if log is not None:
                        log.write(step, rate)
                    asked = asked_to_stop(accelerator, interrupts)
                    if asked or number % own.checkpoint_every == 0 or number == own.steps:
                        save(number)
                    if asked:
                        accelerator.wait_for_everyone()  # a launcher ends all as soon as one has ended
                        raise Interrupted(asked, f"A checkpoint of step {number} is in '{work}': go on with --resume.")
                    if log is not None and own.sample_every and number % own.sample_every == 0:
                        log.picture(number, draw_sheet(trainer, pictures, number))
                    yield step, rate
                    before = time.perf_counter()
        except (OutputError, InputError, DeviceError):
            with contextlib.suppress(OutputError):
                save(number)
            raise
        finally:
            if log is not None:
                log.close()


def run_steps(trainer: Trainer, pictures: Pictures, work: Path, listener: Listener) -> tuple[Step, float] | None:
    """The loop with its progress; the last step and the samples per second."""
    config, accelerator = trainer.config, trainer.accelerator
    own, rank, processes = config.pretrain, accelerator.process_index, accelerator.num_processes
    bounds = [own.batch_size * i // processes for i in range(processes + 1)]
    share = slice(bounds[rank], bounds[rank + 1])
    cost = pictures.cost()
    listener.note(f"{own.steps:,} steps take {cost}")
    last = None
    chance = Chance(trainer.base, own.batch_size, config.seed, trainer.latent_shape, share)
    batches = pictures.batches(chance, trainer.start)
    with listener.progress("Pre-training", own.steps) as progress:
        progress(trainer.start, "")
        begun, first, smoothed = time.perf_counter(), trainer.start, Smoothed()
        told = begun
        for step, rate in train(trainer, pictures, batches, work, listener):
            loss = smoothed(step.loss)
            spent = f"{millions(cost.after(step.number * own.batch_size))} of {millions(cost.units)} U"
            progress(step.number, f"loss {loss:.3f}, {rate:.1f} samples/s, {spent}")
            if step.repeated:
                listener.note(f"Step {step.number}: {REPEATED}")
            now = time.perf_counter()
            last = (step, (step.number - first) * own.batch_size / (now - begun))
            if step.number % own.checkpoint_every == 0 or now - told > SILENCE:
                left, told = (own.steps - step.number) * own.batch_size / last[1], now
                listener.note(
                    f"Step {step.number} of {own.steps}: loss {loss:.4f}, {last[1]:.1f} samples/s, {clock(left)} left; "
                    f"{spent}."
                )
    return last
