"""How low-rank adapters are configured."""

from __future__ import annotations

from dataclasses import dataclass

from profusion_cli.settings import setting


@dataclass(frozen=True)
class AdapterConfig:
    """Low-rank adapters, which `finetune.train=lora` trains in place of whole weights (LoRA, arXiv 2106.09685).

    They want a higher learning rate than whole weights: on the face world 7.5 times theirs at rank 4, and 2.5 times at
    rank 32 (`faceworld-adapters-screen` in presets/studies/screens.md). Four times, for the default rank, lies between.
    """

    rank: int = setting("Rank of every adapter of --train lora.", 16, 1, 256, flag="--rank")
    alpha: float | None = setting(
        "What an adapter does is multiplied by alpha / rank; null: alpha is the rank.", None, 0
    )
    learning_rate_scale: float = setting(
        "Adapters learn at finetune.learning_rate times this: they want a higher one than whole weights, the more so "
        "the lower their rank.",
        4.0,
        0,
        1000,
    )
    targets: tuple[str, ...] = setting(
        "What layers of the UNet and of PromptNet have one: those whose name, or that of what holds them, ends so.",
        (
            *("to_q", "to_k", "to_v", "to_out", "vision_embedding", "first_prompt_projection"),
            *("down_prompt_projections", "mid_prompt_projection", "region_prompt_output"),
        ),
    )
