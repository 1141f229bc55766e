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
    """A level more on the outside of encoder and decoder, and more latent channels; both are used little at first.

    Args:
        vae: whose inner levels have the widths of the first edition's, with as many latent channels or more.
        first: folder of the first edition.
    """
    old = AutoencoderKL.from_pretrained(str(first / "vae"))
    outer = len(vae.encoder.down_blocks) - len(old.encoder.down_blocks)
    for new, known in ((vae.encoder, old.encoder), (vae.decoder, old.decoder)):
        _take(new.mid_block, known.mid_block)
        _take(new.conv_norm_out, known.conv_norm_out)
    _take(vae.encoder.conv_in, old.encoder.conv_in)
    _take(vae.decoder.conv_out, old.decoder.conv_out)
    for i, block in enumerate(old.encoder.down_blocks):
        _take(vae.encoder.down_blocks[outer + i], block)
    for i, block in enumerate(old.decoder.up_blocks):
        _take(vae.decoder.up_blocks[i].resnets, block.resnets)
        if block.upsamplers:
            _take(vae.decoder.up_blocks[i].upsamplers, block.upsamplers)
    if outer:
        _average(vae.encoder.down_blocks[0].downsamplers[0].conv)
        _pass_on(vae.decoder.up_blocks[-2].upsamplers[0].conv)
        for block in (vae.encoder.down_blocks[0], vae.decoder.up_blocks[-1]):
            for resnet in block.resnets:
                torch.nn.init.zeros_(resnet.conv2.weight)
                torch.nn.init.zeros_(resnet.conv2.bias)
    _grow_channels(vae, old)


def _grow_channels(vae: AutoencoderKL, old: AutoencoderKL) -> None:
    """The known latent channels as they were; the new ones nearly without noise."""
    new, known = vae.config.latent_channels, old.config.latent_channels
    means, deviations = range(known), range(new, new + known)
    both = [*means, *deviations]
    convs = ((vae.encoder.conv_out, old.encoder.conv_out), (vae.quant_conv, old.quant_conv))
    for conv, _ in convs:
        conv.weight[new:] *= 0.05
    vae.quant_conv.bias[new:] = -6.0
    vae.quant_conv.weight[both] = 0.0
    vae.encoder.conv_out.weight[both], vae.encoder.conv_out.bias[both] = convs[0][1].weight, convs[0][1].bias
    vae.quant_conv.weight[torch.tensor(both)[:, None], both] = old.quant_conv.weight
    vae.quant_conv.bias[both] = old.quant_conv.bias
    vae.post_quant_conv.weight[:known] = 0.0
    vae.post_quant_conv.weight[:known, :known] = old.post_quant_conv.weight
    vae.post_quant_conv.bias[:known] = old.post_quant_conv.bias
    vae.decoder.conv_in.weight[:, :known] = old.decoder.conv_in.weight
    vae.decoder.conv_in.bias.copy_(old.decoder.conv_in.bias)


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


@torch.no_grad()
def grow_unet(unet: UNet2DConditionModel, folder: Path) -> None:
    """The whole network, as latents have the side that they had; it sees and predicts nothing of new channels yet.

    Args:
        unet: for as many latent channels as `folder`'s has, or more; its input is latents, or for inpainting latents,
            mask and latents.
        folder: of the first edition's UNet.
    """
    old = UNet2DConditionModel.from_pretrained(str(folder))
    weights = old.state_dict()
    new, known = unet.config.out_channels, old.config.out_channels
    seen = [*range(known), *range(new, new + 1 + known)][: old.config.in_channels]
    conv_in = torch.zeros_like(unet.conv_in.weight)
    conv_in[:, seen] = weights["conv_in.weight"]
    conv_out, bias = torch.zeros_like(unet.conv_out.weight), torch.zeros_like(unet.conv_out.bias)
    conv_out[:known], bias[:known] = weights["conv_out.weight"], weights["conv_out.bias"]
    weights |= {"conv_in.weight": conv_in, "conv_out.weight": conv_out, "conv_out.bias": bias}
    unet.load_state_dict(weights)


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
