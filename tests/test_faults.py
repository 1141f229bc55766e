"""A handful of what `python -m tests.faults` does to the commands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes can be forked here")
def test_killed_runs_and_writes_that_fail_leave_nothing_half_done(tmp_path):
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults", "--kills", "2", "--writes", "20", "--only", "augment"],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root), "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.search(r"(\d+) kills: \{", done.stdout)[1]) >= 2
    assert "augment, EIO: {" in done.stdout
