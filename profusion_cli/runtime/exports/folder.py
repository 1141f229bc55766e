"""A subject as a pipeline folder of diffusers', with the code of Fusion Sampling in it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import nn

from profusion_cli.bundle import Bundle
from profusion_cli.config import Config, PromptNetSource
from profusion_cli.mappings import plain
from profusion_cli.presets import local_path
from profusion_cli.runtime.backbone import BaseModel, quiet_libraries
from profusion_cli.runtime.changes import Change, LowRank, read_changes
from profusion_cli.runtime.exports.merging import merged
from profusion_cli.runtime.exports.stock import pipeline, promptnet
from profusion_cli.runtime.exports.stock.promptnet import DOWN, UP, SubjectPromptNet
from profusion_cli.runtime.needs import DRAWS
from profusion_cli.runtime.parts import PARTS, parts_for
from profusion_cli.runtime.promptnet import PromptNet
from profusion_cli.runtime.sampling import promptnet_and_views
from profusion_cli.runtime.views import VIEW_TENSORS, Views
from profusion_cli.runtime.weights import check_base

SAMPLE_KEYS = ("num_images", "batch_size", "weights", "areas", "reference", "references")
"""Settings of `sample` that a pipeline of one subject has no use for, or asks for in its own way."""


def write_folder(
    folder: Path,
    base: BaseModel,
    bundle: Bundle,
    config: Config,
    parent: PromptNetSource,
    made_from: Mapping[str, Any],
    dtype: torch.dtype,
    with_base: bool,
) -> None:
    """Write everything but a README.

    Args:
        folder: an empty one.
        base: the entered base model, in float32.
        bundle: of a subject whose S* PromptNet makes.
        config: of the subject.
        parent: where the PromptNet is that its adapters are for.
        made_from: names and SHA-256 of the bundle and of the photos.
        dtype: that PromptNet is written in.
        with_base: copy the base model in, as it is stored; otherwise the index says where it is.

    Raises:
        BundleError, UnavailableError: as `Sampler`.
    """
    check_base(bundle, base, parts_for("draws"))
    reference, averaged = config.sample.reference - 1, config.sample.references == "mean"
    made, views = promptnet_and_views(bundle, parent, base, reference)
    seen = views if averaged else Views(*(getattr(views, name)[reference][None] for name in VIEW_TENSORS))
    changes = read_changes(bundle, "unet", dict(base.unet.named_parameters()))
    with quiet_libraries():
        component = _component(made, seen, averaged, changes, config.class_word, made_from, dtype)
        component.save_pretrained(folder / "promptnet")
        if with_base:
            for name in DRAWS:
                part = base.as_stored(name) if PARTS[name].weights else getattr(base, name)
                part.save_pretrained(folder / name)
    for path, module in (("pipeline.py", pipeline), ("promptnet/promptnet.py", promptnet)):
        (folder / path).write_text(merged(module.__name__), encoding="utf-8")
    index = json.dumps(_index(base, config, with_base), indent=2, ensure_ascii=False)
    (folder / "model_index.json").write_text(index + "\n", encoding="utf-8")


def _component(
    made: PromptNet,
    views: Views,
    averaged: bool,
    changes: Mapping[str, Change],
    class_word: str,
    made_from: Mapping[str, Any],
    dtype: torch.dtype,
) -> SubjectPromptNet:
    """What is the subject's own."""
    tensors = {}
    for name, change in changes.items():
        if isinstance(change, LowRank):
            tensors |= {name + DOWN: change.down, name + UP: change.up}
        else:
            tensors[name] = change
    seen = {"ref_latents": views.latents_mean, "image_tokens": views.image_tokens}
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    component = SubjectPromptNet(
        plain(asdict(made.config)),
        **{f"{name}_shape": list(tensor.shape) for name, tensor in seen.items()},
        changes=shapes,
        class_word=class_word,
        averaged=averaged,
        made_from=made_from,
    )
    component.promptnet = made.to(dtype)
    for name, tensor in seen.items():
        setattr(component, name, tensor.contiguous())
    own = {component.key_of(name): nn.Parameter(tensor.contiguous(), False) for name, tensor in tensors.items()}
    component.unet_changes = nn.ParameterDict(own)
    return component


def _index(base: BaseModel, config: Config, with_base: bool) -> dict[str, Any]:
    """What diffusers reads first."""
    classes = {name: [PARTS[name].library, PARTS[name].cls.__name__] for name in DRAWS}
    sample = {key: value for key, value in plain(asdict(config.sample)).items() if key not in SAMPLE_KEYS}
    return {
        "_class_name": ["pipeline", pipeline.ProFusionPipeline.__name__],
        "_diffusers_version": diffusers.__version__,
        "promptnet": ["promptnet", SubjectPromptNet.__name__],
        **{name: own if with_base else [None, None] for name, own in classes.items()},
        "base": None if with_base else {name: _place(base, name) for name in DRAWS},
        "resolution": config.base.resolution,
        "clip_skip": config.base.clip_skip,
        "pad_token_id": config.base.pad_token_id,
        "placeholder": config.placeholder,
        "concept_prompt": config.concept_prompt,
        "sample": sample,
        "plans": plain(asdict(config.plans)),
    }


def _place(base: BaseModel, name: str) -> list[str | None]:
    """Id, revision and sub-folder of a part of the base model, as diffusers takes them."""
    source = base.files(name).source
    return [local_path(source.id) if source.is_local else source.id, source.revision, source.subfolder]
