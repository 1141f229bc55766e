"""What a picture remembers of its making."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image

from profusion_cli import __version__
from profusion_cli.bundle import Bundle
from profusion_cli.config import Config
from profusion_cli.images import parameters_text, public_id
from profusion_cli.plans import EXACT, plan_of, shape_of
from profusion_cli.prompts import Prompt
from profusion_cli.samplers import SAMPLERS


def lineage(bundle: Bundle) -> dict[str, Any]:
    """What a picture remembers of a subject: the bundle, and the photos that it was made from."""
    return {
        "name": Path(bundle.name).name,
        "sha256": bundle.sha256,
        "inputs": bundle.manifest["inputs"],
        "parents": bundle.manifest["parents"],
    }


def picture_record(prompt: Prompt, twin: str, index: int, bundles: Sequence[Bundle], config: Config) -> dict[str, Any]:
    """What a picture remembers of its making, as plain data.

    Args:
        prompt: its prompt.
        twin: the prompt's text without the subject.
        index: its number j among the pictures of the prompt.
        bundles: of its subjects.
        config: the resolved configuration.
    """
    shape = shape_of(config)
    return {
        "tool": {"name": "profusion", "version": __version__},
        "prompt": prompt.text,
        "text": twin,
        "seed": config.seed + index,
        "base": {**bundles[0].manifest["base"], "id": public_id(config.base.id)},
        "subjects": [lineage(bundle) for bundle in bundles],
        "sample": config.as_dict()["sample"],
        **({} if shape is None else {"plan": asdict(shape) | {"steps": len(plan_of(config).steps)}}),
    }


def picture_parameters(record: dict[str, Any], config: Config, image: Image.Image) -> str:
    """The `parameters` text that other tools read."""
    settings = config.sample
    kind, steps = SAMPLERS[settings.sampler], plan_of(config).steps
    second = any(step.order == 2 for step in steps)
    used = {
        "Steps": len(steps),
        "Sampler": kind.label.replace("DDIM", "DDIM, DPM-Solver++") if second else kind.label,
        "CFG scale": ",".join(f"{scale:g}" for scale in settings.subject_guidance),
        "Seed": record["seed"],
        "Size": f"{image.width}x{image.height}",
        "Model": public_id(config.base.id),
    }
    if settings.speed != EXACT:
        used["Speed"] = settings.speed
    for name in ("gamma", "fusion_steps", "text_guidance", "fusion_guidance"):
        if name not in kind.unused(settings.fusion_steps):
            used[name.replace("_", " ").capitalize()] = getattr(settings, name)
    return parameters_text(record["prompt"], settings.negative_prompt, used)
