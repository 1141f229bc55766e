"""Light and style of a finished drawing."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from profusion_cli.faceworld.drawing.pose import Pose

PIXEL_ART_SIDE = 22


def finish(image: Image.Image, style: str, pose: Pose, side: int) -> Image.Image:
    """A drawing, square, under the light of the pose and in the style."""
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
