"""The pictures that `pretrain` learns from: found, grouped by identity, read; and the order of an epoch.

Nothing here imports torch; the random numbers of an epoch come from outside.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from profusion_cli.errors import InputError, UsageError
from profusion_cli.files import STDIO, read_source
from profusion_cli.images import crop_square, decode_photo

METADATA_SUFFIX = ".jsonl"
PICTURE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".tif", ".tiff", ".bmp", ".avif"),
    *(".ppm", ".pgm", ".pnm", ".jp2", ".j2k"),
)
MAX_LISTED = 1000
_LINE_HINT = (
    'A line looks like {"file_name": "a.png", "identity": "ann"} or {"file_name": "a.png", "ref_img": ["b.png"]}.'
)


@dataclass(frozen=True)
class Listing:
    """Pictures by path, none of them opened yet.

    Args:
        paths: all pictures.
        targets: indices of the pictures to be predicted.
        references: for each target, the pictures given for its reference view.
        identities: for each target, whom it shows, or None. A target without references has another
            picture of its identity as reference, and is its own where there is none.
    """

    paths: tuple[str, ...]
    targets: tuple[int, ...]
    references: tuple[tuple[int, ...], ...]
    identities: tuple[str | None, ...]


@dataclass(frozen=True)
class Scanned:
    """One picture that was opened: its SHA-256, or why it cannot be read."""

    sha256: str | None
    problem: str = ""


@dataclass(frozen=True)
class Dataset:
    """The readable pictures; the fields are those of `Listing`, and the SHA-256 of each picture."""

    paths: tuple[str, ...]
    sha256: tuple[str, ...]
    targets: tuple[int, ...]
    references: tuple[tuple[int, ...], ...]
    identities: tuple[str | None, ...]
    digest: str = field(default="", compare=False)

    def __len__(self) -> int:
        return len(self.targets)

    def paired(self) -> int:
        """How many targets have another picture as reference, in one epoch or another."""
        shared = Counter(self.identities)
        return sum(
            any(one != target for one in references) if references else identity is not None and shared[identity] > 1
            for target, references, identity in zip(self.targets, self.references, self.identities, strict=True)
        )

    def inputs(self, name: str) -> list[dict[str, str]]:
        """What a manifest lists: every picture, or one digest of them where they are too many."""
        if len(self.paths) <= MAX_LISTED:
            pairs = zip(self.paths, self.sha256, strict=True)
            return [{"kind": "photo", "name": Path(path).name, "sha256": digest} for path, digest in pairs]
        digest = hashlib.sha256("\n".join(sorted(self.sha256)).encode()).hexdigest()
        return [{"kind": "dataset", "name": name, "sha256": digest}]


def list_pictures(sources: Sequence[str]) -> Listing:
    """The pictures that the arguments of a command name.

    Args:
        sources: image files and folders (searched recursively, in order of their names), or one
            metadata file (`.jsonl`).

    Raises:
        UsageError: standard input, or a metadata file beside other arguments.
        InputError: a missing file, a folder without pictures, or a metadata file that cannot be understood.
    """
    if STDIO in sources:
        raise UsageError("`pretrain` cannot read pictures from standard input.", "Name files or folders.")
    metadata = [source for source in sources if source.lower().endswith(METADATA_SUFFIX) and not os.path.isdir(source)]
    if metadata:
        if len(sources) > 1:
            raise UsageError(
                f"'{metadata[0]}' is a metadata file, and other inputs are given beside it.",
                "Give the metadata file alone: it names its pictures.",
            )
        return _read_metadata(metadata[0])
    paths: dict[str, None] = {}
    for source in sources:
        if os.path.isdir(source):
            found = _pictures_below(source)
            if not found:
                raise InputError(f"The folder '{source}' holds no pictures.", "Give a folder of JPEG or PNG files.")
            paths |= dict.fromkeys(found)
        elif os.path.exists(source):
            paths[source] = None
        else:
            raise InputError(f"There is no file or folder '{source}'.", "Check the path.")
    return Listing(tuple(paths), tuple(range(len(paths))), ((),) * len(paths), (None,) * len(paths))


def _pictures_below(folder: str) -> list[str]:
    def refuse(error: OSError) -> None:
        raise InputError(
            f"The folder '{error.filename}' cannot be read: {error.strerror}.", "Check its permissions."
        ) from error

    found = []
    for place, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        names = [name for name in files if not name.startswith(".")]
        found += [os.path.join(place, name) for name in names if Path(name).suffix.lower() in PICTURE_SUFFIXES]
    return sorted(found)


def _read_metadata(source: str) -> Listing:
    folder = os.path.dirname(source)
    index: dict[str, int] = {}
    named: dict[int, list[int]] = {}
    identities: dict[int, str] = {}

    def number(name: str) -> int:
        return index.setdefault(os.path.normpath(os.path.join(folder, name)), len(index))

    try:
        # not splitlines: other line breaks, such as U+2028, may stand inside of JSON text
        lines = bytes(read_source(source)).decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"'{source}' is not UTF-8 text: {error.reason}.", "Save it as UTF-8.") from None
    for at, line in enumerate(lines, 1):
        if not line.strip():
            continue
        name, references, identity = _read_line(line, f"Line {at} of '{source}'")
        target = number(name)
        named.setdefault(target, []).extend(number(reference) for reference in references)
        if identity is not None and identities.setdefault(target, identity) != identity:
            raise InputError(
                f"Line {at} of '{source}' gives '{name}' the identity '{identity}', and an earlier line "
                f"'{identities[target]}'.",
                "Give each picture one identity.",
            )
    if not named:
        raise InputError(f"'{source}' names no pictures.", _LINE_HINT)
    missing = [path for path in index if not os.path.isfile(path)]
    if missing:
        more = f", and {len(missing) - 1} more are missing" if len(missing) > 1 else ""
        raise InputError(
            f"'{source}' names the picture '{missing[0]}', which does not exist{more}.",
            "Paths are relative to the metadata file: check them.",
        )
    references = tuple(tuple(dict.fromkeys(listed)) for listed in named.values())
    return Listing(tuple(index), tuple(named), references, tuple(identities.get(target) for target in named))


def _read_line(line: str, where: str) -> tuple[str, list[str], str | None]:
    try:
        entry: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not JSON: {error}.", _LINE_HINT) from None
    name = entry.get("file_name") if isinstance(entry, dict) else None
    if not isinstance(name, str) or not name:
        raise InputError(f"{where} has no 'file_name'.", _LINE_HINT)
    references, identity = entry.get("ref_img", []), entry.get("identity")
    references = [references] if isinstance(references, str) else references
    if not isinstance(references, list) or not all(isinstance(one, str) and one for one in references):
        raise InputError(f"{where} has a 'ref_img' that is no list of file names.", _LINE_HINT)
    if identity is not None and not isinstance(identity, str | int):
        raise InputError(f"{where} has an 'identity' that is no text.", _LINE_HINT)
    return name, references, None if identity is None else str(identity)


def scan_pictures(paths: Sequence[str], progress: Callable[[int], None] = lambda done: None) -> list[Scanned]:
    """Every picture decoded once, in several threads, to know which can be read.

    Args:
        paths: of the pictures.
        progress: called with the number of pictures read.
    """

    def scan(path: str) -> Scanned:
        try:
            return Scanned(decode_photo(read_source(path), path).sha256)
        except InputError as error:
            return Scanned(None, error.message)

    results = []
    with ThreadPoolExecutor(decoding_threads()) as pool:
        for scanned in pool.map(scan, paths):
            results.append(scanned)
            progress(len(results))
    return results


def decoding_threads() -> int:
    """How many pictures are decoded at a time."""
    return min(os.cpu_count() or 1, 16)


def make_dataset(listing: Listing, scanned: Sequence[Scanned]) -> Dataset:
    """The pictures that can be read.

    Raises:
        InputError: none can.
    """
    usable = [index for index, one in enumerate(scanned) if one.sha256 is not None]
    new = {old: index for index, old in enumerate(usable)}
    kept = [
        (new[target], tuple(new[one] for one in references if one in new), identity)
        for target, references, identity in zip(listing.targets, listing.references, listing.identities, strict=True)
        if target in new
    ]
    if not kept:
        count, problem = len(listing.targets), scanned[listing.targets[0]].problem
        raise InputError(
            f"None of the {count} picture(s) to learn from can be read; the first one: {problem}",
            "Give readable pictures, or a metadata file that ends in .jsonl.",
        )
    paths = tuple(listing.paths[index] for index in usable)
    sha256 = tuple(str(scanned[index].sha256) for index in usable)
    targets, references, identities = zip(*kept, strict=True)
    digest = hashlib.sha256(json.dumps([sha256, targets, references, identities]).encode()).hexdigest()
    return Dataset(paths, sha256, targets, references, identities, digest)


def load_square(dataset: Dataset, index: int, resolution: int) -> Any:
    """One picture as an RGB square.

    Raises:
        InputError: it cannot be read any more, or is another picture by now.
    """
    photo = decode_photo(read_source(dataset.paths[index]), dataset.paths[index])
    if photo.sha256 != dataset.sha256[index]:
        raise InputError(
            f"'{dataset.paths[index]}' has changed while the training ran.", "Leave the pictures alone meanwhile."
        )
    return crop_square(photo.image, resolution)


def epoch_order(
    dataset: Dataset, permutation: Callable[[int], list[int]], choose: Callable[[int], int]
) -> list[tuple[int, int]]:
    """(target, reference) of every target, in the order of one epoch.

    Pictures that belong together in this epoch stand side by side, so that each is encoded once although
    it is looked at twice: identities are cut into pairs (and a triple), newly in every epoch, and within
    one each picture has the next as its reference.

    Args:
        dataset: the pictures.
        permutation: of so many numbers, at random.
        choose: a random number below so many.
    """
    reference = list(dataset.targets)
    groups: dict[str, list[int]] = {}
    for i, (given, identity) in enumerate(zip(dataset.references, dataset.identities, strict=True)):
        if given:
            reference[i] = given[choose(len(given))]
        elif identity is not None:
            groups.setdefault(identity, []).append(i)
    for members in groups.values():
        for chunk in _pairs([members[j] for j in permutation(len(members))]):
            for one, following in zip(chunk, [*chunk[1:], chunk[0]], strict=True):
                reference[one] = dataset.targets[following]
    clusters: dict[int, list[int]] = {}
    for i, root in enumerate(_components(dataset, reference)):
        clusters.setdefault(root, []).append(i)
    together = list(clusters.values())
    return [(dataset.targets[i], reference[i]) for j in permutation(len(together)) for i in together[j]]


def _pairs(members: list[int]) -> Iterable[list[int]]:
    last = len(members) - 3 if len(members) % 2 else len(members)
    for start in range(0, last, 2):
        yield members[start : start + 2]
    if len(members) % 2:
        yield members[last:]


def _components(dataset: Dataset, reference: Sequence[int]) -> list[int]:
    """For each target a number that it shares with those it is connected to through its reference."""
    parent = list(range(len(dataset.paths)))

    def find(one: int) -> int:
        while parent[one] != one:
            parent[one] = parent[parent[one]]
            one = parent[one]
        return one

    for target, other in zip(dataset.targets, reference, strict=True):
        parent[find(target)] = find(other)
    return [find(target) for target in dataset.targets]
