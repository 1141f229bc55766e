"""A photo -> pictures of its subject at other places, on other backgrounds (Appendix B of the paper)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from profusion_cli import masks
from profusion_cli.augmentation import (
    VISIBLE,
    Augmented,
    background_prompt,
    cut_off,
    describe,
    images_bundle,
    move_subject,
    plain_backgrounds,
)
from profusion_cli.bundle import Bundle
from profusion_cli.config import Config
from profusion_cli.images import Photo, crop_square
from profusion_cli.jobs.configuration import remember
from profusion_cli.jobs.photos import as_photo, photo_input
from profusion_cli.jobs.trust import remember_own
from profusion_cli.listener import LIBRARIES, LOGGED, Listener

if TYPE_CHECKING:
    from profusion_cli.runtime.inpaint import Painter


@dataclass(frozen=True)
class Region:
    """Where the user says that the subject is.

    Args:
        mask: a picture of the photo's size, light on the subject.
        box: x, y, width and height in pixels of the photo; not with a mask.
    """

    mask: Photo | None = None
    box: masks.Box | None = None


@dataclass(frozen=True, eq=False)
class Moved:
    """The subject of a photo at other places, still without backgrounds.

    Args:
        augmented: the pictures.
        record: how they were made, for the manifest.
        inputs: what a manifest remembers of files beside the photo.
    """

    augmented: Augmented
    record: dict[str, Any]
    inputs: tuple[dict[str, str], ...]


def find_subject(
    photo: Photo, config: Config, region: Region, listener: Listener
) -> tuple[np.ndarray, dict[str, Any], tuple[dict[str, str], ...]]:
    """Where the subject is, in the square that the model sees: as the user says, or by the preset's method.

    Returns:
        The mask; how it was found, for the manifest; and further inputs.

    Raises:
        InputError: a mask or box that cannot be used, or nothing found.
    """
    size = config.base.resolution
    if region.mask is not None:
        found = masks.file_mask(region.mask, photo, size)
        return found, {"method": "file"}, (photo_input(region.mask, "mask"),)
    if region.box is not None:
        return masks.box_mask(region.box, photo, size), {"method": "box", "box": list(region.box)}, ()
    if config.augment.method == "thing":
        return masks.thing_mask(photo, size), {"method": "thing"}, ()
    found, others = masks.face_mask(photo, size)
    if others:
        listener.warn(
            f"'{photo.name}' shows {others + 1} faces; the largest is taken. Choose another with --box or --mask."
        )
    return found, {"method": "face"}, ()


def move(photo: Photo, config: Config, region: Region, listener: Listener) -> Moved:
    """The views of a photo, still without backgrounds, with a word on those that lost much of the subject.

    Raises:
        InputError: as `find_subject`; or nothing of the subject is left in a view.
    """
    mask, how, inputs = find_subject(photo, config, region, listener)
    moved = move_subject(crop_square(photo.image, config.base.resolution), mask, config.augment, config.seed)
    if numbers := cut_off(moved):
        shown = ",".join(str(number) for number in numbers)
        listener.warn(
            f"Less than {VISIBLE:.0%} of the subject lies in these pictures: {shown}. See --drop of finetune."
        )
    return Moved(moved, {"mask": how, **describe(moved, config.augment, background_prompt(config))}, inputs)


def fill_backgrounds(
    moved: Augmented, config: Config, listener: Listener, painter: Painter | None = None
) -> tuple[Augmented, dict[str, Any]]:
    """Give the moved subjects backgrounds; also what a manifest remembers of the model that painted them.

    Args:
        moved: the subjects.
        config: the resolved configuration.
        listener: who hears of it.
        painter: that paints those of further photos too; None: one for these alone.

    Raises:
        UnavailableError: the inpainting model cannot be had.
        DeviceError: its precision does not suffice.
    """
    if not config.augment.inpaint:
        listener.warn("The backgrounds are plain colours: they are not inpainted.")
        return moved.on(plain_backgrounds(moved)), {"id": None, "revision": None, "fingerprint": {}}
    with listener.working(LIBRARIES):
        from profusion_cli.runtime.inpaint import paint_backgrounds

    paint = painter.paint if painter else partial(paint_backgrounds, config=config, listener=listener)
    backgrounds, origin = paint(moved)
    return moved.on(backgrounds), origin


def warn_if_random_inpainting(config: Config, listener: Listener) -> None:
    """Random weights are called random."""
    if config.augment.inpaint and config.augment.model.id is None:
        listener.warn("The inpainting model has random weights: the backgrounds are noise.")


def make_views(
    photo: Photo | Image.Image, config: Config, region: Region | None = None, listener: Listener = LOGGED
) -> Bundle:
    """The subject of a photo at other places, on other backgrounds, as an images bundle.

    Args:
        photo: of the subject.
        config: the resolved configuration; its `augment` section decides.
        region: where the subject is, if the preset's method is not to find it.
        listener: who hears of it.

    Raises:
        InputError: a photo, mask or box that cannot be used, or no subject found.
        UnavailableError, DeviceError: as `fill_backgrounds`.
    """
    photo = as_photo(photo)
    moved = move(photo, config, region or Region(), listener)
    warn_if_random_inpainting(config, listener)
    if config.augment.inpaint:
        with listener.working(LIBRARIES):
            from profusion_cli.runtime.needs import inpainting_needs, provide

        provide(inpainting_needs(config))
    augmented, origin = fill_backgrounds(moved.augmented, config, listener)
    manifest = {
        "base": origin,
        "config": remember(config),
        "seed": config.seed,
        "inputs": [photo_input(photo), *moved.inputs],
        "parents": [],
        "augmentation": moved.record,
    }
    remember_own(config, {}, listener)
    return images_bundle(augmented, manifest)
