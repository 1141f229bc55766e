"""From photos to a subject bundle."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image

from profusion_cli.bundle import write_bundle
from profusion_cli.config import Config
from profusion_cli.console import Output
from profusion_cli.images import strip
from profusion_cli.runtime.backbone import BaseModel
from profusion_cli.runtime.device import DTYPES, resolve_placement
from profusion_cli.runtime.training import Tuned, finetune
from profusion_cli.runtime.views import Views
from profusion_cli.runtime.weights import (
    PROMPTNET_FILE,
    UNET_FILE,
    VIEWS_FILE,
    check_fit,
    load_promptnet,
    pack,
    promptnet_section,
)

PREVIEW_SIZE = 256
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
    placement = resolve_placement(config.device, config.dtype, training=config.finetune.steps > 0)
    with BaseModel(config.base, placement) as base:
        base.latent_size(config.base.resolution, config.base.resolution)
        loaded = load_promptnet(config.promptnet, base, config.seed)
        if config.promptnet.note:
            output.note(f"PromptNet: {config.promptnet.note}.")
        promptnet = loaded.promptnet
        check_fit(promptnet, base)
        pictures, augmentation = augment() if augment is not None else ([], None)
        mean, std = base.encode_moments([*squares, *pictures])
        promptnet.tokens_for(mean.shape[-1])
        views = Views(mean, std, base.encode_image_tokens([*squares, *pictures]))
        fingerprints = base.fingerprints("unet", "vae", "text_encoder", "vision")
        base.release("vae", "vision")
        tuned = Tuned({}, ())
        if config.finetune.steps > 0:
            with output.progress("Fine-tuning", config.finetune.steps) as step:
                tuned = finetune(
                    base,
                    promptnet,
                    views,
                    config.finetune,
                    config.concept_prompt,
                    config.seed,
                    lambda done, loss: step(done, f"loss {loss:.4f}"),
                )
        save_dtype = DTYPES[config.finetune.save_dtype]
        files = {PROMPTNET_FILE: pack(promptnet.state_dict(), save_dtype)}
        if tuned.unet_changes:
            files[UNET_FILE] = pack(tuned.unet_changes, save_dtype)
        references = views.first(len(squares))
        files[VIEWS_FILE] = pack({name: getattr(references, name) for name in VIEW_TENSORS})
        manifest = {
            "kind": "subject",
            "base": base.manifest(fingerprints),
            "config": remembered,
            "seed": config.seed,
            "inputs": inputs,
            "parents": [*parents, *loaded.parents],
            "promptnet": promptnet_section(promptnet),
            "promptnet_source": loaded.source,
            "augmentation": augmentation,
            "loss": {"first": tuned.losses[0], "last": tuned.losses[-1]} if tuned.losses else None,
        }
        sha256 = write_bundle(target, manifest, files, preview_strip(squares), force)
    return {
        "sha256": sha256,
        "kind": "subject",
        "views": len(views),
        "steps": config.finetune.steps,
        "first_loss": tuned.losses[0] if tuned.losses else None,
        "last_loss": tuned.losses[-1] if tuned.losses else None,
        "seconds": round(time.perf_counter() - started, 2),
    }
