"""`profusion doctor`: whether everything works here, as one page for a report of a bug."""

from __future__ import annotations

from typing import Any

import typer

from profusion_cli.console import Output
from profusion_cli.options import Json, Quiet, takes


@takes("device", "dtype")
def doctor(flags: dict[str, Any], as_json: Json = False, quiet: Quiet = False) -> None:
    """Look at libraries, devices, disks and presets, and draw a picture with the face world; ten seconds or so.

    What it prints can be pasted into a report: it holds no private path, name, token or value of the environment.
    """
    from profusion_cli.doctor.report import examine, lines_of

    output = Output(quiet=quiet, as_json=as_json)
    output.note("Loading the libraries and drawing a picture takes some seconds.")
    record = examine(flags.get("device", "auto"), flags.get("dtype", "auto"), output)
    for line in lines_of(record):
        output.line(line)
    output.record(record)
    if record["troubles"]:
        raise typer.Exit(record["troubles"][0]["exit_code"])
