"""Training on accelerate: the loop, one step of the objective, and fine-tuning on one subject."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import GradientAccumulationPlugin
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor
from torch import nn

from profusion_cli.config import FinetuneConfig
from profusion_cli.errors import DivergedError
from profusion_cli.prompts import parse_prompt
from profusion_cli.runtime.backbone import BaseModel
from profusion_cli.runtime.device import Placement, step_generator
from profusion_cli.runtime.loss import diffusion_loss, diffusion_target, embedding_l2
from profusion_cli.runtime.model import Conditioning, predict
from profusion_cli.runtime.promptnet import PromptNet
from profusion_cli.runtime.schedule import add_noise
from profusion_cli.runtime.text import TextConditioner, Tokens
from profusion_cli.runtime.views import Views

QKV = ("to_q", "to_k", "to_v")


class Tensors:
    """A dataclass of tensors that share their first dimension."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def _each(self) -> list[torch.Tensor]:
        return [getattr(self, name) for name in self.__dataclass_fields__]

    def __len__(self) -> int:
        return len(self._each()[0])

    def split(self, parts: int) -> list[Self]:
        """So many parts, as equal as may be."""
        split = [tensor.tensor_split(parts) for tensor in self._each()]
        return [type(self)(*tensors) for tensors in zip(*split, strict=True)]

    def to(self, device: torch.device) -> Self:
        return type(self)(*(tensor.to(device) for tensor in self._each()))


@dataclass(frozen=True)
class Batch(Tensors):
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

    With `embedding_l2` above 0 it is eq. (2), the paper's ablation.

    Args:
        promptnet, unet: the networks, either of which may be trained.
        text: the frozen text conditioner.
        tokens: from `concept_tokens`.
        alphas_cumprod: shape (train timesteps,).
        prediction_type: `epsilon` or `v_prediction`.
        embedding_l2: lambda of eq. (2).
    """

    def __init__(
        self,
        promptnet: PromptNet,
        unet: UNet2DConditionModel,
        text: TextConditioner,
        tokens: Tokens,
        alphas_cumprod: torch.Tensor,
        prediction_type: str,
        embedding_l2: float = 0.0,
    ) -> None:
        super().__init__()
        self.promptnet = promptnet
        self.unet = unet
        self._text = text
        self.tokens = tokens
        self.alphas_cumprod = alphas_cumprod
        self.prediction_type = prediction_type
        self.embedding_l2 = embedding_l2

    def forward(self, batch: Batch) -> torch.Tensor:
        """The loss, a float32 scalar."""
        noisy_latents = add_noise(batch.target_latents, batch.noise, batch.timesteps, self.alphas_cumprod)
        words = self.promptnet(batch.ref_latents, noisy_latents, batch.timesteps, batch.image_tokens)
        embeds, _ = self._text.splice(self.tokens, {0: words}, shift_positions=True)
        states = self._text.hidden_states(embeds)
        prediction = predict(self.unet, noisy_latents, batch.timesteps, Conditioning(states))
        target = diffusion_target(
            batch.target_latents, batch.noise, batch.timesteps, self.alphas_cumprod, self.prediction_type
        )
        loss = diffusion_loss(prediction, target)
        return loss + self.embedding_l2 * embedding_l2(words) if self.embedding_l2 else loss


def select_trainable(promptnet: nn.Module, unet: UNet2DConditionModel, train: str) -> dict[str, nn.Parameter]:
    """Mark what is trained and return the UNet's part of it by name.

    Args:
        promptnet: or the word that stands in its place.
        train: `promptnet` (PromptNet alone), `qkv` (and the UNet's query, key and value projections), `attention`
            (and the UNet's whole attention layers) or `unet` (and all of the UNet).
    """
    promptnet.requires_grad_(True)
    unet.requires_grad_(False)
    chosen = {}
    for name, parameter in unet.named_parameters():
        path = name.split(".")
        in_attention = "attn1" in path or "attn2" in path
        in_qkv = in_attention and path[-2] in QKV
        if train == "unet" or (train == "attention" and in_attention) or (train == "qkv" and in_qkv):
            chosen[name] = parameter.requires_grad_(True)
    return chosen


def choose_attention(placement: Placement, *models: nn.Module) -> None:
    """Diffusers' plain attention where torch's fused one is slow: backwards, in bfloat16 on a CPU."""
    if placement.device.type == "cpu" and placement.autocast == "bf16":
        for attention in (module for model in models for module in model.modules() if isinstance(module, Attention)):
            attention.set_processor(AttnProcessor())


def make_accelerator(placement: Placement, gradient_accumulation: int) -> Accelerator:
    """An accelerator on the device and in the precision of the placement."""
    if placement.device.index is not None:
        os.environ["ACCELERATE_TORCH_DEVICE"] = str(placement.device)
    AcceleratorState._reset_state()  # else the precision of the process's first training stands for all
    return Accelerator(
        cpu=placement.device.type == "cpu",
        mixed_precision=placement.autocast,
        # given as a plugin, an environment variable cannot override it
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=gradient_accumulation),
    )


@dataclass(frozen=True)
class Step:
    """One optimiser step that was done.

    Args:
        number: from 1.
        loss: of the whole batch, before the step.
        learning_rate: that it took.
        grad_norm: of all trained parameters together, before clipping.
    """

    number: int
    loss: float
    learning_rate: float
    grad_norm: float


def fit(
    accelerator: Accelerator,
    objective: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Callable[[int], Tensors],
    batch_size: int,
    steps: int,
    max_grad_norm: float,
    *,
    start: int = 0,
    learning_rate: Callable[[int], float] | None = None,
    kept: str = "nothing was saved",
) -> Iterator[Step]:
    """Optimiser steps, one per item; what is to happen after a step happens between the items.

    Several processes take the step that one would take with all their pictures: the mean of the loss
    is over the pictures, however many each process has.

    Args:
        accelerator: from `make_accelerator`; its gradient accumulation splits every batch.
        objective, optimizer: the loss and the optimiser of the trained parameters, both prepared by it.
        batches: this process's share of the batch of a step (from 0), on the CPU.
        batch_size: of the shares of all processes together.
        steps: the step to stop at.
        max_grad_norm: clips the gradients of all trained parameters together; 0 does not clip.
        start: how many of the steps are done already.
        learning_rate: of a step (from 0); without it the optimiser's own.
        kept: what a divergence leaves behind.

    Raises:
        DivergedError: a loss that is not finite, in any process; the step is not taken.
    """
    parts, processes = accelerator.gradient_accumulation_steps, accelerator.num_processes
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for step in range(start, steps):
        if learning_rate is not None:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step)
        batch = batches(step)
        total = torch.zeros((), device=accelerator.device)
        grad_norm = torch.zeros(())
        for part in batch.split(parts):
            with accelerator.accumulate(objective):
                # accelerate divides by the parts, and averages over the processes
                weight = len(part) * parts * processes / batch_size
                loss = objective(part.to(accelerator.device)) * weight
                total += loss.detach() / parts
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    value = accelerator.reduce(total, "mean").item()
                    if not math.isfinite(value):
                        raise DivergedError(
                            f"Training diverged: the loss at step {step + 1} is {value}; {kept}.",
                            "Start anew with a lower --lr, or with --dtype float32.",
                        )
                    grad_norm = accelerator.clip_grad_norm_(parameters, max_grad_norm or math.inf)
                optimizer.step()
                optimizer.zero_grad()
        yield Step(step + 1, value, optimizer.param_groups[0]["lr"], float(grad_norm))


@dataclass(frozen=True)
class Tuned:
    """The outcome of a fine-tuning.

    Args:
        unet_changes: tuned minus base weight of every trained UNet parameter, float32, CPU.
        losses: of each step.
    """

    unet_changes: dict[str, torch.Tensor]
    losses: tuple[float, ...]


def tune(
    base: BaseModel,
    objective: nn.Module,
    trained: Mapping[str, nn.Parameter],
    config: FinetuneConfig,
    batches: Callable[[int], Tensors],
    batch_size: int,
    progress: Callable[[int, float], None],
) -> Tuned:
    """The steps of a fine-tuning.

    Args:
        base: the base model, whose UNet the objective holds.
        objective: the loss of a batch; what of it requires gradients is trained.
        trained: the UNet's part of that, by name.
        config: steps, learning rate and the like.
        batches: of a step (from 0), on the CPU.
        batch_size: of a batch.
        progress: called with the number of steps done and the loss.

    Raises:
        DivergedError: a loss that is not finite.
    """
    unet, placement = base.unet, base.placement
    before = {name: parameter.detach().cpu().clone() for name, parameter in trained.items()}
    for parameter in unet.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(placement.dtype)
    if config.gradient_checkpointing:
        for module in objective.children():
            module.enable_gradient_checkpointing()
    choose_attention(placement, objective)
    objective.train()
    accelerator = make_accelerator(placement, min(config.gradient_accumulation, batch_size))
    objective.to(accelerator.device)
    optimizer = torch.optim.AdamW(
        [parameter for parameter in objective.parameters() if parameter.requires_grad],
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
    )
    prepared, prepared_optimizer = accelerator.prepare(objective, optimizer)
    size = batch_size * accelerator.num_processes
    losses = []
    for step in fit(accelerator, prepared, prepared_optimizer, batches, size, config.steps, config.max_grad_norm):
        losses.append(step.loss)
        progress(step.number, step.loss)
    changes = {name: parameter.detach().cpu() - before[name] for name, parameter in trained.items()}
    objective.eval().requires_grad_(False)
    return Tuned(changes, tuple(losses))


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
    unet, scheduler = base.unet, base.scheduler
    trained = select_trainable(promptnet, unet, config.train)
    alphas_cumprod = scheduler.alphas_cumprod.to(base.placement.device)
    tokens = concept_tokens(base.text, concept_prompt, promptnet.tokens_for(views.latents_mean.shape[-1]))
    objective = TrainingObjective(
        promptnet, unet, base.text, tokens, alphas_cumprod, base.prediction_type, config.embedding_l2
    )

    def batches(step: int) -> Batch:
        generator = step_generator(seed, step)
        return draw_batch(
            views, config.batch_size, generator, base.vae_scaling_factor, scheduler.config.num_train_timesteps
        )

    return tune(base, objective, trained, config, batches, config.batch_size, progress)
