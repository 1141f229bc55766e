"""`profusion compress`: a subject of whole weights -> the same of adapters."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from profusion_cli import options
from profusion_cli.commands.common import (
    check_apart,
    check_bundle_target,
    check_one_stdin,
    open_bundle,
    print_config,
    quoted,
)
from profusion_cli.console import Output
from profusion_cli.errors import UsageError
from profusion_cli.files import STDIO

ERROR = 0.01


@options.takes(
    *("finetune.adapters.rank", "finetune.self_contained", "finetune.save_dtype", "promptnet.weights", "base.id"),
    *("device", "dtype"),
)
def compress(
    source: Annotated[str, typer.Argument(metavar="SUBJECT", help="A subject bundle (- is standard input).")],
    target: Annotated[
        str,
        typer.Option("-o", "--output", metavar="FILE", help="The smaller bundle (.pfz); - is standard output."),
    ],
    error: Annotated[
        float | None,
        typer.Option(
            "--error",
            min=0,
            max=1,
            metavar="X",
            help="Take the lowest rank by which predictions of the subject's own picture are off by no more than this "
            f"part of them, where no --rank is given. Default: {ERROR}.",
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
    """Make a subject that was tuned in whole weights smaller.

    What it changes of each matrix becomes the nearest change of low rank, and the PromptNet that it was tuned from is
    named instead of kept. How far predictions are off by that is measured and told.
    """
    from profusion_cli.jobs.compression import compress as compress_subject
    from profusion_cli.jobs.configuration import configure, remembered_config
    from profusion_cli.jobs.parents import names_promptnet
    from profusion_cli.jobs.summaries import size_words
    from profusion_cli.jobs.trust import check_trusted

    started, output = time.perf_counter(), Output(quiet, as_json)
    rank = flags.get("finetune.adapters.rank")
    if rank is not None and error is not None:
        raise UsageError("--rank and --error exclude one another.", "Leave one of them out.")
    check_one_stdin([source, flags.get("promptnet.weights", "")])
    check_apart([source, flags.get("promptnet.weights", "")], [target])
    bundle = open_bundle(source, "subject")
    config = configure(preset, remembered_config(bundle), flags, settings, output)
    check_bundle_target(target, force, as_json)
    if dry_run:
        print_config(config)
        return
    check_trusted(config, bundle, preset, flags, settings, consent=trust_base)
    made = compress_subject(
        *(bundle, config),
        rank=rank,
        error=ERROR if error is None else error,
        named=names_promptnet(flags, settings),
        listener=output,
    )
    made.save(target, force)
    if target != STDIO:
        output.line(target)
    told = made.manifest["compressed"]
    output.note(
        f"{size_words(bundle.size)} became {size_words(made.size)}: rank {told['rank']}, and predictions of its own "
        f"picture are off by {told['error']:.3g}."
    )
    output.record({"path": target, "size": made.size, "size_before": bundle.size, **told})
    example = f'profusion sample {quoted(target)} "{config.placeholder} in anime style"'
    output.finished(time.perf_counter() - started, "" if target == STDIO else example)
