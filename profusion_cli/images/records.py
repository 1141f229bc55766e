"""Records of how a picture was made, inside its PNG file."""

from __future__ import annotations

import io
import json
import mmap

from PIL import Image
from PIL.PngImagePlugin import PngImageFile, PngInfo

from profusion_cli.errors import InputError
from profusion_cli.images.opening import open_image

MAX_RECORD_CHARS = 1 << 20
RECORD_KEY = "profusion"
_HINT = "Give a PNG file written by 'profusion sample'."


def encode_png(image: Image.Image, parameters: str, record: dict) -> bytes:
    """PNG bytes, the same for the same input, with `parameters` (A1111's key) and `record` as JSON text.

    Nothing else that `image` carries (EXIF, profile, comments) gets into the file.
    """
    plain = image.convert("RGB")
    plain.info.clear()
    text = PngInfo()
    text.add_text("parameters", encodable(parameters))
    packed = json.dumps(record, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    text.add_itxt(RECORD_KEY, encodable(packed))
    buffer = io.BytesIO()
    plain.save(buffer, "PNG", pnginfo=text)
    return buffer.getvalue()


def read_png_record(data: bytes | mmap.mmap, name: str) -> tuple[str, dict]:
    """`parameters` and `record` as `encode_png` wrote them.

    Raises:
        InputError: not a PNG, damaged, or without a readable record.
    """
    with open_image(data, name, ("PNG",), _HINT) as image:
        image.verify()
    with open_image(data, name, ("PNG",), _HINT) as image:
        assert isinstance(image, PngImageFile)
        texts = dict(image.text)
    if RECORD_KEY not in texts:
        raise InputError(f"'{name}' holds no record of how it was made.", _HINT)
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


def encodable(text: str) -> str:
    """`text` with lone surrogates (undecodable command line bytes) as question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")
