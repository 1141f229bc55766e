"""What pre-training takes, in U: evaluations of the UNet on one picture (`profusion_cli.plans`)."""

from __future__ import annotations

from dataclasses import dataclass

from profusion_cli.config import PretrainConfig
from profusion_cli.dataset import Listing
from profusion_cli.plans import Cost
from profusion_cli.shards import Shards

VAE_ENCODER, VISION_TOWER = 1.388, 0.416
"""What encoding a picture takes of them in U, in Stable Diffusion 2 at 512 pixels, by FLOPs."""
FROZEN, TRAINED = 2, 3
"""Forwards and backwards, in evaluations: gradients of what goes in take as much as going forwards, and those of the
weights, where they are trained, as much again."""


@dataclass(frozen=True)
class TrainingCost:
    """What a pre-training takes.

    Args:
        samples: pictures that its steps look at, one as often as it is looked at.
        sample: U of the steps for each of these.
        encoded: pictures that are encoded, at most.
        first: they are encoded before the first step, for a cache; otherwise in the steps.
    """

    samples: int
    sample: float
    encoded: int
    first: bool

    @property
    def encoding(self) -> float:
        """U of encoding."""
        return self.encoded * (VAE_ENCODER + VISION_TOWER)

    @property
    def units(self) -> float:
        """U of all of it."""
        return self.samples * self.sample + self.encoding

    def after(self, samples: int) -> float:
        """U of what is done after so many samples."""
        share = samples / self.samples
        return samples * self.sample + self.encoding * (1 if self.first else share)

    def __str__(self) -> str:
        most = "" if self.first else " at most"
        return (
            f"{millions(self.units)} U, evaluations of the UNet{most}: {self.samples:,} samples of {self.sample:.2f} U "
            f"and {self.encoded:,} pictures to encode of {VAE_ENCODER + VISION_TOWER:.2f} U."
        )


def training_cost(own: PretrainConfig, encoded: int, first: bool) -> TrainingCost:
    """What a whole pre-training takes.

    Args:
        own: its settings.
        encoded, first: see `TrainingCost`.
    """
    again = int(own.gradient_checkpointing)  # forwards once more
    return TrainingCost(
        own.steps * own.batch_size,
        Cost(FROZEN + again, TRAINED + again, FROZEN).units(),
        encoded,
        first,
    )


def expected_cost(own: PretrainConfig, inputs: Listing | Shards, cached: bool) -> TrainingCost:
    """What a pre-training takes at most, before its pictures are opened.

    Args:
        own: its settings.
        inputs: what it learns from.
        cached: encoded pictures are kept.
    """
    samples = own.steps * own.batch_size
    if isinstance(inputs, Shards) or not cached:
        return training_cost(own, samples, False)
    paired = any(inputs.references) or any(identity is not None for identity in inputs.identities)
    return training_cost(own, min(len(inputs.paths), samples * (2 if paired else 1)), True)


def millions(units: float) -> str:
    """A number for people to read."""
    return f"{units / 1e6:,.4g} million" if units >= 1e6 else f"{units:,.0f}"
