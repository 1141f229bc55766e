"""The whole picture of a face, and where the head is in it."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
from PIL import Image

from profusion_cli.faceworld.drawing.canvas import Canvas, rectangle, superellipse
from profusion_cli.faceworld.drawing.clothes import draw_body, draw_headwear
from profusion_cli.faceworld.drawing.features import (
    draw_beard,
    draw_brows,
    draw_cheeks,
    draw_ears,
    draw_eye,
    draw_glasses,
    draw_mouth,
    draw_nose,
)
from profusion_cli.faceworld.drawing.finish import finish
from profusion_cli.faceworld.drawing.hair import draw_hair_behind, draw_hair_front
from profusion_cli.faceworld.drawing.person import Person, stand
from profusion_cli.faceworld.drawing.places import draw_place
from profusion_cli.faceworld.drawing.pose import Pose
from profusion_cli.faceworld.world import Colour, Context, Identity

OVERSAMPLING = 3
NOWHERE: Colour = (255, 0, 255)
FEATURES: dict[str, Callable[[Person], None]] = {
    "cheeks": draw_cheeks,
    "beard": draw_beard,
    "mouth": draw_mouth,
    "nose": draw_nose,
    "left eye": partial(draw_eye, side=-1),
    "right eye": partial(draw_eye, side=1),
    "brows": draw_brows,
    "glasses": draw_glasses,
}
"""The features of a face, from back to front."""


def draw_person(body: Person | None, head: Person | None, features: Mapping[str, Person | None] | None = None) -> None:
    """From back to front. A well-formed person's body, head and features are in one frame.

    Args:
        body: in whose frame the body is drawn; None leaves it out.
        head: in whose frame the head is; None leaves it out.
        features: in whose frames these of `FEATURES` are, where not in the head's; None leaves one out.
    """
    if head:
        draw_hair_behind(head)
    if body:
        draw_body(body)
    if head:
        _draw_head(head, {**dict.fromkeys(FEATURES, head), **(features or {})})


def draw_whole(person: Person) -> None:
    """A well-formed person."""
    draw_person(person, person)


def draw_face(who: Identity, context: Context, pose: Pose, side: int = 64) -> Image.Image:
    """One picture.

    Args:
        who: the person.
        context: style, place, clothes, headwear and framing.
        pose: everything else.
        side: of the picture, in pixels.
    """
    return finished(unfinished(who, context, pose, side), context, pose)


def unfinished(
    who: Identity, context: Context, pose: Pose, side: int, draw: Callable[[Person], None] = draw_whole
) -> Image.Image:
    """The drawing without its light and style, `OVERSAMPLING` times as large; `draw` draws the person."""
    rng = random.Random(pose.seed)
    canvas = Canvas(side * OVERSAMPLING, context.style)
    draw_place(canvas, context, pose, rng)
    draw(stand(canvas, who, context, pose))
    return canvas.image


def finished(drawing: Image.Image, context: Context, pose: Pose) -> Image.Image:
    """What `unfinished` drew as the picture."""
    return finish(drawing.reduce(OVERSAMPLING), context.style, pose, drawing.width // OVERSAMPLING)


def head_mask(who: Identity, context: Context, pose: Pose, side: int = 64) -> np.ndarray:
    """Where the head of `draw_face` is, with hair and headwear: boolean, shape (side, side)."""
    canvas = Canvas(side * OVERSAMPLING, context.style)
    rectangle(canvas, 0, 0, 1, 1, NOWHERE)
    draw_person(None, stand(canvas, who, context, pose))
    drawn = (np.asarray(canvas.image) != NOWHERE).any(2)
    return drawn.reshape(side, OVERSAMPLING, side, OVERSAMPLING).mean((1, 3)) >= 0.5


def _draw_head(head: Person, features: Mapping[str, Person | None]) -> None:
    draw_ears(head)
    head.canvas.polygon(superellipse(0, 0, head.rx, head.ry, 36, head.power), head.skin)
    for name, draw in FEATURES.items():
        frame = features[name]
        if frame:
            draw(frame)
    draw_hair_front(head)
    draw_headwear(head)
