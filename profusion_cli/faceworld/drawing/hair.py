"""Hair, behind the head and before it."""

from __future__ import annotations

import math

from profusion_cli.faceworld.drawing.canvas import superellipse
from profusion_cli.faceworld.drawing.person import Person


def draw_hair_behind(person: Person) -> None:
    """What is seen around the head."""
    c, style = person.canvas, person.who.hair_style
    rx, ry = person.rx, person.ry
    if style == "long":
        c.polygon(
            [*superellipse(0, -0.04, rx * 1.28, ry * 1.12, 30)[15:], (rx * 1.36, 0.42), (-rx * 1.36, 0.42)], person.hair
        )
    elif style == "bob":
        c.polygon(superellipse(0, 0.0, rx * 1.36, ry * 1.16, 30, 2.6), person.hair)
    elif style == "curly":
        for i in range(13):
            a = math.pi * (0.92 + 1.16 * i / 12)
            c.ellipse(rx * 1.12 * math.cos(a), -0.06 + ry * 1.02 * math.sin(a), 0.075, 0.075, person.hair)
    elif style == "bun":
        c.ellipse(0, -ry * 1.28, 0.085, 0.078, person.hair)


def draw_hair_front(person: Person) -> None:
    """What grows on top, and falls over the forehead."""
    style = person.who.hair_style
    if style == "mohawk":
        _draw_mohawk(person)
    elif style == "spiky":
        _draw_spikes(person)
    elif style != "bald":
        _draw_fringe(person, style)


def _top(person: Person) -> list[tuple[float, float]]:
    """The outline of the hair on top of the head, from left to right."""
    rx, ry = person.rx, person.ry
    return sorted((x, y) for x, y in superellipse(0, -0.01, rx * 1.07, ry * 1.08, 48, person.power) if y < -ry * 0.36)


def _draw_mohawk(person: Person) -> None:
    ry = person.ry
    crest = [
        (-0.055, -ry * 0.7),
        (-0.075, -ry * 1.35),
        (-0.03, -ry * 1.2),
        (0, -ry * 1.48),
        (0.03, -ry * 1.2),
        (0.075, -ry * 1.35),
        (0.055, -ry * 0.7),
    ]
    person.canvas.polygon(crest, person.hair)


def _draw_spikes(person: Person) -> None:
    rx, ry, top = person.rx, person.ry, _top(person)
    left, right = top[0], top[-1]
    spikes = [left]
    for i in range(7):
        x0 = left[0] + (right[0] - left[0]) * i / 6
        height = ry * (1.2 + 0.18 * math.sin(math.pi * i / 6))
        spikes.append((x0 * 1.12, -height if i % 6 else -ry * 0.95))
        if i < 6:
            spikes.append((left[0] + (right[0] - left[0]) * (i + 0.5) / 6, -ry * 0.92))
    hairline = [(rx * 0.55, -ry * 0.56), (0, -ry * 0.64), (-rx * 0.55, -ry * 0.56)]
    person.canvas.polygon([*spikes, right, *hairline], person.hair)


def _draw_fringe(person: Person, style: str) -> None:
    c, rx, ry = person.canvas, person.rx, person.ry
    fringe = {
        "short": [(rx * 0.6, -ry * 0.58), (0, -ry * 0.66), (-rx * 0.6, -ry * 0.58)],
        "curly": [(rx * 0.5, -ry * 0.6), (0, -ry * 0.56), (-rx * 0.5, -ry * 0.6)],
        "long": [(rx * 0.75, -ry * 0.3), (0.02, -ry * 0.82), (-rx * 0.75, -ry * 0.3)],
        "bob": [(rx * 0.8, -ry * 0.46), (0, -ry * 0.48), (-rx * 0.8, -ry * 0.46)],
        "bun": [(rx * 0.62, -ry * 0.62), (0, -ry * 0.76), (-rx * 0.62, -ry * 0.62)],
    }[style]
    c.polygon([*_top(person), *fringe], person.hair)
    if style == "curly":
        for i in range(5):
            c.ellipse(rx * (-0.72 + 0.36 * i), -ry * 0.74, 0.055, 0.05, person.hair)
    if style in ("long", "bob"):
        for side in (-1, 1):
            lock = [
                (side * rx * 1.06, -ry * 0.4),
                (side * rx * 0.86, -ry * 0.2),
                (side * rx * 0.95, 0.16),
                (side * rx * 1.3, 0.18),
            ]
            c.polygon(lock, person.hair, outline=False)
