"""Similarity to the photo for subjects that are no faces: cosine of DINO's features of two pictures, or the mean of it
over other photos of the subject where there are any.

The feature is the class token after the last layer norm, of DINO (https://arxiv.org/abs/2104.14294) as in DreamBooth's
metric (https://arxiv.org/abs/2208.12242), and of DINOv2 (https://arxiv.org/abs/2304.07193). Pictures are resized and
normalised as each repository's `preprocessor_config.json` says.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from profusion_cli.errors import UnavailableError
from profusion_cli.evaluation.metrics import Metric, Remembered, Similarity, chosen_models, loading, text_option
from profusion_cli.presets import local_path
from profusion_cli.runtime.backbone import quiet_libraries
from profusion_cli.runtime.finding import find_files
from profusion_cli.runtime.hub import Source
from profusion_cli.runtime.parts import TRANSFORMERS_WEIGHTS

MODELS = {"DINOv2": "facebook/dinov2-base", "DINO": "facebook/dino-vits16"}


def dino_metrics(options: Mapping[str, Any], device: torch.device) -> list[Metric]:
    """One metric for each model.

    Args:
        options: `models`, names of `MODELS`; `folder`, which holds copies of their Hub repositories, such as
            `folder/dinov2-base/config.json`; without it they come from the Hub.
        device: that they run on, in float32.

    Raises:
        ConfigError: an unknown model.
    """
    folder = text_option(options, "folder")
    metrics: list[Metric] = []
    for model in chosen_models(options, MODELS):
        dino = Dino(model, folder, device)
        features = Remembered(dino.encode)
        weights = [Path(dino.source.id)] if dino.source.is_local else []
        metrics.append(Similarity(model, features, features, "photo", weights=weights))
    return metrics


class Dino:
    """One model, loaded on first use; args as of `dino_metrics`, and the option that names the folder."""

    def __init__(self, model: str, folder: str | None, device: torch.device, option: str = "folder") -> None:
        place = MODELS[model]
        if folder is not None:
            place = str(Path(local_path(folder), Path(place).name).absolute())
        self.source = Source(place, None, "", f"the metric's option '{option}'")
        self.name, self.device = model, device

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        """The model and its preprocessing."""
        from transformers import AutoImageProcessor, AutoModel

        files = find_files(self.source, self.name, ("preprocessor_config.json", "config.json"), TRANSFORMERS_WEIGHTS)
        what, hint = f"{self.name} ({files.folder})", f"Point to a complete copy with {self.source.option}."
        with loading(what, hint), quiet_libraries():
            processor = AutoImageProcessor.from_pretrained(str(files.folder))
            model, report = AutoModel.from_pretrained(
                str(files.folder), output_loading_info=True, dtype=torch.float32, **files.loading
            )
        missing = [key for key in report["missing_keys"] if not key.startswith("pooler.")]  # DINO has no pooler
        missing += [str(key) for key in report["mismatched_keys"]]
        if missing:
            raise UnavailableError(f"{what} lacks {len(missing)} of its weights, for example {missing[0]}.", hint)
        return model.eval().to(self.device), processor

    @torch.inference_mode()
    def encode(self, images: list[Image.Image]) -> np.ndarray:
        """Features of RGB pictures, shape (pictures, width)."""
        model, processor = self._loaded
        pixels = processor(images=images, return_tensors="pt")["pixel_values"].to(self.device)
        return model(pixel_values=pixels).last_hidden_state[:, 0].cpu().numpy()
