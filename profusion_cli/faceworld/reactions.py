"""How the columns of the metric `faceworld` react to what they are for, on the renderer's own pictures.

Nothing is drawn by a model here: a true picture is damaged on purpose, so that a column that does not fall is seen.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter

from profusion_cli.evaluation.faceworld import FaceWorldJudges
from profusion_cli.evaluation.metrics import Judged
from profusion_cli.evaluation.statistics import FeatureSet, kernel_distance
from profusion_cli.evaluation.study.subjects import SIDE, other_pictures, reference_photo, unasked_traits
from profusion_cli.faceworld.damage import KINDS, Scene
from profusion_cli.faceworld.drawing.pose import random_pose
from profusion_cli.faceworld.measure import STRENGTHS
from profusion_cli.faceworld.world import SPLITS, asked_context, identity, with_traits

PROMPTS: tuple[dict[str, str], ...] = (
    {"place": "beach"},
    {"style": "anime"},
    {"headwear": "crown"},
    {"clothes": "suit", "framing": "half-length"},
)


def reactions(judges: Path, people: range, split: str = "test") -> dict[str, dict[str, float]]:
    """Means of every column, of true pictures and of the same ones spoilt in ways that each are for some columns.

    Args:
        judges: their folder.
        people: their numbers in the split, at least 3; each is drawn once for every one of `PROMPTS`.
        split: of whom.

    Returns:
        By how pictures were spoilt, and by column.
    """
    metric = FaceWorldJudges({"folder": str(judges)}, torch.device("cpu"))
    (distance,) = metric.distances
    scores: dict[str, list[Mapping[str, float | None]]] = {name: [] for name in _SPOILT}
    own: dict[str, dict[str, np.ndarray]] = {name: {} for name in _SPOILT}
    true: dict[str, np.ndarray] = {}
    for seed in SPLITS[split][people.start : people.stop]:
        asked = [_true(seed, asks) for asks in PROMPTS]
        true[str(seed)] = np.stack(distance.features([other for one in asked for other in one.others]))
        for name, spoil in _SPOILT.items():
            judged = [
                replace(one, picture=spoil(_scene(seed, one.asks), seed, following.asks))
                for one, following in zip(asked, [*asked[1:], asked[0]], strict=True)
            ]
            scores[name] += metric.score(judged)
            own[name][str(seed)] = np.stack(distance.features([one.picture for one in judged]))
    references = FeatureSet(true)
    return {
        name: {
            **_means(metric.columns, scores[name]),
            distance.column: kernel_distance(FeatureSet(own[name]), references).mean,
        }
        for name in _SPOILT
    }


def _true(seed: int, asks: Mapping[str, str]) -> Judged:
    """A true picture of what a prompt asks for, with all that it is judged by."""
    others, traits = other_pictures(seed, asks), unasked_traits(seed, asks)
    return Judged(_picture(_scene(seed, asks)), reference_photo(seed), "", asks, others, traits)


def _means(columns: Sequence[str], scores: Sequence[Mapping[str, float | None]]) -> dict[str, float]:
    values = {column: [score[column] for score in scores if score[column] is not None] for column in columns}
    return {column: float(np.mean(of)) for column, of in values.items() if of}


_Spoil = Callable[[Scene, int, Mapping[str, str]], Image.Image]
"""Of a scene, who is on it, and what another prompt asks for, the picture that is judged."""


def _scene(seed: int, asks: Mapping[str, str]) -> Scene:
    pose = random_pose(random.Random(f"reaction {seed} {sorted(asks.items())}"))
    return Scene(identity(seed), asked_context(asks), pose, SIDE)


def _damaged(kind: str, strength: float) -> _Spoil:
    def spoil(scene: Scene, _: int, __: Mapping[str, str]) -> Image.Image:
        return Image.fromarray(KINDS[kind](scene, random.Random(f"{kind} {scene.pose}"), strength))

    return spoil


def _without(trait: str) -> _Spoil:
    def spoil(scene: Scene, _: int, __: Mapping[str, str]) -> Image.Image:
        return _picture(replace(scene, who=with_traits(scene.who, {trait: "none"})))

    return spoil


def _picture(scene: Scene) -> Image.Image:
    return Image.fromarray(scene.picture)


_SPOILT: dict[str, _Spoil] = {
    "true pictures": lambda scene, _, __: _picture(scene),
    "of what another prompt asks for": lambda scene, _, asks: _picture(replace(scene, context=asked_context(asks))),
    "the tuned photo": lambda _, seed, __: reference_photo(seed),
    "of somebody else": lambda scene, seed, _: _picture(replace(scene, who=identity(-1 - seed))),  # who is in no split
    "without glasses": _without("glasses"),
    "without beard": _without("beard"),
    "blurred": lambda scene, _, __: _picture(scene).filter(ImageFilter.GaussianBlur(1)),
    **{f"two framings blended, {strength}": _damaged("blended", strength) for strength in STRENGTHS},
    **{f"parts doubled, {strength}": _damaged("doubled", strength) for strength in STRENGTHS},
}
