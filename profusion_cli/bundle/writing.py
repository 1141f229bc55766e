"""Making a bundle: the same content gives the same bytes, on any machine at any time."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from profusion_cli import __version__
from profusion_cli.bundle.container import write_entries
from profusion_cli.bundle.kinds import ADAPTERS_FILE, FILES
from profusion_cli.bundle.manifest import MANIFEST, PREVIEW, SCHEMA_VERSION, check_manifest, check_preview
from profusion_cli.bundle.plain_yaml import dump_plain, parse_plain
from profusion_cli.bundle.reading import Bundle, unpack
from profusion_cli.bundle.tensors import find_non_finite, layout
from profusion_cli.errors import DivergedError
from profusion_cli.files import sha256_of


def make_bundle(
    manifest: Mapping[str, Any], files: Mapping[str, bytes | memoryview], preview: bytes | None = None
) -> Bundle:
    """A bundle in memory, as it would be read from a file.

    Args:
        manifest: kind, base, config, seed, inputs and parents, and what else its kind needs; schema_version, tool and
            files are filled in.
        files: safetensors files by their names.
        preview: a PNG.

    Raises:
        DivergedError: the weights contain non-finite numbers.
        ValueError: the caller's mistake: unknown kind or file name, not safetensors, odd values.
    """
    if unknown := set(files) - set(FILES):
        raise ValueError(f"no bundle holds files named {sorted(unknown)}")
    listed: dict[str, Any] = {}
    for file in sorted(files, key=FILES.index):
        described, contents = layout(files[file])
        if tensor := find_non_finite(described, contents):
            raise DivergedError(
                f"The weights of '{file}' contain non-finite numbers (tensor '{tensor}').",
                "Nothing was written: lower the learning rate or use a wider --dtype, and run it again.",
            )
        listed[file] = {"sha256": sha256_of(files[file]), "size": len(files[file]), "tensors": described}
    tool = {"name": "profusion", "version": __version__}
    version = SCHEMA_VERSION if ADAPTERS_FILE in listed else 1
    whole = {"schema_version": version, "kind": manifest.get("kind"), "tool": tool}
    whole |= {key: value for key, value in manifest.items() if key not in (*whole, "files", "preview")}
    whole |= {"files": listed} | ({} if preview is None else {"preview": sha256_of(preview)})
    text = dump_plain(whole)
    check_manifest(parse_plain(text))
    entries = {MANIFEST: text} | {file: files[file] for file in listed}
    if preview is not None:
        check_preview(preview)
        entries[PREVIEW] = preview
    archive = io.BytesIO()
    write_entries(archive, entries)
    return unpack(archive.getbuffer(), f"{whole['kind']}.pfz")
