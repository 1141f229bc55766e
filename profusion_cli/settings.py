"""How a key of the configuration is declared."""

from __future__ import annotations

from dataclasses import MISSING, field
from typing import Any

CONFIGURATION = "Configuration"
AUGMENTATION = "Augmentation"
FUSION = "Fusion Sampling"
OUTPUT = "Output"


def setting(
    help: str,
    default: Any = MISSING,
    low: float | None = None,
    high: float | None = None,
    flag: str | None = None,
    panel: str | None = None,
    metavar: str | None = None,
) -> Any:
    """A key of the configuration.

    Args:
        help: one or two sentences.
        default: its value where nobody gives one; none: it must be given.
        low, high: the range of a number, both ends included; of every number in a tuple.
        flag: the option that sets it, in the commands that take it; `--no-...` sets it to false. None: `--set` alone.
        panel: of the options in a command's help.
        metavar: what the help calls the option's value.
    """
    return field(
        default=default,
        metadata={"help": help, "low": low, "high": high, "flag": flag, "panel": panel, "metavar": metavar},
    )
