"""A picture that sampling starts from, in place of noise alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageFilter, ImageOps

from profusion_cli.errors import InputError
from profusion_cli.images import Photo

SEAM = 128
"""The seam around a mask is this part of the picture's longer side wide."""


@dataclass(frozen=True)
class Start:
    """What pictures are drawn over.

    Args:
        photo: the picture, of which as much is kept as fits the size that is drawn.
        strength: the part of the steps that is taken, in (0, 1]: the more, the less is left of the picture.
        mask: light where it is drawn over, of the picture's size; None: everywhere.

    Raises:
        InputError: a mask of another size, or one that is dark everywhere.
    """

    photo: Photo
    strength: float
    mask: Photo | None = None

    def __post_init__(self) -> None:
        if self.mask is None:
            return
        if self.mask.image.size != self.photo.image.size:
            sizes = [f"{image.width}x{image.height}" for image in (self.mask.image, self.photo.image)]
            raise InputError(
                f"The mask '{self.mask.name}' is {sizes[0]}, and '{self.photo.name}' is {sizes[1]}.",
                "Draw the mask over a copy of the picture.",
            )
        if self.mask.image.convert("L").getextrema()[1] < 128:
            raise InputError(f"The mask '{self.mask.name}' is dark everywhere.", "Make it light where to draw.")

    def picture(self, width: int, height: int) -> Image.Image:
        """The picture in this size, without what is too much at its sides."""
        return ImageOps.fit(self.photo.image, (width, height), Image.Resampling.LANCZOS)

    def region(self, width: int, height: int) -> Image.Image | None:
        """The mask in this size, black and white; None: everywhere."""
        if self.mask is None:
            return None
        fitted = ImageOps.fit(self.mask.image.convert("L"), (width, height), Image.Resampling.BOX)
        return fitted.point(lambda value: 255 if value >= 128 else 0)

    def kept(self, drawn: Image.Image) -> Image.Image:
        """What was drawn, with the picture itself outside of the mask; between them is a soft seam."""
        region = self.region(*drawn.size)
        if region is None:
            return drawn
        soft = region.filter(ImageFilter.GaussianBlur(max(drawn.size) / SEAM / 2))
        return Image.composite(drawn, self.picture(*drawn.size), soft)

    def record(self) -> dict[str, Any]:
        """What a picture remembers of it."""
        mask = {} if self.mask is None else {"mask": {"name": self.mask.name, "sha256": self.mask.sha256}}
        return {"name": self.photo.name, "sha256": self.photo.sha256, "strength": self.strength, **mask}
