"""What a command says: results on standard output; progress, notes and errors on standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape

from profusion_cli.errors import ProfusionError


class Output:
    """The one sink of a command.

    Args:
        quiet: only results and errors.
        as_json: one JSON object on standard output instead of one line per result.
    """

    def __init__(self, quiet: bool = False, as_json: bool = False) -> None:
        self.quiet = quiet
        self.as_json = as_json
        self.stderr = Console(stderr=True, soft_wrap=True, highlight=False)

    def note(self, text: str) -> None:
        """Something good to know."""
        if not self.quiet:
            self.stderr.print(escape(text))

    def warn(self, text: str) -> None:
        """Something that may not be what the user wants."""
        if not self.quiet:
            self.stderr.print(f"[yellow]Warning:[/yellow] {escape(text)}")

    def line(self, text: str) -> None:
        """One line of the results, such as a path, as soon as it is there; nothing with `--json`."""
        if not self.as_json:
            sys.stdout.write(text + "\n")
            sys.stdout.flush()

    def record(self, record: dict[str, Any]) -> None:
        """The results as one JSON object, with `--json`."""
        if self.as_json:
            sys.stdout.write(json.dumps(record, ensure_ascii=False) + "\n")
            sys.stdout.flush()

    @contextmanager
    def progress(self, title: str, total: int) -> Iterator[Callable[[int, str], None]]:
        """A progress bar, on a terminal; call with the number done and a short remark."""
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[remark]}"),
            console=self.stderr,
            transient=True,
            disable=self.quiet or not self.stderr.is_terminal,
        )
        with bar:
            task = bar.add_task(escape(title), total=total, remark="")
            yield lambda done, remark="": bar.update(task, completed=done, remark=remark)


def print_error(error: ProfusionError) -> None:
    """One sentence that says what is wrong, and one that says what to do."""
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    console.print(f"[red]Error:[/red] {escape(error.message)}")
    if error.hint:
        console.print(escape(error.hint))
