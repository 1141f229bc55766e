"""A subject's PromptNet, what it looks at, and what the subject changes in the UNet, as one part of a pipeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

from profusion_cli.runtime.architecture import PromptNetConfig
from profusion_cli.runtime.promptnet import PromptNet

_DOT = "/"
"""In place of the dots of a parameter's name, which names of parameters do not hold."""
DOWN, UP = ":down", ":up"
"""How the names of the two factors of a change end."""


class SubjectPromptNet(ModelMixin, ConfigMixin):
    """What makes S*, and what the UNet was changed by.

    Args:
        architecture: fields of `PromptNetConfig`.
        ref_latents_shape: shape of the latents of the reference views, unscaled, (V, 4, h, w).
        image_tokens_shape: shape of the vision tower's tokens of the same views, (V, tokens, width).
        changes: shapes, by the names of the UNet's parameters: of what is added to each, or, with `:down` and
            `:up` behind the name, of the factors of the product that is.
        class_word: what the subject is.
        averaged: S* is the mean over all views; otherwise there is one.
        made_from: names and SHA-256 of the bundle and of the photos.
    """

    @register_to_config
    def __init__(
        self,
        architecture: Mapping[str, Any],
        ref_latents_shape: Sequence[int],
        image_tokens_shape: Sequence[int],
        changes: Mapping[str, Sequence[int]],
        class_word: str,
        averaged: bool,
        made_from: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.promptnet = PromptNet(PromptNetConfig(**architecture))
        self.register_buffer("ref_latents", torch.zeros(*ref_latents_shape))
        self.register_buffer("image_tokens", torch.zeros(*image_tokens_shape))
        empty = {self.key_of(name): torch.zeros(*shape) for name, shape in changes.items()}
        self.unet_changes = nn.ParameterDict({key: nn.Parameter(zeros, False) for key, zeros in empty.items()})

    @staticmethod
    def key_of(name: str) -> str:
        """Of a change, by its name."""
        return name.replace(".", _DOT)

    @torch.no_grad()
    def change(self, unet: nn.Module) -> None:
        """Lay the subject's changes over the base model's UNet, once: they are let go afterwards."""
        parameters = dict(unet.named_parameters())
        changes = {key.replace(_DOT, "."): change for key, change in self.unet_changes.items()}
        for name, change in changes.items():
            if name.endswith(UP):
                continue
            of = name.removesuffix(DOWN)
            if name.endswith(DOWN):
                change = changes[of + UP].float().flatten(1) @ change.float().flatten(1)
            parameters[of] += change.reshape(parameters[of].shape).to(parameters[of])
        self.unet_changes = nn.ParameterDict()
        self.register_to_config(changes={})
