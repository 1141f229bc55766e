"""Fine-tuning on one subject: its batches, the objective, and what is trained."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from profusion_cli.config import FinetuneConfig
from profusion_cli.errors import Interrupted
from profusion_cli.prompts import parse_prompt
from profusion_cli.runtime.adapters import Adapters
from profusion_cli.runtime.backbone import BaseModel
from profusion_cli.runtime.changes import add_changes, changes_of
from profusion_cli.runtime.device import arranged, step_generator
from profusion_cli.runtime.draws import draw_indices, draw_timesteps
from profusion_cli.runtime.fitting import Tensors, choose_attention, fit, make_accelerator, make_optimizer, unprepare
from profusion_cli.runtime.loss import diffusion_loss, diffusion_target, embedding_l2
from profusion_cli.runtime.model import Conditioning, predict
from profusion_cli.runtime.promptnet import PromptNet
from profusion_cli.runtime.schedule import add_noise
from profusion_cli.runtime.text import Layout, TextConditioner
from profusion_cli.runtime.views import Views

QKV = ("to_q", "to_k", "to_v")


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
    views: Views,
    size: int,
    generator: torch.Generator,
    scaling_factor: float,
    train_timesteps: int,
    stratified: bool = False,
) -> Batch:
    """A random batch: reference and target views, VAE samples, noise and timesteps, all independent of one another.

    Of picture and picture they are too, but for targets and timesteps where they are stratified; see
    `profusion_cli.runtime.draws`.
    """
    reference = draw_indices(size, len(views), generator, False)
    target = draw_indices(size, len(views), generator, stratified)
    shape = (size, *views.latents_mean.shape[1:])
    ref_noise, target_noise, noise = (torch.randn(shape, generator=generator) for _ in range(3))
    timesteps = draw_timesteps(size, train_timesteps, generator, stratified)
    return Batch(
        ref_latents=views.draw_latents(reference, ref_noise, scaling_factor),
        image_tokens=views.image_tokens[reference],
        target_latents=views.draw_latents(target, target_noise, scaling_factor),
        noise=noise,
        timesteps=timesteps,
    )


def concept_layout(text: TextConditioner, concept_prompt: str, words: int) -> Layout:
    """The training prompt, "a photo of S*", at its bare length, on the device: steps that made it would wait for it."""
    tokens = text.tokenize(parse_prompt(concept_prompt).pieces, words, pad=False)
    return text.layout(tokens, {0: words}, shift_positions=True)


class TrainingObjective(nn.Module):
    """Eq. (1) for a batch: PromptNet at (reference, x_t, t), S* in the prompt, and the UNet's error.

    With `embedding_l2` above 0 it is eq. (2), the paper's ablation.

    Args:
        promptnet, unet: the networks, either of which may be trained.
        text: the frozen text conditioner.
        layout: from `concept_layout`.
        alphas_cumprod: shape (train timesteps,).
        prediction_type: `epsilon` or `v_prediction`.
        embedding_l2: lambda of eq. (2).
    """

    def __init__(
        self,
        promptnet: PromptNet,
        unet: UNet2DConditionModel,
        text: TextConditioner,
        layout: Layout,
        alphas_cumprod: torch.Tensor,
        prediction_type: str,
        embedding_l2: float = 0.0,
    ) -> None:
        super().__init__()
        self.promptnet = promptnet
        self.unet = unet
        self._text = text
        self._layout = layout
        self.alphas_cumprod = alphas_cumprod
        self.prediction_type = prediction_type
        self.embedding_l2 = embedding_l2

    def forward(self, batch: Batch) -> torch.Tensor:
        """The loss, a float32 scalar."""
        noisy_latents = add_noise(batch.target_latents, batch.noise, batch.timesteps, self.alphas_cumprod)
        words = self.promptnet(batch.ref_latents, noisy_latents, batch.timesteps, batch.image_tokens)
        states = self._text.hidden_states(self._layout.filled({0: words}))
        prediction = predict(self.unet, noisy_latents, batch.timesteps, Conditioning(states))
        target = diffusion_target(
            batch.target_latents, batch.noise, batch.timesteps, self.alphas_cumprod, self.prediction_type
        )
        loss = diffusion_loss(prediction, target)
        return loss + self.embedding_l2 * embedding_l2(words) if self.embedding_l2 else loss


@dataclass(frozen=True)
class Trained:
    """What is trained.

    Args:
        unet: those of the UNet's own parameters, by name.
        adapters: of the networks; None: there are none.
    """

    unet: Mapping[str, nn.Parameter]
    adapters: Adapters | None = None


def select_trainable(promptnet: nn.Module, unet: UNet2DConditionModel, config: FinetuneConfig, seed: int) -> Trained:
    """Mark what is trained.

    Args:
        promptnet: or the word that stands in its place.
        unet: the base model's.
        config: its `train`: `promptnet` (PromptNet alone), `qkv` (and the UNet's query, key and value projections),
            `attention` (and the UNet's whole attention layers), `unet` (and all of the UNet), or `lora` (adapters of
            both, which are put into them, and nothing else).
        seed: of the adapters.

    Raises:
        ConfigError: adapters of layers that there are not.
    """
    unet.requires_grad_(False)
    if config.train == "lora":
        promptnet.requires_grad_(False)
        networks: dict[str, nn.Module] = {"unet": unet}
        if isinstance(promptnet, PromptNet):
            networks["promptnet"] = promptnet
        return Trained({}, Adapters(networks, config.adapters, seed))
    promptnet.requires_grad_(True)
    chosen = {}
    for name, parameter in unet.named_parameters():
        path = name.split(".")
        in_attention = "attn1" in path or "attn2" in path
        in_qkv = in_attention and path[-2] in QKV
        wanted = {"unet": True, "attention": in_attention, "qkv": in_qkv}
        if wanted.get(config.train, False):
            chosen[name] = parameter.requires_grad_(True)
    return Trained(chosen)


@dataclass(frozen=True)
class Tuned:
    """The outcome of a fine-tuning.

    Args:
        unet_changes: tuned minus base weight of every trained UNet parameter, float32, CPU.
        losses: of each step.
        repeated: how many steps had to be done again, because gradients overflowed in float16.
        adapters: their factors, as `Adapters.take` gives them; empty where there are none.
    """

    unet_changes: dict[str, torch.Tensor]
    losses: tuple[float, ...]
    repeated: int = 0
    adapters: Mapping[str, torch.Tensor] = field(default_factory=dict)


def tune(
    base: BaseModel,
    objective: nn.Module,
    trained: Trained,
    config: FinetuneConfig,
    batches: Callable[[int], Tensors],
    batch_size: int,
    progress: Callable[[int, float], None],
    watch: Callable[[int], None] | None = None,
    compiled: bool = False,
) -> Tuned:
    """The steps of a fine-tuning.

    Args:
        base: the base model, whose UNet the objective holds.
        objective: the loss of a batch; what of it requires gradients is trained, and the rest is in the precision of
            the base model's placement.
        trained: what that is.
        config: steps, learning rate and the like.
        batches: of a step (from 0), on the CPU.
        batch_size: of a batch.
        progress: called with the number of steps done and the loss.
        watch: called with the number of steps done, from 0 on, while the networks are as those have left them.
        compiled: the objective is, by torch.compile; see `profusion_cli.runtime.device.compiling`.

    Raises:
        DivergedError: as `fit`.
    """
    placement = base.placement
    before = {name: parameter.detach().cpu().clone() for name, parameter in trained.unet.items()}
    for parameter in objective.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(placement.dtype)
    if config.gradient_checkpointing:
        for module in objective.children():
            module.enable_gradient_checkpointing()
    choose_attention(placement, objective)
    objective.train()
    accelerator = make_accelerator(placement, min(config.gradient_accumulation, batch_size))
    arranged(objective, accelerator.device, compiled)
    if compiled:
        objective.compile(dynamic=False)
    learned = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    learning_rate = config.learning_rate * (config.adapters.learning_rate_scale if trained.adapters else 1)
    optimizer = make_optimizer(learned, accelerator, learning_rate, config.weight_decay, config.optimizer)
    prepared, prepared_optimizer = accelerator.prepare(objective, optimizer)
    size = batch_size * accelerator.num_processes
    done = []
    try:
        if watch is not None:
            watch(0)
        for step in fit(accelerator, prepared, prepared_optimizer, batches, size, config.steps, config.max_grad_norm):
            done.append(step)
            progress(step.number, step.loss)
            if watch is not None:
                watch(step.number)
    except KeyboardInterrupt:
        raise Interrupted(
            signal.SIGINT,
            f"{len(done)} of {config.steps} steps of the fine-tuning were done. Nothing of them is kept: it is short, "
            "and the same command starts it again.",
        ) from None
    finally:
        unprepare(accelerator, prepared)
    changes = {name: parameter.detach().cpu() - before[name] for name, parameter in trained.unet.items()}
    adapters = trained.adapters.take() if trained.adapters else {}
    objective.eval().requires_grad_(False)
    return Tuned(changes, tuple(step.loss for step in done), sum(step.repeated > 0 for step in done), adapters)


def finetune(
    base: BaseModel,
    promptnet: PromptNet,
    views: Views,
    config: FinetuneConfig,
    concept_prompt: str,
    seed: int,
    progress: Callable[[int, float], None],
    watch: Callable[[int], None] | None = None,
    compiled: bool = False,
) -> Tuned:
    """Fine-tune PromptNet (in place) and the UNet on the views of one subject.

    Args:
        base: the base model.
        promptnet: float32; moved to the device and trained.
        views: the subject's encoded pictures.
        config: steps, batch size, learning rate and what is trained.
        concept_prompt: the training prompt, with S*.
        seed: every random number of step n comes from (seed, n).
        progress: called with the number of steps done and the loss.
        watch, compiled: as of `tune`.

    Raises:
        DivergedError: a loss that is not finite.
    """
    unet, scheduler = base.unet, base.scheduler
    words = promptnet.tokens_for(views.latents_mean.shape[-1])
    frozen = {name: parameter.detach() for name, parameter in promptnet.named_parameters()}
    trained = select_trainable(promptnet, unet, config, seed)
    alphas_cumprod = scheduler.alphas_cumprod.to(base.placement.device)
    layout = concept_layout(base.text, concept_prompt, words)
    objective = TrainingObjective(
        promptnet, unet, base.text, layout, alphas_cumprod, base.prediction_type, config.embedding_l2
    )

    def batches(step: int) -> Batch:
        generator = step_generator(seed, step)
        return draw_batch(
            views,
            config.batch_size,
            generator,
            base.vae_scaling_factor,
            scheduler.config.num_train_timesteps,
            config.draws == "stratified",
        )

    tuned = tune(base, objective, trained, config, batches, config.batch_size, progress, watch, compiled)
    if tuned.adapters:
        promptnet.load_state_dict(frozen, assign=True)  # in float32 again
        add_changes(promptnet, changes_of(tuned.adapters, "promptnet"))
        promptnet.to(base.placement.device)
    return tuned
