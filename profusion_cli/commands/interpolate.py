"""`profusion interpolate`: pictures on the way from one subject to the next."""

from __future__ import annotations

import time
from contextlib import closing
from typing import TYPE_CHECKING, Annotated, Any

import typer

from profusion_cli import options
from profusion_cli.commands.common import (
    check_one_stdin,
    check_unexpanded,
    check_whole,
    credentials_of,
    open_bundle,
    plan_remarks,
    print_config,
    split_arguments,
)
from profusion_cli.console import Output
from profusion_cli.errors import UsageError
from profusion_cli.files import STDIO, atomic_output
from profusion_cli.prompts import PLACEHOLDER

if TYPE_CHECKING:
    from PIL import Image

    from profusion_cli.jobs.pictures import Picture

DEFAULT_FPS = 4.0
BETWEEN = (0.5, 0.5)
"""The subjects of a picture on the way; at its ends there is one."""


@options.takes(
    *options.DRAWING,
    without=("sample.num_images", "sample.batch_size", "sample.weights", "sample.areas"),
)
def interpolate(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="SUBJECT SUBJECT... PROMPT",
            help="Two or more subject bundles (- is standard input), then one prompt with S*.",
        ),
    ],
    target: Annotated[
        str,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE|FOLDER",
            help="A .png strip or a .webp or .gif animation, both 256 pixels high at least; a folder of single frames; "
            "or - (the strip).",
            rich_help_panel=options.OUTPUT,
        ),
    ],
    frames: Annotated[int, typer.Option("--frames", min=2, help="Pictures from the first subject to the last.")] = 5,
    fps: Annotated[
        float | None,
        typer.Option(
            "--fps", min=0.1, max=50, help="Frames per second of an animation (4).", rich_help_panel=options.OUTPUT
        ),
    ] = None,
    sign: options.Sign = None,
    key: options.SignKey = None,
    preset: options.Preset = None,
    settings: options.Settings = None,
    trust_base: options.TrustBase = False,
    dry_run: options.DryRun = False,
    force: options.Force = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    *,
    flags: dict[str, Any],
) -> None:
    """Draw the way from one subject to the next.

    The guidance shifts from subject to subject, and the changes of their tuned UNets with it; the noise
    stays the same, so the first and the last frame are what `sample` draws of one subject. A bundle remembers
    the values of its preset, which take the place of the defaults below.
    """
    from profusion_cli.commands.picture_targets import check_useful, plan_frames, references
    from profusion_cli.images.credentials import signed
    from profusion_cli.jobs.configuration import configure, remembered_config
    from profusion_cli.jobs.parents import names_promptnet
    from profusion_cli.jobs.pictures import check_way, draw_way
    from profusion_cli.jobs.trust import check_trusted

    started, output = time.perf_counter(), Output(quiet, as_json)
    credentials = credentials_of(sign, key, flags)
    check_unexpanded(arguments, flags.get("placeholder", PLACEHOLDER))
    sources, texts = split_arguments(arguments)
    check_one_stdin([*sources, flags.get("promptnet.weights", "")])
    if len(texts) != 1:
        raise UsageError(f"There are {len(texts)} prompts, and one is needed.", "Give one prompt, in quotes.")
    check_way(sources, frames)
    bundles = [open_bundle(source, "subject") for source in sources]
    config = configure(preset, remembered_config(bundles[0]), flags, settings, output)
    check_useful(config, flags)
    named = names_promptnet(flags, settings)
    check_whole(texts, config.placeholder)
    paths = plan_frames(target, frames, fps, sources, force, as_json)
    ends = [view for _, view in references(bundles)]
    drawn, word = [], flags.get("class_word")
    with closing(
        draw_way(bundles, texts[0], frames, config, class_word=word, promptnet=named, listener=output)
    ) as pictures:
        if dry_run:
            print_config(config, plan_remarks(config, bundles, texts, BETWEEN))
            return
        check_trusted(config, bundles[0], preset, flags, settings, consent=trust_base)
        for picture in pictures:
            drawn.append(picture)
            if paths != [target]:
                picture.save(paths[picture.index], force, credentials)
                output.line(paths[picture.index])
    if paths == [target]:
        data = _one_file(drawn, target, fps, ends if len(ends) == len(bundles) else None)
        with atomic_output(target, force) as file:
            file.write(signed(data, target, drawn[0].record, credentials))
        if target != STDIO:
            output.line(target)
    output.record({"paths": paths, "frames": frames, "weights": [picture.record["weights"] for picture in drawn]})
    output.finished(time.perf_counter() - started)


def _one_file(drawn: list[Picture], target: str, fps: float | None, references: list[Image.Image] | None) -> bytes:
    """All frames as an animation, or as a strip between the references of its ends."""
    from profusion_cli.images import encode_animation, encode_picture, enlarged, is_animation, strip

    frames = enlarged([picture.image for picture in drawn])
    record = {**drawn[0].record, "weights": [picture.record["weights"] for picture in drawn]}
    if is_animation(target):
        rate = DEFAULT_FPS if fps is None else fps
        return encode_animation(target, frames, rate, drawn[0].parameters, {**record, "fps": rate})
    whole = strip(frames if references is None else [references[0], *frames, references[-1]])
    return encode_picture(target, whole, drawn[0].parameters, record)
