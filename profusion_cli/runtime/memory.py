"""How much memory was held at once, at most, and how much is free."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

import torch

from profusion_cli.main_memory import main_memory


def forget_peak(device: torch.device) -> None:
    """Begin anew with `peak`."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif device.type == "cpu":
        with suppress(OSError):  # only Linux has it, and `peak` asks again
            Path("/proc/self/clear_refs").write_text("5")


def peak(device: torch.device) -> int | None:
    """Most bytes held since `forget_peak`, or since the process began: of the device's memory, or on a CPU of the whole
    process; None: not known here."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        found = None
    return int(found[1]) * 1024 if found and device.type == "cpu" else None


def free(device: torch.device) -> int:
    """Bytes that the device has free: of a GPU's memory, or of main memory."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return main_memory()["free"]
