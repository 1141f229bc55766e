"""The parts of a base model: one table of what is known of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer, CLIPVisionModel

DIFFUSERS_WEIGHTS = tuple(
    f"diffusion_pytorch_model{variant}.{kind}" for kind in ("safetensors", "bin") for variant in ("", ".fp16")
)
TRANSFORMERS_WEIGHTS = ("model.safetensors", "model.fp16.safetensors", "pytorch_model.bin", "pytorch_model.fp16.bin")

Role = Literal["encodes", "promptnet", "draws"]
"""What a part is for: photos are encoded by it, a PromptNet fits this one alone, pictures are drawn with it."""


@dataclass(frozen=True)
class Part:
    """One part of a base model, which has a sub-folder of its name in diffusers' layout.

    Args:
        title: how messages call it.
        cls: the class that loads it.
        required: files without which it is not there.
        weights: names that its weights file may have, the first one found is taken; a part that has weights has a
            fingerprint, and so has what was made with it.
        optional: further files, fetched where the repository has them.
        section: of its description, where one file describes several parts.
        foreign: matches the beginnings of tensors in its weights file that belong to other parts.
        roles: what it is for.
    """

    title: str
    cls: type
    required: tuple[str, ...]
    weights: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    section: str = ""
    foreign: str | None = None
    roles: frozenset[Role] = frozenset()

    @property
    def library(self) -> str:
        """The library of its class."""
        return self.cls.__module__.partition(".")[0]


PARTS = {
    "unet": Part(
        "The UNet",
        UNet2DConditionModel,
        ("config.json",),
        DIFFUSERS_WEIGHTS,
        roles=frozenset({"promptnet", "draws"}),
    ),
    "vae": Part("The VAE", AutoencoderKL, ("config.json",), DIFFUSERS_WEIGHTS, roles=frozenset({"encodes", "draws"})),
    "text_encoder": Part(
        "The text encoder",
        CLIPTextModel,
        ("config.json",),
        TRANSFORMERS_WEIGHTS,
        section="text_config",
        foreign=r"vision_model|visual_projection|text_projection|logit_scale",
        roles=frozenset({"promptnet", "draws"}),
    ),
    "tokenizer": Part(
        "The tokenizer",
        CLIPTokenizer,
        ("vocab.json", "merges.txt"),
        optional=("tokenizer_config.json", "special_tokens_map.json"),
        roles=frozenset({"draws"}),
    ),
    "scheduler": Part("The scheduler", DDIMScheduler, ("scheduler_config.json",), roles=frozenset({"draws"})),
    "vision": Part(
        "The vision tower",
        CLIPVisionModel,
        ("config.json",),
        TRANSFORMERS_WEIGHTS,
        section="vision_config",
        foreign=r"text_|logit_scale|visual_projection",
        roles=frozenset({"encodes", "promptnet"}),
    ),
}

WEIGHTY = tuple(name for name, part in PARTS.items() if part.weights)
"""The parts that have weights, and so a fingerprint."""


def title_of(name: str) -> str:
    """How a part is called within a sentence."""
    return inline(PARTS[name].title)


def inline(title: str) -> str:
    """The title of a part within a sentence; names stay as they are."""
    return title[0].lower() + title[1:] if title.startswith("The ") else title


def parts_for(role: Role) -> tuple[str, ...]:
    """The parts with weights that are there for this."""
    return tuple(name for name in WEIGHTY if role in PARTS[name].roles)
