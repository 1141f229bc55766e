"""A subject's S*, tuned: by PromptNet, or as an ordinary word."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from torch import nn

from profusion_cli.bundle.kinds import ADAPTERS_FILE, PROMPTNET_FILE, UNET_FILE, VIEWS_FILE, WORD_FILE
from profusion_cli.bundle.manifest import PARENT
from profusion_cli.config import UNTRAINED, Config
from profusion_cli.listener import Listener, Progress
from profusion_cli.methods import class_noun, is_word_method
from profusion_cli.pace import Smoothed
from profusion_cli.previews import Previews
from profusion_cli.prompts import parse_prompt
from profusion_cli.runtime.backbone import BaseModel
from profusion_cli.runtime.baselines import LearnedWord, finetune_word
from profusion_cli.runtime.changes import promptnet_fingerprint
from profusion_cli.runtime.denoiser import Subject, WordSubject
from profusion_cli.runtime.device import DTYPES, compiling, picture_generator, repeatable, resolve_placement
from profusion_cli.runtime.fitting import REPEATED
from profusion_cli.runtime.keeping import KeptBase
from profusion_cli.runtime.memory import peak
from profusion_cli.runtime.parts import WEIGHTY, parts_for
from profusion_cli.runtime.pipelines import TextToImage
from profusion_cli.runtime.previewing import Previewer
from profusion_cli.runtime.promptnet import PromptNet
from profusion_cli.runtime.sampling import subject_of
from profusion_cli.runtime.schedule import add_noise
from profusion_cli.runtime.training import Tuned, finetune
from profusion_cli.runtime.views import VIEW_TENSORS, Views
from profusion_cli.runtime.weights import LoadedPromptNet, check_fit, load_promptnet, pack, promptnet_section

PRIOR_GUIDANCE = 7.5
"""Guidance scale of DreamBooth's pictures of the class: that of diffusers' training example."""
Augment = Callable[[], list[Image.Image]]
"""Makes further pictures to train on. It is called when PromptNet is at hand, so that hours of work do not end with a
missing file."""


@dataclass(frozen=True)
class TunedSubject:
    """A subject before it is a bundle.

    Args:
        files: safetensors files by their names.
        base: what the manifest says of the base model.
        manifest: what it says of S*, the pictures and the losses.
        parents: SHA-256 of the bundles that its PromptNet comes from.
    """

    files: dict[str, bytes]
    base: dict[str, Any]
    manifest: dict[str, Any]
    parents: tuple[str, ...]


def tune_subject(
    config: Config,
    squares: list[Image.Image],
    augment: Augment,
    listener: Listener,
    previews: Previews | None = None,
) -> TunedSubject:
    """Encode the photos of one subject and fine-tune; see `Tuner`."""
    with open_tuner(config, listener, several=False) as tuner:
        return tuner.tune(squares, augment, previews)


@contextmanager
def open_tuner(config: Config, listener: Listener, several: bool) -> Iterator[Tuner]:
    """What tunes subjects, with the models that it wants.

    Args:
        config: the resolved configuration.
        listener: who hears of it.
        several: what is read for one subject is kept for the next.

    Raises:
        BundleError, UnavailableError: the base model or PromptNet cannot be had, or do not fit one another.
    """
    placement = resolve_placement(config.device, config.dtype, training=config.finetune.steps > 0)
    model = KeptBase if several else BaseModel
    opened = model(config.base, placement, listener)
    with repeatable(config.deterministic), compiling(config.compile), opened as base:
        base.latent_size(config.base.resolution, config.base.resolution)
        yield Tuner(base, config, listener)


class Tuner:
    """Tunes subjects on one base model, one after another if that is a `KeptBase`.

    Args:
        base: the entered base model.
        config: the resolved configuration.
        listener: who hears of it.

    Raises:
        BundleError, UnavailableError: PromptNet cannot be had, or does not fit the base model.
    """

    def __init__(self, base: BaseModel, config: Config, listener: Listener) -> None:
        self.base, self.config, self._listener, self._placement = base, config, listener, base.placement
        self._words = is_word_method(config.finetune.method)
        self._loaded = None if self._words else _load_promptnet(base, config, listener)
        self._prior: Views | None = None
        if isinstance(base, KeptBase) and self._loaded:
            base.promptnets[config.promptnet] = self._loaded.promptnet

    def tune(self, squares: list[Image.Image], augment: Augment, previews: Previews | None = None) -> TunedSubject:
        """Encode the photos of a subject and fine-tune.

        Args:
            squares: the photos as RGB squares of the base's resolution; they become the reference views.
            augment: see `Augment`.
            previews: what is drawn meanwhile; None: nothing.

        Raises:
            BundleError, UnavailableError, DivergedError: as `profusion_cli.jobs.subject.make_subject`.
        """
        if isinstance(self.base, KeptBase):
            self.base.turn_to(self._placement)
        own = self.config.finetune
        made = (self._make_word if self._words else self._make_promptnet)(squares, augment, previews)
        losses = made.tuned.losses
        if made.tuned.repeated:
            self._listener.note(f"In {made.tuned.repeated} step(s) {REPEATED}")
        manifest = {
            **made.manifest,
            "pictures": made.pictures,
            "loss": {"first": losses[0], "last": losses[-1]} if losses else None,
        }
        files = _files(made, DTYPES[own.save_dtype])
        if isinstance(self.base, KeptBase):
            self.base.release("unet")  # which is tuned now
        return TunedSubject(files, self.base.manifest(made.fingerprints), manifest, made.parents)

    def _make_promptnet(self, squares: list[Image.Image], augment: Augment, previews: Previews | None) -> _Made:
        """S* by PromptNet, which sees the photos."""
        base, config, own = self.base, self.config, self.config.finetune
        loaded, promptnet = self._loaded, self._loaded.promptnet
        if isinstance(base, KeptBase):
            promptnet = copy.deepcopy(promptnet)
        pictures = augment()
        with self._listener.working(_encoding([*squares, *pictures])):
            mean, std = base.encode_moments([*squares, *pictures])
            promptnet.tokens_for(mean.shape[-1])
            views = Views(mean, std, base.encode_image_tokens([*squares, *pictures]))
        fingerprints, parent = base.fingerprints(*WEIGHTY), promptnet_fingerprint(promptnet)
        base.release(*parts_for("encodes"))
        references, reference = views.first(len(squares)), config.sample.reference - 1
        watch = self._watch(
            previews, promptnet, lambda: subject_of(base, promptnet, references, reference, config.class_word)
        )
        tuned = Tuned({}, ())
        if own.steps > 0:
            with self._listener.progress("Fine-tuning", own.steps) as step:
                tuned = finetune(
                    *(base, promptnet, views, own, config.concept_prompt, config.seed, self._shown(step)),
                    *(watch, config.compile),
                )
        manifest = {
            "promptnet": promptnet_section(promptnet),
            "promptnet_source": loaded.source,
            PARENT: parent,
            "s_star": _word_section(_length_of_word(base, promptnet, views, config.seed)),
        }
        if own.train == "lora" and own.steps > 0 and not own.self_contained and config.promptnet.weights != UNTRAINED:
            adapted = ("unet.", "promptnet.")
            return _Made(tuned, {}, manifest, fingerprints, len(views), references, loaded.parents, adapted)
        files = {PROMPTNET_FILE: promptnet.state_dict()}
        return _Made(tuned, files, manifest, fingerprints, len(views), references, loaded.parents)

    def _make_word(self, squares: list[Image.Image], augment: Augment, previews: Previews | None) -> _Made:
        """S* as an ordinary word."""
        base, config, own = self.base, self.config, self.config.finetune
        text = own.word.replace("{class}", class_noun(config.class_word))
        word = LearnedWord.from_text(base.text, text)
        pictures = augment()
        with self._listener.working(_encoding([*squares, *pictures])):
            mean, std = base.encode_moments([*squares, *pictures])
        views = Views(mean, std, torch.zeros(len(mean), 0, 0))
        if own.prior_pictures > 0 and own.steps > 0 and self._prior is None:
            self._prior = _draw_class(base, config, self._listener)
        fingerprints = base.fingerprints(*parts_for("draws"))
        base.release(*parts_for("encodes"))
        watch = self._watch(previews, word, lambda: WordSubject(word.embedding, config.class_word))
        tuned = Tuned({}, ())
        if own.steps > 0:
            with self._listener.progress("Fine-tuning", own.steps) as step:
                tuned = finetune_word(
                    *(base, word, views, self._prior, own, config.concept_prompt, config.class_word, config.seed),
                    *(self._shown(step), watch, config.compile),
                )
        manifest = {
            "word": {"initial": text, "words": len(word.embedding)},
            "s_star": _word_section(base.text.relative_length(word.embedding.detach())),
        }
        files = {WORD_FILE: {"embedding": word.embedding}}
        return _Made(tuned, files, manifest, fingerprints, len(views))

    def _watch(self, previews: Previews | None, network: nn.Module, subject: Callable[[], Subject]) -> Previewer | None:
        """What draws the subject, as the network makes its S*, while they are tuned."""
        if previews is None:
            return None
        return Previewer(previews, self.base, network, subject, self.config, self._listener)

    def _shown(self, step: Progress) -> Callable[[int, float], None]:
        """Shows the loss, and the most memory that was held at once so far."""
        smoothed = Smoothed()

        def show(done: int, loss: float) -> None:
            most = peak(self._placement.device)
            memory = "" if most is None else f", at most {most / 1e9:.1f} GB"
            step(done, f"loss {smoothed(loss):.3f}{memory}")

        return show


def _files(made: _Made, save_dtype: torch.dtype) -> dict[str, bytes]:
    """The safetensors files of a subject."""
    files = {name: pack(tensors, save_dtype) for name, tensors in made.files.items()}
    adapters = {name: factor for name, factor in made.tuned.adapters.items() if name.startswith(made.adapted)}
    if adapters:
        files[ADAPTERS_FILE] = pack(adapters, save_dtype)
    if made.tuned.unet_changes:
        files[UNET_FILE] = pack(made.tuned.unet_changes, save_dtype)
    if made.references is not None:
        files[VIEWS_FILE] = pack({name: getattr(made.references, name) for name in VIEW_TENSORS})
    return files


@dataclass(frozen=True)
class _Made:
    """A subject before it is written: tensors by file, and what the manifest says of it.

    `adapted` are the beginnings of the names of those adapters that are written.
    """

    tuned: Tuned
    files: dict[str, Mapping[str, torch.Tensor]]
    manifest: dict[str, Any]
    fingerprints: dict[str, str]
    pictures: int
    references: Views | None = None
    parents: tuple[str, ...] = ()
    adapted: tuple[str, ...] = ("unet.",)


def _load_promptnet(base: BaseModel, config: Config, listener: Listener) -> LoadedPromptNet:
    """The PromptNet that subjects are tuned from, with what there is to say of it."""
    loaded = load_promptnet(config.promptnet, base, config.seed)
    if config.promptnet.note:
        listener.note(f"PromptNet: {config.promptnet.note}.")
    if config.finetune.method == "e4t" and not loaded.embedding_l2:
        listener.warn(
            "This PromptNet is not known to be regularised, as E4T's encoder is: pre-train one with "
            "`profusion pretrain --embedding-l2 0.01`, and give it with --promptnet."
        )
    check_fit(loaded.promptnet, base)
    return loaded


@torch.inference_mode()
def _length_of_word(base: BaseModel, promptnet: PromptNet, views: Views, seed: int) -> float:
    """How long S* of the first view is, in lengths of an ordinary word, on average over the noise levels."""
    alphas_cumprod = base.scheduler.alphas_cumprod
    device = promptnet.conv_in.weight.device
    timesteps = torch.arange(1, 10, 2) * len(alphas_cumprod) // 10
    latents, tokens = views.latents_mean[:1] * base.vae_scaling_factor, views.image_tokens[:1].to(device)
    noise = torch.randn((len(timesteps), *latents.shape[1:]), generator=picture_generator(seed, 0))
    noisy = add_noise(latents.expand(len(timesteps), -1, -1, -1), noise, timesteps, alphas_cumprod).to(device)
    latents = latents.to(device)
    words = torch.cat([promptnet(latents, noisy[i, None], int(t), tokens) for i, t in enumerate(timesteps)])
    return base.text.relative_length(words)


def _word_section(length: float) -> dict[str, float]:
    """What a manifest says of S*, to four digits."""
    return {"length_in_ordinary_words": float(f"{length:.4g}")}


def _draw_class(base: BaseModel, config: Config, listener: Listener) -> Views:
    """Encoded pictures of the subject's class by the base model, for DreamBooth's prior."""
    count = config.finetune.prior_pictures
    prompt = parse_prompt(config.concept_prompt).twin([config.class_word])
    with (
        TextToImage(config.base, base.placement, listener) as model,
        listener.progress(f"Drawing {config.class_word}", count) as step,
    ):
        pictures = model.draw(
            *(prompt, range(count), replace(config.sample, width=None, height=None, negative_prompt="")),
            *(PRIOR_GUIDANCE, config.seed, lambda done: step(done, "")),
        )
    with listener.working(_encoding(pictures)):
        mean, std = base.encode_moments(pictures)
    return Views(mean, std, torch.zeros(len(mean), 0, 0))


def _encoding(pictures: list[Image.Image]) -> str:
    return f"Encoding {len(pictures)} picture{'s' if len(pictures) > 1 else ''}"
