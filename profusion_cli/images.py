"""Pictures in and out: one upright RGB photo from any file, contact sheets, records inside PNG files.

Only Pillow and NumPy are used here. Whatever is wrong with a file becomes an `InputError`.
"""

from __future__ import annotations

import io
import json
import mmap
import struct
import unicodedata
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageChops, ImageCms, ImageDraw, ImageFont, UnidentifiedImageError
from PIL.PngImagePlugin import PngImageFile, PngInfo

from profusion_cli.errors import InputError
from profusion_cli.files import sha256_of

MAX_PIXELS = 100_000_000
MIN_SIDE = 32
MAX_RECORD_CHARS = 1 << 20
RECORD_KEY = "profusion"

# Decoders for photographs only: others start programs (EPS) or identify files by too little (TGA).
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "PPM", "JPEG2000")
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"II*\0", b"MM\0*", b"RIFF", b"\0\0\0\x0cjP  ")
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_GREY_MODES = ("1", "L", "LA")
_DEEP_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N")
_MODES = (*_GREY_MODES, *_DEEP_MODES, "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr")
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What Pillow's parsers raise on damaged bytes, UnidentifiedImageError (an OSError) among it.
_DAMAGE = (
    *(OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, OverflowError, RuntimeError),
    *(TypeError, AttributeError, IndexError, KeyError, ZeroDivisionError, AssertionError),
)
_FORMAT_HINT = "Convert it to PNG or JPEG first."
_RECORD_HINT = "Give a PNG file written by 'profusion sample'."


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
    with _open_image(data, name, _FORMATS) as image:
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
        turn = _orientation(image, name, notes)
        rgb = _to_rgb(image, name, notes, as_mask)
        if turn is not None:
            rgb = rgb.transpose(turn)
        rgb.info.clear()
        frames = _frame_count(image)
        if frames > 1:
            notes.append(f"'{name}' has {frames} frames; the first is used.")
    return Photo(name, sha256_of(data), rgb, tuple(notes))


@contextmanager
def _open_image(data: bytes | mmap.mmap, name: str, formats: Sequence[str]) -> Iterator[Image.Image]:
    """The opened but undecoded image; Pillow's errors and warnings in the block become `InputError`s."""
    head = bytes(data[:16])
    if head.startswith(b"PK\x03\x04"):
        raise InputError(f"'{name}' looks like a bundle (.pfz), not like a picture.", "Give a picture here.")
    Image.init()
    too_large = InputError(
        f"'{name}' has more than {MAX_PIXELS // 10**6} megapixels.",
        "Make it smaller: 512 pixels a side are used.",
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=[known for known in formats if known in Image.OPEN]) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise too_large
                yield image
    except Image.DecompressionBombError:
        raise too_large from None
    except UnidentifiedImageError as error:
        if head[4:8] == b"ftyp" and head[8:12] in _HEIC_BRANDS:
            raise InputError(f"'{name}' is a HEIC picture, which is not supported.", _FORMAT_HINT) from error
        if not head.startswith(_SIGNATURES) or (formats != _FORMATS and head[:4] != b"\x89PNG"):
            if formats != _FORMATS:
                raise InputError(f"'{name}' is not a {' or '.join(formats)} file.", _RECORD_HINT) from error
            raise InputError(f"'{name}' is not a picture of a known format.", _FORMAT_HINT) from error
        raise InputError(f"'{name}' is damaged: its header cannot be read.", "Get a whole copy of it.") from error
    except _DAMAGE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"'{name}' is damaged or cut off ({reason}).", "Get a whole copy of it.") from error


def _orientation(image: Image.Image, name: str, notes: list[str]) -> Image.Transpose | None:
    """The turn that EXIF asks for; ImageOps.exif_transpose would fail on EXIF data it cannot rewrite."""
    try:
        return _UPRIGHT.get(image.getexif().get(0x0112, 1))
    except _DAMAGE:
        notes.append(f"'{name}' has unreadable EXIF data, so it may not be upright.")
        return None


def _frame_count(image: Image.Image) -> int:
    if image.format == "MPO":  # a photo with a depth map or a second view beside it
        return 1
    try:
        return getattr(image, "n_frames", 1)
    except _DAMAGE:
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


# Contact sheets, strips and animations

_PAPER, _INK, _QUIET, _LINE = "#faf9f7", "#22211f", "#6b6862", "#d8d5cf"


def contact_sheet(
    rows: Sequence[tuple[str, Sequence[Image.Image]]],
    references: Sequence[tuple[str, Image.Image]],
    cell: int = 256,
    title: str = "",
    heads: Sequence[str] = (),
) -> Image.Image:
    """Reference pictures first, then one row per prompt: its text on the left, its pictures beside it.

    Args:
        rows: (prompt, pictures), drawn in order.
        references: (caption, picture), as many to a row as the prompts have pictures, or 4.
        cell: side in pixels of the square that a picture is fitted into, aspect kept.
        heads: what stands above the columns of the rows.

    Returns:
        An RGB image, its size fixed by the number of rows and columns, by `title` and by `heads`.
    """
    gap, label_width = max(cell // 16, 4), max(cell * 7 // 8, 96)
    margin = 2 * gap
    title_font, label_font, caption_font = (_font(max(cell // part, 10)) for part in (11, 15, 19))
    columns = max([1, min(len(references), 4), *(len(pictures) for _, pictures in rows)])
    grid = [
        ("" if start else "Reference", list(references[start : start + columns]))
        for start in range(0, len(references), columns)
    ]
    captioned = len(grid)
    grid += [(prompt, [("", picture) for picture in pictures]) for prompt, pictures in rows]
    most = max((len(_wrap(caption, caption_font, cell, 2)) for caption, _ in references), default=0)
    caption_height = most * _line_height(caption_font) + gap // 2 if most else 0
    rule = gap if captioned and rows else 0
    head_lines = [_wrap(head, caption_font, cell, 3) for head in heads]
    head_height = max(map(len, head_lines), default=0) * _line_height(caption_font)

    width = 2 * margin + label_width + columns * (cell + gap)
    title_lines = _wrap(title, title_font, width - 2 * margin, 2)
    title_height = len(title_lines) * _line_height(title_font) + gap if title_lines else 0
    height = 2 * margin + title_height + len(grid) * (cell + gap) - gap + captioned * caption_height + rule
    height += head_height
    sheet = Image.new("RGB", (width, max(height, 2 * margin + title_height)), _PAPER)
    draw = ImageDraw.Draw(sheet)
    _draw_lines(draw, title_lines, margin, margin, title_font, _INK)

    y = margin + title_height
    for index, (label, pictures) in enumerate(grid):
        if index == captioned:
            for column, lines in enumerate(head_lines):
                _draw_lines(draw, lines, margin + label_width + gap + column * (cell + gap), y, caption_font, _QUIET)
            y += head_height
        lines = _wrap(label, label_font, label_width - gap, max(cell // _line_height(label_font), 1))
        ink = _QUIET if index < captioned else _INK
        _draw_lines(draw, lines, margin, y + (cell - len(lines) * _line_height(label_font)) // 2, label_font, ink)
        for column, (caption, picture) in enumerate(pictures):
            x = margin + label_width + gap + column * (cell + gap)
            scale = min(cell / picture.width, cell / picture.height)
            size = (max(round(picture.width * scale), 1), max(round(picture.height * scale), 1))
            corner = (x + (cell - size[0]) // 2, y + (cell - size[1]) // 2)
            sheet.paste(picture.convert("RGB").resize(size, Image.Resampling.LANCZOS), corner)
            lines = _wrap(caption, caption_font, cell, 2)
            _draw_lines(draw, lines, x, y + cell + gap // 3, caption_font, _QUIET)
        y += cell + gap + (caption_height if index < captioned else 0)
        if rule and index == captioned - 1:
            draw.line((margin, y, width - margin, y), _LINE, max(cell // 128, 1))
            y += rule
    return sheet


def numbered_sheet(pictures: Sequence[tuple[str, Image.Image]], cell: int = 160, columns: int = 8) -> Image.Image:
    """Pictures in rows, each with its caption below it."""
    columns = min(columns, len(pictures))
    gap, font = max(cell // 16, 4), _font(max(cell // 10, 10))
    pitch = cell + gap + _line_height(font)
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (gap + columns * (cell + gap), gap + rows * pitch), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for index, (caption, picture) in enumerate(pictures):
        x, y = gap + index % columns * (cell + gap), gap + index // columns * pitch
        sheet.paste(picture.convert("RGB").resize((cell, cell), Image.Resampling.LANCZOS), (x, y))
        draw.text((x + cell // 2, y + cell), caption, font=font, fill=_INK, anchor="ma")
    return sheet


def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size=size)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


def _line_height(font: ImageFont.FreeTypeFont) -> int:
    return round(sum(font.getmetrics()) * 1.15)


def _draw_lines(
    draw: ImageDraw.ImageDraw, lines: list[str], x: int, y: int, font: ImageFont.FreeTypeFont, ink: str
) -> None:
    for line in lines:
        draw.text((x, y), line, font=font, fill=ink)
        y += _line_height(font)


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int, most: int) -> list[str]:
    """`text` in at most `most` lines of `width` pixels; what does not fit becomes an ellipsis."""
    lines, line = [], ""
    for word in _drawable(text[:2000]).split():
        if line and font.getlength(f"{line} {word}") <= width:
            line = f"{line} {word}"
            continue
        lines += [line] if line else []
        while font.getlength(word) > width and len(word) > 1 and len(lines) <= most:
            fits = next((n for n in range(2, len(word)) if font.getlength(word[:n]) > width), len(word)) - 1
            lines.append(word[:fits])
            word = word[fits:]
        line = word
    lines += [line] if line else []
    if len(lines) > most:
        last = lines[most - 1]
        while last and font.getlength(f"{last}…") > width:
            last = last[:-1]
        lines[most - 1 :] = [f"{last.rstrip()}…"]
    return lines


def _drawable(text: str) -> str:
    """`text` without accents and long dashes, which Pillow's built-in font draws as boxes."""
    parts = unicodedata.normalize("NFKD", text.translate({0x2013: "-", 0x2014: "-", 0xD7: "x"}))
    return "".join(part for part in _encodable(parts) if not unicodedata.combining(part))


def strip(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures side by side, each at the height of the tallest."""
    height = max(picture.height for picture in pictures)
    scaled = [
        picture.resize((round(picture.width * height / picture.height), height), Image.Resampling.LANCZOS)
        if picture.height != height
        else picture
        for picture in pictures
    ]
    whole = Image.new("RGB", (sum(picture.width for picture in scaled), height))
    left = 0
    for picture in scaled:
        whole.paste(picture, (left, 0))
        left += picture.width
    return whole


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


# Records inside PNG files


def encode_png(image: Image.Image, parameters: str, record: dict) -> bytes:
    """PNG bytes, the same for the same input, with `parameters` (A1111's key) and `record` as JSON text.

    Nothing else that `image` carries (EXIF, profile, comments) gets into the file.
    """
    plain = image.convert("RGB")
    plain.info.clear()
    text = PngInfo()
    text.add_text("parameters", _encodable(parameters))
    packed = json.dumps(record, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    text.add_itxt(RECORD_KEY, _encodable(packed))
    buffer = io.BytesIO()
    plain.save(buffer, "PNG", pnginfo=text)
    return buffer.getvalue()


def read_png_record(data: bytes | mmap.mmap, name: str) -> tuple[str, dict]:
    """`parameters` and `record` as `encode_png` wrote them.

    Raises:
        InputError: not a PNG, damaged, or without a readable record.
    """
    with _open_image(data, name, ("PNG",)) as image:
        image.verify()
    with _open_image(data, name, ("PNG",)) as image:
        assert isinstance(image, PngImageFile)
        texts = dict(image.text)
    if RECORD_KEY not in texts:
        raise InputError(f"'{name}' holds no record of how it was made.", _RECORD_HINT)
    hint = "The file was changed by another program: use the original."
    if len(texts[RECORD_KEY]) > MAX_RECORD_CHARS:
        raise InputError(f"'{name}' holds a record of {len(texts[RECORD_KEY])} characters, above the limit.", hint)
    try:
        record = json.loads(texts[RECORD_KEY])
    except (ValueError, RecursionError) as error:
        raise InputError(f"'{name}' holds a record that is not valid JSON.", hint) from error
    if not isinstance(record, dict):
        raise InputError(f"'{name}' holds a record that is not a JSON object.", hint)
    return str(texts.get("parameters", "")), record


def parameters_text(prompt: str, negative_prompt: str, settings: dict[str, object]) -> str:
    """A1111's description of a picture: prompt, negative prompt if any, `Name: value` pairs in order."""
    lines = [prompt]
    if negative_prompt:
        lines.append(f"Negative prompt: {negative_prompt}")
    lines.append(", ".join(f"{key}: {_quoted(str(value))}" for key, value in settings.items() if value is not None))
    return "\n".join(lines).strip()


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if any(mark in value for mark in ",:\n") else value


def _encodable(text: str) -> str:
    """`text` with lone surrogates (undecodable command line bytes) as question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")
