"""Damaged bundles and pictures, a few seconds of them; `python -m tests.fuzz` runs more."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from profusion_cli.bundle import read_bundle
from profusion_cli.errors import BundleError, InputError, ProfusionError

pytest.importorskip("resource")  # which Windows lacks, and the driver needs

from tests import fuzz, mutations

NUMBERED = 200
FEW = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
)


@pytest.fixture(scope="module")
def bundles(subject: Path) -> fuzz.Target:
    target = fuzz.bundles(read_bundle(subject.read_bytes(), "me.pfz"))
    target.warm_up()
    return target


@pytest.fixture(scope="module")
def pictures() -> fuzz.Target:
    target = fuzz.photos()
    target.warm_up()
    return target


@pytest.mark.parametrize(("name", "error"), [("bundles", BundleError), ("pictures", InputError)])
def test_numbered_cases(request, name, error):
    target = request.getfixturevalue(name)
    outcomes = {fuzz.judge(target.read, target.case(number)) for number in range(NUMBERED)}
    assert {"accepted", error.__name__} <= outcomes
    assert target.case(NUMBERED) == target.case(NUMBERED)


@FEW
@given(rng=st.randoms(use_true_random=False), number=st.integers(0, 7))
def test_bundles_that_hypothesis_draws(bundles, rng, number):
    fuzz.judge(bundles.read, bundles.mutate(bundles.seeds[number], rng))


@FEW
@given(rng=st.randoms(use_true_random=False), data=st.data())
def test_pictures_that_hypothesis_draws(pictures, rng, data):
    fuzz.judge(pictures.read, pictures.mutate(data.draw(st.sampled_from(pictures.seeds)), rng))


def test_mutations_of_bytes_are_refused_or_mean_the_same(bundles):
    """Where no checksum was made to fit."""
    seed = bundles.seeds[0]
    original = read_bundle(seed.data, "x.pfz")
    accepted = 0
    directory = [len(seed.data) - 1 - place for place in range(400)]
    flipped = [seed.data[:at] + bytes([seed.data[at] ^ 0xFF]) + seed.data[at + 1 :] for at in directory]
    for data in flipped + [mutations.mutate_bytes(seed.data, random.Random(number)) for number in range(600)]:
        try:
            bundle = read_bundle(data, "x.pfz")
        except BundleError as error:
            assert error.message.startswith("'x.pfz' ")
            continue
        accepted += 1
        assert len(data) == len(seed.data)
        assert (bundle.manifest, bundle.preview) == (original.manifest, original.preview)
        assert all(bundle.read(file) == original.read(file) for file in original.files)
    assert accepted < 150


# --- the driver -------------------------------------------------------------------------------


class Strange(ProfusionError):
    """An error with a code that is none of ours."""


def eats_memory(data):
    """300 MB above the most that this process has held so far."""
    taken = bytearray((300 << 20) + fuzz.highest_memory() - psutil.Process().memory_info().rss)
    taken[:: 1 << 12] = b"x" * len(taken[:: 1 << 12])
    raise InputError("a", "b")


def eats_time(data):
    while fuzz.time.process_time() < float(data):
        pass
    raise InputError("a", "b")


@pytest.mark.parametrize(
    ("read", "words"),
    [
        (lambda data: 1 / 0, "ZeroDivisionError"),
        (lambda data: int("a" * 5), "ValueError"),
        (lambda data: (_ for _ in ()).throw(Strange("a", "b")), "exit code 1"),
        (lambda data: (_ for _ in ()).throw(InputError("a", "")), "hint ''"),
        (lambda data: Path(os.devnull).write_bytes(b"a"), "did what no reading does"),
        (lambda data: subprocess.run(["true"]), "did what no reading does"),
        (eats_time, r"refused after 1\.\d s"),
        (eats_memory, r"and \d+ MB"),
    ],
)
def test_what_is_a_failure(read, words):
    data = str(fuzz.time.process_time() + 1.1).encode()
    with pytest.raises(fuzz.Failure, match=words):
        fuzz.judge(read, data)


def test_the_driver_goes_on_and_outlives_a_case_that_kills(tmp_path, monkeypatch, capfd):
    def read(data):
        if data == b"":  # the seed
            return
        if data == b"1003":
            os.kill(os.getpid(), signal.SIGKILL)
        if data == b"7":
            raise KeyError("seven")
        raise InputError("a", "b")

    target = fuzz.Target([b""], lambda seed, rng: b"", read)
    monkeypatch.setattr(fuzz.Target, "case", lambda self, number: str(number).encode())
    monkeypatch.setattr(fuzz, "make_target", lambda name: target)
    told = []
    for count in (500, 1000):
        state = fuzz.run("pictures", tmp_path, 1, lambda done, count=count: done >= count, told.append)
    assert state.next == 1500
    assert state.outcomes == {"InputError": 499 + 500 + 496, "FAILED": 2, "unknown": 3}
    assert json.loads((tmp_path / "pictures.json").read_text())["next"] == 1500
    assert (tmp_path / "pictures-7.image").read_bytes() == b"7"
    assert "KeyError: 'seven'" in (tmp_path / "pictures-7.txt").read_text()
    assert "died with exit code -9" in (tmp_path / "pictures-1003.txt").read_text()
    assert sum(line.startswith("FAILED: ") for line in told) == 2


def test_the_command(tmp_path):
    command = [sys.executable, "-m", "tests.fuzz", "--only", "pictures", "--count", "1", "--processes", "1"]
    child = subprocess.run(
        [*command, "--folder", tmp_path], capture_output=True, text=True, cwd=Path(__file__).parents[1]
    )
    assert child.returncode == 0, child.stderr
    assert "500 cases in all" in child.stdout
