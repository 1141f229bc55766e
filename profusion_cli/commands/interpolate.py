"""`profusion interpolate`: pictures on the way from one subject to the next."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from profusion_cli import options
from profusion_cli.commands.common import (
    check_apart,
    check_one_stdin,
    configure,
    open_bundle,
    print_config,
    remembered_config,
    split_arguments,
    warn_if_random,
)
from profusion_cli.console import Output
from profusion_cli.errors import InputError, UsageError
from profusion_cli.files import STDIO, atomic_output, check_target
from profusion_cli.prompts import parse_prompt

DEFAULT_FPS = 4.0


@options.takes(
    *("sample", "placeholder", "class_word", "base.id", *options.MACHINE),
    without=("sample.num_images", "sample.batch_size", "sample.weights"),
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
            help="A .png strip, a .webp or .gif animation, a folder of single frames, or - (the strip).",
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
    preset: options.Preset = None,
    settings: options.Settings = None,
    dry_run: options.DryRun = False,
    force: options.Force = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    *,
    flags: dict[str, Any],
) -> None:
    """Draw the way from one subject to the next.

    The guidance shifts from subject to subject, and the changes of their tuned UNets with it; the noise
    stays the same, so the first and the last frame are what `sample` draws of one subject.
    """
    from profusion_cli.images import ANIMATIONS, PICTURES, PNG, encode_animation, encode_picture, strip
    from profusion_cli.lineage import picture_parameters, picture_record
    from profusion_cli.picture_targets import check_suffix
    from profusion_cli.sampling_inputs import check_same_base, check_useful, class_words_of, references

    output = Output(quiet, as_json)
    sources, texts = split_arguments(arguments)
    check_one_stdin(sources)
    if len(sources) < 2:
        raise UsageError(
            f"There is one subject, '{sources[0]}', and a way leads between two.",
            'For example: profusion interpolate a.pfz b.pfz "S* as an astronaut" -o strip.png',
        )
    if frames < len(sources):
        raise UsageError(
            f"--frames {frames} leaves out some of the {len(sources)} subjects.", "Ask for one frame each at least."
        )
    if len(texts) != 1:
        raise UsageError(f"There are {len(texts)} prompts, and one is needed.", "Give one prompt, in quotes.")
    bundles = [open_bundle(source, "subject") for source in sources]
    config = configure(preset, remembered_config(bundles[0]), flags, settings)
    check_useful(config, flags)
    if len(config.sample.subject_guidance) != 1:
        raise UsageError(
            f"{len(config.sample.subject_guidance)} guidance scales are given, and the subjects share one here.",
            "Give one number with --subject-guidance.",
        )
    if config.sample.weights is not None:
        raise UsageError("sample.weights has no effect here: they shift from frame to frame.", "Leave it out.")
    if dry_run:
        print_config(config)
        return
    check_same_base(bundles)
    class_words = class_words_of(bundles, config, flags.get("class_word"))
    prompt = parse_prompt(texts[0], config.placeholder, len(bundles))
    if prompt.joint:
        raise InputError(
            f"The prompt '{prompt.text}' names the subjects, and here the placeholder stands for each in turn.",
            f"Use the plain placeholder '{config.placeholder}'.",
        )
    check_suffix(target, (*PICTURES, *ANIMATIONS))
    suffix = Path(target).suffix.lower()
    if fps is not None and suffix not in ANIMATIONS:
        raise UsageError(f"--fps has no effect on '{target}', which is no animation.", "Leave it out.")
    one_file = target == STDIO or suffix in (*PICTURES, *ANIMATIONS)
    paths = [target] if one_file else [str(Path(target) / f"frame-{frame:03d}{PNG}") for frame in range(frames)]
    check_apart(sources, paths)
    for path in paths:
        check_target(path, force, as_json)
    reference_views = [view for _, view in references(bundles)]
    warn_if_random(config, output)

    from profusion_cli.runtime.backbone import BaseModel
    from profusion_cli.runtime.device import resolve_placement
    from profusion_cli.runtime.sampling import Sampler, draw_frames, frame_weights

    placement = resolve_placement(config.device, config.dtype, training=False)
    shares = frame_weights(frames, len(bundles))
    drawn = []
    with BaseModel(config.base, placement) as base:
        drawer = Sampler(base, bundles, class_words, [prompt], config)
        for warning in drawer.warnings():
            output.warn(warning)
        record = picture_record(prompt, drawer.tokens[0].twin, 0, bundles, config)
        with output.progress("Interpolating", frames * len(drawer.timesteps)) as step:
            for frame, image in enumerate(draw_frames(drawer, frames, step)):
                drawn.append(image)
                if not one_file:
                    data = encode_picture(
                        paths[frame],
                        image,
                        picture_parameters(record, config, image),
                        {**record, "weights": list(shares[frame])},
                    )
                    with atomic_output(paths[frame], force) as file:
                        file.write(data)
                    output.line(paths[frame])
    if one_file:
        if suffix in ANIMATIONS:
            data = encode_animation(target, drawn, DEFAULT_FPS if fps is None else fps)
        else:
            complete = len(reference_views) == len(bundles)
            whole = strip([reference_views[0], *drawn, reference_views[-1]] if complete else drawn)
            parameters = picture_parameters(record, config, drawn[0])
            data = encode_picture(target, whole, parameters, {**record, "weights": [list(share) for share in shares]})
        with atomic_output(target, force) as file:
            file.write(data)
        if target != STDIO:
            output.line(target)
    output.record({"paths": paths, "frames": frames, "weights": [list(share) for share in shares]})
