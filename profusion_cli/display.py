"""Lines at the bottom of a terminal while something goes on; rich draws them again and again."""

from __future__ import annotations

import sys
import time

import psutil
from rich.cells import cell_len
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Column, Table
from rich.text import Text

from profusion_cli.pace import Pace, clock

BAR_WIDTH = 12
GB = 1e9


def memory_in_use() -> str:
    """What this process holds: on the GPU where torch works on one by CUDA, else in RAM."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return f"{torch.cuda.memory_reserved() / GB:.1f} GB (GPU)"
    return f"{psutil.Process().memory_info().rss / GB:.1f} GB"


class Waiting:
    """Something without steps, such as loading.

    Args:
        title: what it is.
    """

    def __init__(self, title: str) -> None:
        self.title, self.started = title, time.monotonic()
        self.spinner = Spinner("line")  # of characters that every terminal has

    def __rich__(self) -> Spinner:
        self.spinner.update(text=Text(f"{self.title}, {clock(time.monotonic() - self.started)} so far"))
        return self.spinner


class Bar:
    """A piece of work, step by step.

    Args:
        title: what it is.
        total: its steps.
        counted: they are shown as a count; else as per cent.
    """

    def __init__(self, title: str, total: float, counted: bool = True) -> None:
        self.title, self.total, self.counted = title, total, counted
        self.started, self.pace = time.monotonic(), Pace(total)
        self.done, self.remark = 0.0, ""

    def report(self, done: float, remark: str = "") -> None:
        """So many steps are done."""
        self.done, self.remark = done, remark
        self.pace.report(done, time.monotonic())

    def state(self) -> str:
        """What stands behind the bar."""
        now = time.monotonic()
        share = self.done / self.total if self.total else 1.0
        count = f"{self.done:.0f}/{self.total:.0f}" if self.counted else f"{share:.0%}"
        left = self.pace.left(now)
        told = [count, f"{clock(now - self.started)} so far", "" if left is None else f"{clock(left)} left"]
        return ", ".join(filter(None, [*told, memory_in_use(), self.remark]))

    def __rich__(self) -> Table:
        title, widths = Text(self.title), (cell_len(self.title) + 1, BAR_WIDTH + 1, None)
        columns = (Column(no_wrap=True, overflow="crop", min_width=width) for width in widths)
        line = Table.grid(*columns, padding=(0, 1))  # where the terminal is narrow, the remark is cropped
        bar = ProgressBar(total=self.total or 1.0, completed=self.done if self.total else 1.0, width=BAR_WIDTH)
        line.add_row(title, bar, Text(self.state()))
        return line
