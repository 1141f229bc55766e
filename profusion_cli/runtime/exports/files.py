"""A subject as the tensors of one safetensors file, and what there is to say about it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from profusion_cli.bundle import Bundle
from profusion_cli.bundle.kinds import UNET_FILE
from profusion_cli.config import Config, PromptNetSource
from profusion_cli.errors import BundleError, UsageError
from profusion_cli.prompts import parse_prompt
from profusion_cli.runtime.backbone import BaseModel
from profusion_cli.runtime.changes import LowRank, read_changes
from profusion_cli.runtime.compression import Compression, nearest, relative_error
from profusion_cli.runtime.denoiser import WordSubject
from profusion_cli.runtime.device import DTYPES
from profusion_cli.runtime.exports.embedding import average_word, levels
from profusion_cli.runtime.exports.kohya import difference_tensors, lora_tensors
from profusion_cli.runtime.sampling import Sampler

Made = tuple[dict[str, torch.Tensor], dict[str, Any], str]
"""Tensors, what there is to say as plain data, and the same for people."""


def changes_file(base: BaseModel, bundle: Bundle, config: Config, whole: bool) -> Made:
    """What a subject changes in the UNet: as whole differences, or of low rank, under kohya's names.

    Args:
        base: the entered base model, in float32.
        bundle: of the subject.
        config: of the subject, with the rank of what it changes whole.
        whole: differences.
    """
    dtype = DTYPES[config.finetune.save_dtype]
    if not whole and UNET_FILE in bundle.files:
        rank = config.finetune.adapters.rank
        compression = Compression(base, bundle, None, config, dtype, rank)
        changes = {name.removeprefix("unet."): change for name, change in compression.changes.items()}
        kept = {name: change for name, change in changes.items() if isinstance(change, LowRank)}
        error = compression.error_of({f"unet.{name}": change for name, change in kept.items()})
        return _lora(kept, len(changes) - len(kept), rank, error, dtype)
    changes = read_changes(bundle, "unet", dict(base.unet.named_parameters()))
    if whole:
        note = f"Whole differences of {len(changes)} parameters, which ComfyUI reads and diffusers does not."
        return difference_tensors(changes, dtype), {"parameters": len(changes)}, note
    kept = {name: change for name, change in changes.items() if isinstance(change, LowRank)}
    dense = {name: c for name, c in changes.items() if not isinstance(c, LowRank) and c.ndim > 1}
    kept |= {name: nearest(change, config.finetune.adapters.rank) for name, change in dense.items()}
    if not kept:
        raise BundleError(f"'{bundle.name}' changes no matrix of the UNet.", "Export it by --to lora-full.")
    rank = max(change.down.shape[0] for change in kept.values())
    offs = [relative_error(kept[name].whole(), change.float()) for name, change in dense.items()]
    return _lora(kept, len(changes) - len(kept), rank, 0.0, dtype, max(offs, default=0.0))


def _lora(
    kept: dict[str, LowRank], left_out: int, rank: int, error: float, dtype: torch.dtype, weight_error: float = 0.0
) -> Made:
    """See `changes_file`.

    Args:
        kept: what is written.
        left_out: how many changes are not.
        rank: of what is written, the highest.
        error: of predictions.
        dtype: of the file.
        weight_error: of changes that were whole in a subject of adapters, the largest.
    """
    told = {"rank": rank, "error": float(f"{error:.4g}"), "matrices": len(kept), "left_out_parameters": left_out}
    off = f"predictions of its own picture are off by {error:.3g}" if error else "the subject's own adapters, exactly"
    if weight_error:
        told["weight_error"] = float(f"{weight_error:.4g}")
        off = f"the subject's own adapters, and whole changes that are off by up to {weight_error:.3g} so"
    more = f"; {left_out} biases and norms are left out" if left_out else ""
    return lora_tensors(kept, dtype), told, f"{len(kept)} matrices at rank {rank}: {off}{more}."


def embedding_file(
    base: BaseModel, bundle: Bundle, config: Config, parent: PromptNetSource, timestep: int | None
) -> Made:
    """S* under the placeholder's name, float32, shape (words, embedding_dim).

    Args:
        base, bundle, config: as of `changes_file`.
        parent: where the PromptNet is that its adapters are for.
        timestep: where it is taken; None: averaged over noise levels. Of no matter where S* is an ordinary word.

    Raises:
        UsageError: a timestep that the schedule does not have.
    """
    prompt = parse_prompt(config.concept_prompt)
    one = replace(config, sample=replace(config.sample, references="one"))
    sampler = Sampler(base, [bundle], [config.class_word], [prompt], one, [parent])
    (subject,) = sampler.subjects
    if isinstance(subject, WordSubject):
        return {config.placeholder: subject.embedding.float().cpu()}, {"spread": 0.0}, "S* itself: it is a word."
    count = base.scheduler.config.num_train_timesteps
    if timestep is not None and timestep >= count:
        raise UsageError(f"--timestep {timestep} is beyond the schedule.", f"Use 0 to {count - 1}.")
    at = levels(count) if timestep is None else [timestep]
    word, spread = average_word(subject, base.scheduler.alphas_cumprod, at, config.seed)
    told = {"timesteps": at, "spread": float(f"{spread:.4g}"), "words": len(word)}
    averaged = f"averaged over {len(at)} noise levels, of which it is {spread:.3g} off"
    what = averaged if timestep is None else f"that at timestep {timestep}"
    note = f"S* changes as a picture is drawn, and this one does not: it is {what}."
    return {config.placeholder: word}, told, note
