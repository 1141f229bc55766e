"""A subject in fewer numbers: of each changed matrix the nearest of low rank, and what that does to the predictions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch

from profusion_cli.bundle import Bundle
from profusion_cli.config import Config
from profusion_cli.errors import ConfigError
from profusion_cli.images import decode_photo
from profusion_cli.prompts import parse_prompt
from profusion_cli.runtime.backbone import BaseModel
from profusion_cli.runtime.changes import DIFF, DOWN, UP, Change, LowRank, read_changes, whole
from profusion_cli.runtime.denoiser import PromptDenoiser, PromptNetSubject
from profusion_cli.runtime.device import picture_generator
from profusion_cli.runtime.fusion import Condition
from profusion_cli.runtime.promptnet import PromptNet
from profusion_cli.runtime.sampling import Sampler
from profusion_cli.runtime.schedule import add_noise
from profusion_cli.runtime.weights import read_views

HIGHEST = 256
"""The highest rank that is tried."""
OVERSAMPLING, ITERATIONS = 16, 4
"""Of the randomised singular value decomposition (arXiv 0909.4061)."""
LEVELS = 8
"""Noise levels that predictions are compared at."""


def nearest(matrix: torch.Tensor, rank: int) -> LowRank:
    """The nearest change of so low a rank, in the Frobenius norm (Eckart and Young, 1936).

    Args:
        matrix: a change of two sides or more, of which a convolution's last ones are flattened.
        rank: 1 or more.
    """
    flat = matrix.float().flatten(1)
    rank, smaller = min(rank, *flat.shape), min(flat.shape)
    if 2 * (rank + OVERSAMPLING) < smaller:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            left, values, right = torch.svd_lowrank(flat, q=rank + OVERSAMPLING, niter=ITERATIONS)
        right = right.T
    else:
        left, values, right = torch.linalg.svd(flat, full_matrices=False)
    root = values[:rank].sqrt()
    up, down = left[:, :rank] * root, root[:, None] * right[:rank]
    ones = [1] * (matrix.ndim - 2)
    return LowRank(down.reshape(rank, *matrix.shape[1:]), up.reshape(*up.shape, *ones))


def cut(change: Change, rank: int) -> Change:
    """A change by so many of its singular values; as it is, where that is not smaller."""
    if not isinstance(change, LowRank):
        return change
    smaller = LowRank(change.down[:rank], change.up[:, :rank])
    numbers = smaller.down.numel() + smaller.up.numel()
    return smaller if numbers < change.shape.numel() else change.whole()


def relative_error(eps: torch.Tensor, exact: torch.Tensor) -> float:
    """||eps - exact|| / ||exact||, over all elements."""
    return ((eps - exact).norm() / exact.norm()).item()


@dataclass(frozen=True)
class Compressed:
    """What is left of a subject's changes.

    Args:
        tensors: for the bundle's file of adapters.
        rank: of the adapters.
        error: of eps, relative, with all numbers rounded as they are written.
    """

    tensors: dict[str, torch.Tensor]
    rank: int
    error: float


class Compression:
    """The changes of one subject, and predictions that tell what it costs to cut them.

    Args:
        base: the entered base model, in float32.
        bundle: a subject with whole weights.
        parent: the PromptNet that its own was tuned from; None: that stays as it is.
        config: of the subject.
        dtype: that the result is written in.
        rank: the highest that it may be cut at.

    Raises:
        BundleError: a bundle that does not fit the base model.
    """

    def __init__(
        self,
        base: BaseModel,
        bundle: Bundle,
        parent: PromptNet | None,
        config: Config,
        dtype: torch.dtype,
        rank: int,
    ) -> None:
        self._base, self._dtype = base, dtype
        config = replace(config, sample=replace(config.sample, references="one"))
        word, concept = config.class_word, parse_prompt(config.concept_prompt)
        sampler = Sampler(base, [bundle], [word], [concept], config)
        subject = sampler.subjects[0]
        self._networks: dict[str, torch.nn.Module] = {"unet": sampler.unet}
        own = read_changes(bundle, "unet", dict(sampler.unet.named_parameters()))
        changes = {f"unet.{name}": whole(change) for name, change in own.items()}
        if isinstance(subject, PromptNetSubject) and parent is not None:
            self._networks["promptnet"] = subject.promptnet
            before, tuned = dict(parent.named_parameters()), dict(subject.promptnet.named_parameters())
            differences = {f"promptnet.{name}": tuned[name].cpu() - before[name] for name in before}
            changes |= {name: change for name, change in differences.items() if change.any()}
        self._parameters = {
            f"{network}.{name}": parameter
            for network, module in self._networks.items()
            for name, parameter in module.named_parameters()
            if f"{network}.{name}" in changes
        }
        self._before = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}
        if "promptnet" in self._networks:
            own_names = [name for name in self._before if name.startswith("promptnet.")]
            self._before |= {n: before[n.removeprefix("promptnet.")].detach().to(self._before[n]) for n in own_names}
        self.changes = {n: nearest(change, rank) if change.ndim > 1 else change for n, change in changes.items()}
        self._denoiser = PromptDenoiser(
            sampler.unet,
            base.text,
            sampler.subjects,
            sampler.tokens[0],
            base.scheduler.alphas_cumprod,
            base.prediction_type,
            config.sample.gamma_on,
        )
        self._latents = self._encoded(bundle, subject) * base.vae_scaling_factor
        self._lay_over(changes)
        self._exact = self._eps()

    def _encoded(self, bundle: Bundle, subject: object) -> torch.Tensor:
        """Latents of a picture of the subject, unscaled, shape (1, 4, h, w)."""
        if isinstance(subject, PromptNetSubject):
            return read_views(bundle, subject.promptnet).latents_mean[:1]
        photo = decode_photo(bundle.preview or b"", bundle.name).image
        side = self._base.config.resolution
        return self._base.encode_moments([photo.crop((0, 0, photo.height, photo.height)).resize((side, side))])[0]

    @torch.no_grad()
    def _lay_over(self, changes: Mapping[str, Change]) -> None:
        for name, change in changes.items():
            value = whole(change)
            self._parameters[name].copy_(self._before[name] + value.to(self._before[name]))

    @torch.inference_mode()
    def _eps(self) -> torch.Tensor:
        """Predictions of the noised picture at all levels, with S* in "a photo of S*"."""
        scheduler, device, found = self._base.scheduler, self._base.placement.device, []
        generator = picture_generator(0, 0)
        for level in range(LEVELS):
            t = (2 * level + 1) * scheduler.config.num_train_timesteps // (2 * LEVELS)
            noise = torch.randn(self._latents.shape, generator=generator)
            x_t = add_noise(self._latents, noise, torch.tensor([t]), scheduler.alphas_cumprod)
            found.append(self._denoiser(x_t.to(device), t, [Condition("subject", 0)])[0].float().cpu())
        return torch.cat(found)

    def error_of(self, changes: Mapping[str, Change]) -> float:
        """How far predictions are off, relative, where these are all that is changed."""
        nothing = {name: torch.zeros_like(before) for name, before in self._before.items()}
        self._lay_over({**nothing, **changes})
        return relative_error(self._eps(), self._exact)

    def cut(self, rank: int) -> Compressed:
        """All changes by so many singular values each."""
        kept = {name: _rounded(cut(change, rank), self._dtype) for name, change in self.changes.items()}
        return Compressed(dict(_named(kept)), rank, self.error_of(kept))

    def within(self, error: float, highest: int) -> Compressed:
        """By the lowest rank whose error is no more than this.

        Raises:
            ConfigError: none that is tried.
        """
        low, high, best = 1, highest, self.cut(highest)
        if best.error > error:
            raise ConfigError(
                f"At rank {highest} the predictions are off by {best.error:.3g}, and --error {error:g} was asked for.",
                "Ask for less.",
            )
        while low < high:
            middle = (low + high) // 2
            tried = self.cut(middle)
            if tried.error <= error:
                best, high = tried, middle
            else:
                low = middle + 1
        return best


def _rounded(change: Change, dtype: torch.dtype) -> Change:
    """With numbers as a file of this precision holds them."""
    if isinstance(change, LowRank):
        return LowRank(change.down.to(dtype), change.up.to(dtype))
    return change.to(dtype)


def _named(changes: Mapping[str, Change]) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors as `changes_of` reads them."""
    for name, change in changes.items():
        if isinstance(change, LowRank):
            module = name.removesuffix(".weight")
            yield f"{module}{DOWN}", change.down
            yield f"{module}{UP}", change.up
        else:
            yield f"{name}{DIFF}", change
