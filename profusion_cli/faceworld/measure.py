"""How far the judges can be trusted, on the renderer's own pictures of people whom no network has seen."""

from __future__ import annotations

import itertools
import random
from collections import defaultdict
from dataclasses import replace

import numpy as np
from PIL import Image

from profusion_cli.faceworld.damage import KINDS, UNSEEN, draw_damaged, faded
from profusion_cli.faceworld.data import PER_IDENTITY, draw_example, example
from profusion_cli.faceworld.drawing.face import draw_face
from profusion_cli.faceworld.drawing.pose import random_pose
from profusion_cli.faceworld.judges import Judges
from profusion_cli.faceworld.world import SPLITS, STYLES, context, identity, named

BATCH = 64
BELIEVED = 0.85
"""A trait is read in a style where it is read right in so many of the renderings of people who have it."""
STRENGTHS = (0.25, 0.5, 0.75, 1.0)
FADES = (0.0, 0.25, 0.5, 0.75, 1.0)


def roc_auc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Area under the ROC curve: how often a positive score is above a negative one; ties count half."""
    below = np.searchsorted(np.sort(negative), positive, "left") + np.searchsorted(np.sort(negative), positive, "right")
    return float(below.mean() / (2 * len(negative)))


def check_judges(judges: Judges, people: range, split: str = "test", side: int = 64) -> dict[str, object]:
    """Accuracy of the judge of attributes, and how well the judge of identity tells people apart.

    Every person is drawn in `PER_IDENTITY` random contexts.

    Args:
        judges: all three.
        people: their numbers in the split, at least 2.
        split: of whom.
        side: of the pictures in pixels.

    Returns:
        `accuracy` by attribute, and by trait where it can be seen; `reading`: by style and trait, the accuracy on
        people who have it; `same` and `different`: mean similarity of two pictures of one person and of two; `auc` of
        telling these apart; `retrieval`: how often the nearest other picture is of the same person;
        `structure`: see `check_structure`.
    """
    numbers = range(people.start * PER_IDENTITY, people.stop * PER_IDENTITY)
    shown = [example(number, split) for number in numbers]
    images = [Image.fromarray(draw_example(number, split, side)) for number in numbers]
    batches = [images[start : start + BATCH] for start in range(0, len(images), BATCH)]
    seen = [found for batch in batches for found in judges.attributes(batch)]
    vectors = np.concatenate([judges.embeddings(batch).numpy() for batch in batches])
    right: dict[str, list[bool]] = defaultdict(list)
    for found, one in zip(seen, shown, strict=True):
        for name, value in {**one.context.attributes(), **one.who.traits()}.items():
            if name not in one.context.hidden():
                right[name].append(found[name] == value)
    similarity = vectors @ vectors.T
    person = np.array([one.person for one in shown])
    same = person[:, None] == person[None]
    pair = np.triu(np.ones_like(same), 1)
    np.fill_diagonal(similarity, -1)
    return {
        "pictures": len(images),
        "accuracy": {name: float(np.mean(values)) for name, values in right.items()},
        "reading": reading(judges, people, split, side),
        "same": float(similarity[same & pair].mean()),
        "different": float(similarity[~same & pair].mean()),
        "auc": roc_auc(similarity[same & pair], similarity[~same & pair]),
        "retrieval": float(np.mean(person[similarity.argmax(1)] == person)),
        "structure": check_structure(judges, people, split, side),
    }


def reading(judges: Judges, people: range, split: str = "validation", side: int = 64) -> dict[str, dict[str, float]]:
    """By style and trait, in how many pictures of people who have the trait it is read right, where it can be seen.

    Every person is drawn once in each style, else in a random context.

    Args:
        judges, people, split, side: see `check_judges`.
    """
    found: dict[str, dict[str, float]] = {}
    for style in STYLES:
        right: dict[str, list[bool]] = defaultdict(list)
        for start in range(people.start, people.stop, BATCH):
            seeds = SPLITS[split][start : min(start + BATCH, people.stop)]
            rngs = [random.Random(f"reading {style} {seed}") for seed in seeds]
            contexts = [replace(context(rng), style=style) for rng in rngs]
            images = [
                draw_face(identity(seed), shown, random_pose(rng), side)
                for seed, shown, rng in zip(seeds, contexts, rngs, strict=True)
            ]
            for seed, shown, seen in zip(seeds, contexts, judges.attributes(images), strict=True):
                for name, value in named(identity(seed).traits()).items():
                    if name not in shown.hidden():
                        right[name].append(seen[name] == value)
        found[style] = {name: float(np.mean(values)) for name, values in right.items()}
    return found


def readable_traits(found: dict[str, dict[str, float]]) -> dict[str, list[str]]:
    """Of each style, the traits that are read right often enough, from `reading`."""
    return {style: [name for name, share in shares.items() if share >= BELIEVED] for style, shares in found.items()}


def check_structure(judges: Judges, people: range, split: str = "test", side: int = 64) -> dict[str, object]:
    """How well the judge of structure tells pictures from damaged ones, and how it falls as damage comes in.

    Every person is drawn intact, and in every kind of damage at each of `STRENGTHS`, each time in the same context.

    Args:
        judges, people, split, side: as of `check_judges`.

    Returns:
        `intact`: mean score of intact pictures; `auc`: by kind of damage and strength; `unseen`: the kinds that it was
        not taught; `fading`: mean score by how far the pictures are cross-faded into the same ones at full damage, the
        kinds by turns.
    """
    numbers = range(people.start * PER_IDENTITY, people.stop * PER_IDENTITY, PER_IDENTITY)
    whole = [draw_example(number, split, side) for number in numbers]
    intact = _structure(judges, whole)
    auc: dict[str, dict[str, float]] = {kind: {} for kind in KINDS}
    gross: dict[str, list[np.ndarray]] = {}
    for kind in KINDS:
        for strength in STRENGTHS:
            gross[kind] = [draw_damaged(number, kind, strength, split, side) for number in numbers]
            auc[kind][str(strength)] = roc_auc(intact, _structure(judges, gross[kind]))
    into = [pictures[person] for person, pictures in zip(range(len(people)), itertools.cycle(gross.values()))]
    fading = {
        str(part): float(_structure(judges, [faded(*pair, part) for pair in zip(whole, into, strict=True)]).mean())
        for part in FADES
    }
    return {
        "intact": float(intact.mean()),
        "auc": auc,
        "unseen": list(UNSEEN),
        "fading": fading,
    }


def _structure(judges: Judges, pictures: list[np.ndarray]) -> np.ndarray:
    images = [Image.fromarray(picture) for picture in pictures]
    batches = [images[start : start + BATCH] for start in range(0, len(images), BATCH)]
    return np.array([score for batch in batches for score in judges.structure(batch)])
