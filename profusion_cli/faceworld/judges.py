"""Judges of pictures of the face world. They measure; nothing is ever conditioned on them or trained with them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from profusion_cli.faceworld.data import to_pixels
from profusion_cli.faceworld.world import ATTRIBUTES, TRAITS

CLASSES: dict[str, tuple[str, ...]] = {**ATTRIBUTES, **TRAITS}
EMBEDDING = 128
Judge = TypeVar("Judge", bound=nn.Module)
_ATTRIBUTES, _IDENTITIES, _STRUCTURE = "attributes.safetensors", "identities.safetensors", "structure.safetensors"
_READABLE = "readable.json"


class Trunk(nn.Module):
    """A residual convolutional network: pictures of shape (B, 3, side, side) in [0, 1] to vectors (B, 8 * width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = [width, width * 2, width * 4, width * 4]
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.downs = nn.ModuleList(
            nn.Conv2d(one, two, 3, stride=2, padding=1) for one, two in zip([width, *widths], widths, strict=False)
        )
        self.convs = nn.ModuleList(nn.Conv2d(one, one, 3, padding=1) for one in widths)
        self.norms = nn.ModuleList(nn.GroupNorm(8, one) for one in widths)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        x = self.stem(pixels * 2 - 1)
        for down, conv, norm in zip(self.downs, self.convs, self.norms, strict=True):
            x = norm(down(F.silu(x)))
            x = x + conv(F.silu(x))
        x = F.silu(x)
        return torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1)


class AttributeJudge(nn.Module):
    """Reads every attribute of the context and every trait of the person."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.trunk = Trunk(width)
        self.hidden = nn.Linear(width * 8, 256)
        self.heads = nn.ModuleDict({_key(name): nn.Linear(256, len(values)) for name, values in CLASSES.items()})

    def forward(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Logits of every attribute, shape (B, classes)."""
        x = F.silu(self.hidden(self.trunk(pixels)))
        return {name: self.heads[_key(name)](x) for name in CLASSES}


class IdentityJudge(nn.Module):
    """Unit vectors of shape (B, 128), close for pictures of one person whatever the context."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.trunk = Trunk(width)
        self.out = nn.Sequential(nn.Linear(width * 8, 256), nn.SiLU(), nn.Linear(256, EMBEDDING))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.out(self.trunk(pixels)).float(), dim=-1)


class StructureJudge(nn.Module):
    """Whether a picture shows one well-formed person."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.trunk = Trunk(width)
        self.out = nn.Sequential(nn.Linear(width * 8, 256), nn.SiLU(), nn.Linear(256, 1))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """The logit of being intact, shape (B,)."""
        return self.out(self.trunk(pixels))[:, 0].float()


class Judges:
    """The judges, from a folder.

    Args:
        folder: holds what `save_judge` wrote of each, and what `save_readable` did.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.attribute = _load(AttributeJudge, folder / _ATTRIBUTES)
        self.identity = _load(IdentityJudge, folder / _IDENTITIES)
        self.intact = _load(StructureJudge, folder / _STRUCTURE)

    @cached_property
    def readable(self) -> dict[str, list[str]]:
        """Of each style, the traits that the judge of attributes can be believed about; see `readable_traits`."""
        return json.loads((self.folder / _READABLE).read_text(encoding="utf-8"))

    @torch.inference_mode()
    def attributes(self, images: Sequence[Image.Image]) -> list[dict[str, str]]:
        """What each picture shows: every attribute and trait by its most likely name."""
        logits = self.attribute(_pixels(images))
        best = {name: values.argmax(1).tolist() for name, values in logits.items()}
        return [{name: CLASSES[name][best[name][i]] for name in CLASSES} for i in range(len(images))]

    @torch.inference_mode()
    def features(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """What the judge of attributes reads them from: its hidden layer, shape (pictures, 256), each scaled to a mean
        square of 1, so that x . y / 256 of two is their cosine."""
        x = F.silu(self.attribute.hidden(self.attribute.trunk(_pixels(images))))
        return F.normalize(x, dim=-1) * x.shape[-1] ** 0.5

    @torch.inference_mode()
    def embeddings(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Unit vectors of shape (pictures, 128); the identity similarity of two is their dot product."""
        return self.identity(_pixels(images))

    @torch.inference_mode()
    def structure(self, images: Sequence[Image.Image]) -> list[float]:
        """How likely each picture shows one well-formed head of the right size on its shoulders, in [0, 1]."""
        return torch.sigmoid(self.intact(_pixels(images))).tolist()


def save_judge(judge: AttributeJudge | IdentityJudge | StructureJudge, folder: Path) -> None:
    """Write one judge in float16."""
    folder.mkdir(parents=True, exist_ok=True)
    name = {AttributeJudge: _ATTRIBUTES, IdentityJudge: _IDENTITIES, StructureJudge: _STRUCTURE}[type(judge)]
    save_file({key: value.half().contiguous() for key, value in judge.state_dict().items()}, folder / name)


def save_readable(readable: Mapping[str, Sequence[str]], folder: Path) -> None:
    """Write what `readable_traits` found."""
    (folder / _READABLE).write_text(json.dumps(readable, indent=2) + "\n", encoding="utf-8")


def _key(name: str) -> str:
    return name.replace(" ", "_")


def _load(cls: type[Judge], path: Path) -> Judge:
    weights = {key: value.float() for key, value in load_file(path).items()}
    judge = cls(weights["trunk.stem.weight"].shape[0])
    judge.load_state_dict(weights)
    return judge.eval().requires_grad_(False)


def _pixels(images: Sequence[Image.Image]) -> torch.Tensor:
    return to_pixels(torch.from_numpy(np.stack([np.asarray(image.convert("RGB")) for image in images])))
