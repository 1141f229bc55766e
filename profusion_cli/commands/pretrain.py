"""`profusion pretrain`: many pictures -> a promptnet bundle."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from profusion_cli import options
from profusion_cli.commands.common import check_bundle_target, print_config, quoted
from profusion_cli.console import Output
from profusion_cli.errors import UsageError
from profusion_cli.files import STDIO, output_hint
from profusion_cli.launcher import is_main_process

CACHE = "cache"
"""The folder of encoded pictures in a work folder, where no other one is named."""


@options.takes("pretrain", "class_word", "base.id", *options.MACHINE, "mark")
def pretrain(
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGES...",
            help="Image files and folders, one .jsonl metadata file that groups pictures of one identity, or tar "
            "shards of pictures (WebDataset).",
        ),
    ],
    target: Annotated[
        str,
        typer.Option("-o", "--output", metavar="FILE", help="The promptnet bundle (.pfz); - is standard output."),
    ],
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
        typer.Option(
            "--cache",
            metavar="DIR",
            help="Keep encoded pictures in this folder, for this and other runs ('cache' in the work folder).",
        ),
    ] = None,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Encode pictures whenever they come, and keep none on the disk.")
    ] = False,
    preset: options.Preset = None,
    settings: options.Settings = None,
    dry_run: options.DryRun = False,
    force: options.Force = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    *,
    flags: dict[str, Any],
) -> None:
    """Train a PromptNet on many pictures.

    The base model stays frozen. Runs on several GPUs or machines with `torchrun -m profusion_cli pretrain ...` or
    `accelerate launch -m profusion_cli pretrain ...`; machines must share the work folder.
    """
    from profusion_cli.costs import expected_cost
    from profusion_cli.jobs.configuration import RANDOM_SEED, configure
    from profusion_cli.jobs.promptnet import pretrain as train
    from profusion_cli.shards import Shards, list_inputs

    started = time.perf_counter()
    main = is_main_process()
    output = Output(quiet or not main, as_json)
    if resume and flags.get("seed") == RANDOM_SEED:
        raise UsageError("--seed -1 would go on with another seed.", "Give the one that was told before.")
    config = configure(preset, None, flags, settings, output)
    if "mark" in flags and config.pretrain.sample_every == 0:
        raise UsageError("--no-mark has no effect without sample sheets.", "Leave it out, or add --sample-every N.")
    if not work:
        if target == STDIO:
            raise UsageError("'-o -' leaves no name for the work folder.", "Name one with --work DIR.")
        work = f"{target}.work"
    check_bundle_target(target, force, as_json)
    if no_cache and cache:
        raise UsageError("--cache and --no-cache contradict each other.", "Give one of them.")
    inputs = list_inputs(images)
    streamed = isinstance(inputs, Shards)
    kept = Path(cache) if cache else None if no_cache or streamed else Path(work) / CACHE
    if dry_run:
        if main:
            cost = expected_cost(config.pretrain, inputs, kept is not None)
            place = "Encoded pictures are not kept." if kept is None else f"Encoded pictures are kept in '{kept}'."
            print_config(config, [f"{config.pretrain.steps:,} steps take {cost}", place])
        return
    made, summary = train(images, config, Path(work), cache=kept, resume=resume, force=force, listener=output)
    if made is None:  # not the main process
        return
    with output_hint(f"The training is kept: free some space or choose another -o, and add --resume --work '{work}'."):
        made.save(target, force)
    if target != STDIO:
        output.line(target)
    seconds = time.perf_counter() - started
    output.record({"path": target, **summary, "seconds": round(seconds, 2)})
    given = {"--preset": preset, "--base-model": flags.get("base.id"), "--promptnet": target}
    words = " ".join(f"{name} {quoted(value)}" for name, value in given.items() if value is not None)
    output.finished(seconds, "" if target == STDIO else f"profusion finetune PHOTO {words} -o me.pfz")
