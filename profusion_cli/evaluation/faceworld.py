"""The face world's judges as metrics: networks of their own, which nothing is conditioned on or trained with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from profusion_cli.evaluation.metrics import Distance, Judged, Remembered, loading, text_option
from profusion_cli.faceworld.judges import CLASSES, Judges
from profusion_cli.faceworld.world import TRAITS, Context, asked_context, named
from profusion_cli.presets import local_path

ASKED, DETAIL = "adherence: ", "details: "


class FaceWorldJudges:
    """What the face world's judges see in a picture, who know the person and what was asked for.

    - `adherence`: the share of what a prompt asks for that is seen, in [0, 1]; `adherence: place` and so on, of each
      thing that can be asked for, 0 or 1.
    - `identity`: the mean similarity to other true pictures of the person in what the prompt asks for, in [-1, 1];
      where there are none, to the photo.
    - `copying`: the similarity to the photo that was tuned on, less that; the renderer's own pictures have its zero.
    - `carried`: of what is not everyday about the photo, such as its place, and is not asked for, the share that is
      seen all the same, in [0, 1].
    - `details`: of the traits that the person has, and that can be read in this style and context, the share that is
      read right, in [0, 1]; `details: glasses` and so on, of each trait, 0 or 1. A trait that the prompt asks for, or
      does away with, is no detail of the person.
    - `structure`: how likely the picture shows one well-formed head of the right size on its shoulders, in [0, 1].
    - `KID`: the kernel distance of all pictures of a method from those other true ones, in the features of the judge of
      attributes.

    Args:
        options: `folder` of the judges, by default the shipped ones.
        device: unused; the judges are small.

    Raises:
        ConfigError: a folder that is no text.
    """

    name = "faceworld"
    columns = (
        *("adherence", *(ASKED + name for name in CLASSES)),
        *("identity", "copying", "carried", "structure"),
        *("details", *(DETAIL + trait for trait in TRAITS)),
    )

    def __init__(self, options: Mapping[str, Any], device: torch.device) -> None:
        self.folder = Path(local_path(text_option(options, "folder") or "shipped:faceworld/judges"))
        self.weights = (self.folder,)
        self._embeddings = Remembered(lambda images: self.judges.embeddings(images), batch_size=64)
        self._of_photos = Remembered(lambda images: self.judges.attributes(images), batch_size=64)
        features = Remembered(lambda images: self.judges.features(images).numpy(), batch_size=64)
        self.distances = (Distance("KID", features),)

    @cached_property
    def judges(self) -> Judges:
        """Loaded when they first judge."""
        with self._loading():
            return Judges(self.folder)

    @cached_property
    def readable(self) -> dict[str, list[str]]:
        """Of each style, the traits that the judge of attributes can be believed about."""
        with self._loading():
            return self.judges.readable

    def _loading(self) -> AbstractContextManager[None]:
        hint = "Name their folder with the metric's option 'folder'."
        return loading(f"The face world's judges ({self.folder})", hint)

    def score(self, pictures: Sequence[Judged]) -> list[dict[str, float | None]]:
        """Of each picture; None where nothing was asked for, or nothing can be compared or read.

        Raises:
            UnavailableError: the judges are not there, or damaged.
        """
        images = [item.picture for item in pictures]
        seen, structure = self.judges.attributes(images), self.judges.structure(images)
        photos = self._of_photos([item.photo for item in pictures])
        return [
            {
                **_adherence(found, item),
                **self._identity(item),
                "carried": _carried(found, in_photo, item),
                "structure": intact,
                **self._details(found, item),
            }
            for found, in_photo, intact, item in zip(seen, photos, structure, pictures, strict=True)
        ]

    def _identity(self, item: Judged) -> dict[str, float | None]:
        # apart, since rounding depends on the batch, and what is remembered on what was judged before
        (picture,), (photo,) = self._embeddings([item.picture]), self._embeddings([item.photo])
        others = self._embeddings(item.others)
        to_photo = float(photo @ picture)
        if not others:
            return {"identity": to_photo, "copying": None}
        identity = float(torch.stack(others).mean(0) @ picture)
        return {"identity": identity, "copying": to_photo - identity}

    def _details(self, found: Mapping[str, str], item: Judged) -> dict[str, float | None]:
        asked = asked_context(item.asks)
        readable = [name for name in self.readable[asked.style] if name not in asked.hidden()]
        hits = {name: float(found[name] == value) for name, value in named(item.traits).items() if name in readable}
        return {"details": _share(hits), **{DETAIL + trait: hits.get(trait) for trait in TRAITS}}


def _adherence(found: Mapping[str, str], item: Judged) -> dict[str, float | None]:
    hits = {name: float(found[name] == value) for name, value in item.asks.items()}
    return {"adherence": _share(hits), **{ASKED + name: hits.get(name) for name in CLASSES}}


def _carried(found: Mapping[str, str], in_photo: Mapping[str, str], item: Judged) -> float | None:
    everyday = Context().attributes().items()
    special = [name for name, value in everyday if in_photo[name] != value and name not in item.asks]
    return _share({name: float(found[name] == in_photo[name]) for name in special})


def _share(hits: Mapping[str, float]) -> float | None:
    return sum(hits.values()) / len(hits) if hits else None
