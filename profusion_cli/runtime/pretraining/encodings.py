"""Encoded pictures of a data set: kept on the disk, or else each encoded when it is needed and kept in memory."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import RLock

import safetensors.torch
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open

from profusion_cli.dataset import Dataset, decoding_threads, load_square
from profusion_cli.errors import OutputError
from profusion_cli.files import PART_PREFIX, PART_SUFFIX, atomic_output
from profusion_cli.runtime.backbone import BaseModel
from profusion_cli.runtime.parts import parts_for
from profusion_cli.runtime.views import Views

MEMORY_BYTES = 2 << 30
NAMES = ("latents_mean", "latents_std", "image_tokens")
_VERSION = 1

Encoding = dict[str, torch.Tensor]


def encode_squares(base: BaseModel, squares: list[Image.Image], at_once: int) -> list[Encoding]:
    """VAE moments and image tokens of RGB squares, in float16; so many at once, by which they differ in rounding."""
    parts = (*base.encode_moments(squares, at_once), base.encode_image_tokens(squares, at_once))
    halves = [part.half().contiguous() for part in parts]
    return [{name: half[i].clone() for name, half in zip(NAMES, halves, strict=True)} for i in range(len(squares))]


def views_of(encodings: list[Encoding]) -> Views:
    """Encoded pictures, each as one view."""
    return Views(*(torch.stack([one[name] for one in encodings]).float() for name in NAMES))


class Encodings:
    """VAE moments and image tokens of the pictures of a data set, in float16.

    They are float16 with and without a cache, so that both train to the same weights but for rounding. With a cache,
    they are encoded in batches that depend on the data set and the seed alone, so that a training that is broken off
    and goes on is the same to the bit. In memory the most recently used stay, up to `MEMORY_BYTES`; `epoch_order` puts
    side by side what belongs together, so no picture is encoded twice in an epoch. Any thread may ask. Use as a context
    manager.

    Args:
        base: the base model, whose VAE and vision tower are loaded when a picture must be encoded.
        dataset: the pictures.
        folder: of the cache on the disk, shared by any number of runs and processes, or None.
        order: of all pictures, in which they are encoded for the cache.
        at_once: so many are encoded in a batch.
    """

    def __init__(
        self, base: BaseModel, dataset: Dataset, folder: Path | None, order: Sequence[int], at_once: int
    ) -> None:
        self.base, self.dataset, self.folder, self.at_once = base, dataset, folder, at_once
        self.groups = [tuple(order[start : start + at_once]) for start in range(0, len(order), at_once)]
        self._group_of = {index: group for group in self.groups for index in group}
        self._memory: OrderedDict[int, Encoding] = OrderedDict()
        self._ahead: dict[int, Future[Encoding | Image.Image]] = {}
        self._pool = ThreadPoolExecutor(decoding_threads())
        self._lock = RLock()
        self._prefix = ""
        if folder is not None:
            key = {
                "version": _VERSION,
                "resolution": base.config.resolution,
                "antialias": base.config.vision_antialias,
                "dtype": str(base.placement.encoder_dtype),
                **base.fingerprints(*parts_for("encodes")),
            }
            self._prefix = json.dumps(key, sort_keys=True)

    def __enter__(self) -> Encodings:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def prefetch(self, indices: Iterable[int]) -> None:
        """Begin to read what will be needed next."""
        with self._lock:
            for index in indices:
                if index not in self._memory and index not in self._ahead:
                    self._ahead[index] = self._pool.submit(self._read, index)

    def views(self, indices: list[int]) -> Views:
        """The pictures `indices`, each as one view.

        Raises:
            InputError: a picture that cannot be read any more.
            OutputError: the cache cannot be written.
        """
        with self._lock:
            self.prefetch(indices)
            squares = {}
            for index in dict.fromkeys(indices):
                if index in self._memory:
                    self._memory.move_to_end(index)
                    continue
                read = self._ahead.pop(index).result()
                if isinstance(read, Image.Image):
                    squares[index] = read
                else:
                    self._memory[index] = read
            if squares:
                self._memory |= self._encode(squares)
            views = views_of([self._memory[index] for index in indices])
            self._forget()
        return views

    def _read(self, index: int) -> Encoding | Image.Image:
        """What is known of a picture: its encoding, or else the picture itself."""
        return self._from_disk(index) or self._load(index)

    def _load(self, index: int) -> Image.Image:
        return load_square(self.dataset, index, self.base.config.resolution)

    def _forget(self) -> None:
        size = sum(tensor.nbytes for tensor in next(reversed(self._memory.values())).values())
        while len(self._memory) > max(MEMORY_BYTES // size, 1):
            self._memory.popitem(last=False)

    def _encode(self, squares: dict[int, Image.Image]) -> dict[int, Encoding]:
        """Pictures encoded; those that a cache lacks, beside the others of their groups."""
        if self.folder is None:
            return dict(zip(squares, encode_squares(self.base, [*squares.values()], self.at_once), strict=True))
        encoded: dict[int, Encoding] = {}
        for group in dict.fromkeys(self._group_of[index] for index in squares):
            wanted = [index for index in group if index in squares]
            encoded |= self.write(group, wanted, [squares.get(index) or self._load(index) for index in group])
        return encoded

    def write(self, group: Sequence[int], wanted: Sequence[int], squares: list[Image.Image]) -> dict[int, Encoding]:
        """Encode the pictures of a group together, and write those that are wanted to the cache.

        Args:
            group: one of `groups`.
            wanted: of its pictures.
            squares: all of them.

        Returns:
            The encodings of those that are wanted.

        Raises:
            OutputError: the cache cannot be written.
        """
        encoded = dict(zip(group, encode_squares(self.base, squares, self.at_once), strict=True))
        for index in wanted:
            self._to_disk(index, encoded[index])
        return {index: encoded[index] for index in wanted}

    def read_groups(self, groups: Sequence[Sequence[int]]) -> Iterator[list[Image.Image]]:
        """The pictures of each group, of which the next two are read meanwhile.

        Raises:
            InputError: a picture that cannot be read any more.
        """
        ahead: deque[list[Future[Image.Image]]] = deque()
        for group in [*groups, (), ()]:
            ahead.append([self._pool.submit(self._load, index) for index in group])
            if len(ahead) > 2:
                yield [future.result() for future in ahead.popleft()]

    def cached(self) -> set[int]:
        """The pictures that have a file in the cache, damaged or not."""
        assert self.folder is not None
        names = {path.name for path in self.folder.glob("??/*.safetensors")}
        return {index for index in self._group_of if self.path(index).name in names}

    # --- the cache: one safetensors file per picture, named by all that it depends on ---

    def path(self, index: int) -> Path:
        """Of a picture in the cache."""
        key = hashlib.sha256(f"{self.dataset.sha256[index]} {self._prefix}".encode()).hexdigest()
        assert self.folder is not None
        return self.folder / key[:2] / f"{key[2:]}.safetensors"

    def _to_disk(self, index: int, encoding: Encoding) -> None:
        data = safetensors.torch.save(encoding, {"sha256": _digest(encoding)})
        try:
            with atomic_output(self.path(index), force=True) as file:
                file.write(data)
        except OutputError as error:
            raise OutputError(
                f"The cache of encoded pictures cannot go on: {error.message}",
                "Free some space or give another --cache, and go on with --resume.",
            ) from error

    def _from_disk(self, index: int) -> Encoding | None:
        """None where there is no file, or a damaged one: it is made again."""
        if self.folder is None:
            return None
        try:
            with safe_open(self.path(index), framework="pt") as file:
                claimed = (file.metadata() or {}).get("sha256")
                encoding = {name: file.get_tensor(name).clone() for name in NAMES}
        except (SafetensorError, OSError):
            return None
        whole = claimed == _digest(encoding) and all(tensor.dtype == torch.float16 for tensor in encoding.values())
        return encoding if whole else None


def _digest(encoding: Encoding) -> str:
    digest = hashlib.sha256()
    for name in NAMES:
        digest.update(f"{name} {tuple(encoding[name].shape)}".encode())
        digest.update(encoding[name].contiguous().numpy().tobytes())
    return digest.hexdigest()


def clear_parts(folder: Path) -> None:
    """Remove what writers left behind that were killed."""
    for part in folder.glob(f"{PART_PREFIX}*{PART_SUFFIX}"):
        part.unlink(missing_ok=True)
