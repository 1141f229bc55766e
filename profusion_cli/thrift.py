"""How memory is saved at the price of time, as keys of the configuration."""

from __future__ import annotations

from typing import Literal

from profusion_cli.settings import CONFIGURATION, setting

AUTO = "auto"
Auto = Literal["auto"]
Parts = int | Auto
Checkpointing = bool | Auto
OptimizerName = Literal["adamw", "adamw8bit"]
OffloadName = Literal["auto", "none", "group"]

PARTS = setting(
    "Split each step into so many parts: less memory, same result. auto: as few as fit.",
    1,
    1,
    4096,
    flag="--gradient-accumulation",
)
CHECKPOINTING = setting(
    "Compute activations twice: less memory, slower, same result. auto: only where it does not fit otherwise.", False
)
OPTIMIZER = setting(
    "adamw, or adamw8bit: its state in 8 bits, a quarter of the memory (by bitsandbytes, the extra `eight-bit`).",
    "adamw",
    flag="--optimizer",
)
OFFLOAD = setting(
    "What drawing keeps in main memory: nothing (none), or UNet and PromptNet, which come to the device layer by layer "
    "(group): slower, same pictures. auto: group on a GPU where they do not fit.",
    AUTO,
    flag="--offload",
    panel=CONFIGURATION,
)
