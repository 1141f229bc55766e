"""What a person wears: on the body, and on the head."""

from __future__ import annotations

import math

import numpy as np

from profusion_cli.faceworld.drawing.canvas import Canvas, shade, superellipse
from profusion_cli.faceworld.drawing.person import Person
from profusion_cli.faceworld.world import Colour

WHITE: Colour = (250, 250, 250)
GREEN: Colour = (34, 150, 76)
PALE: Colour = (244, 246, 240)


def draw_body(person: Person) -> None:
    """Shoulders, neck and clothes."""
    c, clothes, top = person.canvas, person.context.clothes, person.ry + 0.06
    colour = {"superman": (30, 70, 190), "suit": (28, 30, 40)}.get(clothes, person.pose.shirt)
    if clothes == "superman":
        c.polygon(_mirrored((0.17, top), (0.4, top + 0.1), (0.46, top + 0.7)), (200, 24, 28))
    c.polygon(_mirrored((0.1, top), (0.3, top + 0.09), (0.36, top + 0.6)), colour)
    neck = [(-0.075, 0.1), (-0.075, top + 0.03), (0, top + 0.06), (0.075, top + 0.03), (0.075, 0.1)]
    c.polygon(neck, shade(person.skin, -0.14))
    if clothes == "superman":
        _draw_shield(c, top + 0.08)
    elif clothes == "suit":
        _draw_tie(c, top)
    elif clothes == "scarf":
        _draw_scarf(c, top - 0.015)


def draw_headwear(person: Person) -> None:
    """What is on the head."""
    wear = person.context.headwear
    if wear == "chef hat":
        _draw_chef_hat(person.canvas, person.rx, -person.ry * 0.72)
    elif wear == "crown":
        _draw_crown(person.canvas, person.rx * 0.92, -person.ry * 0.72)
    elif wear == "headphones":
        _draw_headphones(person.canvas, person.rx, person.ry)


def _mirrored(*right: tuple[float, float]) -> list[tuple[float, float]]:
    """An outline from the points of its right half, from the top: down on the left, and up on the right."""
    return [*((-x, y) for x, y in right), *reversed(right)]


def _draw_shield(c: Canvas, y: float) -> None:
    c.polygon([(-0.12, y), (0.12, y), (0.15, y + 0.05), (0, y + 0.19), (-0.15, y + 0.05)], (250, 212, 40))
    c.polygon([(-0.09, y + 0.025), (0.09, y + 0.025), (0, y + 0.14)], (206, 22, 26), outline=False)


def _draw_tie(c: Canvas, top: float) -> None:
    c.polygon([(-0.11, top + 0.01), (0, top + 0.26), (0.11, top + 0.01)], (246, 246, 246), outline=False)
    tie = [(-0.025, top + 0.05), (0.025, top + 0.05), (0.035, top + 0.2), (0, top + 0.25), (-0.035, top + 0.2)]
    c.polygon(tie, (190, 20, 36), outline=False)


def _draw_scarf(c: Canvas, y: float) -> None:
    c.polygon(superellipse(0, y + 0.03, 0.17, 0.06, 20, 3.0), GREEN)
    c.polygon([(0.04, y + 0.05), (0.13, y + 0.05), (0.15, y + 0.3), (0.06, y + 0.3)], GREEN)
    for i in range(5):
        x = -0.14 + i * 0.064
        c.polygon([(x, y - 0.02), (x + 0.026, y - 0.025), (x + 0.026, y + 0.085), (x, y + 0.08)], PALE, outline=False)
    for i in range(3):
        z = y + 0.12 + i * 0.065
        c.polygon([(0.05, z), (0.14, z), (0.143, z + 0.03), (0.053, z + 0.03)], PALE, outline=False)


def _draw_chef_hat(c: Canvas, rx: float, y: float) -> None:
    for x, z, r in ((-0.1, -0.2, 0.095), (0.1, -0.2, 0.095), (0, -0.235, 0.11)):
        c.ellipse(x, y + z, r, r * 0.9, WHITE)
    c.polygon([(-rx * 0.92, y + 0.02), (-rx * 0.98, y - 0.15), (rx * 0.98, y - 0.15), (rx * 0.92, y + 0.02)], WHITE)
    c.line([(-rx * 0.92, y - 0.055), (rx * 0.92, y - 0.055)], (196, 196, 204), 0.012)


def _draw_crown(c: Canvas, w: float, y: float) -> None:
    points = [
        (-w, y),
        (-w * 1.12, y - 0.19),
        (-w * 0.5, y - 0.09),
        (0, y - 0.22),
        (w * 0.5, y - 0.09),
        (w * 1.12, y - 0.19),
        (w, y),
    ]
    c.polygon(points, (252, 204, 36))
    for x in (-0.09, 0, 0.09):
        c.ellipse(x, y - 0.035, 0.019, 0.019, (210, 24, 40), outline=False)


def _draw_headphones(c: Canvas, rx: float, ry: float) -> None:
    angles = np.linspace(math.pi, 2 * math.pi, 20)
    c.line([(rx * 1.16 * math.cos(a), -0.01 + ry * 1.17 * math.sin(a)) for a in angles], (36, 36, 42), 0.034)
    for side in (-1, 1):
        c.polygon(superellipse(side * rx * 1.17, 0.03, 0.052, 0.085, 20, 3.0), (214, 34, 40))
