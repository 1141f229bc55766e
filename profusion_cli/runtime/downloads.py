"""Files of the Hub: how large they are, whether they fit, and fetching them so that a broken-off download goes on.

The Hub's client starts a file from nothing each time. Large files are content-addressed, so they are fetched here into
its cache under the names that it gives them, and it finds them there.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, RemoteEntryNotFoundError
from huggingface_hub.file_download import are_symlinks_supported, http_get, repo_folder_name
from huggingface_hub.utils import (
    WeakFileLock,
    are_progress_bars_disabled,
    build_hf_headers,
    disable_progress_bars,
    enable_progress_bars,
)
from huggingface_hub.utils import logging as hub_logging
from rich.filesize import decimal

from profusion_cli.console import shows_download_bars
from profusion_cli.errors import Interrupted, OutputError, UnavailableError

OTHER_DISK = "Free some space, or set HF_HOME to a folder on another disk."
BUSY = (429, 500, 502, 503, 504)
"""What a server says that is worth asking again."""
GOES_ON = "the next run goes on from there"


@dataclass(frozen=True)
class Remote:
    """A file on the Hub.

    Args:
        repository: its Hub id.
        path: in the repository.
        commit: at which it was asked for.
        etag: what the Hub's cache names its content by: for a large file its SHA-256.
        size: in bytes.
    """

    repository: str
    path: str
    commit: str
    etag: str
    size: int

    @property
    def is_large(self) -> bool:
        """Whether the Hub keeps it beside the repository, by its SHA-256."""
        return re.fullmatch(r"[0-9a-f]{64}", self.etag) is not None

    @property
    def blob(self) -> Path:
        """Where the Hub's cache keeps its content."""
        return cache_of(self.repository) / "blobs" / self.etag

    @property
    def partial(self) -> Path:
        """Where what has come of it waits for the rest."""
        return self.blob.with_name(f"{self.etag}.incomplete")

    @property
    def here(self) -> int:
        """How many bytes of it have come already."""
        if self.blob.is_file():
            return self.size
        return self.partial.stat().st_size if self.is_large and self.partial.is_file() else 0


def file_sha256(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_of(repository: str) -> Path:
    """The folder of a repository in the Hub's cache."""
    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repository, repo_type="model")


@contextlib.contextmanager
def hub_reports(bars: bool) -> Iterator[None]:
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


def look_up(repository: str, path: str, revision: str | None) -> Remote | None:
    """What the Hub says of a file, without fetching it; None where the repository does not have it.

    Raises:
        Exception: of the types of the Hub's client and the transports below it, where it cannot be asked.
    """
    url = huggingface_hub.hf_hub_url(repository, path, revision=revision)
    with hub_reports(shows_download_bars()):
        try:
            found = huggingface_hub.get_hf_file_metadata(url)
        except RemoteEntryNotFoundError:
            return None
        except HfHubHTTPError as error:
            if error.response.status_code not in BUSY:
                raise
            found = huggingface_hub.get_hf_file_metadata(url, retry_on_errors=True)
    if found.commit_hash is None or found.etag is None or found.size is None:
        raise ValueError(f"{url} is answered without commit, etag or size")
    return Remote(repository, path, found.commit_hash, found.etag, found.size)


def missing_bytes(files: list[Remote]) -> int:
    """What is to be fetched of these files."""
    return sum(max(file.size - file.here, 0) for file in files)


def check_space(needed: int, what: str) -> None:
    """What is to be downloaded fits on the disk of the Hub's cache.

    Args:
        needed: in bytes.
        what: for the message, with its verb.

    Raises:
        OutputError: it does not.
    """
    free = free_space(Path(constants.HF_HUB_CACHE))
    if needed > free:
        raise OutputError(
            f"{what} {decimal(needed)} to be downloaded, and the disk of the cache '{constants.HF_HUB_CACHE}' has "
            f"{decimal(free)} free.",
            OTHER_DISK,
        )


def free_space(folder: Path) -> int:
    """Bytes that are free where a folder is, or will be made."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def fetch(remote: Remote, what: str) -> None:
    """Bring the content of a large file into the Hub's cache, going on where an earlier run broke off.

    Args:
        remote: the file; one that is not large, or a file system without links, is left to the Hub's client.
        what: its name in messages.

    Raises:
        UnavailableError: what has come is not the file.
        Interrupted: by Ctrl-C; what has come is kept.
        Exception: as `look_up`; what has come is kept.
    """
    if not remote.is_large or not are_symlinks_supported(constants.HF_HUB_CACHE):
        return
    remote.blob.parent.mkdir(parents=True, exist_ok=True)
    lock = Path(constants.HF_HUB_CACHE) / ".locks" / cache_of(remote.repository).name / f"{remote.etag}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        if remote.blob.is_file():
            return
        try:
            _fill(remote)
        except KeyboardInterrupt as interrupt:
            if not remote.here:
                raise
            kept = f"{decimal(remote.here)} of {decimal(remote.size)} of {what} are kept, and {GOES_ON}."
            raise Interrupted(signal.SIGINT, kept) from interrupt
        if file_sha256(remote.partial) != remote.etag:
            remote.partial.unlink()
            raise UnavailableError(f"{what} came damaged from the Hub, and was thrown away.", "Run the command again.")
        os.replace(remote.partial, remote.blob)


def _fill(remote: Remote) -> None:
    """Fetch what the partial file lacks."""
    url = huggingface_hub.hf_hub_url(remote.repository, remote.path, revision=remote.commit)
    with remote.partial.open("ab") as file, hub_reports(shows_download_bars()):
        if file.tell() > remote.size:
            file.truncate(0)
        name = remote.path.rpartition("/")[2]
        http_get(
            url,
            file,
            resume_size=os.fstat(file.fileno()).st_size,
            headers=build_hf_headers(),
            expected_size=remote.size,
            displayed_filename=name,
        )
