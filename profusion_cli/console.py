"""What a command says: results on standard output; progress, notes and errors on standard error.

Names, ids and words of others reach a terminal through here alone, with their control characters escaped.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.markup import escape

from profusion_cli.errors import OutputError, ProfusionError
from profusion_cli.interrupts import stop_if_asked
from profusion_cli.listener import Listener
from profusion_cli.pace import clock

if TYPE_CHECKING:
    from rich.live import Live

    from profusion_cli.display import Bar, Waiting

_CONTROL = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 but tab and newline, and C1
    r"\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069"  # what turns the direction, and odd line breaks
    r"\ud800-\udfff]"  # bytes of a file name that are no text
)


def escaped(text: str) -> str:
    """Text without the characters that a terminal obeys: each is shown as JSON, YAML and Python write it."""
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def print_result(text: str) -> None:
    """Text for people, YAML or JSON on standard output, at once, escaped. Work goes on when nobody reads it any more.

    Raises:
        OutputError: standard output is closed, or cannot be written.
    """
    _write(escaped(text))


def print_name(name: str) -> None:
    """The name of a file that was written, as `print_result`: escaped on a terminal, and exact in a pipe.

    Raises:
        OutputError: as `print_result`.
    """
    _write(escaped(name) if sys.stdout is None or sys.stdout.isatty() else name)


def print_yaml(*documents: dict[str, Any], width: float = 120) -> None:
    """Plain data as YAML, as `print_result`.

    Args:
        documents: one after another.
        width: of a line, in characters, as far as there are spaces to break it at.

    Raises:
        OutputError: as `print_result`.
    """
    import yaml

    class Quoting(yaml.SafeDumper):
        """Text that must be escaped stands between quotes, where YAML knows escapes."""

        def represent_str(self, data: str) -> yaml.Node:
            return self.represent_scalar("tag:yaml.org,2002:str", data, '"' if _CONTROL.search(data) else None)

    Quoting.add_representer(str, Quoting.represent_str)
    text = yaml.dump_all(documents, Dumper=Quoting, sort_keys=False, allow_unicode=_writes_unicode(), width=width)
    print_result(text.rstrip())


def _writes_unicode() -> bool:
    """Whether standard output takes every character."""
    return (getattr(sys.stdout, "encoding", None) or "").lower().startswith("utf")


def _write(text: str) -> None:
    """A line of text on standard output; where its encoding has no letters for it, in a pipe as in a file's name.

    Raises:
        OutputError: see `print_result`.
    """
    if sys.stdout is None:
        raise OutputError("Standard output is closed.", "Run the command with an open standard output.")
    try:
        try:
            sys.stdout.write(text + "\n")
        except UnicodeEncodeError:
            sys.stdout.flush()
            sys.stdout.buffer.write(_encoded(text) + os.linesep.encode())
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            raise OutputError(
                f"Standard output cannot be written: {error.strerror or error}.", "Redirect it to another place."
            ) from error


def _encoded(text: str) -> bytes:
    """The bytes of text that standard output has no letters for."""
    if sys.stdout.isatty():
        return text.encode(sys.stdout.encoding, "backslashreplace")
    return os.fsencode(text)


def _stderr() -> Console:
    return Console(stderr=True, soft_wrap=True, highlight=False, emoji=False)


def _plain(text: str) -> str:
    """Text in which Rich finds neither markup nor anything else that a terminal obeys."""
    return escape(escaped(text))


_downloads_wanted: ContextVar[bool] = ContextVar("downloads_wanted", default=True)


@contextmanager
def download_bars(wanted: bool) -> Iterator[None]:
    """Whether downloads in the block may draw progress bars on a terminal."""
    token = _downloads_wanted.set(wanted)
    try:
        yield
    finally:
        _downloads_wanted.reset(token)


def shows_download_bars() -> bool:
    """Whether a download may draw its progress bar: it is wanted, and standard error is a terminal."""
    return _downloads_wanted.get() and _stderr().is_terminal


class Output(Listener):
    """The one sink of a command.

    Args:
        quiet: only results and errors.
        as_json: one JSON object on standard output instead of one line per result.
    """

    def __init__(self, quiet: bool = False, as_json: bool = False) -> None:
        self.quiet = quiet
        self.as_json = as_json
        self.stderr = _stderr()
        self._lines: list[Bar | Waiting] = []
        self._live: Live | None = None

    @property
    def watched(self) -> bool:
        """Whether somebody looks on at a terminal."""
        return not self.quiet and self.stderr.is_terminal

    def note(self, text: str) -> None:
        """Something good to know."""
        if not self.quiet:
            self.stderr.print(_plain(text))

    def warn(self, text: str) -> None:
        """Something that may not be what the user wants."""
        if not self.quiet:
            self.stderr.print(f"[yellow]Warning:[/yellow] {_plain(text)}")

    def line(self, text: str) -> None:
        """One line of the results, such as a path, as soon as it is there; nothing with `--json`."""
        if not self.as_json:
            with self._hidden():
                print_name(text)

    def record(self, record: dict[str, Any]) -> None:
        """The results as one JSON object, with `--json`."""
        if self.as_json:
            print_result(json.dumps(record, ensure_ascii=not _writes_unicode()))

    def finished(self, seconds: float, then: str = "", memory: str = "") -> None:
        """On a terminal: what it took, and a command that may come next."""
        if self.watched:
            self.note(f"Time taken: {clock(seconds)}{f'; most memory at once: {memory}' if memory else ''}.")
            if then:
                self.note(f"Next: {then}")

    @contextmanager
    def working(self, title: str) -> Iterator[None]:
        """Something without steps, such as loading, with the time it takes, on a terminal."""
        from profusion_cli.display import Waiting

        with self._shown(Waiting(escaped(title))):
            yield

    @contextmanager
    def progress(self, title: str, total: float, counted: bool = True) -> Iterator[Callable[..., None]]:
        """A progress bar, on a terminal; call with the number done and a short remark."""
        from profusion_cli.display import Bar

        bar = Bar(escaped(title), total, counted)

        def step(done: float, remark: str = "") -> None:
            stop_if_asked()
            bar.report(done, escaped(remark))

        with self._shown(bar):
            yield step

    @contextmanager
    def _shown(self, line: Bar | Waiting) -> Iterator[None]:
        """A line at the bottom of the terminal, below those that are there already."""
        if not self.watched:
            yield
            return
        self._lines.append(line)
        try:
            if self._live is not None:
                self._live.refresh()
                yield
                return
            from rich.live import Live

            # results go to standard output as they are, see `_hidden`
            self._live = Live(
                get_renderable=lambda: Group(*self._lines), console=self.stderr, transient=True, redirect_stdout=False
            )
            try:
                with self._live:
                    yield
            finally:
                self._live = None
        finally:
            self._lines.remove(line)

    @contextmanager
    def _hidden(self) -> Iterator[None]:
        """The lines are away meanwhile, where standard output is a terminal too, likely the same one."""
        if self._live is None or sys.stdout is None or not sys.stdout.isatty():
            yield
            return
        self._live.stop()
        try:
            yield
        finally:
            self._live.start()


def print_error(error: ProfusionError) -> None:
    """One sentence that says what is wrong, and one that says what to do."""
    console = _stderr()
    console.print(f"[red]Error:[/red] {_plain(error.message)}")
    if error.hint:
        console.print(_plain(error.hint))
