"""One training loop for all networks of the face world, exactly resumable."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import nn

from profusion_cli.files import atomic_output
from profusion_cli.runtime.device import cpu_computes_bfloat16

AVERAGE_DECAY = 0.999
WARMUP = 0.02


def compute_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where it is fast: on GPUs, and on CPUs that compute it; else float32."""
    return torch.bfloat16 if device.type == "cuda" or cpu_computes_bfloat16() else torch.float32


class Fit:
    """Trains a network's float32 weights, computing in `compute_dtype`, and averages them over the steps.

    Matrices and convolutions take the steps of Muon (https://kellerjordan.github.io/posts/muon/), with which the VAE
    needed a tenth of the steps of AdamW; embeddings, biases and norms take those of AdamW.

    Args:
        name: of the stage, for messages and its checkpoint.
        model: left holding the averaged weights, in float32, at the end.
        work: folder of the checkpoint.
        steps: in all.
        learning_rate: at its highest: a warm-up of 2 % of the steps, then a cosine to zero.
        device: where it runs.
        say: told how it goes.
        every: steps between checkpoints.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        work: Path,
        steps: int,
        learning_rate: float,
        device: torch.device,
        say: Callable[[str], None],
        every: int = 200,
    ) -> None:
        self.name, self.model, self.steps, self.learning_rate, self.every = name, model, steps, learning_rate, every
        self.device, self.dtype, self.say = device, compute_dtype(device), say
        self.path = work / f"{name}.checkpoint.safetensors"
        embeddings = {f"{at}.weight" for at, module in model.named_modules() if isinstance(module, nn.Embedding)}
        self.master: dict[str, torch.Tensor] = {}
        matrices, others = [], []
        for key, value in model.named_parameters():
            master = value.detach().float().to(device).clone(memory_format=torch.contiguous_format)
            is_matrix = master.ndim > 1 and key not in embeddings
            # Muon takes matrices alone: a convolution is seen as one
            self.master[key] = master.view(len(master), -1) if is_matrix else master
            (matrices if is_matrix else others).append(self.master[key])
        self.average = {key: value.clone() for key, value in self.master.items()}
        self.optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(others, weight_decay=0.0, betas=(0.9, 0.99))]
        if matrices:
            self.optimizers.append(torch.optim.Muon(matrices, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"))
        self.step = 0
        model.to(device, self.dtype).to(memory_format=torch.channels_last).train()
        if self.path.exists():
            self._resume()

    def run(self, loss_of: Callable[[int, torch.Generator], torch.Tensor]) -> nn.Module:
        """Train to the end.

        Args:
            loss_of: the loss of one step, given its number and a generator seeded by it.
        """
        self._show(self.master)
        begun, first, total = time.monotonic(), self.step, 0.0
        while self.step < self.steps:
            loss = loss_of(self.step, torch.Generator().manual_seed(1_000_003 * (self.step + 1)))
            loss.backward()
            self._update()
            total += float(loss.detach())
            self.step += 1
            if self.step % self.every == 0 or self.step == self.steps:
                rate = (self.step - first) / (time.monotonic() - begun)
                done = self.step % self.every or self.every
                self.say(
                    f"{self.name}: step {self.step} of {self.steps}, loss {total / done:.4f}, "
                    f"{rate:.2f} steps/s, {(self.steps - self.step) / rate:.0f} s left"
                )
                total = 0.0
                self._save()
        self.model.float()
        self._show(self.average)
        return self.model.to(memory_format=torch.contiguous_format).eval().requires_grad_(False)

    def _rate(self) -> float:
        warm = max(round(self.steps * WARMUP), 1)
        if self.step < warm:
            return self.learning_rate * (self.step + 1) / warm
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (self.step - warm) / max(self.steps - warm, 1)))

    @torch.no_grad()
    def _update(self) -> None:
        for key, parameter in self.model.named_parameters():
            master = self.master[key]
            master.grad = None if parameter.grad is None else parameter.grad.float().reshape(master.shape)
            parameter.grad = None
        torch.nn.utils.clip_grad_norm_(self.master.values(), 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self._rate()
            optimizer.step()
        decay = min(AVERAGE_DECAY, (self.step + 1) / (self.step + 10))
        torch._foreach_lerp_(list(self.average.values()), list(self.master.values()), 1 - decay)
        self._show(self.master)

    @torch.no_grad()
    def _show(self, values: dict[str, torch.Tensor]) -> None:
        for key, parameter in self.model.named_parameters():
            parameter.copy_(values[key].view(parameter.shape))

    def _state(self) -> dict[str, dict[str, torch.Tensor]]:
        """What the optimisers remember of each parameter."""
        found: dict[int, dict[str, torch.Tensor]] = {}
        for optimizer in self.optimizers:
            found |= {id(value): state for value, state in optimizer.state.items()}
        return {key: found.get(id(value), {}) for key, value in self.master.items()}

    def _save(self) -> None:
        tensors = {"step": torch.tensor(self.step)}
        for key, state in self._state().items():
            named = {"master": self.master[key], "average": self.average[key], **state}
            tensors |= {f"{kind}:{key}": value.cpu().contiguous() for kind, value in named.items()}
        with atomic_output(self.path, force=True) as file:
            file.write(save(tensors))

    def _resume(self) -> None:
        owner = {id(value): optimizer for optimizer in self.optimizers for value in optimizer.param_groups[0]["params"]}
        with safe_open(self.path, "pt") as file:
            self.step = int(file.get_tensor("step"))
            for name in sorted(file.keys()):
                kind, _, key = name.partition(":")
                if not key:
                    continue
                value = file.get_tensor(name)
                if kind in ("master", "average"):
                    getattr(self, kind)[key].copy_(value)
                else:
                    state = owner[id(self.master[key])].state[self.master[key]]
                    state[kind] = value.clone() if kind == "step" else value.to(self.device).clone()
        self.say(f"{self.name}: goes on from step {self.step}.")
