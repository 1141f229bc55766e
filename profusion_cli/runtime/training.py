"""Training on accelerate: the loop, one step of the objective, and fine-tuning on one subject."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin
from diffusers import UNet2DConditionModel
from torch import nn

from profusion_cli.config import FinetuneConfig
from profusion_cli.errors import DivergedError
from profusion_cli.prompts import parse_prompt
from profusion_cli.runtime.backbone import BaseModel
from profusion_cli.runtime.device import Placement, step_generator
from profusion_cli.runtime.loss import diffusion_loss, diffusion_target
from profusion_cli.runtime.promptnet import PromptNet
from profusion_cli.runtime.schedule import add_noise
from profusion_cli.runtime.text import TextConditioner, Tokens
from profusion_cli.runtime.views import Views

QKV = ("to_q", "to_k", "to_v")


@dataclass(frozen=True)
class Batch:
    """What one evaluation of the objective is given.

    Args:
        ref_latents: scaled latents of the reference views, shape (B, 4, h, w).
        image_tokens: of the reference views, shape (B, tokens, width).
        target_latents: scaled latents of the views to be predicted, shape (B, 4, h, w).
        noise: standard normal, shape (B, 4, h, w).
        timesteps: int64, shape (B,).
    """

    ref_latents: torch.Tensor
    image_tokens: torch.Tensor
    target_latents: torch.Tensor
    noise: torch.Tensor
    timesteps: torch.Tensor

    def __len__(self) -> int:
        return len(self.timesteps)

    def split(self, parts: int) -> list[Batch]:
        """So many parts, as equal as may be."""
        split = [getattr(self, name).tensor_split(parts) for name in self.__dataclass_fields__]
        return [Batch(*tensors) for tensors in zip(*split, strict=True)]

    def to(self, device: torch.device) -> Batch:
        return Batch(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))


def draw_batch(
    views: Views, size: int, generator: torch.Generator, scaling_factor: float, train_timesteps: int
) -> Batch:
    """A random batch: reference and target views, VAE samples, noise and timesteps, all independent."""
    reference = torch.randint(len(views), (size,), generator=generator)
    target = torch.randint(len(views), (size,), generator=generator)
    shape = (size, *views.latents_mean.shape[1:])
    ref_noise, target_noise, noise = (torch.randn(shape, generator=generator) for _ in range(3))
    timesteps = torch.randint(train_timesteps, (size,), generator=generator)
    return Batch(
        ref_latents=views.draw_latents(reference, ref_noise, scaling_factor),
        image_tokens=views.image_tokens[reference],
        target_latents=views.draw_latents(target, target_noise, scaling_factor),
        noise=noise,
        timesteps=timesteps,
    )


def concept_tokens(text: TextConditioner, concept_prompt: str, words: int) -> Tokens:
    """The training prompt, "a photo of S*", at its bare length."""
    return text.tokenize(parse_prompt(concept_prompt).pieces, words, pad=False)


class TrainingObjective(nn.Module):
    """Eq. (1) for a batch: PromptNet at (reference, x_t, t), S* in the prompt, and the UNet's error.

    Args:
        promptnet, unet: the networks, either of which may be trained.
        text: the frozen text conditioner.
        tokens: from `concept_tokens`.
        alphas_cumprod: shape (train timesteps,).
        prediction_type: `epsilon` or `v_prediction`.
    """

    def __init__(
        self,
        promptnet: PromptNet,
        unet: UNet2DConditionModel,
        text: TextConditioner,
        tokens: Tokens,
        alphas_cumprod: torch.Tensor,
        prediction_type: str,
    ) -> None:
        super().__init__()
        self.promptnet = promptnet
        self.unet = unet
        self._text = text
        self.tokens = tokens
        self.alphas_cumprod = alphas_cumprod
        self.prediction_type = prediction_type

    def forward(self, batch: Batch) -> torch.Tensor:
        """The loss, a float32 scalar."""
        noisy_latents = add_noise(batch.target_latents, batch.noise, batch.timesteps, self.alphas_cumprod)
        words = self.promptnet(batch.ref_latents, noisy_latents, batch.timesteps, batch.image_tokens)
        embeds, _ = self._text.splice(self.tokens, {0: words}, shift_positions=True)
        states = self._text.hidden_states(embeds)
        dtype = self.unet.conv_in.weight.dtype
        prediction = self.unet(
            noisy_latents.to(dtype), batch.timesteps, encoder_hidden_states=states.to(dtype), return_dict=False
        )[0]
        target = diffusion_target(
            batch.target_latents, batch.noise, batch.timesteps, self.alphas_cumprod, self.prediction_type
        )
        return diffusion_loss(prediction, target)


def select_trainable(promptnet: PromptNet, unet: UNet2DConditionModel, train: str) -> dict[str, nn.Parameter]:
    """Mark what is trained and return the UNet's part of it by name.

    Args:
        train: `promptnet` (PromptNet alone), `qkv` (and the UNet's query, key and value projections) or
            `attention` (and the UNet's whole attention layers).
    """
    promptnet.requires_grad_(True)
    unet.requires_grad_(False)
    chosen = {}
    for name, parameter in unet.named_parameters():
        path = name.split(".")
        in_attention = "attn1" in path or "attn2" in path
        if (train == "attention" and in_attention) or (train == "qkv" and in_attention and path[-2] in QKV):
            chosen[name] = parameter.requires_grad_(True)
    return chosen


def make_accelerator(placement: Placement, gradient_accumulation: int) -> Accelerator:
    """An accelerator on the device and in the precision of the placement."""
    if placement.device.index is not None:
        os.environ["ACCELERATE_TORCH_DEVICE"] = str(placement.device)
    return Accelerator(
        cpu=placement.device.type == "cpu",
        mixed_precision=placement.autocast,
        # given as a plugin, an environment variable cannot override it
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=gradient_accumulation),
    )


def fit(
    accelerator: Accelerator,
    objective: TrainingObjective,
    optimizer: torch.optim.Optimizer,
    batches: Callable[[int], Batch],
    steps: int,
    max_grad_norm: float,
) -> Iterator[float]:
    """Optimiser steps, one per item; yields the loss of each.

    Args:
        accelerator: from `make_accelerator`; its gradient accumulation splits every batch.
        objective: the loss.
        optimizer: over the trained parameters.
        batches: the whole batch of a step, on the CPU.
        steps: how many.
        max_grad_norm: clips the gradients of all trained parameters together; 0 does not clip.

    Raises:
        DivergedError: a loss that is not finite.
    """
    objective, optimizer = accelerator.prepare(objective, optimizer)
    parts = accelerator.gradient_accumulation_steps
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for step in range(steps):
        batch = batches(step)
        total = 0.0
        for part in batch.split(parts):
            with accelerator.accumulate(objective):
                loss = objective(part.to(accelerator.device)) * (len(part) * parts / len(batch))
                value = loss.item()
                if not math.isfinite(value):
                    raise DivergedError(
                        f"Training diverged: the loss at step {step + 1} is {value}; nothing was saved.",
                        "Lower --lr, or use --dtype float32.",
                    )
                accelerator.backward(loss)
                if accelerator.sync_gradients and max_grad_norm > 0:
                    accelerator.clip_grad_norm_(parameters, max_grad_norm)
                optimizer.step()
                optimizer.zero_grad()
            total += value / parts
        yield total


@dataclass(frozen=True)
class Tuned:
    """The outcome of a fine-tuning.

    Args:
        unet_changes: tuned minus base weight of every trained UNet parameter, float32, CPU.
        losses: of each step.
    """

    unet_changes: dict[str, torch.Tensor]
    losses: tuple[float, ...]


def finetune(
    base: BaseModel,
    promptnet: PromptNet,
    views: Views,
    config: FinetuneConfig,
    concept_prompt: str,
    seed: int,
    progress: Callable[[int, float], None],
) -> Tuned:
    """Fine-tune PromptNet (in place) and the UNet's attention on the views of one subject.

    Args:
        base: the base model.
        promptnet: float32; moved to the device and trained.
        views: the subject's encoded pictures.
        config: steps, batch size, learning rate and what is trained.
        concept_prompt: the training prompt, with S*.
        seed: every random number of step n comes from (seed, n).
        progress: called with the number of steps done and the loss.

    Raises:
        DivergedError: a loss that is not finite.
    """
    unet, scheduler, placement = base.unet, base.scheduler, base.placement
    trained = select_trainable(promptnet, unet, config.train)
    before = {name: parameter.detach().cpu().clone() for name, parameter in trained.items()}
    for parameter in unet.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(placement.dtype)
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
        promptnet.enable_gradient_checkpointing()
    unet.train()
    promptnet.train()
    alphas_cumprod = scheduler.alphas_cumprod.to(placement.device)
    tokens = concept_tokens(base.text, concept_prompt, promptnet.tokens_for(views.latents_mean.shape[-1]))
    objective = TrainingObjective(promptnet, unet, base.text, tokens, alphas_cumprod, base.prediction_type)
    accelerator = make_accelerator(placement, min(config.gradient_accumulation, config.batch_size))
    objective.to(accelerator.device)
    optimizer = torch.optim.AdamW(
        [parameter for parameter in objective.parameters() if parameter.requires_grad],
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
    )

    def batches(step: int) -> Batch:
        generator = step_generator(seed, step)
        return draw_batch(
            views, config.batch_size, generator, base.vae_scaling_factor, scheduler.config.num_train_timesteps
        )

    losses = []
    for loss in fit(accelerator, objective, optimizer, batches, config.steps, config.max_grad_norm):
        losses.append(loss)
        progress(len(losses), loss)
    changes = {name: parameter.detach().cpu() - before[name] for name, parameter in trained.items()}
    promptnet.eval().requires_grad_(False)
    return Tuned(changes, tuple(losses))
