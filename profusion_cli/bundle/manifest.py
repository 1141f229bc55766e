"""The manifest of a bundle: all in it that other code relies on."""

from __future__ import annotations

import re
from typing import Any

from profusion_cli.bundle.kinds import ADAPTERS_FILE, FILES, KINDS, PROMPTNET_FILE
from profusion_cli.bundle.refusal import Refused, show
from profusion_cli.bundle.tensors import are_naturals

SCHEMA_VERSION = 2
"""The newest; the first is that of all bundles without adapters."""
MANIFEST = "manifest.yaml"
PREVIEW = "preview.png"
PARENT = "promptnet_fingerprint"
"""Of the PromptNet that adapters are for, where it is not in the bundle."""
MAX_PREVIEW = 64 << 20
_PNG = b"\x89PNG\r\n\x1a\n"
_SECTIONS = {"kind": str, "tool": dict, "base": dict, "config": dict, "seed": int | None}
_SECTIONS |= {"inputs": list, "parents": list, "files": dict}


def check_manifest(manifest: Any) -> None:
    """All that other code relies on, but for the tensors; what else it says is for people to read.

    Raises:
        Refused: something is missing, malformed, or from a newer version.
    """
    if not isinstance(manifest, dict):
        raise Refused("has a manifest that is not a table of keys and values")
    version = manifest.get("schema_version")
    _need(type(version) is int and version > 0, f"schema_version is {show(version)}, not 1 to {SCHEMA_VERSION}")
    if version > SCHEMA_VERSION:
        newer = f"was made by a newer version of profusion (schema {version}, and this one reads {SCHEMA_VERSION})"
        raise Refused(newer, "Upgrade profusion.")
    for key, expected in _SECTIONS.items():
        _need(key in manifest, f"'{key}' is missing")
        fits = isinstance(manifest[key], expected) and not isinstance(manifest[key], bool)
        _need(fits, f"'{key}' is {show(manifest[key])}")
    _check_origin(manifest)
    _check_files(manifest["files"])
    _check_kind(manifest)


def _check_origin(manifest: dict[str, Any]) -> None:
    """What it was made by, on and from."""
    tool, base = manifest["tool"], manifest["base"]
    _need(_are_texts(tool, "name", "version"), f"'tool' is {show(tool)}, without name or version")
    for key in ("id", "revision"):
        _need(isinstance(base.get(key, 0), str | None), f"the {key} of 'base' is missing or no text")
    prints = base.get("fingerprint")
    known = isinstance(prints, dict) and all(_is_hex(digits, 16) for digits in prints.values())
    _need(known, f"the fingerprint of 'base' is {show(prints)}, not 16 digits for each part")
    for item in manifest["inputs"]:
        known = _are_texts(item, "kind", "name") and _is_hex(item.get("sha256"), 64)
        _need(known, f"{show(item)} among the inputs lacks a kind, a name or a sha256")
    for parent in manifest["parents"]:
        _need(_is_hex(parent, 64), f"{show(parent)} among the parents is not a sha256")


def _check_files(files: dict[str, Any]) -> None:
    _need(bool(files), "no files are listed")
    for file, entry in files.items():
        _need(file in FILES, f"a file {show(file)} is listed, which does not belong in a bundle")
        complete = isinstance(entry, dict) and set(entry) == {"sha256", "size", "tensors"}
        _need(complete, f"'{file}' is not described by sha256, size and tensors")
        _need(_is_hex(entry["sha256"], 64), f"the sha256 of '{file}' is {show(entry['sha256'])}")
        known = are_naturals([entry["size"]]) and isinstance(entry["tensors"], dict)
        _need(known, f"the size or the tensors of '{file}' are malformed")


def _check_kind(manifest: dict[str, Any]) -> None:
    """What its kind needs."""
    name, files = manifest["kind"], manifest["files"]
    _need(name in KINDS, f"the kind is {show(name)}, which is none of {', '.join(KINDS)}")
    kind = KINDS[name]
    needed = next((option for option in kind.needs if set(option) <= set(files)), kind.needs[0])
    for file in needed:
        _need(file in files, f"'{file}' is not listed, which the kind '{name}' needs")
    if PROMPTNET_FILE in needed:
        _need(isinstance(manifest.get("promptnet"), dict), f"'promptnet' is no table, which the kind '{name}' needs")
    if ADAPTERS_FILE in needed:
        digits = manifest.get(PARENT)
        _need(_is_hex(digits, 16), f"'{PARENT}' is {show(digits)}, which adapters of a PromptNet need")
    for key in kind.config:
        _need(_are_texts(manifest["config"], key), f"the {key} in 'config' is missing or no text")


def _need(condition: bool, otherwise: str) -> None:
    if not condition:
        raise Refused(f"has a manifest in which {otherwise}")


def _are_texts(table: Any, *keys: str) -> bool:
    return isinstance(table, dict) and all(isinstance(table.get(key), str) for key in keys)


def _is_hex(value: Any, digits: int) -> bool:
    return isinstance(value, str) and re.fullmatch(f"[0-9a-f]{{{digits}}}", value) is not None


def check_preview(preview: bytes | memoryview) -> None:
    """It looks like a PNG picture of a bearable size.

    Raises:
        Refused: it does not.
    """
    if len(preview) > MAX_PREVIEW or preview[:8] != _PNG:
        raise Refused(f"has a '{PREVIEW}' that is not a PNG picture of at most {MAX_PREVIEW >> 20} MiB")
