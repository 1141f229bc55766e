"""What two real steps of tuning hold on a CPU at Stable Diffusion 2's size, beside what is told in advance.

`python -m tests.full_size lora` (or `attention`): random weights, bfloat16, 512 pixels, two parts of one picture; up to
18 GB and four minutes on two cores.
"""

from __future__ import annotations

import sys

import pytest
from rich.filesize import decimal

from profusion_cli.jobs.configuration import load_config
from profusion_cli.runtime.device import resolve_placement
from profusion_cli.runtime.estimates import finetuning_estimate
from tests.test_estimates import held


def main(train: str) -> None:
    tuning = {"steps": 2, "batch_size": 2, "gradient_accumulation": 2, "gradient_checkpointing": False, "train": train}
    settings = {f"finetune.{name}": value for name, value in tuning.items()}
    config = load_config("sd2", {"base.random.size": "sd2", **settings})
    estimate = finetuning_estimate(config, resolve_placement("cpu", "bfloat16", training=True), augments=False)
    told = estimate.tuning.beside_weights
    with pytest.MonkeyPatch.context() as patch:
        found = held(config, "bfloat16", patch)
    print(f"{train}: {decimal(found)} beside the weights, {found / told:.3f} of what was told")


if __name__ == "__main__":
    main(*sys.argv[1:])
