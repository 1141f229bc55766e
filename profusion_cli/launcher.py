"""What a launcher (torchrun, accelerate launch) tells the processes that it starts, in their environment."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

RANK, COUNT, LOCAL_RANK = "RANK", "WORLD_SIZE", "LOCAL_RANK"
VARIABLES = (RANK, COUNT, LOCAL_RANK, "LOCAL_WORLD_SIZE")


def process_count() -> int:
    """How many processes work on one command; 1 without a launcher."""
    return int(os.environ.get(COUNT, "1"))


def is_main_process() -> bool:
    """Whether this is the only process, or the first of all."""
    return os.environ.get(RANK, "0") == "0"


def is_first_process() -> bool:
    """Whether this is the only process, or the first of its machine."""
    return local_rank() == 0


def local_rank() -> int:
    """The number of this process on its machine, from 0."""
    return int(os.environ.get(LOCAL_RANK, "0"))


@contextmanager
def on_its_own() -> Iterator[None]:
    """Libraries in the block see no launcher, so that what one process trains is not averaged with another's."""
    before = {name: os.environ.pop(name) for name in VARIABLES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(before)
