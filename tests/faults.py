"""Kills runs at random moments, and lets their writes fail one after the other.

    python -m tests.faults --kills 200 --writes

Whatever was done to a run, its exit code says so, every file that it leaves is whole, and the next run ends with
exactly what an undisturbed one makes, with nothing left in the temporary folder or beside its outputs. Most runs are
forked from a process that has the libraries loaded; one in ten of the killed ones is a program of its own, from its
start on. Four runs are killed in one place, one after the other, before one is left to end.
"""

from __future__ import annotations

import _pyio
import argparse
import builtins
import collections
import errno
import functools
import io
import itertools
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # a process that has computed with several cannot be forked

ROOT = Path(__file__).resolve().parents[1]
TINY = ("--preset", "tiny-random")
PROMPT = "S* on a beach"
SIGNALS = (signal.SIGKILL, signal.SIGINT, signal.SIGTERM)
CODES = {signal.SIGKILL: -signal.SIGKILL, signal.SIGINT: 130, signal.SIGTERM: 143}
ERRORS = (errno.ENOSPC, errno.EIO)
IN_ONE_PLACE = 4
OWN = 10
OLD = b"what was there before"
PROGRAM = "import sys; open(sys.argv.pop(1), 'w').close(); from profusion_cli.__main__ import main; main()"
"""The program, which leaves a file where its own code begins."""


@dataclass(frozen=True)
class Case:
    """A command to disturb.

    Args:
        arguments: of the command, whose outputs lie below `out`.
        target: the output that is there at the end of a whole run, below `out`.
        again: further arguments of the run after a disturbed one.
        differs: beginnings of the names of outputs that hold times, so no two runs write the same.
    """

    arguments: tuple[str, ...]
    target: str
    again: tuple[str, ...] = ("--force",)
    differs: tuple[str, ...] = ()


def cases(inputs: Path) -> dict[str, Case]:
    """The commands, on what `prepare` makes."""
    photo, me, you, pictures = (str(inputs / name) for name in ("me.png", "me.pfz", "you.pfz", "pictures"))
    return {
        "augment": Case(("augment", photo, *TINY, "-o", "out/views.pfz", "--save-images", "out/views"), "views.pfz"),
        "finetune": Case(("finetune", photo, *TINY, "--steps", "3", "-o", "out/me.pfz"), "me.pfz"),
        "sample": Case(
            ("sample", me, PROMPT, "--steps", "3", "-n", "2", "-o", "out/pictures", "--sheet", "out/sheet.png"),
            "sheet.png",
        ),
        "interpolate": Case(
            ("interpolate", me, you, PROMPT, "--steps", "2", "--frames", "3", "-o", "out/way.webp"), "way.webp"
        ),
        "pretrain": Case(
            (
                *("pretrain", pictures, *TINY, "--steps", "3", "--batch-size", "2", "--checkpoint-every", "2"),
                *("--sample-every", "2", "--set", "pretrain.sample_steps=1", "--set", "finetune.steps=1"),
                *("--cache", "out/cache", "-o", "out/net.pfz"),
            ),
            "net.pfz",
            ("--resume", "--force"),
            ("net.pfz.work/",),
        ),
    }


def prepare(inputs: Path, names: Sequence[str]) -> None:
    """Load the libraries, and make the inputs of the commands `names`."""
    from tests.conftest import draw_photo, ok, prepare_for_commands

    prepare_for_commands()
    draw_photo(inputs / "me.png")
    draw_photo(inputs / "you.png", "olive")
    (inputs / "pictures").mkdir()
    for i, colour in enumerate(("tan", "red", "navy")):
        draw_photo(inputs / "pictures" / f"{i}.png", colour, (64, 48 + i))
    for name in ("me", "you") if {"sample", "interpolate"} & set(names) else ():
        ok("finetune", inputs / f"{name}.png", *TINY, "--no-augment", "--steps", 1, "-o", inputs / f"{name}.pfz", "-q")


# --- running ---------------------------------------------------------------------------------------------------


@dataclass
class Place:
    """A folder to work in, with `out` for outputs and `tmp` for temporary files."""

    folder: Path

    def __post_init__(self) -> None:
        for path in (self.out, self.tmp):
            path.mkdir(parents=True, exist_ok=True)

    @property
    def out(self) -> Path:
        return self.folder / "out"

    @property
    def tmp(self) -> Path:
        return self.folder / "tmp"

    @property
    def told(self) -> str:
        return (self.folder / "stderr").read_text(errors="replace")

    def files(self) -> dict[str, Path]:
        return {path.relative_to(self.out).as_posix(): path for path in self.out.rglob("*") if path.is_file()}


def forked(arguments: Sequence[str], place: Place, before: Callable[[], object] = lambda: None) -> int:
    """Start a command in a copy of this process; its process id."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        os.chdir(place.folder)
        os.environ["TMPDIR"], tempfile.tempdir = str(place.tmp), None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(place.folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.stdout, sys.stderr = (open(number, "w", closefd=False, buffering=1) for number in (1, 2))  # noqa: SIM115
        sys.argv = ["profusion", *arguments]
        from profusion_cli.__main__ import main

        before()
        main()
        code = 0
    except SystemExit as end:
        code = end.code or 0
    finally:
        os._exit(code)


def started(arguments: Sequence[str], place: Place) -> subprocess.Popen[bytes]:
    """Start a command as a program of its own."""
    with (place.folder / "stdout").open("wb") as stdout, (place.folder / "stderr").open("wb") as stderr:
        return subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(place.folder / "begun"), *arguments],
            cwd=place.folder,
            env={**os.environ, "TMPDIR": str(place.tmp), "PYTHONPATH": str(ROOT)},
            stdout=stdout,
            stderr=stderr,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )


def ended(process: int) -> int:
    """The exit code of a child, or minus the signal that it died of."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def run_whole(arguments: Sequence[str], place: Place) -> float:
    """A run that nothing disturbs; how many seconds it takes."""
    begin = time.monotonic()
    code = ended(forked(arguments, place))
    assert code == 0, (arguments, code, place.told)
    return time.monotonic() - begin


# --- looking ---------------------------------------------------------------------------------------------------


def damage(path: Path) -> str | None:
    """What is wrong with an output, if anything is."""
    from PIL import Image
    from safetensors import safe_open

    from profusion_cli.bundle import read_bundle

    try:
        if path.suffix == ".pfz":
            bundle = read_bundle(path.read_bytes(), path.name)
            for name in bundle.manifest["files"]:
                bundle.read(name)
        elif path.suffix in (".png", ".webp"):
            with Image.open(path) as image:
                image.load()
        elif path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - not a mapping
                    file.get_tensor(name)
    except Exception as error:  # any at all is damage
        return f"{path.name}: {error!r}"
    return None


def leftovers(place: Place) -> list[str]:
    """Names of temporary files that are still there, but for torch's folder for compiled code, always the same."""
    hidden = [path.name for path in place.out.rglob(".*")]
    return hidden + [f"tmp/{path.name}" for path in place.tmp.rglob("*") if "torchinductor" not in path.name]


def torn(place: Place) -> list[str]:
    """What is wrong with the outputs; temporary files are no outputs, nor is what a run has found there."""
    outputs = [path for name, path in place.files().items() if not path.name.startswith(".")]
    return [wrong for path in outputs if path.read_bytes() != OLD and (wrong := damage(path))]


def different(place: Place, reference: Place, case: Case) -> list[str]:
    """Outputs that are not those of an undisturbed run."""
    ours, theirs = (
        {name: path for name, path in one.files().items() if not name.startswith(case.differs)}
        for one in (place, reference)
    )
    names = sorted(set(ours) ^ set(theirs))
    return names + [name for name in set(ours) & set(theirs) if ours[name].read_bytes() != theirs[name].read_bytes()]


def put_old(place: Place, reference: Place, case: Case) -> None:
    """Files of an earlier run where this one writes: they are what they were, or new and whole."""
    path = place.out / case.target
    assert path.relative_to(place.out).as_posix() in reference.files()
    path.write_bytes(OLD)


@dataclass
class Findings:
    """What came of many runs.

    Attributes:
        counts: of runs, by what happened.
        problems: what should not have.
        slowest: seconds from an interrupt to the end of the run.
    """

    counts: collections.Counter[str] = field(default_factory=collections.Counter)
    problems: list[str] = field(default_factory=list)
    slowest: float = 0.0

    def check(self, what: str, *wrong: object) -> None:
        """Note what is wrong, if anything is."""
        for one in wrong:
            if one:
                self.problems.append(f"{what}: {one}")
                print(self.problems[-1], flush=True)

    def tell(self, what: str) -> None:
        """How things stand."""
        print(f"{what}: {dict(sorted(self.counts.items()))}, {len(self.problems)} problems", flush=True)


def check_next_run(found: Findings, what: str, case: Case, place: Place, reference: Place) -> float:
    """The run after a disturbed one makes what an undisturbed one makes, and nothing is left of either; its seconds."""
    begin = time.monotonic()
    code = ended(forked((*case.arguments, *case.again), place))
    if code:
        found.check(what, f"the next run ended with {code}: {place.told}")
    else:
        found.check(what, *(f"the next run left {name}" for name in leftovers(place)))
        found.check(what, *(f"the next run has another {name}" for name in different(place, reference, case)))
    return time.monotonic() - begin


# --- killing ---------------------------------------------------------------------------------------------------


def kill_runs(names: Sequence[str], count: int, seed: int, folder: Path) -> Findings:
    """Kill at least `count` runs of the commands `names`, one after the other, at random moments."""
    found, chance = Findings(), random.Random(seed)
    inputs = folder / "inputs"
    wanted = cases(inputs)
    whole = {name: Place(folder / f"whole-{name}") for name in names}
    seconds = {name: run_whole(wanted[name].arguments, whole[name]) for name in names}
    loading = time_of_loading(folder) if count >= OWN else 0.0
    done, turn = 0, itertools.cycle(names)
    while done < count:
        name = next(turn)
        case, place = wanted[name], Place(folder / f"kill-{done}")
        arguments = case.arguments
        if chance.random() < 0.5:
            put_old(place, whole[name], case)
            arguments += case.again
        for _ in range(IN_ONE_PLACE):
            own = count >= OWN and chance.random() < 1 / OWN
            moment = chance.random() * 1.05 * (seconds[name] + (loading if own else 0))
            if kill_run(found, f"{done} {name}", arguments, place, own, chance.choice(SIGNALS), moment):
                done += 1
            else:
                seconds[name] *= 0.9  # the machine has less to do than it had, or there was little left to do
            arguments = (*case.arguments, *case.again)
        again = check_next_run(found, f"{done} {name}", case, place, whole[name])
        if "--resume" not in case.again:
            seconds[name] = (seconds[name] + again) / 2
        else:
            seconds[name] = max(seconds[name], again)
        shutil.rmtree(place.folder)
        found.tell(f"{done} kills")
    return found


def time_of_loading(folder: Path) -> float:
    """Seconds until a program of its own has loaded the libraries."""
    begin = time.monotonic()
    code = "import profusion_cli.app, profusion_cli.runtime.subjects, profusion_cli.runtime.inpaint"
    subprocess.run([sys.executable, "-c", code], cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)
    return time.monotonic() - begin


def kill_run(
    found: Findings, what: str, arguments: Sequence[str], place: Place, own: bool, number: signal.Signals, moment: float
) -> bool:
    """Kill one run, `own`: a program of its own, after so many seconds; whether it was not over by then."""
    begun = place.folder / "begun"
    begun.unlink(missing_ok=True)
    process = started(arguments, place).pid if own else forked(arguments, place)
    time.sleep(moment)
    os.kill(process, number)
    begin = time.monotonic()
    code = ended(process)
    took = time.monotonic() - begin
    what = f"{what}, {number.name} after {moment:.3f} s{' from its start' if own else ''}"
    judge_kill(found, what, number, code, not own or begun.exists(), took, place)
    return code != 0


def judge_kill(
    found: Findings, what: str, number: signal.Signals, code: int, ours: bool, took: float, place: Place
) -> None:
    """Whether a run ended as it should after a signal; `ours`: its own code had begun."""
    ended_by = "was over" if code == 0 else "was killed" if ours else "had not begun"
    found.counts[f"{number.name} {ended_by}"] += 1
    if ours and code not in (0, CODES[number]):
        found.check(what, f"exit code {code}: {place.told}")
    if ours and number != signal.SIGKILL:
        found.check(what, "Traceback" in place.told and place.told)
        found.slowest = max(found.slowest, took)
    found.check(what, *torn(place))


# --- writes that fail --------------------------------------------------------------------------------------------


class Fault:
    """Lets one of this process's writes to files fail: the `turn`-th (from 1) call that changes a file or a folder.

    Files are read and written by Python's own `io` in Python, whose calls of `os` can be told to fail. Of the writes
    to one file in a row, which may be thousands, the first, second, fourth, eighth... count.
    """

    def __init__(self, turn: int, code: int, report: Path) -> None:
        self.turn, self.code, self.report, self.count = turn, code, report, 0
        self.last, self.row = (None, None), 0

    def arm(self) -> None:
        from PIL import ImageFile

        builtins.open = io.open = _pyio.open
        regular = lambda file, *_, **__: isinstance(file, int) and stat.S_ISREG(os.fstat(file).st_mode) and file > 2  # noqa: E731
        always = lambda *_, **__: True  # noqa: E731
        creates = lambda _, flags=0, *__, **___: flags & os.O_CREAT  # noqa: E731
        for module, name, counts in (
            (os, "write", regular),
            (os, "fsync", regular),
            (os, "open", creates),
            (os, "replace", always),
            (os, "link", always),
            (os, "mkdir", always),
            (ImageFile, "_encode_tile", lambda _, file, *__: hasattr(file, "fileno") and hasattr(file, "name")),
        ):
            setattr(module, name, self._failing(getattr(module, name), counts))

    def _failing(self, call: Callable[..., Any], counts: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def failing(*arguments: Any, **options: Any) -> Any:
            if counts(*arguments, **options):
                self.row = self.row + 1 if self.last == (call.__name__, arguments[0]) else 1
                self.last = call.__name__, arguments[0]
                self.count += self.row.bit_count() == 1
                if self.count == self.turn:
                    self.turn = 0
                    self.report.touch()
                    raise OSError(self.code, os.strerror(self.code))
            return call(*arguments, **options)

        return failing


def fail_writes(names: Sequence[str], folder: Path, every: int = 1) -> Findings:
    """Let every single write of the commands fail, or `every` so manieth, once with each error."""
    found, wanted = Findings(), cases(folder / "inputs")
    for name in names:
        case, whole = wanted[name], Place(folder / f"unfailing-{name}")
        run_whole(case.arguments, whole)
        for code in ERRORS:
            for turn, old in _turns(found, name, every):
                place = Place(folder / f"fault-{name}-{code}-{turn}")
                what = f"{name}, write {turn}, {errno.errorcode[code]}"
                arguments = case.arguments
                if old:
                    put_old(place, whole, case)
                    arguments += ("--force",)
                report = place.folder / "failed"
                ending = ended(forked(arguments, place, Fault(turn, code, report).arm))
                if not report.exists():
                    found.check(what, ending and f"exit code {ending}, and no write failed: {place.told}")
                    break
                judge_fault(found, what, ending, place, case, old)
                if code == ERRORS[0]:  # whatever the error, the same is left
                    check_next_run(found, what, case, place, whole)
                shutil.rmtree(place.folder)
            found.tell(f"{name}, {errno.errorcode[code]}")
    return found


def _turns(found: Findings, name: str, every: int) -> Iterator[tuple[int, bool]]:
    """Numbers of writes, without end, every second one with an earlier output in the way."""
    for number in itertools.count(1):
        yield number * every, number % 2 == 0
        found.counts[f"of {name}"] += 1


def judge_fault(found: Findings, what: str, code: int, place: Place, case: Case, old: bool) -> None:
    """Whether a run ended as it should after a write that failed: one that it can do without may fail."""
    found.counts["told" if code else "done without"] += 1
    if code not in (0, 9):
        found.check(what, f"exit code {code}: {place.told}")
    found.check(what, "Traceback" in place.told and place.told)
    found.check(what, *torn(place))
    found.check(what, *(f"left {name}" for name in leftovers(place)))
    target = place.out / case.target
    if old:
        found.check(what, not target.exists() and "the old output is gone")
    if code == 0:
        found.check(what, (not target.exists() or target.read_bytes() == OLD) and "no output, and no error")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=0, metavar="N", help="kill so many runs")
    parser.add_argument("--writes", type=int, nargs="?", const=1, metavar="N", help="let every (Nth) write fail")
    parser.add_argument("--only", default="", metavar="COMMAND,...", help="these commands instead of all")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and signals")
    given = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="faults-") as name:
        folder = Path(name)
        (folder / "inputs").mkdir()
        names = given.only.split(",") if given.only else list(cases(folder))
        prepare(folder / "inputs", names)
        found = []
        if given.kills:
            found.append(kill_runs(names, given.kills, given.seed, folder))
            print(f"slowest end after SIGINT or SIGTERM: {found[-1].slowest:.2f} s")
        if given.writes:
            found.append(fail_writes(names, folder, given.writes))
    problems = sum(len(one.problems) for one in found)
    print(f"{problems} problems in {time.monotonic() - began:.0f} s")
    return min(problems, 1)


if __name__ == "__main__":
    sys.exit(main())
