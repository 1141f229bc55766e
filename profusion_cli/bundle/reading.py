"""Reading a bundle: all of it is verified before any of it is used."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from profusion_cli.bundle.container import read_entries
from profusion_cli.bundle.kinds import FILES, KINDS
from profusion_cli.bundle.manifest import MANIFEST, PREVIEW, check_manifest, check_preview
from profusion_cli.bundle.plain_yaml import parse_plain
from profusion_cli.bundle.refusal import AGAIN, Refused, show
from profusion_cli.bundle.tensors import Data, find_non_finite, layout
from profusion_cli.errors import BundleError
from profusion_cli.files import atomic_output, sha256_of


@dataclass(frozen=True, eq=False)
class Bundle:
    """A verified bundle; its tensors stay where they were read from."""

    name: str
    sha256: str
    size: int
    manifest: dict[str, Any] = field(repr=False)
    preview: bytes | None = field(repr=False)
    data: memoryview = field(repr=False)
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
            raise BundleError(f"'{self.name}' has no '{file_name}', which is needed here.", AGAIN)
        return self._entries[file_name]

    def shapes(self, file_name: str) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Dtype (of safetensors) and shape of each tensor in one safetensors entry; nothing is loaded."""
        self.read(file_name)
        listed = self.manifest["files"][file_name]["tensors"]
        return {name: (described["dtype"], tuple(described["shape"])) for name, described in listed.items()}

    def save(self, target: str | Path, force: bool = False) -> None:
        """Write it as a file; `-` is standard output.

        Raises:
            OutputError: the target exists (without `force`) or cannot be written.
        """
        with atomic_output(target, force) as output:
            output.write(self.data)

    def require(self, kind: str) -> Bundle:
        """This bundle, if it is of `kind`.

        Raises:
            BundleError: it is of another kind.
        """
        if self.kind != kind:
            needed, own = KINDS[kind], KINDS[self.kind]
            raise BundleError(
                f"'{self.name}' holds {own.holds}, and {needed.holds} {needed.verb} needed here.",
                f"{needed.holds[0].upper()}{needed.holds[1:]} {needed.verb} made by {needed.made_by}, and this file "
                f"is for {own.taken_by}.",
            )
        return self


def read_bundle(data: Data, name: str) -> Bundle:
    """Verify all of `data`, called `name` by the user.

    Raises:
        BundleError: it is not a bundle, damaged, tampered with, or from a newer version.
    """
    view = memoryview(data)
    try:
        entries = read_entries(view)
        manifest = _read_manifest(entries)
        for file, listed in manifest["files"].items():
            _check_file(file, entries[file], listed)
    except Refused as error:
        raise BundleError(f"'{name}' {error}.", error.hint) from None
    return _bundle(view, name, entries, manifest)


def unpack(view: memoryview, name: str) -> Bundle:
    """A bundle that has just been made, and needs no check."""
    entries = read_entries(view)
    return _bundle(view, name, entries, parse_plain(entries[MANIFEST]))


def _bundle(view: memoryview, name: str, entries: dict[str, memoryview], manifest: dict[str, Any]) -> Bundle:
    preview = bytes(entries[PREVIEW]) if PREVIEW in entries else None
    files = {file: entries[file] for file in manifest["files"]}
    return Bundle(name, sha256_of(view), len(view), manifest, preview, view, files)


def _read_manifest(entries: dict[str, memoryview]) -> dict[str, Any]:
    """The manifest, with which the names and the order of all entries agree."""
    names = list(entries)
    if names[0] != MANIFEST:
        raise Refused(f"starts with {show(names[0])}, and a bundle starts with '{MANIFEST}'")
    manifest = parse_plain(entries[MANIFEST])
    check_manifest(manifest)
    for name in names:
        if name not in (MANIFEST, *FILES, PREVIEW):
            raise Refused(f"holds {show(name)}, which does not belong in a bundle")
    if PREVIEW in names:
        if names.pop() != PREVIEW:
            raise Refused(f"has its entries in the wrong order: '{PREVIEW}' is not the last")
        check_preview(entries[PREVIEW])
    if manifest.get("preview") != (sha256_of(entries[PREVIEW]) if PREVIEW in entries else None):
        raise Refused(f"is damaged: '{PREVIEW}' is not the one that the manifest names")
    if set(names[1:]) != set(manifest["files"]):
        raise Refused(f"holds {names[1:]}, and its manifest lists {list(manifest['files'])}")
    return manifest


def _check_file(file: str, data: memoryview, listed: dict[str, Any]) -> None:
    """The contents of one entry are what the manifest lists."""
    if listed["size"] != len(data):
        raise Refused(f"is damaged: '{file}' has {len(data)} bytes, not {listed['size']}")
    try:
        described, contents = layout(data)
    except Refused as error:
        raise Refused(f"is damaged in '{file}': {error}") from error
    for tensor in described | listed["tensors"]:
        held, told = described.get(tensor), listed["tensors"].get(tensor)
        if json.dumps(held, sort_keys=True) != json.dumps(told, sort_keys=True):  # to which 5, 5.0 and True differ
            words = f"tensor {show(tensor)} in '{file}' is {show(held)}, and {show(told)} in the manifest"
            raise Refused(f"is damaged: {words}")
    if sha256_of(data) != listed["sha256"]:
        raise Refused(f"is damaged: '{file}' does not have the sha256 that the manifest gives")
    if tensor := find_non_finite(described, contents):
        raise Refused(f"has non-finite numbers in tensor {show(tensor)} of '{file}'")
