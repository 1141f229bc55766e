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
        subjects = [subject["name"] for subject in record["subjects"]]
        ways = record.get("weights")
        several = isinstance(ways, list) and ways and isinstance(ways[0], list)
        command = "interpolate" if several else "sample"
        prompts, count = _prompts(record)
        own = _options(record, command, None if several or ways is None else ways)
        given = [command, *subjects, *prompts, "--seed", str(record["seed"]), *own]
        if any(text.startswith("-") for text in (*subjects, *prompts)):  # it would be read as an option
            raise ValueError("a subject or a prompt begins with '-'")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"'{name}' is no picture of finished subjects, or was edited: no command is known that draws it again.",
            "Give a picture, a sheet or a way as `profusion sample` and `profusion interpolate` write them.",
        ) from error
    if several:
        return [*given, "--frames", str(len(ways)), "-o", name]
    if "pictures" in record:
        return [*given, *_start(record.get("start")), "-n", str(count), "--sheet", name]
    return [*given, *_start(record.get("start")), "-o", name]


def _prompts(record: Mapping[str, Any]) -> tuple[list[str], int]:
    """The prompts of a picture or a sheet, and how many pictures of each it shows."""
    if "pictures" not in record:
        return [record["prompt"]], 1
    prompts = list(dict.fromkeys(picture["prompt"] for picture in record["pictures"]))
    return prompts, len(record["pictures"]) // len(prompts)


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
    settings |= {key: record[key] for key in ("class_word", "placeholder") if key in record}
    for name, value in settings.items():
        key = all_keys()[name]
        text = _text(value)
        if key.hint is str:  # which says anything
            yield f"{key.flag}={text}"
        else:
            yield from ("--set", f"{name}={text}")
    if SOURCE_TYPE not in record:
        yield "--no-mark"


def _text(value: Any) -> str:
    """A value as options and `--set` take it."""
    return value if isinstance(value, str) else json.dumps(value)
