"""The command that makes a picture again, from what the picture remembers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from profusion_cli.errors import InputError
from profusion_cli.images.marks import SOURCE_TYPE
from profusion_cli.keys import all_keys
from profusion_cli.plans import EXACT

PER_PICTURE = ("num_images", "batch_size")
"""Settings of `sample` that change no picture."""


def replay(record: Mapping[str, Any], name: str) -> list[str]:
    """The arguments of `profusion` that draw a picture, a sheet or a way again, every setting of the sampler said.

    Args:
        record: of the picture.
        name: of its file, which the command writes.

    Raises:
        InputError: the picture is of another kind, or its record was edited.
    """
    try:
        return _arguments(record, name)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise InputError(
            f"'{name}' is no picture of finished subjects, or not all of those of a command, or was edited: no command "
            "is known that draws it again.",
            "Give a picture, a sheet or a way as `profusion sample` and `profusion interpolate` write them.",
        ) from error


def _arguments(record: Mapping[str, Any], name: str) -> list[str]:
    """See `replay`.

    Raises:
        LookupError, TypeError, ValueError, AttributeError, ArithmeticError: a record that says something else.
    """
    subjects = [subject["name"] for subject in record["subjects"]]
    ways = record.get("weights")
    several = isinstance(ways, list) and bool(ways) and isinstance(ways[0], list)
    if several and min(len(subjects), len(ways)) < 2:
        raise ValueError("a way leads from one subject to another")
    command = "interpolate" if several else "sample"
    prompts, count = _prompts(record)
    if any(text.startswith("-") for text in (*subjects, *prompts)):
        raise ValueError("it would be read as an option")
    own = _options(record, command, None if several or ways is None else ways)
    given = [command, *subjects, *prompts, "--seed", str(int(record["seed"])), *own]
    if several:
        rate = ["--fps", f"{record['fps']:g}"] if "fps" in record else []
        return [*given, "--frames", str(len(ways)), *rate, "-o", name]
    given += _start(record.get("start"))
    return [*given, "-n", str(count), "--sheet", name] if "pictures" in record else [*given, "-o", name]


def _prompts(record: Mapping[str, Any]) -> tuple[list[str], int]:
    """The prompts of a picture or a sheet, and how many pictures of each it shows."""
    if "pictures" not in record:
        return [record["prompt"]], 1
    shown = [(picture["prompt"], picture["seed"]) for picture in record["pictures"]]
    prompts = list(dict.fromkeys(prompt for prompt, _ in shown))
    count = len(shown) // len(prompts)
    if record.get("mixed") or shown != [(text, record["seed"] + j) for text in prompts for j in range(count)]:
        raise ValueError("they are not all of the pictures of one command")
    return prompts, count


def _start(start: Mapping[str, Any] | None) -> list[str]:
    """The options of what a picture was drawn over."""
    if start is None:
        return []
    mask = [f"--inpaint-mask={start['mask']['name']}"] if "mask" in start else []
    return [f"--start-from={start['name']}", f"--strength={start['strength']}", *mask]


def _options(record: Mapping[str, Any], command: str, shares: Sequence[float] | None) -> Iterator[str]:
    """Every setting of the sampler; by `--set`, which takes what has no effect too."""
    left_out = (*PER_PICTURE, *(("weights", "areas") if command == "interpolate" else ()))
    settings = {f"sample.{key}": value for key, value in record["sample"].items() if key not in left_out}
    if record["sample"]["speed"] != EXACT:
        shape = dict(record["plan"])
        settings |= {f"plans.{record['sample']['speed']}.{key}": value for key, value in shape.items()}
    if shares is not None:
        settings["sample.weights"] = shares
    if "seen" in record and "pictures" not in record:
        if record["seen"] is None:
            raise ValueError("one number is the photo of every subject")
        settings |= {"sample.references": "one", "sample.reference": record["seen"]}
    settings |= {key: record[key] for key in ("class_word", "placeholder", "concept_prompt") if key in record}
    for name, value in settings.items():
        key = all_keys()[name]
        if key.hint is str and key.flag:  # which says anything
            yield f"{key.flag}={value}"
        else:
            one_of_few = isinstance(value, str) and key.hint is not str
            yield from ("--set", f"{name}={value if one_of_few else json.dumps(value)}")
    if SOURCE_TYPE not in record:
        yield "--no-mark"
