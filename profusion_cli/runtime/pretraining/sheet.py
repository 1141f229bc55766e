"""What a PromptNet draws on the way."""

from __future__ import annotations

import copy
from dataclasses import asdict
from typing import Any

from profusion_cli import __version__
from profusion_cli.images import contact_sheet, encode_png, parameters_text, public_id
from profusion_cli.images.marks import TRAINED, made_by
from profusion_cli.mappings import plain
from profusion_cli.plans import exact_plan
from profusion_cli.prompts import Prompt, parse_prompt
from profusion_cli.runtime.device import picture_generator
from profusion_cli.runtime.drawing import draw_latents, tokenize
from profusion_cli.runtime.parts import parts_for
from profusion_cli.runtime.pretraining.sources import Pictures
from profusion_cli.runtime.pretraining.trainer import Trainer
from profusion_cli.runtime.sampling import subject_of
from profusion_cli.samplers import SAMPLERS
from profusion_cli.sampling import SampleConfig

PICTURES = 4


def draw_sheet(trainer: Trainer, pictures: Pictures, number: int) -> bytes:
    """A few pictures, and what "a photo of S*" draws of each by plain classifier-free guidance.

    Returns:
        A PNG file with its record, as after step `number`.
    """
    config, base = trainer.config, trainer.base
    guidance = config.sample.subject_guidance[:1]
    settings = SampleConfig(sampler="cfg", steps=config.pretrain.sample_steps, subject_guidance=guidance)
    plan = exact_plan(settings.steps, fusion_steps=0)
    promptnet = copy.deepcopy(trainer.promptnet)
    promptnet.load_state_dict(trainer.weights())
    promptnet.eval()
    squares, views = pictures.examples(PICTURES)
    prompt = parse_prompt(config.concept_prompt)
    drawn = []
    trainer.unet.eval()
    for j in range(len(squares)):
        subject = subject_of(base, promptnet, views, j, config.class_word)
        tokens = tokenize(base, prompt, [subject], [config.class_word], settings, config.concept_prompt)
        generators = [picture_generator(config.seed, j)]
        latents = draw_latents(base, trainer.unet, [subject], tokens, settings, plan, guidance, generators)
        drawn += base.decode(latents)
    trainer.unet.train()
    record = _record(trainer, prompt, settings, number)
    used = {"Steps": settings.steps, "Sampler": SAMPLERS["cfg"].label, "CFG scale": f"{guidance[0]:g}"}
    used |= {"Seed": config.seed, "Model": record["base"]["id"]}
    sheet = contact_sheet([(config.concept_prompt, drawn)], [("", square) for square in squares])
    return encode_png(sheet, parameters_text(config.concept_prompt, "", used), record)


def _record(trainer: Trainer, prompt: Prompt, settings: SampleConfig, number: int) -> dict[str, Any]:
    """What the sheet remembers of its making, as plain data; like any picture's, but its subjects are in training."""
    config, base = trainer.config, trainer.base
    known = base.manifest(base.fingerprints(*parts_for("promptnet")))
    return {
        "tool": {"name": "profusion", "version": __version__},
        "prompt": prompt.text,
        "text": prompt.twin([config.class_word]),
        "seed": config.seed,
        "base": {**known, "id": public_id(known["id"])},
        "pretrain": {"step": number},
        "sample": plain(asdict(settings)),
        **made_by(TRAINED, config.mark),
    }
