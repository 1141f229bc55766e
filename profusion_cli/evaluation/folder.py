"""The folder of a run: how its files are called and read, and that one process at a time works in it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

from profusion_cli.errors import OutputError
from profusion_cli.files import LOCK_FILE, locked

STUDY_FILE, CELL_FILE = "study.yaml", "cell.json"


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file of a run, or None where there is none, or none that is whole.

    Raises:
        OutputError: the system refuses to read it.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    except OSError as error:
        raise OutputError(f"'{path}' cannot be read: {error.strerror}.", "Check its permissions.") from error
    return value if isinstance(value, dict) else None


def slug(name: str) -> str:
    """A name as part of a file name; names that look alike get different ones."""
    return f"{words_of(name)}-{sha256(name.encode()).hexdigest()[:6]}"


def words_of(text: str) -> str:
    """The words of a text as the beginning of a file name."""
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-")[:60]


@contextmanager
def claimed(folder: Path) -> Iterator[str | None]:
    """Make the folder of a run, or go on in it; no other process works there until the block ends.

    Returns:
        The text of the study whose run is there already; None where there is none.

    Raises:
        OutputError: the folder holds something else, or cannot be written, or another process is at work.
    """
    path, busy = folder / STUDY_FILE, f"Another `profusion evaluate` is at work in '{folder}'."
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(folder, busy, "Wait for its end."))
            before = path.read_text(encoding="utf-8", errors="replace") if path.exists() else None
            if before is None and any(file.name != LOCK_FILE for file in folder.iterdir()):
                raise OutputError(f"'{folder}' holds something else than a run.", "Name another folder with -o.")
        except OSError as error:
            raise OutputError(
                f"'{folder}' cannot be a run's folder: {error.strerror}.", "Name another with -o."
            ) from error
        yield before
