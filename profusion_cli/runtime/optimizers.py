"""AdamW in 8 bits, and the memory that the state of optimisers takes."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from profusion_cli.errors import UnavailableError
from profusion_cli.thrift import OptimizerName

BLOCK = 256
"""Numbers that share one scale in the 8-bit state (arXiv 2110.02861; bitsandbytes' own)."""
SMALLEST = 4096
"""Numbers from which on a parameter's state is in 8 bits; bitsandbytes' own."""


def eight_bit_adamw(
    parameters: Iterable[nn.Parameter], learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    """AdamW whose state is in 8 bits (arXiv 2110.02861), by bitsandbytes.

    It goes from parameter to parameter: a step that is broken off has changed some of them.

    Raises:
        UnavailableError: bitsandbytes is not installed.
    """
    check_optimizer("adamw8bit")
    from bitsandbytes.optim import AdamW8bit

    return AdamW8bit(parameters, lr=learning_rate, weight_decay=weight_decay)


def check_optimizer(name: OptimizerName) -> None:
    """The library of an optimiser is there, before hours of work end without it.

    Raises:
        UnavailableError: it is not.
    """
    if name == "adamw":
        return
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise UnavailableError(
            f"The optimiser {name} needs bitsandbytes, which cannot be imported: {error}.",
            "Install it with `pip install 'profusion[eight-bit]'`, or use --optimizer adamw.",
        ) from error


def state_bytes(parameters: Iterable[nn.Parameter], name: OptimizerName) -> int:
    """Of the two moments of every trained number: 8, or in 8 bits 2 and the blocks' scales.

    Args:
        parameters: the trained ones; they may be on the meta device.
        name: of the optimiser.
    """
    total = 0
    for parameter in parameters:
        count = parameter.numel()
        eight_bit = name == "adamw8bit" and count >= SMALLEST
        total += 2 * count + 8 * -(-count // BLOCK) if eight_bit else 8 * count
    return total
