"""Opening picture files of any origin: whatever is wrong with one becomes an `InputError`."""

from __future__ import annotations

import io
import mmap
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from PIL import Image, UnidentifiedImageError

from profusion_cli.errors import InputError
from profusion_cli.files import BUNDLE_MARK

MAX_PIXELS = 100_000_000
MAX_HEAVY_PIXELS = 50_000_000
"""Of the formats whose decoders hold a picture several times."""
MAX_BYTES = 300_000_000
"""Of a picture's file: within these three a picture is decoded in less than 1 GB."""
_HEAVY = ("WEBP", "TIFF", "JPEG2000", "AVIF")
# Decoders for photographs only: others start programs (EPS) or identify files by too little (TGA).
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "PPM", "JPEG2000")
_SIGNATURES = {
    "JPEG": (b"\xff\xd8\xff",),
    "PNG": (b"\x89PNG",),
    "GIF": (b"GIF8",),
    "TIFF": (b"II*\0", b"MM\0*"),
    "WEBP": (b"RIFF",),
    "JPEG2000": (b"\0\0\0\x0cjP  ",),
}
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
# What Pillow's parsers raise on damaged bytes, UnidentifiedImageError (an OSError) among it.
DAMAGE = (
    *(OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, OverflowError, RuntimeError),
    *(TypeError, AttributeError, IndexError, KeyError, ZeroDivisionError, AssertionError),
)
_FORMAT_HINT = "Convert it to PNG or JPEG first."


def is_safetensors(data: bytes) -> bool:
    """Whether `data` starts like a safetensors file: the length of its header, and the header."""
    length = int.from_bytes(data[:8], "little")
    return data[8:10] == b'{"' and 2 <= length <= len(data) - 8


@contextmanager
def open_image(
    data: bytes | mmap.mmap, name: str, formats: Sequence[str] = FORMATS, hint: str = _FORMAT_HINT
) -> Iterator[Image.Image]:
    """The opened but undecoded image; Pillow's errors and warnings in the block become `InputError`s.

    Args:
        data: the whole file.
        name: what the user calls it.
        formats: that are accepted, by Pillow's names.
        hint: what to do about a file of another format.
    """
    head = bytes(data[:16])
    if head.startswith(BUNDLE_MARK):
        raise InputError(f"'{name}' looks like a bundle (.pfz), not like a picture.", "Give a picture here.")
    if is_safetensors(data):
        raise InputError(f"'{name}' holds weights (safetensors), not a picture.", "Give a picture here.")
    Image.init()
    smaller = "Make it smaller: 512 pixels a side are used."
    if len(data) > MAX_BYTES:
        raise InputError(f"'{name}' is a picture of more than {MAX_BYTES // 10**6} MB.", smaller)
    too_large = InputError(f"'{name}' has more than {MAX_PIXELS // 10**6} megapixels.", smaller)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=[known for known in formats if known in Image.OPEN]) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise too_large
                if image.format in _HEAVY and image.width * image.height > MAX_HEAVY_PIXELS:
                    raise InputError(
                        f"'{name}' has more than {MAX_HEAVY_PIXELS // 10**6} megapixels, the most for {image.format}.",
                        f"{smaller[:-1]}; or save it as a JPEG or PNG, which may have {MAX_PIXELS // 10**6}.",
                    )
                yield image
    except Image.DecompressionBombError:
        raise too_large from None
    except UnidentifiedImageError as error:
        raise _unidentified(head, name, formats, hint) from error
    except DAMAGE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"'{name}' is damaged or cut off ({reason}).", "Get a whole copy of it.") from error


def _unidentified(head: bytes, name: str, formats: Sequence[str], hint: str) -> InputError:
    """What a file that Pillow does not know is, as far as its first bytes tell."""
    signatures = tuple(mark for kind, marks in _SIGNATURES.items() if kind in formats for mark in marks)
    if head.startswith(signatures):
        return InputError(f"'{name}' is damaged: its header cannot be read.", "Get a whole copy of it.")
    if head[4:8] == b"ftyp" and head[8:12] in _HEIC_BRANDS:
        return InputError(f"'{name}' is a HEIC picture, which is not supported.", hint)
    if len(formats) == 1:
        return InputError(f"'{name}' is not a {formats[0]} file.", hint)
    return InputError(f"'{name}' is not a picture of a known format.", hint)
