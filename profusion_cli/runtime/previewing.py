"""Pictures of a subject by the networks that are being trained, which go on as if nothing had been."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from profusion_cli.config import Config
from profusion_cli.listener import Listener
from profusion_cli.plans import plan_of
from profusion_cli.previews import Previews
from profusion_cli.prompts import parse_prompt
from profusion_cli.runtime.backbone import BaseModel
from profusion_cli.runtime.denoiser import Subject
from profusion_cli.runtime.device import autocasting, picture_generator
from profusion_cli.runtime.drawing import draw_latents, tokenize
from profusion_cli.samplers import subject_weights


@contextmanager
def evaluating(*networks: nn.Module) -> Iterator[None]:
    """Networks evaluate instead of training, while the block runs."""
    before = [(module, module.training) for network in networks for module in network.modules()]
    for network in networks:
        network.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


class Previewer:
    """Draws what `Previews` asks for, in the precision of the training.

    Args:
        previews: prompts, and when.
        base: the base model, whose UNet may be trained.
        network: makes S*, and may be trained too.
        subject: with S* as the network makes it now.
        config: the resolved configuration: sections `sample` and `finetune`, and the seed of the noise.
        listener: who hears of it.

    Raises:
        InputError: a prompt so long that its placeholder falls off the end.
        ConfigError: numbers of guidance scales or weights that do not fit one subject.
    """

    def __init__(
        self,
        previews: Previews,
        base: BaseModel,
        network: nn.Module,
        subject: Callable[[], Subject],
        config: Config,
        listener: Listener,
    ) -> None:
        self._previews, self._base, self._network, self._subject = previews, base, network, subject
        self._config, self._listener, self._plan = config, listener, plan_of(config)
        self._scales, _ = subject_weights(config.sample, 1)
        now, word, concept = [subject()], [config.class_word], config.concept_prompt
        self._tokens = [
            tokenize(base, parse_prompt(text, config.placeholder, 1), now, word, config.sample, concept)
            for text in previews.prompts
        ]

    def __call__(self, done: int) -> None:
        """Draw and show pictures, if they are due after so many steps."""
        previews, base = self._previews, self._base
        if not previews.due(done, self._config.finetune.steps):
            return
        with evaluating(self._network, base.unet):
            latents = self._draw()
        pictures = base.decode(latents)
        base.release("vae")
        previews.show(done, pictures)

    def _draw(self) -> torch.Tensor:
        """Scaled latents of a picture of each prompt."""
        base, config, steps, drawn = self._base, self._config, len(self._plan.steps), []
        with self._listener.progress("Preview", steps * len(self._tokens)) as step, autocasting(base.placement):
            for number, tokens in enumerate(self._tokens):
                given = (tokens, config.sample, self._plan, self._scales, [picture_generator(config.seed, 0)])
                drawn.append(
                    draw_latents(
                        base, base.unet, [self._subject()], *given, lambda i, number=number: step(number * steps + i)
                    )
                )
        return torch.cat(drawn)
