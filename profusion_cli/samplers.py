"""The samplers of `sample.sampler`: what each runs, and which settings it looks at."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from profusion_cli.errors import ConfigError

if TYPE_CHECKING:
    from profusion_cli.sampling import SampleConfig

SamplerName = Literal["fusion", "fusion-only", "cfg"]

FUSION_SETTINGS = ("gamma", "gamma_on", "fusion_guidance", "fusion_eta")
TEXT_SETTINGS = ("subject_prompt", "text_guidance")


@dataclass(frozen=True)
class SamplerKind:
    """What one sampler runs in each step.

    Args:
        label: how pictures name it.
        about: for help, what sets it apart; empty for the method itself.
        fusion: the fusion stage, as often as `fusion_steps` says.
        refinement: the refinement stage.
        text: the refinement weighs the text apart from the subject, eq. (6); without it the subject's term sees the
            whole prompt, and that is plain classifier-free guidance.
    """

    label: str
    about: str
    fusion: bool
    refinement: bool
    text: bool

    def fusion_steps(self, wanted: int) -> int:
        """How often the fusion stage runs where `sample.fusion_steps` is `wanted`."""
        return wanted if self.fusion else 0

    def unused(self, fusion_steps: int) -> tuple[str, ...]:
        """The settings of `sample` that it does not look at, by their names.

        Args:
            fusion_steps: of `sample.fusion_steps`; at 0 the settings of the fusion stage do nothing.
        """
        return (
            *(() if self.fusion else ("fusion_steps",)),
            *(() if self.fusion_steps(fusion_steps) else FUSION_SETTINGS),
            *(() if self.text else TEXT_SETTINGS),
            *(() if self.refinement else ("eta",)),
        )


SAMPLERS: dict[str, SamplerKind] = {
    "fusion": SamplerKind("Fusion Sampling (DDIM)", "", fusion=True, refinement=True, text=True),
    "fusion-only": SamplerKind("fusion-only (DDIM)", "no refinement", fusion=True, refinement=False, text=False),
    "cfg": SamplerKind(
        "cfg (DDIM)",
        "plain classifier-free guidance, at --subject-guidance",
        fusion=False,
        refinement=True,
        text=False,
    ),
}


def sampler_help() -> str:
    """The samplers in one sentence, as "a, b (what it is) or c (what it is)."."""
    *first, last = (f"{name} ({kind.about})" if kind.about else name for name, kind in SAMPLERS.items())
    return f"{', '.join(first)} or {last}."


def has_text(config: SampleConfig) -> bool:
    """Whether the text has a term of its own in the refinement."""
    return SAMPLERS[config.sampler].text and config.text_guidance > 0


def subject_weights(config: SampleConfig, subjects: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Guidance scale of each subject, and the weights (summing to 1) of their UNet changes.

    One guidance number is shared out by the weights (equal by default); with one number per subject,
    the weights are in their proportion unless they are given. Where each subject has an area of its own, one number is
    that of each.

    Raises:
        ConfigError: a number of guidance scales, weights or areas that does not fit the number of subjects.
    """
    areas = None if config.areas is None else parse_areas(config.areas)
    if areas is not None and (len(areas) != subjects or subjects == 1):
        raise ConfigError(
            f"--areas has {len(areas)} area(s) for {subjects} subject(s).",
            "Give one area for each of several subjects, such as --areas left,right.",
        )
    guidance, weights = config.subject_guidance, config.weights
    if len(guidance) not in (1, subjects):
        raise ConfigError(
            f"--subject-guidance has {len(guidance)} numbers for {subjects} subject(s).",
            "Give one number, or one per subject.",
        )
    if weights is not None and len(weights) != subjects:
        raise ConfigError(
            f"--weights has {len(weights)} numbers for {subjects} subject(s).", "Give one number per subject."
        )
    if weights is None:
        weights = guidance if len(guidance) == subjects else (1.0,) * subjects
    shares = tuple(weight / sum(weights) for weight in weights)
    if len(guidance) == subjects:
        return guidance, shares
    return tuple(guidance[0] * (share if areas is None else 1.0) for share in shares), shares


NAMED_AREAS = {"left": (0.0, 0.5), "right": (0.5, 1.0)}


def parse_areas(text: str) -> tuple[tuple[float, float], ...]:
    """Spans of a picture's width, from and to in [0, 1], of "left,right" or "0-0.4,0.6-1".

    Raises:
        ConfigError: something that is no span.
    """
    spans = []
    for part in map(str.strip, text.split(",")):
        found = re.fullmatch(r"(\d*\.?\d+)-(\d*\.?\d+)", part)
        span = NAMED_AREAS.get(part) or (found and (float(found[1]), float(found[2])))
        if not span or not 0 <= span[0] < span[1] <= 1:
            raise ConfigError(
                f"sample.areas: '{part}' is no area.",
                "Give left, right, or a span of the width from 0 to 1, such as 0-0.4.",
            )
        spans.append(span)
    return tuple(spans)
