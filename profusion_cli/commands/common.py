"""What the commands share: inputs from files and pipes, and the configuration they end up with."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from profusion_cli.config import Config, build_config
from profusion_cli.console import Output, print_result
from profusion_cli.errors import BundleError, ConfigError, UsageError
from profusion_cli.files import STDIO, read_source
from profusion_cli.presets import resolve_config

if TYPE_CHECKING:
    from profusion_cli.bundle import Bundle


BUNDLE_SUFFIX = ".pfz"


def display_name(source: str) -> str:
    """How messages call an input."""
    return "standard input" if source == STDIO else source


def check_one_stdin(sources: Sequence[str]) -> None:
    """Standard input can be read only once.

    Raises:
        UsageError: `-` is given twice.
    """
    if list(sources).count(STDIO) > 1:
        raise UsageError(
            "'-' is given twice, and standard input can be read only once.", "Name the other input's file."
        )


def check_apart(sources: Sequence[str], targets: Sequence[str]) -> None:
    """No output takes the place of an input, or of another output, not even with `--force`.

    Raises:
        UsageError: one would.
    """
    inputs = {os.path.realpath(source) for source in sources if source not in ("", STDIO)}
    files = [os.path.realpath(target) for target in targets if target != STDIO]
    folders = {os.path.dirname(path) for path in files}
    for path in files:
        if path in inputs:
            raise UsageError(f"'{path}' is an input, and an output would take its place.", "Choose another name.")
        if path in folders or files.count(path) > 1:
            raise UsageError(f"'{path}' is where another output goes.", "Choose another name.")


def open_bundle(source: str, kind: str) -> Bundle:
    """A verified bundle of the wanted kind, from a file or `-`.

    Raises:
        InputError: it cannot be read.
        BundleError: it is damaged or of another kind.
    """
    from profusion_cli.bundle import read_bundle

    return read_bundle(read_source(source), display_name(source)).require(kind)


def configure(
    preset: str | None,
    remembered: Mapping[str, Any] | None,
    flags: Mapping[str, Any],
    settings: Sequence[str] | None,
) -> Config:
    """The resolved configuration of a command; see `resolve_config`. A folder is remembered by its full path.

    Args:
        preset: `--preset`.
        remembered: the configuration in a bundle's manifest.
        flags: values of keys given as options. Another base model leaves nothing of the preset's own.
        settings: arguments of `--set`.
    """
    other_base = flags.get("base.id")
    config = resolve_config(
        preset, remembered, {key: value for key, value in flags.items() if key != "base.id"}, settings or ()
    )
    base = config.base
    if other_base is not None:
        base = replace(base, id=other_base, revision=None, random=None)
        if config.promptnet.weights == "base":  # the pin belongs to the preset's base model
            config = replace(config, promptnet=replace(config.promptnet, sha256=None, note=""))
    if base.random is None and os.path.isdir(os.path.expanduser(base.id)):
        base = replace(base, id=str(Path(base.id).expanduser().resolve()))
    return replace(config, base=base)


def remembered_config(bundle: Bundle) -> dict[str, Any]:
    """The configuration in a bundle's manifest.

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
    return bundle.manifest["config"]


def remember(config: Config) -> dict[str, Any]:
    """The configuration for a bundle's manifest: all of it but what belongs to the machine."""
    return {key: value for key, value in config.as_dict().items() if key not in ("device", "dtype", "seed")}


def print_config(config: Config) -> None:
    """The resolved configuration as YAML on standard output (`--dry-run`)."""
    import yaml

    print_result(yaml.safe_dump(config.as_dict(), sort_keys=False, allow_unicode=True).rstrip())


def warn_if_random(config: Config, output: Output) -> None:
    """Random weights are called random."""
    if config.base.random is not None:
        output.warn("The base model has random weights: it exercises every step, and draws noise.")
    elif config.promptnet.weights == "untrained":
        output.warn("PromptNet is untrained: S* says nothing about the subject yet.")


def split_arguments(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Bundles first, then prompts: `-` and names that end in .pfz, or name a file, are bundles.

    Raises:
        UsageError: no bundle, or one behind a prompt.
    """

    def is_bundle(argument: str) -> bool:
        return argument == STDIO or argument.endswith(BUNDLE_SUFFIX) or os.path.isfile(argument)

    bundles = list(takewhile(is_bundle, arguments))
    if not bundles:
        raise UsageError(
            f"'{arguments[0]}' is not a bundle: the subjects (.pfz files, or -) come first, then the prompts.",
            'For example: profusion sample me.pfz "S* in anime style"',
        )
    prompts = arguments[len(bundles) :]
    if late := next(filter(is_bundle, prompts), None):
        raise UsageError(
            f"'{late}' stands behind the prompt '{prompts[0]}'.", "Give the subjects first, then the prompts."
        )
    return bundles, prompts
