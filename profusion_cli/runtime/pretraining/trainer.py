"""What is trained, and what of it a checkpoint holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from profusion_cli.config import Config, PretrainConfig
from profusion_cli.runtime.backbone import BaseModel, quiet_libraries
from profusion_cli.runtime.fitting import choose_attention, make_optimizer
from profusion_cli.runtime.parts import WEIGHTY
from profusion_cli.runtime.pretraining.checkpoints import Checkpoint
from profusion_cli.runtime.promptnet import PromptNet
from profusion_cli.runtime.training import (
    TrainingObjective,
    concept_layout,
)

MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def warmed_up(config: PretrainConfig, step: int) -> float:
    """The learning rate of a step (from 0): linear to its full height over the warm-up, then constant."""
    return config.learning_rate * min(1.0, (step + 1) / max(config.warmup_steps, 1))


class Average:
    """Exponential moving average of PromptNet's weights.

    The decay of step n (from 1) is min(decay, n / (n + 9)), so that a short training is not mostly its
    random start. diffusers' `EMAModel` has the same decays but in the first step, where it has 0.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {name: value.detach().clone() for name, value in network.state_dict().items()}

    @torch.no_grad()
    def update(self, network: nn.Module, number: int) -> None:
        """Take in the weights after step `number`."""
        decay = min(self.decay, number / (number + 9))
        for name, value in network.state_dict().items():
            self.weights[name].lerp_(value, 1 - decay)


def settings_of(config: Config, base: BaseModel, pictures: Mapping[str, Any]) -> dict[str, Any]:
    """What the weights after a step depend on beyond rounding: neither the device nor how a batch is split.

    Args:
        config: the resolved configuration.
        base: the base model.
        pictures: what they depend on of what is learnt from.
    """
    own = config.pretrain
    names = ("batch_size", "learning_rate", "weight_decay", "max_grad_norm", "warmup_steps", "ema_decay")
    return {
        **{f"pretrain.{name}": getattr(own, name) for name in (*names, "embedding_l2")},
        "seed": config.seed,
        "dtype": str(base.placement.dtype).removeprefix("torch."),
        "concept_prompt": config.concept_prompt,
        "promptnet.region_kernel_size": config.promptnet.region_kernel_size,
        "promptnet.region_proj_channels": config.promptnet.region_proj_channels,
        "base.resolution": config.base.resolution,
        "base.clip_skip": config.base.clip_skip,
        "base.vision_antialias": config.base.vision_antialias,
        **{f"base.{name} (fingerprint)": digits for name, digits in base.fingerprints(*WEIGHTY).items()},
        **pictures,
    }


class Trainer:
    """PromptNet, its optimiser and its average: what a checkpoint holds."""

    def __init__(self, config: Config, base: BaseModel, accelerator: Accelerator, settings: dict[str, Any]) -> None:
        self.config, self.base, self.accelerator, self.settings = config, base, accelerator, settings
        own, placement = config.pretrain, base.placement
        source = config.promptnet
        self.promptnet = PromptNet.from_unet(
            base.unet,
            image_token_dim=base.vision.config.hidden_size,
            embedding_dim=base.text.embedding_dim,
            region_kernel_size=source.region_kernel_size,
            region_proj_channels=source.region_proj_channels,
            seed=config.seed,
        )
        height, width = base.latent_size(config.base.resolution, config.base.resolution)
        self.latent_shape = (base.unet.config.in_channels, height, width)
        self.layout = concept_layout(base.text, config.concept_prompt, self.promptnet.tokens_for(height))
        with quiet_libraries():
            self.unet = base.unet.to(placement.device, placement.dtype)
        self.promptnet.requires_grad_(True)
        self.unet.requires_grad_(False)
        if own.gradient_checkpointing:
            self.unet.enable_gradient_checkpointing()
            self.promptnet.enable_gradient_checkpointing()
        choose_attention(placement, self.promptnet, self.unet)
        self.unet.train()
        self.promptnet.train()
        self.average: Average | None = None
        self.start = 0

    def prepare(self, resumed: Checkpoint | None) -> None:
        """Build objective and optimiser, from a checkpoint's state if there is one."""
        own, base = self.config.pretrain, self.base
        if resumed is not None:
            self.promptnet.load_state_dict(resumed.part("promptnet"))
            self.start = resumed.step
        objective = TrainingObjective(
            self.promptnet,
            self.unet,
            base.text,
            self.layout,
            base.scheduler.alphas_cumprod.to(base.placement.device),
            base.prediction_type,
            own.embedding_l2,
        ).to(base.placement.device)
        learned = self.promptnet.parameters()
        optimizer = make_optimizer(learned, self.accelerator, own.learning_rate, own.weight_decay)
        self.objective, self.optimizer = self.accelerator.prepare(objective, optimizer)
        if own.ema_decay and self.accelerator.is_main_process:
            self.average = Average(self.promptnet, own.ema_decay)
        if resumed is None:
            return
        moments = {name: resumed.part(name) for name in MOMENTS}
        for name, parameter in self.promptnet.named_parameters():
            optimizer.state[parameter] = {
                "step": moments["step"][name].to(parameter.device if optimizer.defaults["fused"] else "cpu"),
                "exp_avg": moments["exp_avg"][name].to(parameter.device),
                "exp_avg_sq": moments["exp_avg_sq"][name].to(parameter.device),
            }
        if self.average is not None:
            self.average.weights = {
                name: value.to(base.placement.device) for name, value in resumed.part("ema").items()
            }
        if self.accelerator.scaler is not None and resumed.scaler is not None:
            self.accelerator.scaler.load_state_dict(resumed.scaler)

    def checkpoint(self, step: int) -> Checkpoint:
        """The state after a step."""
        tensors = {f"promptnet.{name}": value for name, value in self.promptnet.state_dict().items()}
        if self.average is not None:
            tensors |= {f"ema.{name}": value for name, value in self.average.weights.items()}
        state = getattr(self.optimizer, "optimizer", self.optimizer).state
        for name, parameter in self.promptnet.named_parameters():
            tensors |= {f"{moment}.{name}": state[parameter][moment] for moment in MOMENTS}
        scaler = self.accelerator.scaler
        return Checkpoint(step, self.settings, tensors, None if scaler is None else scaler.state_dict())

    def weights(self) -> Mapping[str, torch.Tensor]:
        """What the training is for: the average where there is one."""
        return self.promptnet.state_dict() if self.average is None else self.average.weights
