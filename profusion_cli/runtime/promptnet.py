"""PromptNet: reference picture, noisy latents and timestep -> pseudo-word S* (arXiv 2305.13579, section 3.1)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from torch import nn

from profusion_cli.errors import ConfigError
from profusion_cli.runtime.architecture import PromptNetConfig, unet_architecture

SMALLEST_REDUCTION = 8


def float32_copies(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Float32 copies on the CPU, which own their memory."""
    return {
        name: tensor.detach().to("cpu", torch.float32, copy=True, memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }


class NoisyLatentsEmbedding(nn.Module):
    """Two convolutions that bring the noisy latents beside `conv_in` of the reference latents."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1)
        self.conv_out = nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        return self.conv_out(F.silu(self.conv_in(latents)))


class PromptNet(nn.Module):
    """The base UNet's down and mid blocks, looking at image tokens instead of text, and a word at the end.

    Parameter names are those of the authors' released checkpoints. The down and mid blocks are on the meta device,
    without memory, until `load_state_dict(..., assign=True)` brings their values.

    Args:
        config: the architecture.
    """

    def __init__(self, config: PromptNetConfig) -> None:
        super().__init__()
        self.config = config
        down_block_types = config.unet["down_block_types"]
        with torch.device("meta"):
            unet = UNet2DConditionModel(
                **config.unet, up_block_types=["UpBlock2D"] * len(down_block_types), out_channels=4
            )
        widths = unet.config.block_out_channels
        self.time_proj = unet.time_proj
        for name in ("conv_in", "time_embedding", "down_blocks", "mid_block"):
            setattr(self, name, getattr(unet, name))
        self.promptnet_cond_embedding = NoisyLatentsEmbedding(unet.config.in_channels, widths[0])
        self.vision_embedding = nn.Linear(config.image_token_dim, unet.config.cross_attention_dim)

        channels = config.region_proj_channels
        reductions = [max(2 ** (len(widths) - 1), SMALLEST_REDUCTION)]
        for _ in widths[:-1]:
            reductions.append(reductions[-1] // 2)
        reductions.append(reductions[-1])
        self._reduction = reductions[0]

        def projection(width: int, reduction: int) -> nn.Conv2d:
            return nn.Conv2d(width, channels, kernel_size=reduction, stride=reduction)

        self.first_prompt_projection = projection(widths[0], reductions[0])
        self.down_prompt_projections = nn.ModuleList(
            projection(width, reduction) for width, reduction in zip(widths, reductions[1:], strict=True)
        )
        self.mid_prompt_projection = projection(widths[-1], reductions[-1])
        self.region_prompt_output = nn.Conv2d(
            (len(widths) + 2) * channels,
            config.embedding_dim,
            kernel_size=config.region_kernel_size,
            stride=config.region_kernel_size,
        )
        self.copied: tuple[str, ...] = ()
        self.new: tuple[str, ...] = tuple(self.state_dict())

    @classmethod
    def from_unet(
        cls,
        unet: UNet2DConditionModel,
        image_token_dim: int,
        embedding_dim: int,
        region_kernel_size: int = 8,
        region_proj_channels: int = 128,
        seed: int = 0,
    ) -> PromptNet:
        """A PromptNet started from a UNet's weights.

        Afterwards `copied` names the parameters taken from the UNet and `new` those drawn at random.

        Args:
            unet: the base model's UNet, of the Stable Diffusion 1 or 2 family.
            image_token_dim, embedding_dim, region_kernel_size, region_proj_channels: as in `PromptNetConfig`.
            seed: of the new parameters.

        Raises:
            ConfigError: a UNet with conditioning of another family.
        """
        config = PromptNetConfig(
            unet_architecture(unet.config), image_token_dim, embedding_dim, region_kernel_size, region_proj_channels
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            promptnet = cls(config)
        own = promptnet.state_dict()
        theirs = {name: tensor for name, tensor in unet.state_dict().items() if name in own}
        promptnet.load_state_dict(float32_copies(theirs), strict=False, assign=True)
        promptnet.copied = tuple(theirs)
        promptnet.new = tuple(name for name in own if name not in theirs)
        return promptnet

    @property
    def dtype(self) -> torch.dtype:
        return self.conv_in.weight.dtype

    def tokens_for(self, latent_size: int) -> int:
        """How many words S* has for square latents of this size (64 at 512 pixels).

        Raises:
            ConfigError: latents too small for the pyramid.
        """
        smallest = latent_size // self._reduction
        side = smallest // self.config.region_kernel_size
        if side == 0:
            raise ConfigError(
                f"promptnet.region_kernel_size={self.config.region_kernel_size} is larger than the pyramid's "
                f"smallest map, {smallest} x {smallest} for latents of {latent_size} x {latent_size}.",
                f"Set promptnet.region_kernel_size to {smallest} or less, or raise base.resolution.",
            )
        return side**2

    def enable_gradient_checkpointing(self) -> None:
        """Recompute activations in the backward pass: slower, and much smaller."""
        for module in self.modules():
            if hasattr(module, "gradient_checkpointing"):
                module.gradient_checkpointing = True
                module._gradient_checkpointing_func = lambda function, *args: torch.utils.checkpoint.checkpoint(
                    function, *args, use_reentrant=False
                )

    def forward(
        self,
        ref_latents: torch.Tensor,
        noisy_latents: torch.Tensor,
        timesteps: torch.Tensor | int,
        image_tokens: torch.Tensor,
    ) -> torch.Tensor:
        """S* for each picture of the batch.

        Args:
            ref_latents: clean latents of the reference view, shape (B, 4, h, w).
            noisy_latents: x_t, shape (B, 4, h', w'); where the size differs from the reference's it is
                resampled to it (nearest neighbour, which keeps the noise's variance).
            timesteps: t, an integer or shape (B,).
            image_tokens: the vision tower's last hidden state of the reference view, before its post
                layer norm, class token included, shape (B, tokens, image_token_dim).

        Returns:
            Word embeddings of shape (B, words, embedding_dim), in the text encoder's input space.
        """
        if noisy_latents.shape[-2:] != ref_latents.shape[-2:]:
            noisy_latents = F.interpolate(noisy_latents, size=ref_latents.shape[-2:], mode="nearest-exact")
        timesteps = torch.as_tensor(timesteps, device=ref_latents.device).expand(ref_latents.shape[0])
        emb = self.time_embedding(self.time_proj(timesteps).to(self.dtype))
        sample = self.conv_in(ref_latents.to(self.dtype))
        sample = sample + self.promptnet_cond_embedding(noisy_latents.to(self.dtype))
        image_tokens = self.vision_embedding(image_tokens.to(self.dtype))

        pyramid = [self.first_prompt_projection(sample)]
        for block, project in zip(self.down_blocks, self.down_prompt_projections, strict=True):
            if getattr(block, "has_cross_attention", False):
                sample, _ = block(hidden_states=sample, temb=emb, encoder_hidden_states=image_tokens)
            else:
                sample, _ = block(hidden_states=sample, temb=emb)
            pyramid.append(project(sample))
        sample = self.mid_block(sample, emb, encoder_hidden_states=image_tokens)
        pyramid.append(self.mid_prompt_projection(sample))
        words = self.region_prompt_output(torch.cat(pyramid, dim=1))
        return words.flatten(2).transpose(1, 2)
