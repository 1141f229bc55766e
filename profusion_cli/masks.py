"""Where the subject is: masks from a file, a box, a detected face, or the middle of the picture.

A mask is a uint8 array of the square picture that the model sees, 255 on the subject and 0 elsewhere.
OpenCV is imported when a mask has to be found; whatever is wrong with a mask is an `InputError`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from profusion_cli.errors import InputError, UsageError
from profusion_cli.images import Photo, crop_square

WORKING_SIZE = 320
"""Automatic masks are found at this size, whatever the resolution of the model."""
LIGHT = 128
"""From this grey value on, of 255, a mask picture is light."""
SMALLEST = 0.002
"""A mask with a smaller share of the picture shows too little to be moved about."""
OTHER_WAYS = "Give the subject with --mask FILE or --box x,y,w,h"

Box = tuple[int, int, int, int]


def parse_box(text: str) -> Box:
    """`x,y,w,h` in pixels.

    Raises:
        UsageError: anything else.
    """
    try:
        left, top, width, height = (int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(
            f"--box '{text}' is not four whole numbers x,y,w,h.", "For example: --box 120,40,200,260"
        ) from None
    return left, top, width, height


def file_mask(mask: Photo, photo: Photo, size: int) -> np.ndarray:
    """A mask picture of the photo's own size, light on the subject, cropped exactly like the photo.

    Raises:
        InputError: of another size, or (almost) empty or full.
    """
    if mask.size != photo.size:
        raise InputError(
            f"The mask '{mask.name}' is {_told(mask)} pixels, and the photo {_told(photo)}.",
            "Make it of the photo's size, light on the subject and dark elsewhere.",
        )
    light = np.asarray(crop_square(mask.image, size).convert("L"))
    lightest = f", whose lightest pixel is {light.max()} of 255," if light.max() < LIGHT else ""
    what = f"The mask '{mask.name}'{lightest or _square_of(photo)}"
    return _checked(light >= LIGHT, what, "Make it light on the subject and dark elsewhere.")


def box_mask(box: Box, photo: Photo, size: int) -> np.ndarray:
    """The box, given in pixels of the photo before it is cropped.

    Raises:
        InputError: not inside the photo, or beside or around its central square.
    """
    left, top, width, height = box
    shown = ",".join(str(number) for number in box)
    if width < 1 or height < 1:
        raise InputError(f"--box {shown} has a width or height below 1.", "Give x,y,w,h in pixels of the photo.")
    if left < 0 or top < 0 or left + width > photo.size[0] or top + height > photo.size[1]:
        raise InputError(
            f"--box {shown} does not lie inside the photo of {_told(photo)} pixels.",
            "Give x,y,w,h in pixels of the photo, with x and y from its upper left corner.",
        )
    side = min(photo.size)
    centres = (np.arange(size) + 0.5) * side / size
    x, y = (centres + (whole - side) // 2 for whole in photo.size)
    mask = ((y >= top) & (y < top + height))[:, None] & ((x >= left) & (x < left + width))[None]
    return _checked(
        mask, f"--box {shown}{_square_of(photo)}", "Draw it around the subject, in the square middle of the photo."
    )


def face_mask(photo: Photo, size: int) -> tuple[np.ndarray, int]:
    """The largest face with its hair, and how many other faces there are.

    Raises:
        InputError: no face is found.
    """
    import cv2

    square = np.asarray(crop_square(photo.image, WORKING_SIZE))
    grey = cv2.cvtColor(square, cv2.COLOR_RGB2GRAY)
    cascade = cv2.CascadeClassifier(f"{cv2.data.haarcascades}haarcascade_frontalface_default.xml")
    smallest = (WORKING_SIZE // 8, WORKING_SIZE // 8)
    found = list(cascade.detectMultiScale(grey, 1.1, 6, minSize=smallest))
    found = found or list(cascade.detectMultiScale(cv2.equalizeHist(grey), 1.05, 3, minSize=smallest))
    if not found:
        raise InputError(
            f"No face was found in '{photo.name}'{_square_of(photo).rstrip(',')}.",
            f"{OTHER_WAYS}, take what is in the middle with --set augment.method=thing, "
            "or leave the photo as it is with --no-augment (of finetune).",
        )
    x, y, width, height = max((tuple(int(number) for number in box) for box in found), key=lambda box: box[2])
    # Haar's box reaches from the brows' sides to the lower lip; hair, ears and chin lie around it.
    centre = (x + width / 2, y + 0.46 * height)
    probable = _ellipse(centre, (0.62 * width, 0.78 * height))
    above = np.arange(WORKING_SIZE)[:, None] < centre[1]  # hair goes far up, shoulders are left out
    possible = _ellipse(centre, (0.84 * width, 1.02 * height)) & above
    possible |= _ellipse(centre, (0.6 * width, 0.8 * height)) & ~above
    certain = _ellipse((centre[0], y + 0.52 * height), (0.26 * width, 0.42 * height))
    labels = np.full(grey.shape, cv2.GC_BGD, np.uint8)
    labels[possible] = cv2.GC_PR_BGD
    labels[possible & probable] = cv2.GC_PR_FGD
    labels[certain] = cv2.GC_FGD
    mask = _grab_cut(square, labels, None)
    return _finish(mask, f"The mask that was found for the face in '{photo.name}'", size), len(found) - 1


def thing_mask(photo: Photo, size: int) -> np.ndarray:
    """What stands out in the middle of the picture.

    Raises:
        InputError: nothing, or everything, does.
    """
    square = np.asarray(crop_square(photo.image, WORKING_SIZE))
    margin = WORKING_SIZE // 16
    side = WORKING_SIZE - 2 * margin
    mask = _grab_cut(square, None, (margin, margin, side, side))
    if mask.sum() > 0.97 * side**2:  # nothing stands out from what lies around it
        mask[:] = False
    return _finish(mask, f"The mask that was found for the middle of '{photo.name}'", size)


def _ellipse(centre: tuple[float, float], radii: tuple[float, float]) -> np.ndarray:
    rows, columns = np.mgrid[:WORKING_SIZE, :WORKING_SIZE]
    return ((columns - centre[0]) / radii[0]) ** 2 + ((rows - centre[1]) / radii[1]) ** 2 <= 1


def _grab_cut(square: np.ndarray, labels: np.ndarray | None, rectangle: Box | None) -> np.ndarray:
    """Foreground and probable foreground, boolean; the same for the same picture."""
    import cv2

    # GrabCut's colour models fail on areas of one colour, as in drawings: a little noise makes them well-behaved.
    noise = np.random.default_rng(0).normal(0, 3, square.shape)
    smooth = cv2.bilateralFilter(square, 5, 30, 5)
    colours = np.clip(smooth + noise, 0, 255).astype(np.uint8)
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.setRNGSeed(0)
    mode = cv2.GC_INIT_WITH_RECT if labels is None else cv2.GC_INIT_WITH_MASK
    labels = np.zeros(square.shape[:2], np.uint8) if labels is None else labels.copy()
    try:
        cv2.grabCut(colours, labels, rectangle, *models, 5, mode)
    except cv2.error:  # too few colours to tell anything apart
        return np.zeros(square.shape[:2], bool)
    return (labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)


def _finish(mask: np.ndarray, what: str, size: int) -> np.ndarray:
    """The largest piece of a mask of `WORKING_SIZE`, smooth and without holes, at `size`."""
    import cv2

    def kernel(width: int) -> Any:
        return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (width, width))

    mask = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, kernel(5))
    count, pieces, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=4)
    if count > 1:
        mask = (pieces == 1 + stats[1:, cv2.CC_STAT_AREA].argmax()).astype(np.uint8)
    mask = cv2.morphologyEx(np.pad(mask, 32), cv2.MORPH_CLOSE, kernel(9))
    outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(mask, outlines, -1, 1, cv2.FILLED)
    soft = cv2.GaussianBlur(np.pad(mask[32:-32, 32:-32], 32, mode="edge").astype(np.float32), (0, 0), 2.5)[
        32:-32, 32:-32
    ]
    kind = cv2.INTER_AREA if size <= WORKING_SIZE else cv2.INTER_LINEAR
    found = cv2.resize(soft, (size, size), interpolation=kind) >= 0.5
    if found.mean() > 0.98:
        found[:] = True
    return _checked(found, what, f"{OTHER_WAYS}, or leave the photo as it is with --no-augment (of finetune).")


def _told(photo: Photo) -> str:
    """Width and height in words."""
    return "{}x{}".format(*photo.size)


def _square_of(photo: Photo) -> str:
    """Which part of the photo is looked at, where that is not all of it."""
    side = min(photo.size)
    return "" if side == max(photo.size) else f", in the central square of {side}x{side} pixels that is used,"


def _checked(mask: np.ndarray, what: str, hint: str) -> np.ndarray:
    if mask.mean() < SMALLEST:
        raise InputError(f"{what} marks {'almost ' if mask.any() else ''}nothing.", hint)
    if mask.all():
        raise InputError(f"{what} covers the whole picture, and leaves no background to be replaced.", hint)
    return mask.astype(np.uint8) * 255
