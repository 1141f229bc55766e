"""Feature vectors that distances are computed from, in files of the run that say what they depend on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from profusion_cli.errors import InputError, OutputError, UnavailableError
from profusion_cli.evaluation.metrics import Distance
from profusion_cli.files import atomic_output, read_source
from profusion_cli.images import crop_square, decode_photo
from profusion_cli.listener import Progress

MARK = "mark"
BATCH = 16
"""Photographs that are in memory at a time."""


def write_features(path: Path, features: Mapping[str, np.ndarray], mark: str) -> None:
    """Write arrays by name, in float32, whole or not at all.

    Raises:
        OutputError: the system refuses to write it.
    """
    arrays = {name: np.ascontiguousarray(values, dtype=np.float32) for name, values in features.items()}
    with atomic_output(path, force=True) as file:
        file.write(save(arrays, {MARK: mark}))


def is_marked(path: Path, mark: str) -> bool:
    """Whether a file is there, and of this mark.

    Raises:
        OutputError: the system refuses to read it.
    """
    try:
        with safe_open(path, "np") as file:
            return (file.metadata() or {}).get(MARK) == mark
    except (FileNotFoundError, SafetensorError):
        return False
    except OSError as error:
        raise OutputError(f"'{path}' cannot be read: {error.strerror or error}.", "Check its permissions.") from error


def read_features(path: Path, mark: str) -> dict[str, np.ndarray]:
    """The arrays in a file; none where it is not there, or of another mark.

    Raises:
        OutputError: the system refuses to read it.
    """
    if not is_marked(path, mark):
        return {}
    with safe_open(path, "np") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping


def features_of_photos(distance: Distance, step: Progress) -> dict[str, np.ndarray]:
    """Features of the photographs that all methods are compared with, each person's of shape (photos, width).

    The network is shown the central square of each, as it is of pictures that are drawn.

    Args:
        distance: with photos.
        step: told how many are done.

    Raises:
        UnavailableError: a photograph that cannot be read, or the network cannot be had.
    """
    files = [(person, path) for person, paths in distance.photos.items() for path in paths]
    features: dict[str, list[np.ndarray]] = {}
    for first in range(0, len(files), BATCH):
        batch = files[first : first + BATCH]
        try:
            photos = [decode_photo(read_source(str(path)), str(path)).image for _, path in batch]
        except InputError as error:
            raise UnavailableError(error.message, error.hint) from error
        found = distance.features([crop_square(photo, min(photo.size)) for photo in photos])
        for (person, _), one in zip(batch, found, strict=True):
            features.setdefault(person, []).append(one)
        step(first + len(batch))
    return {person: np.stack(several) for person, several in features.items()}
