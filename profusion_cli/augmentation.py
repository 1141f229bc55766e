"""Augmentation (Appendix B of the paper): the subject of one photo, moved about, on other backgrounds.

The geometry, plain backgrounds, the numbered sheet, and the `images` bundle. The pixels of the subject in
every picture come from the photo alone, by one bilinear interpolation. Only NumPy and Pillow are used here.
"""

from __future__ import annotations

import colorsys
import io
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import safetensors.numpy
from PIL import Image

from profusion_cli.bundle import Bundle, make_bundle
from profusion_cli.bundle.kinds import IMAGES_FILE
from profusion_cli.config import AugmentConfig, Config
from profusion_cli.errors import BundleError, InputError, UsageError
from profusion_cli.images import numbered_sheet

VISIBLE = 0.75
"""A view is drawn again while less than this share of the moved subject lies inside the picture."""
DRAWS = 20


@dataclass(frozen=True)
class Transform:
    """A point p of the photo, from the centre, goes to scale * R(degrees) * F * p + (dx, dy).

    Args:
        scale: below 1 is smaller.
        degrees: clockwise on the screen.
        dx, dy: to the right and down, as parts of the side.
        flip: mirrored, left and right exchanged, before everything else.
    """

    scale: float = 1.0
    degrees: float = 0.0
    dx: float = 0.0
    dy: float = 0.0
    flip: bool = False

    def sources(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Where in the photo the pixels of the view come from: columns and rows, pixel centres at whole numbers."""
        out = np.arange(size) + 0.5 - size / 2
        x, y = out[None] - self.dx * size, out[:, None] - self.dy * size
        cos, sin = math.cos(math.radians(self.degrees)), math.sin(math.radians(self.degrees))
        columns, rows = (cos * x + sin * y) / self.scale, (cos * y - sin * x) / self.scale
        if self.flip:
            columns = -columns
        middle = (size - 1) / 2
        return np.round(columns + middle, 6), np.round(rows + middle, 6)


def warp(picture: np.ndarray, mask: np.ndarray, transform: Transform) -> tuple[np.ndarray, np.ndarray]:
    """Move a picture and its mask by the same transform.

    Args:
        picture: uint8, shape (S, S, 3).
        mask: uint8, shape (S, S), 0 or 255.

    Returns:
        The picture, bilinear, black where the mask is not set; and the mask, set only where every pixel that
        the interpolation looked at lies inside the photo and inside its mask.
    """
    size = len(mask)
    columns, rows = transform.sources(size)
    left, top = np.floor(columns).astype(int), np.floor(rows).astype(int)
    right_share, lower_share = columns - left, rows - top
    total = np.zeros(picture.shape)
    inside = np.ones(mask.shape, bool)
    for x, x_share in ((left, 1 - right_share), (left + 1, right_share)):
        for y, y_share in ((top, 1 - lower_share), (top + 1, lower_share)):
            share = x_share * y_share
            within = (x >= 0) & (x < size) & (y >= 0) & (y < size)
            at = np.clip(y, 0, size - 1), np.clip(x, 0, size - 1)
            inside &= (share == 0) | (within & (mask[at] > 0))
            total += share[..., None] * picture[at]
    moved = np.floor(total + 0.5).astype(np.uint8)
    return np.where(inside[..., None], moved, np.uint8(0)), inside.astype(np.uint8) * 255


def visible_share(mask: np.ndarray, transform: Transform) -> float:
    """The share of a mask's pixels that still lie inside the picture when they are moved."""
    size = len(mask)
    rows, columns = (indices - (size - 1) / 2 for indices in np.nonzero(mask))
    cos, sin = (part(math.radians(transform.degrees)) * transform.scale for part in (math.cos, math.sin))
    mirrored = -columns if transform.flip else columns
    x = cos * mirrored - sin * rows + transform.dx * size
    y = sin * mirrored + cos * rows + transform.dy * size
    return float(np.mean((abs(x) < size / 2) & (abs(y) < size / 2)))


def draw_transform(config: AugmentConfig, mask: np.ndarray, generator: np.random.Generator) -> Transform:
    """A random transform that keeps most of the subject inside the picture, where some draw does."""
    best, most = Transform(), -1.0
    for _ in range(DRAWS):
        scale = generator.uniform(config.scale_min, config.scale_max)
        degrees = generator.uniform(-config.rotation, config.rotation)
        dx, dy = generator.uniform(-config.translation, config.translation, 2)
        flip = bool(generator.random() < 0.5) and config.flip
        drawn = Transform(*(round(float(number), 6) for number in (scale, degrees, dx, dy)), flip)
        visible = visible_share(mask, drawn)
        if visible > most:
            best, most = drawn, visible
        if visible >= VISIBLE:
            break
    return best


@dataclass(frozen=True, eq=False)
class Augmented:
    """A photo and the pictures made from it, as uint8 arrays.

    Args:
        original: shape (S, S, 3).
        original_mask: shape (S, S), 0 or 255.
        pictures: shape (N, S, S, 3); black outside the masks until there are backgrounds.
        masks: shape (N, S, S).
        seeds: one for each picture, of its transform and of its background.
        transforms: one for each picture.
    """

    original: np.ndarray
    original_mask: np.ndarray
    pictures: np.ndarray
    masks: np.ndarray
    seeds: tuple[int, ...] = ()
    transforms: tuple[Transform, ...] = ()

    def on(self, backgrounds: np.ndarray) -> Augmented:
        """The subjects laid on backgrounds: uint8, shape (N, S, S, 3)."""
        return replace(self, pictures=np.where(self.masks[..., None] > 0, self.pictures, backgrounds))

    @property
    def images(self) -> list[Image.Image]:
        return [Image.fromarray(picture) for picture in self.pictures]


def move_subject(square: Image.Image, mask: np.ndarray, config: AugmentConfig, seed: int) -> Augmented:
    """The views of a photo, still without backgrounds. View j depends on seed + j alone.

    Raises:
        InputError: nothing of the subject is left in a view.
    """
    original = np.asarray(square)
    seeds = tuple(seed + index for index in range(config.views))
    transforms = tuple(draw_transform(config, mask, np.random.default_rng(number)) for number in seeds)
    pictures, masks = zip(*(warp(original, mask, transform) for transform in transforms), strict=True)
    if lost := sum(not moved.any() for moved in masks):
        raise InputError(
            f"Nothing of the subject is left in {lost} of {config.views} pictures.",
            "Mark more of it, or move it less: see augment.scale_min, augment.scale_max and augment.translation.",
        )
    return Augmented(original, mask, np.stack(pictures), np.stack(masks), seeds, transforms)


def cut_off(augmented: Augmented) -> list[int]:
    """Numbers, from 1, of the pictures that show less than `VISIBLE` of the subject."""
    transforms = enumerate(augmented.transforms, 1)
    return [number for number, moved in transforms if visible_share(augmented.original_mask, moved) < VISIBLE]


def plain_backgrounds(augmented: Augmented) -> np.ndarray:
    """One muted colour for each picture, from its seed."""
    colours = []
    for seed in augmented.seeds:
        hue, saturation, value = np.random.default_rng([seed, 1]).uniform((0, 0.1, 0.35), (1, 0.35, 0.85))
        colours.append([round(255 * part) for part in colorsys.hsv_to_rgb(hue, saturation, value)])
    shape = augmented.pictures.shape
    return np.broadcast_to(np.array(colours, np.uint8)[:, None, None], shape)


def outlined(picture: np.ndarray, mask: np.ndarray) -> Image.Image:
    """A picture with the edge of its mask drawn, and what the mask leaves out paled."""
    inner = mask > 0
    for _ in range(max(len(mask) // 128, 1)):
        shrunk = np.pad(inner, 1, mode="edge")
        inner = shrunk[1:-1, 1:-1] & shrunk[:-2, 1:-1] & shrunk[2:, 1:-1] & shrunk[1:-1, :-2] & shrunk[1:-1, 2:]
    edge = (mask > 0) & ~inner
    pale = np.where(mask[..., None] > 0, picture, (picture.astype(int) + 2 * 235) // 3)
    return Image.fromarray(np.where(edge[..., None], (230, 30, 60), pale).astype(np.uint8))


def sheet(augmented: Augmented) -> Image.Image:
    """The original with its mask, then the pictures, numbered from 1 as `--drop` counts them."""
    numbered = [(str(number), image) for number, image in enumerate(augmented.images, 1)]
    return numbered_sheet([("original", outlined(augmented.original, augmented.original_mask)), *numbered])


def background_prompt(config: Config) -> str:
    """The prompt with the class word in it."""
    return config.augment.prompt.replace("{class_word}", config.class_word)


def describe(augmented: Augmented, config: AugmentConfig, prompt: str) -> dict[str, Any]:
    """What a manifest remembers: the texts, and the seed and the transform of each picture."""
    views = [
        {"seed": seed, **asdict(transform)}
        for seed, transform in zip(augmented.seeds, augmented.transforms, strict=True)
    ]
    if not config.inpaint:
        return {"inpainted": False, "views": views}
    return {"inpainted": True, "prompt": prompt, "negative_prompt": config.negative_prompt, "views": views}


def images_bundle(augmented: Augmented, manifest: dict[str, Any]) -> Bundle:
    """An `images` bundle of pictures.

    Args:
        augmented: the pictures, with backgrounds.
        manifest: as for `make_bundle`, without the kind.
    """
    tensors = {
        "original": augmented.original.transpose(2, 0, 1),
        "original_mask": augmented.original_mask,
        "pictures": augmented.pictures.transpose(0, 3, 1, 2),
        "masks": augmented.masks,
    }
    packed = safetensors.numpy.save({name: np.ascontiguousarray(array) for name, array in tensors.items()})
    preview = io.BytesIO()
    sheet(augmented).save(preview, "PNG")
    return make_bundle({"kind": "images", **manifest}, {IMAGES_FILE: packed}, preview.getvalue())


def read_images(bundle: Bundle) -> Augmented:
    """The pictures in an `images` bundle.

    Raises:
        BundleError: of another kind, or with tensors that do not belong together.
    """
    held = bundle.require("images").shapes(IMAGES_FILE)
    names = ("original", "original_mask", "pictures", "masks")
    fits = set(held) == set(names) and all(dtype == "U8" for dtype, _ in held.values())
    if fits:
        shapes = [held[name][1] for name in names]
        count, size = shapes[2][0] if shapes[2] else 0, shapes[1][0] if shapes[1] else 0
        square = (size, size)
        fits = count > 0 and size > 0 and shapes == [(3, *square), square, (count, 3, *square), (count, *square)]
    if not fits:
        raise BundleError(
            f"The pictures in '{bundle.name}' do not belong together.", "Make it again with `profusion augment`."
        )
    tensors = safetensors.numpy.load(bytes(bundle.read(IMAGES_FILE)))
    original, original_mask, pictures, masks = (tensors[name] for name in names)
    return Augmented(original.transpose(1, 2, 0), original_mask, pictures.transpose(0, 2, 3, 1), masks)


def check_drop(numbers: Sequence[int], count: int) -> None:
    """Pictures that are left out are there.

    Args:
        numbers: as on the sheet.
        count: how many pictures the sheet has, without the original.

    Raises:
        UsageError: numbers of no picture.
    """
    if unknown := [str(number) for number in numbers if not 1 <= number <= count]:
        raise UsageError(
            f"--drop {','.join(map(str, numbers))} names picture {', '.join(unknown)}, and the sheet has 1 to {count}.",
            "Take the numbers from the sheet; the original always stays.",
        )


def kept(images: Sequence[Image.Image], dropped: Sequence[int]) -> list[Image.Image]:
    """The pictures but for those of the given numbers."""
    return [image for number, image in enumerate(images, 1) if number not in dropped]
