"""Bundles (`.pfz`): one ZIP of stored entries, read and written without trusting a single byte.

The entries, in this order: `manifest.yaml`, one or more `*.safetensors`, and maybe `preview.png`.
`zipfile` writes the ZIP and reads its directory; where that directory says things lie is checked
here, so that every byte of the file is accounted for (nothing before, between or after the entries).
Nothing is executed, and nothing goes to the disk.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import mmap
import re
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from profusion_cli import __version__
from profusion_cli.errors import BundleError, DivergedError
from profusion_cli.files import atomic_output, sha256_of

SCHEMA_VERSION = 1
KINDS = ("promptnet", "images", "subject")
MANIFEST = "manifest.yaml"
PREVIEW = "preview.png"
WORD = "word.safetensors"
FILES = ("promptnet.safetensors", "unet.safetensors", "views.safetensors", "images.safetensors", WORD)

MAX_MANIFEST = 1 << 20
MAX_PREVIEW = 64 << 20
MAX_HEADER = 16 << 20
MAX_TENSORS = 20_000
_MAX_ENTRIES = 16  # more than this version knows, so that a newer one can be told from a damaged one
_MAX_DEPTH = 32
_CHUNK = 1 << 20
_ITEM_SIZE = {"F32": 4, "F16": 2, "BF16": 2, "I64": 8, "U8": 1}
_EXPONENT = {"F32": ("<u4", 0x7F800000), "F16": ("<u2", 0x7C00), "BF16": ("<u2", 0x7F80)}
_PNG = b"\x89PNG\r\n\x1a\n"

_AGAIN = "Copy or download it again, or make it again with profusion."
_NEEDED = {"promptnet": FILES[:1], "images": FILES[3:4], "subject": ("promptnet.safetensors", "views.safetensors")}
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
        for file, listed in manifest["files"].items():
            _check_file(file, entries[file], listed)
    except _Bad as error:
        raise BundleError(f"'{name}' {error}.", error.hint) from None
    preview = bytes(entries[PREVIEW]) if PREVIEW in entries else None
    files = {file: entries[file] for file in manifest["files"]}
    return Bundle(name, sha256_of(view), len(view), manifest, preview, files)


def write_bundle(
    target: str | Path,
    manifest: Mapping[str, Any],
    files: Mapping[str, bytes | memoryview],
    preview: bytes | None = None,
    force: bool = False,
) -> str:
    """Write a bundle to `target` (`-` for standard output) and return the sha256 of the whole file.

    `manifest` holds kind, base, config, seed, inputs and parents, and what else its kind needs;
    schema_version, tool and files are filled in. The same content gives the same bytes, on any
    machine at any time.

    Raises:
        DivergedError: the weights contain non-finite numbers.
        OutputError: the target exists (without `force`) or cannot be written.
        ValueError: the caller's mistake: unknown kind or file name, not safetensors, odd values.
    """
    if unknown := set(files) - set(FILES):
        raise ValueError(f"no bundle holds files named {sorted(unknown)}")
    listed: dict[str, Any] = {}
    for file in sorted(files, key=FILES.index):
        described, contents = _layout(files[file])
        if tensor := _find_non_finite(described, contents):
            raise DivergedError(
                f"The weights of '{file}' contain non-finite numbers (tensor '{tensor}').",
                "Nothing was written: lower the learning rate or use a wider --dtype, and run it again.",
            )
        listed[file] = {"sha256": sha256_of(files[file]), "size": len(files[file]), "tensors": described}
    tool = {"name": "profusion", "version": __version__}
    whole = {"schema_version": SCHEMA_VERSION, "kind": manifest.get("kind"), "tool": tool}
    whole |= {key: value for key, value in manifest.items() if key not in (*whole, "files", "preview")}
    whole |= {"files": listed} | ({} if preview is None else {"preview": sha256_of(preview)})
    try:
        text = yaml.dump(whole, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000).encode()
    except yaml.YAMLError as error:
        raise ValueError(f"the manifest cannot be written: {error}") from error
    _check_manifest(_parse_yaml(text))
    entries = {MANIFEST: text} | {file: files[file] for file in listed}
    if preview is not None:
        _check_preview(preview)
        entries[PREVIEW] = preview
    with atomic_output(target, force) as output:
        with zipfile.ZipFile(output, "w") as archive:
            for name, data in entries.items():  # with nothing from the clock or the machine
                info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
                info.create_system, info.external_attr = 3, 0o100644 << 16
                archive.writestr(info, data)
        output.seek(0)
        return hashlib.file_digest(output, "sha256").hexdigest()


# --- safetensors ------------------------------------------------------------------------------


def _layout(data: Data) -> tuple[dict[str, dict[str, Any]], dict[str, memoryview]]:
    """The tensors of a safetensors file, which fill it exactly: dtype and shape of each, and its bytes."""
    view = memoryview(data)
    length = int.from_bytes(view[:8], "little")
    if len(view) < 8 or length > min(MAX_HEADER, len(view) - 8):
        raise _Bad(f"the header claims {length} bytes, in a file of {len(view)}")
    try:
        header = json.loads(bytes(view[8 : 8 + length]).decode(), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise _Bad("the safetensors header is not valid JSON") from error
    if view[8:9] != b"{":
        raise _Bad("the safetensors header is not a JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _Bad("the safetensors metadata is not a table of strings")
    if not 0 < len(header) <= MAX_TENSORS:
        raise _Bad(f"it has {len(header)} tensors, and 1 to {MAX_TENSORS} are allowed")
    for name, entry in header.items():
        shown = _show(name)
        if not 0 < len(name) <= 256 or not name.isprintable():
            raise _Bad(f"{shown} is no name for a tensor")
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise _Bad(f"tensor {shown} is not described by dtype, shape and data_offsets")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or dtype not in _ITEM_SIZE:
            raise _Bad(f"tensor {shown} has the dtype {_show(dtype)}, not {'/'.join(_ITEM_SIZE)}")
        if not _naturals(shape) or len(shape) > 8:
            raise _Bad(f"tensor {shown} has the shape {_show(shape)}")
        if not _naturals(offsets) or len(offsets) != 2:
            raise _Bad(f"tensor {shown} has the offsets {_show(offsets)}")
    described, contents, position = {}, {}, 8 + length
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        start, end = (8 + length + offset for offset in entry.pop("data_offsets"))
        if start != position:
            raise _Bad(f"tensor {_show(name)} does not start where the one before it ends")
        if end - start != math.prod(entry["shape"]) * _ITEM_SIZE[entry["dtype"]]:
            raise _Bad(f"tensor {_show(name)} has another size than its shape {_show(entry['shape'])}")
        described[name] = {"dtype": entry["dtype"], "shape": entry["shape"]}
        contents[name] = view[start:end]
        position = end
    if position != len(view):
        raise _Bad(f"its tensors end at byte {position}, and the file at byte {len(view)}")
    return described, contents


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 63 for item in value)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("duplicate key")
    return table


def _find_non_finite(described: dict[str, dict[str, Any]], contents: dict[str, memoryview]) -> str | None:
    """Name of the first tensor with an infinity or NaN: numbers whose exponent bits are all set."""
    for name, data in contents.items():
        unsigned, mask = _EXPONENT.get(described[name]["dtype"], ("", 0))
        for start in range(0, len(data) if mask else 0, _CHUNK):
            if (np.frombuffer(data[start : start + _CHUNK], unsigned) & mask).max() == mask:
                return name
    return None


# --- manifest ---------------------------------------------------------------------------------

_YAML_TAG = "tag:yaml.org,2002:"
_TOO_DEEP = f"has a manifest nested more than {_MAX_DEPTH} deep"
_PLAIN_TAGS = {_YAML_TAG + tag for tag in ("map", "seq", "str", "int", "float", "bool", "null")}


class _PlainOnly:
    """A YAML loader's part that refuses dates, merge keys, repeated keys and endless numbers."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        if node.tag not in _PLAIN_TAGS:
            raise _Bad(f"has a manifest with {_show(node.value)}, which is not plain data")
        if isinstance(node, yaml.MappingNode):
            keys = [key.value for key, _ in node.value if key.tag == _YAML_TAG + "str"]
            if len(set(keys)) < len(node.value):
                raise _Bad("has a manifest with a key that is repeated or not a text")
        elif isinstance(node, yaml.ScalarNode):
            node.value.encode()  # half a surrogate pair is no text
            if node.tag != _YAML_TAG + "str" and len(node.value) > 40:
                raise _Bad(f"has a manifest with a number of {len(node.value)} digits")
        return super().construct_object(node, deep)


class _Loader(_PlainOnly, getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """Plain data, at the speed of libyaml where PyYAML has it."""


class _Dumper(yaml.SafeDumper):
    """Readable YAML without anchors; a tensor takes one line."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_dict(self, data: dict[str, Any]) -> yaml.Node:
        return self.represent_mapping(_YAML_TAG + "map", data, flow_style=set(data) == {"dtype", "shape"})

    def represent_str(self, data: str) -> yaml.Node:
        """Bytes of a file name that are no UTF-8 become escapes."""
        return super().represent_str(data.encode("utf-8", "backslashreplace").decode())


for _add in (_Dumper.add_representer, _Dumper.add_multi_representer):  # the types, and their subclasses
    _add(dict, _Dumper.represent_dict)
    _add(str, _Dumper.represent_str)


def _parse_yaml(data: bytes | memoryview) -> Any:
    """Plain data from YAML that is checked for size, depth, aliases and tags before anything is built."""
    if len(data) > MAX_MANIFEST:
        raise _Bad(f"has a manifest of {len(data)} bytes, and {MAX_MANIFEST} are allowed")
    try:
        text = bytes(data).decode("utf-8")
    except UnicodeDecodeError as error:
        raise _Bad("has a manifest that is not UTF-8") from error
    depth = 0
    try:
        for event in yaml.parse(text, Loader=_Loader):
            if getattr(event, "anchor", None) is not None:
                raise _Bad("has a manifest with YAML anchors or aliases, which are not allowed")
            if getattr(event, "tag", None) is not None:
                raise _Bad(f"has a manifest with the YAML tag {_show(event.tag)}, which is not allowed")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _MAX_DEPTH:
                raise _Bad(_TOO_DEEP)
        return yaml.load(text, Loader=_Loader)
    except _Bad:
        raise
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        if isinstance(error, RecursionError) or _open_brackets(text, error) > _MAX_DEPTH:
            raise _Bad(_TOO_DEEP) from error
        reason = getattr(error, "problem", None) or "unreadable"
        raise _Bad(f"has a manifest that is not valid YAML ({_show(reason)[1:-1]})") from error


def _open_brackets(text: str, error: Exception) -> int:
    """How many brackets are open where PyYAML gave up: libyaml looks ahead of the events, up to a limit of its own."""
    mark = getattr(error, "problem_mark", None)
    before = text[: mark.index] if mark else ""
    return sum(before.count(opening) - before.count(closing) for opening, closing in ("[]", "{}"))


_SECTIONS = {"kind": str, "tool": dict, "base": dict, "config": dict, "seed": int | None}
_SECTIONS |= {"inputs": list, "parents": list, "files": dict}


def _check_manifest(manifest: Any) -> None:
    """All that other code relies on, but for the tensors; what else it says is for people to read."""

    def need(condition: bool, otherwise: str) -> None:
        if not condition:
            raise _Bad(f"has a manifest in which {otherwise}")

    def are_texts(table: Any, *keys: str) -> bool:
        return isinstance(table, dict) and all(isinstance(table.get(key), str) for key in keys)

    if not isinstance(manifest, dict):
        raise _Bad("has a manifest that is not a table of keys and values")
    version = manifest.get("schema_version")
    need(type(version) is int and version > 0, f"schema_version is {_show(version)}, not {SCHEMA_VERSION}")
    if version > SCHEMA_VERSION:
        newer = f"was made by a newer version of profusion (schema {version}, and this one reads {SCHEMA_VERSION})"
        raise _Bad(newer, "Upgrade profusion.")
    for key, expected in _SECTIONS.items():
        need(key in manifest, f"'{key}' is missing")
        fits = isinstance(manifest[key], expected) and not isinstance(manifest[key], bool)
        need(fits, f"'{key}' is {_show(manifest[key])}")
    kind, tool, base, files = (manifest[key] for key in ("kind", "tool", "base", "files"))
    need(kind in KINDS, f"the kind is {_show(kind)}, which is none of {', '.join(KINDS)}")
    need(are_texts(tool, "name", "version"), f"'tool' is {_show(tool)}, without name or version")
    for key in ("id", "revision"):
        need(isinstance(base.get(key, 0), str | None), f"the {key} of 'base' is missing or no text")
    prints = base.get("fingerprint")
    known = isinstance(prints, dict) and all(_is_hex(digits, 16) for digits in prints.values())
    need(known, f"the fingerprint of 'base' is {_show(prints)}, not 16 digits for each part")
    for item in manifest["inputs"]:
        known = are_texts(item, "kind", "name") and _is_hex(item.get("sha256"), 64)
        need(known, f"{_show(item)} among the inputs lacks a kind, a name or a sha256")
    for parent in manifest["parents"]:
        need(_is_hex(parent, 64), f"{_show(parent)} among the parents is not a sha256")
    need(bool(files), "no files are listed")
    for file, entry in files.items():
        need(file in FILES, f"a file {_show(file)} is listed, which does not belong in a bundle")
        complete = isinstance(entry, dict) and set(entry) == {"sha256", "size", "tensors"}
        need(complete, f"'{file}' is not described by sha256, size and tensors")
        need(_is_hex(entry["sha256"], 64), f"the sha256 of '{file}' is {_show(entry['sha256'])}")
        known = _naturals([entry["size"]]) and isinstance(entry["tensors"], dict)
        need(known, f"the size or the tensors of '{file}' are malformed")
    is_word = kind == "subject" and WORD in files
    for file in () if is_word else _NEEDED[kind]:
        need(file in files, f"'{file}' is not listed, which the kind '{kind}' needs")
    if kind != "images" and not is_word:
        need(isinstance(manifest.get("promptnet"), dict), f"'promptnet' is no table, which the kind '{kind}' needs")
    if kind == "subject":
        need(are_texts(manifest["config"], "class_word"), "the class_word in 'config' is missing or no text")


def _is_hex(value: Any, digits: int) -> bool:
    return isinstance(value, str) and re.fullmatch(f"[0-9a-f]{{{digits}}}", value) is not None


def _check_preview(preview: bytes | memoryview) -> None:
    if len(preview) > MAX_PREVIEW or preview[:8] != _PNG:
        raise _Bad(f"has a '{PREVIEW}' that is not a PNG picture of at most {MAX_PREVIEW >> 20} MiB")


def _read_manifest(entries: dict[str, memoryview]) -> dict[str, Any]:
    """The manifest, with which the names and the order of all entries agree."""
    names = list(entries)
    if names[0] != MANIFEST:
        raise _Bad(f"starts with {_show(names[0])}, and a bundle starts with '{MANIFEST}'")
    manifest = _parse_yaml(entries[MANIFEST])
    _check_manifest(manifest)
    for name in names:
        if name not in (MANIFEST, *FILES, PREVIEW):
            raise _Bad(f"holds {_show(name)}, which does not belong in a bundle")
    if PREVIEW in names:
        if names.pop() != PREVIEW:
            raise _Bad(f"has its entries in the wrong order: '{PREVIEW}' is not the last")
        _check_preview(entries[PREVIEW])
    if manifest.get("preview") != (sha256_of(entries[PREVIEW]) if PREVIEW in entries else None):
        raise _Bad(f"is damaged: '{PREVIEW}' is not the one that the manifest names")
    if set(names[1:]) != set(manifest["files"]):
        raise _Bad(f"holds {names[1:]}, and its manifest lists {list(manifest['files'])}")
    return manifest


def _check_file(file: str, data: memoryview, listed: dict[str, Any]) -> None:
    """The contents of one entry are what the manifest lists."""
    if listed["size"] != len(data):
        raise _Bad(f"is damaged: '{file}' has {len(data)} bytes, not {listed['size']}")
    try:
        described, contents = _layout(data)
    except _Bad as error:
        raise _Bad(f"is damaged in '{file}': {error}") from error
    for tensor in described | listed["tensors"]:
        held, told = described.get(tensor), listed["tensors"].get(tensor)
        if json.dumps(held, sort_keys=True) != json.dumps(told, sort_keys=True):  # to which 5, 5.0 and True differ
            words = f"tensor {_show(tensor)} in '{file}' is {_show(held)}, and {_show(told)} in the manifest"
            raise _Bad(f"is damaged: {words}")
    if sha256_of(data) != listed["sha256"]:
        raise _Bad(f"is damaged: '{file}' does not have the sha256 that the manifest gives")
    if tensor := _find_non_finite(described, contents):
        raise _Bad(f"has non-finite numbers in tensor {_show(tensor)} of '{file}'")


# --- ZIP --------------------------------------------------------------------------------------

_LOCAL = struct.Struct("<4sH12s2L2H")  # magic, version, what the directory repeats, sizes, lengths
_CENTRAL_SIZE = 46
_END64 = struct.Struct("<4sQ2H2L4Q4sLQL")  # with the locator behind it
_END = struct.Struct("<4s4H2LH")
_FULL = 0xFFFFFFFF  # "see the ZIP64 field"
_MAX_DIRECTORY = 1 << 14
_LOOSE = "has a damaged ZIP directory, or something between its entries and its directory, or after that"


def _unzip(view: memoryview) -> dict[str, memoryview]:
    """The stored entries of a ZIP file of which every byte is accounted for, in their order."""
    if len(view) < _END.size or not looks_like_bundle(view):
        raise _Bad("is truncated or not a bundle")
    magic, *_, count, _, _, comment = _END.unpack(view[-_END.size :])
    if magic != b"PK\x05\x06" or comment:
        raise _Bad("is truncated or has something added at its end")
    if not 1 < count <= _MAX_ENTRIES:
        raise _Bad(f"holds {count} entries, and 2 to {_MAX_ENTRIES} are allowed")
    before = max(len(view) - _MAX_DIRECTORY, 0)  # `zipfile` sees no more than a directory may take
    try:
        with zipfile.ZipFile(io.BytesIO(view[before:])) as archive:
            infos, directory = archive.infolist(), before + archive.start_dir
    except (zipfile.BadZipFile, NotImplementedError, struct.error, ValueError, OverflowError) as error:
        raise _Bad(_LOOSE) from error
    entries: dict[str, memoryview] = {}
    position, at = 0, directory
    for info in infos:
        if info.filename in entries:
            raise _Bad(f"holds {_show(info.filename)} twice")
        info.header_offset += before
        start, at = _check_headers(view, info, position, at)
        position = start + info.file_size
        if position > directory:
            raise _Bad(f"is truncated or damaged: {_show(info.filename)} reaches into what follows it")
        entries[info.filename] = view[start:position]
        if zlib.crc32(entries[info.filename]) != info.CRC:
            raise _Bad(f"is damaged: the checksum of {_show(info.filename)} is wrong")
    total = len(infos), len(infos), at - directory
    end = _END.pack(b"PK\x05\x06", 0, 0, *total, min(directory, _FULL), 0)
    if len(view) > at + _END.size:
        end = _END64.pack(b"PK\x06\x06", 44, 45, 45, 0, 0, *total, directory, b"PK\x06\x07", 0, at, 1) + end
    if position != directory or view[at:] != end:
        raise _Bad(_LOOSE)
    return entries


def _check_headers(view: memoryview, info: zipfile.ZipInfo, position: int, at: int) -> tuple[int, int]:
    """An entry's own header at `position` agrees with its record at `at`: the ends of both."""
    path, size, shown = info.filename.encode(), info.file_size, _show(info.filename)
    if info.flag_bits & 1:
        raise _Bad(f"holds the encrypted entry {shown}")
    if info.flag_bits or info.compress_type:
        raise _Bad(f"holds {shown} compressed or in another special way, and bundles only store")
    magic, _, common, *sizes, path_length, extra_length = _LOCAL.unpack_from(view, position)
    if magic != b"PK\x03\x04" or info.header_offset != position:
        raise _Bad(f"has something between its entries, before {shown}")
    start = position + _LOCAL.size + path_length
    end = start + extra_length
    extras = [b"", _field64(size, size), _field64(position), _field64(size, size, position)]
    if view[start:end] not in extras[:2] or info.extra not in extras:
        raise _Bad(f"has unknown extra fields with its entry {shown}")
    if struct.unpack_from("<3H", view, at + 28) != (len(path), len(info.extra), 0) or info.volume:
        raise _Bad(_LOOSE)
    if sizes == [_FULL, _FULL] and extra_length:
        sizes = [size, size]
    own = [view[position + _LOCAL.size : start], common, info.compress_size, *sizes]
    if own != [path, view[at + 8 : at + 20], size, size, size]:
        raise _Bad(f"describes its entry {shown} in two different ways")
    return end, at + _CENTRAL_SIZE + len(path) + len(info.extra)


def _field64(*numbers: int) -> bytes:
    """The ZIP64 field, in which numbers stand that may need 64 bits."""
    return struct.pack(f"<2H{len(numbers)}Q", 1, 8 * len(numbers), *numbers)
