"""Reading a study: a YAML file, whose prompts, methods and sweeps are unrolled and checked."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

from profusion_cli.errors import ConfigError, InputError
from profusion_cli.evaluation.study.checking import check_study
from profusion_cli.evaluation.study.schema import (
    KINDS,
    NOBODY,
    PER_PROMPT,
    SUBJECT,
    TWO,
    Counts,
    Figure,
    Method,
    PairsPlan,
    PhotoSubject,
    Study,
    StudyPrompt,
    Subjects,
    near,
)
from profusion_cli.mappings import build, merge, nested
from profusion_cli.methods import PROFUSION, method_of
from profusion_cli.presets import preset_folder, read_preset, read_yaml, shipped_presets

STUDIES = "studies"
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def shipped_studies() -> dict[str, Path]:
    """Name and file of every shipped study."""
    return {path.stem: path for path in sorted((preset_folder() / STUDIES).glob("*.yaml"))}


def read_study(name: str, photos: Sequence[str] = (), pretrain_on: str | None = None) -> Study:
    """A study, by the name of a shipped one or the path of a file.

    Args:
        name: see above.
        photos: files, or folders of them, in place of the study's subjects; a file's name is that of its subject, whose
            held-out photos are those in a folder of this name, without ending, beside it in its folder.
        pretrain_on: what PromptNets are pre-trained on, in place of what the study says; None: that.

    Raises:
        ConfigError: no such study, no YAML, or something in it that is unknown or makes no sense.
        InputError: a place without photos.
    """
    shipped = shipped_studies()
    path = shipped.get(name, Path(name))
    if not path.is_file():
        raise ConfigError(f"There is no study '{name}'.", near(name, list(shipped)) + " Or give a YAML file.")
    source = read_yaml(path, "study")
    own: dict[str, Any] = {"subjects": {"photos": _photos_in(photos)}} if photos else {}
    own |= {"pretrain_on": os.path.abspath(pretrain_on)} if pretrain_on is not None else {}
    return build_study({**source, **own}, path.stem, path.parent)


@dataclass(frozen=True)
class _Source:
    """The keys of a study file."""

    preset: str
    prompts: list[Any]
    methods: dict[str, Any]
    subjects: Subjects = NOBODY
    description: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    pretrain_on: Any = None
    prompts_per_subject: Any = None
    pictures: Any = 1
    reconstructions: Any = 0
    metrics: dict[str, Any] = field(default_factory=dict)
    outputs: dict[str, Any] = field(default_factory=dict)
    pairs: PairsPlan | None = None


def _photos_in(places: Sequence[str]) -> list[dict[str, Any]]:
    """Photos, or those of folders, as entries of a study; a folder's photos with those that are held out.

    Raises:
        InputError: a place without photos.
    """
    entries: list[dict[str, Any]] = []
    for place in map(Path, places):
        found = _pictures_of(place) if place.is_dir() else [place]
        if not found[0].is_file():
            raise _no_photos(place)
        for file in found:
            entries.append({"file": os.path.abspath(file), "description": re.sub(r"[\W_]+", " ", file.stem).strip()})
            beside = file.with_suffix("")
            if place.is_dir() and beside.is_dir():
                entries[-1]["held_out"] = [os.path.abspath(other) for other in _pictures_of(beside)]
    return entries


def _pictures_of(folder: Path) -> list[Path]:
    """The photos in a folder, by name.

    Raises:
        InputError: there are none.
    """
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not found:
        raise _no_photos(folder)
    return found


def _no_photos(place: Path) -> InputError:
    return InputError(f"'{place}' holds no photos.", f"Give pictures, or a folder of {', '.join(SUFFIXES)}.")


def build_study(source: Mapping[str, Any], name: str, folder: Path) -> Study:
    """A study from the mapping in its file.

    Args:
        source: see above.
        name: of the study.
        folder: that relative names of a preset, of photos, and of what is pre-trained on, start from.

    Raises:
        ConfigError: something that is unknown or makes no sense, with its key.
    """
    given = build(_Source, source, "")
    if not given.prompts:
        raise ConfigError("prompts is empty.", 'Give one at least, such as "S* on a beach".')
    prompts = tuple(
        build(StudyPrompt, {"text": item} if isinstance(item, str) else item, f"prompts[{number}]")
        for number, item in enumerate(given.prompts)
    )
    counts = _counts({key: getattr(given, key) for key in COUNTED[1:]}, "")
    if counts.prompts is None:
        counts = replace(counts, prompts=len(prompts))
    preset = given.preset if given.preset in shipped_presets() else _absolute(folder, given.preset)
    pretrain_on = _pretrain_on(folder, given.pretrain_on)
    photos = tuple(
        replace(
            photo,
            file=_absolute(folder, photo.file),
            held_out=tuple(_absolute(folder, other) for other in photo.held_out),
        )
        for photo in given.subjects.photos
    )
    shared = merge({"finetune": {"method": method_of(read_preset(preset))}}, nested(given.settings))
    own: dict[str, Any] = {"preset": preset}
    own |= {"pretrain_on": pretrain_on} if pretrain_on is not None else {}
    own |= {"subjects": {"photos": [_entry(photo) for photo in photos]}} if photos else {}
    study = Study(
        name=name,
        description=given.description,
        preset=preset,
        settings=nested(given.settings),
        subjects=replace(given.subjects, photos=photos),
        prompts=prompts,
        pretrain_on=pretrain_on,
        counts=counts,
        metrics={key: value or {} for key, value in given.metrics.items()},
        methods=tuple(method for key, values in given.methods.items() for method in _methods(str(key), values, shared)),
        outputs={str(key): build(Figure, value, f"outputs.{key}") for key, value in given.outputs.items()},
        pairs=given.pairs,
        source={**source, **own},
    )
    check_study(study)
    return study


def _entry(photo: PhotoSubject) -> dict[str, Any]:
    """A subject as a study says it; one without held-out photos as it has always been said."""
    told = vars(photo) | {"held_out": list(photo.held_out)}
    return told if photo.held_out else {key: value for key, value in told.items() if key != "held_out"}


def _absolute(folder: Path, path: str) -> str:
    return os.path.abspath(folder / os.path.expanduser(path))


def _pretrain_on(folder: Path, value: Any) -> str | int | None:
    """A full path, or a number of portraits.

    Raises:
        ConfigError: neither.
    """
    if isinstance(value, str):
        return _absolute(folder, value)
    if value is not None and (not isinstance(value, int) or value < 1):
        raise ConfigError(f"pretrain_on={value!r} is neither a path nor a number of portraits.", "Mend the study.")
    return value


COUNTED = ("subjects", "prompts_per_subject", "pictures", "reconstructions")
"""Keys of the counts of a method; all but the first also those of a study."""


def _counts(values: Mapping[str, Any], where: str) -> Counts:
    """How much is drawn, from its keys.

    Raises:
        ConfigError: what is no number in its range.
    """
    for key, number in values.items():
        least = int(key != "reconstructions")
        most = None if key in ("subjects", "prompts_per_subject") else PER_PROMPT
        if number is None:
            continue
        if isinstance(number, bool) or not isinstance(number, int) or number < least or (most and number > most):
            span = f"{least} or more" + (f", up to {most}" if most else "")
            raise ConfigError(f"{where}{key}={number!r} is not possible.", f"Give a whole number, {span}.")
    return Counts(*(values.get(key) for key in COUNTED))


OWN = ("kind", "augment", "photo", "share", "pretrain", "sweep", *COUNTED)
"""Keys of a method that are no keys of the configuration."""


def _methods(name: str, values: Any, shared: Mapping[str, Any]) -> Iterator[Method]:
    """A method, or one for each value of its sweep; the settings below it are those of its preset and its study.

    Raises:
        ConfigError: something in it that makes no sense, with its key.
    """
    if values is not None and not isinstance(values, Mapping):
        raise ConfigError(f"methods.{name} must be a mapping, not {values!r}.", "Indent its settings below it.")
    values = dict(values or {})
    own = {key: values.pop(key) for key in OWN if key in values}
    counts = _counts({key: own.get(key) for key in COUNTED}, f"methods.{name}.")
    kind, photo, pretrain = own.get("kind", SUBJECT), own.get("photo", {}), own.get("pretrain", {})
    if kind not in KINDS:
        raise ConfigError(f"methods.{name}.kind={kind!r} is none of {', '.join(KINDS)}.", near(str(kind), KINDS))
    mappings = isinstance(photo, Mapping) and isinstance(pretrain, Mapping)
    if not mappings or not isinstance(own.get("augment", True), bool):
        raise ConfigError(
            f"methods.{name}: augment is true or false, and photo and pretrain are mappings.", "Mend the study."
        )
    for point in _points(name, own.get("sweep", {})):
        title = ", ".join([name, *(f"{key.split('.')[-1]} {value}" for key, value in point.items())])
        settings = merge(nested(values), nested(point))
        own_pretrain = merge(pretrain, settings.pop("pretrain", {}))
        share = settings.pop("share", own.get("share", 0.5 if kind == TWO else 0.0))
        if not isinstance(share, int | float) or not 0 <= share <= 1 or (share and kind != TWO):
            raise ConfigError(f"methods.{name}: share={share!r} is for kind two, between 0 and 1.", "Mend the study.")
        tuned = method_of(merge(shared, settings)) in (None, PROFUSION)
        yield Method(title, name, kind, own.get("augment", tuned), photo, share, own_pretrain, settings, counts)


def _points(name: str, sweep: Any) -> list[dict[str, Any]]:
    """All combinations of a sweep's values, by their keys; one without any where there is no sweep.

    Raises:
        ConfigError: the sweep is not lists of values by keys.
    """
    if not isinstance(sweep, Mapping) or not all(isinstance(values, list) and values for values in sweep.values()):
        raise ConfigError(
            f"methods.{name}.sweep must hold lists of values by keys.", "For example: sample.gamma: [0, 1]"
        )
    return [dict(zip(sweep, chosen, strict=True)) for chosen in product(*sweep.values())]
