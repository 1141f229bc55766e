"""The Typer application, and the map from errors to exit codes."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from profusion_cli import __version__
from profusion_cli.commands import (
    augment,
    bench,
    compress,
    doctor,
    evaluate,
    export,
    finetune,
    importer,
    inspect,
    interpolate,
    presets,
    pretrain,
    sample,
)
from profusion_cli.console import Output, download_bars, escaped, print_error
from profusion_cli.errors import ProfusionError, UnavailableError, out_of_memory
from profusion_cli.interrupts import interrupts_as_such, stop_if_asked, tell_interrupted
from profusion_cli.launcher import is_first_process
from profusion_cli.listener import hearing
from profusion_cli.options import tell_defaults

INTERRUPTED = 130
WITHOUT_DOCSTRINGS = UnavailableError(
    "Python runs without docstrings (PYTHONOPTIMIZE=2 or -OO), and Transformers cannot be loaded without them.",
    "Unset PYTHONOPTIMIZE, or set it to 1.",
)
OTHERS_WAIT = 5.0
"""Seconds; more than the processes of one machine need to start one after another."""


class Commands(TyperGroup):
    """Turns what goes wrong in a command into a message and an exit code, and tells a command's help at once."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        name, *rest = args or [""]
        if name in self.commands and _asks_for_help(ctx, rest):
            self.commands[name].make_context(name, rest, parent=ctx)
        with _told_escaped():
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            with interrupts_as_such():
                return super().invoke(ctx)
        except ProfusionError as error:
            _wait_for_first_process()
            print_error(error)
            raise typer.Exit(error.exit_code) from error
        except KeyboardInterrupt as interrupt:
            tell_interrupted(*(escaped(str(word)) for word in interrupt.args))
            raise typer.Exit(getattr(interrupt, "exit_code", INTERRUPTED)) from None
        except BrokenPipeError:  # of '-o -'; what prints lines goes on by itself
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from None
        except (RuntimeError, MemoryError) as error:
            if not _out_of_memory(error):
                raise
            name = ctx.invoked_subcommand or ""
            failure = out_of_memory(error, MEMORY_HINTS.get(name, MORE_MEMORY))
            _wait_for_first_process()
            print_error(failure)
            raise typer.Exit(failure.exit_code) from error


class Command(TyperCommand):
    """Keeps downloads as quiet as the command, and tells its help at once, with the defaults of its options."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if _asks_for_help(ctx, args):
            typer.echo(ctx.get_help(), color=ctx.color)
            ctx.exit()
        with _told_escaped():
            return super().parse_args(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        tell_defaults(self.params)
        super().format_help(ctx, formatter)

    def invoke(self, ctx: Any) -> Any:
        told = not ctx.params.get("quiet") and is_first_process()
        with download_bars(told), hearing(Output(quiet=not told)):
            return super().invoke(ctx)


@contextmanager
def _told_escaped() -> Iterator[None]:
    """Typer's own errors in the block quote the command line with its control characters escaped."""
    try:
        yield
    except typer.BadParameter.__base__ as error:  # UsageError, by a name that Typer exports
        error.message = escaped(error.message)
        raise


def _asks_for_help(ctx: Any, args: list[str]) -> bool:
    """Whether help is all that is asked for; Typer would first load what converts values."""
    return len(args) == 1 and args[0] in ctx.help_option_names


MORE_MEMORY = "Close other programs, or use a machine with more memory."
MEMORY_HINTS = {
    "pretrain": "Raise --gradient-accumulation (up to the batch size of a process), switch on --set "
    "pretrain.gradient_checkpointing=true, and go on with --resume.",
    "augment": "Lower --set augment.batch_size, or use plain backgrounds with --no-inpaint.",
    "finetune": "Raise --gradient-accumulation (up to the batch size) or switch on "
    "--set finetune.gradient_checkpointing=true, or train less with --train lora; while inpainting, lower "
    "--set augment.batch_size.",
    "sample": "Lower --batch-size, or --width and --height, or use --offload group.",
    "interpolate": "Lower --width and --height, or use --offload group.",
    "evaluate": "Lower sample.batch_size, or raise finetune.gradient_accumulation, under `settings` in the study; what "
    "is finished is kept.",
}


def _wait_for_first_process() -> None:
    """An error that all processes meet is told once: the launcher ends the others as soon as the first has ended.

    Who is left after a while has met something of its own, and tells it.
    """
    if not is_first_process():
        time.sleep(OTHERS_WAIT)


def _out_of_memory(error: BaseException) -> bool:
    if "torch" not in sys.modules:
        return isinstance(error, MemoryError)
    from profusion_cli.runtime.device import is_out_of_memory

    return is_out_of_memory(error)


app = typer.Typer(
    name="profusion",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="One picture of a face or thing becomes a model that draws it anywhere.",
)
app.command("pretrain", cls=Command)(pretrain.pretrain)
app.command("augment", cls=Command)(augment.augment)
app.command("finetune", cls=Command)(finetune.finetune)
app.command("sample", cls=Command)(sample.sample)
app.command("interpolate", cls=Command)(interpolate.interpolate)
app.command("compress", cls=Command)(compress.compress)
app.command("export", cls=Command)(export.export)
app.command("evaluate", cls=Command)(evaluate.evaluate)
app.command("import", cls=Command)(importer.import_promptnet)
app.command("inspect", cls=Command)(inspect.inspect)
app.command("presets", cls=Command)(presets.presets)
app.command("bench", cls=Command)(bench.bench)
app.command("doctor", cls=Command)(doctor.doctor)


def _version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"profusion {__version__}\n")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """One picture of a face or thing becomes a model that draws it anywhere."""


def run() -> None:
    """Run the command line; a bug ends with its traceback and exit code 1."""
    try:
        if sys.flags.optimize > 1:
            print_error(WITHOUT_DOCSTRINGS)
            sys.exit(WITHOUT_DOCSTRINGS.exit_code)
        app(prog_name="profusion")
    except Exception:
        stop_if_asked()
        sys.stderr.write(escaped(traceback.format_exc()))
        sys.stderr.write(f"This is a bug in profusion {__version__}: please report it with the lines above.\n")
        sys.exit(1)
