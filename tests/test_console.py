"""What a command says, and what it leaves alone."""

from __future__ import annotations

import os
import subprocess
import sys

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from huggingface_hub.utils import logging as hub_logging

from tests.conftest import run

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
