"""What people prefer: a page of blinded pairs of pictures for raters, and what their answers say.

The page is a folder that works from `file://` and names no method; which side is whose is in a key file beside it,
which raters do not get. One question with two criteria is asked, as in the paper (Figs. 7 and 15): which picture is
better, in showing the same person or thing as the photo and in fitting the text. "Neither" is an answer.
"""

from __future__ import annotations

import json
import os
import random
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from itertools import zip_longest
from math import isnan
from pathlib import Path
from typing import Any

from PIL import Image

from profusion_cli.errors import InputError, OutputError, UsageError
from profusion_cli.evaluation.statistics import Preference, fleiss_kappa, preference
from profusion_cli.files import check_output, output_hint, read_source, sha256_of
from profusion_cli.images import decode_photo

CHOICES = LEFT, RIGHT, EQUAL = ("left", "right", "equal")
PHOTO_SIDE = 768
_KEY, _ANSWERS = "key", "answers"
_DAMAGED = "Get a whole copy of the file, as the page or the command wrote it."
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


@dataclass(frozen=True)
class Pair:
    """One pair, unblinded: the methods on both sides, and what was asked for."""

    left: str
    right: str
    subject: str
    prompt: str
    index: int


@dataclass(frozen=True)
class Key:
    """The key of a page: its id, the method that all others are compared with, and its pairs by id."""

    page: str
    ours: str
    pairs: Mapping[str, Pair]


@dataclass(frozen=True)
class Answers:
    """What one rater answered: `choices` are `left`, `right` or `equal` by the pair's id."""

    source: str
    page: str
    rater: str
    choices: Mapping[str, str]


@dataclass(frozen=True)
class Comparison:
    """Our method against one other.

    Args:
        other: the other method.
        preference: how often ours was preferred, with its interval over subjects.
        subjects: of the answered pairs.
        pairs: that any rater answered.
        kappa: Fleiss' kappa of left, right and equal, over the pairs that two or more raters answered. Sides are
            random, so that raters who all prefer one method agree beyond chance. NaN without such pairs.
        kappa_pairs: how many these are.
    """

    other: str
    preference: Preference
    subjects: int
    pairs: int
    kappa: float
    kappa_pairs: int


@dataclass(frozen=True)
class Summary:
    """What all raters said: a comparison for each opponent, and `warnings`, sentences the user should read."""

    page: str
    ours: str
    raters: tuple[str, ...]
    comparisons: tuple[Comparison, ...]
    warnings: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON; null is what the answers cannot tell."""
        return _plain(asdict(self))


def key_path(target: Path) -> Path:
    """Where the key of the page in the folder `target` lies: beside it."""
    target = Path(os.path.abspath(target))
    return target.with_name(f"{target.name}-key.json")


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
    try:
        if os.path.lexists(target) and (not target.is_dir() or any(target.iterdir())):
            raise OutputError(f"'{target}' already exists.", "Choose another name, or remove it.")
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".pairs-", dir=target.parent) as work:
            page, pairs = _write_page(Path(work) / "page", run, chosen, rng)
            content = {"kind": _KEY, "page": page, "ours": ours, "pairs": {id: asdict(p) for id, p in pairs.items()}}
            (Path(work) / "key").write_text(json.dumps(content, indent=1), encoding="utf-8")
            if target.is_dir():
                target.rmdir()
            (Path(work) / "key").rename(key)
            (Path(work) / "page").rename(target)
    except OSError as error:
        raise OutputError(
            f"'{target}' cannot be written: {error.strerror or error}.", "Choose another place."
        ) from error
    counts = Counter(_other(pair, ours) for pair in chosen)
    return {
        "id": page,
        "page": str(target / "index.html"),
        "key": str(key),
        "pairs": {other: counts[other] for other in others},
        "warnings": warnings,
    }


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
    # escaped, since "</script>" within a text would end the script
    data = json.dumps({"id": page, "pairs": shown}).replace("<", "\\u003c")
    template = resources.files(__package__).joinpath("pairs.html").read_text(encoding="utf-8")
    (folder / "index.html").write_text(template.replace("/*PAGE*/null", data), encoding="utf-8")
    return page, known


def read_key(path: str | Path) -> Key:
    """The key that `write_pairs` wrote beside a page.

    Raises:
        InputError: missing, damaged, or not a key.
    """
    content = _read_json(path, _KEY, "the key of a page of pairs")
    try:
        key = Key(content["page"], content["ours"], {id: Pair(**pair) for id, pair in content["pairs"].items()})
        texts = [key.page, key.ours, *(text for p in key.pairs.values() for text in (p.left, p.right, p.subject))]
        one_sided = all((pair.left == key.ours) != (pair.right == key.ours) for pair in key.pairs.values())
        if not (key.pairs and one_sided and all(isinstance(text, str) for text in texts)):
            raise ValueError
    except (KeyError, TypeError, AttributeError, ValueError):
        raise InputError(f"'{path}' is damaged: it is no key of pairs.", _DAMAGED) from None
    return key


def read_answers(paths: Sequence[str | Path]) -> list[Answers]:
    """The answers that raters downloaded from a page, one file for each rater.

    Raises:
        UsageError: no file.
        InputError: a file that is missing or damaged, or no file of answers; the same rater twice.
    """
    if not paths:
        raise UsageError("There are no files of answers.", "Name the files that the raters downloaded.")
    found: list[Answers] = []
    for path in paths:
        content = _read_json(path, _ANSWERS, "a file of answers")
        page, rater, choices = (content.get(name) for name in ("page", "rater", "answers"))
        if not (isinstance(page, str) and isinstance(rater, str) and rater.strip() and isinstance(choices, dict)):
            raise InputError(f"'{path}' is damaged: page, rater or answers are missing.", _DAMAGED)
        if wrong := [choice for choice in choices.values() if choice not in CHOICES]:
            raise InputError(f"'{path}' is damaged: {json.dumps(wrong[0])} is no answer.", _DAMAGED)
        rater = " ".join(rater.split())
        for other in found:
            if other.rater.casefold() == rater.casefold():
                raise InputError(
                    f"'{other.source}' and '{path}' are both by the rater '{rater}'.",
                    "Give the newer one alone; if they are two people, change one name in the file.",
                )
        found.append(Answers(str(path), page, rater, choices))
    return found


def summarise(key: Key, answers: Sequence[Answers]) -> Summary:
    """Preference rates for our method against each of the others, and how far raters agree.

    Raises:
        InputError: answers to another page, or to a pair that the page does not have.
    """
    warnings = []
    for one in answers:
        if one.page != key.page:
            raise InputError(
                f"'{one.source}' answers another page ({one.page}, not {key.page}).",
                "Leave it out, or give the key of its page.",
            )
        if unknown := [id for id in one.choices if id not in key.pairs]:
            raise InputError(f"'{one.source}' is damaged: the page has no pair '{unknown[0]}'.", _DAMAGED)
        if len(one.choices) < len(key.pairs):
            warnings.append(
                f"'{one.source}' is unfinished: '{one.rater}' answered {len(one.choices)} of {len(key.pairs)} pairs."
            )
    comparisons = []
    for other in dict.fromkeys(_other(pair, key.ours) for pair in key.pairs.values()):
        outcomes: dict[str, list[float]] = {}
        table = []
        for id, pair in key.pairs.items():
            if _other(pair, key.ours) != other:
                continue
            given = [one.choices[id] for one in answers if id in one.choices]
            table.append([given.count(choice) for choice in CHOICES])
            ours = LEFT if pair.left == key.ours else RIGHT
            outcomes.setdefault(pair.subject, []).extend(
                0.5 if choice == EQUAL else float(choice == ours) for choice in given
            )
        rated = [sum(row) for row in table]
        comparisons.append(
            Comparison(
                other=other,
                preference=preference(outcomes),
                subjects=sum(bool(values) for values in outcomes.values()),
                pairs=sum(number > 0 for number in rated),
                kappa=fleiss_kappa(table),
                kappa_pairs=sum(number > 1 for number in rated),
            )
        )
        if not any(rated):
            warnings.append(f"Nobody has answered a pair of '{key.ours}' and '{other}'.")
    comparisons.sort(key=lambda comparison: comparison.other)
    return Summary(key.page, key.ours, tuple(one.rater for one in answers), tuple(comparisons), tuple(warnings))


def table(summary: Summary) -> str:
    """The comparisons as a Markdown table; a dash is what the answers cannot tell."""

    def percent(value: float) -> str:
        return "–" if isnan(value) else f"{100 * value:.1f}"

    head = ("subjects", "pairs", "answers", "preferred, %", "ties, %", "Fleiss' kappa (pairs)")
    lines = [f"| {_cell(summary.ours)} against | {' | '.join(head)} |", "| --- " * 7 + "|"]
    for one in summary.comparisons:
        rate = one.preference.rate
        interval = "" if isnan(rate.low) else f" [{percent(rate.low)}, {percent(rate.high)}]"
        kappa = "–" if isnan(one.kappa) else f"{one.kappa:.2f} ({one.kappa_pairs})"
        lines.append(
            f"| {_cell(one.other)} | {one.subjects} | {one.pairs} | {one.preference.answers} "
            f"| {percent(rate.mean)}{interval} | {percent(one.preference.ties)} | {kappa} |"
        )
    return "\n".join(lines)


def _other(pair: Pair, ours: str) -> str:
    return pair.right if pair.left == ours else pair.left


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        fields = getattr(value, "_fields", None)
        return {name: _plain(getattr(value, name)) for name in fields} if fields else [_plain(one) for one in value]
    return None if isinstance(value, float) and isnan(value) else value


def _read_json(path: str | Path, kind: str, what: str) -> dict[str, Any]:
    """A JSON object of this kind; `what` says it in words."""
    try:
        content = json.loads(bytes(read_source(str(path))).decode("utf-8-sig"))
    except (ValueError, RecursionError):
        raise InputError(f"'{path}' is damaged: it is not JSON text.", _DAMAGED) from None
    if not isinstance(content, dict) or content.get("kind") != kind:
        raise InputError(f"'{path}' is not {what}.", f"Give {what}.")
    return content
