"""Photos as they come: decoded from a file, or pictures in memory."""

from __future__ import annotations

import io
import os
from pathlib import Path

from PIL import Image

from profusion_cli.images import Photo, decode_photo


def as_photo(given: Photo | Image.Image) -> Photo:
    """A photo, upright and RGB, from a picture in memory; its SHA-256 is that of the picture as a PNG file.

    Raises:
        InputError: as `decode_photo`.
    """
    if isinstance(given, Photo):
        return given
    buffer = io.BytesIO()
    given.save(buffer, "PNG", exif=given.getexif())
    return decode_photo(buffer.getvalue(), os.path.basename(getattr(given, "filename", "")) or "photo")


def photo_input(photo: Photo, kind: str = "photo") -> dict[str, str]:
    """What a manifest remembers of an input."""
    return {"kind": kind, "name": Path(photo.name).name, "sha256": photo.sha256}
