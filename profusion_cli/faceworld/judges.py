"""Judges of pictures of the face world. They measure; nothing is ever conditioned on them or trained with them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

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
_ATTRIBUTES, _IDENTITIES = "attributes.safetensors", "identities.safetensors"


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
        self.heads = nn.ModuleDict(
            {name.replace(" ", "_"): nn.Linear(256, len(values)) for name, values in CLASSES.items()}
        )

    def forward(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Logits of every attribute, shape (B, classes)."""
        x = F.silu(self.hidden(self.trunk(pixels)))
        return {name: self.heads[name.replace(" ", "_")](x) for name in CLASSES}


class IdentityJudge(nn.Module):
    """Unit vectors of shape (B, 128), close for pictures of one person whatever the context."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.trunk = Trunk(width)
        self.out = nn.Sequential(nn.Linear(width * 8, 256), nn.SiLU(), nn.Linear(256, EMBEDDING))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.out(self.trunk(pixels)).float(), dim=-1)


class Judges:
    """Both judges, from a folder.

    Args:
        folder: holds the two files that `save` wrote.
    """

    def __init__(self, folder: Path) -> None:
        self.attribute = _load(AttributeJudge, folder / _ATTRIBUTES)
        self.identity = _load(IdentityJudge, folder / _IDENTITIES)

    @torch.inference_mode()
    def attributes(self, images: Sequence[Image.Image]) -> list[dict[str, str]]:
        """What each picture shows: every attribute and trait by its most likely name."""
        logits = self.attribute(_pixels(images))
        best = {name: values.argmax(1).tolist() for name, values in logits.items()}
        return [{name: CLASSES[name][best[name][i]] for name in CLASSES} for i in range(len(images))]

    @torch.inference_mode()
    def embeddings(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Unit vectors of shape (pictures, 128); the identity similarity of two is their dot product."""
        return self.identity(_pixels(images))


def save_judge(judge: AttributeJudge | IdentityJudge, folder: Path) -> None:
    """Write one judge in float16."""
    folder.mkdir(parents=True, exist_ok=True)
    name = _ATTRIBUTES if isinstance(judge, AttributeJudge) else _IDENTITIES
    save_file({key: value.half().contiguous() for key, value in judge.state_dict().items()}, folder / name)


def _load(cls: type, path: Path) -> nn.Module:
    weights = {key: value.float() for key, value in load_file(path).items()}
    judge = cls(weights["trunk.stem.weight"].shape[0])
    judge.load_state_dict(weights)
    return judge.eval().requires_grad_(False)


def _pixels(images: Sequence[Image.Image]) -> torch.Tensor:
    return to_pixels(torch.from_numpy(np.stack([np.asarray(image.convert("RGB")) for image in images])))
