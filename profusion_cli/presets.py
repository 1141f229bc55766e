"""Presets: YAML files that ship with the tool, or the user's own."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from profusion_cli.config import Config, build_config
from profusion_cli.errors import ConfigError, UsageError
from profusion_cli.mappings import FlagText, merge, nested
from profusion_cli.methods import METHODS, PROFUSION, method_of
from profusion_cli.plans import EXACT

DEFAULT_PRESET = "sd2"
PRESET_VARIABLE = "PROFUSION_PRESET"
SHIPPED = "shipped:"
PRESETS_OWN = ("sample", "plans", "preset", "description")
"""Sections that `--preset` decides, whatever a bundle remembers."""
EXACT_KEYS = {"steps", "sampler", "fusion_steps"}
"""Of `sample`: who gives one of them wants it followed to the letter."""
BAD_YAML = (
    *(yaml.YAMLError, ValueError, OverflowError, RecursionError),
    *(AttributeError, KeyError, IndexError),  # of `!!timestamp x`, `!!bool x` and `!!int ''`
)
"""What PyYAML raises on text that is no YAML, impossible dates and endless numbers included."""


class _EachKeyOnce(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """PyYAML's, which would take the last of two equal keys without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"'{key}' stands there twice", node.start_mark)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path, what: str) -> dict[str, Any]:
    """The mapping in a YAML file.

    Args:
        path: of the file.
        what: it is, for messages.

    Raises:
        ConfigError: it cannot be read, is no YAML, has a key twice, or holds something else.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _EachKeyOnce)
    except OSError as error:
        raise ConfigError(f"The {what} '{path}' cannot be read: {error.strerror}.", "Check its permissions.") from error
    except BAD_YAML as error:
        problem = " ".join(str(error).split())[:200]
        raise ConfigError(f"The {what} '{path}' is not valid YAML: {problem}.", "Mend the file.") from None
    if not isinstance(values, dict):
        raise ConfigError(f"The {what} '{path}' does not hold a mapping.", "See a shipped one for an example.")
    return values


def preset_folder() -> Path:
    """Where the shipped presets lie: inside the installed package, or beside it in a source checkout."""
    package = Path(__file__).parent
    installed = package / "preset_files"
    return installed if installed.is_dir() else package.parent / "presets"


def local_path(id: str) -> str:
    """Where an id would lie on this machine: `shipped:NAME` beside the shipped presets, `~` in the home folder."""
    if id.startswith(SHIPPED):
        return str(preset_folder() / id.removeprefix(SHIPPED))
    return os.path.expanduser(id)


def shipped_presets() -> dict[str, Path]:
    """Name and file of every shipped preset."""
    return {path.stem: path for path in sorted(preset_folder().glob("*.yaml"))}


def default_preset() -> str:
    """The preset used when none is named: `PROFUSION_PRESET`, or `sd2`."""
    return os.environ.get(PRESET_VARIABLE) or DEFAULT_PRESET


def read_preset(name: str, method: str | None = None) -> dict[str, Any]:
    """The mapping in a preset, by the name of a shipped one or the path of a file.

    Args:
        name: see above.
        method: of fine-tuning, whose settings are laid over the preset's; None: the preset's own.

    Raises:
        ConfigError: no such preset (with the nearest name), or a file that is not a YAML mapping.
    """
    values, own = _read(name)
    return with_method(values, own, method or method_of(values) or PROFUSION)


def _read(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A preset's values, and what it says of methods by their names."""
    shipped = shipped_presets()
    path = shipped.get(name)
    if path is None:
        path = Path(name)
        if not os.path.isfile(name):
            near = difflib.get_close_matches(name, shipped, n=1)
            from_environment = f" (from {PRESET_VARIABLE})" if name == os.environ.get(PRESET_VARIABLE) else ""
            raise ConfigError(
                f"There is no preset '{name}'{from_environment}.",
                (f"Did you mean '{near[0]}'? " if near else "") + f"Shipped presets: {', '.join(shipped)}; "
                "or give the path of a YAML file.",
            )
    values = read_yaml(path, "preset file")
    own = values.pop("methods", {})
    if not isinstance(own, dict) or not all(isinstance(layer, dict) for layer in own.values()) or set(own) - {*METHODS}:
        raise ConfigError(
            f"'methods' in the preset file '{path}' does not hold settings by the name of a method.",
            f"Methods are {', '.join(METHODS)}.",
        )
    return {**values, "preset": name}, own


def with_method(values: Mapping[str, Any], own: Mapping[str, Any], method: str) -> dict[str, Any]:
    """A preset's values with those of a method.

    Args:
        values: the preset's; those of one that is written for the method stand.
        own: what the preset says of methods.
        method: its name; an unknown one is left to `build_config`.
    """
    chosen = {"finetune": {"method": method}}
    name = str(method)  # that of a wrong one may be a list
    layers = (values, METHODS.get(name, {})) if method_of(values) != method else (METHODS.get(name, {}), values)
    return merge(*layers, own.get(name, {}), chosen if isinstance(values.get("finetune", {}), Mapping) else {})


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """`key=value` arguments of `--set` as a nested mapping; values are YAML, and `1e-4` is a number.

    Raises:
        UsageError: an argument without `=`, or a value that is not YAML.
    """
    flat: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key.strip():
            raise UsageError(
                f"--set '{setting}' is not of the form key=value.", "For example: --set finetune.steps=100"
            )
        try:
            value = yaml.safe_load(text)
        except BAD_YAML:
            raise UsageError(f"--set '{setting}' has a value that is not YAML.", "Put the value in quotes.") from None
        flat[key.strip()] = FlagText(value) if isinstance(value, str) else value
    return nested(flat)


def resolve_config(
    preset: str | None,
    remembered: Mapping[str, Any] | None,
    flags: Mapping[str, Any],
    settings: Sequence[str] = (),
) -> Config:
    """Preset < bundle's manifest < flags.

    Args:
        preset: `--preset`, or None.
        remembered: the configuration in a bundle's manifest. Without `--preset` it is complete by
            itself; with one, the preset gives the sections `sample` and `plans`, and the bundle everything that it
            was made with.
        flags: values of keys given as options, by their dotted names.
        settings: arguments of `--set`. Who says how to sample, by these or by flags, and not how fast, means the exact
            algorithm.

    Raises:
        ConfigError, UsageError: as `read_preset`, `parse_settings` and `build_config`; or a preset of another base
            model than the bundle's.
    """
    given = nested(flags)
    set_by_key = parse_settings(settings)
    method = method_of(given) or method_of(set_by_key) or (method_of(remembered) if remembered else None)
    if remembered is None:
        lower: Mapping[str, Any] = read_preset(default_preset() if preset is None else preset, method)
    elif preset is None:
        lower = remembered
        if (method or PROFUSION) != (method_of(remembered) or PROFUSION):
            _, own = _read(str(remembered["preset"]))
            lower = with_method(remembered, own, method)
    else:
        values = read_preset(preset, method)
        _check_same_base(values, remembered)
        fixed = {key: value for key, value in remembered.items() if key not in PRESETS_OWN}
        lower = merge(values, fixed)
    if "preset" in set_by_key:
        raise UsageError("--set preset=... cannot change the preset.", "Use --preset.")
    if any("weights" in (layer.get("promptnet") or {}) for layer in (set_by_key, given) if _has_section(layer)):
        # the preset's pin belongs to the preset's weights
        lower = merge(lower, {"promptnet": {"revision": None, "sha256": None, "note": ""}})
    chosen = merge(set_by_key, given)
    own_base, explicit = chosen.get("base"), chosen.get("sample")
    if isinstance(own_base, Mapping) and own_base.keys() & {"id", "revision"} and "mirror" not in own_base:
        lower = merge(lower, {"base": {"mirror": None}})  # it holds what the preset's base model is
    if isinstance(explicit, Mapping) and "speed" not in explicit and explicit.keys() & EXACT_KEYS:
        lower = merge(lower, {"sample": {"speed": EXACT}})
    lower = merge(lower, set_by_key)
    build_config(lower)  # so that no flag hides a wrong --set
    return build_config(merge(lower, given))


def _check_same_base(values: Mapping[str, Any], remembered: Mapping[str, Any]) -> None:
    """A preset whose sampling settings are wanted is of the bundle's base model, or says nothing of one.

    Raises:
        ConfigError: another base model.
    """
    own, other = (layer.get("base") for layer in (remembered, values))
    if not isinstance(own, Mapping) or not isinstance(other, Mapping) or "id" not in other:
        return
    if values["preset"] == remembered.get("preset"):  # its base model may have been named apart from it
        return
    if _place(own) != _place(other):
        raise ConfigError(
            f"The preset '{values['preset']}' is for the base model '{other['id']}', and the bundle was made on "
            f"'{own['id']}'.",
            "Leave --preset out, since a bundle remembers its own; options and --set change single settings.",
        )


def _place(base: Mapping[str, Any]) -> tuple[str, bool]:
    """Where a base model lies, and whether it is a random one instead."""
    return os.path.realpath(local_path(str(base["id"]))), base.get("random") is not None


def _has_section(layer: Mapping[str, Any]) -> bool:
    return isinstance(layer.get("promptnet"), Mapping)
