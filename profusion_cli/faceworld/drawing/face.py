"""The whole picture of a face, and where the head is in it."""

from __future__ import annotations

import random

import numpy as np
from PIL import Image

from profusion_cli.faceworld.drawing.canvas import Canvas, rectangle, superellipse
from profusion_cli.faceworld.drawing.clothes import draw_body, draw_headwear
from profusion_cli.faceworld.drawing.features import (
    draw_beard,
    draw_brows,
    draw_cheeks,
    draw_ears,
    draw_eyes,
    draw_glasses,
    draw_mouth,
    draw_nose,
)
from profusion_cli.faceworld.drawing.finish import finish
from profusion_cli.faceworld.drawing.hair import draw_hair_behind, draw_hair_front
from profusion_cli.faceworld.drawing.held import draw_held, draw_held_behind
from profusion_cli.faceworld.drawing.person import Person, stand
from profusion_cli.faceworld.drawing.places import draw_place
from profusion_cli.faceworld.drawing.pose import Pose, random_pose
from profusion_cli.faceworld.world import SPLITS, Colour, Context, Identity, identity

OVERSAMPLING = 2
ASIDE = 0.23
"""How far two people stand from the middle, in sides of the picture."""
NOWHERE: Colour = (255, 0, 255)


def draw_face(who: Identity, context: Context, pose: Pose, side: int = 64) -> Image.Image:
    """One picture.

    Args:
        who: the person.
        context: style, place, clothes, headwear and framing.
        pose: everything else.
        side: of the picture, in pixels.
    """
    rng = random.Random(pose.seed)
    canvas = Canvas(side * OVERSAMPLING, context.style)
    draw_place(canvas, context, pose, rng)
    if context.company != "alone":
        _draw_person(_companion(canvas, context, pose))
    _draw_person(_subject(canvas, who, context, pose))
    return finish(canvas.image.reduce(OVERSAMPLING), context.style, pose, side)


def head_mask(who: Identity, context: Context, pose: Pose, side: int = 64) -> np.ndarray:
    """Where the head of `draw_face` is, with hair and headwear: boolean, shape (side, side)."""
    canvas = Canvas(side * OVERSAMPLING, context.style)
    rectangle(canvas, 0, 0, 1, 1, NOWHERE)
    _draw_person(_subject(canvas, who, context, pose), body=False)
    drawn = (np.asarray(canvas.image) != NOWHERE).any(2)
    return drawn.reshape(side, OVERSAMPLING, side, OVERSAMPLING).mean((1, 3)) >= 0.5


def _subject(canvas: Canvas, who: Identity, context: Context, pose: Pose) -> Person:
    return stand(canvas, who, context, pose, 0.0 if context.company == "alone" else -ASIDE)


def _companion(canvas: Canvas, context: Context, pose: Pose) -> Person:
    """Somebody else on the right, in everyday clothes."""
    other = identity(pose.seed % len(SPLITS["train"]))
    return stand(
        canvas,
        other,
        Context(style=context.style, company=context.company),
        random_pose(random.Random(pose.seed)),
        ASIDE,
    )


def _draw_person(person: Person, body: bool = True) -> None:
    """From back to front."""
    if body:
        draw_held_behind(person)
    draw_hair_behind(person)
    if body:
        draw_body(person)
    draw_ears(person)
    person.canvas.polygon(superellipse(0, 0, person.rx, person.ry, 36, person.power), person.skin)
    draw_cheeks(person)
    draw_beard(person)
    draw_mouth(person)
    draw_nose(person)
    draw_eyes(person)
    draw_brows(person)
    draw_glasses(person)
    draw_hair_front(person)
    draw_headwear(person)
    if body:
        draw_held(person)
