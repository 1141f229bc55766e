"""What pictures are written as: tables from the ending of a name to what writes it."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from profusion_cli.errors import UsageError
from profusion_cli.files import STDIO
from profusion_cli.images.marks import mark_gif, packet_of
from profusion_cli.images.records import encode_comment, encode_exif, encode_png


def _animation(frames: Sequence[Image.Image], fps: float, **options: Any) -> bytes:
    there_and_back = [*frames, *reversed(frames[1:-1])]
    buffer = io.BytesIO()
    there_and_back[0].save(
        buffer, save_all=True, append_images=there_and_back[1:], duration=round(1000 / fps), loop=0, **options
    )
    return buffer.getvalue()


def _webp(frames: Sequence[Image.Image], fps: float, parameters: str, record: dict[str, Any]) -> bytes:
    marked = {} if (packet := packet_of(record)) is None else {"xmp": packet.encode()}
    return _animation(frames, fps, format="WEBP", lossless=True, exif=encode_exif(parameters, record), **marked)


def _gif(frames: Sequence[Image.Image], fps: float, parameters: str, record: dict[str, Any]) -> bytes:
    # Pillow's own choice of 256 colours loses those of small areas, such as the white of eyes
    few = [frame.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=4) for frame in frames]
    data = _animation(few, fps, format="GIF", disposal=1, comment=encode_comment(parameters, record))
    return mark_gif(data, record)


PNG = ".png"
"""What is written where no name says otherwise."""
PICTURES: Mapping[str, Callable[[Image.Image, str, dict[str, Any]], bytes]] = {PNG: encode_png}
"""Writers of one picture with its parameters and its record."""
ANIMATIONS: Mapping[str, Callable[[Sequence[Image.Image], float, str, dict[str, Any]], bytes]] = {
    ".webp": _webp,
    ".gif": _gif,
}
"""Writers of an endless animation there and back again, of RGB frames of one size, at so many a second; with its
parameters and its record."""


def is_animation(target: str) -> bool:
    """Whether a file of this name is an animation."""
    return Path(target).suffix.lower() in ANIMATIONS


def encode_picture(target: str, image: Image.Image, parameters: str, record: dict[str, Any]) -> bytes:
    """A picture as its file's name asks for it; PNG on standard output.

    Args:
        target: a name that ends in a key of `PICTURES`, or `-`.
        image, parameters, record: see `encode_png`.

    Raises:
        UsageError: another ending.
    """
    suffix = PNG if target == STDIO else Path(target).suffix.lower()
    if suffix not in PICTURES:
        raise UsageError(f"'{target}' has no ending of a picture that is written here.", f"Use {', '.join(PICTURES)}.")
    return PICTURES[suffix](image, parameters, record)


def encode_animation(
    target: str, frames: Sequence[Image.Image], fps: float, parameters: str, record: dict[str, Any]
) -> bytes:
    """An animation as its file's name asks for it.

    Args:
        target: a name that ends in a key of `ANIMATIONS`.
        frames: RGB, all of one size.
        fps: frames per second.
        parameters, record: see `encode_png`.
    """
    return ANIMATIONS[Path(target).suffix.lower()](frames, fps, parameters, record)
