"""Marks: digests of what pictures, bundles and scores depend on, by which what is finished is known again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from profusion_cli.config import BESIDE_BASE, BaseConfig, Config
from profusion_cli.evaluation.metrics import Metric
from profusion_cli.evaluation.study.schema import BASE, DESCRIBED, DRAWN, SUBJECT, TWO, Method, Study, digest
from profusion_cli.evaluation.study.subjects import StudySubject
from profusion_cli.mappings import changed
from profusion_cli.plans import shape_of
from profusion_cli.presets import local_path
from profusion_cli.runtime.backbone import BaseModel
from profusion_cli.runtime.device import resolve_dtype, resolve_placement
from profusion_cli.runtime.hub import tree_sha256
from profusion_cli.runtime.parts import WEIGHTY, parts_for

PRETRAINING = ("base", "promptnet", "pretrain", "class_word", "concept_prompt", "seed")
"""What of the configuration a pre-training depends on."""
NOT_OF_SUBJECTS = ("sample", "plans", "pretrain")
"""Sections that neither a subject nor its views depend on."""


class Marks:
    """Digests for one study; every file is read once."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self._bases: dict[Any, dict[str, str]] = {}
        self._files: dict[Path, dict[str, str]] = {}

    def of_cell(
        self,
        method: Method,
        subjects: Sequence[StudySubject],
        config: Config,
        jobs: Sequence[tuple[str, int]],
        precision: str | None,
    ) -> str:
        """A digest of all that the pictures of a cell depend on.

        Args:
            method, subjects, config, jobs: see `Cell`.
            precision: that they are made in; of `precision_of`, or what is told of finished pictures.
        """
        subject, *others = subjects
        asked = [[text, index, dict(self.study.asks(text))] for text, index in jobs]
        known: list[Any] = [method.kind, self.of_photo(subject, method), asked]
        if method.kind != DRAWN:
            known.append(self._of_base(config.base, *parts_for("draws")))
            kept = ("base", "sample", "class_word", "concept_prompt", "seed")
            kept += () if method.kind in (BASE, DESCRIBED) else ("promptnet", "augment", "finetune")
            kept += ("pretrain",) if method.pretrain else ()
            settings = {key: value for key, value in changed(config).items() if key in kept}
            tuning = {key: value for key, value in settings.pop("finetune", {}).items() if key != "self_contained"}
            settings |= {"finetune": tuning} if tuning else {}  # where PromptNet is kept changes no picture
            if method.kind in (BASE, DESCRIBED):
                sample = {key: value for key, value in settings.pop("sample", {}).items() if key != "speed"}
                settings |= {"sample": sample} if sample else {}
            elif (shape := shape_of(config)) is not None:
                settings["plan"] = asdict(shape)
            known.append({**settings, "dtype": precision})
        if method.kind == DESCRIBED:
            known.append(subject.description)
        if method.kind in (SUBJECT, TWO):
            known += [method.augment, self.of_weights(method, config)]
        if method.pretrain:
            known.append(self._of_pretraining(method))
        for other in others:
            known += [method.share, self.of_photo(other, method), other.class_word]
        return digest(known)

    def of_metric(self, metric: Metric, options: Mapping[str, Any]) -> str:
        """A digest of all that scores depend on beside the pictures, and what they are compared with."""
        own = {key: value for key, value in options.items() if key != "models"}
        columns = [*metric.columns, *(distance.column for distance in metric.distances)]
        return digest([metric.name, columns, own, [self._of_files(place) for place in metric.weights]])

    def of_held_out(self, subjects: Sequence[StudySubject]) -> list[Any]:
        """Marks of the held-out photos that pictures are compared with; empty where there are none."""
        photos = [[list(self._of_files(path).values()) for path in subject.held_out] for subject in subjects]
        return photos if any(photos) else []

    def of_pretraining(self, method: Method) -> str:
        """A digest of what a method's own PromptNet depends on; pictures by their place alone."""
        config = self.study.config(method)
        return digest([*self._of_pretraining(method), resolve_dtype(config.device, config.dtype, training=True)])

    def of_photo(self, subject: StudySubject, method: Method) -> list[Any]:
        """Marks of the photo that a method is given of a subject."""
        return (
            [*self._of_files(subject.file).values()] if subject.file else [subject.seed, subject.photo_context(method)]
        )

    def of_weights(self, method: Method, config: Config) -> list[Any]:
        """Marks of the weights that a subject's bundle and pictures depend on."""
        known: list[Any] = [self._of_base(config.base, *WEIGHTY), self._of_promptnet(config)]
        if method.augment and config.augment.inpaint and config.finetune.steps > 0:
            model = config.augment.model
            base = BaseConfig(model.id or "", model.revision, model.unet, random=model.random)
            known.append(self._of_base(base, "unet"))
        return known

    def _of_base(self, config: BaseConfig, *parts: str) -> dict[str, str]:
        """Fingerprints of those parts of a base model that lie in folders; on the Hub, id and revision name them."""
        key = (config, parts)
        if key not in self._bases:
            model = BaseModel(config, resolve_placement("cpu", "float32", training=False))
            local = [part for part in parts if config.random is None and model.source(part).is_local]
            self._bases[key] = model.fingerprints(*local)
        return self._bases[key]

    def _of_promptnet(self, config: Config) -> dict[str, str]:
        """SHA-256 of PromptNet's files, where they lie on this machine."""
        source = config.promptnet
        place = Path(local_path((config.base.id if source.weights == BESIDE_BASE else source.weights) or ""))
        if place.is_file():
            return self._of_files(place)
        return self._of_files(place / source.subfolder) if source.weights and place.is_dir() else {}

    def _of_files(self, place: Path) -> dict[str, str]:
        """SHA-256 of a file, or of those in a folder, each read once; what is not there may come."""
        if not self._files.get(place):
            self._files[place] = tree_sha256(place)
        return self._files[place]

    def _of_pretraining(self, method: Method) -> list[Any]:
        config = self.study.config(method)
        settings = {key: value for key, value in changed(config).items() if key in PRETRAINING}
        return [settings, self.study.pretrain_on, self._of_base(config.base, *WEIGHTY)]


def precision_of(method: Method, config: Config) -> str:
    """In what pictures are drawn on this machine, and in what subjects are made where that is something else."""
    trained = method.kind in (SUBJECT, TWO) and config.finetune.steps > 0
    chosen = [resolve_dtype(config.device, config.dtype, training) for training in (False, trained)]
    return "/".join(dict.fromkeys(chosen))


def views_settings(config: Config) -> dict[str, Any]:
    """What of a configuration the views of a photo depend on, as plain data."""
    keys = ("augment", "class_word", "base", "seed", "device", *(("dtype",) if config.augment.inpaint else ()))
    settings = config.as_dict()
    return {key: settings[key] for key in keys}


def subject_settings(config: Config) -> dict[str, Any]:
    """What of a configuration a subject's bundle depends on, as plain data."""
    left_out = (*NOT_OF_SUBJECTS, "preset", "deterministic", "compile", "offload", "mark")
    return {key: value for key, value in config.as_dict().items() if key not in left_out}
