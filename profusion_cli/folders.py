"""Folders that are written whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from profusion_cli.errors import OutputError
from profusion_cli.files import locked, make_folder, writing

PIPELINE = "model_index.json"
"""The file that every pipeline folder of diffusers' has."""
_ANOTHER = "Choose another place."


def check_folder(target: Path, mark: str, force: bool) -> None:
    """Fail early when `target` could not be made later.

    Args:
        target: where a folder shall be; an empty one may be there.
        mark: a file that every folder of its kind has: without it, none is replaced.
        force: replace one that is there.

    Raises:
        OutputError: something is there that may not be replaced.
    """
    if not os.path.lexists(target):
        return
    if not target.is_dir():
        raise OutputError(f"'{target}' is a file, and a folder is written here.", _ANOTHER)
    if any(target.iterdir()):
        if not (target / mark).is_file():
            raise OutputError(f"'{target}' holds other files, and would be replaced.", _ANOTHER)
        if not force:
            raise OutputError(f"'{target}' already exists.", "Choose another name, or replace it with --force.")


@contextmanager
def atomic_folder(target: Path, mark: str, force: bool = False) -> Iterator[Path]:
    """A folder to write into that becomes `target` only when the block ends well.

    What goes wrong, an interrupt included, leaves the target as it was; what a process that was killed has left beside
    it is removed.

    Args:
        target, mark, force: as of `check_folder`.

    Raises:
        OutputError: as `check_folder`, or the system refuses to write.
    """
    check_folder(target, mark, force)
    place = target.with_name(f".{target.name}.part")
    with writing(target):
        make_folder(place, "folder", _ANOTHER)
        try:
            with locked(place, f"Another process is writing '{target}'.", "Wait for it, or choose another place."):
                yield from _renamed(place, target, mark, force)
        finally:
            with suppress(OSError):  # another process is in it
                place.rmdir()


def _renamed(place: Path, target: Path, mark: str, force: bool) -> Iterator[Path]:
    """A new folder in `place`, which gets the target's name when whoever has it is done."""
    new, old = place / "new", place / "old"
    try:
        if old.exists() and not target.exists():  # a process was killed between the two
            os.rename(old, target)
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        yield new
        check_folder(target, mark, force)
        if target.exists():
            os.rename(target, old)
        os.rename(new, target)
    finally:
        for left in (new, old):
            shutil.rmtree(left, ignore_errors=True)
