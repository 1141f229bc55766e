"""The pictures that the networks of the face world learn from, drawn once into one array."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from profusion_cli.faceworld.drawing.face import draw_face, head_mask
from profusion_cli.faceworld.drawing.pose import Pose, random_pose
from profusion_cli.faceworld.world import SPLITS, Context, Identity, context, identity
from profusion_cli.files import atomic_output, locked, writing

PER_IDENTITY = 4
CHUNK = 500
DRAWING = 1800.0
"""Seconds that a process waits for another one that draws the same portraits."""


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
    return np.asarray(draw_face(shown.who, shown.context, pose_of(number, split), side))


def head_of(number: int, split: str = "train", side: int = 64) -> np.ndarray:
    """Where the head is on picture `number`, boolean, shape (side, side)."""
    shown = example(number, split)
    return head_mask(shown.who, shown.context, pose_of(number, split), side)


def pose_of(number: int, split: str = "train") -> Pose:
    """How the person stands on picture `number`, and in which light."""
    return random_pose(random.Random(f"pose {split} {number}"))


def _draw_chunk(job: tuple[int, int, int]) -> np.ndarray:
    start, stop, side = job
    return np.stack([draw_example(number, side=side) for number in range(start, stop)])


def pictures(work: Path, count: int, side: int, say: Callable[[str], None]) -> np.ndarray:
    """The first `count` training pictures, drawn at the first call, uint8 of shape (count, side, side, 3)."""
    path = work / "train.npy"
    if not path.exists():
        jobs = [(start, min(start + CHUNK, count), side) for start in range(0, count, CHUNK)]
        with ProcessPoolExecutor(min(os.cpu_count() or 1, 16)) as pool:
            drawn = np.concatenate(list(pool.map(_draw_chunk, jobs)))
        with atomic_output(path) as file:
            np.save(file, drawn)
        say(f"Drew {count} pictures.")
    return np.load(path, mmap_mode="r")


class Stream(torch.utils.data.Dataset):
    """The training pictures of a judge: those of each step are drawn as they are needed, and none is shown twice.

    An item is the pictures of one step, uint8 of shape (pictures, side, side, 3); `numbers` says which they are.

    Args:
        pictures: in each step.
        side: of the pictures in pixels.
    """

    def __init__(self, pictures: int, side: int) -> None:
        self.pictures, self.side = pictures, side

    def numbers(self, step: int) -> list[int]:
        """The numbers of the pictures of this step, each of another person."""
        return [person * PER_IDENTITY for person in range(step * self.pictures, (step + 1) * self.pictures)]

    def __getitem__(self, step: int) -> np.ndarray:
        return np.stack([draw_example(number, side=self.side) for number in self.numbers(step)])

    def steps(self, start: int, stop: int) -> Iterator[torch.Tensor]:
        """The pictures of these steps, drawn ahead in processes of their own."""
        workers = min(max((os.cpu_count() or 1) - 1, 1), 14)
        loader = torch.utils.data.DataLoader(
            self, batch_size=None, sampler=range(start, stop), num_workers=workers, prefetch_factor=8
        )
        return iter(loader)


def pixels(array: np.ndarray, numbers: torch.Tensor) -> torch.Tensor:
    """Chosen pictures as float32 of shape (B, 3, side, side), in [0, 1]."""
    return to_pixels(torch.from_numpy(array[numbers.numpy()]))


def to_pixels(pictures: torch.Tensor) -> torch.Tensor:
    """uint8 of shape (B, side, side, 3) as float32 of shape (B, 3, side, side), in [0, 1]."""
    return pictures.permute(0, 3, 1, 2).float() / 255


def draw_portraits(folder: Path, count: int, side: int) -> Path:
    """Pictures for PromptNet: two photos each of people of the training split, and the file that groups them.

    What is in the folder already is taken as it is, so that each number of pictures needs a folder of its own.

    Raises:
        OutputError: it cannot be written, or another process is at it and does not come to an end.
    """
    listing, busy = folder / "portraits.jsonl", f"Another process is drawing into '{folder}'."
    if listing.exists():
        return listing
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder, busy, "Wait for its end.", wait=DRAWING):
            if not listing.exists():
                _draw_portraits(folder, listing, count, side)
    return listing


def _draw_portraits(folder: Path, listing: Path, count: int, side: int) -> None:
    lines = []
    for number in range(count):
        person = number // 2
        pose = random_pose(random.Random(f"portrait {number}"))
        draw_face(identity(SPLITS["train"][person]), Context(), pose, side).save(folder / f"{number:06d}.png")
        lines.append(json.dumps({"file_name": f"{number:06d}.png", "identity": str(person)}))
    with atomic_output(listing) as file:
        file.write("\n".join(lines).encode())
