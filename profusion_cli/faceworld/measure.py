"""How far the judges can be trusted, on the renderer's own pictures of people whom no network has seen."""

from __future__ import annotations

import numpy as np
from PIL import Image

from profusion_cli.faceworld.data import PER_IDENTITY, draw_example, example
from profusion_cli.faceworld.judges import CLASSES, Judges

BATCH = 64


def roc_auc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Area under the ROC curve: how often a positive score is above a negative one; ties count half."""
    below = np.searchsorted(np.sort(negative), positive, "left") + np.searchsorted(np.sort(negative), positive, "right")
    return float(below.mean() / (2 * len(negative)))


def check_judges(judges: Judges, people: int, split: str = "test", side: int = 64) -> dict[str, object]:
    """Accuracy of the judge of attributes, and how well the judge of identity tells people apart.

    Every person is drawn in `PER_IDENTITY` random contexts.

    Args:
        judges: both of them.
        people: how many, at least 2.
        split: of whom.
        side: of the pictures in pixels.

    Returns:
        `accuracy` by attribute; `same` and `different`: mean similarity of two pictures of one person and of two;
        `auc` of telling these apart; `retrieval`: how often the nearest other picture is of the same person.
    """
    numbers = range(people * PER_IDENTITY)
    images = [Image.fromarray(draw_example(number, split, side)) for number in numbers]
    batches = [images[start : start + BATCH] for start in range(0, len(images), BATCH)]
    seen = [found for batch in batches for found in judges.attributes(batch)]
    vectors = np.concatenate([judges.embeddings(batch).numpy() for batch in batches])
    shown = [example(number, split) for number in numbers]
    truth = [{**one.context.attributes(), **one.who.traits()} for one in shown]
    accuracy = {
        name: float(np.mean([one[name] == two[name] for one, two in zip(seen, truth, strict=True)])) for name in CLASSES
    }
    similarity = vectors @ vectors.T
    person = np.array([one.person for one in shown])
    same = person[:, None] == person[None]
    pair = np.triu(np.ones_like(same), 1)
    np.fill_diagonal(similarity, -1)
    return {
        "pictures": len(images),
        "accuracy": accuracy,
        "same": float(similarity[same & pair].mean()),
        "different": float(similarity[~same & pair].mean()),
        "auc": roc_auc(similarity[same & pair], similarity[~same & pair]),
        "retrieval": float(np.mean(person[similarity.argmax(1)] == person)),
    }
