"""What a study holds: subjects, prompts, methods and metrics, and what is made of their scores."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any, Literal

from profusion_cli.config import Config, build_config
from profusion_cli.errors import ConfigError
from profusion_cli.mappings import merge
from profusion_cli.methods import method_of
from profusion_cli.plans import EXACT
from profusion_cli.presets import read_preset

SUBJECT, TWO, BASE, DESCRIBED, DRAWN = KINDS = ("subject", "two", "base", "described", "drawn")


@dataclass(frozen=True)
class PhotoSubject:
    """One subject: a file, what it is called, what it is, in what words the base model could be asked for it, and
    further photos, which nothing is tuned on and pictures are compared with."""

    file: str
    name: str = ""
    class_word: str | None = None
    description: str = ""
    held_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class People:
    """Subjects that the face world draws: so many of a split, from a number on.

    The first has the first of `photos`, attributes of the photo such as where it was taken, and so on, in turn.
    """

    split: Literal["train", "validation", "test"] = "test"
    first: int = 0
    count: int = 24
    photos: tuple[dict[str, str], ...] = ({},)


@dataclass(frozen=True)
class Subjects:
    """Where the subjects come from: photos, or the face world."""

    photos: tuple[PhotoSubject, ...] = ()
    faceworld: People | None = None


NOBODY = Subjects()


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
        photo: attributes of the photo that the face world draws, in place of the subject's.
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
class PairsPlan:
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
    pairs: PairsPlan | None
    source: Mapping[str, Any]

    def config(self, method: Method) -> Config:
        """The resolved configuration of a method.

        Whatever the preset's speed, it draws exactly unless the study names another: so methods that differ in the
        sampler do not differ in the plan besides.
        """
        own = merge(self.settings, method.settings, {"pretrain": method.pretrain} if method.pretrain else {})
        return build_config(merge(read_preset(self.preset, method_of(own)), {"sample": {"speed": EXACT}}, own))

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


def near(name: str, known: Sequence[str]) -> str:
    """A hint for a name that is not among those that are known."""
    close = difflib.get_close_matches(name, known, n=1)
    if not known:
        return "There is none."
    return f"Did you mean '{close[0]}'?" if close else f"There are: {', '.join(known)}."
