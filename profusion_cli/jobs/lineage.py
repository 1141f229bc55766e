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
from profusion_cli.images.marks import COMPOSITE, TRAINED, made_by
from profusion_cli.plans import EXACT, plan_of, shape_of
from profusion_cli.prompts import Prompt, parse_prompt
from profusion_cli.samplers import SAMPLERS
from profusion_cli.starting import Start


def lineage(bundle: Bundle) -> dict[str, Any]:
    """What a picture remembers of a subject: the bundle, and the photos that it was made from."""
    return {
        "name": Path(bundle.name).name,
        "sha256": bundle.sha256,
        "inputs": bundle.manifest["inputs"],
        "parents": bundle.manifest["parents"],
    }


def picture_record(
    prompt: Prompt,
    twin: str,
    index: int,
    bundles: Sequence[Bundle],
    class_words: Sequence[str],
    config: Config,
    start: Start | None = None,
) -> dict[str, Any]:
    """What a picture remembers of its making, as plain data.

    Args:
        prompt: its prompt.
        twin: the prompt's text without the subject.
        index: its number j among the pictures of the prompt.
        bundles: of its subjects.
        class_words: what they are.
        config: the resolved configuration.
        start: what it was drawn over.
    """
    return {
        "tool": {"name": "profusion", "version": __version__},
        "prompt": prompt.text,
        "text": twin,
        "seed": config.seed + index,
        "base": {**bundles[0].manifest["base"], "id": public_id(config.base.id)},
        "subjects": [lineage(bundle) for bundle in bundles],
        **_drawn_by(config),
        **({"class_word": class_words[0]} if len(set(class_words)) == 1 else {}),
        "placeholder": config.placeholder,
        "concept_prompt": config.concept_prompt,
        **({} if start is None else {"start": start.record()}),
        **made_by(COMPOSITE if start is not None and start.mask is not None else TRAINED, config.mark),
    }


def preview_record(
    prompts: Sequence[str], inputs: Sequence[dict[str, Any]], times: Sequence[int], config: Config
) -> dict[str, Any]:
    """What a sheet of previews remembers of its making, like a picture; the subject, in training, is no bundle yet.

    Args:
        prompts: texts with S*.
        inputs: kind, name and SHA-256 of the photos that it is tuned on.
        times: how many steps were done each time that previews were drawn.
        config: the resolved configuration.
    """
    parsed = [parse_prompt(text, config.placeholder) for text in prompts]
    each = [{"prompt": prompt.text, "text": prompt.twin([config.class_word])} for prompt in parsed]
    return {
        "tool": {"name": "profusion", "version": __version__},
        **each[0],
        "seed": config.seed,
        "base": {"id": public_id(config.base.id)},
        "inputs": list(inputs),
        "finetune": config.as_dict()["finetune"],
        "previews": list(times),
        **_drawn_by(config),
        **made_by(TRAINED, config.mark),
        "pictures": [{**one, "seed": config.seed} for one in each],
    }


def _drawn_by(config: Config) -> dict[str, Any]:
    """What the sampler of a picture was told."""
    shape = shape_of(config)
    plan = {} if shape is None else {"plan": asdict(shape) | {"steps": len(plan_of(config).steps)}}
    return {"sample": config.as_dict()["sample"], **plan}


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
    if "start" in record:
        used["Denoising strength"] = record["start"]["strength"]
    for name in ("gamma", "fusion_steps", "text_guidance", "fusion_guidance"):
        if name not in kind.unused(settings.fusion_steps):
            used[name.replace("_", " ").capitalize()] = getattr(settings, name)
    return parameters_text(record["prompt"], settings.negative_prompt, used)
