"""The pictures that sampling leaves behind: their names, their records, and where they came from."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from profusion_cli import __version__
from profusion_cli.bundle import Bundle
from profusion_cli.config import Config
from profusion_cli.errors import BundleError, InputError, UsageError
from profusion_cli.files import STDIO, check_target
from profusion_cli.images import decode_photo, parameters_text
from profusion_cli.prompts import Prompt
from profusion_cli.samplers import SAMPLERS

DEFAULT_FOLDER = "pictures"
FILE_SUFFIXES = (
    *(".png", ".apng", ".jpg", ".jpeg", ".webp", ".gif", ".tif", ".tiff", ".bmp", ".avif", ".jp2", ".svg", ".pdf"),
    *(".mp4", ".avi", ".mov", ".webm", ".mkv", ".zip", ".pfz"),
)
"""What a name ends in that is meant for a file, not for a folder of pictures."""


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


def picture_name(number: int, prompt: str, seed: int) -> str:
    """File name of a picture: number of the prompt, its words, and the seed."""
    words = re.sub(r"[^a-z0-9]+", "-", prompt.lower().replace("*", "")).strip("-")[:60].strip("-")
    return f"{number + 1:02d}-{words or 'picture'}-{seed}.png"


def lineage(bundle: Bundle) -> dict[str, Any]:
    """What a picture remembers of a subject: the bundle, and the photos that it was made from."""
    return {
        "name": Path(bundle.name).name,
        "sha256": bundle.sha256,
        "inputs": bundle.manifest["inputs"],
        "parents": bundle.manifest["parents"],
    }


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


def check_suffix(target: str, written: Sequence[str]) -> None:
    """A name is that of a folder, or of a file of a kind that is written here.

    Raises:
        UsageError: it is empty, or that of another file.
    """
    if not target:
        raise UsageError("The name of the output is empty.", "Name a file or a folder with -o.")
    suffix = Path(target).suffix.lower()
    if suffix in FILE_SUFFIXES and suffix not in written and not os.path.isdir(target):
        kinds = " or ".join(", ".join(written).rsplit(", ", 1))
        raise UsageError(
            f"'{target}' would be a {suffix} file, which is not written here.", f"Use a {kinds} name, or a folder."
        )


def plan_targets(
    target: str | None, prompts: Sequence[Prompt], config: Config, force: bool, as_json: bool
) -> dict[tuple[int, int], str]:
    """Where each picture goes, checked before the work.

    Raises:
        UsageError: one file for several pictures, or for something else than a PNG.
        OutputError: something is in the way.
    """
    if target is not None:
        check_suffix(target, (".png",))
    count = len(prompts) * config.sample.num_images
    if target == STDIO or (target is not None and target.lower().endswith(".png")):
        if count > 1:
            where = "standard output" if target == STDIO else f"the one file '{target}'"
            raise UsageError(f"{count} pictures do not fit into {where}.", "Name a folder with -o.")
        targets = {(0, 0): target}
    else:
        folder = Path(DEFAULT_FOLDER if target is None else target)
        targets = {
            (number, index): str(folder / picture_name(number, prompt.text, config.seed + index))
            for number, prompt in enumerate(prompts)
            for index in range(config.sample.num_images)
        }
    for path in targets.values():
        check_target(path, force, as_json)
    return targets


def public_id(id: str) -> str:
    """A Hub id as it is; of a folder its name alone, since pictures are shown to others."""
    return os.path.basename(id) if os.path.isabs(id) else id


def picture_record(prompt: Prompt, twin: str, index: int, bundles: Sequence[Bundle], config: Config) -> dict[str, Any]:
    """What a picture remembers of its making, as plain data.

    Args:
        prompt: its prompt.
        twin: the prompt's text without the subject.
        index: its number j among the pictures of the prompt.
        bundles: of its subjects.
        config: the resolved configuration.
    """
    return {
        "tool": {"name": "profusion", "version": __version__},
        "prompt": prompt.text,
        "text": twin,
        "seed": config.seed + index,
        "base": {**bundles[0].manifest["base"], "id": public_id(config.base.id)},
        "subjects": [lineage(bundle) for bundle in bundles],
        "sample": config.as_dict()["sample"],
    }


def picture_parameters(record: dict[str, Any], config: Config, image: Image.Image) -> str:
    """The `parameters` text that other tools read."""
    settings = config.sample
    kind = SAMPLERS[settings.sampler]
    used = {
        "Steps": settings.steps,
        "Sampler": kind.label,
        "CFG scale": ",".join(f"{scale:g}" for scale in settings.subject_guidance),
        "Seed": record["seed"],
        "Size": f"{image.width}x{image.height}",
        "Model": public_id(config.base.id),
    }
    for name in ("gamma", "fusion_steps", "text_guidance", "fusion_guidance"):
        if name not in kind.unused(settings.fusion_steps):
            used[name.replace("_", " ").capitalize()] = getattr(settings, name)
    return parameters_text(record["prompt"], settings.negative_prompt, used)
