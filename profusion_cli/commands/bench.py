"""`profusion bench`: time and memory of everything, on this device."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from profusion_cli import options
from profusion_cli.commands.common import print_config
from profusion_cli.console import Output
from profusion_cli.errors import UsageError
from profusion_cli.methods import PROFUSION

SD2_SIZE = ["base.random={size: sd2}", "base.resolution=512", "promptnet.weights=untrained"]


@options.takes("base.id", "promptnet.weights", *options.MACHINE, "compile")
def bench(
    rounds: Annotated[
        int, typer.Option("--rounds", min=1, max=1000, metavar="N", help="How often all of it is run.")
    ] = 3,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit-steps",
            min=1,
            max=1000,
            metavar="N",
            help="Run so many steps of each picture, and tell by their cost what the whole would take.",
        ),
    ] = None,
    random: Annotated[
        bool,
        typer.Option(
            "--random",
            help="Random weights of Stable Diffusion 2's size, 512 pixels: times are the same, without a download.",
        ),
    ] = False,
    no_tuning: Annotated[
        bool, typer.Option("--no-tuning", help="Leave out fine-tuning, which takes the most memory.")
    ] = False,
    preset: options.Preset = None,
    settings: options.Settings = None,
    dry_run: options.DryRun = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    *,
    flags: dict[str, Any],
) -> None:
    """Measure how long a picture and its parts take here, beside diffusers' own pipeline, and how much memory.

    U is one evaluation of the UNet on one picture. Everything is run once, and then again, so that what else the
    machine does falls on all alike. What is printed is a table in Markdown.
    """
    from profusion_cli.jobs.configuration import configure

    output = Output(quiet, as_json)
    if random and (preset is not None or "base.id" in flags):
        given = "--preset" if preset is not None else "--base-model"
        raise UsageError(f"--random leaves {given} nothing to say.", "Give one of them.")
    config = configure(preset, None, flags, [*(SD2_SIZE if random else []), *(settings or [])], output)
    if not no_tuning and (method := config.finetune.method) != PROFUSION:
        raise UsageError(f"The fine-tuning of {method} is not measured, only that of {PROFUSION}.", "Add --no-tuning.")
    if dry_run:
        print_config(config)
        return

    from profusion_cli.bench.report import bench as measure
    from profusion_cli.bench.report import lines_of

    record = measure(config, rounds, limit, not no_tuning, output)
    for line in lines_of(record):
        output.line(line)
    output.record(record)
