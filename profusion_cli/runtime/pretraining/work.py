"""The folder that a training works in."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from profusion_cli.errors import OutputError
from profusion_cli.files import locked, make_folder
from profusion_cli.runtime.pretraining.checkpoints import checkpoint_files
from profusion_cli.runtime.pretraining.encodings import clear_parts
from profusion_cli.runtime.pretraining.log import EVENTS, LOG, SHEET


@contextlib.contextmanager
def claimed_work(work: Path, resume: bool, force: bool) -> Iterator[None]:
    """The folder for checkpoints, made if need be, and locked for this training; what is in it stays.

    Raises:
        OutputError: a training is in it (without `resume` and `force`) or running, or it cannot be made or written.
    """
    if not (resume or force) and (checkpoint_files(work) or (work / LOG).exists()):
        raise OutputError(
            f"There is a training in '{work}' already.",
            "Go on with it (--resume), overwrite it (--force), or choose another --work.",
        )
    make_folder(work, "folder", "Choose another --work.")
    try:
        with locked(work, f"Another training is running in '{work}'.", "Wait for its end, or choose another --work."):
            clear_parts(work)
            yield
    finally:
        with contextlib.suppress(OSError):  # there is something in it
            work.rmdir()


def clear_work(work: Path) -> None:
    """Remove an earlier training, before a new one begins in its folder.

    Raises:
        OutputError: something cannot be removed.
    """
    try:
        ours = (LOG, SHEET.format("[0-9]" * 8 + "*"), f"{EVENTS}*")
        for path in [*checkpoint_files(work), *(path for pattern in ours for path in work.glob(pattern))]:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(
            f"'{error.filename}' of an earlier training cannot be removed: {error.strerror}.", "Choose another --work."
        ) from error
