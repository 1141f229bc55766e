"""Where the pictures of sampling go, and what is checked before they are drawn."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from profusion_cli.bundle import Bundle
from profusion_cli.commands.common import check_apart, check_suffix, decode, views_of
from profusion_cli.config import Config
from profusion_cli.console import Output
from profusion_cli.errors import UsageError
from profusion_cli.files import STDIO, check_target, read_source
from profusion_cli.images.formats import ANIMATIONS, PICTURES, PNG, is_animation
from profusion_cli.jobs.photos import first_view
from profusion_cli.plans import EXACT, plan_of
from profusion_cli.samplers import SAMPLERS
from profusion_cli.starting import Start

DEFAULT_FOLDER = "pictures"
STRENGTH = 0.75
"""Where the authors' code starts: at timestep 750 of 1000."""


def picture_name(number: int, prompt: str, seed: int) -> str:
    """File name of a picture: number of the prompt, its words, and the seed."""
    words = re.sub(r"[^a-z0-9]+", "-", prompt.lower().replace("*", "")).strip("-")[:60].strip("-")
    return f"{number + 1:02d}-{words or 'picture'}-{seed}{PNG}"


def count_on(targets: Mapping[tuple[int, int], str]) -> dict[tuple[int, int], str]:
    """The names, or where one of them is taken, all of them with the least number, from -2 on, that makes them free."""
    number, free = 1, dict(targets)
    while any(map(os.path.lexists, free.values())):
        number += 1
        free = {key: str(Path(path).with_stem(f"{Path(path).stem}-{number}")) for key, path in targets.items()}
    return free


def names_in(folder: str, drawn: Sequence[tuple[str, Config]]) -> dict[tuple[int, int], str]:
    """Of all pictures, in a folder, by the numbers of their prompts and their own.

    Args:
        folder: where they go.
        drawn: prompts, and what each is drawn by.
    """
    return {
        (number, index): str(Path(folder) / picture_name(number, prompt, config.seed + index))
        for number, (prompt, config) in enumerate(drawn)
        for index in range(config.sample.num_images)
    }


def plan_targets(
    target: str | None,
    drawn: Sequence[tuple[str, Config]],
    force: bool,
    as_json: bool,
    best: int | None = None,
) -> dict[tuple[int, int], str]:
    """Where each picture goes, checked before the work: in a folder beside what is there, unless `force` is given.

    Args:
        target, force, as_json: see `check_target`.
        drawn: prompts, and what each is drawn by.
        best: so many of each prompt are kept; None: all.

    Raises:
        UsageError: one file for several pictures, or for something else than a picture.
        OutputError: something is in the way.
    """
    if target is not None:
        check_suffix(target, PICTURES, "or a folder")
    count = sum(config.sample.num_images if best is None else best for _, config in drawn)
    if target == STDIO or (target is not None and Path(target).suffix.lower() in PICTURES):
        if count > 1:
            where = "standard output" if target == STDIO else f"the one file '{target}'"
            raise UsageError(f"{count} pictures do not fit into {where}.", "Name a folder with -o.")
        targets = {(0, index): target for index in range(drawn[0][1].sample.num_images)}
    else:
        targets = names_in(DEFAULT_FOLDER if target is None else target, drawn)
        if not force:
            targets = count_on(targets)
    for path in targets.values():
        check_target(path, force, as_json)
    return targets


def plan_frames(
    target: str, frames: int, fps: float | None, sources: Sequence[str], force: bool, as_json: bool
) -> list[str]:
    """Where the frames of an interpolation go, checked before the work: one file for all, or one for each.

    Args:
        target: `-o`.
        frames: how many.
        fps: `--fps`, if it is given.
        sources: the subjects' files.
        force, as_json: see `check_target`.

    Raises:
        UsageError: a kind of file that is not written here, an input's name, or a rate where nothing moves.
        OutputError: something is in the way.
    """
    kinds = (*PICTURES, *ANIMATIONS)
    check_suffix(target, kinds, "or a folder")
    if fps is not None and not is_animation(target):
        raise UsageError(f"--fps has no effect on '{target}', which is no animation.", "Leave it out.")
    one_file = target == STDIO or Path(target).suffix.lower() in kinds
    paths = [target] if one_file else [str(Path(target) / f"frame-{frame:03d}{PNG}") for frame in range(frames)]
    check_apart(sources, paths)
    for path in paths:
        check_target(path, force, as_json)
    return paths


def check_useful(config: Config, flags: Mapping[str, Any]) -> None:
    """Every option that was given does something.

    Raises:
        UsageError: one that the chosen sampler, or plan, does not look at.
    """
    own = config.sample
    if own.speed != EXACT and "sample.steps" in flags:
        count = len(plan_of(config).steps)
        raise UsageError(
            f"--steps is of the exact algorithm, and --speed {own.speed} takes {count} of its steps.",
            f"Leave one of them out, or change how many with --set plans.{own.speed}.steps=N.",
        )
    kind = SAMPLERS[own.sampler]
    for name in kind.unused(own.fusion_steps):
        if f"sample.{name}" in flags:
            how = f"--sampler {own.sampler}" if name in kind.unused(1) else "--fusion-steps 0"
            raise UsageError(f"--{name.replace('_', '-')} has no effect with {how}.", "Leave it out.")


def references(bundles: Sequence[Bundle]) -> list[tuple[str, Image.Image]]:
    """The first reference view of each subject, from the bundle's preview.

    Raises:
        BundleError: a preview that is no picture.
    """
    views = [(Path(bundle.name).stem, first_view(bundle)) for bundle in bundles]
    return [(name, view) for name, view in views if view is not None]


def check_references(bundles: Iterable[Bundle], flags: dict[str, Any], output: Output) -> None:
    """Somebody sees the photos; that there is one of each subject is told.

    Raises:
        UsageError: every S* is an ordinary word.
    """
    from profusion_cli.bundle.kinds import WORD_FILE

    if flags.get("sample.references", "one") == "one":
        return
    learned = [bundle for bundle in bundles if WORD_FILE not in bundle.files]
    if not learned:
        raise UsageError("--references has no effect on an S* that is an ordinary word.", "Leave it out.")
    if max(map(views_of, learned)) == 1:
        output.note("There is one photo of each subject, so --references changes nothing.")


def check_best(best: int | None, configs: Iterable[Config], subjects: int, score: str | None) -> None:
    """There is one subject to be like, and are more pictures than are kept.

    Raises:
        UsageError: there are not.
    """
    if score is not None and subjects > 1:
        raise UsageError("--score is of one subject.", "Leave it out.")
    count = min(config.sample.num_images for config in configs)
    if best is not None and best >= count:
        raise UsageError(
            f"--best {best} keeps all of {count} picture(s).", f"Draw more with -n, such as -n {4 * best}."
        )


def read_start(path: str | None, strength: float | None, mask: str | None, output: Output) -> Start | None:
    """What `--start-from` and its companions say.

    Raises:
        UsageError: they are given without it.
        InputError: a picture that cannot be used, or a mask that does not fit it.
    """
    if path is None:
        for option, given in (("--strength", strength), ("--inpaint-mask", mask)):
            if given is not None:
                raise UsageError(f"{option} has no effect without --start-from.", "Leave it out, or add that.")
        return None
    photo = decode(read_source(path), path, output, drawn=True)
    region = None if mask is None else decode(read_source(mask), mask, output, as_mask=True)
    return Start(photo, strength or (STRENGTH if mask is None else 1.0), region)
