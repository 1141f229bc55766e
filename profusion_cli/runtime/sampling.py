"""From subject bundles and prompts to pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from PIL import Image

from profusion_cli.bundle import Bundle
from profusion_cli.config import Config, SampleConfig
from profusion_cli.errors import BundleError, ConfigError
from profusion_cli.prompts import Prompt
from profusion_cli.runtime.backbone import BaseModel, quiet_libraries
from profusion_cli.runtime.denoiser import PromptDenoiser, PromptTokens, Subject, tokenize_prompt
from profusion_cli.runtime.device import picture_generator
from profusion_cli.runtime.fusion import Guidance, sample_fusion
from profusion_cli.runtime.weights import (
    UNET_FILE,
    check_base,
    check_fit,
    merge_unet_changes,
    promptnet_from_bundle,
    read_views,
    tensors_of,
)


@dataclass(frozen=True)
class Picture:
    """One picture and where it belongs.

    Args:
        prompt: index of its prompt.
        index: its number j among the pictures of the prompt; its generator is seeded with seed + j.
        image: RGB.
    """

    prompt: int
    index: int
    image: Image.Image


def subject_weights(config: SampleConfig, subjects: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Guidance scale of each subject, and the weights (summing to 1) of their UNet changes.

    One guidance number is shared out by the weights (equal by default); with one number per subject,
    the weights are in their proportion unless they are given.

    Raises:
        ConfigError: a number of guidance scales or weights that does not fit the number of subjects.
    """
    guidance, weights = config.subject_guidance, config.weights
    if len(guidance) not in (1, subjects):
        raise ConfigError(
            f"--subject-guidance has {len(guidance)} numbers for {subjects} subject(s).",
            "Give one number, or one per subject.",
        )
    if weights is not None and len(weights) != subjects:
        raise ConfigError(
            f"--weights has {len(weights)} numbers for {subjects} subject(s).", "Give one number per subject."
        )
    if weights is None:
        weights = guidance if len(guidance) == subjects else (1.0,) * subjects
    shares = tuple(weight / sum(weights) for weight in weights)
    scales = guidance if len(guidance) == subjects else tuple(guidance[0] * share for share in shares)
    return scales, shares


def guidance_of(config: SampleConfig, scales: tuple[float, ...], joint: bool) -> Guidance:
    """The weights of Algorithm 1 for a prompt; plain classifier-free guidance has no text term."""
    text = 0.0 if config.sampler == "cfg" else config.text_guidance
    return Guidance(scales, text, config.fusion_guidance, config.gamma, joint)


class Sampler:
    """Everything loaded that drawing pictures of these subjects takes.

    Args:
        base: the entered base model.
        bundles: subject bundles, at least one.
        class_words: what each subject is.
        prompts: all prompts of the run; they are tokenised before the UNet is loaded.
        config: the resolved configuration.

    Raises:
        BundleError: a bundle made for another base model, or without the reference view asked for.
        InputError: a prompt so long that its placeholder falls off the end.
        ConfigError: guidance scales or weights that do not fit the subjects.
    """

    def __init__(
        self,
        base: BaseModel,
        bundles: Sequence[Bundle],
        class_words: Sequence[str],
        prompts: Sequence[Prompt],
        config: Config,
    ) -> None:
        self.base, self.settings, self.seed = base, config.sample, config.seed
        self.scales, shares = subject_weights(config.sample, len(bundles))
        self.timesteps = base.timesteps(config.sample.steps)
        resolution = config.base.resolution
        self.latent_size = base.latent_size(config.sample.width or resolution, config.sample.height or resolution)
        for bundle in bundles:
            check_base(bundle, base, ("unet", "vae", "text_encoder"))
        self.subjects = [
            self._load_subject(bundle, word, config.sample.reference - 1)
            for bundle, word in zip(bundles, class_words, strict=True)
        ]
        self.tokens = [self._tokenize(prompt, class_words, config) for prompt in prompts]
        unet = base.unet
        merge_unet_changes(
            unet,
            [tensors_of(bundle, UNET_FILE) if UNET_FILE in bundle.manifest["files"] else {} for bundle in bundles],
            list(shares),
        )
        with quiet_libraries():
            self.unet = unet.to(base.placement.device, base.placement.dtype)

    def _load_subject(self, bundle: Bundle, class_word: str, reference: int) -> Subject:
        placement = self.base.placement
        promptnet = promptnet_from_bundle(bundle)
        check_fit(promptnet, self.base, with_vision=False)
        views = read_views(bundle, promptnet)
        if reference >= len(views):
            raise BundleError(
                f"'{bundle.name}' has {len(views)} reference view(s), and sample.reference={reference + 1}.",
                "Set sample.reference to one that it has.",
            )
        latents = views.latents_mean[reference][None] * self.base.vae_scaling_factor
        return Subject(
            promptnet.to(placement.device, placement.dtype),
            latents.to(placement.device),
            views.image_tokens[reference][None].to(placement.device),
            class_word,
        )

    def _tokenize(self, prompt: Prompt, class_words: Sequence[str], config: Config) -> PromptTokens:
        return tokenize_prompt(
            prompt,
            self.base.text,
            class_words,
            [subject.words for subject in self.subjects],
            negative_prompt=config.sample.negative_prompt,
            concept_prompt=config.concept_prompt,
            subject_prompt="full" if config.sample.sampler == "cfg" else config.sample.subject_prompt,
        )

    @torch.inference_mode()
    def draw(self, progress: Callable[[int], None]) -> Iterator[Picture]:
        """All pictures, prompt by prompt, in batches; each has a generator of its own.

        Args:
            progress: called with the number of sampler steps done, over all batches.
        """
        settings = self.settings
        shape = (self.unet.config.in_channels, *self.latent_size)
        done = 0
        for number, tokens in enumerate(self.tokens):
            denoiser = PromptDenoiser(
                self.unet,
                self.base.text,
                self.subjects,
                tokens,
                self.base.scheduler.alphas_cumprod,
                self.base.prediction_type,
                settings.gamma_on,
            )
            guidance = guidance_of(settings, self.scales, tokens.prompt.joint)
            for first in range(0, settings.num_images, settings.batch_size):
                indices = range(first, min(first + settings.batch_size, settings.num_images))
                generators = [picture_generator(self.seed, index) for index in indices]

                def noise(_i: int = 0, _j: int = 0, generators: list[torch.Generator] = generators) -> torch.Tensor:
                    drawn = [torch.randn((1, *shape), generator=generator) for generator in generators]
                    return torch.cat(drawn).to(self.base.placement.device)

                latents = sample_fusion(
                    denoiser,
                    noise(),
                    self.timesteps,
                    self.base.scheduler.alphas_cumprod,
                    guidance,
                    noise,
                    final_alpha_cumprod=float(self.base.scheduler.final_alpha_cumprod),
                    fusion_steps=0 if settings.sampler == "cfg" else settings.fusion_steps,
                    refine=settings.sampler != "fusion-only",
                    fusion_eta=settings.fusion_eta,
                    eta=settings.eta,
                    callback=lambda steps, done=done: progress(done + steps),
                )
                done += len(self.timesteps)
                for index, image in zip(indices, self.base.decode(latents), strict=True):
                    yield Picture(number, index, image)
