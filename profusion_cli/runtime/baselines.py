"""Methods whose S* is an ordinary word: textual inversion and DreamBooth (see `profusion_cli.methods`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from profusion_cli.config import FinetuneConfig
from profusion_cli.errors import ConfigError
from profusion_cli.prompts import parse_prompt
from profusion_cli.runtime.backbone import BaseModel
from profusion_cli.runtime.device import step_generator
from profusion_cli.runtime.draws import draw_indices, draw_timesteps
from profusion_cli.runtime.fitting import Tensors
from profusion_cli.runtime.loss import diffusion_loss, diffusion_target, embedding_l2, prior_preservation_loss
from profusion_cli.runtime.model import Conditioning, predict
from profusion_cli.runtime.schedule import add_noise
from profusion_cli.runtime.text import TextConditioner, Tokens
from profusion_cli.runtime.training import Tuned, select_trainable, tune
from profusion_cli.runtime.views import Views


class LearnedWord(nn.Module):
    """S* as an ordinary word: token embeddings that no picture and no timestep changes.

    Args:
        embedding: that it starts from, shape (words, embedding_dim), float32.
    """

    def __init__(self, embedding: torch.Tensor) -> None:
        super().__init__()
        self.embedding = nn.Parameter(embedding.clone())
        self.register_buffer("initial", embedding.clone())

    @classmethod
    def from_text(cls, text: TextConditioner, words: str) -> LearnedWord:
        """Started from the token embeddings of these words.

        Raises:
            ConfigError: words of which the tokenizer makes nothing.
        """
        ids = text.tokenizer(words, add_special_tokens=False).input_ids
        if not ids:
            raise ConfigError(f"finetune.word='{words}' is no word.", "Give one, such as {class}.")
        embeddings = text.text_encoder.embeddings.token_embedding
        return cls(embeddings(torch.tensor(ids, device=embeddings.weight.device)).detach().float().cpu())

    def enable_gradient_checkpointing(self) -> None:
        """There are no activations to recompute."""

    def forward(self) -> torch.Tensor:
        """The word, shape (1, words, embedding_dim)."""
        return self.embedding[None]


@dataclass(frozen=True)
class WordBatch(Tensors):
    """Pictures of the subject and, for DreamBooth, of its class.

    Args:
        target_latents: scaled latents, shape (B, 4, h, w).
        noise: standard normal, shape (B, 4, h, w).
        timesteps: int64, shape (B,).
        prompts: which of the training prompts, the same for all pictures, shape (B,).
        is_prior: pictures of the class, bool, shape (B,).
    """

    target_latents: torch.Tensor
    noise: torch.Tensor
    timesteps: torch.Tensor
    prompts: torch.Tensor
    is_prior: torch.Tensor

    on_cpu = ("prompts",)


class WordObjective(nn.Module):
    """Eq. (1) with an ordinary word for S*; with the pull of textual inversion, and the prior of DreamBooth.

    Args:
        word, unet: the networks, either of which may be trained.
        text: the frozen text conditioner.
        tokens: of each training prompt.
        class_states: text conditioning of the class alone, shape (1, length, width).
        alphas_cumprod: shape (train timesteps,).
        prediction_type: `epsilon` or `v_prediction`.
        coarse_l2: lambda of the pull to the word that S* starts from.
        prior_weight: of the pictures of the class; None where there are none.
    """

    def __init__(
        self,
        word: LearnedWord,
        unet: UNet2DConditionModel,
        text: TextConditioner,
        tokens: Sequence[Tokens],
        class_states: torch.Tensor,
        alphas_cumprod: torch.Tensor,
        prediction_type: str,
        coarse_l2: float,
        prior_weight: float | None,
    ) -> None:
        super().__init__()
        self.word = word
        self.unet = unet
        self._text = text
        self._layouts = [text.layout(one, {0: len(word.embedding)}, shift_positions=True) for one in tokens]
        self.class_states = class_states
        self.alphas_cumprod = alphas_cumprod
        self.prediction_type = prediction_type
        self.coarse_l2 = coarse_l2
        self.prior_weight = prior_weight

    def forward(self, batch: WordBatch) -> torch.Tensor:
        """The loss, a float32 scalar."""
        noisy_latents = add_noise(batch.target_latents, batch.noise, batch.timesteps, self.alphas_cumprod)
        word = self.word()
        states = self._states(word, batch)
        prediction = predict(self.unet, noisy_latents, batch.timesteps, Conditioning(states))
        target = diffusion_target(
            batch.target_latents, batch.noise, batch.timesteps, self.alphas_cumprod, self.prediction_type
        )
        if self.prior_weight is not None:
            loss = prior_preservation_loss(prediction, target, batch.is_prior, self.prior_weight)
        else:
            loss = diffusion_loss(prediction, target)
        return loss + self.coarse_l2 * embedding_l2(word - self.word.initial) if self.coarse_l2 else loss

    @torch.compiler.disable
    def _states(self, word: torch.Tensor, batch: WordBatch) -> torch.Tensor:
        """Text conditioning of the batch's prompt, each of which would be compiled for anew."""
        embeds = self._layouts[int(batch.prompts[0])].filled({0: word}, ordinary=(0,))
        states = self._text.hidden_states(embeds).expand(len(batch), -1, -1)
        return torch.where(batch.is_prior[:, None, None], self.class_states.to(states), states)


def draw_word_batch(
    views: Views,
    prior: Views | None,
    size: int,
    prompts: int,
    generator: torch.Generator,
    scaling_factor: float,
    train_timesteps: int,
    stratified: bool = False,
) -> WordBatch:
    """So many pictures of the subject and, in turn with them, as many of its class where there are any.

    Views and timesteps are drawn as in `draw_batch`.
    """

    def latents(chosen: Views) -> torch.Tensor:
        index = draw_indices(size, len(chosen), generator, stratified)
        noise = torch.randn((size, *views.latents_mean.shape[1:]), generator=generator)
        return chosen.draw_latents(index, noise, scaling_factor)

    kinds = [latents(views)] + ([latents(prior)] if prior is not None else [])
    target_latents = torch.stack(kinds, 1).flatten(0, 1)
    count = len(target_latents)
    return WordBatch(
        target_latents=target_latents,
        noise=torch.randn(target_latents.shape, generator=generator),
        timesteps=draw_timesteps(count, train_timesteps, generator, stratified),
        prompts=torch.randint(prompts, (1,), generator=generator).expand(count),
        is_prior=torch.arange(count) % len(kinds) == 1,
    )


def finetune_word(
    base: BaseModel,
    word: LearnedWord,
    views: Views,
    prior: Views | None,
    config: FinetuneConfig,
    concept_prompt: str,
    class_word: str,
    seed: int,
    progress: Callable[[int, float], None],
    watch: Callable[[int], None] | None = None,
    compiled: bool = False,
) -> Tuned:
    """Fine-tune a word (in place) and what of the UNet the configuration says.

    Textual inversion trains the word alone; DreamBooth trains the UNet, and its word stays what it is.

    Args:
        base: the base model.
        word: that S* starts from.
        views: the subject's encoded pictures.
        prior: encoded pictures of its class, for DreamBooth.
        config: the method, steps, batch size (of the subject's pictures), learning rate.
        concept_prompt: the training prompt where the method has none of its own, with S*.
        class_word: what stands for S* in the prompt of the class.
        seed: every random number of step n comes from (seed, n).
        progress: called with the number of steps done and the loss.
        watch, compiled: as of `profusion_cli.runtime.training.tune`.

    Raises:
        DivergedError: a loss that is not finite.
    """
    scheduler = base.scheduler
    trained = select_trainable(word, base.unet, config, seed)
    word.requires_grad_(config.method == "textual-inversion")
    tokens = [
        base.text.tokenize(parse_prompt(prompt).pieces, len(word.embedding))
        for prompt in config.prompts or (concept_prompt,)
    ]
    with torch.no_grad():
        class_states = base.text.encode(parse_prompt(concept_prompt).twin([class_word]))
    objective = WordObjective(
        word,
        base.unet,
        base.text,
        tokens,
        class_states,
        scheduler.alphas_cumprod.to(base.placement.device),
        base.prediction_type,
        config.embedding_l2,
        None if prior is None else config.prior_weight,
    )

    def batches(step: int) -> WordBatch:
        return draw_word_batch(
            views,
            prior,
            config.batch_size,
            len(tokens),
            step_generator(seed, step),
            base.vae_scaling_factor,
            scheduler.config.num_train_timesteps,
            config.draws == "stratified",
        )

    size = config.batch_size * (1 if prior is None else 2)
    return tune(base, objective, trained, config, batches, size, progress, watch, compiled)
