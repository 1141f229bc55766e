"""Backgrounds for moved subjects, painted by an inpainting model through diffusers' pipeline."""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack
from functools import cached_property
from typing import Any

import numpy as np
from diffusers import DPMSolverMultistepScheduler, StableDiffusionInpaintPipeline
from PIL import Image

from profusion_cli.augmentation import Augmented, background_prompt
from profusion_cli.config import BaseConfig, Config, InpaintModel
from profusion_cli.errors import DeviceError, UnavailableError
from profusion_cli.listener import LOGGED, Listener
from profusion_cli.runtime.backbone import quiet_libraries
from profusion_cli.runtime.device import Placement, free_memory, picture_generator, repeatable, resolve_placement
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


class Painter:
    """An inpainting model, read once, that is on the device while it paints.

    Use as a context manager.

    Args:
        config: the resolved configuration.
        listener: who hears of it.

    Raises:
        UnavailableError: the model cannot be had.
    """

    def __init__(self, config: Config, listener: Listener) -> None:
        self._config, self._listener = config, listener
        placement, side = resolve_placement(config.device, config.dtype, training=False), config.base.resolution
        self._model = InpaintingModel(config.augment.model, placement, side, listener)
        self._stack = ExitStack()

    def __enter__(self) -> Painter:
        config, model = self._config, self._model
        with repeatable(config.deterministic), ExitStack() as stack:
            stack.enter_context(model)
            model.latent_size(config.base.resolution, config.base.resolution)
            pipeline = model.pipeline  # what is wrong with it shows before any picture
            if config.augment.solver == "dpm-solver++":
                with quiet_libraries():
                    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(model.scheduler.config)
            for text in (background_prompt(config), config.augment.negative_prompt):
                if len(model.tokenizer(text, verbose=False).input_ids) > model.tokenizer.model_max_length:
                    self._listener.warn(f"The inpainting prompt '{text[:60]}...' is too long; its end is cut off.")
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        free_memory()

    def paint(self, augmented: Augmented) -> tuple[np.ndarray, dict[str, Any]]:
        """Paint around the subjects of one photo.

        Every picture has a generator of its own, from its seed, so that the batch size changes nothing.

        Returns:
            uint8 pictures of shape (N, S, S, 3), in which the subjects are repainted too, if only slightly; and what a
            manifest remembers of the model.

        Raises:
            DeviceError: the precision does not suffice.
        """
        config, settings, size = self._config, self._config.augment, len(augmented.original)
        images = augmented.images
        holes = [Image.fromarray(255 - mask) for mask in augmented.masks]
        painted, starts = [], range(0, len(images), settings.batch_size)
        with (
            repeatable(config.deterministic),
            self._listener.progress("Inpainting", len(starts) * settings.steps) as step,
            quiet_libraries(),
        ):
            pipeline = self._model.pipeline.to(self._model.placement.device)
            for number, start in enumerate(starts):
                part = slice(start, start + settings.batch_size)
                count = len(images[part])

                def report(_: Any, done: int, __: Any, values: dict[str, Any], number: int = number) -> dict[str, Any]:
                    step(number * settings.steps + done + 1, "")
                    return values

                made = pipeline(
                    prompt=[background_prompt(config)] * count,
                    negative_prompt=[settings.negative_prompt] * count,
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
                        f"Inpainting gave non-finite numbers in {pipeline.dtype}.", "Use --dtype float32."
                    )
                painted.append((made * 255).round().astype(np.uint8))
            pipeline.to("cpu")
        free_memory()
        return np.concatenate(painted), self._model.manifest({})


def paint_backgrounds(augmented: Augmented, config: Config, listener: Listener) -> tuple[np.ndarray, dict[str, Any]]:
    """Paint around the subjects of one photo alone; see `Painter`."""
    with Painter(config, listener) as painter:
        return painter.paint(augmented)
