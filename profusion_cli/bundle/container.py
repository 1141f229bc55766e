"""The ZIP file of a bundle: stored entries, of which every byte is accounted for.

`zipfile` writes the ZIP and reads its directory; where that directory says things lie is checked
here, so that there is nothing before, between or after the entries.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Mapping
from typing import BinaryIO

from profusion_cli.bundle.refusal import Refused, show
from profusion_cli.bundle.tensors import Data
from profusion_cli.files import BUNDLE_MARK

_MAX_ENTRIES = 16  # more than this version knows, so that a newer one can be told from a damaged one
_LOCAL = struct.Struct("<4sH12s2L2H")  # magic, version, what the directory repeats, sizes, lengths
_CENTRAL_SIZE = 46
_END64 = struct.Struct("<4sQ2H2L4Q4sLQL")  # with the locator behind it
_END = struct.Struct("<4s4H2LH")
_FULL = 0xFFFFFFFF  # "see the ZIP64 field"
_MAX_DIRECTORY = 1 << 14
_LOOSE = "has a damaged ZIP directory, or something between its entries and its directory, or after that"


def looks_like_bundle(data: Data) -> bool:
    """Whether `data` starts like a ZIP file."""
    return data[:4] == BUNDLE_MARK


def read_entries(view: memoryview) -> dict[str, memoryview]:
    """The stored entries of a ZIP file of which every byte is accounted for, in their order.

    Raises:
        Refused: it is damaged, or does anything but store.
    """
    if len(view) < _END.size or not looks_like_bundle(view):
        raise Refused("is truncated or not a bundle")
    magic, *_, count, _, _, comment = _END.unpack(view[-_END.size :])
    if magic != b"PK\x05\x06" or comment:
        raise Refused("is truncated or has something added at its end")
    if not 1 < count <= _MAX_ENTRIES:
        raise Refused(f"holds {count} entries, and 2 to {_MAX_ENTRIES} are allowed")
    before = max(len(view) - _MAX_DIRECTORY, 0)  # `zipfile` sees no more than a directory may take
    try:
        with zipfile.ZipFile(io.BytesIO(view[before:])) as archive:
            infos, directory = archive.infolist(), before + archive.start_dir
    except (zipfile.BadZipFile, NotImplementedError, struct.error, ValueError, OverflowError) as error:
        raise Refused(_LOOSE) from error
    entries: dict[str, memoryview] = {}
    position, at = 0, directory
    for info in infos:
        if info.filename in entries:
            raise Refused(f"holds {show(info.filename)} twice")
        info.header_offset += before
        start, at = _check_headers(view, info, position, at)
        position = start + info.file_size
        if position > directory:
            raise Refused(f"is truncated or damaged: {show(info.filename)} reaches into what follows it")
        entries[info.filename] = view[start:position]
        if zlib.crc32(entries[info.filename]) != info.CRC:
            raise Refused(f"is damaged: the checksum of {show(info.filename)} is wrong")
    total = len(infos), len(infos), at - directory
    end = _END.pack(b"PK\x05\x06", 0, 0, *total, min(directory, _FULL), 0)
    if len(view) > at + _END.size:
        end = _END64.pack(b"PK\x06\x06", 44, 45, 45, 0, 0, *total, directory, b"PK\x06\x07", 0, at, 1) + end
    if position != directory or view[at:] != end:
        raise Refused(_LOOSE)
    return entries


def _check_headers(view: memoryview, info: zipfile.ZipInfo, position: int, at: int) -> tuple[int, int]:
    """An entry's own header at `position` agrees with its record at `at`: the ends of both."""
    path, size, shown = info.filename.encode(), info.file_size, show(info.filename)
    if info.flag_bits & 1:
        raise Refused(f"holds the encrypted entry {shown}")
    if info.flag_bits or info.compress_type:
        raise Refused(f"holds {shown} compressed or in another special way, and bundles only store")
    magic, _, common, *sizes, path_length, extra_length = _LOCAL.unpack_from(view, position)
    if magic != BUNDLE_MARK or info.header_offset != position:
        raise Refused(f"has something between its entries, before {shown}")
    start = position + _LOCAL.size + path_length
    end = start + extra_length
    extras = [b"", _field64(size, size), _field64(position), _field64(size, size, position)]
    if view[start:end] not in extras[:2] or info.extra not in extras:
        raise Refused(f"has unknown extra fields with its entry {shown}")
    if struct.unpack_from("<3H", view, at + 28) != (len(path), len(info.extra), 0) or info.volume:
        raise Refused(_LOOSE)
    if sizes == [_FULL, _FULL] and extra_length:
        sizes = [size, size]
    own = [view[position + _LOCAL.size : start], common, info.compress_size, *sizes]
    if own != [path, view[at + 8 : at + 20], size, size, size]:
        raise Refused(f"describes its entry {shown} in two different ways")
    return end, at + _CENTRAL_SIZE + len(path) + len(info.extra)


def _field64(*numbers: int) -> bytes:
    """The ZIP64 field, in which numbers stand that may need 64 bits."""
    return struct.pack(f"<2H{len(numbers)}Q", 1, 8 * len(numbers), *numbers)


def write_entries(file: BinaryIO, entries: Mapping[str, bytes | memoryview]) -> None:
    """Store entries in their order, with nothing from the clock or the machine."""
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in entries.items():
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.create_system, info.external_attr = 3, 0o100644 << 16
            archive.writestr(info, data)
