"""How a pre-training is configured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from profusion_cli.settings import setting

SaveDType = Literal["float16", "bfloat16", "float32"]


@dataclass(frozen=True)
class PretrainConfig:
    """Pre-training PromptNet on many pictures."""

    steps: int = setting("Optimiser steps.", 80_000, 1, 100_000_000, flag="--steps")
    batch_size: int = setting("Pictures per step, of all processes together.", 64, 1, 65_536, flag="--batch-size")
    learning_rate: float = setting("Learning rate.", 2.0e-5, 0, 1, flag="--lr")
    weight_decay: float = setting("AdamW's weight decay.", 0.01, 0, 1)
    max_grad_norm: float = setting("Gradients are clipped to this norm; 0 clips nothing.", 1.0, 0)
    warmup_steps: int = setting(
        "Steps in which the learning rate rises from 0.", 0, 0, 100_000_000, flag="--warmup-steps"
    )
    ema_decay: float = setting("Average the weights over the steps; 0 is off.", 0.0, 0, 0.999999, flag="--ema-decay")
    embedding_l2: float = setting(
        "Lambda of eq. (2), the paper's ablation; 0 is eq. (1).", 0.0, 0, flag="--embedding-l2"
    )
    gradient_accumulation: int = setting(
        "Split each step into so many parts: less memory, same result.", 1, 1, 4096, flag="--gradient-accumulation"
    )
    gradient_checkpointing: bool = setting("Compute activations twice: less memory, slower, same result.", False)
    encode_at_once: int = setting("Pictures encoded at once; changes speed and memory.", 8, 1, 1024)
    workers: int = setting("Processes that read tar shards, for each one that trains; 0: it does so itself.", 2, 0, 256)
    checkpoint_every: int = setting("Steps between checkpoints.", 1000, 1, 100_000_000, flag="--checkpoint-every")
    keep_checkpoints: int = setting("How many are kept.", 2, 1, 1000, flag="--keep-checkpoints")
    sample_every: int = setting("Steps between sample sheets; 0 draws none.", 0, 0, 100_000_000, flag="--sample-every")
    sample_steps: int = setting("Sampler steps of the pictures on them.", 20, 1, 1000)
    save_dtype: SaveDType = setting(
        "Precision in the bundle: float16, bfloat16 or float32.", "float16", flag="--save-dtype"
    )
