"""The face world's judges as metrics: networks of their own, which nothing is conditioned on or trained with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from profusion_cli.evaluation.metrics import Judged
from profusion_cli.faceworld.judges import Judges
from profusion_cli.presets import local_path


class FaceWorldJudges:
    """Adherence, the share of what a prompt asks for that the judge of attributes sees, in [0, 1]; and identity, the
    similarity to the photo by the judge of identity, in [-1, 1].

    Args:
        options: `folder` of the judges; the shipped ones where there is none.
        device: unused; the judges are small.
    """

    name = "faceworld"
    columns = ("adherence", "identity")

    def __init__(self, options: Mapping[str, Any], device: torch.device) -> None:
        self.judges = Judges(Path(local_path(options.get("folder", "shipped:faceworld/judges"))))

    def score(self, pictures: Sequence[Judged]) -> list[dict[str, float | None]]:
        """Of each picture; adherence is None where nothing was asked for."""
        vectors = self.judges.embeddings([item.picture for item in pictures])
        photos = self.judges.embeddings([item.photo for item in pictures])
        seen = self.judges.attributes([item.picture for item in pictures])
        scores: list[dict[str, float | None]] = []
        for number, item in enumerate(pictures):
            hits = [seen[number][name] == value for name, value in item.asks.items()]
            adherence = sum(hits) / len(hits) if hits else None
            scores.append({"adherence": adherence, "identity": float(vectors[number] @ photos[number])})
        return scores
