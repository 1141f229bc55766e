"""The configuration of a job, and what bundles remember of it."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from profusion_cli.bundle import Bundle
from profusion_cli.config import BESIDE_BASE, SEEDS, UNTRAINED, Config, build_config
from profusion_cli.errors import BundleError, ConfigError, UsageError
from profusion_cli.launcher import process_count
from profusion_cli.listener import LOGGED, Listener
from profusion_cli.presets import read_preset, resolve_config, shipped_presets

MACHINES_OWN = ("device", "dtype", "seed", "deterministic", "compile", "offload", "mark")
"""Keys that no bundle remembers."""
HOW_MUCH = ("num_images", "batch_size", "width", "height")
"""Keys of `sample` that a bundle does not decide: how much is drawn, and at once, is the user's affair."""
LARGE = 1024
"""Pixels a side above which a bundle's resolution is no size to draw at where nobody else says so."""
RANDOM_SEED = -1
"""What asks for a seed drawn at random."""


def load_config(preset: str | None = None, settings: Mapping[str, Any] | None = None) -> Config:
    """The configuration of a preset.

    Args:
        preset: name of a shipped preset, or the path of a YAML file; None: as without `--preset`.
        settings: values of keys by their dotted names, as `{"sample.steps": 20}`; see `profusion presets --keys`.

    Raises:
        ConfigError: no such preset or key, or a value that is wrong.
    """
    return configure(preset, None, settings or {})


def configure(
    preset: str | None,
    remembered: Mapping[str, Any] | None,
    flags: Mapping[str, Any],
    settings: Sequence[str] | None = None,
    listener: Listener = LOGGED,
) -> Config:
    """The resolved configuration of a command; see `resolve_config`. A folder is remembered by its full path.

    Args:
        preset: `--preset`.
        remembered: the configuration in a bundle's manifest.
        flags: values of keys given as options. Another base model leaves nothing of the preset's own.
        settings: arguments of `--set`.
        listener: who hears of a seed drawn at random, of pictures without a mark, and of what a preset takes from a
            bundle's place.
    """
    flags = _with_seed(flags, listener)
    other_base = flags.get("base.id")
    config = resolve_config(
        preset, remembered, {key: value for key, value in flags.items() if key != "base.id"}, settings or ()
    )
    if preset is not None and remembered is not None and "sample" in remembered:
        listener.note(f"The sampling settings are those of the preset '{preset}'; all else is the bundle's.")
    base = config.base
    if other_base is not None:
        base = replace(base, id=other_base, revision=None, random=None, mirror=None)
        if config.promptnet.weights == BESIDE_BASE:  # the pin belongs to the preset's base model
            config = replace(config, promptnet=replace(config.promptnet, sha256=None, note=""))
    if not config.mark:
        listener.note("Pictures will not say that a trained model has drawn them (--no-mark).")
    return with_full_path(replace(config, base=base))


def _with_seed(flags: Mapping[str, Any], listener: Listener) -> Mapping[str, Any]:
    """The flags with a seed drawn at random where that is asked for; it is told, and belongs to the configuration.

    Raises:
        UsageError: one of several processes asks for it.
    """
    if flags.get("seed") != RANDOM_SEED:
        return flags
    if process_count() > 1:
        raise UsageError("--seed -1 would draw another seed in each process.", "Give the same seed to all.")
    seed = secrets.randbelow(SEEDS + 1)
    listener.note(f"The seed is {seed}, drawn at random: --seed {seed} gives the same again.")
    return {**flags, "seed": seed}


def with_full_path(config: Config) -> Config:
    """The configuration with the full path of its base model, where that is on this machine, as it is remembered."""
    base = config.base
    if base.random is not None or not os.path.exists(os.path.expanduser(base.id)):
        return config
    return replace(config, base=replace(base, id=str(Path(base.id).expanduser().resolve())))


def remember(config: Config) -> dict[str, Any]:
    """The configuration for a bundle's manifest: all of it but what belongs to the machine."""
    return {key: value for key, value in config.as_dict().items() if key not in MACHINES_OWN}


def remembered_config(bundle: Bundle) -> dict[str, Any]:
    """The configuration in a bundle's manifest, with as many pictures, and as large ones, as its preset draws.

    Raises:
        BundleError: it is none that this version understands.
    """
    try:
        build_config(bundle.manifest["config"])
    except ConfigError as error:
        raise BundleError(
            f"The configuration in '{bundle.name}' is not understood: {error.message}",
            "It was edited, or made by another version of profusion: make it again.",
        ) from None
    remembered = bundle.manifest["config"]
    preset = remembered["preset"]
    values = read_preset(preset) if preset in shipped_presets() else {}
    own = values.get("sample", {})
    if remembered["base"].get("resolution", 0) > LARGE:
        side = values.get("base", {}).get("resolution", LARGE)
        own = {"width": side, "height": side, **own}
    sample = {key: value for key, value in remembered.get("sample", {}).items() if key not in HOW_MUCH}
    return {**remembered, "sample": {**sample, **{key: own[key] for key in HOW_MUCH if key in own}}}


def warn_if_random(config: Config, listener: Listener) -> None:
    """Random weights are called random."""
    if config.base.random is not None:
        listener.warn("The base model has random weights: it exercises every step, and draws noise.")
    elif config.promptnet.weights == UNTRAINED:
        listener.warn("PromptNet is untrained: S* says nothing about the subject yet.")
