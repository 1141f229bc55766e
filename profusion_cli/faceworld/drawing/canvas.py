"""A canvas, its shapes and its colours."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

from PIL import Image, ImageDraw

from profusion_cli.faceworld.world import Colour

INK: Colour = (30, 26, 30)
Points = Sequence[tuple[float, float]]


class Canvas:
    """A square picture; shapes are given in the person's frame, whose unit is the picture's side."""

    def __init__(self, side: int, style: str) -> None:
        self.side, self.style = side, style
        self.image = Image.new("RGB", (side, side))
        self.pen = ImageDraw.Draw(self.image)
        self.outline = {"anime": 0.016, "sketch": 0.014}.get(style, 0.0)
        self.place(0.5, 0.5, 1.0, 0.0)

    def place(self, x: float, y: float, zoom: float, tilt: float) -> None:
        """Where the person is: their middle, in sides of the picture, their size, and their tilt in degrees."""
        self.x, self.y, self.zoom, self.tilt = x, y, zoom, tilt
        self.cos, self.sin = math.cos(math.radians(tilt)), math.sin(math.radians(tilt))

    def moved(self, x: float, y: float, zoom: float = 1.0, tilt: float = 0.0) -> Canvas:
        """The same picture in another frame: its middle at this point of this one, so much larger, tilted further."""
        other = copy.copy(self)
        right, down = self.point(x, y)
        other.place(right / self.side, down / self.side, self.zoom * zoom, self.tilt + tilt)
        return other

    def point(self, x: float, y: float) -> tuple[float, float]:
        """A point of the frame, in pixels."""
        x, y = x * self.zoom, y * self.zoom
        return (
            (self.x + x * self.cos - y * self.sin) * self.side,
            (self.y + x * self.sin + y * self.cos) * self.side,
        )

    def polygon(self, points: Points, fill: Colour, outline: bool = True) -> None:
        """A filled shape, with an outline in styles that have one."""
        corners = [self.point(*point) for point in points]
        self.pen.polygon(corners, fill=fill)
        if outline and self.outline:
            width = max(round(self.outline * self.zoom * self.side), 1)
            self.pen.line([*corners, corners[0], corners[1]], fill=INK, width=width, joint="curve")

    def ellipse(self, x: float, y: float, rx: float, ry: float, fill: Colour, outline: bool = True) -> None:
        """Likewise."""
        self.polygon(superellipse(x, y, rx, ry), fill, outline)

    def line(self, points: Points, fill: Colour, width: float) -> None:
        """A line of this width."""
        pixels = max(round(width * self.zoom * self.side), 1)
        self.pen.line([self.point(*point) for point in points], fill=fill, width=pixels, joint="curve")


def superellipse(
    x: float, y: float, rx: float, ry: float, n: int = 28, power: float = 2.0
) -> list[tuple[float, float]]:
    """A superellipse: `power` 2 is an ellipse, more is squarer."""

    def along(value: float) -> float:
        return math.copysign(abs(value) ** (2 / power), value)

    angles = [2 * math.pi * i / n for i in range(n)]
    return [(x + rx * along(math.cos(a)), y + ry * along(math.sin(a))) for a in angles]


def rgb(red: float, green: float, blue: float) -> Colour:
    """Channels in [0, 1] as a colour."""
    return tuple(round(min(max(channel, 0), 1) * 255) for channel in (red, green, blue))  # type: ignore[return-value]


def shade(colour: Colour, by: float) -> Colour:
    """Lighter (by > 0) or darker."""
    toward = 255 if by > 0 else 0
    return tuple(round(channel + (toward - channel) * abs(by)) for channel in colour)  # type: ignore[return-value]


def rectangle(canvas: Canvas, left: float, top: float, right: float, bottom: float, fill: Colour) -> None:
    """A rectangle of the whole picture, in its sides."""
    s = canvas.side
    canvas.pen.rectangle((round(left * s), round(top * s), round(right * s), round(bottom * s)), fill=fill)


def disc(canvas: Canvas, x: float, y: float, radius: float, fill: Colour) -> None:
    """A disc of the whole picture."""
    s = canvas.side
    canvas.pen.ellipse(((x - radius) * s, (y - radius) * s, (x + radius) * s, (y + radius) * s), fill=fill)


def area(canvas: Canvas, points: Points, fill: Colour) -> None:
    """A polygon of the whole picture."""
    canvas.pen.polygon([(x * canvas.side, y * canvas.side) for x, y in points], fill=fill)
