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
ORDINARY_PIXELS = 32_000_000
"""What has more is halved while it is decoded."""
_BAND = 256
"""Rows that are halved at once: an even number."""
_TURNED = (5, 6, 7, 8)
"""EXIF orientations of pictures that are stored on their side."""
_GREY_MODES = ("1", "L", "LA")
_DEEP_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N")
_MODES = (*_GREY_MODES, *_DEEP_MODES, "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr")


@dataclass(frozen=True)
class Photo:
    """A decoded picture.

    Args:
        name: what the user calls it.
        sha256: of its file.
        image: RGB, upright; half as wide and high as the file says where that is above `ORDINARY_PIXELS`.
        notes: sentences the user should read.
        size: width and height of the whole picture, upright, in pixels.
    """

    name: str
    sha256: str
    image: Image.Image
    notes: tuple[str, ...]
    size: tuple[int, int]


def decode_photo(data: bytes | mmap.mmap, name: str, as_mask: bool = False) -> Photo:
    """The picture in `data`, upright, in sRGB, on white where it was transparent, first frame only.

    One above `ORDINARY_PIXELS` is halved first, by the mean of 2 x 2 pixels, and by its decoder where that can.

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
        size = image.size
        large = image.width * image.height > ORDINARY_PIXELS
        if large:
            image.draft(image.mode, (image.width // 2, image.height // 2))
        image.load()
        orientation = _orientation(image, name, notes)
        rgb = _to_rgb(_halved(image, name) if large and image.size == size else image, name, notes, as_mask)
        rgb.info.clear()
        rgb.getexif()[ExifTags.Base.Orientation] = orientation
        ImageOps.exif_transpose(rgb, in_place=True)
        frames = _frame_count(image)
        if frames > 1:
            notes.append(f"'{name}' has {frames} frames; the first is used.")
    return Photo(name, sha256_of(data), rgb, tuple(notes), size[::-1] if orientation in _TURNED else size)


def _halved(image: Image.Image, name: str) -> Image.Image:
    """A decoded image half as wide and high, rounded up, by the mean of 2 x 2 pixels.

    It is of a mode that can be averaged, and carries nothing but its profile. Transparent pixels weigh nothing.
    """
    half: Image.Image | None = None
    for top in range(0, image.height, _BAND):
        band = image.crop((0, top, image.width, min(top + _BAND, image.height)))
        small = _averageable(band, name).reduce(2)
        if half is None:
            half = Image.new(small.mode, (small.width, -(-image.height // 2)))
        half.paste(small, (0, top // 2))
    assert half is not None
    half.info = {key: value for key, value in image.info.items() if key == "icc_profile"}
    return half


def _averageable(image: Image.Image, name: str) -> Image.Image:
    """Any of `_MODES` as 8-bit channels that are colours, with an alpha channel where something may be transparent."""
    if image.mode in _DEEP_MODES:
        return _to_eight_bits(image, name)
    if image.has_transparency_data:
        return image.convert("LA" if image.mode in _GREY_MODES else "RGBA")
    return image.convert({"1": "L", "P": "RGB"}.get(image.mode, image.mode))


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
