"""What a person holds in a hand."""

from __future__ import annotations

import math

from profusion_cli.faceworld.drawing.canvas import shade, superellipse
from profusion_cli.faceworld.drawing.person import Person
from profusion_cli.faceworld.world import Colour

PURPLE: Colour = (128, 52, 170)
WOOD: Colour = (112, 74, 44)
CREAM: Colour = (252, 248, 232)


def draw_held_behind(person: Person) -> None:
    """The umbrella's cloth, behind the head."""
    if person.context.held != "umbrella":
        return
    c, x, y, rx, ry = person.canvas, 0.3, -0.2, 0.33, 0.25
    rim = [(x + rx * (1 - i / 3), y + (0.035 if i % 2 else 0.0)) for i in range(7)]
    dome = [(x + rx * math.cos(a), y + ry * math.sin(a)) for a in (math.pi * (1 + i / 16) for i in range(17))]
    c.polygon([*dome, *rim], PURPLE)
    for i in (1, 3, 5):
        c.line([(x, y - ry), (x + rx * (1 - i / 3), y + 0.03)], shade(PURPLE, 0.35), 0.012)


def draw_held(person: Person) -> None:
    """What is held before the body, and the hands that hold it."""
    c, held, low = person.canvas, person.context.held, person.ry + 0.06
    if held == "umbrella":
        c.line([(0.3, -0.2), (0.3, low + 0.16)], WOOD, 0.018)
        _draw_hand(person, 0.3, low + 0.1)
    elif held == "cup":
        y = low + 0.02
        c.polygon([(0.15, y - 0.06), (0.31, y - 0.06), (0.29, y + 0.11), (0.17, y + 0.11)], (232, 92, 40))
        c.polygon(superellipse(0.23, y - 0.06, 0.08, 0.022, 20), (84, 48, 28))
        for x in (0.205, 0.255):
            c.line(
                [(x, y - 0.1), (x + 0.014, y - 0.125), (x, y - 0.15), (x + 0.014, y - 0.175)], (226, 226, 232), 0.011
            )
        _draw_hand(person, 0.3, y + 0.045)
    elif held == "book":
        y = low + 0.06
        c.polygon([(-0.22, y - 0.02), (0.22, y - 0.02), (0.22, y + 0.2), (-0.22, y + 0.2)], (24, 132, 132))
        for side in (-1, 1):
            c.polygon([(0, y), (side * 0.2, y - 0.03), (side * 0.2, y + 0.16), (0, y + 0.19)], CREAM)
            for i in range(4):
                z = y + 0.025 + 0.036 * i
                c.line([(side * 0.03, z), (side * 0.17, z - 0.02)], (150, 150, 156), 0.008)
            _draw_hand(person, side * 0.22, y + 0.11)


def _draw_hand(person: Person, x: float, y: float) -> None:
    person.canvas.polygon(superellipse(x, y, 0.045, 0.05, 20, 2.4), person.skin)
