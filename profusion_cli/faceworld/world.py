"""Who is drawn, and in which context: the parameters of a picture, drawn from a seed."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace

Colour = tuple[int, int, int]

SKINS: dict[str, Colour] = {
    "pale": (250, 225, 205),
    "light": (238, 196, 160),
    "tan": (212, 160, 112),
    "brown": (160, 106, 66),
    "dark": (98, 62, 40),
}
FACE_SHAPES: dict[str, tuple[float, float]] = {
    "round": (1.10, 0.94),
    "oval": (0.95, 1.06),
    "long": (0.84, 1.16),
    "square": (1.04, 1.02),
}
HAIR_COLOURS: dict[str, Colour] = {
    "black": (32, 28, 30),
    "brown": (104, 64, 34),
    "blond": (232, 196, 96),
    "red": (190, 66, 24),
    "grey": (158, 158, 162),
    "blue": (52, 96, 200),
    "pink": (236, 112, 170),
    "green": (62, 150, 74),
}
HAIR_STYLES = ("bald", "short", "spiky", "curly", "long", "bob", "mohawk", "bun")
EYE_COLOURS: dict[str, Colour] = {
    "blue": (56, 124, 216),
    "green": (52, 158, 84),
    "brown": (120, 70, 30),
    "black": (28, 24, 26),
}
BROWS = ("thin", "thick", "slanted")
NOSES = ("small", "big", "pointed")
BEARDS = ("none", "moustache", "beard", "goatee")
GLASSES = ("none", "round", "square")
GLASSES_COLOURS: dict[str, Colour] = {"black": (24, 24, 28), "red": (186, 30, 36), "golden": (206, 160, 40)}

STYLES = ("photo", "anime", "sketch", "pixel art", "oil painting")
PLACES = ("plain", "beach", "forest", "city", "snow", "desert")
CLOTHES = ("shirt", "superman", "suit", "scarf")
HEADWEAR = ("none", "chef hat", "crown", "headphones")
FRAMINGS = ("portrait", "close-up", "half-length")

SPLITS = {"train": range(0, 1_000_000), "validation": range(1_000_000, 1_001_000), "test": range(2_000_000, 2_001_000)}
"""Seeds of the identities. Whatever is tuned sees `train` and `validation` alone."""


@dataclass(frozen=True)
class Identity:
    """What makes a face this one; lengths are relative to their usual size."""

    skin: str
    skin_shade: float
    face_shape: str
    face_width: float
    hair_colour: str
    hair_style: str
    hair_shade: float
    eye_colour: str
    eye_spacing: float
    eye_size: float
    brows: str
    nose: str
    mouth_width: float
    lip_red: float
    beard: str
    glasses: str
    glasses_colour: str
    freckles: bool
    ears: float

    def traits(self) -> dict[str, str]:
        """The traits that have a name, as the judges read them."""
        return {
            "skin": self.skin,
            "face shape": self.face_shape,
            "hair colour": self.hair_colour if self.hair_style != "bald" else "none",
            "hair style": self.hair_style,
            "eye colour": self.eye_colour,
            "brows": self.brows,
            "nose": self.nose,
            "beard": self.beard,
            "glasses": self.glasses,
            "glasses colour": self.glasses_colour if self.glasses != "none" else "none",
            "freckles": "yes" if self.freckles else "no",
            "ears": "big" if self.ears > 1 else "small",
        }


LACKING = ("none", "no")
"""Values of traits that a person does not have."""


def named(traits: Mapping[str, str]) -> dict[str, str]:
    """Those traits that a person has, such as glasses, and not those that they lack."""
    return {name: value for name, value in traits.items() if value not in LACKING}


@dataclass(frozen=True)
class Context:
    """What text can ask for."""

    style: str = "photo"
    place: str = "plain"
    clothes: str = "shirt"
    headwear: str = "none"
    framing: str = "portrait"

    def attributes(self) -> dict[str, str]:
        """As the judges read them."""
        return {
            "style": self.style,
            "place": self.place,
            "clothes": self.clothes,
            "headwear": self.headwear,
            "framing": self.framing,
        }

    def hidden(self) -> tuple[str, ...]:
        """The traits that cannot be seen in this context, whoever is shown."""
        return ("hair style",) if self.headwear in ("chef hat", "crown") else ()


ATTRIBUTES = {"style": STYLES, "place": PLACES, "clothes": CLOTHES, "headwear": HEADWEAR, "framing": FRAMINGS}
TRAITS = {
    "skin": tuple(SKINS),
    "face shape": tuple(FACE_SHAPES),
    "hair colour": (*HAIR_COLOURS, "none"),
    "hair style": HAIR_STYLES,
    "eye colour": tuple(EYE_COLOURS),
    "brows": BROWS,
    "nose": NOSES,
    "beard": BEARDS,
    "glasses": GLASSES,
    "glasses colour": (*GLASSES_COLOURS, "none"),
    "freckles": ("no", "yes"),
    "ears": ("small", "big"),
}


_FIELDS: dict[tuple[str, str], tuple[str, object]] = {
    ("freckles", "no"): ("freckles", False),
    ("freckles", "yes"): ("freckles", True),
    ("ears", "small"): ("ears", 0.8),
    ("ears", "big"): ("ears", 1.35),
    ("hair colour", "none"): ("hair_style", "bald"),
    ("glasses colour", "none"): ("glasses", "none"),
}
"""Field and value of an identity, of traits that are not called as these are."""
_COLOURED = {"hair colour": ("hair style", "short"), "glasses colour": ("glasses", "round")}
"""What each colour is of, and which of it those are given who have none."""


def with_traits(who: Identity, traits: Mapping[str, str]) -> Identity:
    """The person with other traits, by the names and values of `TRAITS`; with hair or glasses for a colour of them."""
    given = [_COLOURED[name] for name in named(traits) if name in _COLOURED and who.traits()[name] in LACKING]
    fields = [_FIELDS.get(trait, (trait[0].replace(" ", "_"), trait[1])) for trait in {**dict(given), **traits}.items()]
    return replace(who, **dict(fields))


def identity(seed: int) -> Identity:
    """The person with this number, always the same one."""
    rng = random.Random(f"identity {seed}")
    return Identity(
        skin=rng.choice(list(SKINS)),
        skin_shade=rng.uniform(-0.06, 0.06),
        face_shape=rng.choice(list(FACE_SHAPES)),
        face_width=rng.uniform(0.97, 1.03),
        hair_colour=rng.choice(list(HAIR_COLOURS)),
        hair_style=rng.choices(HAIR_STYLES, weights=(1, 2, 2, 2, 2, 2, 1, 2))[0],
        hair_shade=rng.uniform(-0.12, 0.12),
        eye_colour=rng.choice(list(EYE_COLOURS)),
        eye_spacing=rng.uniform(0.88, 1.16),
        eye_size=rng.uniform(0.85, 1.2),
        brows=rng.choice(BROWS),
        nose=rng.choice(NOSES),
        mouth_width=rng.uniform(0.75, 1.3),
        lip_red=rng.uniform(0, 1),
        beard=rng.choices(BEARDS, weights=(5, 2, 2, 1))[0],
        glasses=rng.choices(GLASSES, weights=(3, 1, 1))[0],
        glasses_colour=rng.choice(list(GLASSES_COLOURS)),
        freckles=rng.random() < 0.2,
        ears=rng.choice((0.8, 1.35)),
    )


def asked_traits(asks: Mapping[str, str]) -> dict[str, str]:
    """What is asked for of the person's traits."""
    return {name: value for name, value in asks.items() if name in TRAITS}


def asked_context(asks: Mapping[str, str]) -> Context:
    """The context that is asked for; what is asked of the person's traits is left out."""
    return Context(**{name: value for name, value in asks.items() if name not in TRAITS})


def context(rng: random.Random) -> Context:
    """A random context; the everyday ones are the most frequent."""
    return Context(
        style=rng.choices(STYLES, weights=(10, 4, 4, 4, 4))[0],
        place=rng.choices(PLACES, weights=(6, 3, 3, 3, 3, 3))[0],
        clothes=rng.choices(CLOTHES, weights=(6, 3, 3, 3))[0],
        headwear=rng.choices(HEADWEAR, weights=(6, 3, 3, 3))[0],
        framing=rng.choices(FRAMINGS, weights=(6, 1, 1))[0],
    )
