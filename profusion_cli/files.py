"""Reading inputs and writing outputs whole: `-`, atomic files, and words for what goes wrong."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO

from profusion_cli.errors import InputError, OutputError, UsageError
from profusion_cli.listener import waiting

try:
    import fcntl
except ImportError:  # Windows, where nobody can remove a file that is open
    fcntl = None

STDIO = "-"
LOCK_FILE = ".profusion.lock"
PART_PREFIX, PART_SUFFIX = ".profusion-", ".part"
"""Of the names of files that are still being written."""
BUNDLE_MARK = b"PK\x03\x04"
MAX_BUNDLE = 8 << 30
"""Bytes; all of Stable Diffusion 2 in float32 takes five GB."""
MAX_OTHER = 1 << 30
"""Bytes of any other input; a picture of 100 megapixels, not compressed, takes less."""
CHUNK = 1 << 20
_UMASK = Lock()
"""Held while the process's mask is read, which has to be set for that."""
WITHOUT_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP)
"""What a file system says that knows no locks."""


def sha256_of(data: bytes | memoryview) -> str:
    """SHA-256 of `data` as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def read_source(source: str) -> bytes:
    """Bytes of the file `source`, or of standard input for `-`.

    A file is read rather than mapped: what is verified then stays what it was, and a file that another
    program shortens meanwhile kills nobody.

    A note says what is waited for where nobody writes into a pipe.

    Raises:
        InputError: missing, unreadable, empty, larger than any bundle (8 GiB) or other input (1 GiB), a folder or a
            device.
    """
    if not source:
        raise InputError("The name of an input is empty.", "Name a file, or - for standard input.")
    if source == STDIO:
        return _read_stdin()
    path = Path(source)
    try:
        if "\0" in source:
            raise FileNotFoundError
        if path.is_dir():
            raise InputError(f"'{source}' is a folder, not a file.", "Name the file inside it.")
        with _opened(path) as file:
            data = _read_all(file, f"'{source}'")
        if not data:
            raise InputError(f"'{source}' is empty.", "Check how it was made.")
        return data
    except FileNotFoundError:
        raise InputError(f"There is no file '{source}'.", "Check the path.") from None
    except OSError as error:
        raise InputError(
            f"'{source}' cannot be read: {error.strerror or error}.", "Check the path and its permissions."
        ) from error


def _opened(path: Path) -> BinaryIO:
    """A file, or a pipe as soon as somebody writes into it."""
    mode = path.stat().st_mode
    if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
        raise InputError(f"'{path}' is a device, not a file.", "Name a file, or pipe a part of the device into '-'.")
    with waiting(f"somebody to write into the pipe '{path}'") if stat.S_ISFIFO(mode) else nullcontext():
        return path.open("rb")


def _read_all(stream: BinaryIO, name: str) -> bytes:
    """What a file or a pipe holds; more than an input can be is not read."""
    whole = io.BytesIO(stream.read(CHUNK))
    limit, what = (MAX_BUNDLE, "bundle") if whole.getvalue()[:4] == BUNDLE_MARK else (MAX_OTHER, "input but a bundle")
    size = whole.seek(0, io.SEEK_END)
    told = _size_of(stream)
    while max(size, told) <= limit and (chunk := stream.read(CHUNK)):
        size += whole.write(chunk)
    if max(size, told) > limit:
        hint = "Check that it is what you mean."
        raise InputError(f"{name} has more than {limit >> 30} GiB, and no {what} may be larger.", hint)
    return whole.getvalue()


def _size_of(stream: BinaryIO) -> int:
    """Bytes that the file system knows of; a pipe has none."""
    try:
        return os.fstat(stream.fileno()).st_size
    except OSError:  # a stream in memory
        return 0


def _read_stdin() -> bytes:
    if sys.stdin is None:
        raise InputError("Standard input is closed.", "Pipe a file into the command, or name it instead of '-'.")
    if sys.stdin.isatty():
        raise InputError(
            "Standard input is a terminal, so '-' has nothing to read.",
            "Pipe a file into the command, or name the file instead of '-'.",
        )
    data = _read_all(sys.stdin.buffer, "Standard input")
    if not data:
        raise InputError(
            "Standard input is empty.", "The command before the pipe wrote nothing: read its message, or name a file."
        )
    return data


def check_output(path: Path, force: bool) -> None:
    """Fail early when `path` could not be written later.

    Raises:
        OutputError: it exists (without `force`), is a folder, or its folder cannot be written.
    """
    try:
        if path.is_dir():
            raise OutputError(f"'{path}' is a folder.", "Give the name of a file.")
        if os.path.lexists(path) and not force:
            raise OutputError(f"'{path}' already exists.", "Choose another name, or overwrite it with --force.")
        if not stat.S_ISREG(path.stat().st_mode):
            raise OutputError(f"'{path}' is not a regular file.", "To write to a device, redirect '-o -'.")
    except FileNotFoundError:
        pass  # as it should be
    except OSError as error:
        raise _write_failure(str(path), error) from error
    folder = path.parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise OutputError(f"'{path}' cannot be written: '{folder}' is not a writable folder.", "Choose another place.")


def make_folder(folder: Path, name: str, hint: str) -> None:
    """Make a folder that will be written into, unless it is there.

    Args:
        folder: see above.
        name: what it is called in messages, such as "cache folder".
        hint: of the errors.

    Raises:
        OutputError: it cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"The {name} '{folder}' cannot be made: {error.strerror}.", hint) from error
    if not os.access(folder, os.W_OK):
        raise OutputError(f"The {name} '{folder}' cannot be written.", hint)


def check_stdout() -> None:
    """Refuse to print binary data to a terminal.

    Raises:
        OutputError: standard output is a terminal.
    """
    if sys.stdout is None:
        raise OutputError("Standard output is closed.", "Name a file with -o.")
    if sys.stdout.isatty():
        raise OutputError(
            "Standard output is a terminal, and '-o -' would print binary data to it.",
            "Redirect it with '> FILE' or a pipe, or name a file with -o.",
        )


def check_target(target: str, force: bool, as_json: bool = False) -> None:
    """Fail before the work when the result could not be written after it.

    Args:
        target: a file, or `-`.
        force: whether an existing file may be overwritten.
        as_json: whether standard output is already taken.

    Raises:
        UsageError: no name, or `-o -` with `--json`.
        OutputError: it exists, cannot be written, or is a terminal.
    """
    if not target:
        raise UsageError("The name of the output is empty.", "Name a file, or - for standard output.")
    if target != STDIO:
        check_output(Path(target), force)
        return
    if as_json:
        raise UsageError("'-o -' and --json both want standard output.", "Name a file with -o, or drop --json.")
    check_stdout()


def _write_failure(target: str, error: OSError) -> OutputError:
    what = "Standard output" if target == STDIO else f"'{target}'"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutputError(
            f"{what} cannot be written: no space left on the device.", "Free some space or choose another place."
        )
    return OutputError(f"{what} cannot be written: {error.strerror or error}.", "Choose another place.")


@contextmanager
def writing(target: str | Path) -> Iterator[None]:
    """What the system refuses in the block is an error of output.

    Raises:
        OutputError: it refuses something.
    """
    try:
        yield
    except OSError as error:
        raise _write_failure(str(target), error) from error


@contextmanager
def output_hint(hint: str) -> Iterator[None]:
    """Output errors of the block get another hint, where -o is not what to change."""
    try:
        yield
    except OutputError as error:
        raise OutputError(error.message, hint) from error


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole, or not at all.

    Raises:
        OutputError: the system refuses to write it.
    """
    with atomic_output(path, force=True) as file:
        file.write(json.dumps(value, ensure_ascii=False, indent=1).encode())


@contextmanager
def locked(folder: Path, message: str, hint: str, wait: float = 0) -> Iterator[None]:
    """Keep other processes out of a folder, by a file in it that goes when the block ends; not where the file system
    knows no locks.

    Args:
        folder: one that is there.
        message, hint: of the error.
        wait: so many seconds for the other process.

    Raises:
        OutputError: another process has locked it, or it cannot be written.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder / LOCK_FILE)
    try:
        lock.acquire(timeout=wait)
    except Timeout:
        raise OutputError(message, hint) from None
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            raise _write_failure(str(folder), error) from error
    try:
        yield
    finally:
        with suppress(OSError):  # Windows removes it when it is let go
            (folder / LOCK_FILE).unlink()
        lock.release()


@contextmanager
def atomic_output(target: str | Path, force: bool = False) -> Iterator[BinaryIO]:
    """A binary file, readable too, that becomes `target` only when the block ends well.

    The data goes to a temporary file beside the target, is flushed to the disk, and takes the
    target's name in one step; with `-` it goes to standard output in one piece at the end. Missing
    folders are made. Whatever goes wrong, an interrupt included, leaves the target as it was. What a
    process that was killed has left beside the target is removed.

    Raises:
        OutputError: the target exists (without `force`), or the system refuses to write it.
        BrokenPipeError: nobody reads standard output any more.
    """
    if str(target) == STDIO:
        with _spooled_stdout() as spool:
            yield spool
        return
    path = Path(os.path.realpath(target))
    with writing(target):
        check_output(path, force)
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_parts(path.parent)
        with _part(path.parent) as (file, temporary):
            yield file
            file.flush()
            os.fsync(file.fileno())
            with _UMASK:
                umask = os.umask(0)
                os.umask(umask)
            os.chmod(temporary, 0o666 & ~umask)
            if fcntl is None:
                file.close()
            if force:
                os.replace(temporary, path)
            else:
                _claim(temporary, path)
        _sync_folder(path.parent)


@contextmanager
def _part(folder: Path) -> Iterator[tuple[BinaryIO, str]]:
    """A temporary file and its name, locked until the block ends; then it is gone, unless it has got another name."""
    handle, name = tempfile.mkstemp(PART_SUFFIX, PART_PREFIX, folder)
    while not _lock(handle):
        os.close(handle)
        handle, name = tempfile.mkstemp(PART_SUFFIX, PART_PREFIX, folder)
    try:
        with os.fdopen(handle, "w+b") as file:
            yield file, name
    finally:
        Path(name).unlink(missing_ok=True)


def _lock(handle: int) -> bool:
    """Lock a temporary file, as long as it is open; False: another process took it for one that nobody holds."""
    if fcntl is not None:
        with suppress(OSError):  # a file system without locks, where nobody can take it for that
            fcntl.flock(handle, fcntl.LOCK_EX)
    return os.name != "posix" or os.fstat(handle).st_nlink > 0


def remove_parts(folder: Path) -> None:
    """Remove the temporary files of processes that were killed: the system lets go of a process's locks when it ends.

    Those that cannot be locked or removed stay: a process holds them, they are someone else's, or there are no locks.
    """
    if fcntl is None:
        return
    for part in folder.glob(f"{PART_PREFIX}*{PART_SUFFIX}"):
        with suppress(OSError), part.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            part.unlink()


@contextmanager
def _spooled_stdout() -> Iterator[BinaryIO]:
    """A temporary file that goes to standard output when the block ends well."""
    try:
        with tempfile.TemporaryFile() as spool:
            yield spool
            spool.seek(0)
            shutil.copyfileobj(spool, sys.stdout.buffer, 1 << 20)
            sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise  # whoever reads has had enough: not an error of ours
    except OSError as error:
        with suppress(OSError):  # what is stuck in the buffer would fail once more at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise _write_failure(STDIO, error) from error


def _claim(temporary: str, path: Path) -> None:
    """Rename without overwriting a file that appeared meanwhile."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise OutputError(
            f"'{path}' appeared while the command ran.", "Choose another name, or overwrite it with --force."
        ) from None
    except OSError:  # a file system without hard links
        os.replace(temporary, path)
    else:
        os.unlink(temporary)


def _sync_folder(folder: Path) -> None:
    """Make the new name last; not every file system can, and the file is there all the same."""
    if os.name == "posix":
        with suppress(OSError):
            handle = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
