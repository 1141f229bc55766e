"""What of each preset is on this machine, without asking the network."""

from __future__ import annotations

from typing import Any

from profusion_cli.config import Config, build_config
from profusion_cli.doctor.machine import Trouble, trouble_of
from profusion_cli.errors import ProfusionError
from profusion_cli.presets import PRESET_VARIABLE, default_preset, read_preset, shipped_presets


def presets() -> tuple[list[dict[str, Any]], list[Trouble]]:
    """Every shipped preset, and the default one where that is another; and those that cannot be used."""
    default, found, troubles = default_preset(), [], []
    names = [*shipped_presets()]
    for name in names if default in names else [*names, default]:
        shown = name if name in names else f"the one that {PRESET_VARIABLE} names"
        try:
            config = build_config(read_preset(name))
            found.append({"name": shown, "default": name == default, **stock(config)})
        except ProfusionError as error:
            troubles.append(trouble_of(error))
    return found, troubles


def stock(config: Config) -> dict[str, Any]:
    """What of a configuration's models is here.

    Returns:
        `here`: bytes; `missing`: the parts that are not here, or not whole, by where they come from;
        `missing_bytes`: None where only the Hub knows; `kept_bytes`: of downloads that broke off, and go on.
    """
    from profusion_cli.runtime.hub import is_hub_id
    from profusion_cli.runtime.needs import all_needs, broken_off, stock_of

    needs = all_needs(config)
    stocks = [(need, stock_of(need)) for need in needs]
    lacking = [(need, one) for need, one in stocks if not one.complete]
    sizes = [one.missing for _, one in lacking]
    repositories = {need.source.id for need, _ in lacking if is_hub_id(need.source.id)}
    missing: dict[str, list[str]] = {}
    for need, _ in lacking:  # a folder's name is private
        place = need.source.id if is_hub_id(need.source.id) else "a folder"
        missing.setdefault(place, []).append(need.title.removeprefix("The "))
    return {
        "parts": len(needs),
        "here": sum(one.size for _, one in stocks),
        "missing": missing,
        "missing_bytes": None if None in sizes else sum(sizes),
        "kept_bytes": sum(broken_off(repository) for repository in repositories),
    }
