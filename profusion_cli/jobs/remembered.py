"""What is remembered of the user, on this machine: lists of entries, in YAML files of the configuration folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from profusion_cli.errors import OutputError
from profusion_cli.files import atomic_output, locked
from profusion_cli.presets import read_yaml


def path_of(name: str) -> Path:
    """The file of a list: `name.yaml` in the user's configuration folder."""
    import typer

    return Path(typer.get_app_dir("profusion")) / f"{name}.yaml"


def entries_of(name: str) -> list[dict[str, Any]]:
    """What is remembered in a list.

    Raises:
        ConfigError: its file was damaged.
    """
    path = path_of(name)
    values = read_yaml(path, f"file of {name}").get(name, []) if path.is_file() else []
    return [entry for entry in values if isinstance(entry, dict)] if isinstance(values, list) else []


def add_entry(name: str, entry: Mapping[str, Any]) -> None:
    """Remember one more.

    Raises:
        OutputError: the file cannot be written.
    """
    path = path_of(name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"'{path}' cannot be written: {error.strerror}.", "Set XDG_CONFIG_HOME to a folder."
        ) from None
    with locked(path.parent, f"Another process is writing '{path}'.", "Try again.", wait=10):
        everything = {name: [*entries_of(name), dict(entry)]}
        with atomic_output(path, force=True) as file:
            file.write(yaml.safe_dump(everything, sort_keys=False, allow_unicode=True).encode())
