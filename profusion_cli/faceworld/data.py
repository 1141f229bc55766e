"""The pictures that the networks of the face world learn from, drawn as they are needed."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from profusion_cli.faceworld.drawing.face import draw_face, head_mask
from profusion_cli.faceworld.drawing.pose import Pose, random_pose
from profusion_cli.faceworld.world import SPLITS, Context, Identity, context, identity

PER_IDENTITY = 4


@dataclass(frozen=True)
class Example:
    """One picture by its number: the same number is always the same picture."""

    who: Identity
    context: Context
    person: int


def example(number: int, split: str = "train") -> Example:
    """Who is on picture `number`, and in which context; `PER_IDENTITY` pictures show one person."""
    person = number // PER_IDENTITY
    return Example(identity(SPLITS[split][person]), context(random.Random(f"context {split} {number}")), person)


def draw_example(number: int, split: str = "train", side: int = 64) -> np.ndarray:
    """Picture `number` as uint8 of shape (side, side, 3)."""
    shown = example(number, split)
    return np.asarray(draw_face(shown.who, shown.context, _pose(number, split), side))


def head_of(number: int, split: str = "train", side: int = 64) -> np.ndarray:
    """Where the head is on picture `number`, boolean, shape (side, side)."""
    shown = example(number, split)
    return head_mask(shown.who, shown.context, _pose(number, split), side)


def _pose(number: int, split: str) -> Pose:
    return random_pose(random.Random(f"pose {split} {number}"))


class Stream(torch.utils.data.Dataset):
    """The training pictures of a stage: those of each step are drawn as they are needed, and none is shown twice.

    An item is the pictures of one step, uint8 of shape (pictures, side, side, 3); `numbers` says which they are.

    Args:
        pictures: in each step.
        side: of the pictures in pixels.
        each: how many pictures of each person, side by side.
    """

    def __init__(self, pictures: int, side: int, each: int = 1) -> None:
        self.pictures, self.side, self.each = pictures, side, each

    def numbers(self, step: int) -> list[int]:
        """The numbers of the pictures of this step."""
        people = range(step * self.pictures // self.each, (step + 1) * self.pictures // self.each)
        return [person % len(SPLITS["train"]) * PER_IDENTITY + of for person in people for of in range(self.each)]

    def __getitem__(self, step: int) -> np.ndarray:
        return np.stack([draw_example(number, side=self.side) for number in self.numbers(step)])

    def steps(self, start: int, stop: int) -> Iterator[torch.Tensor]:
        """The pictures of these steps, drawn ahead in processes of their own."""
        workers = min(max((os.cpu_count() or 1) - 1, 1), 14)
        loader = torch.utils.data.DataLoader(
            self, batch_size=None, sampler=range(start, stop), num_workers=workers, prefetch_factor=8
        )
        return iter(loader)


def to_pixels(pictures: torch.Tensor) -> torch.Tensor:
    """uint8 of shape (B, side, side, 3) as float32 of shape (B, 3, side, side), in [0, 1]."""
    return pictures.permute(0, 3, 1, 2).float() / 255


def draw_portraits(folder: Path, count: int, side: int) -> Path:
    """Pictures for PromptNet: two photos each of people of the training split, and the file that groups them.

    What is in the folder already is taken as it is, so that each number of pictures needs a folder of its own.
    """
    listing = folder / "portraits.jsonl"
    if not listing.exists():
        folder.mkdir(parents=True, exist_ok=True)
        lines = []
        for number in range(count):
            person = number // 2
            pose = random_pose(random.Random(f"portrait {number}"))
            draw_face(identity(SPLITS["train"][person]), Context(), pose, side).save(folder / f"{number:06d}.png")
            lines.append(json.dumps({"file_name": f"{number:06d}.png", "identity": str(person)}))
        listing.write_text("\n".join(lines), encoding="utf-8")
    return listing
