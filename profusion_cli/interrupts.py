"""Ctrl-C and SIGTERM of the program: what was asked for holds, whatever a library makes of the exception.

A `KeyboardInterrupt` that is raised while a library is imported, or inside one of its callbacks, may come out as an
`ImportError`, or not at all. So the handler remembers that it was called, and who could go on asks.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from profusion_cli.launcher import is_first_process

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class _State:
    """Of this process.

    Attributes:
        asked: the number of the first signal, or 0.
        told: the user was told so.
        over: the program has ended, and only Python is still ending.
    """

    asked = 0
    told = False
    over = False


def tell_interrupted(*more: object) -> None:
    """Say on standard error that the command was interrupted, and what there is to say more; one process says it."""
    _State.told = True
    if is_first_process():
        sys.stderr.write(" ".join(["Interrupted.", *map(str, more)]) + "\n")


def stop_if_asked() -> None:
    """End here if a signal has asked for it and a library has swallowed that.

    Raises:
        KeyboardInterrupt: after SIGINT.
        SystemExit: after SIGTERM.
    """
    if _State.asked == signal.SIGINT:
        raise KeyboardInterrupt
    if _State.asked:
        sys.exit(128 + _State.asked)


@contextmanager
def interrupts_as_such() -> Iterator[None]:
    """An error of the block that comes after a signal is that signal, not a fault to tell of.

    Raises:
        KeyboardInterrupt, SystemExit: as `stop_if_asked`.
    """
    try:
        yield
    except Exception:
        stop_if_asked()
        raise


def heed_signals(program: Callable[[], None]) -> None:
    """Run the program. The first SIGINT or SIGTERM ends it with 128 + its number, another one at once.

    A signal that the process was started to ignore stays ignored.
    """
    try:
        atexit.register(_ignore_late_signals)  # registered first, called last
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, _handle)
        program()
        _State.over = True
    except BaseException:
        _State.over = True
        if not _State.asked:
            raise
    if _State.asked:
        if _State.asked == signal.SIGINT and not _State.told:
            tell_interrupted()
        with suppress(OSError, ValueError, AttributeError):  # closed, or nobody reads it any more
            sys.stdout.flush()
        os._exit(128 + _State.asked)  # Python's own end might hang or crash in libraries that are half loaded


def _handle(number: int, _: FrameType | None) -> None:
    if _State.asked or _State.over:
        os._exit(128 + number)
    _State.asked = number
    stop_if_asked()


def _ignore_late_signals() -> None:
    """Python takes handlers away before it unloads libraries, which takes a while: a signal would kill it then."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
