"""Photos as they come: decoded from a file, or pictures in memory."""

from __future__ import annotations

import io
import os
from pathlib import Path

from PIL import Image

from profusion_cli.bundle import Bundle
from profusion_cli.errors import BundleError, InputError
from profusion_cli.images import Photo, decode_photo
from profusion_cli.images.opening import DAMAGE


def as_photo(given: Photo | Image.Image) -> Photo:
    """A photo, upright and RGB, from a picture in memory; its SHA-256 is that of the picture as a PNG file.

    Raises:
        InputError: as `decode_photo`, or a picture that no PNG file can hold.
    """
    if isinstance(given, Photo):
        return given
    name, buffer = os.path.basename(getattr(given, "filename", "")) or "photo", io.BytesIO()
    try:
        given.save(buffer, "PNG", exif=given.getexif())
    except DAMAGE as error:
        raise InputError(
            f"'{name}' is damaged, or its pixels are of a kind that PNG files do not hold ({given.mode}).",
            "Get a whole copy of it, or convert it to RGB first.",
        ) from error
    return decode_photo(buffer.getvalue(), name)


def photo_input(photo: Photo, kind: str = "photo") -> dict[str, str]:
    """What a manifest remembers of an input."""
    return {"kind": kind, "name": Path(photo.name).name, "sha256": photo.sha256}


def first_view(bundle: Bundle) -> Image.Image | None:
    """The first reference view of a subject, square, from the bundle's preview; None: it has none.

    Raises:
        BundleError: a preview that is no picture.
    """
    if bundle.preview is None:
        return None
    try:
        strip = decode_photo(bundle.preview, bundle.name).image
    except InputError as error:
        raise BundleError(f"The preview in '{bundle.name}' is no picture: {error.message}", error.hint) from None
    return strip.crop((0, 0, strip.height, strip.height))
