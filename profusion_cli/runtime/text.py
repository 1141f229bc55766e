"""Text conditioning: tokens with places for S*, the splice of S*, and the text encoder's hidden states."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import CLIPTextModel, CLIPTokenizer

from profusion_cli.errors import ConfigError, InputError

PADDING_HINT = "Set pad_token_id, of base or augment.model, to the one that the model was trained with, or to null."


def padding_of(folder: Path, pad_token_id: int | None) -> dict[str, str]:
    """What CLIPTokenizer.from_pretrained is told of the token that fills up prompts; nothing where it knows best.

    Stable Diffusion 2 was trained with "!", token 0. Its tokenizer_config.json names another, and only its
    special_tokens_map.json, which a folder may lack, names the right one.

    Args:
        folder: of the tokenizer.
        pad_token_id: of the configuration.

    Raises:
        ConfigError: the tokenizer has no such token, or its special_tokens_map.json names another.
    """
    if pad_token_id is None:
        return {}
    token = word_of(json.loads((folder / "vocab.json").read_text(encoding="utf-8")), pad_token_id, f"'{folder}'")
    path = folder / "special_tokens_map.json"
    named = json.loads(path.read_text(encoding="utf-8")).get("pad_token", token) if path.is_file() else token
    named = named["content"] if isinstance(named, dict) else named
    if named != token:
        told = f"fills up prompts with '{named}', and pad_token_id={pad_token_id} is '{token}'"
        raise ConfigError(f"The tokenizer in '{folder}' {told}.", PADDING_HINT)
    return {"pad_token": token}


def word_of(vocabulary: Mapping[str, int], pad_token_id: int, place: str) -> str:
    """The word of a number in a vocabulary, which fills up prompts.

    Raises:
        ConfigError: there is none; `place` says whose vocabulary it is.
    """
    for word, number in vocabulary.items():
        if number == pad_token_id:
            return word
    raise ConfigError(f"pad_token_id={pad_token_id} is no token of the tokenizer in {place}.", PADDING_HINT)


@dataclass(frozen=True)
class Tokens:
    """A tokenised prompt.

    Args:
        ids: token ids with start and end token; one entry per placeholder, whose id is of no matter.
        slots: `(index in ids, subject)` of each placeholder, in order.
        lost: text that did not fit.
    """

    ids: tuple[int, ...]
    slots: tuple[tuple[int, int], ...]
    lost: str = ""


@dataclass(frozen=True)
class Layout:
    """A tokenised prompt on the device, all of it but S*.

    Args:
        embeds: token plus position embeddings, shape (length, embedding_dim); of no matter where S* stands.
        places: position embeddings alone, of the same shape.
        slots: `(start, words, subject)` of each S*, in order.
    """

    embeds: torch.Tensor
    places: torch.Tensor
    slots: tuple[tuple[int, int, int], ...]

    @property
    def spans(self) -> list[tuple[int, int]]:
        """`(start, words)` of each S*."""
        return [(start, words) for start, words, _ in self.slots]

    def filled(self, subjects: Mapping[int, torch.Tensor], ordinary: Collection[int] = ()) -> torch.Tensor:
        """With S* in place, shape (B, length, embedding_dim); arguments as of `TextConditioner.splice`."""
        batch = next((len(subjects[subject]) for _, _, subject in self.slots), 1)
        embeds = self.embeds.expand(batch, -1, -1).clone()
        for start, words, subject in self.slots:
            place = self.places[start : start + words] if subject in ordinary else 0
            embeds[:, start : start + words] = subjects[subject].to(embeds.dtype) + place
        return embeds


class TextConditioner:
    """The text encoder of the base model, with S* spliced into its input embeddings.

    Args:
        text_encoder: a CLIP text model; its final layer norm is applied whatever the layer.
        tokenizer: the matching tokenizer.
        clip_skip: last layers to leave out; they are dropped. Stable Diffusion 2 reads the penultimate
            layer of CLIP ViT-H/14, and its own text encoder ends there already.
    """

    def __init__(self, text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer, clip_skip: int = 0) -> None:
        # early releases of transformers 5 wrap the layers once more
        self.text_encoder = getattr(text_encoder, "text_model", text_encoder)
        if clip_skip:
            self.text_encoder.encoder.layers = self.text_encoder.encoder.layers[:-clip_skip]
        self.tokenizer = tokenizer
        self.max_length = text_encoder.config.max_position_embeddings
        self.embedding_dim: int = text_encoder.config.hidden_size
        self._encoded: dict[tuple[object, ...], torch.Tensor] = {}

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.text_encoder.embeddings.token_embedding.weight.device

    def tokenize(self, pieces: Sequence[str | int], words: int = 1, pad: bool = True) -> Tokens:
        """Token ids of text pieces and subjects.

        Args:
            pieces: text, and subject numbers where a placeholder stands.
            words: how many words S* has.
            pad: fill up to the text encoder's length, as for sampling; training uses the bare length.

        Raises:
            InputError: the prompt is so long that S* falls off its end.
        """
        ids: list[int] = []
        slots: list[tuple[int, int]] = []
        for piece in pieces:
            if isinstance(piece, int):
                slots.append((len(ids) + 1, piece))
                ids.append(self.tokenizer.pad_token_id)
            else:
                ids.extend(self.tokenizer(piece, add_special_tokens=False, verbose=False).input_ids)
        room = self.max_length - 2
        lost = ids[room:]
        for order, (index, _) in enumerate(slots):
            if index > room or index + order * (words - 1) + words > self.max_length:
                raise InputError(
                    f"The prompt '{self._readable(pieces)}' is so long that its placeholder falls off the end: the "
                    f"text encoder reads {self.max_length} tokens.",
                    "Shorten the prompt, or move the placeholder towards its beginning.",
                )
        ids = [self.tokenizer.bos_token_id, *ids[:room], self.tokenizer.eos_token_id]
        if pad:
            ids += [self.tokenizer.pad_token_id] * (self.max_length - len(ids))
        return Tokens(tuple(ids), tuple(slots), self.tokenizer.decode(lost).strip() if lost else "")

    @staticmethod
    def _readable(pieces: Sequence[str | int]) -> str:
        text = "".join(piece if isinstance(piece, str) else "S*" for piece in pieces)
        return text if len(text) <= 120 else f"{text[:117]}..."

    def splice(
        self,
        tokens: Tokens,
        subjects: Mapping[int, torch.Tensor],
        shift_positions: bool = False,
        ordinary: Collection[int] = (),
    ) -> tuple[torch.Tensor, list[tuple[int, int]]]:
        """Input embeddings with S* in place of each placeholder's token and position embedding.

        Words behind an S* of several words move back; what is pushed over the text encoder's length is
        cut. As in the recorded data, they keep the position embeddings that they have in the prompt
        when sampling, and have those of their new places when training (`shift_positions`).

        Args:
            tokens: from `tokenize`.
            subjects: S* of each subject, shape (B, words, embedding_dim).
            shift_positions: see above; of no matter where S* is one word.
            ordinary: subjects whose S* is an ordinary word, to which the position embedding of its place is added.

        Returns:
            Embeddings of shape (B, length, embedding_dim), and `(start, words)` of each S* in them.
        """
        layout = self.layout(tokens, {subject: words.shape[1] for subject, words in subjects.items()}, shift_positions)
        return layout.filled(subjects, ordinary), layout.spans

    def layout(self, tokens: Tokens, words: Mapping[int, int], shift_positions: bool = False) -> Layout:
        """What `splice` fills, for whoever fills the same prompt again and again.

        Args:
            tokens, shift_positions: as there.
            words: how many the S* of each subject has.
        """
        embeddings = self.text_encoder.embeddings
        table = embeddings.token_embedding.weight
        placeholders = dict(tokens.slots)
        ids, positions, slots = [], [], []
        for index, token in enumerate(tokens.ids):
            count = words[placeholders[index]] if index in placeholders else 1
            if index in placeholders:
                slots.append((len(ids), count, placeholders[index]))
            first = len(ids) if shift_positions else index
            positions.extend(first + offset if shift_positions else first for offset in range(count))
            ids.extend([token] * count)
        length = min(len(ids), self.max_length)
        places = embeddings.position_embedding(torch.tensor(positions[:length], device=table.device))
        embeds = embeddings.token_embedding(torch.tensor(ids[:length], device=table.device)) + places
        return Layout(embeds, places, tuple(slots))

    def hidden_states(self, inputs_embeds: torch.Tensor) -> torch.Tensor:
        """Conditioning for the UNet: the encoder under a strictly causal mask, then the final layer norm.

        Args:
            inputs_embeds: token plus position embeddings, shape (B, length, embedding_dim).

        Returns:
            Shape (B, length, embedding_dim).
        """
        length, dtype = inputs_embeds.shape[1], inputs_embeds.dtype
        mask = torch.full((1, 1, length, length), torch.finfo(dtype).min, dtype=dtype, device=inputs_embeds.device)
        mask = mask.triu(1)
        encoded = self.text_encoder.encoder(inputs_embeds=inputs_embeds, attention_mask=mask, is_causal=False)
        return self.text_encoder.final_layer_norm(encoded.last_hidden_state)

    def relative_length(self, words: torch.Tensor) -> float:
        """How long words are on average, in lengths of an ordinary word's embedding: the median of the vocabulary.

        Args:
            words: shape (..., embedding_dim).
        """
        ordinary = self.text_encoder.embeddings.token_embedding.weight.float().norm(dim=-1).median()
        return float(words.float().norm(dim=-1).mean()) / float(ordinary)

    def encode(self, text: str) -> torch.Tensor:
        """Conditioning of plain text, shape (1, max_length, embedding_dim); each text is encoded once, and once more
        where torch chooses the precision of each operation, as in training."""
        weight = self.text_encoder.embeddings.token_embedding.weight
        key = text, torch.is_autocast_enabled(self.device.type), weight.device, weight.dtype
        if key not in self._encoded:
            embeds, _ = self.splice(self.tokenize((text,)), {})
            self._encoded[key] = self.hidden_states(embeds)
        return self._encoded[key]
