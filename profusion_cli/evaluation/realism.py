"""Realism: the kernel distance of a method's pictures from a folder of photographs.

It is taken in the features of CLIP ViT-B/32 (OpenAI's weights), not normalised, as in the Frechet distance by CLIP
(https://arxiv.org/abs/2203.06026), and in those of DINOv2 (https://arxiv.org/abs/2304.07193), of base size; a larger
one was recommended after a comparison with what people see (https://arxiv.org/abs/2306.04675).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from profusion_cli.dataset import list_pictures
from profusion_cli.errors import ConfigError, InputError
from profusion_cli.evaluation.clip import Clip
from profusion_cli.evaluation.dino import Dino
from profusion_cli.evaluation.metrics import Distance, Judged, Metric, Remembered, chosen_models, text_option
from profusion_cli.evaluation.statistics import FEWEST
from profusion_cli.presets import local_path

MODELS = ("ViT-B-32", "DINOv2")
KID = "KID "
"""Before the names of columns: of the network's own."""
HINT = "Set the metric's option 'folder' to a folder of photographs of many people, such as {folder: photographs}."


class Realism:
    """A metric that judges no single picture, only all of a method together.

    Args:
        distance: from the photographs.
        weights: files and folders of this machine that the options name.
    """

    columns: tuple[str, ...] = ()

    def __init__(self, distance: Distance, weights: Sequence[Path]) -> None:
        self.name, self.distances, self.weights = distance.column, (distance,), weights

    def score(self, pictures: Sequence[Judged]) -> list[dict[str, float | None]]:
        """Nothing of each picture."""
        return [{} for _ in pictures]


def realism_metrics(options: Mapping[str, Any], device: torch.device) -> list[Metric]:
    """One metric for each model.

    Args:
        options: `folder` of the photographs, see `photographs_in`; `models`, names of `MODELS`; `weights`, a folder of
            copies of their Hub repositories, as the option `folder` of `clip` and of `dino`; without it they come from
            the Hub.
        device: that they run on, in float32.

    Raises:
        ConfigError: an unknown model, or no folder of enough photographs.
    """
    folder, weights = text_option(options, "folder"), text_option(options, "weights")
    if folder is None:
        raise ConfigError("The metric 'realism' has nothing to compare pictures with.", HINT)
    place = Path(local_path(folder))
    photos = photographs_in(place)
    metrics: list[Metric] = []
    for name in chosen_models(options, MODELS):
        model = Dino(name, weights, device, "weights") if name == "DINOv2" else Clip(name, weights, device, "weights")
        encode = model.encode if isinstance(model, Dino) else model.images
        own = [Path(model.source.id)] if model.source.is_local else []
        metrics.append(Realism(Distance(KID + model.name, Remembered(encode), photos), [place, *own]))
    return metrics


def photographs_in(folder: Path) -> dict[str, list[Path]]:
    """The pictures of a folder by person: each is of another one, but for those in a folder of their own inside it.

    A person is called as the file, without its ending, or as the folder.

    Raises:
        ConfigError: it is not there, or holds fewer than `FEWEST` people.
    """
    try:
        found = [Path(path) for path in list_pictures([str(folder)]).paths] if folder.is_dir() else []
    except InputError as error:
        raise ConfigError(error.message, HINT) from error
    people: dict[str, list[Path]] = {}
    for path in found:
        first, *below = path.relative_to(folder).parts
        people.setdefault(first if below else path.stem, []).append(path)
    if len(people) < FEWEST:
        told = f"holds photographs of {len(people)} people" if folder.is_dir() else "is no folder"
        raise ConfigError(f"'{folder}' {told}, and the metric 'realism' needs {FEWEST} or more.", HINT)
    return people
