"""Image-prompt similarity: cosine of CLIP's features of a picture and of its prompt, through open_clip.

Table 1 of the paper (https://arxiv.org/abs/2305.13579) names nine models of OpenAI's
(https://github.com/openai/CLIP); the text is the prompt with the class word in place of S*.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from profusion_cli.evaluation.metrics import Metric, Remembered, Similarity, chosen_models, loading, text_option
from profusion_cli.presets import local_path
from profusion_cli.runtime.finding import find_files
from profusion_cli.runtime.hub import Source

MODELS = {
    "RN50": ("CLIP RN50", "timm/resnet50_clip.openai"),
    "RN101": ("CLIP RN101", "timm/resnet101_clip.openai"),
    "RN50x4": ("CLIP RN50x4", "timm/resnet50x4_clip.openai"),
    "RN50x16": ("CLIP RN50x16", "timm/resnet50x16_clip.openai"),
    "RN50x64": ("CLIP RN50x64", "timm/resnet50x64_clip.openai"),
    "ViT-B-32": ("CLIP ViT-B/32", "timm/vit_base_patch32_clip_224.openai"),
    "ViT-B-16": ("CLIP ViT-B/16", "timm/vit_base_patch16_clip_224.openai"),
    "ViT-L-14": ("CLIP ViT-L/14", "timm/vit_large_patch14_clip_224.openai"),
    "ViT-L-14-336": ("CLIP ViT-L/14@336px", "timm/vit_large_patch14_clip_336.openai"),
}
"""open_clip's name of each model: its column, and the Hub repository that open_clip takes its tag `openai` from."""
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")


def clip_metrics(options: Mapping[str, Any], device: torch.device) -> list[Metric]:
    """One metric for each CLIP model.

    Args:
        options: `models`, names of `MODELS`; `folder`, which holds copies of their Hub repositories by these names,
            such as `folder/RN50/open_clip_model.safetensors`; without it they come from the Hub.
        device: that they run on, in float32.

    Raises:
        ConfigError: an unknown model.
    """
    folder = text_option(options, "folder")
    metrics: list[Metric] = []
    for model in chosen_models(options, MODELS):
        clip = Clip(model, folder, device)
        weights = [Path(clip.source.id)] if clip.source.is_local else []
        metrics.append(Similarity(clip.name, Remembered(clip.images), Remembered(clip.texts), "text", weights=weights))
    return metrics


class Clip:
    """One model, loaded on first use; args as of `clip_metrics`, and the option that names the folder."""

    def __init__(self, model: str, folder: str | None, device: torch.device, option: str = "folder") -> None:
        self.name, place = MODELS[model]
        if folder is not None:
            place = str(Path(local_path(folder), model).absolute())
        self.source = Source(place, None, "", f"the metric's option '{option}'")
        self.model, self.device = model, device

    @cached_property
    def _loaded(self) -> tuple[Any, Callable[[Image.Image], torch.Tensor], Callable[[list[str]], torch.Tensor]]:
        """The model, its preprocessing of a picture, and its tokenizer."""
        import open_clip

        files = find_files(self.source, self.name, ("open_clip_config.json",), WEIGHTS)
        with loading(f"{self.name} ({files.folder})", f"Point to another copy with {self.source.option}."):
            model, preprocess = open_clip.create_model_from_pretrained(
                f"{self.model}-quickgelu", str(files.folder / files.weights), device=self.device
            )
            return model.eval(), preprocess, open_clip.get_tokenizer(f"{self.model}-quickgelu")

    @torch.inference_mode()
    def images(self, images: list[Image.Image]) -> np.ndarray:
        """Features of RGB pictures, shape (pictures, width)."""
        model, preprocess, _ = self._loaded
        return model.encode_image(torch.stack([preprocess(image) for image in images]).to(self.device)).cpu().numpy()

    @torch.inference_mode()
    def texts(self, texts: list[str]) -> np.ndarray:
        """Features of texts, shape (texts, width)."""
        model, _, tokenize = self._loaded
        return model.encode_text(tokenize(texts).to(self.device)).cpu().numpy()
