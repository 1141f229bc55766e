"""`profusion evaluate`: a study -> pictures, scores, tables and a report."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from profusion_cli import options
from profusion_cli.commands.common import quoted
from profusion_cli.console import Output
from profusion_cli.errors import ProfusionError, UnavailableError, UsageError
from profusion_cli.launcher import is_main_process, process_count
from profusion_cli.listener import LIBRARIES

PREFERENCE = "Human preference"


@options.takes("device")
def evaluate(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="STUDY | RUN | FILES...",
            help="A shipped study by its name, or a YAML file; with --pairs the folder of a run; with --pairs-results "
            "the answers of raters.",
        ),
    ] = None,
    target: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="DIR", help="Folder of the run: pictures, scores, tables, report."),
    ] = None,
    photos: Annotated[
        list[str] | None,
        typer.Option(
            "--photos",
            metavar="FILE|FOLDER",
            help="Photos in place of the study's, one for each subject and named as it is; may be repeated.",
        ),
    ] = None,
    pretrain_on: Annotated[
        str | None,
        typer.Option(
            "--pretrain-on",
            metavar="FOLDER|JSONL",
            help="Pictures to pre-train on, as for `profusion pretrain`, where a study compares PromptNets.",
        ),
    ] = None,
    only: Annotated[
        str | None, typer.Option("--only", metavar="NAME", help="Make what this table or figure needs, and no more.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="N", min=1, help="Only the first N subjects, for a quick look.")
    ] = None,
    go_on: Annotated[
        bool, typer.Option("--continue", help="Go on in a run whose study has changed; what changed is made again.")
    ] = False,
    keep_bundles: Annotated[
        bool, typer.Option("--keep-bundles", help="Keep the subjects' bundles, to sample them in other ways later.")
    ] = False,
    bundles: Annotated[
        Path | None,
        typer.Option(
            "--bundles",
            metavar="DIR",
            help="Keep subjects' bundles and PromptNets here; what another run has made there is not made again.",
        ),
    ] = None,
    pairs: Annotated[
        bool,
        typer.Option(
            "--pairs",
            help="Write the page of a run on which people compare pictures: RUN/pairs, and its key beside it.",
            rich_help_panel=PREFERENCE,
        ),
    ] = False,
    pairs_results: Annotated[
        bool,
        typer.Option(
            "--pairs-results",
            help="Preference rates and agreement from the answers that raters downloaded.",
            rich_help_panel=PREFERENCE,
        ),
    ] = False,
    key: Annotated[
        Path | None,
        typer.Option(
            "--key", metavar="FILE", help="RUN/pairs-key.json, for --pairs-results.", rich_help_panel=PREFERENCE
        ),
    ] = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    *,
    flags: dict[str, Any],
) -> None:
    """Run a study: subjects, prompts and methods side by side, judged, with intervals.

    A run that was cut off goes on where it was. Pictures are made first and judged then; a metric that is not
    installed is told of, and the others go on. The report is of everything in the folder. Several processes share a
    run with `torchrun -m profusion_cli evaluate ...` or `accelerate launch -m profusion_cli evaluate ...`.
    """
    output, device = Output(quiet or not is_main_process(), as_json), flags.get("device")
    given = {"--output": target, "--photos": photos, "--only": only, "--limit": limit, "--device": device, "--key": key}
    given |= {"--pretrain-on": pretrain_on, "--bundles": bundles}
    given |= {"--continue": go_on or None, "--keep-bundles": keep_bundles or None}
    if pairs and pairs_results:
        raise UsageError("--pairs writes the page, and --pairs-results reads the answers.", "Give one of the two.")
    if pairs or pairs_results:
        if process_count() > 1:
            raise UsageError(f"There are {process_count()} processes, and this is done by one.", "Start it alone.")
        used = [name for name, value in given.items() if value is not None and not (name == "--key" and pairs_results)]
        if used:
            raise UsageError(
                f"{used[0]} has no effect with {'--pairs' if pairs else '--pairs-results'}.", "Leave it out."
            )
        (_write_pairs if pairs else _read_pairs)(arguments or [], key, output)
        return
    if keep_bundles and bundles is not None:
        raise UsageError("--keep-bundles has no effect with --bundles, where they are kept.", "Leave it out.")
    if key is not None:
        raise UsageError("--key has no effect without --pairs-results.", "Leave it out.")
    if len(arguments or []) != 1:
        from profusion_cli.evaluation.study.reading import shipped_studies

        told = f"There are {len(arguments)} studies." if arguments else "There is no study."
        raise UsageError(told, f"Give one: {', '.join(shipped_studies())}; or a YAML file.")
    if target is None:
        raise UsageError("There is no folder for the run.", "Name one with -o DIR.")
    _run(arguments[0], target, photos or [], pretrain_on, only, limit, go_on, keep_bundles, bundles, device, output)


def _write_pairs(runs: list[str], _: Path | None, output: Output) -> None:
    """The page of one run."""
    if len(runs) != 1:
        raise UsageError("--pairs takes the folder of one run.", "For example: profusion evaluate --pairs run")
    from profusion_cli.evaluation.pairs.entries import comparison_of
    from profusion_cli.evaluation.pairs.page import write_pairs

    folder = Path(runs[0])
    study, entries, seed, unfinished = comparison_of(folder)
    if unfinished:
        output.warn(f"{unfinished} cells of the run are unfinished or out of date; the page is of the others.")
    made = write_pairs(entries, folder / "pairs", study.pairs.ours, study.pairs.others, study.pairs.count, seed)
    for warning in made["warnings"]:
        output.warn(warning)
    output.line(str(made["page"]))
    output.line(str(made["key"]))
    output.note("Give raters the folder of the page, and keep the key: it says which picture is whose.")
    output.record({**made, "page": str(made["page"]), "key": str(made["key"])})


def _read_pairs(files: list[str], key: Path | None, output: Output) -> None:
    """Preference rates from answers."""
    if key is None:
        raise UsageError("The answers say nothing without the key.", "Give it: --key RUN/pairs-key.json")
    from profusion_cli.evaluation.pairs.answers import read_answers
    from profusion_cli.evaluation.pairs.key import read_key
    from profusion_cli.evaluation.pairs.summary import summarise, table

    summary = summarise(read_key(key), read_answers(files))
    for warning in summary.warnings:
        output.warn(warning)
    output.line(table(summary))
    output.record(summary.as_dict())


def _run(
    name: str,
    target: Path,
    photos: list[str],
    pretrain_on: str | None,
    only: str | None,
    limit: int | None,
    go_on: bool,
    keep_bundles: bool,
    bundles: Path | None,
    device: str | None,
    output: Output,
) -> None:
    """Make, judge and report."""
    from dataclasses import replace

    from profusion_cli.evaluation.study.reading import read_study

    started = time.perf_counter()
    plan = read_study(name, photos, pretrain_on)
    if device is not None:
        plan = replace(plan, settings={**plan.settings, "device": device})
    methods = plan.chosen(only)

    with output.working(LIBRARIES):
        from profusion_cli.evaluation.runner import Run
        from profusion_cli.evaluation.study.subjects import held_out_of, photo_of
        from profusion_cli.runtime.device import resolve_placement
        from profusion_cli.runtime.processes import launched

    config = plan.config(methods[0])
    placement = resolve_placement(config.device, config.dtype, training=False)
    with launched(placement.device) as processes:
        run = Run(target, plan, limit, output, placement.device, keep_bundles, bundles, processes=processes)
        references = {subject.name: photo_of(subject, config, subject.context) for subject in run.everyone}
        for subject in run.everyone:  # so that one that is damaged stops a run before it begins
            held_out_of(subject, config)
        with run.open(go_on):
            cells = run.cells(methods)
            pictures, problems = run.make_and_report(cells, references)
    if not processes.is_main:
        return
    missing, failed = run.jury.missing, run.maker.failed
    for problem in problems:
        output.warn(problem)
    for file in ("tables.md", "report.html"):
        output.line(str(target / file))
    told = {"path": str(target), "pictures": pictures, "missing": missing, "failed": failed}
    output.record({**told, "num_processes": processes.count})
    compare = f"profusion evaluate --pairs {quoted(str(target))}"
    output.finished(time.perf_counter() - started, "" if plan.pairs is None or only or failed else compare)
    if failed:
        error = ProfusionError(
            f"{len(failed)} of {len(cells)} cells failed.", "Run the same command again to try them once more."
        )
        error.exit_code = failed[0]["exit_code"]
        raise error
    if missing and len(missing) == len(run.jury.names):
        raise UnavailableError("None of the study's metrics can be had; the pictures are made.", "See above for each.")
