"""Ctrl-C and SIGTERM in processes of their own, whatever the libraries make of them."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

import profusion_cli

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals are others there")

START = """
import atexit, os, signal, sys
from profusion_cli.interrupts import heed_signals, interrupts_as_such, stop_if_asked
INT, TERM = signal.SIGINT, signal.SIGTERM
def send(number):
    os.kill(os.getpid(), number)
def swallow(number):
    try:
        send(number)
    except BaseException:
        pass
def program():
"""


def ended(body: str, end: str = "heed_signals(program)", start: str = START, **options) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a program."""
    code = start + "".join(f"    {line}\n" for line in body.strip().splitlines()) + end
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(profusion_cli.__file__).parents[1],
        capture_output=True,
        text=True,
        # a suite that a shell started in the background ignores it, and so would its children
        preexec_fn=lambda: signal.signal(signal.SIGINT, options.get("inherited", signal.SIG_DFL)),
    )
    return done.returncode, done.stdout, done.stderr


def test_an_interrupt_ends_the_program():
    assert ended("print(1)\nsend(INT)\nprint(2)") == (130, "1\n", "Interrupted.\n")
    assert ended("print(1)\nsend(TERM)\nprint(2)") == (143, "1\n", "")
    assert ended("try: send(INT)\nfinally: print(1)") == (130, "1\n", "Interrupted.\n")


@pytest.mark.parametrize("error", ["ImportError('half')", "SystemError", "SystemExit(8)", "BaseException"])
def test_an_interrupt_that_a_library_turns_into_something_else(error):
    code, _, told = ended(f"try: send(INT)\nexcept BaseException: raise {error}")
    assert code == 130
    assert told in ("Interrupted.\n", "")
    assert ended(f"try: send(TERM)\nexcept BaseException: raise {error}") == (143, "", "")


def test_an_interrupt_that_a_library_swallows():
    assert ended("swallow(INT)\nprint(1)\nstop_if_asked()\nprint(2)") == (130, "1\n", "Interrupted.\n")
    assert ended("swallow(TERM)\nprint(1)\nstop_if_asked()\nprint(2)") == (143, "1\n", "")
    assert ended("swallow(INT)\nprint(1)") == (130, "1\n", "Interrupted.\n")
    assert ended("swallow(INT)\nwith interrupts_as_such():\n    raise ValueError")[::2] == (130, "Interrupted.\n")
    assert ended("stop_if_asked()\nwith interrupts_as_such():\n    sys.exit(7)")[0] == 7


def test_another_interrupt_ends_at_once():
    assert ended("try: send(INT)\nfinally:\n    send(INT)\n    print(1)") == (130, "", "")
    assert ended("swallow(TERM)\nsend(INT)\nprint(1)") == (130, "", "")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_python_ends(number, code):
    """It does not die of the raw signal."""
    assert ended(f"atexit.register(send, {number:d})\nprint(1, flush=True)") == (code, "1\n", "")
    last = f"class Last:\n    def __del__(self, kill=os.kill, me=os.getpid()): kill(me, {number:d})\n"
    assert ended("print(1)", f"{last}kept = Last()\nheed_signals(program)") == (0, "1\n", "")


def test_an_ignored_interrupt_stays_ignored():
    assert ended("send(INT)\nprint(1)", inherited=signal.SIG_IGN) == (0, "1\n", "")


def test_errors_stay_what_they_are():
    code, _, told = ended("raise ValueError('x')")
    assert code == 1
    assert "ValueError: x" in told
    assert ended("sys.exit(9)")[0] == 9


APP = """
import os, signal, sys
from profusion_cli.__main__ import main
from profusion_cli.commands import inspect
from profusion_cli.errors import InputError
sys.argv = ["profusion", "inspect", "x.pfz"]
def spoilt(*_):
"""


@pytest.mark.parametrize("error", ["InputError('bad', 'so')", "ValueError", "MemoryError"])
def test_an_interrupt_is_no_fault_to_tell_of(error):
    body = f"try: os.kill(os.getpid(), signal.SIGINT)\nexcept BaseException: raise {error}"
    end = "inspect.read_source = spoilt\nmain()"
    assert ended(body, end, APP) == (130, "", "Interrupted.\n")
