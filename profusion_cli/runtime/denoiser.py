"""Noise predictions for the conditions of one prompt: PromptNet, text encoder and one batched UNet call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

import torch
from diffusers import UNet2DConditionModel

from profusion_cli.prompts import PLACEHOLDER, Prompt, parse_prompt
from profusion_cli.runtime.fusion import Condition
from profusion_cli.runtime.model import Conditioning, predict
from profusion_cli.runtime.schedule import epsilon_from
from profusion_cli.runtime.text import Layout, TextConditioner, Tokens

if TYPE_CHECKING:
    from profusion_cli.runtime.promptnet import PromptNet

GammaOn = Literal["embedding", "hidden", "hidden-first"]
SubjectPrompt = Literal["concept", "full"]


class Subject(Protocol):
    """One subject, ready for sampling.

    Attributes:
        ordinary: whether S* stands in the prompt as an ordinary word does, with the position embedding of its place.
        changes: whether S* changes with x_t and t; if not, prompts with it are encoded once.
    """

    ordinary: ClassVar[bool]
    changes: ClassVar[bool]

    @property
    def class_word(self) -> str:
        """What the text twin calls it, for example "a person"."""

    @property
    def words(self) -> int:
        """How many words its S* has."""

    def pseudo_word(self, x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """S* at x_t and the timestep t, an integer of shape (), as (B, words, embedding_dim)."""


@dataclass(frozen=True)
class PromptNetSubject:
    """A subject whose S* is PromptNet's, which sees the noisy latents.

    Args:
        promptnet: its own PromptNet.
        ref_latents: scaled latents of its reference views, shape (V, 4, h, w): one for all pictures, or one for each.
        image_tokens: the vision tower's tokens of the same views, shape (V, tokens, width).
        class_word: what the text twin calls it.
        averaged: S* of every picture is the mean over all views.
    """

    ordinary: ClassVar[bool] = False
    changes: ClassVar[bool] = True

    promptnet: PromptNet
    ref_latents: torch.Tensor
    image_tokens: torch.Tensor
    class_word: str
    averaged: bool = False

    def in_turn(self, indices: Sequence[int]) -> PromptNetSubject:
        """The subject for pictures of these numbers, of which each sees another view, in turn."""
        views = [index % len(self.ref_latents) for index in indices]
        return replace(self, ref_latents=self.ref_latents[views], image_tokens=self.image_tokens[views])

    @property
    def words(self) -> int:
        """How many words its S* has."""
        return self.promptnet.tokens_for(self.ref_latents.shape[-1])

    def pseudo_word(self, x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """S* at x_t and the timestep t, an integer of shape (), as (B, words, embedding_dim)."""
        batch, views = x_t.shape[0], len(self.ref_latents)
        if self.averaged:
            words = self.promptnet(
                self.ref_latents.repeat(batch, 1, 1, 1),
                x_t.repeat_interleave(views, dim=0),
                t,
                self.image_tokens.repeat(batch, 1, 1),
            )
            return words.unflatten(0, (batch, views)).mean(dim=1)
        return self.promptnet(
            self.ref_latents.expand(batch, -1, -1, -1), x_t, t, self.image_tokens.expand(batch, -1, -1)
        )


@dataclass(frozen=True)
class WordSubject:
    """A subject whose S* is an ordinary word, the same at every timestep, as of textual inversion and DreamBooth.

    Args:
        embedding: token embeddings, shape (words, embedding_dim).
        class_word: what the text twin calls it.
    """

    ordinary: ClassVar[bool] = True
    changes: ClassVar[bool] = False

    embedding: torch.Tensor
    class_word: str

    @property
    def words(self) -> int:
        """How many words its S* has."""
        return len(self.embedding)

    def pseudo_word(self, x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """S*, shape (B, words, embedding_dim)."""
        return self.embedding.expand(x_t.shape[0], -1, -1)


@dataclass(frozen=True)
class PromptTokens:
    """The tokenised forms of a prompt that its conditions need, and what did not fit into them."""

    prompt: Prompt
    negative_prompt: str
    twin: str
    fused: dict[int | None, Tokens]
    subject: dict[int, Tokens]
    lost: str


def tokenize_prompt(
    prompt: Prompt,
    text: TextConditioner,
    class_words: Sequence[str],
    words: Sequence[int],
    *,
    negative_prompt: str = "",
    concept_prompt: str = f"a photo of {PLACEHOLDER}",
    subject_prompt: SubjectPrompt = "full",
    apart: bool = False,
) -> PromptTokens:
    """Everything about a prompt that does not depend on x_t.

    Args:
        prompt: from `parse_prompt`.
        text: the text conditioner.
        class_words: of each subject.
        words: number of words of each subject's S*.
        negative_prompt: stands in for the empty prompt of the unconditional prediction.
        concept_prompt: what "S* alone" means; its placeholder is always S*.
        subject_prompt: the subject term of eq. (6) sees S* alone (`concept`, the paper) or the full
            prompt (`full`, the authors' code).
        apart: each subject has an area of its own, and the fused prompt of each names the others by their class words.

    Raises:
        InputError: the prompt is so long that S* falls off its end.
    """
    subjects = range(len(class_words))
    longest = max(words)
    if prompt.joint and not apart:
        fused: dict[int | None, Tokens] = {None: text.tokenize(prompt.pieces, longest)}
    else:
        fused = {i: text.tokenize(prompt.only(i, class_words), longest) for i in subjects}
    if subject_prompt == "full":
        alone = {i: text.tokenize(prompt.only(i, class_words), longest) for i in subjects}
    else:
        concept = parse_prompt(concept_prompt)
        alone = {
            i: text.tokenize([i if isinstance(piece, int) else piece for piece in concept.pieces], longest)
            for i in subjects
        }
    twin = prompt.twin(class_words)
    lost = next(iter(fused.values())).lost or text.tokenize((twin,)).lost
    return PromptTokens(prompt, negative_prompt, twin, fused, alone, lost)


class PromptDenoiser:
    """`eps(x_t, t, conditions)` of one prompt, for `sample_fusion`.

    Every call computes S* once per subject in use, encodes the prompts with S*, takes prompts without S* from the text
    conditioner's cache and those whose S* does not change from its own, and calls the UNet once. After `prepare`
    nothing in it waits for the device.

    Args:
        unet: the (tuned) UNet.
        text: the text conditioner.
        subjects: all subjects of the run.
        tokens: from `tokenize_prompt`.
        alphas_cumprod: shape (train timesteps,).
        prediction_type: `epsilon` or `v_prediction`.
        gamma_on: gamma multiplies the word embedding S* (`embedding`, the paper), or the text encoder's
            output in all rows of S* (`hidden`), or in its first row only (`hidden-first`, the authors'
            code, which differs from `hidden` where S* has several words). `embedding` does little where S* is
            far longer, or far shorter, than what the text encoder's layers add: their norms divide gamma out.
        word_once: S* is that of the first call at a timestep in further calls at it.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        text: TextConditioner,
        subjects: Sequence[Subject],
        tokens: PromptTokens,
        alphas_cumprod: torch.Tensor,
        prediction_type: str,
        gamma_on: GammaOn = "hidden",
        word_once: bool = False,
    ) -> None:
        self.unet = unet
        self.text = text
        self.subjects = subjects
        self.tokens = tokens
        self._alpha_bars: list[float] = alphas_cumprod.tolist()
        self.prediction_type = prediction_type
        self.gamma_on = gamma_on
        self.word_once = word_once
        self._ordinary = {i for i, subject in enumerate(subjects) if subject.ordinary}
        self._unchanging = {i for i, subject in enumerate(subjects) if not subject.changes}
        self._encoded: dict[Condition, torch.Tensor] = {}
        self._timesteps = torch.arange(len(alphas_cumprod), device=text.device)
        self._words: tuple[int, dict[int, torch.Tensor]] = (-1, {})
        self._layouts: dict[Condition, Layout] = {}

    def _tokens_of(self, condition: Condition) -> Tokens:
        if condition.kind == "fused":
            return self.tokens.fused[condition.subject]
        return self.tokens.subject[condition.subject]

    def prepare(self, conditions: Sequence[Condition]) -> None:
        """Put what stays the same in every call on the device, so that no call waits for it."""
        words = {i: subject.words for i, subject in enumerate(self.subjects)}
        for condition in conditions:
            if condition.kind in ("none", "text"):
                self.text.encode(self._text_of(condition))
            else:
                self._layout_of(condition, words)

    def _layout_of(self, condition: Condition, words: Mapping[int, int]) -> Layout:
        if condition not in self._layouts:
            tokens, shift_positions = self._tokens_of(condition), bool(self._ordinary)
            self._layouts[condition] = self.text.layout(tokens, words, shift_positions)
        return self._layouts[condition]

    def _text_of(self, condition: Condition) -> str:
        return self.tokens.negative_prompt if condition.kind == "none" else self.tokens.twin

    def encode(self, condition: Condition, pseudo_words: dict[int, torch.Tensor]) -> torch.Tensor:
        """Text conditioning with gamma S*, shape (B, length, embedding_dim)."""
        gamma = condition.gamma
        if self.gamma_on == "embedding" and gamma != 1:
            pseudo_words = {i: gamma * words for i, words in pseudo_words.items()}
        layout = self._layout_of(condition, {i: words.shape[1] for i, words in pseudo_words.items()})
        hidden = self.text.hidden_states(layout.filled(pseudo_words, self._ordinary))
        if self.gamma_on != "embedding" and gamma != 1:
            for start, words in layout.spans:
                end = start + (1 if self.gamma_on == "hidden-first" else words)
                hidden[:, start:end] = gamma * hidden[:, start:end]
        return hidden

    def _pseudo_words(self, x_t: torch.Tensor, t: int, needed: set[int]) -> dict[int, torch.Tensor]:
        """S* of the subjects at (x_t, t)."""
        if not self.word_once or self._words[0] != t:
            self._words = (t, {})
        known = self._words[1]
        for i in sorted(needed - known.keys()):
            word = self.subjects[i].pseudo_word(x_t, self._timesteps[t])
            known[i] = word.clone()  # CUDA graphs write over what they returned
        return {i: known[i] for i in sorted(needed)}

    def __call__(self, x_t: torch.Tensor, t: int, conditions: Sequence[Condition]) -> tuple[torch.Tensor, ...]:
        """Predicted noise for each condition, each of x_t's shape (B, 4, h, w)."""
        batch = x_t.shape[0]
        with_subject = [condition for condition in conditions if condition.kind in ("fused", "subject")]
        needed = {subject for condition in with_subject for _, subject in self._tokens_of(condition).slots}
        pseudo_words = self._pseudo_words(x_t, t, needed)
        states = []
        for condition in conditions:
            if condition.kind in ("none", "text"):
                states.append(self.text.encode(self._text_of(condition)).expand(batch, -1, -1))
            elif needed <= self._unchanging:
                if condition not in self._encoded:
                    self._encoded[condition] = self.encode(condition, pseudo_words)
                states.append(self._encoded[condition])
            else:
                states.append(self.encode(condition, pseudo_words))
        at = self._timesteps[t]
        prediction = predict(self.unet, torch.cat([x_t] * len(conditions)), at, Conditioning(torch.cat(states)))
        return tuple(
            epsilon_from(part, x_t, self._alpha_bars[t], self.prediction_type)
            for part in prediction.to(x_t.dtype).chunk(len(conditions))
        )
