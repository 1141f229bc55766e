"""A subject's S*, tuned: by PromptNet, or as an ordinary word."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image

from profusion_cli.bundle.kinds import ADAPTERS_FILE, PROMPTNET_FILE, UNET_FILE, VIEWS_FILE, WORD_FILE
from profusion_cli.bundle.manifest import PARENT
from profusion_cli.config import UNTRAINED, Config
from profusion_cli.listener import Listener, Progress
from profusion_cli.methods import class_noun, is_word_method
from profusion_cli.pace import Smoothed
from profusion_cli.prompts import parse_prompt
from profusion_cli.runtime.backbone import BaseModel
from profusion_cli.runtime.baselines import LearnedWord, finetune_word
from profusion_cli.runtime.changes import promptnet_fingerprint
from profusion_cli.runtime.device import DTYPES, picture_generator, repeatable, resolve_placement
from profusion_cli.runtime.fitting import REPEATED
from profusion_cli.runtime.parts import WEIGHTY, parts_for
from profusion_cli.runtime.pipelines import TextToImage
from profusion_cli.runtime.promptnet import PromptNet
from profusion_cli.runtime.schedule import add_noise
from profusion_cli.runtime.training import Tuned, finetune
from profusion_cli.runtime.views import Views
from profusion_cli.runtime.weights import (
    check_fit,
    load_promptnet,
    pack,
    promptnet_section,
)

PRIOR_GUIDANCE = 7.5
"""Guidance scale of DreamBooth's pictures of the class: that of diffusers' training example."""
VIEW_TENSORS = ("latents_mean", "latents_std", "image_tokens")
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


def tune_subject(config: Config, squares: list[Image.Image], augment: Augment, listener: Listener) -> TunedSubject:
    """Encode the photos and fine-tune.

    Args:
        config: the resolved configuration.
        squares: the photos as RGB squares of the base's resolution; they become the reference views.
        augment: see `Augment`.
        listener: who hears of it.

    Raises:
        BundleError, UnavailableError, DivergedError: as `profusion_cli.jobs.subject.make_subject`.
    """
    own = config.finetune
    placement = resolve_placement(config.device, config.dtype, training=own.steps > 0)
    with repeatable(config.deterministic), BaseModel(config.base, placement, listener) as base:
        base.latent_size(config.base.resolution, config.base.resolution)
        make = _make_word if is_word_method(own.method) else _make_promptnet
        made = make(base, config, squares, listener, augment)
        losses = made.tuned.losses
        if made.tuned.repeated:
            listener.note(f"In {made.tuned.repeated} step(s) {REPEATED}")
        manifest = {
            **made.manifest,
            "pictures": made.pictures,
            "loss": {"first": losses[0], "last": losses[-1]} if losses else None,
        }
        files = _files(made, DTYPES[own.save_dtype])
        return TunedSubject(files, base.manifest(made.fingerprints), manifest, made.parents)


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


def _make_promptnet(
    base: BaseModel, config: Config, squares: list[Image.Image], listener: Listener, augment: Augment
) -> _Made:
    """S* by PromptNet, which sees the photos."""
    own = config.finetune
    loaded = load_promptnet(config.promptnet, base, config.seed)
    if config.promptnet.note:
        listener.note(f"PromptNet: {config.promptnet.note}.")
    if own.method == "e4t" and not loaded.embedding_l2:
        listener.warn(
            "This PromptNet is not known to be regularised, as E4T's encoder is: pre-train one with "
            "`profusion pretrain --embedding-l2 0.01`, and give it with --promptnet."
        )
    promptnet = loaded.promptnet
    check_fit(promptnet, base)
    pictures = augment()
    with listener.working(_encoding([*squares, *pictures])):
        mean, std = base.encode_moments([*squares, *pictures])
        promptnet.tokens_for(mean.shape[-1])
        views = Views(mean, std, base.encode_image_tokens([*squares, *pictures]))
    fingerprints, parent = base.fingerprints(*WEIGHTY), promptnet_fingerprint(promptnet)
    base.release(*parts_for("encodes"))
    tuned = Tuned({}, ())
    if own.steps > 0:
        with listener.progress("Fine-tuning", own.steps) as step:
            tuned = finetune(base, promptnet, views, own, config.concept_prompt, config.seed, _loss_shown(step))
    manifest = {
        "promptnet": promptnet_section(promptnet),
        "promptnet_source": loaded.source,
        "s_star": _word_section(_length_of_word(base, promptnet, views, config.seed)),
    }
    manifest[PARENT] = parent
    references = views.first(len(squares))
    if own.train == "lora" and own.steps > 0 and not own.self_contained and config.promptnet.weights != UNTRAINED:
        adapted = ("unet.", "promptnet.")
        return _Made(tuned, {}, manifest, fingerprints, len(views), references, loaded.parents, adapted)
    files = {PROMPTNET_FILE: promptnet.state_dict()}
    return _Made(tuned, files, manifest, fingerprints, len(views), references, loaded.parents)


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


def _make_word(
    base: BaseModel, config: Config, squares: list[Image.Image], listener: Listener, augment: Augment
) -> _Made:
    """S* as an ordinary word."""
    own = config.finetune
    text = own.word.replace("{class}", class_noun(config.class_word))
    word = LearnedWord.from_text(base.text, text)
    pictures = augment()
    with listener.working(_encoding([*squares, *pictures])):
        mean, std = base.encode_moments([*squares, *pictures])
    views = Views(mean, std, torch.zeros(len(mean), 0, 0))
    prior = None
    if own.prior_pictures > 0 and own.steps > 0:
        prior = _draw_class(base, config, listener)
    fingerprints = base.fingerprints(*parts_for("draws"))
    base.release(*parts_for("encodes"))
    tuned = Tuned({}, ())
    if own.steps > 0:
        with listener.progress("Fine-tuning", own.steps) as step:
            tuned = finetune_word(
                *(base, word, views, prior, own, config.concept_prompt, config.class_word, config.seed),
                _loss_shown(step),
            )
    manifest = {
        "word": {"initial": text, "words": len(word.embedding)},
        "s_star": _word_section(base.text.relative_length(word.embedding.detach())),
    }
    files = {WORD_FILE: {"embedding": word.embedding}}
    return _Made(tuned, files, manifest, fingerprints, len(views))


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


def _loss_shown(step: Progress) -> Callable[[int, float], None]:
    smoothed = Smoothed()
    return lambda done, loss: step(done, f"loss {smoothed(loss):.3f}")
