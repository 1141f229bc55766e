"""Encoded pictures of a data set: each encoded when it is first needed, kept in memory, on request on the disk."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterable
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


class Encodings:
    """VAE moments and image tokens of the pictures of a data set, in float16.

    They are float16 with and without a cache, so that both train to the same weights. In memory the most
    recently used stay, up to `MEMORY_BYTES`; `epoch_order` puts side by side what belongs together, so no
    picture is encoded twice in an epoch. Any thread may ask. Use as a context manager.

    Args:
        base: the base model, whose VAE and vision tower are loaded when a picture must be encoded.
        dataset: the pictures.
        folder: of the cache on the disk, shared by any number of runs and processes, or None.
    """

    def __init__(self, base: BaseModel, dataset: Dataset, folder: Path | None) -> None:
        self.base, self.dataset, self.folder = base, dataset, folder
        self.encoded = 0
        self._memory: OrderedDict[int, Encoding] = OrderedDict()
        self._decoding: dict[int, Future[Image.Image]] = {}
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
        """Begin to decode pictures that will be needed next."""
        side = self.base.config.resolution
        with self._lock:
            for index in dict.fromkeys(indices):
                if index not in self._memory and index not in self._decoding and not self._is_cached(index):
                    self._decoding[index] = self._pool.submit(load_square, self.dataset, index, side)

    def views(self, indices: list[int]) -> Views:
        """The pictures `indices`, each as one view.

        Raises:
            InputError: a picture that cannot be read any more.
            OutputError: the cache cannot be written.
        """
        with self._lock:
            self.prefetch(indices)
            found = [self._get(index) for index in indices]
            self._forget()
        mean, std, tokens = (torch.stack([one[name] for one in found]).float() for name in NAMES)
        return Views(mean, std, tokens)

    def _get(self, index: int) -> Encoding:
        if index not in self._memory:
            self._memory[index] = self._from_disk(index) or self._encode(index)
        self._memory.move_to_end(index)
        return self._memory[index]

    def _forget(self) -> None:
        size = sum(tensor.nbytes for tensor in next(reversed(self._memory.values())).values())
        while len(self._memory) > max(MEMORY_BYTES // size, 1):
            self._memory.popitem(last=False)

    def _encode(self, index: int) -> Encoding:
        future = self._decoding.pop(index, None)
        square = future.result() if future else load_square(self.dataset, index, self.base.config.resolution)
        mean, std = self.base.encode_moments([square])
        tokens = self.base.encode_image_tokens([square])
        self.encoded += 1
        encoding = {
            name: tensor[0].half().clone(memory_format=torch.contiguous_format)
            for name, tensor in zip(NAMES, (mean, std, tokens), strict=True)
        }
        if self.folder is not None:
            self._to_disk(index, encoding)
        return encoding

    # --- the cache: one safetensors file per picture, named by all that it depends on ---

    def _path(self, index: int) -> Path:
        key = hashlib.sha256(f"{self.dataset.sha256[index]} {self._prefix}".encode()).hexdigest()
        assert self.folder is not None
        return self.folder / key[:2] / f"{key[2:]}.safetensors"

    def _is_cached(self, index: int) -> bool:
        return self.folder is not None and self._path(index).exists()

    def _to_disk(self, index: int, encoding: Encoding) -> None:
        data = safetensors.torch.save(encoding, {"sha256": _digest(encoding)})
        try:
            with atomic_output(self._path(index), force=True) as file:
                file.write(data)
        except OutputError as error:
            raise OutputError(
                f"The cache of encoded pictures cannot go on: {error.message}",
                "Free some space or give another --cache, and go on with --resume.",
            ) from error

    def _from_disk(self, index: int) -> Encoding | None:
        """None also where the file is damaged: it is made again."""
        if not self._is_cached(index):
            return None
        try:
            with safe_open(self._path(index), framework="pt") as file:
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
