"""Poses: what changes from picture to picture of one person in one context."""

from __future__ import annotations

import colorsys
import random
from dataclasses import dataclass

from profusion_cli.faceworld.drawing.canvas import rgb
from profusion_cli.faceworld.world import Colour


@dataclass(frozen=True)
class Pose:
    """What changes from picture to picture of one person in one context.

    Args:
        x, y: shift, in sides of the picture.
        size: relative size of the person.
        tilt: degrees.
        turn: of the head; the features move by so much, in sides of the picture.
        smile: 0 to 1.
        light: relative brightness of the left and of the right side.
        warmth: -1 (blue) to 1 (yellow).
        shirt: colour of a plain shirt.
        backdrop: colour of a plain background.
        seed: of the scattered things: trees, windows, snow, brush strokes.
    """

    x: float = 0.0
    y: float = 0.0
    size: float = 1.0
    tilt: float = 0.0
    turn: float = 0.0
    smile: float = 0.5
    light: tuple[float, float] = (1.0, 1.0)
    warmth: float = 0.0
    shirt: Colour = (110, 130, 150)
    backdrop: Colour = (205, 205, 205)
    seed: int = 0


def random_pose(rng: random.Random) -> Pose:
    """A pose, a light and the colours that are neither identity nor asked for."""
    grey = rng.randint(165, 235)
    shirt = colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.15, 0.75), rng.uniform(0.35, 0.85))
    brightness, slope = rng.uniform(0.94, 1.06), rng.uniform(-0.1, 0.1)
    return Pose(
        x=rng.uniform(-0.04, 0.04),
        y=rng.uniform(-0.03, 0.03),
        size=rng.uniform(0.94, 1.06),
        tilt=rng.uniform(-7, 7),
        turn=rng.uniform(-0.022, 0.022),
        smile=rng.random(),
        light=(brightness + slope, brightness - slope),
        warmth=rng.uniform(-0.5, 0.5),
        shirt=rgb(*shirt),
        backdrop=(grey + rng.randint(-8, 8), grey + rng.randint(-8, 8), grey + rng.randint(-8, 8)),
        seed=rng.randrange(1 << 30),
    )
