"""Animations as files."""

from __future__ import annotations

import io
from collections.abc import Sequence

from PIL import Image


def encode_animation(frames: Sequence[Image.Image], fps: float, suffix: str) -> bytes:
    """An endless animation there and back again.

    Args:
        frames: RGB, all of one size.
        fps: frames per second.
        suffix: `.webp` (lossless) or `.gif`.
    """
    there_and_back = [*frames, *reversed(frames[1:-1])]
    options = {"lossless": True} if suffix == ".webp" else {"disposal": 1}
    buffer = io.BytesIO()
    there_and_back[0].save(
        buffer,
        suffix[1:].upper(),
        save_all=True,
        append_images=there_and_back[1:],
        duration=round(1000 / fps),
        loop=0,
        **options,
    )
    return buffer.getvalue()
