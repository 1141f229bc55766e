"""Fusion Sampling (arXiv 2305.13579) of one subject, as a pipeline of diffusers.

pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
pipe("S* in anime style", generator=torch.Generator().manual_seed(0)).images[0]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline, ImagePipelineOutput, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from profusion_cli.plans import PlanConfig, PlansConfig, plan_of
from profusion_cli.prompts import parse_prompt
from profusion_cli.runtime.denoiser import PromptNetSubject
from profusion_cli.runtime.drawing import decode, draw_latents, tokenize
from profusion_cli.runtime.text import TextConditioner
from profusion_cli.sampling import SampleConfig

_CLASSES = {
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModel,
    "tokenizer": CLIPTokenizer,
    "scheduler": DDIMScheduler,
}


class ProFusionPipeline(DiffusionPipeline):
    """Draws one subject, S*, wherever prompts put it.

    Args:
        promptnet: the subject's `SubjectPromptNet`.
        unet, vae, text_encoder, tokenizer, scheduler: of the base model; what is left out is loaded from `base`.
        base: id, revision and sub-folder of each part of the base model.
        resolution: of the base model, in pixels.
        clip_skip: last layers of the text encoder that are left out.
        pad_token_id: of the token that fills up prompts; None: the tokenizer's own.
        placeholder: the word that stands for the subject.
        concept_prompt: the prompt for the subject alone.
        sample, plans: settings of the sampler, and plans of its `speed`.
    """

    _optional_components: ClassVar[list[str]] = list(_CLASSES)

    def __init__(
        self,
        promptnet: Any,
        unet: UNet2DConditionModel | None = None,
        vae: AutoencoderKL | None = None,
        text_encoder: CLIPTextModel | None = None,
        tokenizer: CLIPTokenizer | None = None,
        scheduler: DDIMScheduler | None = None,
        base: Mapping[str, Sequence[str | None]] | None = None,
        resolution: int = 512,
        clip_skip: int = 0,
        pad_token_id: int | None = None,
        placeholder: str = "S*",
        concept_prompt: str = "a photo of S*",
        sample: Mapping[str, Any] | None = None,
        plans: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        super().__init__()
        given = {"unet": unet, "vae": vae, "text_encoder": text_encoder, "tokenizer": tokenizer, "scheduler": scheduler}
        parts = {
            name: self._fetched(name, base, promptnet.dtype) if part is None else part for name, part in given.items()
        }
        if pad_token_id is not None:
            parts["tokenizer"].pad_token = parts["tokenizer"].convert_ids_to_tokens(pad_token_id)
        promptnet.change(parts["unet"])
        parts["scheduler"] = DDIMScheduler.from_config(parts["scheduler"].config)
        self.register_modules(promptnet=promptnet, **parts)
        self.register_to_config(
            base=base,
            resolution=resolution,
            clip_skip=clip_skip,
            pad_token_id=pad_token_id,
            placeholder=placeholder,
            concept_prompt=concept_prompt,
            sample=sample,
            plans=plans,
        )
        self.text = TextConditioner(parts["text_encoder"], parts["tokenizer"], clip_skip)

    @staticmethod
    def _fetched(name: str, base: Mapping[str, Sequence[str | None]] | None, dtype: torch.dtype) -> Any:
        """A part of the base model, from where that is."""
        if base is None:
            raise ValueError(f"the {name} of the base model is neither given nor named")
        id, revision, subfolder = base[name]
        precision = {} if name in ("tokenizer", "scheduler") else {"torch_dtype": dtype}
        return _CLASSES[name].from_pretrained(id, revision=revision, subfolder=subfolder or "", **precision)

    def size_of(self, settings: SampleConfig) -> tuple[int, int]:
        """Height and width of the latents of a picture.

        Raises:
            ValueError: a side that the base model does not have.
        """
        scale = 2 ** (len(self.vae.config.block_out_channels) - 1)
        smallest = scale * 2 ** (len(self.unet.config.block_out_channels) - 1)
        height, width = settings.height or self.config.resolution, settings.width or self.config.resolution
        if height % smallest or width % smallest:
            raise ValueError(f"height and width must be multiples of {smallest}, and are {height} and {width}")
        return height // scale, width // scale

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        num_images_per_prompt: int = 1,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        return_dict: bool = True,
        **settings: Any,
    ) -> ImagePipelineOutput | tuple:
        """Draw pictures.

        Args:
            prompt: one or several, each with the placeholder.
            num_images_per_prompt: of each.
            generator: on the CPU; one for all pictures, or one for each. `profusion sample --seed n` draws picture j
                with a generator of the seed n + j.
            return_dict: see diffusers.
            settings: those of `profusion sample`, by their names in its configuration: `speed`, `steps`, `gamma`,
                `subject_guidance` (a list of one), `text_guidance`, `negative_prompt`, `height`, `width`...

        Raises:
            TypeError: a setting that there is not.
        """
        own = replace(SampleConfig(**_lists_as_tuples(self.config.sample or {})), **_lists_as_tuples(settings))
        shapes = {name: PlanConfig(**shape) for name, shape in (self.config.plans or {}).items()}
        plan = plan_of(SimpleNamespace(sample=own, plans=PlansConfig(**shapes)))
        texts = [prompt] if isinstance(prompt, str) else list(prompt)
        if generator is None:
            generator = torch.Generator()
            generator.seed()
        every = len(texts) * num_images_per_prompt
        generators = [generator] * every if isinstance(generator, torch.Generator) else list(generator)
        subject, word = self._subject(), self.promptnet.config.class_word
        images = []
        with self.progress_bar(total=len(plan.steps) * every) as bar:
            for number, text in enumerate(texts):
                parsed = parse_prompt(text, self.config.placeholder)
                tokens = tokenize(self, parsed, [subject], [word], own, self.config.concept_prompt)
                for j in range(num_images_per_prompt):
                    drawn_by = [generators[number * num_images_per_prompt + j]]
                    given = ([subject], tokens, own, plan, own.subject_guidance, drawn_by, lambda _: bar.update())
                    latents = draw_latents(self, self.unet, *given)
                    images += decode(self.vae, latents, self.vae.config.scaling_factor)
        return ImagePipelineOutput(images) if return_dict else (images,)

    def _subject(self) -> PromptNetSubject:
        own = self.promptnet
        latents = own.ref_latents * self.vae.config.scaling_factor
        return PromptNetSubject(own.promptnet, latents, own.image_tokens, own.config.class_word, own.config.averaged)


def _lists_as_tuples(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
