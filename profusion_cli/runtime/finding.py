"""Finding the files of one part of a model, and downloading what is not on this machine."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import huggingface_hub
from huggingface_hub import _CACHED_NO_EXIST, constants
from huggingface_hub.errors import (
    DisabledRepoError,
    EntryNotFoundError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from rich.filesize import decimal

from profusion_cli.errors import GoneError, OutputError, ProfusionError, UnavailableError
from profusion_cli.listener import who_hears
from profusion_cli.runtime.downloads import (
    GOES_ON,
    OTHER_DISK,
    Remote,
    check_space,
    fetch,
    look_up,
    missing_bytes,
)
from profusion_cli.runtime.hub import Files, Source, at_hand, hub_file, is_hub_id, missing, shard_names
from profusion_cli.runtime.parts import inline

GONE = (RepositoryNotFoundError, DisabledRepoError, RevisionNotFoundError)
"""What the Hub's client raises of a repository or revision that is not there, or not for everybody."""


@contextlib.contextmanager
def _downloading(source: Source, what: str) -> Iterator[None]:
    """Words for what goes wrong while the Hub is asked for something.

    Raises:
        GoneError: the repository is not there, or not for everybody.
        UnavailableError: it cannot be reached or read.
        OutputError: the disk is full.
    """
    try:
        yield
    except ProfusionError:
        raise
    except GONE as error:
        told = missing(source, what)
        raise GoneError(told.message, told.hint) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutputError(
                f"{what} of '{source}' does not fit on the disk of the cache '{constants.HF_HUB_CACHE}'.", OTHER_DISK
            ) from error
        raise missing(source, what) from error
    except Exception as error:  # the transports below the Hub's client have types of their own
        raise missing(source, what) from error


def _download(source: Source, name: str, what: str) -> Path | None:
    """A small file from the Hub, or None where the repository does not have it.

    Raises:
        UnavailableError, OutputError: as `_downloading`.
    """
    with _downloading(source, what):
        try:
            return hub_file(source, name, local_files_only=False)
        except LocalEntryNotFoundError:  # not reachable; a kind of EntryNotFoundError
            raise
        except EntryNotFoundError:
            return None


def _look_up(source: Source, name: str, what: str) -> Remote | None:
    """A file that is not at hand, as the Hub describes it; None where the repository does not have it."""
    path = f"{source.subfolder}/{name}" if source.subfolder else name
    with _downloading(source, f"{what} ({name})"):
        return look_up(source.id, path, source.revision)


def place_at_hand(source: Source, required: Sequence[str], weights: Sequence[str] = ()) -> Source:
    """The source, or its mirror where that alone is on this machine; the arguments are those of `find_files`."""

    def is_here(place: Source) -> bool:
        return all(at_hand(place, name) for name in required) and (
            not weights or any(at_hand(place, name) for name in weight_names(weights))
        )

    mirror = source.mirror
    return mirror if mirror is not None and not is_here(source) and is_here(mirror) else source


def files_to_fetch(source: Source, what: str, required: Sequence[str], weights: Sequence[str] = ()) -> list[Remote]:
    """The files of a part that must be downloaded, which is asked of the Hub; none where all are at hand.

    Args:
        source, what, required, weights: as for `find_files`.

    Raises:
        UnavailableError: the repository cannot be asked, or does not have them.
        OutputError: the disk is full.
    """
    return _choose(source, what, required, weights)[1]


def _choose(source: Source, what: str, required: Sequence[str], weights: Sequence[str]) -> tuple[Source, list[Remote]]:
    """The place to take a part from, and its files that must be downloaded; see `files_to_fetch`.

    What is at hand goes first, then the source, and its mirror where that is gone.
    """
    place = place_at_hand(source, required, weights)
    try:
        return place, _lacking(place, what, required, weights)
    except GoneError as gone:
        if source.mirror is None or place is source.mirror:
            raise
        try:
            return source.mirror, _lacking(source.mirror, what, required, weights)
        except GoneError as error:
            raise GoneError(f"{gone.message} {error.message}", error.hint) from error


def _lacking(source: Source, what: str, required: Sequence[str], weights: Sequence[str]) -> list[Remote]:
    """See `files_to_fetch`, of this place alone."""
    if source.is_local or constants.HF_HUB_OFFLINE:
        return []
    if not is_hub_id(source.id):
        raise missing(source, what)

    def need(name: str) -> list[Remote]:
        if at_hand(source, name):
            return []
        remote = _look_up(source, name, what)
        if remote is None:
            raise missing(source, f"{what} ({name})")
        return [remote]

    found = [remote for name in required for remote in need(name)]
    names = weight_names(weights)
    chosen = next((name for name in names if at_hand(source, name)), None)
    if chosen is None and names:
        chosen, remote = next(
            ((name, remote) for name in names if (remote := _look_up(source, name, what))), (None, None)
        )
        if remote is None:
            raise missing(source, f"{what} ({weights[0]})")
        found.append(remote)
    if chosen is not None and chosen.endswith(".index.json"):  # small, and it names the shards
        index = at_hand(source, chosen) or _download(source, chosen, f"{what} ({chosen})")
        found += [remote for name in shard_names(index) for remote in need(name)]
    return found


def weight_names(weights: Sequence[str]) -> list[str]:
    """Names that a weights file may have, sharded ones through their index."""
    return [variant for name in weights for variant in (name, f"{name}.index.json")]


def _fetch(source: Source, what: str, files: list[Remote], instead_of: str) -> None:
    """Download files of a part, after their size is told and there is room for them.

    Args:
        source: the place that is asked.
        what: the part's name in messages.
        files: them.
        instead_of: the Hub id that was wanted.

    Raises:
        UnavailableError, OutputError: as `_downloading`, or there is no room.
        Interrupted: what has come is kept.
    """
    part, size, lacking = inline(what), sum(file.size for file in files), missing_bytes(files)
    here = f", of which {decimal(size - lacking)} are here already" if lacking < size else ""
    why = "" if source.id == instead_of else f" ('{instead_of}' is gone from the Hub)"
    who_hears().note(f"Downloading {part} of {source.id}{why}: {decimal(size)}{here}.")
    check_space(lacking, f"{what} of '{source}' needs")
    for file in files:
        before = file.here
        try:
            with _downloading(source, what):
                fetch(file, part)
                hub_file(replace(source, subfolder=""), file.path, local_files_only=False)
        except UnavailableError as error:
            if before < file.here < file.size:
                raise UnavailableError(
                    f"The download of {part} of '{source}' broke off after {decimal(file.here)} of "
                    f"{decimal(file.size)}.",
                    f"Run the command again: {GOES_ON}.",
                ) from error
            raise


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
        OutputError: a download does not fit on the disk.
        Interrupted: a download; what has come is kept.
    """
    if not source.is_local and not is_hub_id(source.id):
        raise missing(source, what)
    wanted = source.id
    source, lacking = _choose(source, what, required, weights)
    if lacking:
        _fetch(source, what, lacking, wanted)

    def need(name: str) -> Path:
        path = at_hand(source, name)
        if path is None:
            raise missing(source, f"{what} ({name})")
        return path

    folder = [need(name) for name in required][-1].parent
    found = None
    if weights:
        found = next((name for name in weight_names(weights) if at_hand(source, name)), weights[0])
        folder = need(found).parent
        if found.endswith(".index.json"):
            for shard in shard_names(folder / found):
                need(shard)
    commit = None
    if not source.is_local and "snapshots" in folder.parts:
        commit = folder.parts[folder.parts.index("snapshots") + 1]
    same = replace(source, revision=commit or source.revision)  # a branch may have moved on since
    for name in optional:
        if constants.HF_HUB_OFFLINE or (folder / name).is_file() or _known_not_to_have(same, name):
            continue
        try:
            _download(same, name, what)
        except UnavailableError:
            if lacking:
                raise
    return Files(folder, found, source, commit)


def _known_not_to_have(source: Source, name: str) -> bool:
    """Whether the Hub's cache remembers that a repository does not have a file; a folder says it by itself."""
    if source.is_local:
        return True
    path = f"{source.subfolder}/{name}" if source.subfolder else name
    return huggingface_hub.try_to_load_from_cache(source.id, path, revision=source.revision) is _CACHED_NO_EXIST
