"""What a PromptNet draws on the way."""

from __future__ import annotations

import copy

from PIL import Image

from profusion_cli.config import SampleConfig
from profusion_cli.dataset import load_square
from profusion_cli.images import contact_sheet
from profusion_cli.prompts import parse_prompt
from profusion_cli.runtime.device import picture_generator
from profusion_cli.runtime.pretraining.encodings import Encodings
from profusion_cli.runtime.pretraining.trainer import Trainer
from profusion_cli.runtime.sampling import draw_pictures, subject_of, tokenize

PICTURES = 4


def draw_sheet(trainer: Trainer, encodings: Encodings) -> Image.Image:
    """A few pictures, and what "a photo of S*" draws of each by plain classifier-free guidance."""
    config, base = trainer.config, trainer.base
    guidance = config.sample.subject_guidance[:1]
    settings = SampleConfig(sampler="cfg", steps=config.pretrain.sample_steps, subject_guidance=guidance)
    promptnet = copy.deepcopy(trainer.promptnet)
    promptnet.load_state_dict(trainer.weights())
    promptnet.eval()
    chosen = list(encodings.dataset.targets[:PICTURES])
    views = encodings.views(chosen)
    prompt = parse_prompt(config.concept_prompt)
    squares, drawn = [], []
    trainer.unet.eval()
    for j, index in enumerate(chosen):
        subject = subject_of(base, promptnet, views, j, config.class_word)
        tokens = tokenize(base, prompt, [subject], [config.class_word], settings, config.concept_prompt)
        generators = [picture_generator(config.seed, j)]
        drawn += draw_pictures(base, trainer.unet, [subject], tokens, settings, guidance, generators)
        squares.append(("", load_square(encodings.dataset, index, config.base.resolution)))
    trainer.unet.train()
    return contact_sheet([(config.concept_prompt, drawn)], squares)
