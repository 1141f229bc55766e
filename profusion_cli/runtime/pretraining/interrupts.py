"""Interrupts of a training."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

from profusion_cli.errors import Interrupted


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
