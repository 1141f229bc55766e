"""A person at their place in a picture: what their hair, clothes and features are drawn with."""

from __future__ import annotations

from dataclasses import dataclass, replace

from profusion_cli.faceworld.drawing.canvas import Canvas, shade
from profusion_cli.faceworld.drawing.pose import Pose
from profusion_cli.faceworld.world import FACE_SHAPES, HAIR_COLOURS, SKINS, Colour, Context, Identity


@dataclass(frozen=True)
class Person:
    """One person; lengths are fractions of the picture's side.

    Args:
        canvas: in the person's frame.
        who, context, pose: what is drawn.
        skin, hair: colours.
        rx, ry: half the width and height of the face.
        power: of the face's superellipse.
        anime: whether the style is.
        dx: how far the features move with the turn of the head.
    """

    canvas: Canvas
    who: Identity
    context: Context
    pose: Pose
    skin: Colour
    hair: Colour
    rx: float
    ry: float
    power: float
    anime: bool
    dx: float

    def moved(self, x: float, y: float, zoom: float = 1.0, tilt: float = 0.0) -> Person:
        """The person in another frame of the same picture, as `Canvas.moved` has it."""
        return replace(self, canvas=self.canvas.moved(x, y, zoom, tilt))


def stand(canvas: Canvas, who: Identity, context: Context, pose: Pose) -> Person:
    """The person at their place in the picture."""
    zoom = {"portrait": 0.95, "close-up": 1.28, "half-length": 0.68}[context.framing] * pose.size
    drop = {"portrait": 0.0, "close-up": 0.04, "half-length": -0.07}[context.framing]
    canvas.place(0.5 + pose.x, 0.49 + drop + pose.y, zoom, pose.tilt)
    width, height = FACE_SHAPES[who.face_shape]
    return Person(
        canvas=canvas,
        who=who,
        context=context,
        pose=pose,
        skin=shade(SKINS[who.skin], who.skin_shade),
        hair=shade(HAIR_COLOURS[who.hair_colour], who.hair_shade),
        rx=0.19 * width * who.face_width,
        ry=0.235 * height,
        power=3.4 if who.face_shape == "square" else 2.0,
        anime=context.style == "anime",
        dx=pose.turn,
    )
