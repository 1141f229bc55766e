"""Folders that are written whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from profusion_cli.errors import OutputError
from profusion_cli.files import locked, make_folder, writing

MARK = "profusion.json"
"""A file in every folder that is written whole, which says what it was made from: no other folder is replaced."""
_ANOTHER = "Choose another place."


def check_folder(target: Path, force: bool) -> None:
    """Fail early when `target` could not be made later.

    Args:
        target: where a folder shall be; an empty one may be there.
        force: replace one that is there, if it has `MARK`.

    Raises:
        OutputError: something is there that may not be replaced.
    """
    if not target.name:
        raise OutputError(f"'{target}' is no name of a folder.", "Name a new folder with -o.")
    if not os.path.lexists(target):
        return
    if not target.is_dir():
        raise OutputError(f"'{target}' is a file, and a folder is written here.", _ANOTHER)
    if any(target.iterdir()):
        if not (target / MARK).is_file():
            raise OutputError(f"'{target}' holds other files, and would be replaced.", _ANOTHER)
        if not force:
            raise OutputError(f"'{target}' already exists.", "Choose another name, or replace it with --force.")


@contextmanager
def atomic_folder(target: Path, force: bool = False) -> Iterator[Path]:
    """A folder to write into that becomes `target` only when the block ends well.

    What goes wrong, an interrupt included, leaves the target as it was; what a process that was killed has left beside
    it is removed.

    Args:
        target, force: as of `check_folder`.

    Raises:
        OutputError: as `check_folder`, or the system refuses to write.
    """
    check_folder(target, force)
    place = target.with_name(f".{target.name}.part")
    with writing(target):
        make_folder(place, "folder", _ANOTHER)
        try:
            with locked(place, f"Another process is writing '{target}'.", "Wait for it, or choose another place."):
                yield from _renamed(place, target, force)
        finally:
            with suppress(OSError):  # another process is in it
                place.rmdir()


def _renamed(place: Path, target: Path, force: bool) -> Iterator[Path]:
    """A new folder in `place`, which gets the target's name when whoever has it is done."""
    new, old = place / "new", place / "old"
    _restored(old, target)  # a process was killed between the two renamings
    try:
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        yield new
        check_folder(target, force)
        if target.exists():
            os.rename(target, old)
        os.rename(new, target)
    finally:
        shutil.rmtree(new, ignore_errors=True)
        _restored(old, target)


def _restored(old: Path, target: Path) -> None:
    """What was there gets its name back, unless something else has it by now."""
    if old.exists() and not os.path.lexists(target):
        os.rename(old, target)
    shutil.rmtree(old, ignore_errors=True)
