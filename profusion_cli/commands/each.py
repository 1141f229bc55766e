"""`--each`: the same for every input by itself; what one of them fails by stops none of the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from profusion_cli.commands.common import FILE_SUFFIXES
from profusion_cli.console import Output
from profusion_cli.errors import BundleError, DeviceError, DivergedError, InputError, ProfusionError, UsageError
from profusion_cli.files import STDIO
from profusion_cli.launcher import process_count

if TYPE_CHECKING:
    from profusion_cli.runtime.processes import Processes

OF_ONE = (BundleError, DeviceError, DivergedError, InputError)
"""What is wrong with one input; everything else is wrong with all of them."""


def names_of(sources: Sequence[str], folder: str) -> dict[str, str]:
    """What belongs to each input, in a folder by the input's name without its ending.

    Raises:
        UsageError: standard input, a folder that is named as a file, or inputs of one name.
    """
    if Path(folder).suffix.lower() in FILE_SUFFIXES and not Path(folder).is_dir():
        raise UsageError(f"'{folder}' is the name of a file, and --each writes several.", "Name a folder with -o.")
    if folder == STDIO or STDIO in sources:
        raise UsageError("--each reads files and writes into a folder, and - is neither.", "Name them.")
    names = {source: Path(source).stem for source in sources}
    for source, name in names.items():
        other = next(one for one, own in names.items() if own == name)
        if other != source:
            raise UsageError(
                f"'{other}' and '{source}' would both become '{name}' in '{folder}'.", "Rename one of them."
            )
    return {source: str(Path(folder) / name) for source, name in names.items()}


@contextmanager
def sharing(device: str) -> Iterator[Processes | None]:
    """The processes that share the inputs, if a launcher has started several.

    Args:
        device: `--device`.
    """
    if process_count() == 1:
        yield None
        return
    from profusion_cli.runtime.device import resolve_device
    from profusion_cli.runtime.processes import launched

    with launched(resolve_device(device)) as processes:
        yield processes


@dataclass
class Outcome:
    """What became of the inputs.

    Args:
        made: what is told of each that was done.
        skipped: inputs that were done before.
        failed: input, error and exit code of each that could not be done.
    """

    made: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: list[dict[str, Any]] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return vars(self)

    def check(self) -> None:
        """Raise a `ProfusionError`, with the exit code of the first failure, if there is one."""
        if self.failed:
            count = len(self.failed) + len(self.made) + len(self.skipped)
            error = ProfusionError(
                f"{len(self.failed)} of {count} failed.", "The same command tries them again, and skips what is done."
            )
            error.exit_code = self.failed[0]["exit_code"]
            raise error


def do_each(
    sources: Sequence[str],
    done: Callable[[str], bool],
    do: Callable[[str], Mapping[str, Any]],
    output: Output,
    processes: Processes | None,
) -> Outcome:
    """Do it for every input, or for this process's share of them.

    Args:
        sources: the inputs.
        done: whether one is done already.
        do: what is told of it.
        output: for what is told meanwhile.
        processes: that share the inputs.

    Returns:
        Of all inputs, in the first process; of its own, in the others.

    Raises:
        ProfusionError: one that none of the inputs is to blame for.
    """
    outcome, stopped = Outcome(), None
    rank, count = (processes.rank, processes.count) if processes else (0, 1)
    for number, source in list(enumerate(sources))[rank::count]:
        try:
            if done(source):
                output.note(f"{source}: done already.")
                outcome.skipped.append(source)
                continue
            output.note(f"{source} ({number + 1} of {len(sources)})")
            outcome.made.append({"input": source, **do(source)})
        except OF_ONE as error:
            _tell(outcome, source, error, output)
        except ProfusionError as error:
            stopped = error
            break
    if processes is None:
        if stopped is not None:
            raise stopped
        return outcome
    told = processes.gather((outcome, stopped))
    for _, error in told:
        if error is not None:
            raise error
    if not processes.is_main:
        return outcome
    for other, _ in told[1:]:
        for failure in other.failed:
            output.warn("{input}: {error} {hint}".format(**failure).rstrip())
        outcome.made += other.made
        outcome.skipped += other.skipped
        outcome.failed += other.failed
    return outcome


def _tell(outcome: Outcome, source: str, error: ProfusionError, output: Output) -> None:
    output.warn(f"{source}: {error.message} {error.hint}".rstrip())
    told = {"input": source, "error": error.message, "hint": error.hint, "exit_code": error.exit_code}
    outcome.failed.append(told)
