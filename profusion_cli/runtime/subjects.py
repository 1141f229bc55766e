"""From photos to a subject bundle."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image

from profusion_cli.bundle import write_bundle
from profusion_cli.bundle.kinds import PROMPTNET_FILE, UNET_FILE, VIEWS_FILE, WORD_FILE
from profusion_cli.config import Config
from profusion_cli.console import Output
from profusion_cli.images import strip
from profusion_cli.methods import class_noun, is_word_method
from profusion_cli.prompts import parse_prompt
from profusion_cli.runtime.backbone import BaseModel
from profusion_cli.runtime.baselines import LearnedWord, finetune_word
from profusion_cli.runtime.device import DTYPES, resolve_placement
from profusion_cli.runtime.parts import WEIGHTY, parts_for
from profusion_cli.runtime.pipelines import TextToImage
from profusion_cli.runtime.training import Tuned, finetune
from profusion_cli.runtime.views import Views
from profusion_cli.runtime.weights import (
    check_fit,
    load_promptnet,
    pack,
    promptnet_section,
)

PREVIEW_SIZE = 256
PRIOR_GUIDANCE = 7.5
"""Guidance scale of DreamBooth's pictures of the class: that of diffusers' training example."""
VIEW_TENSORS = ("latents_mean", "latents_std", "image_tokens")


def preview_strip(squares: list[Image.Image]) -> bytes:
    """The reference views side by side, as PNG."""
    small = [square.resize((PREVIEW_SIZE, PREVIEW_SIZE), Image.Resampling.LANCZOS) for square in squares]
    buffer = io.BytesIO()
    strip(small).save(buffer, "PNG")
    return buffer.getvalue()


def make_subject(
    config: Config,
    squares: list[Image.Image],
    inputs: list[dict[str, Any]],
    remembered: dict[str, Any],
    target: str,
    force: bool,
    output: Output,
    parents: Sequence[str] = (),
    augment: Callable[[], tuple[list[Image.Image], dict[str, Any]]] | None = None,
) -> dict[str, Any]:
    """Encode the photos, fine-tune, and write the subject bundle.

    Args:
        config: the resolved configuration.
        squares: the photos as RGB squares of the base's resolution; they become the reference views.
        inputs: kind, name and SHA-256 of each photo, for the manifest.
        remembered: the configuration that the bundle remembers.
        target: file name, or `-`.
        force: overwrite an existing file.
        output: where progress goes.
        parents: SHA-256 of the bundles that the photos come from.
        augment: makes further pictures to train on, and says how they were made, for the manifest. It is called
            when PromptNet is at hand, so that hours of work do not end with a missing file.

    Returns:
        A summary: SHA-256 of the bundle, steps, first and last loss, seconds.
    """
    started = time.perf_counter()
    own = config.finetune
    placement = resolve_placement(config.device, config.dtype, training=own.steps > 0)
    with BaseModel(config.base, placement) as base:
        base.latent_size(config.base.resolution, config.base.resolution)
        make = _make_word if is_word_method(own.method) else _make_promptnet
        made = make(base, config, squares, output, augment or (lambda: ([], None)))
        save_dtype = DTYPES[own.save_dtype]
        files = {name: pack(tensors, save_dtype) for name, tensors in made.files.items()}
        if made.tuned.unet_changes:
            files[UNET_FILE] = pack(made.tuned.unet_changes, save_dtype)
        if made.references is not None:
            files[VIEWS_FILE] = pack({name: getattr(made.references, name) for name in VIEW_TENSORS})
        losses = made.tuned.losses
        manifest = {
            "kind": "subject",
            "base": base.manifest(made.fingerprints),
            "config": remembered,
            "seed": config.seed,
            "inputs": inputs,
            "parents": [*parents, *made.parents],
            **made.manifest,
            "loss": {"first": losses[0], "last": losses[-1]} if losses else None,
        }
        sha256 = write_bundle(target, manifest, files, preview_strip(squares), force)
    return {
        "sha256": sha256,
        "kind": "subject",
        "method": own.method,
        "views": made.views,
        "steps": own.steps,
        "first_loss": losses[0] if losses else None,
        "last_loss": losses[-1] if losses else None,
        "seconds": round(time.perf_counter() - started, 2),
    }


Augment = Callable[[], tuple[list[Image.Image], dict[str, Any] | None]]


@dataclass(frozen=True)
class _Made:
    """A subject before it is written: tensors by file, and what the manifest says of it."""

    tuned: Tuned
    files: dict[str, Mapping[str, torch.Tensor]]
    manifest: dict[str, Any]
    fingerprints: dict[str, str]
    views: int
    references: Views | None = None
    parents: tuple[str, ...] = ()


def _make_promptnet(
    base: BaseModel, config: Config, squares: list[Image.Image], output: Output, augment: Augment
) -> _Made:
    """S* by PromptNet, which sees the photos."""
    own = config.finetune
    loaded = load_promptnet(config.promptnet, base, config.seed)
    if config.promptnet.note:
        output.note(f"PromptNet: {config.promptnet.note}.")
    if own.method == "e4t" and not loaded.embedding_l2:
        output.warn(
            "This PromptNet is not known to be regularised, as E4T's encoder is: pre-train one with "
            "`profusion pretrain --embedding-l2 0.01`, and give it with --promptnet."
        )
    promptnet = loaded.promptnet
    check_fit(promptnet, base)
    pictures, augmentation = augment()
    mean, std = base.encode_moments([*squares, *pictures])
    promptnet.tokens_for(mean.shape[-1])
    views = Views(mean, std, base.encode_image_tokens([*squares, *pictures]))
    fingerprints = base.fingerprints(*WEIGHTY)
    base.release(*parts_for("encodes"))
    tuned = Tuned({}, ())
    if own.steps > 0:
        with output.progress("Fine-tuning", own.steps) as step:
            tuned = finetune(base, promptnet, views, own, config.concept_prompt, config.seed, _loss_shown(step))
    manifest = {
        "promptnet": promptnet_section(promptnet),
        "promptnet_source": loaded.source,
        "augmentation": augmentation,
    }
    files = {PROMPTNET_FILE: promptnet.state_dict()}
    return _Made(tuned, files, manifest, fingerprints, len(views), views.first(len(squares)), loaded.parents)


def _make_word(base: BaseModel, config: Config, squares: list[Image.Image], output: Output, augment: Augment) -> _Made:
    """S* as an ordinary word."""
    own = config.finetune
    text = own.word.replace("{class}", class_noun(config.class_word))
    word = LearnedWord.from_text(base.text, text)
    pictures, augmentation = augment()
    mean, std = base.encode_moments([*squares, *pictures])
    views = Views(mean, std, torch.zeros(len(mean), 0, 0))
    prior = None
    if own.prior_pictures > 0 and own.steps > 0:
        prior = _draw_class(base, config, output)
    fingerprints = base.fingerprints(*parts_for("draws"))
    base.release(*parts_for("encodes"))
    tuned = Tuned({}, ())
    if own.steps > 0:
        with output.progress("Fine-tuning", own.steps) as step:
            tuned = finetune_word(
                *(base, word, views, prior, own, config.concept_prompt, config.class_word, config.seed),
                _loss_shown(step),
            )
    manifest = {"word": {"initial": text, "words": len(word.embedding)}, "augmentation": augmentation}
    files = {WORD_FILE: {"embedding": word.embedding}}
    return _Made(tuned, files, manifest, fingerprints, len(views))


def _draw_class(base: BaseModel, config: Config, output: Output) -> Views:
    """Encoded pictures of the subject's class by the base model, for DreamBooth's prior."""
    count = config.finetune.prior_pictures
    prompt = parse_prompt(config.concept_prompt).twin([config.class_word])
    with (
        TextToImage(config.base, base.placement) as model,
        output.progress(f"Drawing {config.class_word}", count) as step,
    ):
        pictures = model.draw(
            *(prompt, range(count), replace(config.sample, width=None, height=None, negative_prompt="")),
            *(PRIOR_GUIDANCE, config.seed, lambda done: step(done, "")),
        )
    mean, std = base.encode_moments(pictures)
    return Views(mean, std, torch.zeros(len(mean), 0, 0))


def _loss_shown(step: Callable[[int, str], None]) -> Callable[[int, float], None]:
    return lambda done, loss: step(done, f"loss {loss:.4f}")
