"""From subject bundles and prompts to pictures."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from PIL import Image

from profusion_cli.bundle import Bundle
from profusion_cli.bundle.kinds import PROMPTNET_FILE, WORD_FILE
from profusion_cli.config import Config, PromptNetSource
from profusion_cli.errors import BundleError, InputError
from profusion_cli.listener import who_hears
from profusion_cli.plans import plan_of, without_subject
from profusion_cli.prompts import Prompt
from profusion_cli.runtime.backbone import BaseModel, quiet_libraries
from profusion_cli.runtime.changes import adapted_promptnet, read_changes, tuned_weights
from profusion_cli.runtime.choosing import offloads
from profusion_cli.runtime.denoiser import PromptNetSubject, PromptTokens, Subject, WordSubject
from profusion_cli.runtime.device import free_memory, is_out_of_memory, picture_generator, ready
from profusion_cli.runtime.drawing import Beginning, draw_latents, tokenize
from profusion_cli.runtime.parts import parts_for
from profusion_cli.runtime.pixels import pixel_values
from profusion_cli.runtime.promptnet import PromptNet
from profusion_cli.runtime.schedule import timesteps_of
from profusion_cli.runtime.views import Views
from profusion_cli.runtime.weights import check_base, check_fit, promptnet_from_bundle, read_views, read_word
from profusion_cli.samplers import subject_weights
from profusion_cli.starting import Start

LATE_START = 0.85


@dataclass(frozen=True)
class DrawnPicture:
    """One picture and where it belongs.

    Args:
        prompt: index of its prompt.
        index: its number j among the pictures of the prompt; its generator is seeded with seed + j.
        image: RGB.
    """

    prompt: int
    index: int
    image: Image.Image


def subject_of(
    base: BaseModel, promptnet: PromptNet, views: Views, reference: int | None, class_word: str, averaged: bool = False
) -> PromptNetSubject:
    """A subject whose S* PromptNet makes of its views.

    Args:
        base: the base model.
        promptnet: on the device.
        views: encoded pictures of the subject.
        reference: which of them, from 0; None: all of them.
        class_word: what the subject is.
        averaged: see `PromptNetSubject`.
    """
    device, own = base.placement.device, slice(None) if reference is None else slice(reference, reference + 1)
    latents, tokens = views.latents_mean[own] * base.vae_scaling_factor, views.image_tokens[own]
    return PromptNetSubject(promptnet, latents.to(device), tokens.to(device), class_word, averaged)


def promptnet_and_views(
    bundle: Bundle, parent: PromptNetSource, base: BaseModel, reference: int
) -> tuple[PromptNet, Views]:
    """What makes S* of a subject, float32 and on the CPU, and what it looks at.

    Args:
        bundle: of the subject.
        parent: where the PromptNet is that its adapters are for, if it has some.
        base: the base model.
        reference: the view that will be looked at, from 0.

    Raises:
        BundleError: it does not fit the base model, or has no such view.
        UnavailableError: a PromptNet that adapters are for, and that cannot be had.
    """
    own = PROMPTNET_FILE in bundle.files
    promptnet = promptnet_from_bundle(bundle) if own else adapted_promptnet(bundle, parent, base)
    check_fit(promptnet, base, with_vision=False)
    views = read_views(bundle, promptnet)
    if reference >= len(views):
        raise BundleError(
            f"'{bundle.name}' has {len(views)} reference view(s), and sample.reference={reference + 1}.",
            "Set sample.reference to one that it has.",
        )
    return promptnet, views


class Sampler:
    """Everything loaded that drawing pictures of these subjects takes.

    Args:
        base: the entered base model.
        bundles: subject bundles, at least one.
        class_words: what each subject is.
        prompts: all prompts of the run; they are tokenised before the UNet is loaded. One that names no subject is
            drawn by the base model alone, with plain guidance.
        config: the resolved configuration.
        parents: where the PromptNet is that the adapters of each bundle are for; None: that of the configuration.
        start: what is drawn over; None: nothing.

    Raises:
        BundleError: a bundle made for another base model, with changes that its UNet does not have, without the
            reference view asked for, or with adapters for another PromptNet.
        UnavailableError: a PromptNet that adapters are for, and that cannot be had.
        InputError: a prompt so long that its placeholder falls off the end.
        ConfigError: a number of steps or a size that the base model does not have.
    """

    def __init__(
        self,
        base: BaseModel,
        bundles: Sequence[Bundle],
        class_words: Sequence[str],
        prompts: Sequence[Prompt],
        config: Config,
        parents: Sequence[PromptNetSource] | None = None,
        start: Start | None = None,
    ) -> None:
        self.base, self.settings, self.seed = base, config.sample, config.seed
        self._compiled, self._at_once = config.compile, sys.maxsize
        self._offloaded = offloads(config, base.placement, bundles)
        self.concept_prompt = config.concept_prompt
        self._start, self._bare, strength = start, without_subject(config), 1.0 if start is None else start.strength
        self.plan, self._bare_plan = plan_of(config, strength), plan_of(self._bare, strength)
        self.timesteps = timesteps_of(base.scheduler, self.plan.schedule)
        base.size_of(config.sample)  # before anything is loaded
        self._beginning = None if start is None else self._begun(start)
        for bundle in bundles:
            check_base(bundle, base, parts_for("draws"))
        self.subjects = [
            self._load_subject(bundle, parent, word, config.sample.reference - 1)
            for bundle, parent, word in zip(
                bundles, parents or [config.promptnet] * len(bundles), class_words, strict=True
            )
        ]
        self.tokens = [self.tokenize(prompt, class_words) for prompt in prompts]
        unet = base.unet
        parameters = dict(unet.named_parameters())
        changes = [read_changes(bundle, "unet", parameters) for bundle in bundles]
        changed = {name for change in changes for name in change}
        before = {name: parameters[name].detach().clone() for name in changed}
        self._tuned = partial(tuned_weights, before, changes)
        with quiet_libraries():
            self.unet = ready(unet, base.placement, config.compile, self._offloaded)

    def _begun(self, start: Start) -> Beginning:
        """A picture to start from, encoded in the size that is drawn."""
        base, side = self.base, self.base.config.resolution
        size = self.settings.width or side, self.settings.height or side
        region = start.region(*size)
        if region is not None and region.getextrema()[1] == 0:
            raise InputError(
                f"What is light of the mask '{start.mask.name}' is cut off in pictures of {size[0]}x{size[1]}.",
                "Give the picture's own proportions by --width and --height.",
            )
        mean, _ = base.encode_moments([start.picture(*size)])
        mask = None
        if region is not None:  # a latent that touches it belongs to it
            mask = F.adaptive_max_pool2d(pixel_values(region)[:, :1], mean.shape[-2:])
        return Beginning(mean * base.vae_scaling_factor, mask)

    def _load_subject(self, bundle: Bundle, parent: PromptNetSource, class_word: str, reference: int) -> Subject:
        if WORD_FILE in bundle.files:
            word = read_word(bundle, self.base.text.embedding_dim)
            return WordSubject(word.to(self.base.placement.device), class_word)
        promptnet, views = promptnet_and_views(bundle, parent, self.base, reference)
        promptnet = ready(promptnet, self.base.placement, self._compiled, self._offloaded)
        kind = self.settings.references
        seen = reference if kind == "one" else None
        return subject_of(self.base, promptnet, views, seen, class_word, averaged=kind == "mean")

    def tokenize(self, prompt: Prompt, class_words: Sequence[str]) -> PromptTokens:
        """A prompt's tokens, with these words in its text twin."""
        settings = self._bare.sample if prompt.bare else self.settings
        return tokenize(self.base, prompt, self.subjects, class_words, settings, self.concept_prompt)

    def view_of(self, index: int) -> int | None:
        """The number of the photo, from 1, that PromptNet sees for picture j where each sees another; None: it differs
        from subject to subject."""
        counts = [len(one.ref_latents) for one in self.subjects if isinstance(one, PromptNetSubject)]
        return index % max(counts, default=1) + 1 if len(set(counts)) < 2 else None

    def warnings(self) -> list[str]:
        """What the user should know before the pictures are drawn."""
        texts = [
            f"The prompt '{tokens.prompt.text}' is too long; this was cut off: '{tokens.lost}'"
            for tokens in self.tokens
            if tokens.lost
        ]
        unknown = self._unknown_words()
        if unknown:
            texts.append(
                f"The base model's text encoder was never taught {', '.join(map(repr, unknown))}, and will not follow "
                f"{'it' if len(unknown) == 1 else 'them'}. `--dry-run` lists what it knows, as base.words."
            )
        first, last = self.timesteps[0], self.base.scheduler.config.num_train_timesteps
        if first < LATE_START * last:
            texts.append(
                f"A schedule of {len(self.timesteps)} steps starts at timestep {first} of {last} here, where pictures "
                "are no longer pure noise. Use 10 to 250 steps, or 500."
            )
        return texts

    def _unknown_words(self) -> list[str]:
        """Words of prompts, class words and negative prompt that the base model does not know."""
        known = self.base.config.words
        texts = [piece for tokens in self.tokens for piece in tokens.prompt.pieces if isinstance(piece, str)]
        texts += [*(subject.class_word for subject in self.subjects), self.settings.negative_prompt]
        words = dict.fromkeys(word for text in texts for word in re.findall(r"[^\W\d_]+", text.lower()))
        return [word for word in words if known and word not in known]

    def weigh(self, weights: Sequence[float]) -> None:
        """Give the UNet the weighted mean of the subjects' changes; sampling wants it once at least."""
        parameters = dict(self.unet.named_parameters())
        with torch.no_grad():
            for name, value in self._tuned(weights).items():
                parameters[name].copy_(value)

    def draw_batch(
        self, tokens: PromptTokens, scales: tuple[float, ...], indices: Sequence[int], progress: Callable[[int], None]
    ) -> list[Image.Image]:
        """Pictures j of one prompt, each from the generator of seed + j.

        Args:
            tokens: of the prompt.
            scales: guidance scale of each subject.
            indices: the numbers j; where memory runs out, half as many are drawn at once from then on.
            progress: called with the number of sampler steps done.
        """
        images: list[Image.Image] = []
        while len(images) < len(indices):
            before = len(images)
            part = indices[before : before + self._at_once]

            def report(steps: int, before: int = before, count: int = len(part)) -> None:
                progress((before * len(self.plan.steps) + count * steps) // len(indices))

            try:
                images += self._draw_at_once(tokens, scales, part, report)
                continue
            except (RuntimeError, MemoryError) as error:
                if len(part) == 1 or not is_out_of_memory(error):
                    raise
            # here, where the error is forgotten, and no longer holds what was computed
            self._at_once = len(part) // 2
            free_memory()
            who_hears().warn(f"Memory ran out: {self._at_once} in place of {len(part)} pictures are drawn at once.")
        return images

    def _draw_at_once(
        self, tokens: PromptTokens, scales: tuple[float, ...], indices: Sequence[int], progress: Callable[[int], None]
    ) -> list[Image.Image]:
        generators = [picture_generator(self.seed, index) for index in indices]
        subjects, settings, plan = self.subjects, self.settings, self.plan
        if tokens.prompt.bare:
            subjects, settings, plan = [], self._bare.sample, self._bare_plan
            scales = settings.subject_guidance
        elif settings.references == "each":
            subjects = [one.in_turn(indices) if isinstance(one, PromptNetSubject) else one for one in subjects]
        latents = draw_latents(
            *(self.base, self.unet, subjects, tokens, settings, plan, scales, generators),
            *(progress, self._beginning),
        )
        images = self.base.decode(latents)
        return images if self._start is None else [self._start.kept(image) for image in images]

    def draw(self, progress: Callable[[int], None]) -> Iterator[DrawnPicture]:
        """All pictures, prompt by prompt, in batches.

        Args:
            progress: called with the number of sampler steps done, over all batches.

        Raises:
            ConfigError: guidance scales or weights that do not fit the subjects.
        """
        settings = self.settings
        scales, shares = subject_weights(settings, len(self.subjects))
        done, weighed = 0, None
        for number, tokens in enumerate(self.tokens):
            own = (0.0,) * len(shares) if tokens.prompt.bare else shares
            if own != weighed:
                self.weigh(own)
                weighed = own
            for first in range(0, settings.num_images, settings.batch_size):
                indices = range(first, min(first + settings.batch_size, settings.num_images))
                pictures = self.draw_batch(tokens, scales, indices, lambda steps, done=done: progress(done + steps))
                done += len(self.plan.steps)
                for index, image in zip(indices, pictures, strict=True):
                    yield DrawnPicture(number, index, image)


def frame_weights(frames: int, subjects: int) -> list[tuple[float, ...]]:
    """Weights of the subjects in each frame, from all on the first to all on the last, summing to 1.

    Args:
        frames: at least 2.
        subjects: at least 2; the way leads through all of them, in their order.
    """
    weights = []
    for frame in range(frames):
        position = frame * (subjects - 1) / (frames - 1)
        weights.append(tuple(max(0.0, 1.0 - abs(position - subject)) for subject in range(subjects)))
    return weights


def present_words(class_words: Sequence[str], weights: Sequence[float]) -> list[str]:
    """Class words for a text twin that names the subjects that are there: those with a weight above 0."""
    present = [word for word, weight in zip(class_words, weights, strict=True) if weight > 0]
    return [word if weight > 0 else present[0] for word, weight in zip(class_words, weights, strict=True)]


def draw_frames(sampler: Sampler, frames: int, progress: Callable[[int], None]) -> Iterator[Image.Image]:
    """Pictures on the way from subject to subject (arXiv 2305.13579, Fig. 5), all from the same noise.

    The guidance and the weights of the UNet's changes shift together, and the text twin names the
    subjects that are there, so that the first and the last frame are those of `sample` for one subject.

    Args:
        sampler: with one prompt, in which S* stands for each subject in turn.
        frames: how many, at least 2.
        progress: called with the number of sampler steps done, over all frames.
    """
    prompt, (guidance,) = sampler.tokens[0].prompt, sampler.settings.subject_guidance
    class_words = [subject.class_word for subject in sampler.subjects]
    for frame, weights in enumerate(frame_weights(frames, len(sampler.subjects))):
        sampler.weigh(weights)
        scales = tuple(guidance * weight for weight in weights)
        done = frame * len(sampler.plan.steps)
        tokens = sampler.tokenize(prompt, present_words(class_words, weights))
        yield sampler.draw_batch(tokens, scales, [0], lambda steps, done=done: progress(done + steps))[0]
