"""Photos: one upright RGB picture from any file, and the square of it that models see."""

from __future__ import annotations

import io
import mmap
from dataclasses import dataclass

import numpy as np
from PIL import ExifTags, Image, ImageChops, ImageCms, ImageOps

from profusion_cli.errors import InputError
from profusion_cli.files import sha256_of
from profusion_cli.images.opening import DAMAGE, open_image

MIN_SIDE = 32
_GREY_MODES = ("1", "L", "LA")
_DEEP_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N")
_MODES = (*_GREY_MODES, *_DEEP_MODES, "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr")


@dataclass(frozen=True)
class Photo:
    """A decoded picture: RGB, upright, full size; `notes` are sentences the user should read."""

    name: str
    sha256: str
    image: Image.Image
    notes: tuple[str, ...]


def decode_photo(data: bytes | mmap.mmap, name: str, as_mask: bool = False) -> Photo:
    """The picture in `data`, upright, in sRGB, on white where it was transparent, first frame only.

    As a mask, a partly transparent picture is white where it is opaque, and black where it is transparent.

    Raises:
        InputError: not a picture, damaged, above `MAX_PIXELS`, a side below `MIN_SIDE`, or a pixel
            format without a known range.
    """
    notes: list[str] = []
    with open_image(data, name) as image:
        if min(image.size) < MIN_SIDE:
            raise InputError(
                f"'{name}' is {image.width}x{image.height} pixels, and its shorter side is below {MIN_SIDE}.",
                "Use a larger picture, at best 512 pixels or more on its shorter side.",
            )
        if image.mode not in _MODES:
            raise InputError(
                f"'{name}' has pixels of kind '{image.mode}', which have no fixed range.",
                "Save it as an 8-bit or 16-bit PNG, or as a JPEG.",
            )
        image.load()
        orientation = _orientation(image, name, notes)
        rgb = _to_rgb(image, name, notes, as_mask)
        rgb.info.clear()
        rgb.getexif()[ExifTags.Base.Orientation] = orientation
        ImageOps.exif_transpose(rgb, in_place=True)
        frames = _frame_count(image)
        if frames > 1:
            notes.append(f"'{name}' has {frames} frames; the first is used.")
    return Photo(name, sha256_of(data), rgb, tuple(notes))


def _orientation(image: Image.Image, name: str, notes: list[str]) -> object:
    """What EXIF says of it, read by itself: other EXIF data may be beyond repair."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except DAMAGE:
        notes.append(f"'{name}' has unreadable EXIF data, so it may not be upright.")
        return 1


def _frame_count(image: Image.Image) -> int:
    if image.format == "MPO":  # a photo with a depth map or a second view beside it
        return 1
    try:
        return getattr(image, "n_frames", 1)
    except DAMAGE:
        return 1


def _to_rgb(image: Image.Image, name: str, notes: list[str], as_mask: bool) -> Image.Image:
    """Any of `_MODES` as a new sRGB image on white, or its opacity for a mask that is partly transparent."""
    profile = image.info.get("icc_profile")
    if image.mode in _DEEP_MODES:
        image = _to_eight_bits(image, name)
    grey = image.mode in _GREY_MODES
    alpha = None
    if image.has_transparency_data:
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
        if as_mask and alpha.getextrema()[0] < 255:
            notes.append(f"'{name}' is partly transparent; what is opaque counts as light.")
            return alpha.convert("RGB")
    rgb = _to_srgb(image, grey, profile, name, notes)
    if alpha is None or alpha.getextrema()[0] == 255:
        return rgb
    notes.append(f"'{name}' is partly transparent; it was laid on white.")
    white = Image.new("RGB", rgb.size, "white")
    white.paste(rgb, mask=alpha)
    return white


def _to_eight_bits(image: Image.Image, name: str) -> Image.Image:
    """Grey values 0..65535 as 0..255, rounded."""
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
        raise InputError(
            f"'{name}' has grey values from {values.min()} to {values.max()}, outside 0 to 65535.",
            "Save it as an 8-bit or 16-bit PNG, or as a JPEG.",
        )
    return Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))


def _to_srgb(image: Image.Image, grey: bool, profile: object, name: str, notes: list[str]) -> Image.Image:
    """`image` without its alpha, as RGB, through its ICC profile where that is usable."""
    if isinstance(profile, bytes) and profile:
        try:
            return _through_profile(image, grey, profile, name, notes)
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError, AttributeError, KeyError):
            notes.append(f"'{name}' has a colour profile that does not fit or is broken; it was ignored.")
    elif image.mode == "CMYK":
        notes.append(f"'{name}' is CMYK without a colour profile; its colours are approximate.")
    return image.convert("RGB")


def _through_profile(image: Image.Image, grey: bool, profile: bytes, name: str, notes: list[str]) -> Image.Image:
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    mode = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}[source.profile.xcolor_space.strip()]
    if (mode == "CMYK") != (image.mode == "CMYK") or (mode == "L" and not grey):
        raise ValueError("the profile is for another kind of pixel")
    transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    if mode == "RGB":
        levels = np.arange(0, 256, 17, dtype=np.uint8)
        probe = Image.fromarray(np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(64, 64, 3))
        change = ImageChops.difference(probe, transform.apply(probe))
        if np.asarray(change).max() <= 2:  # sRGB by another name: keep every pixel
            return image.convert("RGB")
    converted = transform.apply(image.convert(mode))
    notes.append(f"'{name}' was converted from its own colour profile to sRGB.")
    return converted


def crop_square(image: Image.Image, size: int) -> Image.Image:
    """The central square of `image` as RGB of `size` x `size`: the authors' preprocessing, bit for bit."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.convert("RGB").crop((left, top, left + side, top + side))
    return square.resize((size, size), Image.Resampling.LANCZOS)
