"""Networks that begin from those of an edition of half the side: what it knows of pictures, they know of larger ones.

Progressive growing (https://arxiv.org/abs/1710.10196, section 2): the inner layers are taken over, outer ones are new.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer, CLIPVisionModel


@torch.no_grad()
def grow_vae(vae: AutoencoderKL, first: Path) -> None:
    """A level more on the outside of the encoder and of the decoder; latents of the same side.

    Args:
        vae: of four levels, whose inner three have the widths of the first edition's.
        first: folder of the first edition.
    """
    old = AutoencoderKL.from_pretrained(str(first / "vae"))
    for name in ("mid_block", "conv_norm_out", "conv_out"):
        _take(getattr(vae.encoder, name), getattr(old.encoder, name))
    for name in ("conv_in", "mid_block"):
        _take(getattr(vae.decoder, name), getattr(old.decoder, name))
    _take(vae.encoder.conv_in, old.encoder.conv_in)
    _take(vae.decoder.conv_norm_out, old.decoder.conv_norm_out)
    _take(vae.decoder.conv_out, old.decoder.conv_out)
    for i, block in enumerate(old.encoder.down_blocks):
        _take(vae.encoder.down_blocks[i + 1], block)
    for i, block in enumerate(old.decoder.up_blocks):
        _take(vae.decoder.up_blocks[i].resnets, block.resnets)
        if block.upsamplers:
            _take(vae.decoder.up_blocks[i].upsamplers, block.upsamplers)
    _take(vae.quant_conv, old.quant_conv)
    _take(vae.post_quant_conv, old.post_quant_conv)
    _average(vae.encoder.down_blocks[0].downsamplers[0].conv)
    _pass_on(vae.decoder.up_blocks[-2].upsamplers[0].conv)
    for block in (vae.encoder.down_blocks[0], vae.decoder.up_blocks[-1]):
        for resnet in block.resnets:
            torch.nn.init.zeros_(resnet.conv2.weight)
            torch.nn.init.zeros_(resnet.conv2.bias)


@torch.no_grad()
def grow_clip(clip: CLIPModel, tokenizer: CLIPTokenizer, first: Path) -> None:
    """The layers that the first edition kept, its words, and patches of twice the side.

    Args:
        clip: of as many layers as the first edition was trained with.
        tokenizer: of `clip`.
        first: folder of the first edition, of which some words are known.
    """
    text = CLIPTextModel.from_pretrained(str(first / "text_encoder"))
    vision = CLIPVisionModel.from_pretrained(str(first / "vision"))
    words = CLIPTokenizer.from_pretrained(str(first / "tokenizer")).get_vocab()
    new, old = clip.text_model.state_dict(), _bare(text.state_dict(), "text_model.")
    table, known = new.pop("embeddings.token_embedding.weight"), old.pop("embeddings.token_embedding.weight")
    for word, at in tokenizer.get_vocab().items():
        if word in words:
            table[at] = known[words[word]]
    _copy(new, old)
    new, old = clip.vision_model.state_dict(), _bare(vision.state_dict(), "vision_model.")
    patches = old.pop("embeddings.patch_embedding.weight")
    new.pop("embeddings.patch_embedding.weight").copy_(patches.repeat_interleave(2, -1).repeat_interleave(2, -2) / 4)
    _copy(new, old)


def grow_unet(unet: UNet2DConditionModel, folder: Path) -> None:
    """The whole network: latents have the side that they had."""
    unet.load_state_dict(UNet2DConditionModel.from_pretrained(str(folder)).state_dict())


def _take(new: torch.nn.Module, old: torch.nn.Module) -> None:
    new.load_state_dict(old.state_dict())


def _bare(weights: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {key.removeprefix(prefix): value for key, value in weights.items()}


def _copy(new: dict[str, torch.Tensor], old: dict[str, torch.Tensor]) -> None:
    for key, value in old.items():
        new[key].copy_(value)


def _average(conv: torch.nn.Conv2d) -> None:
    """A convolution of stride 2 that gives the mean of each square of four."""
    torch.nn.init.zeros_(conv.weight)
    torch.nn.init.zeros_(conv.bias)
    for channel in range(len(conv.weight)):
        conv.weight[channel, channel, :2, :2] = 0.25


def _pass_on(conv: torch.nn.Conv2d) -> None:
    """A convolution that changes nothing."""
    torch.nn.init.dirac_(conv.weight)
    torch.nn.init.zeros_(conv.bias)
