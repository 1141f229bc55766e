"""Tar shards of pictures, in WebDataset's layout, that `pretrain` learns from: found, and read one after another.

Files of one name before its first dot, which follow one another, are a sample: https://github.com/webdataset/webdataset.
Nothing here imports torch before a shard is read.
"""

from __future__ import annotations

import glob
import hashlib
import importlib.util
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from profusion_cli.dataset import PICTURE_SUFFIXES, Listing, list_pictures
from profusion_cli.errors import InputError, UnavailableError, UsageError, first_line

SHARD_SUFFIX = ".tar"
LIBRARIES = ("webdataset", "braceexpand")


@dataclass(frozen=True)
class Shards:
    """Tar files by path, none of them opened yet; what is in them is not counted.

    Args:
        paths: of the shards.
        sizes: in bytes.
    """

    paths: tuple[str, ...]
    sizes: tuple[int, ...]

    @property
    def digest(self) -> str:
        """SHA-256 of their names and sizes: reading terabytes to know them again would take longer than training."""
        known = [f"{Path(path).name} {size}" for path, size in zip(self.paths, self.sizes, strict=True)]
        return hashlib.sha256("\n".join(sorted(known)).encode()).hexdigest()


@dataclass(frozen=True)
class Member:
    """A picture of a shard, still encoded as a file; or what is wrong with the shard.

    Args:
        name: of the shard and the picture in it, or of the shard alone.
        data: of the picture, or None.
        problem: why it, or the rest of the shard, cannot be read.
    """

    name: str
    data: bytes | None
    problem: str = ""


def list_inputs(sources: Sequence[str]) -> Listing | Shards:
    """What the arguments of `pretrain` name: pictures, or tar shards.

    Raises:
        UsageError, InputError: as `list_pictures`, and of shards.
        UnavailableError: the libraries that read shards are not installed.
    """
    shards = [source for source in sources if source.lower().endswith(SHARD_SUFFIX) and not os.path.isdir(source)]
    if not shards:
        return list_pictures(sources)
    if other := next((source for source in sources if source not in shards), None):
        raise UsageError(
            f"'{shards[0]}' is a tar shard, and '{other}' is none.",
            "Give shards alone, or unpack them: pictures are read in another way.",
        )
    if missing := [name for name in LIBRARIES if importlib.util.find_spec(name) is None]:
        raise UnavailableError(
            f"Reading tar shards needs the library '{missing[0]}', which is not installed.",
            "Install it: pip install 'profusion[shards]'",
        )
    paths = list(dict.fromkeys(path for source in shards for path in _expanded(source)))
    return Shards(tuple(paths), tuple(os.path.getsize(path) for path in paths))


def _expanded(source: str) -> list[str]:
    """The files that a name stands for, by braces ({000..012}) or as a pattern, where there is none of just that name.

    Raises:
        InputError: one that is not there, or a folder.
    """
    if os.path.isfile(source):
        return [source]
    from braceexpand import UnbalancedBracesError, braceexpand

    try:
        names = list(braceexpand(source))
    except UnbalancedBracesError as error:
        raise InputError(f"The braces of '{source}' do not match: {first_line(error)}.", "Mend the name.") from None
    found = []
    for name in names:
        matching = [name] if os.path.isfile(name) else sorted(filter(os.path.isfile, glob.glob(name)))
        if not matching:
            raise InputError(f"There is no shard '{name}'.", "Check the path.")
        found += matching
    return found


def read_shard(path: str) -> Iterator[Member]:
    """The pictures of a shard, in its order; other files in it (captions, metadata) are passed over.

    What cannot be read, such as the rest of a shard that is cut off, comes last, as a problem.
    """
    from webdataset.tariterators import base_plus_ext, group_by_keys, tar_file_expander

    problems: list[str] = []

    def tell(error: Exception) -> bool:
        # webdataset adds what it was reading, behind an @ or as further arguments
        problems.append(str(error.args[0] if error.args else type(error).__name__).partition(" @ ")[0])
        return True

    def is_picture(name: str) -> bool:
        return f".{base_plus_ext(name)[1]}".lower() in PICTURE_SUFFIXES

    count = 0
    try:
        with open(path, "rb") as stream:  # here, and not by webdataset, which takes some names for commands to run
            source = iter([{"url": path, "stream": stream}])
            files = tar_file_expander(source, handler=tell, select_files=is_picture)
            for sample in group_by_keys(files, handler=tell):
                for suffix in [suffix for suffix in sample if f".{suffix}" in PICTURE_SUFFIXES]:
                    count += 1
                    yield Member(f"{path}/{sample['__key__']}.{suffix}", sample[suffix])
    except OSError as error:
        problems.append(error.strerror or str(error))
    if problems:
        yield Member(path, None, f"'{path}' cannot be read beyond its first {count} picture(s): {problems[0]}.")
    elif count == 0:
        yield Member(path, None, f"'{path}' holds no pictures with names such as 0001.jpg.")
