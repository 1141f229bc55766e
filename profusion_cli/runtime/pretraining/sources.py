"""What a training learns from: picture files, which are known beforehand, or tar shards, which are streamed."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object
from PIL import Image
from rich.filesize import decimal

from profusion_cli.config import Config
from profusion_cli.costs import TrainingCost, training_cost
from profusion_cli.dataset import MAX_LISTED, Listing, load_square
from profusion_cli.errors import ConfigError
from profusion_cli.listener import Listener
from profusion_cli.runtime.backbone import BaseModel
from profusion_cli.runtime.pretraining.batches import Batches, Chance, order_of_use, read_dataset
from profusion_cli.runtime.pretraining.caching import fill
from profusion_cli.runtime.pretraining.encodings import Encodings, encode_squares, views_of
from profusion_cli.runtime.pretraining.stream import ShardStream, StreamBatches, decoded
from profusion_cli.runtime.training import Batch
from profusion_cli.runtime.views import Views
from profusion_cli.shards import Shards, read_shard


class PictureFiles:
    """Picture files, encoded before the first step where there is a cache. Use as a context manager.

    Args:
        base: the base model.
        config: the resolved configuration.
        accelerator: of the training.
        listing: the pictures.
        cache: folder for encoded ones, or None.
        listener: who hears of it.

    Raises:
        InputError: none can be read.
    """

    def __init__(
        self,
        base: BaseModel,
        config: Config,
        accelerator: Accelerator,
        listing: Listing,
        cache: Path | None,
        listener: Listener,
    ) -> None:
        self.base, self.own, self.accelerator = base, config.pretrain, accelerator
        self.listener = listener
        self.dataset, self.unreadable = read_dataset(accelerator, listing, listener)
        samples = self.own.steps * self.own.batch_size
        order, self._used = order_of_use(self.dataset, config.seed, samples)
        self._encodings = Encodings(base, self.dataset, cache, order, self.own.encode_at_once)

    def __enter__(self) -> PictureFiles:
        return self

    def __exit__(self, *error: object) -> None:
        self._encodings.__exit__(*error)

    @property
    def counts(self) -> dict[str, int]:
        """How many there are."""
        return {"pictures": len(self.dataset.paths)}

    def settings(self) -> dict[str, Any]:
        """What of the pictures a training depends on."""
        return {**self.counts, "pictures (digest)": self.dataset.digest}

    def inputs(self, name: str) -> list[dict[str, str]]:
        """What a manifest lists of them."""
        return self.dataset.inputs(name)

    def cost(self) -> TrainingCost:
        """What the whole training takes."""
        samples = self.own.steps * self.own.batch_size
        cached = self._encodings.folder is not None
        return training_cost(self.own, self._used if cached else samples, cached)

    def batches(self, chance: Chance, start: int) -> Callable[[int], Batch]:
        """The batches of the steps, once the cache is filled.

        Args:
            chance: their random numbers.
            start: the first of the steps.

        Raises:
            OutputError: the cache does not fit on the disk, or cannot be written.
        """
        if self._encodings.folder is not None and start < self.own.steps:
            fill(self._encodings, self._used, self.accelerator, self.listener)
        return Batches(self._encodings, chance)

    def examples(self, count: int) -> tuple[list[Image.Image], Views]:
        """The first few pictures, as squares and encoded."""
        chosen = list(self.dataset.targets[:count])
        squares = [load_square(self.dataset, index, self.base.config.resolution) for index in chosen]
        return squares, self._encodings.views(chosen)

    def summary(self) -> dict[str, Any]:
        """What there is to say of them in the end."""
        folder = self._encodings.folder
        return {
            **self.counts,
            "paired": self.dataset.paired(),
            "unreadable": self.unreadable,
            "cache": None if folder is None else str(folder),
        }


class PictureStream:
    """Tar shards, read while training. Use as a context manager.

    Args:
        base, config, accelerator, listener: as of `PictureFiles`.
        shards: the shards.

    Raises:
        ConfigError: fewer shards than processes.
    """

    def __init__(
        self, base: BaseModel, config: Config, accelerator: Accelerator, shards: Shards, listener: Listener
    ) -> None:
        self.base, self.own, self.accelerator = base, config.pretrain, accelerator
        self.seed, self.shards, self.listener = config.seed, shards, listener
        self._batches: StreamBatches | None = None
        self._examples: list[Image.Image] = []
        if len(shards.paths) < accelerator.num_processes:
            raise ConfigError(
                f"{len(shards.paths)} shard(s) cannot be shared out over {accelerator.num_processes} processes.",
                "Give more shards, or use fewer processes.",
            )
        listener.note(
            f"Learning from {len(shards.paths):,} shard(s) of {decimal(sum(shards.sizes))}, whose pictures are not "
            "counted beforehand, and are encoded each time they come."
        )

    def __enter__(self) -> PictureStream:
        return self

    def __exit__(self, *_: object) -> None:
        self._batches = None  # and so the processes that read end

    @property
    def counts(self) -> dict[str, int]:
        """How many there are."""
        return {"shards": len(self.shards.paths)}

    def settings(self) -> dict[str, Any]:
        """What of the shards a training depends on."""
        return {**self.counts, "shards (digest)": self.shards.digest}

    def inputs(self, name: str) -> list[dict[str, str]]:
        """What a manifest lists of them."""
        return [{"kind": "dataset", "name": name, "sha256": self.shards.digest}]

    def cost(self) -> TrainingCost:
        """What the whole training takes."""
        return training_cost(self.own, self.own.steps * self.own.batch_size, False)

    def batches(self, chance: Chance, start: int) -> StreamBatches:
        """The batches of the steps from `start` on.

        Args:
            chance: their random numbers.
            start: the first of the steps.
        """
        if start:
            self.listener.note(
                f"The shards are read in a new order from step {start + 1} on: some pictures of the round that was "
                "broken off come again, and others do not."
            )
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        workers = min(self.own.workers, len(self.shards.paths) // processes)
        stream = ShardStream(self.shards, self.base.config.resolution, (self.seed, start), rank, processes)
        self._batches = StreamBatches(stream, self.base, chance, self.own.encode_at_once, workers, self.listener)
        return self._batches

    def examples(self, count: int) -> tuple[list[Image.Image], Views]:
        """The first few pictures that can be read, as squares and encoded."""
        if not self._examples:
            members = (member for path in self.shards.paths for member in read_shard(path))
            squares = (decoded(member, self.base.config.resolution).image for member in members)
            self._examples = list(islice((square for square in squares if square is not None), count))
        return self._examples, views_of(encode_squares(self.base, self._examples, self.own.encode_at_once))

    def summary(self) -> dict[str, Any]:
        """What there is to say of them in the end, of all processes."""
        read, bad = (0, {}) if self._batches is None else (self._batches.read, self._batches.bad)
        told = [(read, bad)]
        if self.accelerator.num_processes > 1:
            told = gather_object(told)
        problems = {name: problem for _, found in told for name, problem in found.items()}
        if problems:
            self.listener.warn(f"{len(problems):,} pictures or shards could not be read whole, and were left out.")
        named = sorted(problems.items())[:MAX_LISTED]
        return {
            **self.counts,
            "samples_read": sum(count for count, _ in told),
            "unreadable": [{"path": name, "problem": problem} for name, problem in named],
            "unreadable_count": len(problems),
        }


Pictures = PictureFiles | PictureStream


def open_pictures(
    base: BaseModel,
    config: Config,
    accelerator: Accelerator,
    inputs: Listing | Shards,
    cache: Path | None,
    listener: Listener,
) -> Pictures:
    """What a training learns from.

    Raises:
        InputError: no picture can be read.
        ConfigError: fewer shards than processes.
    """
    if isinstance(inputs, Shards):
        return PictureStream(base, config, accelerator, inputs, listener)
    return PictureFiles(base, config, accelerator, inputs, cache, listener)
