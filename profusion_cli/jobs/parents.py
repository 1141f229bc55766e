"""The PromptNets that subjects' adapters are for: each is found by its fingerprint, and nowhere that a bundle says."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from profusion_cli.bundle import Bundle
from profusion_cli.bundle.kinds import PROMPTNET_FILE, WORD_FILE
from profusion_cli.bundle.manifest import PARENT
from profusion_cli.bundle.refusal import show
from profusion_cli.config import BESIDE_BASE, UNTRAINED, Config, PromptNetSource
from profusion_cli.errors import OutputError, UnavailableError, UsageError
from profusion_cli.files import STDIO
from profusion_cli.jobs.configuration import load_config
from profusion_cli.jobs.remembered import add_entry, entries_of
from profusion_cli.listener import Listener
from profusion_cli.presets import local_path, shipped_presets

PLACE = ("weights", "revision", "subfolder", "sha256")
"""Of a `PromptNetSource`: what says where it is."""
STORE = "promptnets"
"""The list of PromptNets that subjects were adapted from on this machine."""


def needs_parent(bundle: Bundle) -> bool:
    """Whether a subject's S* is made by a PromptNet that is not in its bundle."""
    return PROMPTNET_FILE not in bundle.files and WORD_FILE not in bundle.files


def names_promptnet(flags: Mapping[str, Any], settings: Sequence[str] | None) -> bool:
    """Whether the user names a PromptNet, by an option or by `--set`."""
    return "promptnet.weights" in flags or any(one.strip().startswith("promptnet.weights") for one in settings or ())


def parents_of(bundles: Sequence[Bundle], config: Config, named: bool) -> list[PromptNetSource]:
    """Where the PromptNet of each subject is.

    That which the user named; or which a subject was adapted from on this machine; or that of the shipped preset that
    the bundle names, or of the one that was chosen.

    Args:
        bundles: subjects.
        config: the resolved configuration.
        named: its PromptNet is what the user named.

    Raises:
        UnavailableError: none of these.
        UsageError: a PromptNet is named, and no bundle needs one.
    """
    if named and not any(map(needs_parent, bundles)):
        raise UsageError("--promptnet has no effect: what makes S* is in every bundle.", "Leave it out.")
    return [parent_of(one, config, named) if needs_parent(one) else config.promptnet for one in bundles]


def parent_of(bundle: Bundle, config: Config, named: bool) -> PromptNetSource:
    """Where the PromptNet is that a subject's was tuned from; see `parents_of`.

    Raises:
        UnavailableError: it is not at hand.
    """
    if named:
        return config.promptnet
    digits, remembered = bundle.manifest.get(PARENT), bundle.manifest["config"]["preset"]
    for entry in reversed(entries_of(STORE)):
        place = str(entry.get("weights"))
        if digits and entry.get("fingerprint") == digits and (os.path.exists(place) or not os.path.isabs(place)):
            known = {key: entry[key] for key in PLACE if isinstance(entry.get(key), str)}
            return replace(config.promptnet, **{"revision": None, "sha256": None, "note": "", **known})
    for preset in dict.fromkeys((config.preset, remembered)):
        if preset in shipped_presets():
            own = load_config(preset).promptnet
            if own.weights not in (None, UNTRAINED):
                return own
    source = bundle.manifest.get("promptnet_source")
    told = source.get("weights") if isinstance(source, Mapping) else None
    came = f", which came from {show(told)}" if isinstance(told, str) else ""
    which = f"of fingerprint {digits}{came}" if digits else f"before tuning{came}"
    raise UnavailableError(
        f"'{bundle.name}' needs the PromptNet {which}, and it is not at hand.",
        "Give it with --promptnet FILE|FOLDER|ID; or have the bundle made with --self-contained.",
    )


def remember_parent(config: Config, fingerprint: str, listener: Listener) -> None:
    """Remember where the PromptNet is that a subject was adapted from, unless a shipped preset knows.

    Args:
        config: of the subject.
        fingerprint: of the PromptNet.
        listener: who hears of it where it cannot be remembered.
    """
    source = config.promptnet
    if config.preset in shipped_presets() and load_config(config.preset).promptnet == source:
        return
    if source.weights in (None, STDIO, UNTRAINED, BESIDE_BASE):
        return
    path = local_path(source.weights)
    place = os.path.abspath(path) if os.path.exists(path) else source.weights
    entry = {"fingerprint": fingerprint, **{key: getattr(source, key) for key in PLACE}, "weights": place}
    if entry in entries_of(STORE):
        return
    try:
        add_entry(STORE, entry)
    except OutputError as error:
        listener.warn(f"{error.message} To use the bundle, `--promptnet` will be needed.")
