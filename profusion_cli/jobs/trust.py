"""What a bundle's maker does not decide: from where models are loaded.

A bundle says which base model it wants. The places that it names are taken without asking where the shipped preset that
it names has them, where the user has named them, or where the user has agreed to them before.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from profusion_cli.bundle import Bundle
from profusion_cli.config import BASE_PARTS, BESIDE_BASE, UNTRAINED, Config
from profusion_cli.errors import BundleError, OutputError
from profusion_cli.jobs.configuration import configure
from profusion_cli.jobs.remembered import add_entry, entries_of
from profusion_cli.listener import Listener
from profusion_cli.presets import default_preset, local_path, shipped_presets

CONSENT_OPTION = "--trust-base"
CONSENTS = "consents"
RANDOM = "random weights"
NOT_PLACES = (None, UNTRAINED, BESIDE_BASE)
"""Values of `promptnet.weights` that name nothing to load."""


class Place(NamedTuple):
    """From where something is loaded: a folder, file or Hub id, a revision on the Hub, and a sub-folder."""

    id: str
    revision: str | None
    subfolder: str

    def __str__(self) -> str:
        kind = "the folder" if os.path.exists(local_path(self.id)) else "the Hub's"
        return f"{kind} '{self.id}'" + (f", revision {self.revision}" if self.revision else "")


def places(config: Config, promptnet: bool) -> dict[str, Place]:
    """From where a configuration loads the parts of its base model, by their names.

    Args:
        config: the resolved configuration.
        promptnet: whether PromptNet is loaded too.
    """
    base, own = config.base, config.promptnet
    if base.random is not None:
        found = {RANDOM: Place(f"{base.random.size}, seed {base.random.seed}", None, "")}
    else:
        found = {part: Place(*base.place(part)) for part in BASE_PARTS}
        if base.mirror is not None:
            found["mirror"] = Place(base.mirror.id, base.mirror.revision, "")
    if promptnet and own.weights not in NOT_PLACES:
        found["promptnet"] = Place(own.weights, own.revision, own.subfolder)
    return found


def check_trusted(
    config: Config,
    bundle: Bundle,
    preset: str | None = None,
    flags: Mapping[str, Any] | None = None,
    settings: Sequence[str] | None = None,
    *,
    consent: bool = False,
    promptnet: bool = False,
) -> None:
    """Nothing is loaded from a place that a bundle alone names.

    Args:
        config: what is made of the bundle's configuration and the arguments that follow.
        bundle: it.
        preset, flags, settings: as of `configure`; what they name is the user's own word.
        consent: the user agrees to the places of this bundle, which is remembered.
        promptnet: whether PromptNet is loaded too.

    Raises:
        BundleError: a place that nobody but the bundle's maker has named.
        OutputError: the consent cannot be remembered.
    """
    wanted = places(config, promptnet)
    flags = {key: value for key, value in (flags or {}).items() if key != "seed"}
    named = {config.base.id} if "base.id" in flags else set()
    named |= {config.promptnet.weights} if "promptnet.weights" in flags else set()
    unknown = {part: place for part, place in wanted.items() if place.revision is not None or place.id not in named}
    for name in _presets_to_ask(bundle, preset):
        if not unknown:
            return
        unknown = _beyond(unknown, configure(name, None, flags, settings), promptnet)
    fingerprint = bundle.manifest["base"]["fingerprint"] if bundle.kind == "subject" else {}
    if not unknown or _agreed_before(unknown, fingerprint):
        return
    if consent:
        _remember(wanted, fingerprint)
        return
    raise BundleError(
        f"'{bundle.name}' wants models that you have not named: {_listed(unknown)}. Nothing was loaded or downloaded.",
        f"If you trust them, add {CONSENT_OPTION} once; else name your own with --base-model or --preset.",
    )


def remember_own(config: Config, fingerprint: Mapping[str, str], listener: Listener) -> None:
    """What the user named for a bundle that is made now is agreed to, so that it needs no word later.

    Args:
        config: the bundle's.
        fingerprint: of its base model's parts.
        listener: who hears of it where it cannot be remembered.
    """
    wanted = places(config, promptnet=True)
    if config.preset in shipped_presets():
        wanted = _beyond(wanted, configure(config.preset, None, {}), promptnet=True)
    if not wanted or _agreed_before(wanted, fingerprint):
        return
    try:
        _remember(wanted, fingerprint)
    except OutputError as error:
        listener.warn(f"{error.message} To use the bundle, `{CONSENT_OPTION}` will be needed.")


def _beyond(wanted: Mapping[str, Place], config: Config, promptnet: bool) -> dict[str, Place]:
    """Those of the places that a configuration does not have; see `places`."""
    known = set(places(config, promptnet).values())
    return {part: place for part, place in wanted.items() if place not in known}


def _presets_to_ask(bundle: Bundle, preset: str | None) -> Iterator[str]:
    """The presets whose places are good: what the user chose, and the shipped one that the bundle names."""
    own = bundle.manifest["config"]["preset"]
    if own in shipped_presets():
        yield own
    if preset is not None:
        yield preset
    elif default_preset() != own:
        yield default_preset()


def _listed(unknown: Mapping[str, Place]) -> str:
    """Parts and from where they come, those of one place together."""
    if RANDOM in unknown:
        return f"{RANDOM} ({unknown[RANDOM].id})"
    grouped: dict[Place, list[str]] = {}
    for part, place in unknown.items():
        grouped.setdefault(place._replace(subfolder=""), []).append(part.replace("_", " "))
    return "; ".join(f"{', '.join(parts)} from {place}" for place, parts in grouped.items())


def _agreed_before(wanted: Mapping[str, Place], fingerprint: Mapping[str, str]) -> bool:
    """Whether one earlier consent holds all of these places, for weights of these fingerprints."""
    for entry in entries_of(CONSENTS):
        agreed = [tuple(place) for place in (entry.get("places") or {}).values()]
        then = entry.get("fingerprint") or {}
        same = all(then[part] == digits for part, digits in fingerprint.items() if part in then)
        if same and all(tuple(place) in agreed for place in wanted.values()):
            return True
    return False


def _remember(wanted: Mapping[str, Place], fingerprint: Mapping[str, str]) -> None:
    """Add a consent to the file.

    Raises:
        OutputError: it cannot be written.
    """
    places = {part: list(place) for part, place in wanted.items()}
    add_entry(CONSENTS, {"places": places, "fingerprint": dict(fingerprint)})
