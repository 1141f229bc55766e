"""`profusion export`: a subject -> what other tools take."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from profusion_cli import options
from profusion_cli.commands.common import check_apart, check_one_stdin, check_suffix, open_bundle, print_config
from profusion_cli.console import Output
from profusion_cli.errors import UsageError
from profusion_cli.files import STDIO, atomic_output, check_target
from profusion_cli.folders import atomic_folder, check_folder

if TYPE_CHECKING:
    from profusion_cli.bundle import Bundle

FOLDER = "diffusers"
SAFETENSORS = ".safetensors"


@options.takes(
    *("finetune.adapters.rank", "finetune.save_dtype", "promptnet.weights", "base.id"),
    *("device", "seed"),
)
def export(
    source: Annotated[str, typer.Argument(metavar="SUBJECT", help="A subject bundle (- is standard input).")],
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="FORMAT",
            help="diffusers (a pipeline folder with Fusion Sampling in it), lora (for diffusers, ComfyUI and A1111), "
            "lora-full (whole differences, for ComfyUI), or embedding (S* as one word, for all three).",
        ),
    ],
    target: Annotated[
        str,
        typer.Option(
            "-o", "--output", metavar="FOLDER|FILE", help="A folder for diffusers, else a .safetensors file (or -)."
        ),
    ],
    with_base: Annotated[
        bool,
        typer.Option("--with-base", help="Copy the base model into the folder, which names it otherwise."),
    ] = False,
    timestep: Annotated[
        int | None,
        typer.Option(
            "--timestep",
            min=0,
            metavar="T",
            help="Take the embedding at this timestep, in place of the average over noise levels.",
        ),
    ] = None,
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
    """Hand a subject to other tools.

    What is kept of the method, and what is left out, is told, and stands in the file.
    """
    from profusion_cli.jobs.configuration import configure, remembered_config
    from profusion_cli.jobs.exporting import FORMATS, check_exportable, export_file, export_folder
    from profusion_cli.jobs.parents import names_promptnet
    from profusion_cli.jobs.trust import check_trusted

    started, output = time.perf_counter(), Output(quiet, as_json)
    if to not in FORMATS:
        raise UsageError(f"--to '{to}' is no format that is written here.", f"Use {', '.join(FORMATS)}.")
    check_useful(to, with_base, timestep, flags)
    check_one_stdin([source, flags.get("promptnet.weights", "")])
    check_apart([source, flags.get("promptnet.weights", "")], [target])
    bundle = open_bundle(source, "subject")
    config = configure(preset, remembered_config(bundle), flags, settings, output)
    if to == FOLDER:
        if target == STDIO:
            raise UsageError("A folder cannot go to standard output.", "Name a folder with -o.")
        check_suffix(target, (), "Name a folder.")
        check_folder(Path(target), force)
        inside = os.path.realpath(source).startswith(os.path.join(os.path.realpath(target), ""))
        if source != STDIO and inside:
            raise UsageError(f"'{source}' lies in '{target}', which would take its place.", "Choose another folder.")
    else:
        check_suffix(target, (SAFETENSORS,))
        check_target(target, force, as_json)
    check_exportable(bundle, config, to, with_base)
    check_of_use(bundle, timestep, flags)
    if dry_run:
        print_config(config, [f"Keeps {FORMATS[to].keeps}.", f"Leaves out {FORMATS[to].leaves_out}."])
        return
    check_trusted(config, bundle, preset, flags, settings, consent=trust_base)
    shared = {"named": names_promptnet(flags, settings), "listener": output}
    if to == FOLDER:
        with atomic_folder(Path(target), force) as folder:
            export_folder(bundle, config, folder, with_base=with_base, **shared)
        told: dict[str, Any] = {"to": to, "keeps": FORMATS[to].keeps, "leaves_out": FORMATS[to].leaves_out}
    else:
        made = export_file(bundle, config, to, timestep=timestep, **shared)
        with atomic_output(target, force) as file:
            file.write(made.data)
        told = made.told
        output.note(made.note)
    if target != STDIO:
        output.line(target)
    output.note(f"It keeps {told['keeps']}. It leaves out {told['leaves_out']}.")
    output.record({"path": target, **told})
    output.finished(time.perf_counter() - started)


def check_useful(to: str, with_base: bool, timestep: int | None, flags: dict[str, Any]) -> None:
    """Every option says something about the format.

    Raises:
        UsageError: one does not.
    """
    given = {
        "--with-base": (with_base, ("diffusers",)),
        "--timestep": (timestep is not None, ("embedding",)),
        "--rank": ("finetune.adapters.rank" in flags, ("lora",)),
        "--save-dtype": ("finetune.save_dtype" in flags, ("diffusers", "lora", "lora-full")),
        "--seed": ("seed" in flags, ("embedding", "diffusers")),
        "--promptnet": ("promptnet.weights" in flags, ("embedding", "diffusers")),
    }
    for option, (is_given, formats) in given.items():
        if is_given and to not in formats:
            raise UsageError(f"{option} has no effect with --to {to}.", "Leave it out.")


def check_of_use(bundle: Bundle, timestep: int | None, flags: dict[str, Any]) -> None:
    """Every option says something about the subject.

    Raises:
        UsageError: one does not.
    """
    from profusion_cli.bundle.kinds import UNET_FILE, WORD_FILE

    if timestep is not None and WORD_FILE in bundle.files:
        raise UsageError(f"--timestep has no effect: the S* of '{bundle.name}' never changes.", "Leave it out.")
    if "finetune.adapters.rank" in flags and UNET_FILE not in bundle.files:
        raise UsageError(f"--rank has no effect: '{bundle.name}' has adapters of a rank of its own.", "Leave it out.")
