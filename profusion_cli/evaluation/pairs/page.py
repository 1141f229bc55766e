"""The page for raters: a folder that works from `file://` and names no method, and its key beside it.

One question with two criteria is asked, as in the paper (Figs. 7 and 15): which picture is better, in showing the same
person or thing as the photo and in fitting the text. "Neither" is an answer.
"""

from __future__ import annotations

import json
import os
import random
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from PIL import Image

from profusion_cli.errors import InputError, OutputError, UsageError
from profusion_cli.evaluation.pairs import key as keys
from profusion_cli.evaluation.pairs.answers import LEFT, RIGHT
from profusion_cli.evaluation.pairs.key import Pair, key_path
from profusion_cli.evaluation.rendering import render
from profusion_cli.files import check_output, output_hint, read_source, sha256_of, writing
from profusion_cli.images import decode_photo

PHOTO_SIDE = 768
Item = tuple[str, str, int]
"""Subject, prompt and number of a picture: what the two pictures of a pair share."""


@dataclass(frozen=True)
class Entry:
    """One picture of a run.

    Args:
        method: that made it.
        subject: whom it shows.
        prompt: what was asked for, as raters read it.
        index: its number among the pictures of the prompt.
        picture: its file.
        photo: the file of the photo that was given.
    """

    method: str
    subject: str
    prompt: str
    index: int
    picture: Path
    photo: Path


def write_pairs(
    entries: Sequence[Entry], target: Path, ours: str, others: Sequence[str], count: int, seed: int
) -> dict[str, Any]:
    """Write the page for raters as the folder `target`, and its key beside it.

    Both pictures of a pair have subject, prompt, index and photo in common. Pairs are spread evenly over subjects, and
    a picture of ours is shown again only when every other one of its subject was. The same arguments give the same
    page.

    Args:
        entries: all pictures of a run.
        target: a folder that is not there yet, or is empty.
        ours: the method that all `others` are compared with.
        others: the methods compared with ours.
        count: pairs for each of the others, 1 or more; all there are, where there are fewer.
        seed: of the choice, the order, the sides and the file names.

    Returns:
        `id` of the page, `page` and `key` (paths), `pairs` by method, and `warnings`, a list of sentences.

    Raises:
        UsageError: `count` is below 1, there are no others, or ours is among them.
        InputError: a method without pictures, or without one that ours has too; two pictures of the same; a picture
            or photo that cannot be read.
        OutputError: the page or its key exists, or cannot be written.
    """
    others = list(dict.fromkeys(others))
    if count < 1:
        raise UsageError(f"{count} pairs are not enough.", "Ask for 1 or more for each method.")
    if not others or ours in others:
        raise UsageError(f"'{ours}' has to be compared with other methods.", "Name one or more of them.")
    target, key = Path(os.path.abspath(target)), key_path(target)
    rng = random.Random(f"pairs {seed}")
    run = _by_method(entries)
    chosen, warnings = _choose(run, ours, others, count, rng)
    with output_hint("Remove the page and its key to make others."):
        check_output(key, force=False)
    with writing(target):
        page = _write_both(target, key, ours, run, chosen, rng)
    counts = Counter(pair.other(ours) for pair in chosen)
    return {
        "id": page,
        "page": str(target / "index.html"),
        "key": str(key),
        "pairs": {other: counts[other] for other in others},
        "warnings": warnings,
    }


def _write_both(
    target: Path,
    key: Path,
    ours: str,
    run: Mapping[str, Mapping[Item, Entry]],
    chosen: Sequence[Pair],
    rng: random.Random,
) -> str:
    """Write the page and its key, both or neither; the id of the page."""
    if os.path.lexists(target) and (not target.is_dir() or any(target.iterdir())):
        raise OutputError(f"'{target}' already exists.", "Choose another name, or remove it.")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".pairs-", dir=target.parent) as work:
        page, pairs = _write_page(Path(work) / "page", run, chosen, rng)
        known = {id: asdict(pair) for id, pair in pairs.items()}
        content = {"kind": keys.KIND, "page": page, "ours": ours, "pairs": known}
        (Path(work) / "key").write_text(json.dumps(content, indent=1), encoding="utf-8")
        if target.is_dir():
            target.rmdir()
        (Path(work) / "key").rename(key)
        (Path(work) / "page").rename(target)
    return page


def _by_method(entries: Sequence[Entry]) -> dict[str, dict[Item, Entry]]:
    run: dict[str, dict[Item, Entry]] = {}
    for entry in entries:
        item = (entry.subject, entry.prompt, entry.index)
        if item in run.setdefault(entry.method, {}):
            raise InputError(
                f"'{entry.method}' has two pictures number {entry.index} of '{entry.prompt}' for '{entry.subject}'.",
                "Give each picture once.",
            )
        run[entry.method][item] = entry
    return run


def _choose(
    run: Mapping[str, Mapping[Item, Entry]], ours: str, others: Sequence[str], count: int, rng: random.Random
) -> tuple[list[Pair], list[str]]:
    """Pairs in the order of the page, ours on the left in every other one of each opponent; and warnings."""
    pairs, warnings, used = [], [], Counter[Item]()
    for method in (ours, *others):
        if method not in run:
            raise InputError(f"There is no picture by '{method}'.", f"There are some by: {', '.join(run) or 'nobody'}.")
    for other in others:
        by_subject: dict[str, list[Item]] = {}
        for item in sorted(run[ours].keys() & run[other].keys()):
            if run[ours][item].photo == run[other][item].photo:
                by_subject.setdefault(item[0], []).append(item)
        queues = [sorted(rng.sample(items, len(items)), key=used.__getitem__) for items in by_subject.values()]
        rng.shuffle(queues)
        items = [item for turn in zip_longest(*queues) for item in turn if item is not None]
        if not items:
            raise InputError(
                f"'{ours}' and '{other}' have no picture of the same subject, photo, prompt and number.",
                "Compare methods that drew the same.",
            )
        if len(items) < count:
            warnings.append(f"'{ours}' and '{other}' have only {len(items)} pairs, not {count}.")
        items = items[:count]
        used.update(items)
        ours_left = [number % 2 == 0 for number in range(len(items))]
        rng.shuffle(ours_left)
        for item, first in zip(items, ours_left, strict=True):
            pairs.append(Pair(ours, other, *item) if first else Pair(other, ours, *item))
    rng.shuffle(pairs)
    return pairs, warnings


def _write_page(
    folder: Path, run: Mapping[str, Mapping[Item, Entry]], pairs: Sequence[Pair], rng: random.Random
) -> tuple[str, dict[str, Pair]]:
    """Write a page without method names; its id, and its pairs by theirs."""
    (folder / "pictures").mkdir(parents=True)
    hashes: list[str] = []

    def copy(source: Path, side: int | None = None) -> str:
        """The picture under a name that says nothing; encoded anew, since PNG files tell of their making."""
        image = decode_photo(read_source(str(source)), str(source)).image
        if side is not None:
            image.thumbnail((side, side), Image.Resampling.LANCZOS)
        name = f"pictures/{rng.getrandbits(64):016x}.png"
        image.save(folder / name)
        hashes.append(sha256_of(image.tobytes()))
        return name

    photos: dict[Path, str] = {}
    known, shown = {}, []
    for pair in pairs:
        item = (pair.subject, pair.prompt, pair.index)
        id = f"{rng.getrandbits(64):016x}"
        photo = run[pair.left][item].photo
        if photo not in photos:
            photos[photo] = copy(photo, PHOTO_SIDE)
        sides = {side: copy(run[method][item].picture) for side, method in ((LEFT, pair.left), (RIGHT, pair.right))}
        shown.append({"id": id, "text": pair.prompt, "photo": photos[photo], **sides})
        known[id] = pair
    page = sha256_of(json.dumps([shown, hashes]).encode())[:16]
    html = render("pairs.html", page={"id": page, "pairs": shown})
    (folder / "index.html").write_text(html, encoding="utf-8")
    return page, known
