"""A base model for several pieces of work, one after another: what was read once stays in memory."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from profusion_cli.config import PromptNetSource
from profusion_cli.runtime.backbone import BaseModel
from profusion_cli.runtime.device import Placement


class KeptBase(BaseModel):
    """A base model whose parts wait in the CPU's memory when they are let go, and are as they were read when they are
    wanted again: of the UNet, which is tuned, everyone gets a copy.

    Attributes:
        promptnets: those that were read, float32 on the CPU, of which everyone gets a copy too.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._kept: dict[tuple[str, torch.dtype], nn.Module] = {}
        self.promptnets: dict[PromptNetSource, nn.Module] = {}

    def _load(self, name: str, dtype: torch.dtype, cls: Any = None) -> Any:
        key = name, dtype
        if key not in self._kept:
            self._kept[key] = super()._load(name, dtype, cls)
        return copy.deepcopy(self._kept[key]) if name == "unet" else self._kept[key]

    def release(self, *names: str) -> None:
        """Let parts go from the device."""
        wanted = {"text_encoder" if name == "text" else name for name in names}
        for (name, _), part in self._kept.items():
            if name in wanted:
                part.to("cpu")
        super().release(*names)

    def turn_to(self, placement: Placement) -> None:
        """Go on in another precision, or on another device."""
        if placement != self.placement:
            self.release("unet", "vae", "vision", "text")
            self.placement = placement

    def __exit__(self, *arguments: object) -> None:
        self._kept.clear()
        self.promptnets.clear()
        super().__exit__(*arguments)


@contextmanager
def lent(base: KeptBase, placement: Placement) -> Iterator[KeptBase]:
    """The base model for one piece of work, in the precision that it wants."""
    base.turn_to(placement)
    try:
        yield base
    finally:
        base.release("unet", "vae", "vision")
