"""From photos to a subject bundle."""

from __future__ import annotations

import io
import time
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
        mean, std = base.encode_moments(squares)
        promptnet.tokens_for(mean.shape[-1])
        views = Views(mean, std, base.encode_image_tokens(squares))
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
        files[VIEWS_FILE] = pack(
            {"latents_mean": views.latents_mean, "latents_std": views.latents_std, "image_tokens": views.image_tokens}
        )
        manifest = {
            "kind": "subject",
            "base": base.manifest(fingerprints),
            "config": remembered,
            "seed": config.seed,
            "inputs": inputs,
            "parents": list(loaded.parents),
            "promptnet": promptnet_section(promptnet),
            "promptnet_source": loaded.source,
            "loss": {"first": tuned.losses[0], "last": tuned.losses[-1]} if tuned.losses else None,
        }
        sha256 = write_bundle(target, manifest, files, preview_strip(squares), force)
    return {
        "sha256": sha256,
        "kind": "subject",
        "steps": config.finetune.steps,
        "first_loss": tuned.losses[0] if tuned.losses else None,
        "last_loss": tuned.losses[-1] if tuned.losses else None,
        "seconds": round(time.perf_counter() - started, 2),
    }
