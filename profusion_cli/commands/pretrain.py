"""`profusion pretrain`: many pictures -> a promptnet bundle."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from profusion_cli import options
from profusion_cli.commands.common import configure, print_config, remember
from profusion_cli.console import Output
from profusion_cli.errors import UsageError
from profusion_cli.files import STDIO, check_target


def pretrain(
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGES...",
            help="Image files and folders, or one .jsonl metadata file that groups pictures of one identity.",
        ),
    ],
    target: Annotated[
        str,
        typer.Option("-o", "--output", metavar="FILE", help="The promptnet bundle (.pfz); - is standard output."),
    ],
    steps: Annotated[int | None, typer.Option("--steps", help="Optimiser steps.")] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", help="Pictures per step, of all processes together.")
    ] = None,
    lr: Annotated[float | None, typer.Option("--lr", help="Learning rate.")] = None,
    warmup_steps: Annotated[
        int | None, typer.Option("--warmup-steps", help="Steps in which the learning rate rises from 0.")
    ] = None,
    ema_decay: Annotated[
        float | None, typer.Option("--ema-decay", help="Average the weights over the steps; 0 is off.")
    ] = None,
    embedding_l2: Annotated[
        float | None, typer.Option("--embedding-l2", help="Lambda of eq. (2), the paper's ablation; 0 is eq. (1).")
    ] = None,
    gradient_accumulation: Annotated[
        int | None,
        typer.Option("--gradient-accumulation", help="Split each step into so many parts: less memory, same result."),
    ] = None,
    work: Annotated[
        str | None,
        typer.Option(
            "--work", metavar="DIR", help="Folder for checkpoints, log.csv and sample sheets (the output's name .work)."
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest checkpoint in the work folder.")
    ] = False,
    cache: Annotated[
        str | None,
        typer.Option("--cache", metavar="DIR", help="Keep encoded pictures in this folder, for this and other runs."),
    ] = None,
    checkpoint_every: Annotated[
        int | None, typer.Option("--checkpoint-every", help="Steps between checkpoints.")
    ] = None,
    keep_checkpoints: Annotated[int | None, typer.Option("--keep-checkpoints", help="How many are kept.")] = None,
    sample_every: Annotated[
        int | None, typer.Option("--sample-every", help="Steps between sample sheets; 0 draws none.")
    ] = None,
    save_dtype: Annotated[
        str | None, typer.Option("--save-dtype", help="Precision in the bundle: float16, bfloat16 or float32.")
    ] = None,
    class_word: options.ClassWord = None,
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
    """Train a PromptNet on many pictures.

    The base model stays frozen. Runs on several GPUs or machines with `torchrun -m profusion_cli pretrain ...` or
    `accelerate launch -m profusion_cli pretrain ...`; machines must share the work folder.
    """
    flags = {
        "pretrain.steps": steps,
        "pretrain.batch_size": batch_size,
        "pretrain.learning_rate": lr,
        "pretrain.warmup_steps": warmup_steps,
        "pretrain.ema_decay": ema_decay,
        "pretrain.embedding_l2": embedding_l2,
        "pretrain.gradient_accumulation": gradient_accumulation,
        "pretrain.checkpoint_every": checkpoint_every,
        "pretrain.keep_checkpoints": keep_checkpoints,
        "pretrain.sample_every": sample_every,
        "pretrain.save_dtype": save_dtype,
        "class_word": class_word,
        "device": device,
        "dtype": dtype,
        "seed": seed,
    }
    config = configure(preset, None, flags, settings, base_model)
    main = int(os.environ.get("RANK", "0")) == 0
    if dry_run:
        if main:
            print_config(config)
        return
    output = Output(quiet or not main, as_json)
    if not work:
        if target == STDIO:
            raise UsageError("'-o -' leaves no name for the work folder.", "Name one with --work DIR.")
        work = f"{target}.work"

    from profusion_cli.dataset import list_pictures

    listing = list_pictures(images)
    check_target(target, force, as_json)
    if config.base.random is not None:
        output.warn("The base model has random weights: it exercises every step, and draws noise.")

    from profusion_cli.runtime import pretraining

    made = pretraining.pretrain(
        config,
        listing,
        Path(images[0]).name or images[0],
        remember(config),
        Path(work),
        cache,
        target,
        resume,
        force,
        output,
    )
    if main:
        if target != STDIO:
            output.line(target)
        output.record({"path": target, **made})
