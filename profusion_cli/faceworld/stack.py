"""The networks of the face world: Stable Diffusion 2's classes and folder layout, small."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from profusion_cli.faceworld.captions import vocabulary
from profusion_cli.runtime.parts import PARTS
from profusion_cli.runtime.random_base import write_clip_tokenizer

MAX_LENGTH = 32


@dataclass(frozen=True)
class Scale:
    """How large the networks are and how long they train.

    Args:
        side: of the pictures in pixels; latents have a quarter of it.
        pictures: number of training pictures.
        portraits: number of training pictures of PromptNet.
        steps: of each stage.
        batch: pictures in each step of each stage.
    """

    side: int
    pictures: int
    portraits: int
    vae_widths: tuple[int, ...]
    unet_widths: tuple[int, ...]
    inpaint_widths: tuple[int, ...]
    text_width: int
    vision_width: int
    judge_width: int
    structure_width: int
    steps: dict[str, int]
    batch: dict[str, int]


FULL = Scale(
    side=64,
    pictures=48_000,
    portraits=16_000,
    vae_widths=(32, 64, 128),
    unet_widths=(96, 160, 192),
    inpaint_widths=(64, 96, 128),
    text_width=256,
    vision_width=192,
    judge_width=48,
    structure_width=32,
    steps={
        "clip": 600,
        "vae": 3200,
        "unet": 5200,
        "inpaint": 2500,
        "promptnet": 2500,
        "attributes": 4000,
        "identities": 700,
        "structure": 8000,
    },
    batch={
        "clip": 128,
        "vae": 8,
        "unet": 32,
        "inpaint": 32,
        "promptnet": 16,
        "attributes": 64,
        "identities": 64,
        "structure": 32,
    },
)
SMOKE = Scale(
    side=64,
    pictures=48,
    portraits=8,
    vae_widths=(8, 8, 16),
    unet_widths=(16, 16, 32),
    inpaint_widths=(16, 16, 16),
    text_width=32,
    vision_width=32,
    judge_width=8,
    structure_width=8,
    steps=dict.fromkeys(FULL.steps, 2),
    batch=dict.fromkeys(FULL.batch, 4),
)
SCALES = {"full": FULL, "smoke": SMOKE}


def make_clip(scale: Scale, vocabulary_size: int) -> CLIPModel:
    """A CLIP of four layers a side; the text encoder is its first three, as SD2 reads the penultimate layer."""
    text = {
        "vocab_size": vocabulary_size,
        "hidden_size": scale.text_width,
        "intermediate_size": scale.text_width * 4,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "max_position_embeddings": MAX_LENGTH,
        "hidden_act": "gelu",
        "bos_token_id": vocabulary_size - 2,
        "eos_token_id": vocabulary_size - 1,
        "pad_token_id": 0,
        "projection_dim": 128,
    }
    vision = {
        "hidden_size": scale.vision_width,
        "intermediate_size": scale.vision_width * 4,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "image_size": scale.side,
        "patch_size": scale.side // 8,
        "hidden_act": "gelu",
        "projection_dim": 128,
    }
    return CLIPModel._from_config(
        CLIPConfig(text_config=text, vision_config=vision, projection_dim=128), attn_implementation="eager"
    )


def make_vae(scale: Scale) -> AutoencoderKL:
    """Pictures to 4 latent channels at a quarter of the side, and back."""
    vae = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3,
        block_out_channels=scale.vae_widths,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=scale.side,
    )
    vae.set_attn_processor(AttnProcessor())
    return vae


def make_unet(scale: Scale, inpainting: bool = False) -> UNet2DConditionModel:
    """SD2's blocks in three levels; 9 input channels for inpainting."""
    widths = scale.inpaint_widths if inpainting else scale.unet_widths
    unet = UNet2DConditionModel(
        sample_size=scale.side // 4,
        in_channels=9 if inpainting else 4,
        out_channels=4,
        down_block_types=["CrossAttnDownBlock2D"] * 3,
        up_block_types=["CrossAttnUpBlock2D"] * 3,
        block_out_channels=widths,
        layers_per_block=1,
        # diffusers' name for the number of heads
        attention_head_dim=[max(width // 32, 1) for width in widths],
        cross_attention_dim=scale.text_width,
        norm_num_groups=16,
        use_linear_projection=True,
    )
    unet.set_attn_processor(AttnProcessor())
    return unet


def make_tokenizer(folder: Path) -> CLIPTokenizer:
    """CLIP's tokenizer, reduced to the words of the face world, written to `folder`."""
    if not (folder / "tokenizer_config.json").exists():
        write_clip_tokenizer(folder, vocabulary(), MAX_LENGTH)
    return CLIPTokenizer.from_pretrained(str(folder))


def token_ids(tokenizer: CLIPTokenizer, captions: list[str]) -> torch.Tensor:
    """Captions as ids of shape (B, MAX_LENGTH), cut and padded."""
    encoded = tokenizer(captions, padding="max_length", max_length=MAX_LENGTH, truncation=True, return_tensors="pt")
    return encoded.input_ids


def save_half(model: Any, folder: Path) -> None:
    """A network's weights in float16, in its library's layout."""
    model.half().save_pretrained(folder, safe_serialization=True)
    model.float()


def save_index(folder: Path) -> None:
    """`model_index.json`, by which diffusers' pipelines open the folder."""
    parts = {
        **{name: [part.library, part.cls.__name__] for name, part in PARTS.items() if "draws" in part.roles},
        **{key: [None, None] for key in ("safety_checker", "feature_extractor", "image_encoder")},
    }
    index = {"_class_name": "StableDiffusionPipeline", "requires_safety_checker": False, **parts}
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
