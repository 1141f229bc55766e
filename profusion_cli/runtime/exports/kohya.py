"""Changes of the UNet under the names that diffusers, ComfyUI and A1111 read.

A module's name is its path with `_` for the dots, behind `lora_unet_` (https://github.com/kohya-ss/sd-scripts).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from profusion_cli.runtime.changes import Change, LowRank, whole

PREFIX = "lora_unet_"
WEIGHT, BIAS = ".weight", ".bias"


def module_name(parameter: str) -> str:
    """Of the module that a parameter belongs to: `mid_block.attentions.0.proj_in.weight` is of
    `lora_unet_mid_block_attentions_0_proj_in`."""
    return PREFIX + parameter.rpartition(".")[0].replace(".", "_")


def lora_tensors(changes: Mapping[str, LowRank], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Tensors of a LoRA file: `lora_down`, `lora_up`, and an `alpha` that is the rank, so that nothing is scaled.

    All have one rank, filled up with zeros: diffusers 0.42 loses the alpha of modules whose rank is not most modules'.
    """
    tensors, rank = {}, max(change.down.shape[0] for change in changes.values())
    for name, change in changes.items():
        module, more = module_name(name), rank - change.down.shape[0]
        down = torch.cat([change.down, change.down.new_zeros(more, *change.down.shape[1:])])
        up = torch.cat([change.up, change.up.new_zeros(len(change.up), more, *change.up.shape[2:])], dim=1)
        tensors[f"{module}.lora_down.weight"] = down.to(dtype)
        tensors[f"{module}.lora_up.weight"] = up.to(dtype)
        tensors[f"{module}.alpha"] = torch.tensor(float(rank))
    return tensors


def difference_tensors(changes: Mapping[str, Change], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Tensors of whole differences as ComfyUI reads them: `.diff` of a weight, and `.diff_b` of a bias."""
    ends = {WEIGHT: ".diff", BIAS: ".diff_b"}
    return {
        module_name(name) + ends[name[name.rindex(".") :]]: whole(change).to(dtype) for name, change in changes.items()
    }
