"""Studies: which subjects, prompts, methods and metrics, and what is made of their scores; YAML files."""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from profusion_cli.config import Config, build_config
from profusion_cli.errors import ConfigError, InputError
from profusion_cli.faceworld.world import ATTRIBUTES, TRAITS
from profusion_cli.mappings import build, merge, nested
from profusion_cli.methods import PROFUSION, method_of
from profusion_cli.presets import preset_folder, read_preset, read_yaml, shipped_presets
from profusion_cli.prompts import parse_prompt

SUBJECT, TWO, BASE, DESCRIBED, DRAWN = KINDS = ("subject", "two", "base", "described", "drawn")
STUDIES = "studies"
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class Photo:
    """One subject: a file, what it is called, what it is, and in what words the base model could be asked for it."""

    file: str
    name: str = ""
    class_word: str | None = None
    description: str = ""


@dataclass(frozen=True)
class People:
    """Subjects that the face world draws: so many of a split, from a number on."""

    split: Literal["train", "validation", "test"] = "test"
    first: int = 0
    count: int = 24


@dataclass(frozen=True)
class Subjects:
    """Where the subjects come from: photos, or the face world."""

    photos: tuple[Photo, ...] = ()
    faceworld: People | None = None


@dataclass(frozen=True)
class StudyPrompt:
    """A prompt with S*, and what a judge of the face world must see in its pictures."""

    text: str
    asks: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Counts:
    """How much is drawn for each subject under a method; what is null is taken from the study."""

    subjects: int | None = None
    prompts: int | None = None
    pictures: int | None = None
    reconstructions: int | None = None


@dataclass(frozen=True)
class Method:
    """One row of a table, or one point of a curve.

    Args:
        name: of the row.
        family: of the curve that it is a point of; its own name where it is no point.
        kind: `subject`; `two` draws the subject together with the next one of the study; `base` is the base model
            alone, with the class word for S*, and `described` with the subject's name or description; `drawn` is the
            face world's renderer.
        augment: fine-tune on the photo and its augmentations, not on the photo alone; the baselines do not.
        photo: attributes of the photo that the face world draws, such as where it was taken.
        share: of the next subject, in [0, 1], for `two`.
        pretrain: keys of the configuration's section `pretrain`, for a PromptNet of its own; empty: the preset's.
        settings: nested keys of the configuration that differ from the study's.
        counts: how much is drawn.
    """

    name: str
    family: str
    kind: str
    augment: bool
    photo: Mapping[str, str]
    share: float
    pretrain: Mapping[str, Any]
    settings: Mapping[str, Any]
    counts: Counts


@dataclass(frozen=True)
class Figure:
    """What is made of the scores: a table, a plot of two columns along families of methods, or a sheet of pictures.

    Args:
        title: above it.
        kind: see above.
        methods: names of methods or families, in order; none: all.
        columns: of the table; none: all.
        against: the method that a table tells every other method's difference from, subject by subject.
        x, y: columns of a curve.
        subject: whose pictures a sheet shows, from 0.
    """

    title: str
    kind: Literal["table", "curve", "sheet"] = "table"
    methods: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    against: str = ""
    x: str = ""
    y: str = ""
    subject: int = 0


@dataclass(frozen=True)
class Comparison:
    """What people are asked to compare: one method with each of some others, in so many pairs each."""

    ours: str
    others: tuple[str, ...]
    count: int = 40


@dataclass(frozen=True)
class Study:
    """A study, checked.

    Args:
        name: of the file.
        description: for the report.
        preset: of every method.
        settings: nested keys of the configuration, the same for every method.
        subjects, prompts: see above; prompts rotate, so that few subjects cover them all.
        pretrain_on: what PromptNets are pre-trained on: pictures as for `profusion pretrain`, or how many portraits the
            face world draws; None: nothing is pre-trained.
        counts: how much is drawn of each.
        metrics: options of each metric, by its name.
        methods: in order, sweeps unrolled.
        outputs: in order, by name.
        pairs: what people compare; None: nothing.
        source: the mapping in its file, with the preset, the photos and what is pre-trained on by their full paths,
            so that it can lie anywhere.
    """

    name: str
    description: str
    preset: str
    settings: Mapping[str, Any]
    subjects: Subjects
    prompts: tuple[StudyPrompt, ...]
    pretrain_on: str | int | None
    counts: Counts
    metrics: Mapping[str, Mapping[str, Any]]
    methods: tuple[Method, ...]
    outputs: Mapping[str, Figure]
    pairs: Comparison | None
    source: Mapping[str, Any]

    def config(self, method: Method) -> Config:
        """The resolved configuration of a method."""
        own = merge(self.settings, method.settings, {"pretrain": method.pretrain} if method.pretrain else {})
        return build_config(merge(read_preset(self.preset, method_of(own)), own))

    def counts_of(self, method: Method) -> Counts:
        """How much a method draws: its own numbers, and the study's where it has none."""
        own = {key: value for key, value in vars(method.counts).items() if value is not None}
        return replace(self.counts, **own)

    def jobs(self, method: Method, subject: int, concept_prompt: str) -> Iterator[tuple[str, int]]:
        """Prompts and numbers of all pictures of a subject; no two methods or subjects share a number for chance.

        Every method draws the same prompts with the same numbers, so that their pictures can be compared one by one.
        """
        counts = self.counts_of(method)
        for index in range(counts.reconstructions):
            yield concept_prompt, PER_SUBJECT * subject + index
        for j in range(counts.prompts):
            number = (subject * counts.prompts + j) % len(self.prompts)
            for index in range(counts.pictures):
                yield self.prompts[number].text, PER_SUBJECT * subject + PER_PROMPT * (number + 1) + index

    def asks(self, text: str) -> Mapping[str, str]:
        """What a judge must see in pictures of this prompt."""
        return next((prompt.asks for prompt in self.prompts if prompt.text == text), {})

    def chosen(self, output: str | None) -> tuple[Method, ...]:
        """The methods that an output needs; all where there is none.

        Raises:
            ConfigError: there is no such output.
        """
        if output is None:
            return self.methods
        if output not in self.outputs:
            raise ConfigError(
                f"The study '{self.name}' has no table or figure '{output}'.", near(output, list(self.outputs))
            )
        figure = self.outputs[output]
        wanted = {*figure.methods, figure.against}
        return tuple(m for m in self.methods if not figure.methods or m.name in wanted or m.family in wanted)


PER_SUBJECT, PER_PROMPT = 10_000, 100
"""Room for the numbers of the pictures: what tells the noise of one from that of another."""


def is_reconstruction(number: int) -> bool:
    """Whether a picture of this number is one of "a photo of S*"."""
    return number % PER_SUBJECT < PER_PROMPT


def digest(value: Any) -> str:
    """Sixteen hexadecimal digits of plain data."""
    return sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]


def shipped_studies() -> dict[str, Path]:
    """Name and file of every shipped study."""
    return {path.stem: path for path in sorted((preset_folder() / STUDIES).glob("*.yaml"))}


def near(name: str, known: Sequence[str]) -> str:
    """A hint for a name that is not among those that are known."""
    close = difflib.get_close_matches(name, known, n=1)
    if not known:
        return "There is none."
    return f"Did you mean '{close[0]}'?" if close else f"There are: {', '.join(known)}."


def read_study(name: str, photos: Sequence[str] = (), pretrain_on: str | None = None) -> Study:
    """A study, by the name of a shipped one or the path of a file.

    Args:
        name: see above.
        photos: files, or folders of them, in place of the study's subjects; a file's name is that of its subject.
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
    subjects: Subjects = Subjects()
    description: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    pretrain_on: Any = None
    prompts_per_subject: Any = None
    pictures: Any = 1
    reconstructions: Any = 0
    metrics: dict[str, Any] = field(default_factory=dict)
    outputs: dict[str, Any] = field(default_factory=dict)
    pairs: Comparison | None = None


def _photos_in(places: Sequence[str]) -> list[dict[str, str]]:
    """Photos, or those of folders, as entries of a study.

    Raises:
        InputError: a place without photos.
    """
    files: list[Path] = []
    for place in map(Path, places):
        found = sorted(p for p in place.iterdir() if p.suffix.lower() in SUFFIXES) if place.is_dir() else [place]
        if not found or not found[0].is_file():
            raise InputError(f"'{place}' holds no photos.", f"Give pictures, or a folder of {', '.join(SUFFIXES)}.")
        files += found
    return [{"file": os.path.abspath(file), "description": re.sub(r"[\W_]+", " ", file.stem).strip()} for file in files]


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

    def absolute(path: str) -> str:
        return os.path.abspath(folder / os.path.expanduser(path))

    preset = given.preset if given.preset in shipped_presets() else absolute(given.preset)
    pretrain_on = given.pretrain_on
    if isinstance(pretrain_on, str):
        pretrain_on = absolute(pretrain_on)
    elif pretrain_on is not None and (not isinstance(pretrain_on, int) or pretrain_on < 1):
        raise ConfigError(
            f"pretrain_on={pretrain_on!r} is neither a path nor a number of portraits.", "Mend the study."
        )
    photos = tuple(replace(photo, file=absolute(photo.file)) for photo in given.subjects.photos)
    shared = merge({"finetune": {"method": method_of(read_preset(preset))}}, nested(given.settings))
    own: dict[str, Any] = {"preset": preset}
    own |= {"pretrain_on": pretrain_on} if pretrain_on is not None else {}
    own |= {"subjects": {"photos": [vars(photo) for photo in photos]}} if photos else {}
    study = Study(
        name,
        given.description,
        preset,
        nested(given.settings),
        replace(given.subjects, photos=photos),
        prompts,
        pretrain_on,
        counts,
        {key: value or {} for key, value in given.metrics.items()},
        tuple(method for key, values in given.methods.items() for method in _methods(str(key), values, shared)),
        {str(key): build(Figure, value, f"outputs.{key}") for key, value in given.outputs.items()},
        given.pairs,
        {**source, **own},
    )
    _check(study)
    return study


COUNTED = ("subjects", "prompts_per_subject", "pictures", "reconstructions")
"""Keys of the counts of a method; all but the first also those of a study."""


def _counts(values: Mapping[str, Any], where: str) -> Counts:
    """How much is drawn, from its keys.

    Raises:
        ConfigError: what is no number in its range.
    """
    for key, number in values.items():
        least, most = (
            int(key != "reconstructions"),
            {"subjects": None, "prompts_per_subject": None}.get(key, PER_PROMPT),
        )
        if number is None:
            continue
        if isinstance(number, bool) or not isinstance(number, int) or number < least or (most and number > most):
            span = f"{least} or more" + (f", up to {most}" if most else "")
            raise ConfigError(f"{where}{key}={number!r} is not possible.", f"Give a whole number, {span}.")
    return Counts(*(values.get(key) for key in COUNTED))


OWN = (
    *("kind", "augment", "photo", "share", "pretrain", "sweep"),
    *COUNTED,
)
"""Keys of a method that are no keys of the configuration."""


def _methods(name: str, values: Any, shared: Mapping[str, Any]) -> Iterator[Method]:
    """A method, or one for each value of its sweep; the settings below it are those of its preset and its study."""
    if values is not None and not isinstance(values, Mapping):
        raise ConfigError(f"methods.{name} must be a mapping, not {values!r}.", "Indent its settings below it.")
    values = dict(values or {})
    own = {key: values.pop(key) for key in OWN if key in values}
    counts = _counts({key: own.get(key) for key in COUNTED}, f"methods.{name}.")
    kind, photo = own.get("kind", SUBJECT), own.get("photo", {})
    if kind not in KINDS:
        raise ConfigError(f"methods.{name}.kind={kind!r} is none of {', '.join(KINDS)}.", near(str(kind), KINDS))
    pretrain = own.get("pretrain", {})
    mappings = isinstance(photo, Mapping) and isinstance(pretrain, Mapping)
    if not mappings or not isinstance(own.get("augment", True), bool):
        raise ConfigError(
            f"methods.{name}: augment is true or false, and photo and pretrain are mappings.", "Mend the study."
        )
    sweep = own.get("sweep", {})
    if not isinstance(sweep, Mapping) or not all(isinstance(points, list) and points for points in sweep.values()):
        raise ConfigError(
            f"methods.{name}.sweep must hold lists of values by keys.", "For example: sample.gamma: [0, 1]"
        )
    points: list[dict[str, Any]] = [{}]
    for key, choices in sweep.items():
        points = [{**point, key: choice} for point in points for choice in choices]
    for point in points:
        title = ", ".join([name, *(f"{key.split('.')[-1]} {value}" for key, value in point.items())])
        settings = merge(nested(values), nested(point))
        own_pretrain = merge(pretrain, settings.pop("pretrain", {}))
        share = settings.pop("share", own.get("share", 0.5 if kind == TWO else 0.0))
        if not isinstance(share, int | float) or not 0 <= share <= 1 or (share and kind != TWO):
            raise ConfigError(f"methods.{name}: share={share!r} is for kind two, between 0 and 1.", "Mend the study.")
        tuned = method_of(merge(shared, settings)) in (None, PROFUSION)
        yield Method(title, name, kind, own.get("augment", tuned), photo, share, own_pretrain, settings, counts)


def _check(study: Study) -> None:
    """What the parts of a study say of each other.

    Raises:
        ConfigError: see `build_study`.
    """
    if study.subjects.photos and study.subjects.faceworld:
        raise ConfigError("subjects holds both photos and faceworld.", "Give one of the two.")
    texts = [prompt.text for prompt in study.prompts]
    for prompt in study.prompts:
        try:
            parse_prompt(prompt.text)
        except InputError as error:
            raise ConfigError(error.message, error.hint) from None
        if texts.count(prompt.text) > 1:
            raise ConfigError(f"The prompt '{prompt.text}' stands there twice.", "For more of a prompt, set pictures.")
        for key, value in prompt.asks.items():
            known = {**ATTRIBUTES, **TRAITS}
            if value not in known.get(key, ()):
                raise ConfigError(
                    f"prompts: '{prompt.text}' asks for {key}: {value}, which the face world does not know.",
                    near(value, known[key]) if key in known else near(key, list(known)),
                )
    if len(texts) >= PER_SUBJECT // PER_PROMPT:
        raise ConfigError(f"{len(texts)} prompts are too many.", f"Give fewer than {PER_SUBJECT // PER_PROMPT}.")
    names = [method.name for method in study.methods]
    if not names:
        raise ConfigError("methods is empty.", "Give one at least.")
    for method in study.methods:
        if names.count(method.name) > 1:
            raise ConfigError(f"Two methods are called '{method.name}'.", "Give each a name, and a value once.")
        try:
            study.config(method)
        except ConfigError as error:
            raise ConfigError(f"methods.{method.name}: {error.message}", error.hint) from None
        if study.counts_of(method).prompts > len(study.prompts):
            raise ConfigError(
                f"methods.{method.name}: more prompts per subject than the {len(study.prompts)} that there are.",
                "Give fewer, or add prompts.",
            )
        if method.kind == DRAWN and study.subjects.faceworld is None:
            raise ConfigError(f"methods.{method.name}: only the face world is drawn.", "Leave the method out.")
        if method.kind == DRAWN and any(set(prompt.asks) - set(ATTRIBUTES) for prompt in study.prompts):
            raise ConfigError(f"methods.{method.name}: traits are the person's.", "Ask for attributes alone.")
        if method.photo and study.subjects.faceworld is None:
            raise ConfigError(f"methods.{method.name}: a photo on the disk is what it is.", "Leave `photo` out.")
    for wanted in (study.pairs.ours, *study.pairs.others) if study.pairs else ():
        if wanted not in names:
            raise ConfigError(f"pairs: there is no method '{wanted}'.", near(wanted, names))
    if study.pairs and (study.pairs.ours in study.pairs.others or not study.pairs.others or study.pairs.count < 1):
        raise ConfigError("pairs compares one method with others, in 1 pair or more.", "Mend ours, others or count.")
    families = [method.family for method in study.methods]
    for key, output in study.outputs.items():
        if not re.fullmatch(r"[\w-]+", key):
            raise ConfigError(f"outputs: '{key}' is no name of a file.", "Use letters, digits, - and _.")
        if output.subject < 0:
            raise ConfigError(f"outputs.{key}: there is no subject {output.subject}.", "Count from 0.")
        if output.against and output.against not in names:
            raise ConfigError(f"outputs.{key}: there is no method '{output.against}'.", near(output.against, names))
        for wanted in output.methods:
            if wanted not in names and wanted not in families:
                raise ConfigError(f"outputs.{key}: there is no method '{wanted}'.", near(wanted, names))
        if output.kind == "curve" and not (output.x and output.y):
            raise ConfigError(f"outputs.{key}: a curve needs x and y.", "Name two columns.")
        of_kind = {"against": "table", "x": "curve", "y": "curve", "subject": "sheet"}
        for name, kind in of_kind.items():
            if getattr(output, name) and output.kind != kind:
                raise ConfigError(f"outputs.{key}: {name} is for a {kind}, not a {output.kind}.", "Leave it out.")
        if output.columns and output.kind == "sheet":
            raise ConfigError(f"outputs.{key}: a sheet has no columns of scores.", "Leave `columns` out.")
