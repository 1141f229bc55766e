"""Backgrounds for moved subjects, painted by an inpainting model through diffusers' pipeline."""

from __future__ import annotations

import dataclasses
from functools import cached_property
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionInpaintPipeline
from PIL import Image

from profusion_cli.augmentation import Augmented, background_prompt
from profusion_cli.config import BaseConfig, Config, InpaintModel
from profusion_cli.errors import DeviceError, UnavailableError
from profusion_cli.listener import LOGGED, Listener
from profusion_cli.runtime.backbone import quiet_libraries
from profusion_cli.runtime.device import Placement, picture_generator, repeatable, resolve_placement
from profusion_cli.runtime.hub import Source
from profusion_cli.runtime.pipelines import PipelineModel

INPAINTING_CHANNELS = 9
OTHER_WAYS = "--set augment.model.id=FOLDER, or use plain backgrounds with --no-inpaint"


class InpaintingModel(PipelineModel):
    """An inpainting model in diffusers' folder layout."""

    inpainting = True
    pipeline_class = StableDiffusionInpaintPipeline

    def __init__(self, model: InpaintModel, placement: Placement, resolution: int, listener: Listener = LOGGED) -> None:
        random = model.random if model.id is None else None
        name = model.id or f"random weights ({model.random.size})"
        config = BaseConfig(
            *(name, model.revision, model.unet), random=random, resolution=resolution, pad_token_id=model.pad_token_id
        )
        super().__init__(config, placement, listener)

    def source(self, name: str) -> Source:
        return dataclasses.replace(super().source(name), option=OTHER_WAYS)

    @cached_property
    def pipeline(self) -> StableDiffusionInpaintPipeline:
        """Diffusers' pipeline.

        Raises:
            UnavailableError: parts that cannot be had, or a UNet that is not for inpainting.
        """
        channels = self._settings("unet").get("in_channels")
        if channels != INPAINTING_CHANNELS:
            raise UnavailableError(
                f"The UNet of '{self.config.id}' takes {channels} channels, and one for inpainting takes "
                f"{INPAINTING_CHANNELS}.",
                f"Point to an inpainting model with {OTHER_WAYS}.",
            )
        return super().pipeline


def paint_backgrounds(augmented: Augmented, config: Config, listener: Listener) -> tuple[np.ndarray, dict[str, Any]]:
    """Paint around the subjects.

    Every picture has a generator of its own, from its seed, so that the batch size changes nothing.

    Args:
        augmented: the moved subjects.
        config: the resolved configuration.
        listener: who hears of it.

    Returns:
        uint8 pictures of shape (N, S, S, 3), in which the subjects are repainted too, if only slightly; and what a
        manifest remembers of the model.

    Raises:
        UnavailableError: the model cannot be had.
        DeviceError: the precision does not suffice.
    """
    settings, size = config.augment, len(augmented.original)
    placement = resolve_placement(config.device, config.dtype, training=False)
    images = augmented.images
    holes = [Image.fromarray(255 - mask) for mask in augmented.masks]
    texts = background_prompt(config), settings.negative_prompt
    painted = []
    with repeatable(config.deterministic), InpaintingModel(settings.model, placement, size, listener) as model:
        model.latent_size(size, size)
        pipeline = model.pipeline
        for text in texts:
            if len(model.tokenizer(text, verbose=False).input_ids) > model.tokenizer.model_max_length:
                listener.warn(f"The inpainting prompt '{text[:60]}...' is too long; its end is cut off.")
        starts = range(0, len(images), settings.batch_size)
        with listener.progress("Inpainting", len(starts) * settings.steps) as step, quiet_libraries():
            for number, start in enumerate(starts):
                part = slice(start, start + settings.batch_size)
                count = len(images[part])

                def report(_: Any, done: int, __: Any, values: dict[str, Any], number: int = number) -> dict[str, Any]:
                    step(number * settings.steps + done + 1, "")
                    return values

                made = pipeline(
                    prompt=[texts[0]] * count,
                    negative_prompt=[texts[1]] * count,
                    image=images[part],
                    mask_image=holes[part],
                    height=size,
                    width=size,
                    strength=1.0,
                    num_inference_steps=settings.steps,
                    guidance_scale=settings.guidance_scale,
                    generator=[picture_generator(seed, 0) for seed in augmented.seeds[part]],
                    output_type="np",
                    callback_on_step_end=report,
                ).images
                if not np.isfinite(made).all():
                    raise DeviceError(
                        f"Inpainting gave non-finite numbers in {placement.dtype}.", "Use --dtype float32."
                    )
                painted.append((made * 255).round().astype(np.uint8))
        origin = model.manifest({})
        del pipeline
        model.release("pipeline")
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return np.concatenate(painted), origin
