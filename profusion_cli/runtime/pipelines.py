"""Models behind pipelines of diffusers' own; and the base model alone in one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, StableDiffusionPipeline
from PIL import Image

from profusion_cli.runtime.backbone import BaseModel, quiet_libraries
from profusion_cli.runtime.device import picture_generator
from profusion_cli.runtime.parts import parts_for
from profusion_cli.sampling import SampleConfig


class PipelineVAE(AutoencoderKL):
    """A VAE that computes in its own precision inside a pipeline that hands it tensors of the UNet's."""

    def encode(self, x: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        return super().encode(x.to(self.dtype), *arguments, **options)

    def decode(self, z: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        return super().decode(z.to(self.dtype), *arguments, **options)


class PipelineModel(BaseModel):
    """A model of which one of diffusers' pipelines makes pictures, all of it on the device, the VAE in the precision
    that the placement gives it."""

    pipeline_class: type[DiffusionPipeline]

    @cached_property
    def pipeline(self) -> Any:
        """The pipeline, with the DDIM schedule that `sample` uses.

        Raises:
            UnavailableError: parts that cannot be had.
        """
        if self.config.random is None:
            for name in parts_for("draws"):  # before the first gigabytes are read
                self.files(name)
        parts = {
            "unet": self._load("unet", self.placement.dtype),
            "vae": self._load("vae", self.placement.encoder_dtype, PipelineVAE),
            "text_encoder": self._load("text_encoder", self.placement.dtype),
        }
        with quiet_libraries():
            pipeline = self.pipeline_class(
                **{name: part.to(self.placement.device) for name, part in parts.items()},
                tokenizer=self.tokenizer,
                scheduler=self.scheduler,
                safety_checker=None,
                feature_extractor=None,
                requires_safety_checker=False,
            )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline


class TextToImage(PipelineModel):
    """The base model as it is."""

    pipeline_class = StableDiffusionPipeline

    def draw(
        self,
        prompt: str,
        indices: Sequence[int],
        settings: SampleConfig,
        guidance_scale: float,
        seed: int,
        progress: Callable[[int], None] = lambda _: None,
    ) -> list[Image.Image]:
        """Pictures j of a prompt without S*, each from the generator of seed + j.

        Args:
            prompt: plain text.
            indices: the numbers j.
            settings: steps, batch size, width and height, and the negative prompt.
            guidance_scale: of plain classifier-free guidance.
            seed: see above.
            progress: called with the number of pictures done.
        """
        pictures: list[Image.Image] = []
        for first in range(0, len(indices), settings.batch_size):
            part = indices[first : first + settings.batch_size]
            with quiet_libraries():
                pictures += self.pipeline(
                    [prompt] * len(part),
                    negative_prompt=[settings.negative_prompt] * len(part),
                    num_inference_steps=settings.steps,
                    guidance_scale=guidance_scale,
                    eta=settings.eta,
                    generator=[picture_generator(seed, index) for index in part],
                    height=settings.height or self.config.resolution,
                    width=settings.width or self.config.resolution,
                    clip_skip=self.config.clip_skip or None,
                ).images
            progress(len(pictures))
        return pictures
