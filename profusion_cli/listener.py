"""Who hears what a job has to say while it works."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

LOGGER = logging.getLogger("profusion")

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
