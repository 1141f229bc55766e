"""What judges pictures: the interface of a metric, the metrics there are, and what their adapters share.

Nothing heavy is imported here. An adapter is imported when its metric is made, and loads its model when it first
scores: of several models, one that cannot be had does not stop the others. The tables are those of the paper
(https://arxiv.org/abs/2305.13579).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from importlib import import_module
from itertools import islice
from statistics import fmean
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from profusion_cli.errors import ConfigError, UnavailableError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import torch
    from PIL import Image

FOUND, FOUND_IN_PHOTO = "face found", "face found in photo"
"""Ends of the names of columns that say, by 1 or 0, where there was a face to judge."""
RECONSTRUCTION, SECOND = "reconstruction: ", "second: "
"""Before the names of columns: of pictures of "a photo of S*" alone, and of the other one of two subjects."""
COST = "U"
"""A column that no metric judges: what a picture costs, in evaluations of the UNet."""
Item = TypeVar("Item", str, "Image.Image")
Feature = TypeVar("Feature")


@dataclass(frozen=True)
class Judged:
    """One picture to be judged.

    Args:
        picture: what was drawn, RGB.
        photo: of the subject, that was tuned on, RGB.
        text: the prompt with the class word in place of S*.
        asks: what must be seen; may be empty.
        others: other true pictures of the subject, RGB: of the face world, in the context that the prompt asks for; of
            others, held-out photos; may be empty.
        traits: of a person of the face world, by name; without those that the prompt changes.
    """

    picture: Image.Image
    photo: Image.Image
    text: str
    asks: Mapping[str, str] = field(default_factory=dict)
    others: Sequence[Image.Image] = ()
    traits: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Distance:
    """A column in which the pictures of a method are judged together: their kernel distance from true pictures.

    Args:
        column: its name.
        features: of RGB pictures, each of shape (width,), by the network in whose features they are compared.
        photos: files of true pictures by person, the same for all methods; empty: `others` of each picture judged.
    """

    column: str
    features: Callable[[Sequence[Image.Image]], Sequence[np.ndarray]]
    photos: Mapping[str, Sequence[Path]] = field(default_factory=dict)


class Metric(Protocol):
    """One model that judges.

    `name` is unique among all metrics; `columns` are the names of its scores, and `distances` the columns that judge
    the pictures of a method together; `weights` are the files and folders of this machine that the metric's options
    name, and that the scores depend on.
    """

    name: str
    columns: tuple[str, ...]
    distances: tuple[Distance, ...]
    weights: Sequence[Path]

    def score(self, pictures: Sequence[Judged]) -> list[dict[str, float | None]]:
        """Each picture's scores by column; None where there was nothing to judge.

        Raises:
            UnavailableError: the model or its library cannot be had.
        """


@dataclass(frozen=True)
class MetricKind:
    """What a name in a study file stands for.

    Args:
        factory: `module:attribute` in this package of what makes it: `(options, device)` to a metric, or to a list.
        options: names of its options.
        description: one line.
        likeness: whether it compares with pictures of the subject: others than the photo where there are any.
    """

    factory: str
    options: tuple[str, ...]
    description: str
    likeness: bool = False


METRICS: dict[str, MetricKind] = {
    "clip": MetricKind(
        "clip:clip_metrics", ("folder", "models"), "image-prompt similarity by nine CLIP models (Table 1)"
    ),
    "faces": MetricKind(
        "faces:face_metrics", ("detector", "folder", "models"), "identity by seven models (Table 2)", likeness=True
    ),
    "adaface": MetricKind(
        "faces:adaface_metrics", ("detector", "weights"), "identity by AdaFace, IR-101 (Table 2)", likeness=True
    ),
    "dino": MetricKind(
        "dino:dino_metrics", ("folder", "models"), "similarity to photos of what is no face, by DINO", likeness=True
    ),
    "realism": MetricKind(
        "realism:realism_metrics", ("folder", "models", "weights"), "kernel distance from a folder of photographs"
    ),
    "faceworld": MetricKind(
        "faceworld:FaceWorldJudges",
        ("folder",),
        "adherence, identity and kernel distance by the face world's judges",
        likeness=True,
    ),
}
DESCRIPTIONS = {name: kind.description for name, kind in METRICS.items()}


def make_metrics(name: str, options: Mapping[str, Any], device: torch.device) -> list[Metric]:
    """The metrics behind a name in a study file, one for each model, which is loaded when it first scores.

    Args:
        name: one of `METRICS`.
        options: of this metric, as in the study file.
        device: that models run on.

    Raises:
        ConfigError: an unknown metric, option or value of an option, with the nearest name.
    """
    if name not in METRICS:
        raise unknown("metric", name, METRICS)
    kind = METRICS[name]
    for option in options:
        if option not in kind.options:
            raise unknown(f"option of the metric '{name}'", option, kind.options)
    module, _, attribute = kind.factory.partition(":")
    made = getattr(import_module(f"{__package__}.{module}"), attribute)(options, device)
    return made if isinstance(made, list) else [made]


def unknown(what: str, name: object, known: Collection[str]) -> ConfigError:
    """The error that says that there is no such thing, and what there is."""
    near = difflib.get_close_matches(str(name), known, n=1)
    return ConfigError(
        f"There is no {what} '{name}'.",
        (f"Did you mean '{near[0]}'? " if near else "") + f"There are {', '.join(known)}.",
    )


def text_option(options: Mapping[str, Any], key: str) -> str | None:
    """An option that is a text, or None where it is not given.

    Raises:
        ConfigError: anything else.
    """
    value = options.get(key)
    if value is not None and not isinstance(value, str):
        raise ConfigError(f"The metric's option '{key}' is {value!r}, which is no text.", "Put it in quotes.")
    return value


def chosen_models(options: Mapping[str, Any], known: Collection[str]) -> list[str]:
    """The models that the option `models` lists, in its order; all where it is not given.

    Raises:
        ConfigError: no list, or an unknown model in it.
    """
    chosen = options.get("models", list(known))
    if not isinstance(chosen, list):
        raise ConfigError(f"The metric's option 'models' is {chosen!r}, which is no list.", "Put it in [brackets].")
    for model in chosen:
        if model not in known:
            raise unknown("model", model, known)
    return list(dict.fromkeys(chosen))


@contextmanager
def loading(what: str, hint: str) -> Iterator[None]:
    """Turn what a library raises while it loads something into an `UnavailableError`; lack of memory stays as it is."""
    from profusion_cli.runtime.device import is_out_of_memory

    try:
        yield
    except UnavailableError:
        raise
    except Exception as error:  # the libraries report damage and lack of a network by many types
        if is_out_of_memory(error):
            raise
        raise UnavailableError(f"{what} cannot be loaded: {' '.join(str(error).split())[:300]}", hint) from error


class Remembered(Generic[Item, Feature]):
    """Features of texts or of RGB pictures by their content: what occurs again is not computed again.

    Args:
        compute: the features of some items, in their order.
        batch_size: how many items at most `compute` is given at a time.
    """

    def __init__(self, compute: Callable[[list[Item]], Sequence[Feature]], batch_size: int = 16) -> None:
        self.compute, self.batch_size = compute, batch_size
        self._features: dict[str | bytes, Feature] = {}

    def __call__(self, items: Sequence[Item]) -> list[Feature]:
        """The feature of each item."""
        keys = [_content(item) for item in items]
        new = {key: item for key, item in zip(keys, items, strict=True) if key not in self._features}
        for first in range(0, len(new), self.batch_size):
            batch = list(new)[first : first + self.batch_size]
            self._features |= zip(batch, self.compute([new[key] for key in batch]), strict=True)
        return [self._features[key] for key in keys]


def _content(item: str | Image.Image) -> str | bytes:
    return item if isinstance(item, str) else sha256(repr(item.size).encode() + item.tobytes()).digest()


def compared_with(item: Judged) -> Sequence[Image.Image]:
    """The true pictures of the subject that likeness is measured by: others than the photo, where there are any."""
    return item.others or (item.photo,)


class Similarity:
    """A metric: the cosine of a feature of the picture and one of its text, or the mean cosine with those of the true
    pictures of its subject, in [-1, 1].

    Args:
        name: of the metric and of its column.
        features: of pictures, each of shape (width,), or None where a picture has none.
        others: likewise, of what the pictures are compared to.
        attribute: what that is: `text` of `Judged`, or `photo` for what `compared_with` gives.
        failure: the score of a picture that has no feature where one of the others has one.
        weights: files and folders of this machine that the options name.
    """

    distances: tuple[Distance, ...] = ()

    def __init__(
        self,
        name: str,
        features: Remembered,
        others: Remembered,
        attribute: str,
        failure: float | None = None,
        weights: Sequence[Path] = (),
    ) -> None:
        self.name, self.columns, self.weights = name, (name,), weights
        self.features, self.others, self.attribute, self.failure = features, others, attribute, failure

    def score(self, pictures: Sequence[Judged]) -> list[dict[str, float | None]]:
        """Of each picture; None where nothing that it is compared to has a feature.

        Raises:
            UnavailableError: the model or its library cannot be had.
        """
        features = self.features([item.picture for item in pictures])
        compared = [compared_with(item) if self.attribute == "photo" else [item.text] for item in pictures]
        found = iter(self.others([one for several in compared for one in several]))
        scores: list[dict[str, float | None]] = []
        for one, several in zip(features, compared, strict=True):
            others = [other for other in islice(found, len(several)) if other is not None]
            scores.append({self.name: self._of(one, others) if others else None})
        return scores

    def _of(self, one: np.ndarray | None, others: Sequence[np.ndarray]) -> float | None:
        return self.failure if one is None else fmean(cosine(one, other) for other in others)


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    """Cosine similarity of two vectors of shape (width,), in [-1, 1]."""
    one, other = (vector.astype("float64") for vector in (one, other))
    return float(one @ other / ((one @ one) * (other @ other)) ** 0.5)
