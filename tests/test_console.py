"""What a command says, and what it leaves alone."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys

import huggingface_hub
import pytest
import yaml
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from huggingface_hub.utils import logging as hub_logging
from rich.console import Console

from profusion_cli.bundle import read_bundle
from profusion_cli.console import Output, escaped
from profusion_cli.display import Bar, memory_in_use
from profusion_cli.mappings import merge
from profusion_cli.pace import Pace, Smoothed, clock
from tests.conftest import ok, run, write_bundle

EVIL = "\x1b]0;a\x07[b]\x9b31m\u202ec\x7f\udcff\r"
"""A title, colours and a change of direction, for a terminal that obeys; and half a character."""
HARMLESS = r"\u001b]0;a\u0007[b]\u009b31m\u202ec\u007f\udcff\u000d"

IMPORTS = """
import os
before = dict(os.environ)
import profusion_cli.app
from profusion_cli.console import Output
Output(), Output(quiet=True), Output(as_json=True)
import profusion_cli.runtime.hub
assert dict(os.environ) == before, {*os.environ.items()} ^ {*before.items()}
"""


def test_no_environment_variable_is_changed():
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    done = subprocess.run([sys.executable, "-c", IMPORTS], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("terminal", "quiet", "bars"), [(True, (), True), (True, ("--quiet",), False), (False, (), False)]
)
@pytest.mark.parametrize("disabled", [False, True])
def test_downloads_show_their_bars_on_a_terminal_that_is_not_quiet(
    tmp_path, monkeypatch, terminal, quiet, bars, disabled
):
    """Also where they were off before: transformers switches the Hub's off with its own."""
    seen = set()

    def download(*arguments: object, **options: object) -> str:
        seen.add((not are_progress_bars_disabled(), hub_logging.get_verbosity()))
        raise LocalEntryNotFoundError("not here")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", download)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", None)
    monkeypatch.delenv("HF_HUB_VERBOSITY", raising=False)
    monkeypatch.setenv("TTY_COMPATIBLE", "1" if terminal else "0")
    (disable_progress_bars if disabled else enable_progress_bars)()
    before = are_progress_bars_disabled(), hub_logging.get_verbosity()
    result = run("import", "some/promptnet", "-o", tmp_path / "x.pfz", *quiet)
    assert result.exit_code == 8 and "some/promptnet" in result.stderr
    assert seen == {(bars, hub_logging.ERROR)}
    assert (are_progress_bars_disabled(), hub_logging.get_verbosity()) == before
    enable_progress_bars()


def test_time_left_is_known_from_the_second_report_on_and_runs_down():
    pace = Pace(10)
    assert pace.left(0.0) is None
    pace.report(1, now=30.0)
    assert pace.left(31.0) is None, "30 seconds of loading say nothing of the steps"
    pace.report(3, now=34.0)
    assert pace.left(34.0) == pytest.approx(7 * 2.0)
    assert pace.left(35.5) == pytest.approx(7 * 2.0 - 1.5), "also where the next report is long in coming"
    assert pace.left(100.0) == 0.0
    pace.report(10, now=50.0)
    assert pace.left(50.0) == 0.0


def test_what_was_done_in_an_earlier_run_does_not_count_for_the_speed():
    pace = Pace(1000)
    pace.report(900, now=0.0)
    pace.report(910, now=10.0)
    assert pace.left(10.0) == pytest.approx(90.0)


def test_smoothed_values_start_at_the_first_and_move_less():
    smoothed = Smoothed()
    assert smoothed(5.0) == pytest.approx(5.0)
    assert all(smoothed(5.0) == pytest.approx(5.0) for _ in range(5))
    assert 5.0 < smoothed(105.0) < 30.0
    values = [smoothed(1.0) for _ in range(100)]
    assert values == sorted(values, reverse=True) and values[-1] == pytest.approx(1.0, abs=0.01)


def test_durations_are_read_as_on_a_clock():
    assert [clock(seconds) for seconds in (0.2, 59.6, 61, 3725)] == ["0:00", "1:00", "1:01", "1:02:05"]


def test_a_bar_says_what_each_number_is():
    bar = Bar("Fine-tuning", 50)
    bar.report(1, "loss 0.5")
    bar.started -= 10
    bar.pace.report(0, bar.started)
    assert re.fullmatch(r"1/50, 0:10 so far, \d+\.\d GB, loss 0\.5", bar.state())
    bar = Bar("Making", 4.0, counted=False)
    bar.report(0)
    bar.report(1)
    assert bar.state().startswith("25%, 0:00 so far, 0:00 left, ")
    assert Bar("Nothing", 0).state().startswith("0/0, ") and Bar("Nothing", 0, counted=False).state().startswith("100%")


def test_a_narrow_terminal_crops_the_remark_alone(capsys):
    from rich.console import Console

    bar = Bar("Making", 50)
    bar.report(1, "a remark that goes on and on " * 5)
    Console(width=60).print(bar)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("Making ") and "1/50, 0:00 so far, " in line and "GB, a rem" in line


def test_memory_is_the_gpus_where_torch_works_on_one(monkeypatch):
    import torch

    assert memory_in_use().endswith(" GB")
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 3_210_000_000)
    assert memory_in_use() == "3.2 GB (GPU)"


def test_results_are_standard_outputs_alone_while_a_terminal_shows_progress(capsys, monkeypatch):
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("TERM", "xterm")
    output = Output()
    with output.working("Thinking"), output.progress("Counting", 2) as step:
        step(1, "loss 1")
        output.line("result.png")
        output.note("A note.")
        with output.working("Loading the rest"):
            step(2)
    captured = capsys.readouterr()
    assert captured.out == "result.png\n"
    for told in ("Thinking", "Counting", "A note."):
        assert told in captured.err


def test_an_error_within_lines_leaves_none_behind(capsys, monkeypatch):
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("TERM", "xterm")
    output = Output()
    for _ in range(2):
        with pytest.raises(ValueError), output.working("Thinking"), output.progress("Counting", 2):
            raise ValueError
        assert output._lines == [] and output._live is None


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("quiet", [(), ("-q",)])
def test_the_time_and_the_next_command_are_told_on_a_terminal(photo, tmp_path, monkeypatch, terminal, quiet):
    monkeypatch.setenv("TTY_COMPATIBLE", "1" if terminal else "0")
    target = tmp_path / "my face.pfz"
    result = ok("finetune", photo, "--preset", "tiny-random", "--steps", 0, "-o", target, *quiet)
    assert result.stdout == f"{target}\n"
    shown = terminal and not quiet
    assert ("Time taken: 0:" in result.stderr) == shown
    assert (f"Next: profusion sample '{target}' \"S* in anime style\"\n" in result.stderr) == shown


def test_what_is_loaded_is_told(base_folder, monkeypatch):
    from profusion_cli.config import BaseConfig
    from profusion_cli.runtime.backbone import BaseModel
    from profusion_cli.runtime.device import resolve_placement

    told = []
    working = Output.working
    monkeypatch.setattr(Output, "working", lambda self, title: (told.append(title), working(self, title))[1])
    base = BaseModel(BaseConfig(str(base_folder)), resolve_placement("cpu", "float32", False), Output())
    assert told == []
    _ = base.unet, base.unet, base.vae
    base.fingerprints("vae")
    assert told == ["Loading the UNet", "Loading the VAE", "Checking the weights of the VAE"]


# --- control characters ---------------------------------------------------------------------------------------


def test_what_a_terminal_obeys_is_escaped_and_nothing_else():
    assert escaped(EVIL) == HARMLESS
    plain = "a\tb\n\u00e9 \u8138 \U0001f600\u200d\u05d0 \\ [bold]"
    assert escaped(plain) == plain
    assert json.loads(f'"{HARMLESS}"') == yaml.safe_load(f'"{HARMLESS}"') == EVIL


def test_messages_and_progress_are_escaped():
    output = Output()
    output.stderr = Console(file=io.StringIO(), force_terminal=True, width=500, soft_wrap=True, color_system=None)
    output.note(EVIL)
    output.warn(EVIL)
    with output.progress(EVIL, 2) as step:
        step(1, EVIL)
        with output.working(EVIL):
            output.note("")  # draws the lines
    shown = output.stderr.file.getvalue()
    assert shown.count(HARMLESS) >= 5
    for character in ("\x1b]", "\x07", "\x9b", "\u202e", "\x7f"):  # the bar itself moves the cursor
        assert character not in shown


@pytest.mark.parametrize("arguments", [["inspect", f"{EVIL}.pfz"], ["inspect", f"--{EVIL}"], [EVIL]])
def test_names_in_errors_are_escaped(arguments):
    result = run(*arguments)
    assert result.exit_code in (2, 5)
    assert not set("\x1b\x07\x9b\u202e\x7f") & set(result.stderr)


def test_an_error_of_memory_without_a_word_has_its_code(monkeypatch):
    def exhaust(source: str) -> bytes:
        raise MemoryError

    monkeypatch.setattr("profusion_cli.commands.inspect.read_source", exhaust)
    result = run("inspect", "x.png")
    assert result.exit_code == 6 and "MemoryError" in result.stderr and "more memory" in result.stderr


def test_a_manifest_is_shown_escaped_and_read_as_it_is(subject, tmp_path):
    bundle = read_bundle(subject.read_bytes(), "me.pfz")
    name = EVIL.replace("\udcff", "")
    inputs = [merge(bundle.manifest["inputs"][0], {"name": name})]
    evil = tmp_path / "evil.pfz"
    write_bundle(evil, {**bundle.manifest, "inputs": inputs}, {file: bundle.read(file) for file in bundle.files})
    listed, described = ok("inspect", evil, "--json").stdout, ok("inspect", evil, "--full").stdout
    for text in (listed, described, ok("inspect", evil).stdout):
        assert escaped(text) == text
    for entry in (json.loads(listed)["files"][0], yaml.safe_load(described)):
        assert entry["manifest"]["inputs"] == inputs


def test_a_path_is_exact_in_a_pipe_and_escaped_on_a_terminal(monkeypatch):
    for terminal, shown in ((False, EVIL), (True, HARMLESS)):
        stream = io.TextIOWrapper(io.BytesIO(), "utf-8", newline="\n")
        monkeypatch.setattr(stream, "isatty", lambda terminal=terminal: terminal, raising=False)
        monkeypatch.setattr(sys, "stdout", stream)
        Output().line(EVIL)
        assert stream.buffer.getvalue() == os.fsencode(f"{shown}\n")


ASCII = """
from profusion_cli.console import Output, print_yaml
Output().line("\u00e9.png")
Output(as_json=True).record({"path": "\u00e9\U0001f600.png"})
print_yaml({"path": "\u00e9\U0001f600.png"})
"""


def test_a_terminal_of_ascii():
    """A pipe gets the name that the file has, and JSON and YAML stay what they are."""
    environment = {**os.environ, "LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "1"}
    done = subprocess.run([sys.executable, "-c", ASCII], env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    name, listed, described = done.stdout.splitlines()
    assert name == "\u00e9.png".encode()
    assert listed.isascii() and described.isascii()
    assert json.loads(listed) == yaml.safe_load(described) == {"path": "\u00e9\U0001f600.png"}
    assert not done.stderr
