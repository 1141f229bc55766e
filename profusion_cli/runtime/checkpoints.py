"""Checkpoints of `pretrain`: one safetensors file each, written atomically, the last few kept."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open

from profusion_cli.errors import ConfigError, OutputError
from profusion_cli.files import atomic_output

_NAME = re.compile(r"checkpoint-(\d{8,})\.safetensors")


@dataclass(frozen=True)
class Checkpoint:
    """The state after a step.

    Args:
        step: how many steps were done.
        settings: what the training depends on; see `check_settings`.
        tensors: float32, by names such as `promptnet.conv_in.weight`, `ema.*`, `exp_avg.*`.
        scaler: state of the gradient scaler of float16 training.
    """

    step: int
    settings: dict[str, Any]
    tensors: Mapping[str, torch.Tensor]
    scaler: dict[str, Any] | None = None

    def part(self, prefix: str) -> dict[str, torch.Tensor]:
        """The tensors whose names begin with `prefix` and a dot, by the rest of their names."""
        start = f"{prefix}."
        return {name.removeprefix(start): value for name, value in self.tensors.items() if name.startswith(start)}


def checkpoint_files(work: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first."""
    return sorted(path for path in work.glob("checkpoint-*.safetensors") if _NAME.fullmatch(path.name))


def save_checkpoint(work: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Write a checkpoint, and remove all but the last `keep`.

    Raises:
        OutputError: it cannot be written; the older ones are still there.
    """
    path = work / f"checkpoint-{checkpoint.step:08d}.safetensors"
    about = {"step": checkpoint.step, "settings": checkpoint.settings, "scaler": checkpoint.scaler}
    try:
        with atomic_output(path, force=True) as file:
            _write_safetensors(file, checkpoint.tensors, {"profusion": json.dumps(about)})
    except OutputError as error:
        raise OutputError(
            error.message, "Free some space, and go on with --resume: older checkpoints are kept."
        ) from error
    for old in checkpoint_files(work)[:-keep]:
        old.unlink(missing_ok=True)
    return path


def _write_safetensors(file: BinaryIO, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """As safetensors does it, but one tensor at a time: a checkpoint is several gigabytes."""
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, tensor in tensors.items():
        assert tensor.dtype == torch.float32, name
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [end, end + tensor.nbytes]}
        end += tensor.nbytes
    data = json.dumps(header).encode()
    data += b" " * (-len(data) % 8)
    file.write(struct.pack("<Q", len(data)) + data)
    for tensor in tensors.values():
        file.write(tensor.detach().cpu().contiguous().numpy().tobytes())


def newest_checkpoint(work: Path) -> Checkpoint | None:
    """The newest checkpoint that is whole; what is damaged or cut off is passed over."""
    for path in reversed(checkpoint_files(work)):
        try:
            with safe_open(path, framework="pt") as file:
                about = json.loads((file.metadata() or {})["profusion"])
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            return Checkpoint(int(about["step"]), about["settings"], tensors, about["scaler"])
        except (SafetensorError, OSError, ValueError, KeyError, TypeError):
            continue
    return None


def check_settings(remembered: Mapping[str, Any], present: Mapping[str, Any], where: str) -> None:
    """A checkpoint goes on only with the settings that it was made with.

    Raises:
        ConfigError: with all that differs.
    """
    names = dict.fromkeys([*remembered, *present])
    different = [
        f"{name}={present.get(name)} (it was {remembered.get(name)})"
        for name in names
        if json.dumps(remembered.get(name)) != json.dumps(present.get(name))
    ]
    if different:
        raise ConfigError(
            f"The checkpoint in '{where}' belongs to another configuration: {', '.join(different)}.",
            "Use the same settings, or start anew with another --work, or with --force instead of --resume.",
        )
