"""What is measured: ways to draw a picture, and single evaluations of the networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from profusion_cli.config import Config
from profusion_cli.plans import Cost, asked_of, cost_of, plan_of
from profusion_cli.prompts import parse_prompt
from profusion_cli.runtime.backbone import BaseModel, quiet_libraries
from profusion_cli.runtime.device import picture_generator, ready
from profusion_cli.runtime.drawing import draw_latents, tokenize
from profusion_cli.runtime.model import Conditioning, predict
from profusion_cli.runtime.promptnet import PromptNet
from profusion_cli.runtime.sampling import subject_of
from profusion_cli.runtime.training import finetune
from profusion_cli.runtime.views import Views
from profusion_cli.runtime.weights import load_promptnet

PROMPT = "S* on a beach"
PIPELINE_STEPS, PIPELINE_GUIDANCE = 50, 7.5
"""Of diffusers' pipeline: what its documentation takes for Stable Diffusion 2."""
GREY = (127, 127, 127)


@dataclass(frozen=True)
class Way:
    """A way to draw a picture.

    Args:
        name: of it.
        steps: of its schedule.
        cut: what so many of a picture's first steps cost.
        run: draws as many of a picture's first steps.
    """

    name: str
    steps: int
    cut: Callable[[int], Cost]
    run: Callable[[int], None]


def _grey(config: Config) -> Image.Image:
    return Image.new("RGB", (config.base.resolution,) * 2, GREY)


def _grey_subject(base: BaseModel, config: Config) -> tuple[PromptNet, Views]:
    """PromptNet, and a grey photo for it."""
    photo = [_grey(config)]
    views = Views(*base.encode_moments(photo), base.encode_image_tokens(photo))
    return load_promptnet(config.promptnet, base, config.seed).promptnet, views


class _EnoughSteps(Exception):
    """So many steps were asked for."""


class Bench:
    """A base model, PromptNet and a grey photo's S*, on the device.

    Args:
        base: the entered base model.
        config: the resolved configuration.
    """

    def __init__(self, base: BaseModel, config: Config) -> None:
        self.base, self.config, placement = base, config, base.placement
        promptnet, views = _grey_subject(base, config)
        base.release("vision")
        promptnet = ready(promptnet.eval(), placement, config.compile)
        self.subject = subject_of(base, promptnet, views, 0, config.class_word)
        with quiet_libraries():
            self.unet = ready(base.unet, placement, config.compile)
        self.latents = torch.randn(
            (1, self.unet.config.in_channels, *base.size_of(config.sample)), generator=picture_generator(0, 0)
        ).to(placement.device)
        self.states = base.text.encode(parse_prompt(PROMPT).twin([config.class_word]))

    def ways(self) -> list[Way]:
        """Of drawing a picture: diffusers' pipeline first, and then ours."""
        own = self.config.sample
        own = replace(own, areas=None, weights=None, subject_guidance=own.subject_guidance[:1])  # there is one subject
        settings = {
            "plain guidance": replace(own, sampler="cfg", speed="exact"),
            "Fusion Sampling, exact": replace(own, sampler="fusion", speed="exact"),
            "Fusion Sampling, fast": replace(own, sampler="fusion", speed="fast"),
            "Fusion Sampling, draft": replace(own, sampler="fusion", speed="draft"),
        }
        return [
            self._pipeline(),
            *(self._way(name, replace(self.config, sample=one)) for name, one in settings.items()),
        ]

    def _way(self, name: str, config: Config) -> Way:
        plan, settings, scales = plan_of(config), config.sample, config.sample.subject_guidance
        tokens = tokenize(
            self.base, parse_prompt(PROMPT), [self.subject], [config.class_word], settings, config.concept_prompt
        )

        def cut(limit: int) -> Cost:
            return cost_of(replace(plan, steps=plan.steps[:limit]), asked_of(settings, scales))

        def run(limit: int) -> None:
            def stop(done: int) -> None:
                if done >= limit:
                    raise _EnoughSteps

            with suppress(_EnoughSteps):
                generators = [picture_generator(config.seed, 0)]
                draw_latents(self.base, self.unet, [self.subject], tokens, settings, plan, scales, generators, stop)

        return Way(name, len(plan.steps), cut, run)

    def _pipeline(self) -> Way:
        """Diffusers' pipeline with the same UNet and schedule; the text is encoded beforehand."""
        parts = {"unet": self.unet, "vae": self.base.vae, "scheduler": self.base.scheduler, "safety_checker": None}
        with quiet_libraries():
            pipeline = StableDiffusionPipeline(
                **parts, text_encoder=None, tokenizer=None, feature_extractor=None, requires_safety_checker=False
            )
        pipeline.set_progress_bar_config(disable=True)
        states = self.states.to(self.base.placement.dtype)
        side = self.config.base.resolution
        height, width = self.config.sample.height or side, self.config.sample.width or side

        def run(limit: int) -> None:
            def stop(pipe: StableDiffusionPipeline, done: int, t: int, tensors: Mapping) -> Mapping:
                pipe._interrupt = done + 1 >= limit
                return tensors

            pipeline(
                prompt_embeds=states,
                negative_prompt_embeds=states,
                num_inference_steps=PIPELINE_STEPS,
                guidance_scale=PIPELINE_GUIDANCE,
                height=height,
                width=width,
                generator=picture_generator(self.config.seed, 0),
                output_type="latent",
                callback_on_step_end=stop,
            )

        def cut(limit: int) -> Cost:
            return Cost(2 * limit, 0, 0)

        return Way("diffusers' pipeline, guidance", PIPELINE_STEPS, cut, run)

    def parts(self) -> dict[str, Callable[[], object]]:
        """Single evaluations, by the names of the networks, on one picture."""
        base, at = self.base, torch.tensor(500, device=self.latents.device)
        embeds = base.text.splice(base.text.tokenize((parse_prompt(PROMPT).twin([self.config.class_word]),)), {})[0]
        return {
            "UNet": lambda: predict(self.unet, self.latents, at, Conditioning(self.states)),
            "PromptNet": lambda: self.subject.pseudo_word(self.latents, at),
            "text encoder": lambda: base.text.hidden_states(embeds),
            "VAE, decoding": lambda: base.decode(self.latents),
            "VAE, encoding": lambda: base.encode_moments([_grey(self.config)]),
        }


def tuning_steps(base: BaseModel, config: Config, steps: int, step: Callable[[int], None]) -> None:
    """A fine-tuning of so many steps on a grey photo.

    Args:
        base: the entered base model, placed for training.
        config: section `finetune`, but for its steps.
        steps: how many.
        step: called with the number of steps done.
    """
    promptnet, views = _grey_subject(base, config)
    base.release("vision", "vae")
    own = replace(config.finetune, steps=steps)
    finetune(base, promptnet, views, own, config.concept_prompt, config.seed, lambda done, _: step(done))
