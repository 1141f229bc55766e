"""Drawing a face of the face world with Pillow."""

from __future__ import annotations

import colorsys
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

from profusion_cli.faceworld.world import (
    EYE_COLOURS,
    FACE_SHAPES,
    GLASSES_COLOURS,
    HAIR_COLOURS,
    SKINS,
    Colour,
    Context,
    Identity,
)

OVERSAMPLING = 3
INK: Colour = (30, 26, 30)
NOWHERE: Colour = (255, 0, 255)
PIXEL_ART_SIDE = 22


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
        shirt=_colour(*shirt),
        backdrop=(grey + rng.randint(-8, 8), grey + rng.randint(-8, 8), grey + rng.randint(-8, 8)),
        seed=rng.randrange(1 << 30),
    )


def draw_face(who: Identity, context: Context, pose: Pose, side: int = 64) -> Image.Image:
    """One picture.

    Args:
        who: the person.
        context: style, place, clothes, headwear and framing.
        pose: everything else.
        side: of the picture, in pixels.
    """
    rng = random.Random(pose.seed)
    canvas = _Canvas(side * OVERSAMPLING, context.style)
    _draw_place(canvas, context, pose, rng)
    _stand(canvas, who, context, pose).draw()
    image = canvas.image.reduce(OVERSAMPLING)
    return _finish(image, context.style, pose, side)


def head_mask(who: Identity, context: Context, pose: Pose, side: int = 64) -> np.ndarray:
    """Where the head of `draw_face` is, with hair and headwear: boolean, shape (side, side)."""
    canvas = _Canvas(side * OVERSAMPLING, context.style)
    _rectangle(canvas, 0, 0, 1, 1, NOWHERE)
    _stand(canvas, who, context, pose).draw(body=False)
    drawn = (np.asarray(canvas.image) != NOWHERE).any(2)
    return drawn.reshape(side, OVERSAMPLING, side, OVERSAMPLING).mean((1, 3)) >= 0.5


def _stand(canvas: _Canvas, who: Identity, context: Context, pose: Pose) -> _Person:
    """The person at their place in the picture."""
    zoom = {"portrait": 0.95, "close-up": 1.28, "half-length": 0.68}[context.framing] * pose.size
    drop = {"portrait": 0.0, "close-up": 0.04, "half-length": -0.07}[context.framing]
    canvas.place(0.5 + pose.x, 0.49 + drop + pose.y, zoom, pose.tilt)
    return _Person(canvas, who, context, pose)


class _Canvas:
    """A square picture; shapes are given in the person's frame, whose unit is the picture's side."""

    def __init__(self, side: int, style: str) -> None:
        self.side, self.style = side, style
        self.image = Image.new("RGB", (side, side))
        self.pen = ImageDraw.Draw(self.image)
        self.outline = {"anime": 0.016, "sketch": 0.014}.get(style, 0.0)
        self.place(0.5, 0.5, 1.0, 0.0)

    def place(self, x: float, y: float, zoom: float, tilt: float) -> None:
        self.x, self.y, self.zoom = x, y, zoom
        self.cos, self.sin = math.cos(math.radians(tilt)), math.sin(math.radians(tilt))

    def point(self, x: float, y: float) -> tuple[float, float]:
        x, y = x * self.zoom, y * self.zoom
        return (
            (self.x + x * self.cos - y * self.sin) * self.side,
            (self.y + x * self.sin + y * self.cos) * self.side,
        )

    def polygon(self, points: Sequence[tuple[float, float]], fill: Colour, outline: bool = True) -> None:
        corners = [self.point(*point) for point in points]
        self.pen.polygon(corners, fill=fill)
        if outline and self.outline:
            width = max(round(self.outline * self.zoom * self.side), 1)
            self.pen.line([*corners, corners[0], corners[1]], fill=INK, width=width, joint="curve")

    def ellipse(self, x: float, y: float, rx: float, ry: float, fill: Colour, outline: bool = True) -> None:
        self.polygon(_ellipse(x, y, rx, ry), fill, outline)

    def line(self, points: Sequence[tuple[float, float]], fill: Colour, width: float) -> None:
        pixels = max(round(width * self.zoom * self.side), 1)
        self.pen.line([self.point(*point) for point in points], fill=fill, width=pixels, joint="curve")


def _ellipse(x: float, y: float, rx: float, ry: float, n: int = 28, power: float = 2.0) -> list[tuple[float, float]]:
    """A superellipse: `power` 2 is an ellipse, more is squarer."""

    def along(value: float) -> float:
        return math.copysign(abs(value) ** (2 / power), value)

    angles = [2 * math.pi * i / n for i in range(n)]
    return [(x + rx * along(math.cos(a)), y + ry * along(math.sin(a))) for a in angles]


def _colour(red: float, green: float, blue: float) -> Colour:
    return tuple(round(min(max(channel, 0), 1) * 255) for channel in (red, green, blue))  # type: ignore[return-value]


def _shade(colour: Colour, by: float) -> Colour:
    """Lighter (by > 0) or darker."""
    toward = 255 if by > 0 else 0
    return tuple(round(channel + (toward - channel) * abs(by)) for channel in colour)  # type: ignore[return-value]


# --- places ---


def _draw_place(canvas: _Canvas, context: Context, pose: Pose, rng: random.Random) -> None:
    draw: dict[str, Callable[[], None]] = {
        "plain": lambda: _rectangle(canvas, 0, 0, 1, 1, pose.backdrop),
        "beach": lambda: _beach(canvas, rng),
        "forest": lambda: _forest(canvas, rng),
        "city": lambda: _city(canvas, rng),
        "snow": lambda: _snow(canvas, rng),
        "desert": lambda: _desert(canvas, rng),
    }
    draw[context.place]()


def _rectangle(canvas: _Canvas, left: float, top: float, right: float, bottom: float, fill: Colour) -> None:
    s = canvas.side
    canvas.pen.rectangle((round(left * s), round(top * s), round(right * s), round(bottom * s)), fill=fill)


def _disc(canvas: _Canvas, x: float, y: float, radius: float, fill: Colour) -> None:
    s = canvas.side
    canvas.pen.ellipse(((x - radius) * s, (y - radius) * s, (x + radius) * s, (y + radius) * s), fill=fill)


def _area(canvas: _Canvas, points: Sequence[tuple[float, float]], fill: Colour) -> None:
    canvas.pen.polygon([(x * canvas.side, y * canvas.side) for x, y in points], fill=fill)


def _beach(canvas: _Canvas, rng: random.Random) -> None:
    horizon, shore = rng.uniform(0.42, 0.5), rng.uniform(0.66, 0.74)
    _rectangle(canvas, 0, 0, 1, horizon, (126, 200, 246))
    _disc(canvas, rng.choice((0.12, 0.86)) + rng.uniform(-0.04, 0.04), rng.uniform(0.1, 0.18), 0.09, (255, 226, 90))
    _rectangle(canvas, 0, horizon, 1, shore, (26, 112, 190))
    for _ in range(5):
        x, y = rng.uniform(0, 0.85), rng.uniform(horizon + 0.03, shore - 0.03)
        _rectangle(canvas, x, y, x + 0.14, y + 0.012, (150, 206, 240))
    _rectangle(canvas, 0, shore, 1, 1, (236, 208, 146))


def _forest(canvas: _Canvas, rng: random.Random) -> None:
    _rectangle(canvas, 0, 0, 1, 1, (150, 200, 150))
    _rectangle(canvas, 0, 0.74, 1, 1, (74, 116, 54))
    for i in range(9):
        x, height = i / 8 + rng.uniform(-0.05, 0.05), rng.uniform(0.5, 0.85)
        top, green = 0.82 - height, rng.randint(70, 120)
        _rectangle(canvas, x - 0.015, 0.6, x + 0.015, 0.84, (92, 62, 36))
        for step in range(3):
            y = top + step * height * 0.24
            half = 0.06 + 0.025 * step
            _area(canvas, [(x, y), (x - half, y + height * 0.32), (x + half, y + height * 0.32)], (18, green, 40))


def _city(canvas: _Canvas, rng: random.Random) -> None:
    _rectangle(canvas, 0, 0, 1, 1, (16, 16, 48))
    _disc(canvas, rng.choice((0.12, 0.88)), rng.uniform(0.08, 0.14), 0.06, (240, 238, 214))
    left = -0.04
    while left < 1:
        width, top = rng.uniform(0.13, 0.2), rng.uniform(0.16, 0.42)
        _rectangle(canvas, left, top, left + width - 0.015, 1, rng.choice(((44, 44, 72), (34, 36, 60), (54, 50, 80))))
        for row in range(int((1 - top) / 0.075)):
            for column in range(int(width / 0.055)):
                if rng.random() < 0.6:
                    x, y = left + 0.02 + column * 0.055, top + 0.03 + row * 0.075
                    _rectangle(canvas, x, y, x + 0.028, y + 0.036, (255, 214, 96))
        left += width


def _snow(canvas: _Canvas, rng: random.Random) -> None:
    _rectangle(canvas, 0, 0, 1, 1, (176, 200, 226))
    for x in (rng.uniform(0.0, 0.2), rng.uniform(0.8, 1.0), rng.uniform(0.4, 0.6)):
        top, half = rng.uniform(0.16, 0.32), rng.uniform(0.34, 0.44)
        _area(canvas, [(x, top), (x - half, 0.72), (x + half, 0.72)], (112, 128, 156))
        _area(canvas, [(x, top), (x - half * 0.36, top + 0.17), (x + half * 0.36, top + 0.17)], (250, 252, 255))
    _rectangle(canvas, 0, 0.66, 1, 1, (244, 248, 254))
    for _ in range(26):
        _disc(canvas, rng.random(), rng.random(), 0.014, (255, 255, 255))


def _desert(canvas: _Canvas, rng: random.Random) -> None:
    _rectangle(canvas, 0, 0, 1, 1, (252, 190, 116))
    _disc(canvas, rng.choice((0.14, 0.86)), rng.uniform(0.1, 0.18), 0.085, (255, 246, 214))
    _area(canvas, [(0, 0.56), (0.3, 0.48), (0.62, 0.58), (1, 0.5), (1, 1), (0, 1)], (222, 142, 66))
    _area(canvas, [(0, 0.72), (0.4, 0.64), (0.75, 0.72), (1, 0.66), (1, 1), (0, 1)], (198, 116, 48))
    for x in (rng.uniform(0.05, 0.13), rng.uniform(0.87, 0.95)):
        y, green = rng.uniform(0.34, 0.44), (48, 122, 60)
        _rectangle(canvas, x - 0.025, y, x + 0.025, 0.78, green)
        _rectangle(canvas, x - 0.085, y + 0.13, x, y + 0.17, green)
        _rectangle(canvas, x - 0.085, y + 0.05, x - 0.05, y + 0.15, green)
        _rectangle(canvas, x, y + 0.2, x + 0.085, y + 0.24, green)
        _rectangle(canvas, x + 0.05, y + 0.1, x + 0.085, y + 0.22, green)


# --- the person ---


class _Person:
    """Draws one person from back to front; lengths are fractions of the picture's side."""

    def __init__(self, canvas: _Canvas, who: Identity, context: Context, pose: Pose) -> None:
        self.canvas, self.who, self.context, self.pose = canvas, who, context, pose
        self.skin = _shade(SKINS[who.skin], who.skin_shade)
        self.hair = _shade(HAIR_COLOURS[who.hair_colour], who.hair_shade)
        width, height = FACE_SHAPES[who.face_shape]
        self.rx, self.ry = 0.19 * width * who.face_width, 0.235 * height
        self.power = 3.4 if who.face_shape == "square" else 2.0
        self.anime = context.style == "anime"
        self.dx = pose.turn

    def draw(self, body: bool = True) -> None:
        self._hair_behind()
        if body:
            self._body()
        self._ears()
        self.canvas.polygon(_ellipse(0, 0, self.rx, self.ry, 36, self.power), self.skin)
        self._cheeks()
        self._beard()
        self._mouth()
        self._nose()
        self._eyes()
        self._brows()
        self._glasses()
        self._hair_front()
        self._headwear()

    def _body(self) -> None:
        c, clothes = self.canvas, self.context.clothes
        neck = _shade(self.skin, -0.14)
        colour = {"superman": (30, 70, 190), "suit": (28, 30, 40)}.get(clothes, self.pose.shirt)
        top = self.ry + 0.06
        shoulders = [
            (-0.1, top),
            (-0.3, top + 0.09),
            (-0.36, top + 0.6),
            (0.36, top + 0.6),
            (0.3, top + 0.09),
            (0.1, top),
        ]
        if clothes == "superman":
            cape = [
                (-0.17, top),
                (-0.4, top + 0.1),
                (-0.46, top + 0.7),
                (0.46, top + 0.7),
                (0.4, top + 0.1),
                (0.17, top),
            ]
            c.polygon(cape, (200, 24, 28))
        c.polygon(shoulders, colour)
        c.polygon([(-0.075, 0.1), (-0.075, top + 0.03), (0, top + 0.06), (0.075, top + 0.03), (0.075, 0.1)], neck)
        if clothes == "superman":
            y = top + 0.08
            c.polygon([(-0.12, y), (0.12, y), (0.15, y + 0.05), (0, y + 0.19), (-0.15, y + 0.05)], (250, 212, 40))
            c.polygon([(-0.09, y + 0.025), (0.09, y + 0.025), (0, y + 0.14)], (206, 22, 26), outline=False)
        elif clothes == "suit":
            c.polygon([(-0.11, top + 0.01), (0, top + 0.26), (0.11, top + 0.01)], (246, 246, 246), outline=False)
            tie = [(-0.025, top + 0.05), (0.025, top + 0.05), (0.035, top + 0.2), (0, top + 0.25), (-0.035, top + 0.2)]
            c.polygon(tie, (190, 20, 36), outline=False)
        elif clothes == "scarf":
            y = top - 0.015
            c.polygon(_ellipse(0, y + 0.03, 0.17, 0.06, 20, 3.0), (34, 150, 76))
            c.polygon([(0.04, y + 0.05), (0.13, y + 0.05), (0.15, y + 0.3), (0.06, y + 0.3)], (34, 150, 76))
            for i in range(5):
                x = -0.14 + i * 0.064
                c.polygon(
                    [(x, y - 0.02), (x + 0.026, y - 0.025), (x + 0.026, y + 0.085), (x, y + 0.08)],
                    (244, 246, 240),
                    False,
                )
            for i in range(3):
                z = y + 0.12 + i * 0.065
                c.polygon([(0.05, z), (0.14, z), (0.143, z + 0.03), (0.053, z + 0.03)], (244, 246, 240), outline=False)

    def _ears(self) -> None:
        size = 0.042 * self.who.ears
        for side in (-1, 1):
            self.canvas.ellipse(side * (self.rx + size * 0.35) + self.dx * 0.4, 0.02, size, size * 1.45, self.skin)
            inner = _shade(self.skin, -0.18)
            self.canvas.ellipse(
                side * (self.rx + size * 0.45) + self.dx * 0.4, 0.02, size * 0.5, size * 0.8, inner, False
            )

    def _cheeks(self) -> None:
        if self.who.freckles:
            for side in (-1, 1):
                for x, y in ((0.065, 0.05), (0.095, 0.066), (0.125, 0.05), (0.08, 0.088), (0.112, 0.092)):
                    self.canvas.ellipse(side * x + self.dx, y, 0.0105, 0.0105, _shade(self.skin, -0.42), False)

    def _beard(self) -> None:
        c, beard, colour = self.canvas, self.who.beard, _shade(self.hair, -0.15)
        if beard == "beard":
            outer = [
                point for point in _ellipse(0, 0.012, self.rx * 1.0, self.ry * 1.06, 40, self.power) if point[1] > 0.05
            ]
            left, right = min(outer)[0], max(outer)[0]
            inner = [(right * 0.72, 0.1), (right * 0.5, 0.1), (0, 0.088), (left * 0.5, 0.1), (left * 0.72, 0.1)]
            c.polygon([*sorted(outer, key=lambda p: math.atan2(p[1], p[0])), *reversed(inner)], colour)
        if beard == "goatee":
            c.polygon(_ellipse(self.dx, self.ry * 0.92, 0.06, 0.062, 20), colour)
        if beard in ("moustache", "beard"):
            d, y = self.dx, 0.1
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

    def _mouth(self) -> None:
        c, d, y = self.canvas, self.dx, 0.142
        half = 0.07 * self.who.mouth_width * (0.8 if self.anime else 1)
        red = (214, 70, 80)
        mix = self.who.lip_red
        lips = tuple(round(a * mix + b * (1 - mix)) for a, b in zip(red, _shade(self.skin, -0.36), strict=True))
        bend = 0.012 + 0.022 * self.pose.smile
        lower = [(d + half * t, y + bend * (1 - t * t) + 0.012) for t in (1, 0.5, 0, -0.5, -1)]
        upper = [(d + half * t, y + bend * (1 - t * t) * 0.2 - 0.006) for t in (-1, -0.5, 0, 0.5, 1)]
        c.polygon([*lower, *upper], lips, outline=False)  # type: ignore[arg-type]

    def _nose(self) -> None:
        c, d, dark = self.canvas, self.dx * 1.5, _shade(self.skin, -0.26)
        if self.who.nose == "small":
            c.ellipse(d, 0.062, 0.024, 0.016, dark, False)
        elif self.who.nose == "big":
            c.ellipse(d, 0.055, 0.046, 0.036, dark, False)
            c.ellipse(d, 0.048, 0.03, 0.022, _shade(self.skin, -0.1), False)
        else:
            c.polygon([(d, -0.03), (d + 0.038, 0.074), (d - 0.03, 0.074)], dark, outline=False)

    def _eyes(self) -> None:
        c, who = self.canvas, self.who
        big = 1.55 if self.anime else 1.0
        for side in (-1, 1):
            x, y = side * 0.082 * who.eye_spacing + self.dx, -0.035
            rx, ry = 0.042 * who.eye_size * (1.12 if self.anime else 1), 0.03 * who.eye_size * big
            c.polygon(_ellipse(x, y, rx, ry, 20), (250, 250, 250))
            iris = (0.026 if not self.anime else 0.034) * who.eye_size
            c.polygon(
                _ellipse(x + self.dx * 0.4, y, iris, iris * (1.25 if self.anime else 1), 18),
                EYE_COLOURS[who.eye_colour],
                False,
            )
            c.ellipse(x + self.dx * 0.4, y, iris * 0.48, iris * 0.55, (14, 12, 14), False)
            if self.anime:
                c.ellipse(x + 0.012, y - 0.018, 0.012, 0.014, (255, 255, 255), False)
            else:
                c.line(
                    [(x - rx, y - 0.008), (x - rx * 0.4, y - ry), (x + rx * 0.4, y - ry), (x + rx, y - 0.008)],
                    INK,
                    0.009,
                )

    def _brows(self) -> None:
        c, who = self.canvas, self.who
        colour = _shade(self.hair, -0.25)
        lift = 0.03 if self.anime else 0.0
        width = 0.026 if who.brows == "thick" else 0.011
        for side in (-1, 1):
            x, y = side * 0.082 * who.eye_spacing + self.dx, -0.095 - lift
            slope = 0.028 if who.brows == "slanted" else -0.004
            if who.brows == "slanted":
                width = 0.018
            c.line([(x - side * 0.045, y + slope), (x + side * 0.048, y - slope)], colour, width)

    def _glasses(self) -> None:
        c, who = self.canvas, self.who
        if who.glasses == "none":
            return
        colour = GLASSES_COLOURS[who.glasses_colour]
        y, spacing = -0.033, 0.082 * who.eye_spacing
        half = min(0.064, spacing - 0.012)
        for side in (-1, 1):
            x = side * spacing + self.dx
            rim = _ellipse(x, y, half, half * 0.95, 24, 2.0 if who.glasses == "round" else 7.0)
            c.line([*rim, rim[0], rim[1]], colour, 0.016)
            c.line([(x + side * half, y - 0.005), (side * self.rx * 1.02, y - 0.015)], colour, 0.014)
        c.line([(self.dx - spacing + half, y - 0.008), (self.dx + spacing - half, y - 0.008)], colour, 0.016)

    def _hair_behind(self) -> None:
        c, style = self.canvas, self.who.hair_style
        rx, ry = self.rx, self.ry
        if style == "long":
            c.polygon(
                [*_ellipse(0, -0.04, rx * 1.28, ry * 1.12, 30)[15:], (rx * 1.36, 0.42), (-rx * 1.36, 0.42)], self.hair
            )
        elif style == "bob":
            c.polygon(_ellipse(0, 0.0, rx * 1.36, ry * 1.16, 30, 2.6), self.hair)
        elif style == "curly":
            for i in range(13):
                a = math.pi * (0.92 + 1.16 * i / 12)
                c.ellipse(rx * 1.12 * math.cos(a), -0.06 + ry * 1.02 * math.sin(a), 0.075, 0.075, self.hair)
        elif style == "bun":
            c.ellipse(0, -ry * 1.28, 0.085, 0.078, self.hair)

    def _hair_front(self) -> None:
        c, style, rx, ry = self.canvas, self.who.hair_style, self.rx, self.ry
        if style == "bald":
            return
        top = [(x, y) for x, y in _ellipse(0, -0.01, rx * 1.07, ry * 1.08, 48, self.power) if y < -ry * 0.36]
        top.sort()
        left, right = top[0], top[-1]
        if style == "mohawk":
            crest = [
                (-0.055, -ry * 0.7),
                (-0.075, -ry * 1.35),
                (-0.03, -ry * 1.2),
                (0, -ry * 1.48),
                (0.03, -ry * 1.2),
                (0.075, -ry * 1.35),
                (0.055, -ry * 0.7),
            ]
            c.polygon(crest, self.hair)
            return
        if style == "spiky":
            spikes: list[tuple[float, float]] = [left]
            for i in range(7):
                x0 = left[0] + (right[0] - left[0]) * i / 6
                height = ry * (1.2 + 0.18 * math.sin(math.pi * i / 6))
                spikes.append((x0 * 1.12, -height if i % 6 else -ry * 0.95))
                if i < 6:
                    spikes.append((left[0] + (right[0] - left[0]) * (i + 0.5) / 6, -ry * 0.92))
            c.polygon([*spikes, right, (rx * 0.55, -ry * 0.56), (0, -ry * 0.64), (-rx * 0.55, -ry * 0.56)], self.hair)
            return
        fringe = {
            "short": [(rx * 0.6, -ry * 0.58), (0, -ry * 0.66), (-rx * 0.6, -ry * 0.58)],
            "curly": [(rx * 0.5, -ry * 0.6), (0, -ry * 0.56), (-rx * 0.5, -ry * 0.6)],
            "long": [(rx * 0.75, -ry * 0.3), (0.02, -ry * 0.82), (-rx * 0.75, -ry * 0.3)],
            "bob": [(rx * 0.8, -ry * 0.46), (0, -ry * 0.48), (-rx * 0.8, -ry * 0.46)],
            "bun": [(rx * 0.62, -ry * 0.62), (0, -ry * 0.76), (-rx * 0.62, -ry * 0.62)],
        }[style]
        c.polygon([*top, *fringe], self.hair)
        if style == "curly":
            for i in range(5):
                c.ellipse(rx * (-0.72 + 0.36 * i), -ry * 0.74, 0.055, 0.05, self.hair)
        if style in ("long", "bob"):
            for side in (-1, 1):
                lock = [
                    (side * rx * 1.06, -ry * 0.4),
                    (side * rx * 0.86, -ry * 0.2),
                    (side * rx * 0.95, 0.16),
                    (side * rx * 1.3, 0.18),
                ]
                c.polygon(lock, self.hair, outline=False)

    def _headwear(self) -> None:
        c, wear, ry, rx = self.canvas, self.context.headwear, self.ry, self.rx
        y = -ry * 0.72
        if wear == "chef hat":
            white = (250, 250, 250)
            for x, z, r in ((-0.1, -0.2, 0.095), (0.1, -0.2, 0.095), (0, -0.235, 0.11)):
                c.ellipse(x, y + z, r, r * 0.9, white)
            c.polygon(
                [(-rx * 0.92, y + 0.02), (-rx * 0.98, y - 0.15), (rx * 0.98, y - 0.15), (rx * 0.92, y + 0.02)], white
            )
            c.line([(-rx * 0.92, y - 0.055), (rx * 0.92, y - 0.055)], (196, 196, 204), 0.012)
        elif wear == "crown":
            w = rx * 0.92
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
                c.ellipse(x, y - 0.035, 0.019, 0.019, (210, 24, 40), False)
        elif wear == "headphones":
            arc = [
                (rx * 1.16 * math.cos(a), -0.01 + ry * 1.17 * math.sin(a))
                for a in np.linspace(math.pi, 2 * math.pi, 20)
            ]
            c.line(arc, (36, 36, 42), 0.034)
            for side in (-1, 1):
                c.polygon(_ellipse(side * rx * 1.17, 0.03, 0.052, 0.085, 20, 3.0), (214, 34, 40))


# --- light and style ---


def _finish(image: Image.Image, style: str, pose: Pose, side: int) -> Image.Image:
    if style == "sketch":
        return _sketch(image)
    pixels = np.asarray(image, dtype=np.float32)
    light = np.linspace(*pose.light, side, dtype=np.float32)[None, :, None]
    warmth = np.array([1 + 0.05 * pose.warmth, 1, 1 - 0.05 * pose.warmth], dtype=np.float32)
    if style == "anime":
        light = 1 + (light > 1) * 0.05
    pixels = pixels * light * warmth
    if style == "photo":
        rows = np.linspace(1.03, 0.95, side, dtype=np.float32)[:, None, None]
        pixels = pixels * rows
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    if style == "anime":
        image = ImageEnhance.Color(image).enhance(1.6)
    elif style == "pixel art":
        small = image.resize((PIXEL_ART_SIDE, PIXEL_ART_SIDE), Image.Resampling.BOX)
        small = small.quantize(14, dither=Image.Dither.NONE).convert("RGB")
        image = small.resize((side, side), Image.Resampling.NEAREST)
    elif style == "oil painting":
        image = _oil(image, pose)
    return image


def _sketch(image: Image.Image) -> Image.Image:
    grey = np.asarray(image.convert("L"), dtype=np.float32) / 255
    blurred = np.asarray(image.convert("L").filter(ImageFilter.GaussianBlur(image.width / 32)), dtype=np.float32) / 255
    edges = np.clip((grey + 0.02) / (blurred + 0.02), 0.25, 1) ** 1.5
    tone = 0.62 + 0.38 * np.sqrt(grey)
    y, x = np.mgrid[: image.height, : image.width]
    hatch = 1 - 0.14 * (grey < 0.55) * (((x + y) * 64 // image.width) % 4 < 2)
    value = (edges * tone * hatch * 0.95 * 255).clip(0, 255)
    tint = np.array([1.0, 0.99, 0.955], dtype=np.float32)
    return Image.fromarray((value[..., None] * tint).clip(0, 255).astype(np.uint8))


def _oil(image: Image.Image, pose: Pose) -> Image.Image:
    """Short strokes: every pixel takes its colour from a neighbour, patch by patch, under a warm varnish."""
    side = image.width
    rng = np.random.default_rng(pose.seed)
    cells = max(side // 4, 1)
    offsets = rng.uniform(-side / 40, side / 40, (2, cells, cells))
    grid = np.minimum(np.arange(side) * cells // side, cells - 1)
    dy, dx = (offset[grid][:, grid] for offset in offsets)
    y, x = np.mgrid[:side, :side]
    pixels = np.asarray(image.filter(ImageFilter.ModeFilter(3)), dtype=np.float32)
    moved = pixels[(y + dy).round().astype(int).clip(0, side - 1), (x + dx).round().astype(int).clip(0, side - 1)]
    stroke = rng.uniform(0.88, 1.08, (cells, cells))[grid][:, grid][..., None]
    varnish = np.array([1.06, 0.98, 0.8], dtype=np.float32)
    return Image.fromarray((moved * stroke * varnish).clip(0, 255).astype(np.uint8))
