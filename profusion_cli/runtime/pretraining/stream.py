"""Pictures out of tar shards, read one after another by processes of their own, and the batches of them."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from profusion_cli.errors import DeviceError, InputError, first_line
from profusion_cli.images import crop_square, decode_photo
from profusion_cli.listener import Listener
from profusion_cli.runtime.backbone import BaseModel
from profusion_cli.runtime.pretraining.batches import NAMED_UNREADABLE, Chance
from profusion_cli.runtime.pretraining.encodings import encode_squares, views_of
from profusion_cli.runtime.training import Batch
from profusion_cli.shards import Member, Shards, read_shard

MIXED = 1000
"""Pictures of which the next one is drawn, in each process that reads, as they are in the shards."""
AHEAD = 64
"""Pictures that such a process has decoded beforehand."""


@dataclass(frozen=True)
class Streamed:
    """What comes out of shards: a picture, or a problem; nothing of both: a round without a single picture.

    Args:
        name: of the picture, or of its shard.
        image: an RGB square.
        problem: why there is none.
    """

    name: str = ""
    image: Image.Image | None = None
    problem: str = ""


class ShardStream(IterableDataset):
    """Pictures without end, in another order in each round.

    In every round the shards are shuffled and shared out over all processes that read; each draws its pictures from
    those that it has read last. Nothing remembers which pictures have been read: one that starts later starts anew.

    Args:
        shards: as many as processes that read, or more.
        resolution: side of the pictures, in pixels.
        seed: of the order: of the training, and the step that it begins at.
        rank, processes: of the training.
    """

    def __init__(self, shards: Shards, resolution: int, seed: tuple[int, int], rank: int, processes: int) -> None:
        super().__init__()
        self.shards, self.resolution, self.seed = shards, resolution, seed
        self.rank, self.processes = rank, processes

    def __iter__(self) -> Iterator[Streamed]:
        worker = get_worker_info()
        number, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        share, shares = self.rank * workers + number, self.processes * workers
        for turn in count():
            paths = list(self.shards.paths)
            random.Random(f"{self.seed} {turn}").shuffle(paths)
            found = False
            for one in self._pictures(paths[share::shares], random.Random(f"{self.seed} {turn} {share}")):
                found |= one.image is not None
                yield one
            if not found:
                yield Streamed()

    def _pictures(self, paths: list[str], chance: random.Random) -> Iterator[Streamed]:
        from webdataset.filters import shuffle

        members = (member for path in paths for member in read_shard(path))
        for member in shuffle(MIXED, rng=chance)(members):
            yield decoded(member, self.resolution)


def decoded(member: Member, resolution: int) -> Streamed:
    """A picture of a shard as a square."""
    if member.data is None:
        return Streamed(member.name, problem=member.problem)
    try:
        return Streamed(member.name, crop_square(decode_photo(member.data, member.name).image, resolution))
    except InputError as error:
        return Streamed(member.name, problem=error.message)


def leave_signals(_: int) -> None:
    """A process that reads ends with the one that it reads for, which signals reach as well."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def lost_readers() -> Iterator[None]:
    """While it lasts, an end of a process that reads is told; torch raises it in the main thread, whatever that does.

    Raises:
        DeviceError: one has ended.
    """
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise DeviceError(
            f"A process that reads shards has ended: {first_line(error)}",
            "It may have lacked memory: lower pretrain.workers, and go on with --resume.",
        ) from error


class StreamBatches:
    """This process's share of the batch of a step, of whatever pictures come next.

    Args:
        stream: of the pictures.
        base: the base model that encodes them.
        chance: the random numbers of the steps.
        at_once: so many pictures are encoded in a batch.
        workers: processes that read.
        listener: who hears of what cannot be read.

    Attributes:
        read: pictures that were read.
        bad: what could not be read, by name, with the reason.
    """

    def __init__(
        self, stream: ShardStream, base: BaseModel, chance: Chance, at_once: int, workers: int, listener: Listener
    ) -> None:
        self.base, self.chance, self.at_once, self.listener = base, chance, at_once, listener
        self.read = 0
        self.bad: dict[str, str] = {}
        self._shards, self._workers, self._empty = len(stream.shards.paths), max(workers, 1), 0
        ahead: dict[str, Any] = {"prefetch_factor": AHEAD, "worker_init_fn": leave_signals} if workers else {}
        self._items = iter(DataLoader(stream, batch_size=None, num_workers=workers, **ahead))

    def __call__(self, step: int) -> Batch:
        squares = [self._next() for _ in self.chance.positions(step)]
        views, own = views_of(encode_squares(self.base, squares, self.at_once)), torch.arange(len(squares))
        return self.chance.batch(step, views, own, own)

    def _next(self) -> Image.Image:
        """The next picture that can be read.

        Raises:
            InputError: none of all.
        """
        while True:
            one: Streamed = next(self._items)
            if one.image is not None:
                self.read, self._empty = self.read + 1, 0
                return one.image
            if one.name:
                self._tell(one)
            else:
                self._empty += 1
            if self._empty > self._workers:
                first = next(iter(self.bad.values()))
                raise InputError(
                    f"No picture in the {self._shards} shard(s) can be read; the first problem: {first}",
                    "Give tar files of pictures, as webdataset and img2dataset write them.",
                )

    def _tell(self, one: Streamed) -> None:
        if one.name not in self.bad and len(self.bad) < NAMED_UNREADABLE:
            self.listener.warn(f"Left out: {one.problem}")
        elif one.name not in self.bad and len(self.bad) == NAMED_UNREADABLE:
            self.listener.warn("More pictures or shards cannot be read; the next ones are counted alone.")
        self.bad[one.name] = one.problem
