"""The pictures that sampling leaves behind: their names, their records, and where they came from."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from profusion_cli import __version__
from profusion_cli.bundle import Bundle
from profusion_cli.config import Config
from profusion_cli.errors import BundleError, UsageError
from profusion_cli.files import STDIO, check_target
from profusion_cli.images import parameters_text
from profusion_cli.prompts import Prompt

DEFAULT_FOLDER = "pictures"
UNUSED: dict[str, tuple[str, ...]] = {
    "cfg": ("fusion_steps", "gamma", "gamma_on", "subject_prompt", "text_guidance", "fusion_guidance", "fusion_eta"),
    "fusion-only": ("subject_prompt", "text_guidance", "eta"),
    "fusion": (),
}
"""Settings that a sampler does not look at."""


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
    """The first reference view of each subject, from the bundle's preview."""
    pictures = []
    for bundle in bundles:
        if bundle.preview is None:
            continue
        strip = Image.open(io.BytesIO(bundle.preview)).convert("RGB")
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


def plan_targets(
    target: str | None, prompts: Sequence[Prompt], config: Config, force: bool, as_json: bool
) -> dict[tuple[int, int], str]:
    """Where each picture goes, checked before the work.

    Raises:
        UsageError: one file for several pictures.
        OutputError: something is in the way.
    """
    count = len(prompts) * config.sample.num_images
    if target == STDIO or (target is not None and target.lower().endswith(".png")):
        if count > 1:
            where = "standard output" if target == STDIO else f"the one file '{target}'"
            raise UsageError(f"{count} pictures do not fit into {where}.", "Name a folder with -o.")
        targets = {(0, 0): target}
    else:
        folder = Path(target or DEFAULT_FOLDER)
        targets = {
            (number, index): str(folder / picture_name(number, prompt.text, config.seed + index))
            for number, prompt in enumerate(prompts)
            for index in range(config.sample.num_images)
        }
    for path in targets.values():
        check_target(path, force, as_json)
    return targets


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
        "base": bundles[0].manifest["base"],
        "subjects": [lineage(bundle) for bundle in bundles],
        "sample": config.as_dict()["sample"],
    }


def picture_parameters(record: dict[str, Any], config: Config, image: Image.Image) -> str:
    """The `parameters` text that other tools read."""
    settings = config.sample
    used = {
        "Steps": settings.steps,
        "Sampler": "Fusion Sampling (DDIM)" if settings.sampler == "fusion" else f"{settings.sampler} (DDIM)",
        "CFG scale": ",".join(f"{scale:g}" for scale in settings.subject_guidance),
        "Seed": record["seed"],
        "Size": f"{image.width}x{image.height}",
        "Model": config.base.id,
    }
    for name in ("gamma", "fusion_steps", "text_guidance", "fusion_guidance"):
        if name not in UNUSED[settings.sampler]:
            used[name.replace("_", " ").capitalize()] = getattr(settings, name)
    return parameters_text(record["prompt"], settings.negative_prompt, used)
