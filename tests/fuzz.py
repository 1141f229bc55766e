"""Damaged bundles and pictures by the million: `python -m tests.fuzz --help`.

A case is a number: the same number gives the same bytes on every run, so that a run goes on where the last one ended.
What is a failure: any exception but a `ProfusionError` of a known exit code; a file written, a process started or the
network asked; a refusal that took more than a second of the processor or 200 MB more memory; a process that died.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import json
import multiprocessing
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any
from unittest.mock import patch

from profusion_cli.bundle import Bundle, read_bundle
from profusion_cli.errors import ProfusionError
from tests.mutations import CHANGES, Seed, mutate_bundle, mutate_picture, pictures, small_bundles, take_apart

EXIT_CODES = range(2, 10)
MAX_SECONDS = 1.0
MAX_GROWTH = 200 << 20
CHUNK = 500
HANGS = 60
"""Seconds of the processor after which a case has hung."""
SUFFIXES = {"bundles": ".pfz", "pictures": ".image"}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
FORBIDDEN = (
    *("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.chown"),
    *("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect", "socket.getaddrinfo"),
    *("pickle.find_class", "shutil.rmtree", "shutil.copyfile", "shutil.move", "tempfile.mkstemp", "tempfile.mkdtemp"),
)
"""Events of Python's audit that no reading of a bundle or a picture has any business with."""


# --- judging one case -------------------------------------------------------------------------


class _Watch:
    """What happened while it was armed, of what must not happen; an audit hook cannot be taken away again."""

    def __init__(self) -> None:
        self.armed, self.seen = False, []
        sys.addaudithook(self)

    def __call__(self, event: str, args: tuple) -> None:
        if self.armed and (event in FORBIDDEN or (event == "open" and args[2] & WRITES)):
            self.seen.append(f"{event} {args!r}")


_watches: list[_Watch] = []


class Failure(AssertionError):
    """A case that shows a fault of ours."""


def highest_memory() -> int:
    """The most that this process has held so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def judge(read: Callable[[bytes], None], data: bytes) -> str:
    """How one case ends: `accepted`, or the name of the error.

    Raises:
        Failure: it ends in a way that no user should meet.
    """
    watch = _watches[0] if _watches else _Watch()
    _watches[:] = [watch]
    watch.armed = True
    memory, began = highest_memory(), time.process_time()
    try:
        read(data)
        return "accepted"
    except ProfusionError as error:
        seconds = time.process_time() - began
        growth = highest_memory() - memory
        if error.exit_code not in EXIT_CODES or not error.message or not error.hint:
            raise Failure(f"exit code {error.exit_code}, message {error.message!r}, hint {error.hint!r}") from error
        if seconds > MAX_SECONDS or growth > MAX_GROWTH:
            raise Failure(f"refused after {seconds:.1f} s and {growth >> 20} MB: {error.message}") from error
        return type(error).__name__
    except Exception as error:
        raise Failure(f"{type(error).__name__}: {error}") from error
    finally:
        watch.armed = False
        if watch.seen:
            seen, watch.seen = watch.seen, []
            raise Failure(f"did what no reading does: {seen}")


def inspect_bytes(data: bytes, name: str) -> None:
    """What `inspect` says of a file, in one of its two forms."""
    from profusion_cli.commands import inspect

    with patch.object(inspect, "read_source", lambda source: data), contextlib.redirect_stdout(io.StringIO()):
        inspect.inspect([name], as_json=len(data) % 2 == 1)


@dataclass
class BundleReader:
    """Reads bundles, describes them as `inspect` does, and builds what they hold.

    What has been built is not built again: PromptNet's description and the shapes of the tensors decide.

    Args:
        changeable: shapes of the UNet's parameters.
    """

    changeable: dict[str, tuple[int, ...]]
    built: set[str] = field(default_factory=set)

    def __call__(self, data: bytes) -> None:
        from profusion_cli.jobs.configuration import remembered_config

        bundle = read_bundle(data, "x.pfz")
        with patch("profusion_cli.bundle.read_bundle", lambda data, name: bundle):  # once is enough
            inspect_bytes(data, "x.pfz")
        self._build(bundle)
        if bundle.kind == "subject":
            remembered_config(bundle)

    def _build(self, bundle: Bundle) -> None:
        import torch

        from profusion_cli.augmentation import read_images
        from profusion_cli.bundle.kinds import WORD_FILE
        from profusion_cli.runtime.changes import read_changes
        from profusion_cli.runtime.weights import promptnet_from_bundle, read_views, read_word

        if bundle.kind == "images":
            read_images(bundle)
            return
        parameters = {name: torch.empty(shape, device="meta") for name, shape in self.changeable.items()}
        read_changes(bundle, "unet", parameters)
        if WORD_FILE in bundle.files:
            read_word(bundle, 8)
            return
        files = {name: listed["tensors"] for name, listed in bundle.manifest["files"].items()}
        key = json.dumps([bundle.kind, bundle.manifest["promptnet"], files], sort_keys=True)
        if key in self.built:
            return
        promptnet = promptnet_from_bundle(bundle)
        if bundle.kind == "subject":
            read_views(bundle, promptnet)
        self.built.add(key)


def read_picture(data: bytes) -> None:
    """Describes a picture as `inspect` does, which decodes it as a photo or reads its record; then as a mask."""
    from profusion_cli.images import decode_photo

    inspect_bytes(data, "x.png")
    decode_photo(data, "x.png", as_mask=True)


# --- cases by their number --------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """What is fuzzed: the seeds, how they are mutated, and who reads the mutants."""

    seeds: list[Any]
    mutate: Callable[[Any, random.Random], bytes]
    read: Callable[[bytes], None]

    def case(self, number: int) -> bytes:
        """The bytes of case `number`."""
        rng = random.Random(number)
        return self.mutate(self.seeds[number % len(self.seeds)], rng)

    def warm_up(self) -> None:
        """Load whatever is loaded late, by reading every seed whole."""
        for seed in {id(seed): seed for seed in self.seeds}.values():
            data = seed.data if isinstance(seed, Seed) else seed
            self.read(data)
            for _ in range(2):
                with contextlib.suppress(ProfusionError):
                    self.read(data[: len(data) // 2])


def bundles(real: Bundle) -> Target:
    """Bundles, most of them as small as can be; one in a thousand is a mutant of `real` itself."""
    subject, promptnet, word, images = small_bundles(real)
    few = [subject, word, images, word, promptnet, images, word, images]
    seeds = [*(few[number % len(few)] for number in range(999)), take_apart(real)]
    tuned = real.manifest["files"].get("unet.safetensors", {"tensors": {}})["tensors"]
    changeable = CHANGES | {name: tuple(described["shape"]) for name, described in tuned.items()}
    return Target(seeds, mutate_bundle, BundleReader(changeable))


def photos() -> Target:
    """Pictures of every format."""
    return Target(pictures(), mutate_picture, read_picture)


def real_subject() -> Bundle:
    """A subject fine-tuned for a step on the preset `tiny-random`."""
    from tests.conftest import draw_photo, ok

    with tempfile.TemporaryDirectory(prefix="profusion-fuzz-") as folder:
        photo, target = draw_photo(Path(folder) / "face.png"), Path(folder) / "me.pfz"
        ok("finetune", photo, "--preset", "tiny-random", "--steps", 1, "--no-augment", "-o", target)
        return read_bundle(target.read_bytes(), "me.pfz")


def make_target(name: str) -> Target:
    """`bundles` or `pictures`."""
    return bundles(real_subject()) if name == "bundles" else photos()


# --- many cases in several processes ----------------------------------------------------------


def _work(target: Target, current: Any, channel: Connection) -> None:
    """Judges ranges of cases until the channel closes; `current` tells the number in case this process dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.dont_write_bytecode = True
    target.warm_up()
    gc.freeze()  # the libraries' own objects need not be looked at each time
    with contextlib.suppress(EOFError):
        while True:
            outcomes: Counter[str] = Counter()
            failures: list[tuple[int, str]] = []
            for number in channel.recv():
                current.value = number
                signal.setitimer(signal.ITIMER_PROF, HANGS)
                try:
                    outcomes[judge(target.read, target.case(number))] += 1
                except Failure:
                    outcomes["FAILED"] += 1
                    failures.append((number, traceback.format_exc()))
            channel.send((outcomes, failures))


class Worker:
    """A process that judges, and the range of cases that it has been given."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.start()

    def start(self) -> None:
        """In another process, which need not make the seeds again."""
        context = multiprocessing.get_context("fork")
        self.current = context.Value("q", -1, lock=False)
        self.channel, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(self.target, self.current, theirs), daemon=True)
        self.process.start()
        theirs.close()

    def give(self, cases: range) -> None:
        self.cases, self.current.value = cases, -1
        self.channel.send(cases)

    def take(self) -> tuple[Counter[str], list[tuple[int, str]], range]:
        """Outcomes, failures, and the cases that are left because the process died of one."""
        try:
            return *self.channel.recv(), range(0)
        except (EOFError, ConnectionError):
            self.process.join()
            number = self.current.value
            if number < 0:
                raise RuntimeError("a process ended before its first case") from None
            died = f"the process died with exit code {self.process.exitcode}\n"
            self.start()
            return Counter(FAILED=1), [(number, died)], range(number + 1, self.cases.stop)


@dataclass
class State:
    """How far the cases of a target have come; a file remembers it."""

    path: Path
    next: int = 0
    seconds: float = 0.0
    outcomes: Counter[str] = field(default_factory=Counter)

    @classmethod
    def load(cls, path: Path) -> State:
        known = json.loads(path.read_text()) if path.is_file() else {}
        return cls(path, known.get("next", 0), known.get("seconds", 0.0), Counter(known.get("outcomes", {})))

    def save(self) -> None:
        table = {"next": self.next, "seconds": round(self.seconds, 1), "outcomes": dict(sorted(self.outcomes.items()))}
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(table, indent=1) + "\n")
        part.replace(self.path)


def run(name: str, folder: Path, processes: int, until: Callable[[int], bool], report: Callable[[str], None]) -> State:
    """Judge cases from where the last run ended.

    Args:
        name: `bundles` or `pictures`.
        folder: for the state, and the bytes of failures.
        processes: how many at once.
        until: told the number of cases of this run that have been given out, whether it is enough.
        report: takes lines of text.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state, target = State.load(folder / f"{name}.json"), make_target(name)
    workers = [Worker(target) for _ in range(processes)]
    first, began, before, told = state.next, time.monotonic(), state.seconds, 0.0
    given = _ranges(first, until)
    busy = {}
    for worker in workers:
        _give(worker, given, busy)
    while busy:
        for channel in wait(list(busy)):
            worker = busy.pop(channel)
            outcomes, failures, left = worker.take()
            done = worker.cases.stop - worker.cases.start - len(left)
            if left:  # those before the one that it died of are judged, though their outcomes went with it
                outcomes["unknown"] = done - 1
            state.outcomes.update(outcomes)
            for number, text in failures:
                kept = folder / f"{name}-{number}{SUFFIXES[name]}"
                kept.write_bytes(target.case(number))
                kept.with_suffix(".txt").write_text(text)
                report(f"FAILED: {kept}: {text.strip().splitlines()[-1]}")
            state.next = max(state.next, worker.cases.stop)
            state.seconds = before + time.monotonic() - began
            if left:
                worker.give(left)
                busy[worker.channel] = worker
            else:
                _give(worker, given, busy)
        state.save()
        if time.monotonic() - told > 60:
            told = time.monotonic()
            report(f"{name}: {sum(state.outcomes.values()):,} cases, {dict(state.outcomes)}")
    return state


def _ranges(first: int, until: Callable[[int], bool]) -> Iterator[range]:
    start = first
    while not until(start - first):
        yield range(start, start + CHUNK)
        start += CHUNK


def _give(worker: Worker, given: Iterator[range], busy: dict[Any, Worker]) -> None:
    cases = next(given, None)
    if cases is not None:
        worker.give(cases)
        busy[worker.channel] = worker


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--hours", type=float, help="how long, for all targets together")
    parser.add_argument("--count", type=int, help="how many more cases of each target")
    parser.add_argument("--only", choices=sorted(SUFFIXES), help="one target alone")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="at once; default: as many as CPUs")
    parser.add_argument(
        "--folder", type=Path, default=Path("build/fuzz"), help="for what a run remembers, and failures"
    )
    given = parser.parse_args()
    if (given.hours is None) == (given.count is None):
        parser.error("give --hours or --count")
    names = [given.only] if given.only else sorted(SUFFIXES)
    failed = 0
    for name in names:
        end = time.monotonic() + (given.hours or 0) * 3600 / len(names)
        enough = (lambda done: done >= given.count) if given.count else (lambda _done, end=end: time.monotonic() > end)
        state = run(name, given.folder, given.processes, enough, lambda line: print(line, flush=True))
        failed += state.outcomes["FAILED"]
        rate = sum(state.outcomes.values()) / max(state.seconds, 1e-9)
        print(f"{name}: {sum(state.outcomes.values()):,} cases in all, {rate:.0f} a second")
        for outcome, count in state.outcomes.most_common():
            print(f"  {outcome}: {count:,}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
