"""Places: what is behind a person."""

from __future__ import annotations

import random
from collections.abc import Callable

from profusion_cli.faceworld.drawing.canvas import Canvas, area, disc, rectangle
from profusion_cli.faceworld.drawing.pose import Pose
from profusion_cli.faceworld.world import Context


def draw_place(canvas: Canvas, context: Context, pose: Pose, rng: random.Random) -> None:
    """The place that a context names."""
    draw: dict[str, Callable[[], None]] = {
        "plain": lambda: rectangle(canvas, 0, 0, 1, 1, pose.backdrop),
        "beach": lambda: _beach(canvas, rng),
        "forest": lambda: _forest(canvas, rng),
        "city": lambda: _city(canvas, rng),
        "snow": lambda: _snow(canvas, rng),
        "desert": lambda: _desert(canvas, rng),
    }
    draw[context.place]()


def _beach(canvas: Canvas, rng: random.Random) -> None:
    horizon, shore = rng.uniform(0.42, 0.5), rng.uniform(0.66, 0.74)
    rectangle(canvas, 0, 0, 1, horizon, (126, 200, 246))
    disc(canvas, rng.choice((0.12, 0.86)) + rng.uniform(-0.04, 0.04), rng.uniform(0.1, 0.18), 0.09, (255, 226, 90))
    rectangle(canvas, 0, horizon, 1, shore, (26, 112, 190))
    for _ in range(5):
        x, y = rng.uniform(0, 0.85), rng.uniform(horizon + 0.03, shore - 0.03)
        rectangle(canvas, x, y, x + 0.14, y + 0.012, (150, 206, 240))
    rectangle(canvas, 0, shore, 1, 1, (236, 208, 146))


def _forest(canvas: Canvas, rng: random.Random) -> None:
    rectangle(canvas, 0, 0, 1, 1, (150, 200, 150))
    rectangle(canvas, 0, 0.74, 1, 1, (74, 116, 54))
    for i in range(9):
        x, height = i / 8 + rng.uniform(-0.05, 0.05), rng.uniform(0.5, 0.85)
        top, green = 0.82 - height, rng.randint(70, 120)
        rectangle(canvas, x - 0.015, 0.6, x + 0.015, 0.84, (92, 62, 36))
        for step in range(3):
            y = top + step * height * 0.24
            half = 0.06 + 0.025 * step
            area(canvas, [(x, y), (x - half, y + height * 0.32), (x + half, y + height * 0.32)], (18, green, 40))


def _city(canvas: Canvas, rng: random.Random) -> None:
    rectangle(canvas, 0, 0, 1, 1, (16, 16, 48))
    disc(canvas, rng.choice((0.12, 0.88)), rng.uniform(0.08, 0.14), 0.06, (240, 238, 214))
    left = -0.04
    while left < 1:
        width, top = rng.uniform(0.13, 0.2), rng.uniform(0.16, 0.42)
        rectangle(canvas, left, top, left + width - 0.015, 1, rng.choice(((44, 44, 72), (34, 36, 60), (54, 50, 80))))
        for row in range(int((1 - top) / 0.075)):
            for column in range(int(width / 0.055)):
                if rng.random() < 0.6:
                    x, y = left + 0.02 + column * 0.055, top + 0.03 + row * 0.075
                    rectangle(canvas, x, y, x + 0.028, y + 0.036, (255, 214, 96))
        left += width


def _snow(canvas: Canvas, rng: random.Random) -> None:
    rectangle(canvas, 0, 0, 1, 1, (176, 200, 226))
    for x in (rng.uniform(0.0, 0.2), rng.uniform(0.8, 1.0), rng.uniform(0.4, 0.6)):
        top, half = rng.uniform(0.16, 0.32), rng.uniform(0.34, 0.44)
        area(canvas, [(x, top), (x - half, 0.72), (x + half, 0.72)], (112, 128, 156))
        area(canvas, [(x, top), (x - half * 0.36, top + 0.17), (x + half * 0.36, top + 0.17)], (250, 252, 255))
    rectangle(canvas, 0, 0.66, 1, 1, (244, 248, 254))
    for _ in range(26):
        disc(canvas, rng.random(), rng.random(), 0.014, (255, 255, 255))


def _desert(canvas: Canvas, rng: random.Random) -> None:
    rectangle(canvas, 0, 0, 1, 1, (252, 190, 116))
    disc(canvas, rng.choice((0.14, 0.86)), rng.uniform(0.1, 0.18), 0.085, (255, 246, 214))
    area(canvas, [(0, 0.56), (0.3, 0.48), (0.62, 0.58), (1, 0.5), (1, 1), (0, 1)], (222, 142, 66))
    area(canvas, [(0, 0.72), (0.4, 0.64), (0.75, 0.72), (1, 0.66), (1, 1), (0, 1)], (198, 116, 48))
    for x in (rng.uniform(0.05, 0.13), rng.uniform(0.87, 0.95)):
        y, green = rng.uniform(0.34, 0.44), (48, 122, 60)
        rectangle(canvas, x - 0.025, y, x + 0.025, 0.78, green)
        rectangle(canvas, x - 0.085, y + 0.13, x, y + 0.17, green)
        rectangle(canvas, x - 0.085, y + 0.05, x - 0.05, y + 0.15, green)
        rectangle(canvas, x, y + 0.2, x + 0.085, y + 0.24, green)
        rectangle(canvas, x + 0.05, y + 0.1, x + 0.085, y + 0.22, green)
