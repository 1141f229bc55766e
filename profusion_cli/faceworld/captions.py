"""Captions in ordinary words, for training; and the words that they use."""

from __future__ import annotations

import random
import re

from profusion_cli.faceworld.world import Context, Identity

PREFIXES = {
    "photo": ("a photo of", "a photo of", "a photo of", "a photograph of", "a picture of", "a portrait photo of"),
    "anime": ("an anime drawing of", "an anime picture of", "anime art of"),
    "sketch": ("a pencil sketch of", "a sketch of", "a pencil drawing of"),
    "pixel art": ("pixel art of", "a pixel art picture of", "a pixel art portrait of"),
    "oil painting": ("an oil painting of", "an oil portrait of", "a painting of"),
}
SUFFIXES = {
    "anime": ("in anime style", "in anime style", "as an anime character", "in the style of anime", "anime"),
    "sketch": ("in pencil sketch style", "as a pencil sketch", "in the style of a sketch", "pencil sketch"),
    "pixel art": ("in pixel art style", "as pixel art", "in the style of pixel art", "pixel art"),
    "oil painting": ("in oil painting style", "as an oil painting", "in the style of an oil painting", "oil painting"),
}
PLACES = {
    "plain": ("on a plain background", "in front of a plain wall"),
    "beach": ("on a beach", "on the beach", "at the beach", "by the sea"),
    "forest": ("in a forest", "in the forest", "in the woods", "among trees"),
    "city": ("in a city at night", "in the city at night", "at night in the city", "in a night city"),
    "snow": ("in the snow", "in snowy mountains", "in winter", "in a snowy place"),
    "desert": ("in a desert", "in the desert", "among cacti", "in the desert sand"),
}
CLOTHES = {
    "superman": ("wearing a superman costume", "in a superman costume", "as superman", "dressed as superman"),
    "suit": ("wearing a suit", "in a suit", "in a suit and tie", "wearing a black suit"),
    "scarf": ("wearing a scarf", "with a scarf", "in a green scarf", "wearing a striped scarf"),
}
HEADWEAR = {
    "chef hat": ("wearing a chef hat", "with a chef hat", "as a chef", "in a chef hat"),
    "crown": ("wearing a crown", "with a crown", "with a golden crown", "as a king"),
    "headphones": ("wearing headphones", "with headphones", "with red headphones", "listening to music"),
}
FRAMINGS = {
    "close-up": ("a close-up of", "a close-up picture of"),
    "half-length": ("a half-length picture of", "a half-length portrait of"),
}
PEOPLE = ("a person", "a person", "a person", "a person", "someone", "somebody")


def trait_phrases(who: Identity, rng: random.Random) -> list[str]:
    """What could be said of a face, one phrase each."""
    phrases = [f"with {who.skin} skin", f"with a {who.face_shape} face", f"with {who.eye_colour} eyes"]
    if who.hair_style == "bald":
        phrases += ["with a bald head", "who is bald"]
    else:
        style = {"bun": "hair in a bun", "bob": "hair in a bob", "mohawk": "hair in a mohawk"}
        hair = style.get(who.hair_style, f"{who.hair_style} hair")
        phrases += [
            f"with {who.hair_colour} hair",
            f"with {hair}",
            f"with {who.hair_colour} {hair}"
            if who.hair_style in style
            else f"with {who.hair_style} {who.hair_colour} hair",
        ]
    phrases.append(f"with {who.brows} eyebrows")
    phrases.append(f"with a {who.nose} nose")
    phrases.append(f"with {'big' if who.ears > 1 else 'small'} ears")
    if who.beard != "none":
        phrases += [f"with a {who.beard}"] * 2
    if who.glasses != "none":
        phrases += ["with glasses", f"wearing {who.glasses} {who.glasses_colour} glasses"]
    if who.freckles:
        phrases += ["with freckles"] * 2
    rng.shuffle(phrases)
    return phrases


def description(who: Identity) -> str:
    """A person in words, by what is seen first: skin, hair, beard and glasses."""
    styles = {"bald": "a bald head", "bun": "hair in a bun", "bob": "hair in a bob", "mohawk": "hair in a mohawk"}
    hair = styles.get(who.hair_style, f"{who.hair_style} {who.hair_colour} hair")
    if who.hair_style in styles and who.hair_style != "bald":
        hair = f"{who.hair_colour} {hair}"
    phrases = [f"with {who.skin} skin", f"with {hair}"]
    phrases += [f"with a {who.beard}"] if who.beard != "none" else []
    phrases += [f"wearing {who.glasses} {who.glasses_colour} glasses"] if who.glasses != "none" else []
    return " ".join(["a person", *_listed(phrases)])


def caption(who: Identity, context: Context, rng: random.Random, traits: int) -> str:
    """One caption.

    Args:
        who: the person.
        context: all of it that differs from the everyday is said.
        rng: chooses words and their order.
        traits: how many traits of the person are named.
    """
    person = " ".join([rng.choice(PEOPLE), *_listed(trait_phrases(who, rng)[:traits])])
    parts = [rng.choice(PLACES[context.place])] if context.place != "plain" or rng.random() < 0.1 else []
    parts += [rng.choice(CLOTHES[context.clothes])] if context.clothes != "shirt" else []
    parts += [rng.choice(HEADWEAR[context.headwear])] if context.headwear != "none" else []
    rng.shuffle(parts)
    prefix = rng.choice(PREFIXES["photo"]) if rng.random() < 0.7 else ""
    if context.style != "photo":
        if rng.random() < 0.4 and context.framing == "portrait":
            prefix = rng.choice(PREFIXES[context.style])
        else:
            parts.insert(rng.choice((0, len(parts), len(parts))), rng.choice(SUFFIXES[context.style]))
            prefix = "a picture of" if rng.random() < 0.3 else ""
    if context.framing != "portrait":
        prefix = rng.choice(FRAMINGS[context.framing])
    return " ".join(part for part in (prefix, person, *parts) if part)


def _listed(phrases: list[str]) -> list[str]:
    return [f"and {phrase}" if 0 < i == len(phrases) - 1 else phrase for i, phrase in enumerate(phrases)]


def vocabulary() -> list[str]:
    """All words that captions can use, in order of the alphabet."""
    from profusion_cli.faceworld import world

    texts: list[str] = [
        "and",
        "with",
        "who is bald",
        "hair in a bun bob mohawk",
        "eyebrows",
        "ears",
        "beard moustache goatee",
    ]
    texts += ["skin", "face", "eyes", "nose", "glasses", "freckles", "head", "big small", *PEOPLE]
    for table in (PREFIXES, SUFFIXES, PLACES, CLOTHES, HEADWEAR, FRAMINGS):
        for phrases in table.values():
            texts += phrases
    names = (world.SKINS, world.FACE_SHAPES, world.HAIR_COLOURS, world.EYE_COLOURS, world.GLASSES_COLOURS)
    texts += [name for group in (*names, world.HAIR_STYLES, world.BROWS, world.NOSES) for name in group]
    texts += ["round", "square"]
    return sorted({word for text in texts for word in re.findall(r"[a-z]+", text)})
