"""What a PromptNet is built from, as bundles and checkpoints describe it; nothing that they say is taken on trust.

Stable Diffusion XL (arXiv 2307.01952) is not supported. What it would take:

- two text encoders, of widths 768 and 1280, whose penultimate layers stand side by side in the UNet's 2048: S* is two
  words, one for each, so that PromptNet has two heads in place of `region_prompt_output`, and `TextConditioner`
  splices into both;
- the pooled state of the second encoder, at the end of the prompt with S* in it, and six numbers of size and crop,
  which reach the UNet beside the timestep (`addition_embed_type`, one of `UNSUPPORTED_KEYS`): `Conditioning` gets
  both, and gamma has to say what it does to the pooled state, of which the paper knows nothing;
- a PromptNet on down and mid blocks of up to ten transformer layers, on latents of 128 x 128: 8.4 times the FLOPs of an
  evaluation, and 2.6 G parameters in the UNet, so that fine-tuning trains adapters only (whole weights would want some
  40 GB for AdamW), and the VAE computes in bfloat16 or float32;
- a PromptNet to start from, which nobody has trained.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from profusion_cli.bundle.refusal import show
from profusion_cli.errors import ConfigError

UNSUPPORTED_KEYS = (
    "addition_embed_type",
    "class_embed_type",
    "num_class_embeds",
    "encoder_hid_dim_type",
    "time_cond_proj_dim",
)
SIZES = ("image_token_dim", "embedding_dim", "region_kernel_size", "region_proj_channels")
MAX_LAYERS = 64
"""Three times as many as those of Stable Diffusion 2; each takes milliseconds to build, however small it is."""
_FAMILY = "Use a base model of the Stable Diffusion 1 or 2 family."


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 < value < 1 << 31


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_one_of(*known: Any) -> Callable[[Any], bool]:
    return lambda value: any(type(value) is type(one) and value == one for one in known)


def _are(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and len(value) > 0 and all(map(fits, value))


def _or(*ways: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: any(fits(value) for fits in ways)


_UNET: dict[str, Callable[[Any], bool]] = {
    "in_channels": _is_size,
    "flip_sin_to_cos": _is_flag,
    "freq_shift": _is_number,
    "down_block_types": _are(_is_one_of("CrossAttnDownBlock2D", "DownBlock2D")),
    "mid_block_type": _is_one_of("UNetMidBlock2DCrossAttn"),
    "only_cross_attention": _or(_is_flag, _are(_is_flag)),
    "block_out_channels": _are(_is_size),
    "layers_per_block": _or(_is_size, _are(_is_size)),
    "downsample_padding": _is_one_of(0, 1),
    "mid_block_scale_factor": lambda value: _is_number(value) and value > 0,
    "act_fn": _is_one_of("silu", "swish", "mish", "gelu", "relu"),
    "norm_num_groups": _is_size,
    "norm_eps": lambda value: _is_number(value) and value > 0,
    "cross_attention_dim": _is_size,
    "transformer_layers_per_block": _or(_is_size, _are(_is_size)),
    "attention_head_dim": _or(_is_size, _are(_is_size)),
    "num_attention_heads": _is_one_of(None),
    "dual_cross_attention": _is_one_of(False),
    "use_linear_projection": _is_flag,
    "upcast_attention": _is_flag,
    "resnet_time_scale_shift": _is_one_of("default", "scale_shift"),
    "time_embedding_type": _is_one_of("positional", "fourier"),
    "conv_in_kernel": _is_size,
}
"""What of a UNet's configuration shapes its down and mid blocks, and the values that it may have."""
_NEEDED = ("down_block_types", "block_out_channels")


@dataclass(frozen=True)
class PromptNetConfig:
    """Architecture of a PromptNet.

    Args:
        unet: those entries of the base UNet's configuration that shape its down and mid blocks.
        image_token_dim: width of the vision tower's hidden states (1280 for CLIP ViT-H/14).
        embedding_dim: width of the text encoder's word embeddings (1024 for Stable Diffusion 2).
        region_kernel_size: kernel and stride of the last convolution; the pyramid's smallest map is
            cut into squares of this size, and each becomes one word of S*.
        region_proj_channels: channels to which each block's output is projected.

    Raises:
        ConfigError: values that no PromptNet has.
    """

    unet: Mapping[str, Any]
    image_token_dim: int
    embedding_dim: int
    region_kernel_size: int = 8
    region_proj_channels: int = 128

    def __post_init__(self) -> None:
        for key in SIZES:
            _need(_is_size(getattr(self, key)), key, getattr(self, key))
        _need(isinstance(self.unet, Mapping), "unet", self.unet)
        for key in _NEEDED:
            _need(key in self.unet, f"unet.{key}", None)
        blocks = len(self.unet["down_block_types"]) if isinstance(self.unet["down_block_types"], list) else 0
        for key, value in self.unet.items():
            fits = key in _UNET and _UNET[key](value)
            _need(fits and (not isinstance(value, list) or len(value) == blocks), f"unet.{key}", value)

    @property
    def layers(self) -> int:
        """How many residual and transformer blocks there are; what building costs goes by these."""
        blocks = len(self.unet["down_block_types"])
        resnets, transformers = (
            value if isinstance(value, list) else [value] * blocks
            for value in (self.unet.get("layers_per_block", 2), self.unet.get("transformer_layers_per_block", 1))
        )
        down = sum(count * (1 + depth) for count, depth in zip(resnets, transformers, strict=True))
        return down + 2 + transformers[-1]


def _need(condition: bool, key: str, value: Any) -> None:
    if not condition:
        raise ConfigError(f"PromptNet cannot be built with {key}={show(value)}.", _FAMILY)


def unet_architecture(config: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a UNet's (or an official PromptNet's) configuration that PromptNet is built from.

    Raises:
        ConfigError: a UNet with conditioning that the Stable Diffusion 1 and 2 family does not have.
    """
    for key in UNSUPPORTED_KEYS:
        if config.get(key) is not None:
            raise ConfigError(f"PromptNet cannot be built on a UNet with {key}={show(config[key])}.", _FAMILY)
    plain = {key: config[key] for key in _UNET if key in config}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in plain.items()}
