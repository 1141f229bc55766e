"""The face world's judges as metrics: networks of their own, which nothing is conditioned on or trained with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from profusion_cli.evaluation.metrics import Judged, loading, text_option
from profusion_cli.faceworld.judges import Judges
from profusion_cli.presets import local_path


class FaceWorldJudges:
    """Adherence, the share of what a prompt asks for that the judge of attributes sees, in [0, 1]; and identity, the
    similarity to the photo by the judge of identity, in [-1, 1].

    Args:
        options: `folder` of the judges, by default the shipped ones.
        device: unused; the judges are small.

    Raises:
        ConfigError: a folder that is no text.
    """

    name = "faceworld"
    columns = ("adherence", "identity")

    def __init__(self, options: Mapping[str, Any], device: torch.device) -> None:
        self.folder = Path(local_path(text_option(options, "folder") or "shipped:faceworld/judges"))
        self.weights = (self.folder,)

    @cached_property
    def judges(self) -> Judges:
        """Loaded when they first judge."""
        with loading(
            f"The face world's judges ({self.folder})", "Name their folder with the metric's option 'folder'."
        ):
            return Judges(self.folder)

    def score(self, pictures: Sequence[Judged]) -> list[dict[str, float | None]]:
        """Of each picture; adherence is None where nothing was asked for.

        Raises:
            UnavailableError: the judges are not there, or damaged.
        """
        vectors = self.judges.embeddings([item.picture for item in pictures])
        photos = self.judges.embeddings([item.photo for item in pictures])
        seen = self.judges.attributes([item.picture for item in pictures])
        scores: list[dict[str, float | None]] = []
        for number, item in enumerate(pictures):
            hits = [seen[number][name] == value for name, value in item.asks.items()]
            adherence = sum(hits) / len(hits) if hits else None
            scores.append({"adherence": adherence, "identity": float(vectors[number] @ photos[number])})
        return scores
