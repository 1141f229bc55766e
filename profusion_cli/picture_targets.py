"""Where the pictures of sampling go: names of files, and folders for many."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Sequence
from pathlib import Path

from profusion_cli.config import Config
from profusion_cli.errors import UsageError
from profusion_cli.files import STDIO, check_target
from profusion_cli.images.formats import PICTURES, PNG
from profusion_cli.prompts import Prompt

DEFAULT_FOLDER = "pictures"
FILE_SUFFIXES = (
    *(".png", ".apng", ".jpg", ".jpeg", ".webp", ".gif", ".tif", ".tiff", ".bmp", ".avif", ".jp2", ".svg", ".pdf"),
    *(".mp4", ".avi", ".mov", ".webm", ".mkv", ".zip", ".pfz"),
)
"""What a name ends in that is meant for a file, not for a folder of pictures."""


def picture_name(number: int, prompt: str, seed: int) -> str:
    """File name of a picture: number of the prompt, its words, and the seed."""
    words = re.sub(r"[^a-z0-9]+", "-", prompt.lower().replace("*", "")).strip("-")[:60].strip("-")
    return f"{number + 1:02d}-{words or 'picture'}-{seed}{PNG}"


def check_suffix(target: str, written: Collection[str]) -> None:
    """A name is that of a folder, or of a file of a kind that is written here.

    Raises:
        UsageError: it is empty, or that of another file.
    """
    if not target:
        raise UsageError("The name of the output is empty.", "Name a file or a folder with -o.")
    suffix = Path(target).suffix.lower()
    if suffix in FILE_SUFFIXES and suffix not in written and not os.path.isdir(target):
        kinds = " or ".join(", ".join(written).rsplit(", ", 1))
        raise UsageError(
            f"'{target}' would be a {suffix} file, which is not written here.", f"Use a {kinds} name, or a folder."
        )


def plan_targets(
    target: str | None, prompts: Sequence[Prompt], config: Config, force: bool, as_json: bool
) -> dict[tuple[int, int], str]:
    """Where each picture goes, checked before the work.

    Raises:
        UsageError: one file for several pictures, or for something else than a picture.
        OutputError: something is in the way.
    """
    if target is not None:
        check_suffix(target, PICTURES)
    count = len(prompts) * config.sample.num_images
    if target == STDIO or (target is not None and Path(target).suffix.lower() in PICTURES):
        if count > 1:
            where = "standard output" if target == STDIO else f"the one file '{target}'"
            raise UsageError(f"{count} pictures do not fit into {where}.", "Name a folder with -o.")
        targets = {(0, 0): target}
    else:
        folder = Path(DEFAULT_FOLDER if target is None else target)
        targets = {
            (number, index): str(folder / picture_name(number, prompt.text, config.seed + index))
            for number, prompt in enumerate(prompts)
            for index in range(config.sample.num_images)
        }
    for path in targets.values():
        check_target(path, force, as_json)
    return targets
