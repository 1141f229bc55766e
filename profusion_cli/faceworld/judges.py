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
_ATTRIBUTES, _IDENTITIES, _READABLE = "attributes.safetensors", "identities.safetensors", "readable.json"


class Trunk(nn.Module):
    """A residual convolutional network: pictures of shape (B, 3, side, side) in [0, 1] to vectors (B, 8 * width).

    Args:
        width: of its first layer.
        stem: side of the first layer's kernel; 5 halves the picture, 3 is for pictures of 64 pixels.
    """

    def __init__(self, width: int, stem: int = 5) -> None:
        super().__init__()
        widths = [width, width * 2, width * 4, width * 4]
        self.stem = nn.Conv2d(3, width, stem, stride=stem // 2, padding=stem // 2)
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
    """Reads attributes of the context and traits of the person.

    Args:
        width, stem: see `Trunk`.
        names: of what it reads; judges of earlier editions know fewer.
    """

    def __init__(self, width: int, stem: int = 5, names: Sequence[str] = tuple(CLASSES)) -> None:
        super().__init__()
        self.names = names
        self.trunk = Trunk(width, stem)
        self.hidden = nn.Linear(width * 8, 256)
        self.heads = nn.ModuleDict({_key(name): nn.Linear(256, len(CLASSES[name])) for name in names})

    def forward(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Logits of every attribute, shape (B, classes)."""
        x = F.silu(self.hidden(self.trunk(pixels)))
        return {name: self.heads[_key(name)](x) for name in self.names}


class IdentityJudge(nn.Module):
    """Unit vectors of shape (B, 128), close for pictures of one person whatever the context."""

    def __init__(self, width: int, stem: int = 5) -> None:
        super().__init__()
        self.trunk = Trunk(width, stem)
        self.out = nn.Sequential(nn.Linear(width * 8, 256), nn.SiLU(), nn.Linear(256, EMBEDDING))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.out(self.trunk(pixels)).float(), dim=-1)


class Judges:
    """Both judges, from a folder.

    Args:
        folder: holds the two files that `save_judge` wrote, and that of `save_readable`.
    """

    def __init__(self, folder: Path) -> None:
        weights = _read(folder / _ATTRIBUTES)
        names = [name for name in CLASSES if f"heads.{_key(name)}.weight" in weights]
        self.attribute = _load(AttributeJudge(*_trunk_of(weights), names), weights)
        self.folder = folder
        weights = _read(folder / _IDENTITIES)
        self.identity = _load(IdentityJudge(*_trunk_of(weights)), weights)

    @cached_property
    def readable(self) -> dict[str, list[str]]:
        """Of each style, the traits that the judge of attributes can be believed about; see `readable_traits`."""
        return json.loads((self.folder / _READABLE).read_text(encoding="utf-8"))

    @torch.inference_mode()
    def attributes(self, images: Sequence[Image.Image]) -> list[dict[str, str]]:
        """What each picture shows: every attribute and trait by its most likely name."""
        logits = self.attribute(_pixels(images))
        best = {name: values.argmax(1).tolist() for name, values in logits.items()}
        return [{name: CLASSES[name][indices[i]] for name, indices in best.items()} for i in range(len(images))]

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


def save_judge(judge: AttributeJudge | IdentityJudge, folder: Path) -> None:
    """Write one judge in float16."""
    folder.mkdir(parents=True, exist_ok=True)
    name = _ATTRIBUTES if isinstance(judge, AttributeJudge) else _IDENTITIES
    save_file({key: value.half().contiguous() for key, value in judge.state_dict().items()}, folder / name)


def save_readable(readable: Mapping[str, Sequence[str]], folder: Path) -> None:
    """Write what `readable_traits` found."""
    (folder / _READABLE).write_text(json.dumps(readable, indent=2) + "\n", encoding="utf-8")


def _key(name: str) -> str:
    return name.replace(" ", "_")


def _read(path: Path) -> dict[str, torch.Tensor]:
    return {key: value.float() for key, value in load_file(path).items()}


def _trunk_of(weights: dict[str, torch.Tensor]) -> tuple[int, int]:
    """Width and stem."""
    width, _, stem, _ = weights["trunk.stem.weight"].shape
    return width, stem


def _load(judge: Judge, weights: dict[str, torch.Tensor]) -> Judge:
    judge.load_state_dict(weights)
    return judge.eval().requires_grad_(False)


def _pixels(images: Sequence[Image.Image]) -> torch.Tensor:
    return to_pixels(torch.from_numpy(np.stack([np.asarray(image.convert("RGB")) for image in images])))
