"""What is drawn of a subject while it is tuned, so that the best moment can be seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class Previews:
    """A picture of each prompt, again and again from the same noise.

    Args:
        prompts: texts with S*.
        every: optimiser steps from one time to the next.
        show: given the number of steps done, and the pictures, RGB, in the order of the prompts.
    """

    prompts: Sequence[str]
    every: int
    show: Callable[[int, Sequence[Image.Image]], None]

    def due(self, done: int, steps: int) -> bool:
        """Whether pictures are drawn after so many of the steps: before the first and after the last one too."""
        return done % self.every == 0 or done == steps
