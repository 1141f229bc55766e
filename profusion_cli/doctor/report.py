"""All that is found out, without what is private, and as lines for people."""

from __future__ import annotations

import getpass
import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.filesize import decimal

from profusion_cli import __version__
from profusion_cli.doctor import machine
from profusion_cli.doctor.machine import OPTIONAL, REQUIRED, Trouble, trouble_of, version_of
from profusion_cli.doctor.presets import presets
from profusion_cli.doctor.trial import draw_trial
from profusion_cli.errors import out_of_memory
from profusion_cli.listener import LIBRARIES, Listener

LESS = "Close other programs, or take another device with --device."


def examine(device: str, dtype: str, listener: Listener) -> dict[str, Any]:
    """Look at everything, in about ten seconds.

    Args:
        device: name of the device that draws.
        dtype: its precision.
        listener: who hears what takes time.

    Returns:
        Plain data without private paths, names or values; `troubles` is empty where profusion is usable.
    """
    started = time.monotonic()
    with listener.working(LIBRARIES):
        troubles = machine.broken_libraries()
    record: dict[str, Any] = {
        "profusion": __version__,
        **machine.system(),
        "asked": {"device": device, "dtype": dtype},
        "libraries": {name: version_of(name) for name in REQUIRED},
        "optional": {name: version_of(name) for name in OPTIONAL},
        "variables": machine.variables(),
        "seconds_to_load": round(time.monotonic() - started, 1),
    }
    if not troubles:
        record |= _with_libraries(device, dtype, listener, troubles)
    return private({**record, "troubles": [vars(trouble) for trouble in troubles]})


def _with_libraries(device: str, dtype: str, listener: Listener, troubles: list[Trouble]) -> dict[str, Any]:
    """What can only be found out where the libraries load; adds to the troubles."""
    from huggingface_hub import constants

    from profusion_cli.runtime.device import is_out_of_memory

    found: dict[str, Any] = {"devices": machine.devices()}
    disks, full = machine.disks()
    stocks, wrong = presets()
    troubles += full + wrong
    found |= {
        "disks": disks,
        "hub": {"cache": constants.HF_HUB_CACHE, "offline": constants.HF_HUB_OFFLINE},
        "presets": stocks,
    }
    try:
        found["chosen"] = machine.chosen(device, dtype)
        found["face_world"] = draw_trial(device, dtype, listener)
    except Exception as error:  # whatever keeps it from drawing is what this is for
        troubles.append(trouble_of(out_of_memory(error, LESS) if is_out_of_memory(error) else error))
    return found


def private(value: Any) -> Any:
    """Data with the home folder as ~, and without the user's name and the places of temporary and current files."""
    if isinstance(value, dict):
        return {key: private(one) for key, one in value.items()}
    if isinstance(value, list):
        return [private(one) for one in value]
    return _without_names(value) if isinstance(value, str) else value


def _without_names(text: str) -> str:
    for place, shown in _places():
        text = re.sub(rf"{re.escape(place)}(?!\w|[.-]\w)", shown, text)
    for name in _user_names():
        text = re.sub(rf"(?<![A-Za-z0-9]){re.escape(name)}(?![A-Za-z0-9])", "<user>", text, flags=re.IGNORECASE)
    return text


def _places() -> list[tuple[str, str]]:
    """Folders that messages may name, the longest first, each with what stands in its place."""
    found: list[tuple[str, str]] = []
    with suppress(RuntimeError):
        found += [(str(place), "~") for place in {Path.home(), Path.home().resolve()}]
    with suppress(OSError):
        found += [(str(Path.cwd()), "."), (tempfile.gettempdir(), "TMPDIR")]
    return sorted((pair for pair in found if len(Path(pair[0]).parts) > 1), key=lambda pair: -len(pair[0]))


def _user_names() -> set[str]:
    names = {os.environ.get(name, "") for name in ("USER", "LOGNAME", "USERNAME")}
    with suppress(Exception):  # a user without an entry
        names.add(getpass.getuser())
    with suppress(RuntimeError):
        names.add(Path.home().name)
    return {name for name in names if len(name) > 1}


def lines_of(record: dict[str, Any]) -> Iterator[str]:
    """The record for people to read, and to paste into a report."""
    yield f"profusion {record['profusion']}, Python {record['python']}, {record['system']}"
    yield f"libraries: {_versions(record['libraries'])}"
    yield f"optional: {_versions(record['optional'])}"
    if record["variables"]:
        yield f"set in the environment: {', '.join(record['variables'])}"
    for one in record.get("devices", []):
        yield f"{one['name']}: {one['what']}, {decimal(one['free'])} of {decimal(one['total'])} free"
    if "chosen" in record:
        asked = " and ".join(f"--{option} {name}" for option, name in record["asked"].items())
        yield f"{asked} mean: {', '.join(f'{what} {name}' for what, name in record['chosen'].items())}"
    for one in record.get("disks", []):
        yield f"free for {one['what']}: {decimal(one['free'])}"
    if "hub" in record:
        yield f"downloads are kept in {record['hub']['cache']}{_offline(record['hub'])}"
        for one in record["presets"]:
            yield f"preset {one['name']}{' (default)' if one['default'] else ''}: {_stock(one)}"
    if "face_world" in record:
        seen = record["face_world"]
        yield (
            f"the face world draws, in {seen['seconds']} s: similarity {seen['identity']} to the photo's person, at "
            f"most {seen['others']} to others"
        )
    for trouble in record["troubles"]:
        yield f"TROUBLE ({trouble['exit_code']}): {trouble['message']} {trouble['hint']}"
    if not record["troubles"]:
        yield "profusion is usable here."


def _versions(versions: dict[str, str | None]) -> str:
    return ", ".join(f"{name} {version or 'not installed'}" for name, version in versions.items())


def _offline(hub: dict[str, Any]) -> str:
    return ", and nothing is downloaded: offline mode is on (HF_HUB_OFFLINE)" if hub["offline"] else ""


def _stock(preset: dict[str, Any]) -> str:
    """What of a preset is here, in words."""
    if not preset["parts"]:
        return "needs no files"
    if not preset["missing"]:
        return f"complete, {decimal(preset['here'])}"
    size = "of unknown size" if preset["missing_bytes"] is None else decimal(preset["missing_bytes"])
    kept = f"; {decimal(preset['kept_bytes'])} of a broken-off download are kept" if preset["kept_bytes"] else ""
    count = preset["parts"] - sum(map(len, preset["missing"].values()))
    missing = "; ".join(f"{', '.join(titles)} of {place}" for place, titles in preset["missing"].items())
    return f"{count} of {preset['parts']} parts are here, {decimal(preset['here'])}{kept}; missing, {size}: {missing}"
