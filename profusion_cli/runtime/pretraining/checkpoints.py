"""Checkpoints of `pretrain`: one safetensors file each, written atomically, the last few kept."""

from __future__ import annotations

import json
import re
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from profusion_cli.errors import ConfigError, InputError
from profusion_cli.files import atomic_output, output_hint

_DIGEST = re.compile(r"[0-9a-f]{64}")
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
    found = {path: _NAME.fullmatch(path.name) for path in work.glob("checkpoint-*.safetensors")}
    numbers = {path: int(match[1]) for path, match in found.items() if match}
    return sorted(numbers, key=numbers.__getitem__)


def save_checkpoint(work: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Write a checkpoint, and remove all older ones but the last `keep` - 1.

    Raises:
        OutputError: it cannot be written; the older ones are still there.
    """
    path = work / f"checkpoint-{checkpoint.step:08d}.safetensors"
    about = {
        "step": checkpoint.step,
        "settings": checkpoint.settings,
        "scaler": checkpoint.scaler,
        "crc32": _crc32(checkpoint.tensors),
    }
    hint = "Free some space, and go on with --resume: older checkpoints are kept."
    with output_hint(hint), atomic_output(path, force=True) as file:
        _write_safetensors(file, checkpoint.tensors, {"profusion": json.dumps(about)})
    files = checkpoint_files(work)
    # newer ones are damaged, or `newest_checkpoint` would have found them: they are no reason to remove this one
    for old in files[: files.index(path) + 1][:-keep]:
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
        file.write(_numbers(tensor))


def _numbers(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().cpu().contiguous().numpy().reshape(-1)


def _crc32(tensors: Mapping[str, torch.Tensor]) -> int:
    value = 0
    for name in sorted(tensors):
        value = zlib.crc32(_numbers(tensors[name]), value)
    return value


def newest_checkpoint(work: Path, damaged: Callable[[Path], None] = lambda path: None) -> Checkpoint | None:
    """The newest checkpoint that is whole, or None where there never was one.

    Args:
        work: their folder.
        damaged: called with each one that is passed over.

    Raises:
        InputError: all of them are damaged.
    """
    files = checkpoint_files(work)
    for path in reversed(files):
        try:
            with safe_open(path, framework="pt") as file:
                about = json.loads((file.metadata() or {})["profusion"])
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            if about["crc32"] == _crc32(tensors):
                return Checkpoint(int(about["step"]), about["settings"], tensors, about["scaler"])
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError):
            pass
        damaged(path)
    if files:
        raise InputError(
            f"No checkpoint in '{work}' can be read: all {len(files)} are damaged.",
            "Bring back a copy of one, or start anew with --force instead of --resume.",
        )
    return None


def check_settings(remembered: Mapping[str, Any], present: Mapping[str, Any], where: str) -> None:
    """A checkpoint goes on only with the settings that it was made with.

    Raises:
        ConfigError: with all that differs.
    """
    names = dict.fromkeys([*remembered, *present])
    different = [
        f"{name}={_short(present.get(name))} (it was {_short(remembered.get(name))})"
        for name in names
        if json.dumps(remembered.get(name)) != json.dumps(present.get(name))
    ]
    if different:
        raise ConfigError(
            f"The checkpoint in '{where}' belongs to another configuration: {', '.join(different)}.",
            "Use the same settings, or start anew with another --work, or with --force instead of --resume.",
        )


def _short(value: Any) -> str:
    text = str(value)
    return f"{text[:12]}..." if _DIGEST.fullmatch(text) else text
