"""Single-file checkpoints of the Stable Diffusion 1 and 2 families, converted once into a folder in diffusers' layout.

What the networks are is read from the shapes of their tensors, and diffusers' own converters rename these. What shapes
do not tell is that of the families: Stable Diffusion 1 has 8 attention heads everywhere, reads CLIP ViT-L/14's last
layer and fills prompts up with their end; Stable Diffusion 2 has heads of 64 channels, reads OpenCLIP ViT-H/14's
penultimate layer and fills prompts up with "!".
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from rich.filesize import decimal
from safetensors import SafetensorError
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from profusion_cli.errors import OutputError, UnavailableError, first_line
from profusion_cli.files import locked, make_folder
from profusion_cli.folders import MARK, atomic_folder
from profusion_cli.listener import who_hears
from profusion_cli.runtime.downloads import free_space
from profusion_cli.runtime.hub import load_bin
from profusion_cli.runtime.random_base import PAD_TOKEN, make_scheduler, write_clip_tokenizer

SUFFIXES = (".safetensors", ".ckpt")
UNET, OPEN_CLIP, CLIP = "model.diffusion_model.", "cond_stage_model.model.", "cond_stage_model.transformer."
VAE = "first_stage_model."
PATIENCE = 1800.0
"""Seconds that another process may take for a conversion."""
LARGE = 768
"""Pixels from which on Stable Diffusion 2 predicts the velocity."""
_OTHER_DISK = "Set XDG_CACHE_HOME to a folder on another disk."
_FAMILY = "Give a whole checkpoint of the Stable Diffusion 1 or 2 family, or a folder in diffusers' layout."

State = Mapping[str, torch.Tensor]


def is_single_file(place: str) -> bool:
    """Whether a local path names a checkpoint in one file."""
    return place.lower().endswith(SUFFIXES) and os.path.isfile(place)


def cache_folder() -> Path:
    """Where converted checkpoints are kept."""
    own = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA") or os.path.expanduser("~/.cache")
    return Path(own) / "profusion" / "checkpoints"


def place_of(path: Path, resolution: int) -> Path:
    """Where a checkpoint is converted to.

    Args:
        path: of the file.
        resolution: of its pictures, in pixels.
    """
    found = path.stat()
    known = f"{path.resolve()}:{found.st_size}:{found.st_mtime_ns}:{resolution >= LARGE}"
    return cache_folder() / f"{path.stem[:40]}-{hashlib.sha256(known.encode()).hexdigest()[:16]}"


def folder_of(path: Path, resolution: int) -> Path:
    """The folder that a checkpoint is converted to, which is done at its first use.

    Args:
        path, resolution: as of `place_of`.

    Raises:
        UnavailableError: it is none of a known family, incomplete or damaged.
        OutputError: the disk has no room for it.
    """
    folder, size = place_of(path, resolution), path.stat().st_size
    if is_converted(path, resolution):
        return folder
    make_folder(folder.parent, "folder of converted checkpoints", _OTHER_DISK)
    if size > free_space(folder.parent):
        raise OutputError(
            f"'{path}' is converted to '{folder}' first, which takes {decimal(size)}, and the disk has "
            f"{decimal(free_space(folder.parent))} free.",
            f"Free some space. {_OTHER_DISK}",
        )
    message = f"Another process is converting a checkpoint in '{folder.parent}'."
    with locked(folder.parent, message, "Wait for it.", wait=PATIENCE):
        if not is_converted(path, resolution):
            with who_hears().working("Converting the checkpoint"), atomic_folder(folder) as part:
                family = _convert(read_checkpoint(path), part, path, resolution)
            who_hears().note(f"'{path}' is {family}. It was converted to diffusers' layout, once, in '{folder}'.")
    return folder


def is_converted(path: Path, resolution: int) -> bool:
    """Whether that is done."""
    return (place_of(path, resolution) / MARK).is_file()


def read_checkpoint(path: Path) -> State:
    """The tensors of a checkpoint; nothing in it is executed.

    Raises:
        UnavailableError: it is damaged.
    """
    try:
        if path.suffix.lower() == ".safetensors":
            return safetensors.torch.load_file(path)
        return load_bin(path)
    except (SafetensorError, OSError) as error:
        raise UnavailableError(f"'{path}' cannot be read: {first_line(error)}.", "Fetch the file again.") from error


def _convert(state: State, folder: Path, path: Path, resolution: int) -> str:
    """Write the folder; what the checkpoint is, in words."""
    missing = [prefix for prefix in (UNET, VAE) if not any(name.startswith(prefix) for name in state)]
    is_second = any(name.startswith(OPEN_CLIP) for name in state)
    if missing or not (is_second or any(name.startswith(CLIP) for name in state)):
        lacks = missing[0] if missing else "cond_stage_model"
        raise UnavailableError(f"'{path}' has no tensors named '{lacks}...', as such checkpoints do.", _FAMILY)
    try:
        shapes = unet_config(state, is_second, resolution)
        unet = _with_weights(UNet2DConditionModel, shapes, convert_ldm_unet_checkpoint, state)
        vae = _with_weights(AutoencoderKL, vae_config(state, resolution), convert_ldm_vae_checkpoint, state)
        text = text_encoder(state, is_second)
    except (
        LookupError,
        ArithmeticError,
        ValueError,
        TypeError,
        AttributeError,
        RuntimeError,
    ) as error:  # what does not fit shows deep inside
        problem = " ".join(str(error).split())[:300]
        raise UnavailableError(f"'{path}' is no such checkpoint: {problem}", _FAMILY) from error
    for name, network in (("unet", unet), ("vae", vae), ("text_encoder", text)):
        network.save_pretrained(folder / name)
    prediction_type = "v_prediction" if is_second and resolution >= LARGE else "epsilon"
    make_scheduler(prediction_type).save_pretrained(folder / "scheduler")
    pad_token = PAD_TOKEN if is_second else "<|endoftext|>"
    write_clip_tokenizer(folder / "tokenizer", pad_token=pad_token)
    (folder / "tokenizer" / "special_tokens_map.json").write_text(json.dumps({"pad_token": pad_token}))
    (folder / MARK).write_text(json.dumps({"checkpoint": path.name}), encoding="utf-8")
    preset = "sd15" if not is_second else "sd2-768" if resolution >= LARGE else "sd2"
    predicts = "velocity" if prediction_type == "v_prediction" else "noise"
    return f"of the Stable Diffusion {2 if is_second else 1} family ({preset}) and taken to predict {predicts}"


def _with_weights(cls: Any, config: Mapping[str, Any], convert: Any, state: State) -> nn.Module:
    """A network of diffusers' with a checkpoint's weights, in the precision that they have there."""
    with init_empty_weights():
        network = cls(**config)
    network.load_state_dict(convert(dict(state), dict(network.config)), assign=True)
    return network


def _indices(state: State, pattern: str) -> list[int]:
    """The numbers that stand in the place of the pattern's group in the names of tensors, in order."""
    found = (re.match(pattern, name) for name in state)
    return sorted({int(match.group(1)) for match in found if match})


def unet_config(state: State, is_second: bool, resolution: int) -> dict[str, Any]:
    """What a UNet is built from, by the shapes of its tensors.

    Raises:
        KeyError, ValueError: it is none of these families.
    """
    own = UNET.replace(".", r"\.")
    inputs = _indices(state, rf"{own}input_blocks\.(\d+)\.")
    downs = [i for i in inputs if f"{UNET}input_blocks.{i}.0.op.weight" in state]
    per_block = downs[0] - 1
    firsts = [1 + (per_block + 1) * block for block in range(len(downs) + 1)]
    widths = [len(state[f"{UNET}input_blocks.{i}.0.out_layers.3.bias"]) for i in firsts]
    attends = [f"{UNET}input_blocks.{i}.1.proj_in.weight" in state for i in firsts]
    first = firsts[attends.index(True)]
    keys = state[f"{UNET}input_blocks.{first}.1.transformer_blocks.0.attn2.to_k.weight"]
    linear = state[f"{UNET}input_blocks.{first}.1.proj_in.weight"].ndim == 2
    if linear != is_second:
        raise ValueError("its UNet and its text encoder are of different families")
    return {
        "sample_size": resolution // 8,
        "in_channels": state[f"{UNET}input_blocks.0.0.weight"].shape[1],
        "down_block_types": ["CrossAttnDownBlock2D" if here else "DownBlock2D" for here in attends],
        "up_block_types": ["CrossAttnUpBlock2D" if here else "UpBlock2D" for here in reversed(attends)],
        "block_out_channels": widths,
        "layers_per_block": per_block,
        "cross_attention_dim": keys.shape[1],
        "attention_head_dim": [width // 64 for width in widths] if is_second else 8,
        "use_linear_projection": is_second,
        "upcast_attention": is_second and resolution >= LARGE,
    }


def vae_config(state: State, resolution: int) -> dict[str, Any]:
    """What a VAE is built from, by the shapes of its tensors."""
    own = VAE.replace(".", r"\.")
    levels = _indices(state, rf"{own}encoder\.down\.(\d+)\.")
    return {
        "sample_size": resolution,
        "down_block_types": ["DownEncoderBlock2D"] * len(levels),
        "up_block_types": ["UpDecoderBlock2D"] * len(levels),
        "block_out_channels": [len(state[f"{VAE}encoder.down.{i}.block.0.conv1.bias"]) for i in levels],
        "layers_per_block": len(_indices(state, rf"{own}encoder\.down\.0\.block\.(\d+)\.")),
        "latent_channels": state[f"{VAE}quant_conv.bias"].shape[0] // 2,
    }


def text_encoder(state: State, is_second: bool) -> CLIPTextModel:
    """The text encoder, without the layer that Stable Diffusion 2 does not read."""
    prefix = OPEN_CLIP if is_second else f"{CLIP}text_model."
    own = prefix.replace(".", r"\.")
    if is_second:
        layers = _indices(state, rf"{own}transformer\.resblocks\.(\d+)\.")
        words, places = state[f"{prefix}token_embedding.weight"], state[f"{prefix}positional_embedding"]
        inner = state[f"{prefix}transformer.resblocks.0.mlp.c_fc.bias"]
    else:
        layers = _indices(state, rf"{own}encoder\.layers\.(\d+)\.")
        words, places = (state[f"{prefix}embeddings.{name}_embedding.weight"] for name in ("token", "position"))
        inner = state[f"{prefix}encoder.layers.0.mlp.fc1.bias"]
    config = CLIPTextConfig(
        vocab_size=words.shape[0],
        hidden_size=words.shape[1],
        intermediate_size=len(inner),
        num_hidden_layers=len(layers) - is_second,
        num_attention_heads=words.shape[1] // 64,
        max_position_embeddings=places.shape[0],
        hidden_act="gelu" if is_second else "quick_gelu",
        bos_token_id=49406,
        eos_token_id=49407,
    )
    with init_empty_weights():
        encoder = CLIPTextModel(config)
    found = (
        convert_open_clip_checkpoint(encoder, dict(state)) if is_second else convert_ldm_clip_checkpoint(dict(state))
    )
    wanted = encoder.state_dict().keys()
    names = {name if name in wanted else name.removeprefix("text_model."): name for name in found}
    encoder.load_state_dict({new: found[old] for new, old in names.items() if new in wanted}, assign=True)
    return encoder
