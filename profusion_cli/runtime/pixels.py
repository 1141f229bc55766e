"""Pictures as the encoders take them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from PIL import Image
from transformers import CLIPVisionConfig

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def pixel_values(image: Image.Image) -> torch.Tensor:
    """An RGB picture as float32 of shape (1, 3, height, width), in [0, 1]."""
    data = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)
    return data.reshape(1, image.height, image.width, 3).permute(0, 3, 1, 2).float() / 255


def pixel_batches(images: Sequence[Image.Image], at_once: int) -> Iterator[torch.Tensor]:
    """`pixel_values` of pictures of one size, so many in a batch."""
    for start in range(0, len(images), at_once):
        yield torch.cat([pixel_values(image) for image in images[start : start + at_once]])


def clip_pixels(pixels: torch.Tensor, size: int, antialias: bool) -> torch.Tensor:
    """What CLIP's vision tower takes: bicubic to `size`, without clamping, then CLIP's mean and deviation.

    Args:
        pixels: shape (B, 3, height, width), in [0, 1].
        size: side of the square in pixels, 224 for CLIP.
        antialias: off as when the authors' weights were trained (torchvision before 0.17).
    """
    resized = F.interpolate(pixels, size=(size, size), mode="bicubic", align_corners=False, antialias=antialias)
    mean, std = torch.tensor(CLIP_MEAN).view(1, 3, 1, 1), torch.tensor(CLIP_STD).view(1, 3, 1, 1)
    return (resized - mean) / std


def image_token_count(vision: CLIPVisionConfig) -> int:
    """Tokens that CLIP's vision tower makes of a picture: one of each patch and one of the whole."""
    return (vision.image_size // vision.patch_size) ** 2 + 1
