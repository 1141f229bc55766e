"""`profusion finetune`: photos of one subject -> a subject bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from profusion_cli import options
from profusion_cli.commands.common import (
    check_one_stdin,
    configure,
    display_name,
    print_config,
    remember,
    warn_if_random,
)
from profusion_cli.console import Output
from profusion_cli.files import STDIO, check_target, read_source


def finetune(
    photos: Annotated[
        list[str], typer.Argument(metavar="PHOTO...", help="One or several photos of one subject; - is standard input.")
    ],
    target: Annotated[
        str,
        typer.Option("-o", "--output", metavar="FILE", help="The subject bundle (.pfz); - is standard output."),
    ],
    steps: Annotated[
        int | None, typer.Option("--steps", help="Optimiser steps; 0 keeps PromptNet as it is (tuning-free).")
    ] = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", help="Pictures per step.")] = None,
    lr: Annotated[float | None, typer.Option("--lr", help="Learning rate.")] = None,
    train: Annotated[
        str | None,
        typer.Option("--train", help="What is trained beside PromptNet: promptnet (nothing), qkv, attention."),
    ] = None,
    promptnet: Annotated[
        str | None,
        typer.Option(
            "--promptnet", metavar="FILE", help="PromptNet: a .pfz, or a folder or Hub id in the authors' layout."
        ),
    ] = None,
    class_word: options.ClassWord = None,
    gradient_accumulation: Annotated[
        int | None,
        typer.Option("--gradient-accumulation", help="Split each step into so many parts: less memory, same result."),
    ] = None,
    save_dtype: Annotated[
        str | None, typer.Option("--save-dtype", help="Precision in the bundle: float16, bfloat16 or float32.")
    ] = None,
    preset: options.Preset = None,
    settings: options.Settings = None,
    base_model: options.BaseModelOption = None,
    device: options.Device = None,
    dtype: options.DTypeOption = None,
    seed: options.Seed = None,
    dry_run: options.DryRun = False,
    force: options.Force = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Turn photos of one subject into a model of it.

    Fine-tunes PromptNet and the UNet's attention layers on the photos and writes a bundle that
    `profusion sample` draws from, without the photos.
    """
    flags = {
        "finetune.steps": steps,
        "finetune.batch_size": batch_size,
        "finetune.learning_rate": lr,
        "finetune.train": train,
        "finetune.gradient_accumulation": gradient_accumulation,
        "finetune.save_dtype": save_dtype,
        "promptnet.weights": promptnet,
        "class_word": class_word,
        "device": device,
        "dtype": dtype,
        "seed": seed,
    }
    config = configure(preset, None, flags, settings, base_model)
    if dry_run:
        print_config(config)
        return
    output = Output(quiet, as_json)
    check_one_stdin(photos)
    check_target(target, force, as_json)

    from profusion_cli.images import crop_square, decode_photo

    pictures = [decode_photo(read_source(photo), display_name(photo)) for photo in photos]
    for picture in pictures:
        for note in picture.notes:
            output.warn(note)
    warn_if_random(config, output)

    from profusion_cli.runtime.subjects import make_subject

    squares = [crop_square(picture.image, config.base.resolution) for picture in pictures]
    inputs = [{"kind": "photo", "name": Path(picture.name).name, "sha256": picture.sha256} for picture in pictures]
    made = make_subject(config, squares, inputs, remember(config), target, force, output)
    if target != STDIO:
        output.line(target)
    output.record({"path": target, **made})
