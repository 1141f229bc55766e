"""`profusion presets`: what presets there are."""

from __future__ import annotations

from profusion_cli.console import Output
from profusion_cli.options import Json
from profusion_cli.presets import PRESET_VARIABLE, default_preset, read_preset, shipped_presets


def presets(as_json: Json = False) -> None:
    """List and describe the shipped presets."""
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
    output = Output(as_json=as_json)
    for line in lines:
        output.line(line)
    output.record({"presets": entries})
