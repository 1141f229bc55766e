"""`profusion sample`: subject bundles and prompts -> pictures."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer

from profusion_cli import options
from profusion_cli.commands.common import (
    check_one_stdin,
    configure,
    open_bundle,
    print_config,
    remembered_config,
    split_arguments,
    warn_if_random,
)
from profusion_cli.console import Output
from profusion_cli.errors import UsageError
from profusion_cli.files import STDIO, atomic_output, check_target
from profusion_cli.prompts import parse_prompt, read_prompts

SHEET_CELL = 256


@options.takes("sample", "placeholder", "class_word", "base.id", *options.MACHINE)
def sample(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="SUBJECT... PROMPT...",
            help='Subject bundles (- is standard input), then prompts with S*, such as "S* in anime style".',
        ),
    ],
    target: Annotated[
        str | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FOLDER|FILE",
            help="A folder ('pictures' by default), a .png file when one picture is made, or - (standard output).",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    prompts_file: Annotated[
        str | None, typer.Option("--prompts", metavar="FILE", help="Read further prompts from a file, one per line.")
    ] = None,
    sheet: Annotated[
        str | None,
        typer.Option(
            "--sheet", metavar="FILE", help="Also write a labelled contact sheet (PNG).", rich_help_panel=options.OUTPUT
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
    """Draw a subject wherever the prompts put it.

    Picture j of every prompt is drawn with seed + j, whatever the batch size. With several subjects,
    S* stands for each in turn; S1*, S2* name them within one prompt.
    """
    from profusion_cli.lineage import picture_parameters, picture_record
    from profusion_cli.picture_targets import plan_targets
    from profusion_cli.sampling_inputs import check_same_base, check_useful, class_words_of, references

    output = Output(quiet, as_json)
    sources, texts = split_arguments(arguments)
    check_one_stdin([*sources, prompts_file or ""])
    if prompts_file is not None:
        texts = texts + read_prompts(prompts_file)
    if not texts:
        raise UsageError("There is no prompt.", 'Add one, such as "S* in anime style", or --prompts FILE.')
    bundles = [open_bundle(source, "subject") for source in sources]
    config = configure(preset, remembered_config(bundles[0]), flags, settings)
    check_useful(config, flags)
    if dry_run:
        print_config(config)
        return
    check_same_base(bundles)
    class_words = class_words_of(bundles, config, flags.get("class_word"))
    prompts = [parse_prompt(text, config.placeholder, len(bundles)) for text in texts]
    targets = plan_targets(target, prompts, config, force, as_json)
    if sheet is not None:
        taken = {
            os.path.realpath(path) for path in (*targets.values(), *(os.path.dirname(p) for p in targets.values()))
        }
        if sheet == STDIO or os.path.realpath(sheet) in taken:
            raise UsageError(f"--sheet '{sheet}' is where something else goes.", "Give the sheet a file of its own.")
        if not sheet.lower().endswith(".png"):
            raise UsageError(f"--sheet '{sheet}' is not a .png name, and the sheet is a PNG.", "Use a .png name.")
        check_target(sheet, force)
    reference_views = references(bundles) if sheet is not None else []
    warn_if_random(config, output)

    from PIL import Image

    from profusion_cli.images import contact_sheet, encode_picture
    from profusion_cli.runtime.backbone import BaseModel
    from profusion_cli.runtime.device import resolve_placement
    from profusion_cli.runtime.sampling import Sampler

    placement = resolve_placement(config.device, config.dtype, training=False)
    rows: list[list[Any]] = [[] for _ in prompts]
    made = []
    with BaseModel(config.base, placement) as base:
        drawer = Sampler(base, bundles, class_words, prompts, config)
        for warning in drawer.warnings():
            output.warn(warning)
        batches = -(-config.sample.num_images // config.sample.batch_size) * len(prompts)
        with output.progress("Sampling", batches * len(drawer.timesteps)) as step:
            for picture in drawer.draw(step):
                prompt, tokens = prompts[picture.prompt], drawer.tokens[picture.prompt]
                record = picture_record(prompt, tokens.twin, picture.index, bundles, config)
                path = targets[picture.prompt, picture.index]
                data = encode_picture(path, picture.image, picture_parameters(record, config, picture.image), record)
                with atomic_output(path, force) as file:
                    file.write(data)
                if path != STDIO:
                    output.line(path)
                if sheet is not None:
                    picture.image.thumbnail((SHEET_CELL, SHEET_CELL), Image.Resampling.LANCZOS)
                    rows[picture.prompt].append(picture.image)
                made.append({"path": path, "prompt": prompt.text, "seed": record["seed"]})
    if sheet is not None:
        labelled = [(prompt.text, row) for prompt, row in zip(prompts, rows, strict=True)]
        labelled_sheet = contact_sheet(labelled, reference_views, SHEET_CELL)
        with atomic_output(sheet, force) as file:
            labelled_sheet.save(file, "PNG")
        if target != STDIO:
            output.line(sheet)
    output.record({"pictures": made, "sheet": sheet})
