"""`profusion presets`: what presets there are, and what keys they set."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from profusion_cli.console import Output
from profusion_cli.errors import UsageError
from profusion_cli.options import Json, preset_names


def presets(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]",
            help="Show this preset: its file, of which a copy works like a shipped one.",
            autocompletion=preset_names,
        ),
    ] = None,
    keys: Annotated[
        bool, typer.Option("--keys", help="List every key of the configuration: type, range, default and help.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List and describe the shipped presets, or show one, or the keys that they and `--set` give values to."""
    if keys and name is not None:
        raise UsageError(f"--keys lists the keys of every preset, so '{name}' has no effect.", "Leave one of them out.")
    output = Output(as_json=as_json)
    lines, record = describe_keys() if keys else describe_presets() if name is None else describe_preset(name)
    for line in lines:
        output.line(line)
    output.record(record)


def describe_presets() -> tuple[list[str], dict[str, Any]]:
    """Lines for people, and the same as plain data."""
    from profusion_cli.presets import PRESET_VARIABLE, default_preset, read_preset, shipped_presets

    entries = []
    for name, path in shipped_presets().items():
        values = read_preset(name)
        entries.append(
            {
                "name": name,
                "default": name == default_preset(),
                "description": values["description"],
                "base": values["base"]["id"],
                "resolution": values["base"]["resolution"],
                "promptnet": values["promptnet"]["weights"],
                "file": str(path),
            }
        )
    width = max(len(entry["name"]) for entry in entries)
    lines = []
    for entry in entries:
        mark = "*" if entry["default"] else " "
        lines.append(f"{mark} {entry['name']:<{width}}  {entry['description']}")
        lines.append(
            f"  {'':<{width}}  base {entry['base']}; PromptNet {entry['promptnet'] or 'none, give --promptnet'}"
        )
    lines.append(f"* is the default; {PRESET_VARIABLE} changes it. A YAML file works like a shipped preset.")
    return lines, {"presets": entries}


def describe_preset(name: str) -> tuple[list[str], dict[str, Any]]:
    """The lines of its file, and what it says as plain data.

    Raises:
        ConfigError: as `read_preset`.
    """
    from pathlib import Path

    from profusion_cli.presets import read_preset, shipped_presets

    values, path = read_preset(name), shipped_presets().get(name, Path(name))
    return path.read_text(encoding="utf-8").splitlines(), {"name": name, "file": str(path), "values": values}


def describe_keys() -> tuple[list[str], dict[str, Any]]:
    """Lines for people, and the same as plain data."""
    import json

    from profusion_cli.keys import all_keys
    from profusion_cli.mappings import plain

    entries, lines = [], []
    for key in all_keys().values():
        entry = {"key": key.name, "type": key.type, "range": key.range or None, "required": key.is_required}
        entry |= {"default": None if key.is_required else plain(key.default), "help": key.help, "option": key.flag}
        entries.append(entry)
        default = "no default" if key.is_required else f"default {json.dumps(entry['default'], ensure_ascii=False)}"
        option = f" [{key.flag}]" if key.flag else ""
        lines.append(f"{key.name}: {', '.join(filter(None, (key.type, key.range, default)))}{option}")
        lines.append(f"    {key.help}")
    return lines, {"keys": entries}
