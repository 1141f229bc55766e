"""How sampling is configured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from profusion_cli.errors import ConfigError
from profusion_cli.plans import EXACT, SpeedName
from profusion_cli.samplers import SAMPLERS, SamplerName, parse_areas, sampler_help
from profusion_cli.settings import FUSION, setting


@dataclass(frozen=True)
class SampleConfig:
    """Sampling: what to draw, and how Fusion Sampling weighs subject and text."""

    num_images: int = setting("Pictures for each prompt.", 1, 1, 100_000, flag="-n/--num-images")
    batch_size: int = setting("Pictures drawn at once; changes speed and memory only.", 1, 1, 4096, flag="--batch-size")
    speed: SpeedName = setting(
        "exact (the algorithm as it stands), or the plans fast and draft, which ask the UNet for less.",
        EXACT,
        flag="--speed",
    )
    steps: int = setting("Sampler steps of the exact algorithm.", 50, 1, 1000, flag="--steps")
    negative_prompt: str = setting("What the pictures should not show.", "", flag="--negative-prompt")
    width: int | None = setting("In pixels; the base model's resolution by default.", None, 8, 4096, flag="--width")
    height: int | None = setting("In pixels; the base model's resolution by default.", None, 8, 4096, flag="--height")
    sampler: SamplerName = setting(
        sampler_help(),
        "fusion",
        flag="--sampler",
        panel=FUSION,
    )
    fusion_steps: int = setting(
        "Fusion updates in each step; 0 is sampling with independent conditions.",
        1,
        0,
        100,
        flag="--fusion-steps",
        panel=FUSION,
    )
    gamma: float = setting("Weight of S* in the fusion stage, 0 to 1.", 0.6, 0, 1, flag="--gamma", panel=FUSION)
    gamma_on: Literal["embedding", "hidden", "hidden-first"] = setting(
        "What gamma multiplies: embedding (paper), hidden (encoder output), hidden-first (authors' code).",
        "hidden",
        flag="--gamma-on",
        panel=FUSION,
    )
    subject_prompt: Literal["concept", "full"] = setting(
        "Subject term of the refinement: concept (S* alone, the paper) or full (the whole prompt).",
        "full",
        flag="--subject-prompt",
        panel=FUSION,
    )
    subject_guidance: tuple[float, ...] = setting(
        "Guidance scale of the subject. Several subjects share it; `sample` also takes one for each.",
        (7.0,),
        0,
        100,
        flag="--subject-guidance",
        panel=FUSION,
        metavar="X[,X...]",
    )
    text_guidance: float = setting(
        "Guidance scale of the text in the refinement.", 5.0, 0, 100, flag="--text-guidance", panel=FUSION
    )
    fusion_guidance: float = setting(
        "Guidance scale of the fusion stage.", 7.0, 0, 100, flag="--fusion-guidance", panel=FUSION
    )
    fusion_eta: float = setting("DDIM eta of the fusion stage, 0 to 1.", 1.0, 0, 1, flag="--fusion-eta", panel=FUSION)
    eta: float = setting("DDIM eta of the refinement, 0 to 1.", 0.0, 0, 1, flag="--eta", panel=FUSION)
    weights: tuple[float, ...] | None = setting(
        "Weights of several subjects: of their shares in the guidance and of their UNet changes.",
        None,
        0,
        flag="--weights",
        panel=FUSION,
        metavar="X,X...",
    )
    areas: str | None = setting(
        "Where each of several subjects is: left,right, or spans of the width such as 0-0.4,0.6-1.",
        None,
        flag="--areas",
        panel=FUSION,
        metavar="AREA,AREA...",
    )
    reference: int = setting("Which photo of the subject PromptNet sees while sampling, counted from 1.", 1, 1, 1000)
    references: Literal["one", "mean", "each"] = setting(
        "What PromptNet sees of a subject made of several photos: one (sample.reference), mean (S* is the mean of what "
        "it makes of each), or each (one after another, picture by picture).",
        "one",
        flag="--references",
    )

    def __post_init__(self) -> None:
        if not SAMPLERS[self.sampler].refinement and self.fusion_steps == 0:
            raise ConfigError(
                f"sample.sampler={self.sampler} with sample.fusion_steps=0 leaves nothing to do.",
                "Use at least one fusion step, or another sampler.",
            )
        if self.areas is not None:
            parse_areas(self.areas)
        for name in ("subject_guidance", "weights"):
            values = getattr(self, name)
            if values is not None and (not values or sum(values) <= 0):
                raise ConfigError(f"sample.{name} must not be empty or all zero.", "Give at least one positive number.")
