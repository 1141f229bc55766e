"""Records of how a picture was made, inside its file: PNG, WebP or GIF."""

from __future__ import annotations

import io
import json
import mmap
import os
from collections.abc import Callable, Mapping
from typing import Any

from PIL import ExifTags, Image

from profusion_cli.errors import InputError
from profusion_cli.images.marks import png_info
from profusion_cli.images.opening import open_image
from profusion_cli.texts import encodable

MAX_RECORD_CHARS = 1 << 20
RECORD_KEY = "profusion"
_PARAMETERS_KEY = "parameters"
_HINT = "Give a picture as profusion wrote it."
_USER_COMMENT = b"UNICODE\0"
"""What the text of EXIF's UserComment begins with where it is UTF-16."""


def encode_png(image: Image.Image, parameters: str, record: dict[str, Any]) -> bytes:
    """PNG bytes, the same for the same input, with `parameters` (A1111's key), `record` as JSON text, and its mark.

    Nothing else that `image` carries (EXIF, profile, comments) gets into the file.
    """
    plain = image.convert("RGB")
    plain.info.clear()
    text = png_info(record)
    text.add_text(_PARAMETERS_KEY, encodable(parameters))
    text.add_itxt(RECORD_KEY, encodable(_packed(record)))
    buffer = io.BytesIO()
    plain.save(buffer, "PNG", pnginfo=text)
    return buffer.getvalue()


def encode_exif(parameters: str, record: dict[str, Any]) -> bytes:
    """EXIF data with `parameters` as the user's comment, where A1111 has them, and `record` as the maker's note."""
    exif = Image.Exif()
    own = exif.get_ifd(ExifTags.IFD.Exif)
    own[ExifTags.Base.UserComment] = _USER_COMMENT + encodable(parameters).encode("utf-16-be")
    own[ExifTags.Base.MakerNote] = f"{RECORD_KEY}\0{encodable(_packed(record))}".encode()
    return exif.tobytes()


def encode_comment(parameters: str, record: dict[str, Any]) -> bytes:
    """A comment with `parameters`, and `record` in its last line."""
    return f"{encodable(parameters)}\n{RECORD_KEY}: {encodable(_packed(record))}".encode()


def _packed(record: dict[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def _png_texts(image: Any) -> tuple[str, str | None]:
    return str(image.text.get(_PARAMETERS_KEY, "")), image.text.get(RECORD_KEY)


def _exif_texts(image: Image.Image) -> tuple[str, str | None]:
    own = image.getexif().get_ifd(ExifTags.IFD.Exif)
    comment, note = (own.get(tag) for tag in (ExifTags.Base.UserComment, ExifTags.Base.MakerNote))
    told = isinstance(comment, bytes) and comment.startswith(_USER_COMMENT)
    parameters = comment[len(_USER_COMMENT) :].decode("utf-16-be", "replace") if told else ""
    mark = f"{RECORD_KEY}\0".encode()
    ours = isinstance(note, bytes) and note.startswith(mark)
    return parameters, note[len(mark) :].decode("utf-8", "replace") if ours else None


def _comment_texts(image: Image.Image) -> tuple[str, str | None]:
    comment = image.info.get("comment", b"").decode("utf-8", "replace")
    parameters, found, packed = comment.rpartition(f"\n{RECORD_KEY}: ")
    return (parameters, packed) if found else (comment, None)


_TEXTS: Mapping[str, Callable[[Any], tuple[str, str | None]]] = {
    "PNG": _png_texts,
    "WEBP": _exif_texts,
    "GIF": _comment_texts,
}
"""What reads the texts of `parameters` and `record` from an opened picture, by Pillow's name of its format."""


def read_record(data: bytes | mmap.mmap, name: str) -> tuple[str, dict[str, Any]]:
    """`parameters` and `record` as they were written into a picture.

    Raises:
        InputError: no picture of a kind that is written here, damaged, or without a readable record.
    """
    with open_image(data, name, tuple(_TEXTS), _HINT) as image:
        image.verify()
    with open_image(data, name, tuple(_TEXTS), _HINT) as image:
        parameters, packed = _TEXTS[str(image.format)](image)
    if packed is None:
        raise InputError(f"'{name}' holds no record of how it was made.", _HINT)
    hint = "The file was changed by another program: use the original."
    if len(packed) > MAX_RECORD_CHARS:
        raise InputError(f"'{name}' holds a record of {len(packed)} characters, above the limit.", hint)
    try:
        record = json.loads(packed)
    except (ValueError, RecursionError) as error:
        raise InputError(f"'{name}' holds a record that is not valid JSON.", hint) from error
    if not isinstance(record, dict):
        raise InputError(f"'{name}' holds a record that is not a JSON object.", hint)
    return parameters, record


def public_id(id: str) -> str:
    """A Hub id as it is; of a folder its name alone, since pictures are shown to others."""
    return os.path.basename(id) if os.path.isabs(id) else id


def parameters_text(prompt: str, negative_prompt: str, settings: dict[str, object]) -> str:
    """A1111's description of a picture: prompt, negative prompt if any, `Name: value` pairs in order."""
    lines = [prompt]
    if negative_prompt:
        lines.append(f"Negative prompt: {negative_prompt}")
    lines.append(", ".join(f"{key}: {_quoted(str(value))}" for key, value in settings.items() if value is not None))
    return "\n".join(lines).strip()


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if any(mark in value for mark in ",:\n") else value
