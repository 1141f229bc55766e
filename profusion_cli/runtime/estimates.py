"""What a job will need of the device's memory, counted before anything is loaded.

The networks are built on the meta device, where they have shapes and no memory, from what describes them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn

from profusion_cli.config import AugmentConfig, BaseConfig, Config, FinetuneConfig, PromptNetSource
from profusion_cli.methods import is_word_method
from profusion_cli.presets import local_path
from profusion_cli.runtime.architecture import PromptNetConfig, unet_architecture
from profusion_cli.runtime.backbone import PLAIN_TRANSFORMERS, BaseModel, quiet_libraries
from profusion_cli.runtime.baselines import LearnedWord, WordBatch, WordObjective
from profusion_cli.runtime.counting import Activations, LikeDevice, Peak, activations
from profusion_cli.runtime.descriptions import describe_part
from profusion_cli.runtime.device import Placement
from profusion_cli.runtime.finding import place_at_hand
from profusion_cli.runtime.fitting import choose_attention
from profusion_cli.runtime.hub import AGAIN, at_hand
from profusion_cli.runtime.inpaint import InpaintingModel
from profusion_cli.runtime.model import Conditioning, predict
from profusion_cli.runtime.optimizers import state_bytes
from profusion_cli.runtime.parts import PARTS
from profusion_cli.runtime.pixels import image_token_count
from profusion_cli.runtime.promptnet import PromptNet
from profusion_cli.runtime.random_base import networks_of
from profusion_cli.runtime.single_file import is_converted, is_single_file
from profusion_cli.runtime.text import TextConditioner, Tokens
from profusion_cli.runtime.training import Batch, TrainingObjective, select_trainable

PICTURES = 2
"""Pictures of the batch that activations are counted with."""
PROMPT_TOKENS = 6
"""Of "a photo of S*" with its start and its end; a few more or less are next to nothing."""
META = torch.device("meta")


@dataclass(frozen=True)
class TuningMemory:
    """What the steps of a fine-tuning hold at once, in bytes; what is counted of each of them is its most.

    Args:
        weights: of the networks, those that are trained in float32; on a CPU also what they are compared with at the
            end.
        gradients, optimizer: of what is trained.
        activations: that the backward pass wants, of one of the parts that a batch is split into.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def beside_weights(self) -> int:
        """What steps make."""
        return self.gradients + self.optimizer + self.activations

    @property
    def total(self) -> int:
        return self.weights + self.beside_weights


@dataclass(frozen=True)
class Estimate:
    """What a fine-tuning will need of the device's memory, in bytes.

    Args:
        tuning: its steps; None: there are none.
        views: making views of the photo; 0: none are made on the device.
        encoding: encoding the views.
    """

    tuning: TuningMemory | None
    views: int
    encoding: int

    @property
    def total(self) -> int:
        """The most at any time."""
        return max(self.tuning.total if self.tuning else 0, self.views, self.encoding)

    def as_dict(self) -> dict[str, int]:
        """For `--json`."""
        named = ("weights", "gradients", "optimizer", "activations")
        parts = {f"{name}_bytes": getattr(self.tuning, name) for name in named} if self.tuning else {}
        return {"needed_bytes": self.total, **parts, "views_bytes": self.views, "encoding_bytes": self.encoding}


def finetuning_estimate(config: Config, placement: Placement, augments: bool) -> Estimate | None:
    """What a fine-tuning will need; None: the files that describe its models are not all on this machine.

    Args:
        config: the resolved configuration, in which nothing is left to be chosen.
        placement: of the training.
        augments: whether views of a photo are made first.
    """
    base, own = config.base, config.finetune
    if _networks(base, placement) is None:
        return None
    tuning = None
    if own.steps > 0:
        counted = _tuning(base, replace(config.promptnet, weights=None), _shape_of(own), placement)
        pictures = own.batch_size * (2 if own.prior_pictures else 1)
        parts = min(own.gradient_accumulation, pictures)
        tuning = counted.of(-(-pictures // parts))
    painted = _painting(config.augment, base.resolution, placement) if augments and config.augment.inpaint else 0
    if painted is None:
        return None
    painted += _count(_networks(base, placement)["text_encoder"]) * placement.dtype.itemsize if painted else 0
    return Estimate(tuning, painted, _encoding(base, placement, not is_word_method(own.method)))


def sampling_estimate(config: Config, placement: Placement, subjects: int) -> int | None:
    """Bytes that drawing pictures of so many subjects takes at once; None: as `finetuning_estimate`."""
    base, settings = config.base, config.sample
    networks = _networks(base, placement)
    if networks is None:
        return None
    promptnet = _promptnet(networks, config.promptnet)
    drawn = min(settings.batch_size, settings.num_images)
    height, width = (size or base.resolution for size in (settings.height, settings.width))
    drawn_with = [networks["unet"], *([promptnet] * subjects)]
    held = max(map(_largest_layer, drawn_with)) if config.offload == "group" else sum(map(_count, drawn_with))
    weights = (held + _count(networks["text_encoder"])) * placement.dtype.itemsize
    drawing = _drawing(base, placement, drawn * (2 + subjects), height, width)
    decoding = _decoding(base, placement, height, width)
    return weights + max(drawing, decoding + _count(networks["vae"]) * placement.encoder_dtype.itemsize)


@dataclass(frozen=True)
class _CountedTuning:
    """What does not hang on the size of the batch, and the activations, which do."""

    weights: int
    gradients: int
    optimizer: int
    activations: Activations

    def of(self, pictures: int) -> TuningMemory:
        return TuningMemory(self.weights, self.gradients, self.optimizer, self.activations.of(pictures))


def _shape_of(own: FinetuneConfig) -> FinetuneConfig:
    """What of the settings decides about memory, beside the size of the batch."""
    return FinetuneConfig(
        method=own.method,
        train=own.train,
        adapters=own.adapters,
        gradient_checkpointing=own.gradient_checkpointing,
        optimizer=own.optimizer,
    )


def _count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _largest_layer(network: nn.Module) -> int:
    """Numbers of the layer that has most."""
    return max(sum(one.numel() for one in module.parameters(recurse=False)) for module in network.modules())


@functools.lru_cache(maxsize=4)
def _networks(base: BaseConfig, placement: Placement) -> Mapping[str, nn.Module] | None:
    """The networks of a base model, which nobody changes; see `_built`."""
    return _built(BaseModel(base, placement))


def _built(model: BaseModel) -> Mapping[str, nn.Module] | None:
    """The networks of a model on the meta device, in the precisions of its placement; None: a file that describes one
    is not at hand."""
    networks = _described(model)
    with quiet_libraries():
        for name, network in (networks or {}).items():
            encodes = name in ("vae", "vision")
            network.requires_grad_(False).to(model.placement.encoder_dtype if encodes else model.placement.dtype)
    return networks


def _described(model: BaseModel) -> Mapping[str, nn.Module] | None:
    """See `_built`, in float32."""
    names = [name for name in ("unet", "vae", "text_encoder", "vision") if name != "vision" or not model.inpainting]
    place = Path(local_path(model.config.id))
    if model.config.random is None and is_single_file(str(place)) and not is_converted(place, model.config.resolution):
        return None
    with META, quiet_libraries():
        if model.config.random is not None:
            return networks_of(model.config.random.size, model.inpainting)
        settings = {}
        for name in names:
            part = PARTS[name]
            path = at_hand(place_at_hand(model.source(name), part.required, part.weights), part.required[-1])
            if path is None:
                return None
            settings[name] = describe_part(path, PARTS[name].cls, PARTS[name].section, AGAIN)
        return {name: _network(PARTS[name].cls, settings[name]) for name in names}


def _network(cls: Any, settings: Mapping[str, Any]) -> nn.Module:
    if issubclass(cls, UNet2DConditionModel | AutoencoderKL):
        return cls.from_config(settings)
    plain = {"attn_implementation": PLAIN_TRANSFORMERS["attn_implementation"]}  # no code that a description names
    return cls(cls.config_class.from_dict({**settings, **plain}))


def _promptnet(networks: Mapping[str, nn.Module], source: PromptNetSource) -> PromptNet:
    """A PromptNet that fits a base model, on the meta device."""
    config = PromptNetConfig(
        unet_architecture(networks["unet"].config),
        networks["vision"].config.hidden_size,
        networks["text_encoder"].config.hidden_size,
        source.region_kernel_size,
        source.region_proj_channels,
    )
    with META:
        return PromptNet(config)


def _side(networks: Mapping[str, nn.Module], pixels: int) -> int:
    """Of latents."""
    return pixels // 2 ** (len(networks["vae"].config.block_out_channels) - 1)


@functools.lru_cache(maxsize=32)
def _tuning(base: BaseConfig, source: PromptNetSource, own: FinetuneConfig, placement: Placement) -> _CountedTuning:
    """The steps of a fine-tuning, of which one forward pass is gone through on the meta device."""
    networks = _built(BaseModel(base, placement))
    unet, encoder = networks["unet"].float(), networks["text_encoder"]
    text = TextConditioner(encoder, None, base.clip_skip)
    words = is_word_method(own.method)
    with META:
        first = LearnedWord(torch.empty(1, text.embedding_dim)) if words else _promptnet(networks, source)
        trained = select_trainable(first, unet, own, 0)
        if words:
            first.requires_grad_(own.method == "textual-inversion")
        make = _word_objective if words else _objective
        objective, batch = make(first, unet, text, networks, base)
        for parameter in objective.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(placement.dtype)
        choose_attention(placement, objective)
        on_gpu, autocast = placement.device.type != "cpu", placement.dtype if placement.autocast != "no" else None
        mode = LikeDevice(autocast, on_gpu)
        kept = activations(objective.train(), batch, encoder.parameters(), mode, bool(own.gradient_checkpointing))
    learned = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    weights = sum(p.numel() * p.element_size() for p in (*objective.parameters(), *encoder.parameters()))
    if not on_gpu:
        weights += 4 * sum(parameter.numel() for parameter in trained.unet.values())
        weights += 4 * _count(first) if trained.adapters and not words else 0
    gradients = sum(4 * parameter.numel() for parameter in learned)
    return _CountedTuning(weights, gradients, state_bytes(learned, own.optimizer), kept)


def _latents(networks: Mapping[str, nn.Module], pixels: int) -> torch.Tensor:
    side = _side(networks, pixels)
    return torch.empty(PICTURES, networks["unet"].config.in_channels, side, side)


def _objective(
    promptnet: PromptNet,
    unet: UNet2DConditionModel,
    text: TextConditioner,
    networks: Mapping[str, nn.Module],
    base: BaseConfig,
) -> tuple[nn.Module, Batch]:
    tokens = Tokens((0,) * PROMPT_TOKENS, ((PROMPT_TOKENS - 2, 0),))
    latents, vision = _latents(networks, base.resolution), networks["vision"].config
    layout = text.layout(tokens, {0: promptnet.tokens_for(latents.shape[-1])}, shift_positions=True)
    objective = TrainingObjective(promptnet, unet, text, layout, torch.empty(1000), "epsilon")
    image_tokens = torch.empty(PICTURES, image_token_count(vision), vision.hidden_size)
    return objective, Batch(latents, image_tokens, latents, latents, torch.empty(PICTURES, dtype=torch.int64))


def _word_objective(
    word: LearnedWord,
    unet: UNet2DConditionModel,
    text: TextConditioner,
    networks: Mapping[str, nn.Module],
    base: BaseConfig,
) -> tuple[nn.Module, WordBatch]:
    tokens = Tokens((0,) * text.max_length, ((1, 0),))
    states = torch.empty(1, text.max_length, text.embedding_dim)
    objective = WordObjective(word, unet, text, [tokens], states, torch.empty(1000), "epsilon", 0.0, None)
    latents, numbers = _latents(networks, base.resolution), torch.empty(PICTURES, dtype=torch.int64)
    first = torch.zeros(PICTURES, dtype=torch.int64, device="cpu")  # its number is looked at
    return objective, WordBatch(latents, latents, numbers, first, torch.empty(PICTURES, dtype=torch.bool))


@functools.lru_cache(maxsize=32)
def _drawing(base: BaseConfig, placement: Placement, batch: int, height: int, width: int) -> int:
    """What one evaluation of the UNet makes on a batch."""
    return _predicting(_networks(base, placement), placement, batch, height, width)


@functools.lru_cache(maxsize=32)
def _decoding(base: BaseConfig, placement: Placement, height: int, width: int) -> int:
    """What decoding one picture makes."""
    return _through_vae(_networks(base, placement), placement, 1, height, width)


def _predicting(networks: Mapping[str, nn.Module], placement: Placement, batch: int, height: int, width: int) -> int:
    unet, encoder = networks["unet"], networks["text_encoder"].config
    size = (batch, unet.config.in_channels, _side(networks, height), _side(networks, width))

    def run() -> None:
        states = torch.empty(batch, encoder.max_position_embeddings, encoder.hidden_size)
        predict(unet, torch.empty(size), 0, Conditioning(states))

    return _made_by(unet, run)


def _through_vae(
    networks: Mapping[str, nn.Module], placement: Placement, batch: int, height: int, width: int, encode: bool = False
) -> int:
    """What encoding or decoding a batch of pictures makes."""
    vae, dtype = networks["vae"], placement.encoder_dtype
    latents = (batch, vae.config.latent_channels, _side(networks, height), _side(networks, width))

    def run() -> None:
        if encode:
            vae.encode(torch.empty(batch, 3, height, width, dtype=dtype))
        else:
            vae.decode(torch.empty(latents, dtype=dtype))

    return _made_by(vae, run)


def _made_by(network: nn.Module, run: Callable[[], None]) -> int:
    """The most bytes that are held at once, beside a network's own, while it computes something."""
    with META, torch.no_grad(), LikeDevice(None, False), Peak((*network.parameters(), *network.buffers())) as peak:
        run()
    return peak.bytes


@functools.lru_cache(maxsize=8)
def _encoding(base: BaseConfig, placement: Placement, sees: bool) -> int:
    """The VAE, the vision tower where PromptNet sees, the text encoder, and what encoding one picture makes."""
    networks, side = _networks(base, placement), base.resolution
    held, made = [networks["vae"]], [_through_vae(networks, placement, 1, side, side, encode=True)]
    if sees:
        tower = networks["vision"]
        size, dtype = (1, 3, tower.config.image_size, tower.config.image_size), tower.dtype
        held.append(tower)
        made.append(_made_by(tower, lambda: tower(pixel_values=torch.empty(size, dtype=dtype))))
    weights = sum(map(_count, held)) * placement.encoder_dtype.itemsize
    return weights + _count(networks["text_encoder"]) * placement.dtype.itemsize + max(made)


@functools.lru_cache(maxsize=8)
def _painting(augment: AugmentConfig, resolution: int, placement: Placement) -> int | None:
    """The inpainting model, and what painting a batch makes; None: its descriptions are not at hand."""
    networks = _built(InpaintingModel(augment.model, placement, resolution))
    if networks is None:
        return None
    batch = min(augment.batch_size, augment.views)
    weights = (_count(networks["unet"]) + _count(networks["text_encoder"])) * placement.dtype.itemsize
    weights += _count(networks["vae"]) * placement.encoder_dtype.itemsize
    made = (
        _predicting(networks, placement, 2 * batch, resolution, resolution),  # with and without text
        *(_through_vae(networks, placement, batch, resolution, resolution, encode) for encode in (True, False)),
    )
    return weights + max(made)
