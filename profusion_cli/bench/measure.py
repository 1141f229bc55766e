"""Seconds, peaks of memory, floating point operations, and how fast a device multiplies matrices."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from profusion_cli.runtime.memory import forget_peak, peak

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
    forget_peak(device)
    started = time.perf_counter()
    run()
    wait_for(device)
    return Measured(time.perf_counter() - started, peak(device))


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
