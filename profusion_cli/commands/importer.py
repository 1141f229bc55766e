"""`profusion import`: a PromptNet in the authors' released layout -> a promptnet bundle."""

from __future__ import annotations

from typing import Annotated

import typer

from profusion_cli import options
from profusion_cli.commands.common import check_bundle_target
from profusion_cli.console import Output
from profusion_cli.files import STDIO


def import_promptnet(
    source: Annotated[
        str, typer.Argument(metavar="FOLDER|HUB_ID", help="A pipeline as the paper's authors released it.")
    ],
    target: Annotated[
        str,
        typer.Option("-o", "--output", metavar="FILE", help="The promptnet bundle (.pfz); - is standard output."),
    ],
    subfolder: Annotated[
        str, typer.Option("--subfolder", help="Where the PromptNet lies in it; '' for the folder itself.")
    ] = "promptnet",
    revision: Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit on the Hub.")] = None,
    save_dtype: Annotated[
        str, typer.Option("--save-dtype", help="Precision in the bundle: float16, bfloat16 or float32.")
    ] = "float16",
    force: options.Force = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Read the authors' released PromptNet into a bundle that `profusion finetune --promptnet` takes."""
    output = Output(quiet, as_json)
    check_bundle_target(target, force, as_json)

    from profusion_cli.runtime.official import import_official

    bundle, made = import_official(source, subfolder, revision, save_dtype)
    bundle.save(target, force)
    dropped = made["dropped"]
    if dropped:
        output.note(f"Dropped {len(dropped)} weights of residual heads that the method does not use:")
        for name in dropped:
            output.note(f"  {name}")
    if target != STDIO:
        output.line(target)
    output.record({"path": target, **made})
