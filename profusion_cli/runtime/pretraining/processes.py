"""Interrupts, and the other processes of a training."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import torch

from profusion_cli.errors import DeviceError, Interrupted, first_line


class Interrupts:
    """The first SIGINT or SIGTERM asks to stop after the step; another one stops at once. A context manager.

    Attributes:
        asked: the number of the signal, or 0.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self, tell: bool, processes: int) -> None:
        self.asked = 0
        self._tell, self._processes, self._at = tell, processes, 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in self.SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: object) -> None:
        if self.asked:
            # torchrun passes on an interrupt that the terminal has given to every process already
            if self._processes > 1 and time.monotonic() - self._at < 2:
                return
            raise Interrupted(number)
        self.asked, self._at = number, time.monotonic()
        if self._tell:
            os.write(2, b"Finishing this step and saving a checkpoint; interrupt again to stop at once.\n")


@contextlib.contextmanager
def lost_processes(processes: int) -> Iterator[None]:
    """A process that ends breaks the connections of the others, which is no fault of theirs.

    Raises:
        DeviceError: another process has ended.
    """
    try:
        yield
    except RuntimeError as error:
        lost = processes > 1 and (isinstance(error, torch.distributed.DistError) or "gloo" in str(error))
        if not lost:
            raise
        raise DeviceError(
            f"Another process of this training has ended: {first_line(error)}",
            "Its own message says why; mend that, and go on with --resume.",
        ) from error
