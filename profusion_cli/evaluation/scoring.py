"""How like its subject a picture is, while it is drawn."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from PIL import Image

from profusion_cli.bundle import Bundle
from profusion_cli.config import Config
from profusion_cli.errors import BundleError, UsageError
from profusion_cli.jobs.photos import first_view
from profusion_cli.jobs.pictures import Picture
from profusion_cli.presets import SHIPPED

AUTO = "auto"


@dataclass(frozen=True)
class Judge:
    """What judges likeness.

    Args:
        metric: of `evaluate`, by its name there.
        models: of the metric's, that one; None: it has no choice.
        column: of its scores.
    """

    metric: str
    models: str | None
    column: str


JUDGES = {
    "faceworld": Judge("faceworld", None, "identity"),
    "ArcFace": Judge("faces", "ArcFace", "ArcFace"),
    "AdaFace": Judge("adaface", None, "AdaFace"),
    "DINOv2": Judge("dino", "DINOv2", "DINOv2"),
}
"""By the names that `--score` takes."""


def judge_named(name: str, config: Config) -> str:
    """The judge of that name; `auto` is the face world's in the face world, and ArcFace elsewhere.

    Raises:
        UsageError: there is none.
    """
    if name == AUTO:
        return "faceworld" if config.base.id == f"{SHIPPED}faceworld" else "ArcFace"
    if name not in JUDGES:
        raise UsageError(f"--score '{name}' is no judge.", f"Use {AUTO}, {', '.join(JUDGES)}.")
    return name


class Scorer:
    """Scores pictures by their likeness to the first photo of a subject, as its bundle shows it, in [-1, 1].

    Args:
        name: of the judge.
        bundle: of the subject.
        config: names the device.

    Raises:
        BundleError: a bundle that shows no photo, or whose preview is no picture.
        UnavailableError: the judge's library or its weights cannot be had.
    """

    def __init__(self, name: str, bundle: Bundle, config: Config) -> None:
        from profusion_cli.evaluation.metrics import make_metrics
        from profusion_cli.runtime.device import resolve_device

        photo = first_view(bundle)
        if photo is None:
            raise BundleError(f"'{bundle.name}' shows no photo to compare with.", "Leave --score out.")
        self.name, self._judge, self._photo = name, JUDGES[name], photo
        options = {} if self._judge.models is None else {"models": [self._judge.models]}
        made = make_metrics(self._judge.metric, options, resolve_device(config.device))
        self._metric = next(metric for metric in made if self._judge.column in metric.columns)
        self.score(self._photo)  # what is missing is missed before anything is drawn

    def score(self, image: Image.Image) -> float | None:
        """Of one picture; None: there is nothing to judge.

        Raises:
            UnavailableError: the judge's library or its weights cannot be had.
        """
        from profusion_cli.evaluation.metrics import Judged

        found = self._metric.score([Judged(image, self._photo, "")])[0][self._judge.column]
        return None if found is None else round(found, 4)


def scored(pictures: Iterable[Picture], scorer: Scorer) -> Iterator[Picture]:
    """Pictures, each of which remembers its score."""
    for picture in pictures:
        score = {"by": scorer.name, "value": scorer.score(picture.image)}
        yield replace(picture, record={**picture.record, "score": score})


def best_of(pictures: Iterable[Picture], best: int, count: int) -> Iterator[Picture]:
    """Of each prompt the pictures with the highest scores, the best first.

    Args:
        pictures: with scores, prompt by prompt.
        best: how many are kept of each.
        count: how many there are of each.
    """
    waiting: list[Picture] = []
    for picture in pictures:
        waiting.append(picture)
        if len(waiting) == count:
            yield from sorted(waiting, key=_score, reverse=True)[:best]
            waiting = []


def _score(picture: Picture) -> float:
    value = picture.record["score"]["value"]
    return float("-inf") if value is None else value
