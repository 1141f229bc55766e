"""The subjects of a study: photographs, or people of the face world."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from PIL import Image

from profusion_cli.config import Config
from profusion_cli.errors import ConfigError
from profusion_cli.evaluation.study.schema import DESCRIBED, Method, Study
from profusion_cli.faceworld.captions import description
from profusion_cli.faceworld.drawing.face import draw_face
from profusion_cli.faceworld.drawing.pose import random_pose
from profusion_cli.faceworld.world import (
    ATTRIBUTES,
    SPLITS,
    Context,
    asked_context,
    asked_traits,
    identity,
    with_traits,
)
from profusion_cli.files import atomic_output, read_source, sha256_of
from profusion_cli.images import crop_square, decode_photo

SIDE = 64
"""Of the face world's pictures, in pixels."""
OTHERS = 8
"""How many other true pictures of a person one by a method is compared with."""


@dataclass(frozen=True)
class StudySubject:
    """One subject.

    Args:
        name: of its row; no two have the same.
        class_word: what it is; None: the preset's.
        description: in what words the base model can be asked for it.
        file: of its photo; None: drawn.
        held_out: files of further photos, which nothing is tuned on and pictures are compared with.
        seed: of a person of the face world.
        context: attributes of the photo that the face world draws.
    """

    name: str
    class_word: str | None = None
    description: str = ""
    file: Path | None = None
    held_out: tuple[Path, ...] = ()
    seed: int = 0
    context: Mapping[str, str] = field(default_factory=dict)

    def photo_context(self, method: Method) -> dict[str, str]:
        """Attributes of the photo that a method is given."""
        return {**self.context, **method.photo}


def subjects_of(study: Study) -> list[StudySubject]:
    """All subjects of a study, in order.

    Raises:
        ConfigError: a photo that is not there, one that is held out twice or tuned on, two of one name, or more people
            than the face world's split has.
    """
    people = study.subjects.faceworld
    if people is not None:
        seeds = SPLITS[people.split]
        if people.first + people.count > len(seeds) or people.count < 1 or people.first < 0:
            raise ConfigError(
                f"subjects.faceworld: the split {people.split} has {len(seeds)} people, and these are "
                f"{people.first} to {people.first + people.count - 1}.",
                "Ask for fewer.",
            )
        photos = [("subjects.faceworld.photos", photo) for photo in people.photos]
        for where, photo in [*photos, *((f"methods.{method.name}", method.photo) for method in study.methods)]:
            if wrong := [key for key, value in photo.items() if value not in ATTRIBUTES.get(key, ())]:
                raise ConfigError(
                    f"{where}: a photo with this {', '.join(wrong)} cannot be drawn.",
                    f"Attributes are {', '.join(ATTRIBUTES)}.",
                )
        if not people.photos:
            raise ConfigError("subjects.faceworld.photos is empty.", "Leave it out for everyday photos.")
        return [
            StudySubject(
                f"{people.split}-{number:03d}",
                None,
                description(identity(seed)),
                seed=seed,
                context=people.photos[(number - people.first) % len(people.photos)],
            )
            for number, seed in enumerate(seeds[people.first : people.first + people.count], people.first)
        ]
    if not study.subjects.photos:
        raise ConfigError(f"The study '{study.name}' names no subjects.", "Give photos with --photos FILE|FOLDER.")
    found = [
        StudySubject(
            photo.name or Path(photo.file).stem,
            photo.class_word,
            photo.description,
            Path(photo.file),
            tuple(map(Path, photo.held_out)),
        )
        for photo in study.subjects.photos
    ]
    described = [method.name for method in study.methods if method.kind == DESCRIBED]
    for subject in found:
        if described and not subject.description:
            raise ConfigError(
                f"'{subject.name}' has no description, which the method '{described[0]}' needs.",
                "Add `description`: a name that the base model knows, or what the subject looks like.",
            )
        for file in (subject.file, *subject.held_out):
            if not file.is_file():
                raise ConfigError(f"There is no photo '{file}'.", "Names are relative to the study's file.")
        if subject.held_out:
            _check_held_out(subject.file, subject.held_out)
        if [other.name for other in found].count(subject.name) > 1:
            raise ConfigError(f"Two subjects are called '{subject.name}'.", "Give each a `name`.")
    return found


def _check_held_out(tuned: Path, held_out: Sequence[Path]) -> None:
    """No two of these photos are the same.

    Raises:
        ConfigError: two are, by whatever names.
    """
    known = {sha256_of(read_source(str(tuned))): tuned}
    for file in held_out:
        content = sha256_of(read_source(str(file)))
        same = known.get(content)
        if same == tuned:
            raise ConfigError(
                f"'{file}' is held out, and is what the subject is tuned on.", "Leave it out of the held-out photos."
            )
        if same is not None:
            raise ConfigError(f"'{file}' and '{same}' are the same photo.", "Leave one of them out.")
        known[content] = file


def reference_photo(seed: int, **context: str) -> Image.Image:
    """The photo of a person of the face world, everyday but for what `context` says."""
    return draw_face(identity(seed), Context(**context), random_pose(random.Random(f"reference {seed}")), SIDE)


def drawn(seed: int, asks: Mapping[str, str], number: int) -> Image.Image:
    """The renderer's own picture of what a prompt asks for: the ceiling."""
    return _true_picture(seed, asks, f"ceiling {seed} {number}")


def other_pictures(seed: int, asks: Mapping[str, str]) -> tuple[Image.Image, ...]:
    """Other true pictures of a person in what a prompt asks for, each in a pose that no photo and no ceiling has."""
    return _other_pictures(seed, tuple(asks.items()))


@lru_cache(64)
def _other_pictures(seed: int, asks: tuple[tuple[str, str], ...]) -> tuple[Image.Image, ...]:
    return tuple(_true_picture(seed, dict(asks), f"other {seed} {number}") for number in range(OTHERS))


def _true_picture(seed: int, asks: Mapping[str, str], pose: str) -> Image.Image:
    """What a prompt asks for, be it of the context or a trait of the person."""
    who = with_traits(identity(seed), asked_traits(asks))
    return draw_face(who, asked_context(asks), random_pose(random.Random(pose)), SIDE)


def unasked_traits(seed: int, asks: Mapping[str, str]) -> dict[str, str]:
    """The traits of a person that what a prompt asks for neither names nor does away with, as bald with hair colour."""
    who, asked = identity(seed), asked_traits(asks)
    changed = with_traits(who, asked).traits()
    return {name: value for name, value in who.traits().items() if name not in asked and changed[name] == value}


def photo_file(subject: StudySubject, context: Mapping[str, str], folder: Path) -> Path:
    """The subject's photo as a file: its own, or drawn into the folder."""
    if subject.file is not None:
        return subject.file
    words = " ".join([subject.name, *(f"{key}={value}" for key, value in sorted(context.items()))])
    path = folder / f"{words}.png"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_output(path, force=True) as file:  # another process may draw the same
            reference_photo(subject.seed, **context).save(file, "PNG")
    return path


def photo_of(subject: StudySubject, config: Config, context: Mapping[str, str]) -> Image.Image:
    """The photo that is tuned on, in its context if the face world draws it, as a square of the model's resolution."""
    if subject.file is None:
        return reference_photo(subject.seed, **context)
    return _square(subject.file, config)


def held_out_of(subject: StudySubject, config: Config) -> list[Image.Image]:
    """The held-out photos that pictures are compared with, as squares of the model's resolution."""
    return [_square(file, config) for file in subject.held_out]


def _square(file: Path, config: Config) -> Image.Image:
    return crop_square(decode_photo(read_source(str(file)), str(file)).image, config.base.resolution)
