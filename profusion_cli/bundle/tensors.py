"""Safetensors files: a layout that fills them exactly, and numbers that are finite."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np

from profusion_cli.bundle.refusal import Refused, show

MAX_HEADER = 4 << 20
MAX_TENSORS = 20_000
_CHUNK = 1 << 20
_ITEM_SIZE = {"F32": 4, "F16": 2, "BF16": 2, "I64": 8, "U8": 1}
_EXPONENT = {"F32": ("<u4", 0x7F800000), "F16": ("<u2", 0x7C00), "BF16": ("<u2", 0x7F80)}

Data = bytes | memoryview


def layout(data: Data) -> tuple[dict[str, dict[str, Any]], dict[str, memoryview]]:
    """The tensors of a safetensors file, which fill it exactly: dtype and shape of each, and its bytes.

    Raises:
        Refused: anything in it is out of place.
    """
    view = memoryview(data)
    header, position = _read_header(view)
    begin, described, contents = position, {}, {}
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        start, end = (begin + offset for offset in entry["data_offsets"])
        if start != position:
            raise Refused(f"tensor {show(name)} does not start where the one before it ends")
        if end - start != math.prod(entry["shape"]) * _ITEM_SIZE[entry["dtype"]]:
            raise Refused(f"tensor {show(name)} has another size than its shape {show(entry['shape'])}")
        described[name] = {"dtype": entry["dtype"], "shape": entry["shape"]}
        contents[name] = view[start:end]
        position = end
    if position != len(view):
        raise Refused(f"its tensors end at byte {position}, and the file at byte {len(view)}")
    return described, contents


def _read_header(view: memoryview) -> tuple[dict[str, dict[str, Any]], int]:
    """The entries of the header, each well-formed by itself, and where the tensors begin."""
    length = int.from_bytes(view[:8], "little")
    if len(view) < 8 or length > min(MAX_HEADER, len(view) - 8):
        raise Refused(f"the header claims {length} bytes, in a file of {len(view)}")
    try:
        header = json.loads(bytes(view[8 : 8 + length]).decode(), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise Refused("the safetensors header is not valid JSON") from error
    if view[8:9] != b"{":
        raise Refused("the safetensors header is not a JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise Refused("the safetensors metadata is not a table of strings")
    if not 0 < len(header) <= MAX_TENSORS:
        raise Refused(f"it has {len(header)} tensors, and 1 to {MAX_TENSORS} are allowed")
    for name, entry in header.items():
        _check_entry(name, entry)
    return header, 8 + length


def _check_entry(name: str, entry: Any) -> None:
    shown = show(name)
    if not 0 < len(name) <= 256 or not name.isprintable():
        raise Refused(f"{shown} is no name for a tensor")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise Refused(f"tensor {shown} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _ITEM_SIZE:
        raise Refused(f"tensor {shown} has the dtype {show(dtype)}, not {'/'.join(_ITEM_SIZE)}")
    if not are_naturals(shape) or len(shape) > 8 or math.prod(max(side, 1) for side in shape) >= 1 << 63:
        raise Refused(f"tensor {shown} has the shape {show(shape)}")
    if not are_naturals(offsets) or len(offsets) != 2:
        raise Refused(f"tensor {shown} has the offsets {show(offsets)}")


def are_naturals(value: Any) -> bool:
    """Whether it is a list of whole numbers from 0 that fit into 63 bits."""
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 63 for item in value)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("duplicate key")
    return table


def find_non_finite(described: dict[str, dict[str, Any]], contents: dict[str, memoryview]) -> str | None:
    """Name of the first tensor with an infinity or NaN: numbers whose exponent bits are all set."""
    for name, data in contents.items():
        unsigned, mask = _EXPONENT.get(described[name]["dtype"], ("", 0))
        for start in range(0, len(data) if mask else 0, _CHUNK):
            if (np.frombuffer(data[start : start + _CHUNK], unsigned) & mask).max() == mask:
                return name
    return None
