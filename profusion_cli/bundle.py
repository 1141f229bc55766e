"""Bundles (`.pfz`): one ZIP of stored entries, read and written without trusting a single byte.

The entries, in this order: `manifest.yaml`, one or more `*.safetensors`, and maybe `preview.png`.
The ZIP is parsed here instead of by `zipfile`, because every byte of the file must be accounted for
(nothing before, between or after the entries) and nothing may be built from a directory of unknown
size; what is written opens with any ZIP tool. Nothing is executed, and nothing goes to the disk.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from profusion_cli import __version__
from profusion_cli.errors import BundleError, DivergedError
from profusion_cli.files import atomic_output, sha256_of

SCHEMA_VERSION = 1
KINDS = ("promptnet", "images", "subject")
MANIFEST = "manifest.yaml"
PREVIEW = "preview.png"
FILES = ("promptnet.safetensors", "unet.safetensors", "views.safetensors", "images.safetensors")

MAX_MANIFEST = 1 << 20
MAX_PREVIEW = 64 << 20
MAX_HEADER = 16 << 20
MAX_TENSORS = 20_000
_MAX_ENTRIES = 16  # more than this version knows, so that a newer one can be told from a damaged one
_MAX_DEPTH = 32
_CHUNK = 1 << 20
_ITEM_SIZE = {"F32": 4, "F16": 2, "BF16": 2, "I64": 8, "U8": 1}
_EXPONENT = {"F32": ("<u4", 0x7F800000), "F16": ("<u2", 0x7C00), "BF16": ("<u2", 0x7F80)}
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PNG = b"\x89PNG\r\n\x1a\n"

_AGAIN = "Copy or download it again, or make it again with profusion."
_KIND_WORDS = {  # kind: (what it holds, its verb, made by, taken by)
    "promptnet": ("a promptnet", "is", "`profusion pretrain` or `profusion import`", "`--promptnet`"),
    "images": ("images", "are", "`profusion augment`", "`profusion finetune`"),
    "subject": ("a subject", "is", "`profusion finetune`", "`profusion sample` and `profusion interpolate`"),
}

Data = bytes | mmap.mmap | memoryview


class _Bad(ValueError):
    """What is wrong, as a phrase that continues "'x.pfz' ..."."""

    def __init__(self, phrase: str, hint: str = _AGAIN) -> None:
        super().__init__(phrase)
        self.hint = hint


def _show(value: object) -> str:
    """`value` from an untrusted file, short and without control characters."""
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


@dataclass(frozen=True, eq=False)
class Bundle:
    """A verified bundle; its tensors stay where they were read from."""

    name: str
    sha256: str
    size: int
    manifest: dict[str, Any] = field(repr=False)
    preview: bytes | None = field(repr=False)
    _entries: dict[str, memoryview] = field(repr=False)

    @property
    def kind(self) -> str:
        return self.manifest["kind"]

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the safetensors entries."""
        return tuple(self._entries)

    def read(self, file_name: str) -> memoryview:
        """The verified bytes of one safetensors entry, not copied."""
        if file_name not in self._entries:
            raise BundleError(f"'{self.name}' has no '{file_name}', which is needed here.", _AGAIN)
        return self._entries[file_name]

    def require(self, kind: str) -> Bundle:
        """This bundle, if it is of `kind`.

        Raises:
            BundleError: it is of another kind.
        """
        needed, verb, made_by, _ = _KIND_WORDS[kind]
        if self.kind != kind:
            held, _, _, taken_by = _KIND_WORDS[self.kind]
            raise BundleError(
                f"'{self.name}' holds {held}, and {needed} {verb} needed here.",
                f"{needed[0].upper()}{needed[1:]} {verb} made by {made_by}, and this file is for {taken_by}.",
            )
        return self


def looks_like_bundle(data: Data) -> bool:
    """Whether `data` starts like a ZIP file."""
    return data[:4] == b"PK\x03\x04"


def read_bundle(data: Data, name: str) -> Bundle:
    """Verify all of `data`, called `name` by the user.

    Raises:
        BundleError: it is not a bundle, damaged, tampered with, or from a newer version.
    """
    view = memoryview(data)
    try:
        entries = _unzip(view)
        manifest = _read_manifest(entries)
        layouts = {file: _check_file(file, entries[file], manifest) for file in manifest["files"]}
        with ThreadPoolExecutor(2) as pool:  # hashing runs beside the other checks
            whole = pool.submit(sha256_of, view)
            hashes = {file: pool.submit(sha256_of, entries[file].data) for file in layouts}
            for file, layout in layouts.items():
                entries[file].check_crc()
                if tensor := _find_non_finite(entries[file].data, layout):
                    raise _Bad(f"has non-finite numbers in tensor {_show(tensor)} of '{file}'")
                if hashes[file].result() != manifest["files"][file]["sha256"]:
                    raise _Bad(f"is damaged: '{file}' does not have the sha256 that the manifest gives")
            sha256 = whole.result()
        preview = None
        if PREVIEW in entries:
            entries[PREVIEW].check_crc()
            preview = bytes(entries[PREVIEW].data)
    except _Bad as error:
        raise BundleError(f"'{name}' {error}.", error.hint) from None
    return Bundle(name, sha256, len(view), manifest, preview, {file: entries[file].data for file in layouts})


def write_bundle(
    target: str | Path,
    manifest: Mapping[str, Any],
    files: Mapping[str, bytes | memoryview],
    preview: bytes | None = None,
    force: bool = False,
) -> str:
    """Write a bundle to `target` (`-` for standard output) and return the sha256 of the whole file.

    `manifest` holds kind, base, config, seed, inputs and parents; schema_version, tool and files are
    filled in. The same content gives the same bytes, on any machine at any time.

    Raises:
        DivergedError: the weights contain non-finite numbers.
        OutputError: the target exists (without `force`) or cannot be written.
        ValueError: the caller's mistake: unknown kind or file name, not safetensors, odd values.
    """
    if unknown := set(files) - set(FILES):
        raise ValueError(f"no bundle holds files named {sorted(unknown)}")
    described: dict[str, Any] = {}
    for file in sorted(files, key=FILES.index):
        layout = _layout(files[file])
        if tensor := _find_non_finite(files[file], layout):
            raise DivergedError(
                f"The weights of '{file}' contain non-finite numbers (tensor '{tensor}').",
                "Nothing was written: lower the learning rate or use a wider --dtype, and run it again.",
            )
        described[file] = {"sha256": sha256_of(files[file]), "size": len(files[file])}
        described[file]["tensors"] = _describe(layout)
    whole = {"schema_version": SCHEMA_VERSION, "kind": None, "tool": None} | _plain(manifest)
    whole.pop("files", None)  # where `manifest` is that of another bundle
    whole |= {"schema_version": SCHEMA_VERSION, "tool": {"name": "profusion", "version": __version__}}
    whole["files"] = described
    text = yaml.dump(whole, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000).encode()
    _check_manifest(_parse_yaml(text))
    entries = {MANIFEST: text} | {file: files[file] for file in described}
    if preview is not None:
        _check_preview(preview)
        entries[PREVIEW] = preview
    digest = hashlib.sha256()
    with atomic_output(target, force) as output:
        for piece in _zip(entries):
            output.write(piece)
            digest.update(piece)
    return digest.hexdigest()


# --- safetensors ------------------------------------------------------------------------------


class _Tensor(NamedTuple):
    name: str
    dtype: str
    shape: list[int]
    start: int  # offsets from the start of the file
    end: int


def describe_tensors(data: Data) -> dict[str, dict[str, Any]]:
    """`{name: {"dtype", "shape"}}` of a safetensors file, in the order of its data.

    Raises:
        ValueError: it is not a safetensors file, or breaks the rules of a bundle.
    """
    return _describe(_layout(data))


def _describe(layout: list[_Tensor]) -> dict[str, dict[str, Any]]:
    return {tensor.name: {"dtype": tensor.dtype, "shape": tensor.shape} for tensor in layout}


def _layout(data: Data) -> list[_Tensor]:
    """The tensors of a safetensors file, which fill it exactly."""
    view = memoryview(data)
    length = int.from_bytes(view[:8], "little")
    if len(view) < 8 or length > min(MAX_HEADER, len(view) - 8):
        raise _Bad(f"the header claims {length} bytes, in a file of {len(view)}")
    try:
        header = json.loads(bytes(view[8 : 8 + length]).decode(), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise _Bad("the safetensors header is not valid JSON") from error
    if not isinstance(header, dict) or view[8:9] != b"{":
        raise _Bad("the safetensors header is not a JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _Bad("the safetensors metadata is not a table of strings")
    if not 0 < len(header) <= MAX_TENSORS:
        raise _Bad(f"it has {len(header)} tensors, and 1 to {MAX_TENSORS} are allowed")
    layout = [_tensor(name, entry, 8 + length) for name, entry in header.items()]
    layout.sort(key=lambda tensor: (tensor.start, tensor.end))
    position = 8 + length
    for tensor in layout:
        if tensor.start != position:
            raise _Bad(f"tensor {_show(tensor.name)} does not start where the one before it ends")
        if tensor.end - tensor.start != math.prod(tensor.shape) * _ITEM_SIZE[tensor.dtype]:
            raise _Bad(f"tensor {_show(tensor.name)} has another size than its shape {_show(tensor.shape)}")
        position = tensor.end
    if position != len(view):
        raise _Bad(f"its tensors end at byte {position}, and the file at byte {len(view)}")
    return layout


def _tensor(name: str, entry: Any, base: int) -> _Tensor:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise _Bad(f"tensor {_show(name)} is not described by dtype, shape and data_offsets")
    offsets = entry["data_offsets"]
    if not _naturals(offsets) or len(offsets) != 2:
        raise _Bad(f"tensor {_show(name)} has the offsets {_show(offsets)}")
    _check_description(name, entry)
    return _Tensor(name, entry["dtype"], entry["shape"], base + offsets[0], base + offsets[1])


def _check_description(name: object, entry: Mapping[str, Any]) -> None:
    """Name, dtype and shape of one tensor, in a header as in the manifest."""
    if not isinstance(name, str) or not 0 < len(name) <= 256 or not name.isprintable():
        raise _Bad(f"{_show(name)} is no name for a tensor")
    if not isinstance(entry["dtype"], str) or entry["dtype"] not in _ITEM_SIZE:
        raise _Bad(f"tensor {_show(name)} has the dtype {_show(entry['dtype'])}, not {'/'.join(_ITEM_SIZE)}")
    if not _naturals(entry["shape"]) or len(entry["shape"]) > 8:
        raise _Bad(f"tensor {_show(name)} has the shape {_show(entry['shape'])}")


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 63 for item in value)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("duplicate key")
    return table


def _find_non_finite(data: Data, layout: list[_Tensor]) -> str | None:
    """Name of the first tensor with an infinity or NaN: numbers whose exponent bits are all set."""
    view = memoryview(data)
    for tensor in layout:
        if tensor.dtype in _EXPONENT:
            unsigned, mask = _EXPONENT[tensor.dtype]
            for start in range(tensor.start, tensor.end, _CHUNK):
                bits = np.frombuffer(view[start : min(start + _CHUNK, tensor.end)], unsigned)
                if (bits & bits.dtype.type(mask)).max() == mask:
                    return tensor.name
    return None


# --- manifest ---------------------------------------------------------------------------------

_YAML_TAG = "tag:yaml.org,2002:"
_PLAIN_TAGS = {_YAML_TAG + tag for tag in ("map", "seq", "str", "int", "float", "bool", "null")}
_NUMBER_TAGS = {_YAML_TAG + "int", _YAML_TAG + "float"}


class _PlainOnly:
    """A YAML loader's part that refuses dates, merge keys, repeated keys and endless numbers."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        if node.tag not in _PLAIN_TAGS:
            raise _Bad(f"has a manifest with {_show(node.value)}, which is not plain data")
        if isinstance(node, yaml.ScalarNode):
            node.value.encode()  # half a surrogate pair is no text
        if node.tag in _NUMBER_TAGS and len(node.value) > 40:
            raise _Bad(f"has a manifest with a number of {len(node.value)} digits")
        return super().construct_object(node, deep)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[str, Any]:
        keys = set()
        for key, _ in node.value:
            if key.tag != _YAML_TAG + "str" or key.value in keys:
                text = key.value if isinstance(key, yaml.ScalarNode) else key.tag
                raise _Bad(f"has a manifest with the key {_show(text)}, which is repeated or not a text")
            keys.add(key.value)
        return super().construct_mapping(node, deep)


class _Loader(_PlainOnly, getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """Plain data, at the speed of libyaml where PyYAML has it."""


class _Dumper(yaml.SafeDumper):
    """Readable YAML without anchors; a tensor takes one line."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_dict(self, data: dict[str, Any]) -> yaml.Node:
        return self.represent_mapping(_YAML_TAG + "map", data, flow_style=set(data) == {"dtype", "shape"})


_Dumper.add_representer(dict, _Dumper.represent_dict)


def _plain(value: Any) -> Any:
    """A copy of `value` made of plain types; bytes of a file name that are no UTF-8 become escapes."""
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if value is None or type(value) in (bool, int, float):
        return value
    raise ValueError(f"{value!r} cannot be written to a manifest")


def _parse_yaml(data: bytes | memoryview) -> Any:
    """Plain data from YAML that is checked for size, depth, aliases and tags before anything is built."""
    if len(data) > MAX_MANIFEST:
        raise _Bad(f"has a manifest of {len(data)} bytes, and {MAX_MANIFEST} are allowed")
    try:
        text, depth = bytes(data).decode("utf-8"), 0
        for event in yaml.parse(text, Loader=_Loader):
            if getattr(event, "anchor", None) is not None:
                raise _Bad("has a manifest with YAML anchors or aliases, which are not allowed")
            if getattr(event, "tag", None) is not None:
                raise _Bad(f"has a manifest with the YAML tag {_show(event.tag)}, which is not allowed")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _MAX_DEPTH:
                raise _Bad(f"has a manifest nested more than {_MAX_DEPTH} deep")
        return yaml.load(text, Loader=_Loader)
    except _Bad:
        raise
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        reason = getattr(error, "problem", None) or "unreadable"
        raise _Bad(f"has a manifest that is not valid YAML in UTF-8 ({_show(reason)[1:-1]})") from error


_MANIFEST_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("tool", "base", "config", "files"), (dict,)),
    **dict.fromkeys(("inputs", "parents"), (list,)),
    "kind": (str,),
    "seed": (int, type(None)),
}


def _check_manifest(manifest: Any) -> None:
    """Keys and types; the contents of base, config and inputs are for those who use them to check."""

    def fail(what: str) -> None:
        raise _Bad(f"has a manifest in which {what}")

    if not isinstance(manifest, dict):
        raise _Bad("has a manifest that is not a table of keys and values")
    version = manifest.get("schema_version")
    if type(version) is not int or version < 1:
        fail(f"schema_version is {_show(version)}, not {SCHEMA_VERSION}")
    if version > SCHEMA_VERSION:
        raise _Bad(
            f"was made by a newer version of profusion (schema {version}, and this one reads {SCHEMA_VERSION})",
            "Upgrade profusion.",
        )
    for key, expected in _MANIFEST_TYPES.items():
        if key not in manifest:
            fail(f"'{key}' is missing")
        if type(manifest[key]) not in expected:
            fail(f"'{key}' is {_show(manifest[key])}")
    if manifest["kind"] not in KINDS:
        fail(f"the kind is {_show(manifest['kind'])}, which is none of {', '.join(KINDS)}")
    if not all(isinstance(manifest["tool"].get(key), str) for key in ("name", "version")):
        fail(f"'tool' is {_show(manifest['tool'])}, without name and version")
    for parent in manifest["parents"]:
        if not isinstance(parent, str) or not _SHA256.fullmatch(parent):
            fail(f"{_show(parent)} among the parents is not a sha256")
    if not manifest["files"]:
        fail("no files are listed")
    for file, entry in manifest["files"].items():
        if file not in FILES:
            fail(f"a file {_show(file)} is listed, which does not belong in a bundle")
        if not isinstance(entry, dict) or set(entry) != {"sha256", "size", "tensors"}:
            fail(f"'{file}' is not described by sha256, size and tensors")
        if not isinstance(entry["sha256"], str) or not _SHA256.fullmatch(entry["sha256"]):
            fail(f"the sha256 of '{file}' is {_show(entry['sha256'])}")
        if not _naturals([entry["size"]]) or not isinstance(entry["tensors"], dict):
            fail(f"the size or the tensors of '{file}' are malformed")
        for tensor, description in entry["tensors"].items():
            if not isinstance(description, dict) or set(description) != {"dtype", "shape"}:
                fail(f"tensor {_show(tensor)} of '{file}' is not described by dtype and shape")
            try:
                _check_description(tensor, description)
            except _Bad as error:
                fail(f"{error}, in '{file}'")


def _check_preview(preview: bytes | memoryview) -> None:
    if len(preview) > MAX_PREVIEW or preview[:8] != _PNG:
        raise _Bad(f"has a '{PREVIEW}' that is not a PNG picture of at most {MAX_PREVIEW >> 20} MiB")


def _read_manifest(entries: dict[str, _Entry]) -> dict[str, Any]:
    """The manifest, with which the names and the order of all entries agree."""
    names = list(entries)
    if names[0] != MANIFEST:
        raise _Bad(f"starts with {_show(names[0])}, and a bundle starts with '{MANIFEST}'")
    entries[MANIFEST].check_crc()
    manifest = _parse_yaml(entries[MANIFEST].data)
    _check_manifest(manifest)
    for name in names:
        if name not in (MANIFEST, *FILES, PREVIEW):
            raise _Bad(f"holds {_show(name)}, which does not belong in a bundle")
    if PREVIEW in names:
        if names.pop() != PREVIEW:
            raise _Bad(f"has its entries in the wrong order: '{PREVIEW}' is not the last")
        _check_preview(entries[PREVIEW].data)
    if set(names[1:]) != set(manifest["files"]):
        raise _Bad(f"holds {names[1:]}, and its manifest lists {list(manifest['files'])}")
    return manifest


def _check_file(file: str, entry: _Entry, manifest: dict[str, Any]) -> list[_Tensor]:
    """The tensors of one entry, as the manifest lists them; their numbers are not looked at yet."""
    listed = manifest["files"][file]
    if listed["size"] != len(entry.data):
        raise _Bad(f"is damaged: '{file}' has {len(entry.data)} bytes, not {listed['size']}")
    try:
        layout = _layout(entry.data)
    except _Bad as error:
        raise _Bad(f"is damaged in '{file}': {error}") from error
    if _describe(layout) != listed["tensors"]:
        raise _Bad(f"is damaged: the tensors in '{file}' are not those that the manifest lists")
    return layout


# --- ZIP --------------------------------------------------------------------------------------

_LOCAL = struct.Struct("<4s5H3L2H")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR64 = struct.Struct("<4sLQL")
_END = struct.Struct("<4s4H2LH")
_FULL = 0xFFFFFFFF  # "see the ZIP64 field"
_ZIP64_FROM = _FULL  # sizes and offsets from here on are written as ZIP64
_DATE_1980 = 1 << 5 | 1


class _Entry(NamedTuple):
    name: str
    data: memoryview
    crc: int

    def check_crc(self) -> None:
        if zlib.crc32(self.data) != self.crc:
            raise _Bad(f"is damaged: the checksum of '{self.name}' is wrong")


def _zip(entries: Mapping[str, bytes | memoryview]) -> Iterator[bytes | memoryview]:
    """The pieces of a ZIP file of stored entries, with nothing in it from the clock or the machine."""
    directory, offset = [], 0
    for name, data in entries.items():
        path, size, crc = name.encode("ascii"), len(data), zlib.crc32(data)
        sizes, where = [size, size] if size >= _ZIP64_FROM else [], [offset] if offset >= _ZIP64_FROM else []
        short = _FULL if sizes else size
        extra, both = _extra64(sizes), _extra64(sizes + where)
        common = (0, 0, 0, _DATE_1980, crc, short, short, len(path))
        version, central = (45 if extra else 20), (45 if both else 20)
        yield _LOCAL.pack(b"PK\x03\x04", version, *common, len(extra)) + path + extra
        yield data
        made_on, mode = 3 << 8 | 45, 0o100644 << 16
        short_offset = _FULL if where else offset
        record = (b"PK\x01\x02", made_on, central, *common, len(both), 0, 0, 0, mode, short_offset)
        directory.append(_CENTRAL.pack(*record) + path + both)
        offset += _LOCAL.size + len(path) + len(extra) + size
    records, count = b"".join(directory), len(entries)
    yield records
    if offset >= _ZIP64_FROM:
        end = offset + len(records)
        yield _END64.pack(b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, len(records), offset)
        yield _LOCATOR64.pack(b"PK\x06\x07", 0, end, 1)
        offset = _FULL
    yield _END.pack(b"PK\x05\x06", 0, 0, count, count, len(records), offset, 0)


def _extra64(values: list[int]) -> bytes:
    return struct.pack(f"<2H{len(values)}Q", 1, 8 * len(values), *values) if values else b""


def _unzip(view: memoryview) -> dict[str, _Entry]:
    """The stored entries of a ZIP file of which every byte is accounted for, in their order."""
    if not looks_like_bundle(view):
        raise _Bad("is truncated or not a bundle")
    try:
        return _walk(view)
    except struct.error:
        raise _Bad("is truncated or not a bundle") from None


def _walk(view: memoryview) -> dict[str, _Entry]:
    at, end, count = _find_directory(view)
    entries: dict[str, _Entry] = {}
    position, directory = 0, at
    for _ in range(count):
        magic, _, _, *common, path_length, extra_length = (record := _CENTRAL.unpack_from(view, at))[:12]
        comment, disk, _, _, offset = record[12:]
        flags, method, _, _, crc, *sizes = common
        path = bytes(view[at + _CENTRAL.size : at + _CENTRAL.size + path_length])
        name = path.decode("latin-1")
        at += _CENTRAL.size + path_length + extra_length
        if magic != b"PK\x01\x02" or comment or disk or at > end:
            raise _Bad("has a damaged ZIP directory")
        if flags & 1:
            raise _Bad(f"holds the encrypted entry {_show(name)}")
        if method or flags:
            raise _Bad(f"holds {_show(name)} compressed or in another special way, and bundles only store")
        if name in entries:
            raise _Bad(f"holds {_show(name)} twice")
        *sizes, offset = _resolve64([*sizes, offset], view[at - extra_length : at])
        magic, _, *local, local_path, local_extra = _LOCAL.unpack_from(view, position)
        start = position + _LOCAL.size + local_path
        local[-2:] = _resolve64(local[-2:], view[start : start + local_extra])
        if magic != b"PK\x03\x04" or offset != position or view[position + _LOCAL.size : start] != path:
            raise _Bad(f"has something between its entries, before {_show(name)}")
        if local != [*common[:-2], *sizes] or sizes[0] != sizes[1]:
            raise _Bad(f"describes its entry {_show(name)} in two different ways")
        start += local_extra
        position = start + sizes[0]
        if position > directory:
            raise _Bad(f"is truncated or damaged: {_show(name)} reaches into what follows it")
        entries[name] = _Entry(name, view[start:position], crc)
    if position != directory or at != end:
        raise _Bad("has something between its entries and its directory, or after that")
    return entries


def _find_directory(view: memoryview) -> tuple[int, int, int]:
    """Start, end and number of entries of the directory, which the end record follows at once."""
    at = len(view) - _END.size
    if at < 0:
        raise _Bad("is truncated or not a bundle")
    magic, *numbers = _END.unpack_from(view, at)
    if magic != b"PK\x05\x06" or numbers[-1]:
        raise _Bad("is truncated or has something added at its end")
    if view[max(at - _LOCATOR64.size, 0) :][:4] == b"PK\x06\x07":
        locator = _LOCATOR64.unpack_from(view, at - _LOCATOR64.size)
        at -= _LOCATOR64.size + _END64.size
        if at < 0 or locator[1:] != (0, at, 1):
            raise _Bad("has a damaged ZIP64 end record")
        magic, length, _, _, *wide = _END64.unpack_from(view, at)
        limits = (0xFFFF, 0xFFFF, 0xFFFF, 0xFFFF, _FULL, _FULL)
        if (magic, length) != (b"PK\x06\x06", 44) or any(
            short not in (limit, value) for short, value, limit in zip(numbers, wide, limits, strict=False)
        ):
            raise _Bad("has a damaged ZIP64 end record")
        numbers = wide
    disk, first_disk, here, count, size, start = numbers[:6]
    if disk or first_disk or here != count or start + size != at:
        raise _Bad("has a damaged ZIP directory, or something before its start")
    if not 1 < count <= _MAX_ENTRIES:
        raise _Bad(f"holds {count} entries, and 2 to {_MAX_ENTRIES} are allowed")
    return start, at, count


def _resolve64(values: list[int], extra: memoryview) -> list[int]:
    """`values`, those that are full replaced by the numbers of the ZIP64 field, the only one allowed."""
    wide = [index for index, value in enumerate(values) if value == _FULL]
    if len(extra) != (4 + 8 * len(wide) if wide else 0):
        raise _Bad("has a ZIP entry with unknown extra fields")
    if wide:
        head, size, *numbers = struct.unpack(f"<2H{len(wide)}Q", extra)
        if (head, size) != (1, 8 * len(wide)):
            raise _Bad("has a ZIP entry with unknown extra fields")
        for index, number in zip(wide, numbers, strict=True):
            values[index] = number
    return values
