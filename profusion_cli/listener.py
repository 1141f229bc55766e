"""Who hears what a job has to say while it works."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

LOGGER = logging.getLogger("profusion")

PATIENCE = 1.0
"""Seconds that something is waited for without a word."""

LIBRARIES = "Loading the libraries"

Progress = Callable[..., None]
"""Called with the number of units done, and a short remark if there is one."""


class Listener:
    """Hands notes and warnings to the logger `profusion`, and shows no progress; commands show both on the terminal.

    Attributes:
        quiet: nothing of this is wanted.
    """

    quiet = False

    def note(self, text: str) -> None:
        """Something good to know."""
        LOGGER.info(text)

    def warn(self, text: str) -> None:
        """Something that may not be what the user wants."""
        LOGGER.warning(text)

    @contextmanager
    def working(self, title: str) -> Iterator[None]:
        """Something without steps, such as loading, while the block runs."""
        yield

    @contextmanager
    def progress(self, title: str, total: float, counted: bool = True) -> Iterator[Progress]:
        """A piece of work of `total` units, while the block runs; units that mean nothing to people are not counted."""
        yield lambda done, remark="": None


LOGGED = Listener()

_hears: ContextVar[Listener] = ContextVar("hears", default=LOGGED)


@contextmanager
def hearing(listener: Listener) -> Iterator[None]:
    """Who hears, while the block runs, of what happens too deep inside to be handed a listener, such as downloads."""
    token = _hears.set(listener)
    try:
        yield
    finally:
        _hears.reset(token)


def who_hears() -> Listener:
    """See `hearing`; else the logger."""
    return _hears.get()


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Say what is waited for, where the block takes longer than a second."""
    timer = threading.Timer(PATIENCE, who_hears().note, (f"Waiting for {what}.",))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
