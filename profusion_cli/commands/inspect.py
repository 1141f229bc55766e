"""`profusion inspect`: what a bundle or a picture is, and what it was made from."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from profusion_cli.commands.common import check_one_stdin, display_name, quoted
from profusion_cli.console import Output, print_result, print_yaml
from profusion_cli.errors import InputError, UsageError
from profusion_cli.files import read_source, sha256_of
from profusion_cli.options import Json


def describe(source: str) -> dict[str, Any]:
    """What a file is, by its content: a bundle, a picture made by this tool, any other picture, or the folder of a run.

    Raises:
        InputError, BundleError: it is none of these, or damaged.
    """
    if os.path.isdir(source):
        return describe_folder(Path(source))
    from profusion_cli.bundle import looks_like_bundle, read_bundle
    from profusion_cli.images import decode_photo, read_record
    from profusion_cli.images.opening import is_safetensors

    data, name = read_source(source), display_name(source)
    entry: dict[str, Any] = {"file": name, "sha256": sha256_of(data), "size": len(data)}
    if looks_like_bundle(data):
        bundle = read_bundle(data, name)
        return {**entry, "is": f"{bundle.kind} bundle", "manifest": bundle.manifest}
    if is_safetensors(data):
        raise InputError(f"'{name}' holds weights (safetensors) by themselves.", "Give a bundle or a picture.")
    try:
        parameters, record = read_record(data, name)
    except InputError:  # a picture from elsewhere
        pass
    else:
        return {**entry, "is": "picture made by profusion", "parameters": parameters, "record": record}
    photo = decode_photo(data, name)
    return {**entry, "is": "photo", "width": photo.size[0], "height": photo.size[1]}


def describe_folder(folder: Path) -> dict[str, Any]:
    """What the folder of a study's run, or of a pre-training, holds by now.

    Raises:
        InputError: it is neither.
    """
    from profusion_cli.evaluation.folder import STUDY_FILE, read_json

    entry = {"file": str(folder)}
    if (folder / STUDY_FILE).is_file():
        from profusion_cli.evaluation.runner import RESULTS

        return {**entry, "is": "run of a study", "results": read_json(folder / RESULTS)}
    from profusion_cli.runtime.pretraining.checkpoints import checkpoint_files
    from profusion_cli.runtime.pretraining.log import LOG

    checkpoints = [path.name for path in checkpoint_files(folder)]
    if not checkpoints and not (folder / LOG).is_file():
        raise InputError(f"'{folder}' is a folder, and none of a run.", "Name a file in it.")
    text = (folder / LOG).read_text(encoding="utf-8", errors="replace") if (folder / LOG).is_file() else ""
    lines = text.splitlines()
    last = dict(zip(lines[0].split(","), lines[-1].split(","), strict=False)) if len(lines) > 1 else {}
    return {**entry, "is": "work folder of a pre-training", "checkpoints": checkpoints, "last": last}


def made_from(entry: dict[str, Any]) -> list[dict[str, str]]:
    """The files that one file names as its origin, with their SHA-256."""
    origins = []
    if "record" in entry:
        for subject in entry["record"].get("subjects", []):
            origins.append({"what": f"subject bundle {subject['name']}", "sha256": subject["sha256"]})
            origins += _inputs_and_parents(subject)
        if "start" in entry["record"]:
            start = entry["record"]["start"]
            origins.append({"what": f"picture {start['name']}", "sha256": start["sha256"]})
        if "inputs" in entry["record"]:
            origins += _inputs_and_parents({"parents": [], **entry["record"]})
    if "manifest" in entry:
        origins += _inputs_and_parents(entry["manifest"])
    return origins


def _inputs_and_parents(source: dict[str, Any]) -> list[dict[str, str]]:
    inputs = [{"what": f"{item['kind']} {item['name']}", "sha256": item["sha256"]} for item in source["inputs"]]
    return inputs + [{"what": "bundle", "sha256": parent} for parent in source["parents"]]


def print_commands(files: list[str]) -> None:
    """The command that draws each of these pictures again.

    Raises:
        InputError: one is no picture that profusion has drawn of finished subjects.
    """
    from profusion_cli.jobs.replay import replay

    for file in files:
        entry = describe(file)
        arguments = replay(entry.get("record", {}), "-" if file == "-" else file)
        print_result(" ".join(["profusion", *map(quoted, arguments)]))


def inspect(
    files: Annotated[
        list[str],
        typer.Argument(metavar="FILE...", help="Bundles, pictures, photos or folders of runs; - is standard input."),
    ],
    replay: Annotated[
        bool, typer.Option("--replay", help="Print the command that draws a picture again, and nothing else.")
    ] = False,
    full: Annotated[bool, typer.Option("--full", help="All that is known of them, as --json has it.")] = False,
    as_json: Json = False,
) -> None:
    """Say what files are and what they were made from; given several, say which of them is the origin of which."""
    if full and as_json:
        raise UsageError("--full has no effect with --json, which is complete.", "Leave it out.")
    if replay and (full or as_json):
        raise UsageError("--replay prints commands alone.", "Leave --full and --json out.")
    check_one_stdin(files)
    if replay:
        print_commands(files)
        return
    entries = [describe(file) for file in files]
    given = {entry["sha256"]: entry["file"] for entry in entries if "sha256" in entry}
    for entry in entries:
        try:
            origins = made_from(entry)
        except (KeyError, TypeError, AttributeError):
            raise InputError(
                f"The record in '{entry['file']}' is not as profusion writes it.", "It may have been edited."
            ) from None
        if origins:
            entry["made_from"] = [
                {**origin, **({"is_the_file": given[origin["sha256"]]} if origin["sha256"] in given else {})}
                for origin in origins
            ]
    Output(as_json=as_json).record({"files": entries})
    if not as_json:
        from profusion_cli.jobs.summaries import summary

        if full:
            print_yaml(*entries)
        else:
            print_yaml(*map(summary, entries), width=math.inf)
