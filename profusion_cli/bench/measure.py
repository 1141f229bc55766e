"""Seconds, peaks of memory, floating point operations, and how fast a device multiplies matrices."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

CPU_SIDE, GPU_SIDE = 2048, 8192
"""Rows of the matrices that are multiplied."""
LONG_ENOUGH = 0.5
"""Seconds."""


@dataclass(frozen=True)
class Measured:
    """One run.

    Args:
        seconds: until the device was done.
        peak: most bytes held meanwhile, of the device's memory, or on a CPU of the whole process; None: not known here.
    """

    seconds: float
    peak: int | None


def wait_for(device: torch.device) -> None:
    """Until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def measured(run: Callable[[], object], device: torch.device) -> Measured:
    """Run something once."""
    wait_for(device)
    _forget_peak(device)
    started = time.perf_counter()
    run()
    wait_for(device)
    return Measured(time.perf_counter() - started, _peak(device))


def _forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif device.type == "cpu":
        with suppress(OSError):  # only Linux has it, and `_peak` asks again
            Path("/proc/self/clear_refs").write_text("5")


def _peak(device: torch.device) -> int | None:
    """Since `_forget_peak`."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        found = None
    return int(found[1]) * 1024 if found and device.type == "cpu" else None


def operations(run: Callable[[], object]) -> int:
    """Floating point operations of matrix products, convolutions and attention; a multiplication is one, too."""
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):  # fused attention is not counted on CPUs
        run()
    return counter.get_total_flops()


def matrix_speed(device: torch.device, dtype: torch.dtype) -> float:
    """Floating point operations per second that the device reaches in the product of two large square matrices."""
    side = CPU_SIDE if device.type == "cpu" else GPU_SIDE
    one, other = (torch.randn(side, side, dtype=dtype, device=device) for _ in range(2))
    best, spent = 0.0, 0.0
    torch.mm(one, other)
    while spent < LONG_ENOUGH:
        seconds = measured(lambda: torch.mm(one, other), device).seconds
        best, spent = max(best, 2 * side**3 / seconds), spent + seconds
    return best
