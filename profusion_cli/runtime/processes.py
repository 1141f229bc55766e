"""The processes that a launcher has started for one command: what they tell one another, and that one may end."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

from profusion_cli.errors import DeviceError, ProfusionError, first_line
from profusion_cli.launcher import local_rank, on_its_own, process_count
from profusion_cli.listener import waiting

LOOK_EVERY = 0.1
"""Seconds."""
Told = TypeVar("Told")


class Processes:
    """The processes of one command, each of which works on its own: for torch and accelerate there are no others.

    What they tell one another lies in the launcher's store. A process that waits looks there again and again, and so
    heeds signals meanwhile; a launcher ends all others as soon as one has failed.

    Args:
        store: of the launcher; None for one process.
        rank: of this process, from 0.
        count: of all.
    """

    def __init__(self, store: torch.distributed.Store | None = None, rank: int = 0, count: int = 1) -> None:
        self.rank, self.count = rank, count
        self._store, self._rounds = store, 0

    @property
    def is_main(self) -> bool:
        """Whether this is the one that speaks for all."""
        return self.rank == 0

    @property
    def share(self) -> str:
        """What is to stand behind the title of a piece of work that the others have pieces of too."""
        return f", process {self.rank + 1} of {self.count}" if self.count > 1 else ""

    def gather(self, own: Told) -> list[Told]:
        """What every process tells here, in the order of their ranks; each waits for all the others.

        Args:
            own: what this one tells; anything that pickles.

        Raises:
            DeviceError: the launcher, or the process that holds the store, has ended.
        """
        if self._store is None:
            return [own]
        self._rounds += 1
        keys = [f"profusion/{self._rounds}/{rank}" for rank in range(self.count)]
        with lost_processes(self.count, "run", "go on with the same command."), waiting("the other processes"):
            self._store.set(keys[self.rank], pickle.dumps(own))
            while not self._store.check(keys):
                time.sleep(LOOK_EVERY)
            return [pickle.loads(self._store.get(key)) for key in keys]

    def agree(self, error: ProfusionError | None = None) -> None:
        """Wait until all are here.

        Args:
            error: what has stopped this process, if anything has.

        Raises:
            ProfusionError: the first of all processes' errors, in each of them.
        """
        stopped = next((told for told in self.gather(error) if told is not None), None)
        if stopped is not None:
            raise stopped

    def first(self, do: Callable[[], object]) -> None:
        """Have the first process do something that the others wait for.

        Raises:
            ProfusionError: what has stopped it, in each of them.
        """
        error = None
        if self.is_main:
            try:
                do()
            except ProfusionError as stopped:
                error = stopped
        self.agree(error)


@contextmanager
def launched(device: torch.device) -> Iterator[Processes]:
    """Connect the processes that a launcher has started for this command; without a launcher there is one.

    Args:
        device: that they work on; of several GPUs each process takes its own, unless one is named.

    Raises:
        DeviceError: the launcher has ended, or its address is missing.
    """
    if process_count() == 1:
        with on_its_own():
            yield Processes()
        return
    if device.type == "cuda" and device.index is None:
        torch.cuda.set_device(local_rank() % torch.cuda.device_count())
    try:
        store, rank, count = next(torch.distributed.rendezvous("env://"))
    except (ValueError, RuntimeError) as error:
        raise DeviceError(
            f"The {process_count()} processes cannot find one another: {first_line(error)}",
            "Start them by torchrun or accelerate launch; for one process, unset WORLD_SIZE.",
        ) from error
    with on_its_own():
        yield Processes(store, rank, count)


@contextmanager
def lost_processes(count: int, what: str = "training", then: str = "go on with --resume.") -> Iterator[None]:
    """A process that ends breaks the connections of the others, which is no fault of theirs.

    Args:
        count: of the processes.
        what: they are doing together.
        then: what to do when that is mended.

    Raises:
        DeviceError: another process has ended.
    """
    try:
        yield
    except RuntimeError as error:
        lost = count > 1 and (isinstance(error, torch.distributed.DistError) or "gloo" in str(error))
        if not lost:
            raise
        raise DeviceError(
            f"Another process of this {what} has ended: {first_line(error)}",
            f"Its own message says why; mend that, and {then}",
        ) from error
