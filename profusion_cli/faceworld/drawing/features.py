"""The features of a face: ears, cheeks, beard, mouth, nose, eyes, brows and glasses."""

from __future__ import annotations

import math

from profusion_cli.faceworld.drawing.canvas import INK, shade, superellipse
from profusion_cli.faceworld.drawing.person import Person
from profusion_cli.faceworld.world import EYE_COLOURS, GLASSES_COLOURS


def draw_ears(person: Person) -> None:
    """Ears."""
    size = 0.042 * person.who.ears
    for side in (-1, 1):
        person.canvas.ellipse(side * (person.rx + size * 0.35) + person.dx * 0.4, 0.02, size, size * 1.45, person.skin)
        inner = shade(person.skin, -0.18)
        person.canvas.ellipse(
            side * (person.rx + size * 0.45) + person.dx * 0.4, 0.02, size * 0.5, size * 0.8, inner, False
        )


def draw_cheeks(person: Person) -> None:
    """Freckles."""
    if person.who.freckles:
        for side in (-1, 1):
            for x, y in ((0.065, 0.05), (0.095, 0.066), (0.125, 0.05), (0.08, 0.088), (0.112, 0.092)):
                person.canvas.ellipse(side * x + person.dx, y, 0.0105, 0.0105, shade(person.skin, -0.42), False)


def draw_beard(person: Person) -> None:
    """Beard, goatee or moustache."""
    c, beard, colour = person.canvas, person.who.beard, shade(person.hair, -0.15)
    if beard == "beard":
        jaw = superellipse(0, 0.012, person.rx, person.ry * 1.06, 40, person.power)
        outer = [(x, y) for x, y in jaw if y > 0.05]
        left, right = min(outer)[0], max(outer)[0]
        inner = [(right * 0.72, 0.1), (right * 0.5, 0.1), (0, 0.088), (left * 0.5, 0.1), (left * 0.72, 0.1)]
        c.polygon([*sorted(outer, key=lambda p: math.atan2(p[1], p[0])), *reversed(inner)], colour)
    if beard == "goatee":
        c.polygon(superellipse(person.dx, person.ry * 0.92, 0.06, 0.062, 20), colour)
    if beard in ("moustache", "beard"):
        d, y = person.dx, 0.1
        c.polygon(
            [
                (d, y - 0.02),
                (d + 0.09, y + 0.012),
                (d + 0.1, y + 0.034),
                (d, y + 0.018),
                (d - 0.1, y + 0.034),
                (d - 0.09, y + 0.012),
            ],
            colour,
        )


def draw_mouth(person: Person) -> None:
    """Lips, as they smile."""
    c, d, y = person.canvas, person.dx, 0.142
    half = 0.07 * person.who.mouth_width * (0.8 if person.anime else 1)
    red = (214, 70, 80)
    mix = person.who.lip_red
    lips = tuple(round(a * mix + b * (1 - mix)) for a, b in zip(red, shade(person.skin, -0.36), strict=True))
    bend = 0.012 + 0.022 * person.pose.smile
    lower = [(d + half * t, y + bend * (1 - t * t) + 0.012) for t in (1, 0.5, 0, -0.5, -1)]
    upper = [(d + half * t, y + bend * (1 - t * t) * 0.2 - 0.006) for t in (-1, -0.5, 0, 0.5, 1)]
    c.polygon([*lower, *upper], lips, outline=False)  # type: ignore[arg-type]


def draw_nose(person: Person) -> None:
    """The nose."""
    c, d, dark = person.canvas, person.dx * 1.5, shade(person.skin, -0.26)
    if person.who.nose == "small":
        c.ellipse(d, 0.062, 0.024, 0.016, dark, False)
    elif person.who.nose == "big":
        c.ellipse(d, 0.055, 0.046, 0.036, dark, False)
        c.ellipse(d, 0.048, 0.03, 0.022, shade(person.skin, -0.1), False)
    else:
        c.polygon([(d, -0.03), (d + 0.038, 0.074), (d - 0.03, 0.074)], dark, outline=False)


def draw_eye(person: Person, side: int) -> None:
    """The eye on the left (-1) or on the right (1), larger in anime."""
    c, who = person.canvas, person.who
    big = 1.55 if person.anime else 1.0
    x, y = side * 0.082 * who.eye_spacing + person.dx, -0.035
    rx, ry = 0.042 * who.eye_size * (1.12 if person.anime else 1), 0.03 * who.eye_size * big
    c.polygon(superellipse(x, y, rx, ry, 20), (250, 250, 250))
    iris = (0.026 if not person.anime else 0.034) * who.eye_size
    c.polygon(
        superellipse(x + person.dx * 0.4, y, iris, iris * (1.25 if person.anime else 1), 18),
        EYE_COLOURS[who.eye_colour],
        False,
    )
    c.ellipse(x + person.dx * 0.4, y, iris * 0.48, iris * 0.55, (14, 12, 14), False)
    if person.anime:
        c.ellipse(x + 0.012, y - 0.018, 0.012, 0.014, (255, 255, 255), False)
    else:
        c.line(
            [(x - rx, y - 0.008), (x - rx * 0.4, y - ry), (x + rx * 0.4, y - ry), (x + rx, y - 0.008)],
            INK,
            0.009,
        )


def draw_brows(person: Person) -> None:
    """Brows."""
    c, who = person.canvas, person.who
    colour = shade(person.hair, -0.25)
    lift = 0.03 if person.anime else 0.0
    width = 0.026 if who.brows == "thick" else 0.011
    for side in (-1, 1):
        x, y = side * 0.082 * who.eye_spacing + person.dx, -0.095 - lift
        slope = 0.028 if who.brows == "slanted" else -0.004
        if who.brows == "slanted":
            width = 0.018
        c.line([(x - side * 0.045, y + slope), (x + side * 0.048, y - slope)], colour, width)


def draw_glasses(person: Person) -> None:
    """Glasses."""
    c, who = person.canvas, person.who
    if who.glasses == "none":
        return
    colour = GLASSES_COLOURS[who.glasses_colour]
    y, spacing = -0.033, 0.082 * who.eye_spacing
    half = min(0.064, spacing - 0.012)
    for side in (-1, 1):
        x = side * spacing + person.dx
        rim = superellipse(x, y, half, half * 0.95, 24, 2.0 if who.glasses == "round" else 7.0)
        c.line([*rim, rim[0], rim[1]], colour, 0.016)
        c.line([(x + side * half, y - 0.005), (side * person.rx * 1.02, y - 0.015)], colour, 0.014)
    c.line([(person.dx - spacing + half, y - 0.008), (person.dx + spacing - half, y - 0.008)], colour, 0.016)
