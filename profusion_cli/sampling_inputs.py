"""What sampling is asked for, checked before the work: subjects that go together, and options that do something."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from profusion_cli.bundle import Bundle
from profusion_cli.config import Config
from profusion_cli.errors import BundleError, InputError, UsageError
from profusion_cli.images import decode_photo
from profusion_cli.samplers import SAMPLERS


def check_useful(config: Config, flags: Mapping[str, Any]) -> None:
    """Every option that was given does something.

    Raises:
        UsageError: one that the chosen sampler does not look at.
    """
    own = config.sample
    kind = SAMPLERS[own.sampler]
    for name in kind.unused(own.fusion_steps):
        if f"sample.{name}" in flags:
            how = f"--sampler {own.sampler}" if name in kind.unused(1) else "--fusion-steps 0"
            raise UsageError(f"--{name.replace('_', '-')} has no effect with {how}.", "Leave it out.")


def class_words_of(bundles: Sequence[Bundle], config: Config, given: str | None) -> list[str]:
    """What each subject is: its own word, unless `--class-word` or `--set` gave one for all."""
    words = [bundle.manifest["config"]["class_word"] for bundle in bundles]
    if given is not None or config.class_word != words[0]:
        return [config.class_word] * len(bundles)
    return words


def references(bundles: Sequence[Bundle]) -> list[tuple[str, Image.Image]]:
    """The first reference view of each subject, from the bundle's preview.

    Raises:
        BundleError: a preview that is no picture.
    """
    pictures = []
    for bundle in bundles:
        if bundle.preview is None:
            continue
        try:
            strip = decode_photo(bundle.preview, bundle.name).image
        except InputError as error:
            raise BundleError(f"The preview in '{bundle.name}' is no picture: {error.message}", error.hint) from None
        pictures.append((Path(bundle.name).stem, strip.crop((0, 0, strip.height, strip.height))))
    return pictures


def check_same_base(bundles: Sequence[Bundle]) -> None:
    """All subjects live on one base model.

    Raises:
        BundleError: they do not.
    """
    first = bundles[0]
    for other in bundles[1:]:
        if other.manifest["base"]["fingerprint"] != first.manifest["base"]["fingerprint"]:
            raise BundleError(
                f"'{first.name}' and '{other.name}' were made on different base models "
                f"('{first.manifest['base']['id']}' and '{other.manifest['base']['id']}').",
                "Fine-tune them on the same base model to draw them together.",
            )
