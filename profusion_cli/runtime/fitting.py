"""Training on accelerate: the loop of every training here, whatever it trains."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Self

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState
from accelerate.utils import GradientAccumulationPlugin
from diffusers.models.attention_processor import Attention, AttnProcessor
from torch import nn

from profusion_cli.errors import DivergedError, out_of_memory
from profusion_cli.listener import who_hears
from profusion_cli.runtime.device import Placement, free_memory, is_out_of_memory
from profusion_cli.runtime.noise import to_device
from profusion_cli.runtime.optimizers import eight_bit_adamw
from profusion_cli.thrift import OptimizerName

REPEATED = "gradients overflowed in float16, and the step was done again with a smaller scale."
SMALLER = (
    "Switch gradient_checkpointing on, or train less: --train lora, or promptnet; or use a device with more memory."
)
SMALLEST_SCALE = 1.0
"""Of the loss in float16: the scaler begins at 65536, and halves it where gradients overflow."""


class Tensors:
    """A dataclass of tensors that share their first dimension.

    Attributes:
        on_cpu: names of those that stay on the CPU, where they are read.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]
    on_cpu: ClassVar[tuple[str, ...]] = ()

    def _each(self) -> list[torch.Tensor]:
        return [getattr(self, name) for name in self.__dataclass_fields__]

    def __len__(self) -> int:
        return len(self._each()[0])

    def split(self, parts: int) -> list[Self]:
        """So many parts, as equal as may be."""
        split = [tensor.tensor_split(parts) for tensor in self._each()]
        return [type(self)(*tensors) for tensors in zip(*split, strict=True)]

    def _with(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Self:
        changed = [name for name in self.__dataclass_fields__ if name not in self.on_cpu]
        return dataclasses.replace(self, **{name: change(getattr(self, name)) for name in changed})

    def to(self, device: torch.device) -> Self:
        """On a device; nobody waits for their arrival there."""
        return self._with(lambda tensor: to_device(tensor, device))

    def pinned(self) -> Self:
        """In memory that a GPU copies from by itself."""
        return self._with(torch.Tensor.pin_memory)


def ahead(
    batches: Callable[[int], Tensors], steps: range, device: torch.device
) -> Generator[tuple[int, Tensors], None, None]:
    """Steps and their batches, ready to go to the device; a thread prepares each while the step before it is taken.

    What goes wrong there is raised where the batch is asked for. No thread for a CPU, which takes the step as well:
    OpenMP would have more threads than there are cores, and every kernel of the step would wait longer for its own.
    """
    if device.type == "cpu":
        yield from ((step, batches(step)) for step in steps)
        return

    def prepare(step: int) -> Tensors:
        batch = batches(step)
        return batch.pinned() if device.type == "cuda" else batch

    def begin(step: int) -> Future[Tensors]:
        # in a context as here, which knows who hears of it
        return pool.submit(copy_context().run, prepare, step)

    with ThreadPoolExecutor(1, "batches") as pool:
        coming = begin(steps.start) if steps else None
        for step in steps:
            batch = coming.result()
            coming = begin(step + 1) if step + 1 in steps else None
            yield step, batch


def choose_attention(placement: Placement, *models: nn.Module) -> None:
    """Diffusers' plain attention where torch's fused one is slow: backwards, in bfloat16 on a CPU."""
    if placement.device.type == "cpu" and placement.autocast == "bf16":
        for attention in (module for model in models for module in model.modules() if isinstance(module, Attention)):
            attention.set_processor(AttnProcessor())


@contextlib.contextmanager
def _environment(name: str, value: str | None) -> Iterator[None]:
    """An environment variable as it is wanted for a while, and then as it was; None leaves it alone."""
    before = os.environ.get(name)
    if value is not None:
        os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before


def make_accelerator(placement: Placement, gradient_accumulation: int) -> Accelerator:
    """An accelerator on the device and in the precision of the placement; earlier ones are done with."""
    # accelerate keeps both in one state for the whole process; connected processes keep their connections
    connected = torch.distributed.is_available() and torch.distributed.is_initialized()
    AcceleratorState._reset_state(reset_partial_state=not connected)
    device = placement.device
    with _environment("ACCELERATE_TORCH_DEVICE", None if device.index is None else str(device)):
        return Accelerator(
            cpu=device.type == "cpu",
            mixed_precision=placement.autocast,
            # given as a plugin, an environment variable cannot override it
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=gradient_accumulation),
        )


def unprepare(accelerator: Accelerator, prepared: nn.Module) -> None:
    """Take off what accelerate and torch.compile wrap a module in: by that it holds itself, and all its networks, in
    memory."""
    module = accelerator.unwrap_model(prepared)
    for name in ("forward", "_original_forward", "_compiled_call_impl"):
        vars(module).pop(name, None)


@dataclass(frozen=True)
class Step:
    """One optimiser step that was done.

    Args:
        number: from 1.
        loss: of the whole batch, before the step.
        learning_rate: that it took.
        grad_norm: of all trained parameters together, before clipping.
        repeated: how often it had to be done again, because gradients overflowed in float16.
    """

    number: int
    loss: float
    learning_rate: float
    grad_norm: float
    repeated: int = 0


def make_optimizer(
    parameters: Iterable[nn.Parameter],
    accelerator: Accelerator,
    learning_rate: float,
    weight_decay: float,
    name: OptimizerName = "adamw",
) -> torch.optim.Optimizer:
    """AdamW in one kernel, which needs no memory beside its state; or the one in 8 bits.

    Backward passes are not fused with it: gradients would be gone before parts of a batch are added up, and before
    their norm is known, which clips them all together.

    Not in one kernel where gradients are scaled, in float16: accelerate does not learn of the steps that a fused
    optimiser leaves out because they overflow.
    """
    if name == "adamw8bit":
        return eight_bit_adamw(parameters, learning_rate, weight_decay)
    fused = accelerator.scaler is None
    return torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay, fused=fused)


def _try_step(
    accelerator: Accelerator,
    objective: nn.Module,
    optimizer: AcceleratedOptimizer,
    batch: Tensors,
    batch_size: int,
    max_grad_norm: float,
) -> tuple[float, float]:
    """Gradients of a batch, part by part, and the step, unless the loss is not finite; see `fit`.

    Returns:
        The loss, and the norm of the gradients before clipping.

    Raises:
        DeviceError: memory ran out in an optimiser that may have changed some of the parameters by then.
    """
    accelerator.step = 0  # whatever is left of a step that was broken off
    parts, processes = accelerator.gradient_accumulation_steps, accelerator.num_processes
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    total = torch.zeros((), device=accelerator.device)
    value = grad_norm = math.nan
    for part in batch.split(parts):
        with accelerator.accumulate(objective):
            # accelerate divides by the parts, and averages over the processes
            weight = len(part) * parts * processes / batch_size
            loss = objective(part.to(accelerator.device)) * weight
            total += loss.detach() / parts
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                norm = accelerator.clip_grad_norm_(parameters, max_grad_norm or math.inf)
                # the one time that anybody waits for the device
                value, grad_norm = torch.stack([accelerator.reduce(total, "mean"), norm.to(total)]).tolist()
                if not math.isfinite(value):
                    break
            _take_step(optimizer)
            optimizer.zero_grad()
    return value, grad_norm


def _take_step(optimizer: AcceleratedOptimizer) -> None:
    try:
        optimizer.step()
    except (RuntimeError, MemoryError) as error:
        if optimizer.defaults.get("fused") or not is_out_of_memory(error):
            raise
        raise out_of_memory(error, SMALLER) from error


def _in_memory(
    try_step: Callable[[], tuple[float, float]],
    accelerator: Accelerator,
    optimizer: AcceleratedOptimizer,
    pictures: int,
    number: int,
) -> tuple[float, float]:
    """A step, in twice as many parts each time that memory runs out: the same step in less of it.

    Args:
        try_step: `_try_step`, which looks into the accelerator for the number of parts.
        accelerator, optimizer: its.
        pictures: of this process.
        number: of the step, from 1.

    Raises:
        DeviceError: it runs out for a single picture; with several processes, whose parts must agree, at once.
    """
    while True:
        before = accelerator.gradient_accumulation_steps
        parts = min(2 * before, pictures)
        try:
            return try_step()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if parts <= before or accelerator.num_processes > 1:
                raise out_of_memory(error, SMALLER) from error
        # here, where the error is forgotten, and no longer holds what was computed
        accelerator.gradient_accumulation_steps = parts
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None
        free_memory()
        who_hears().warn(
            f"Memory ran out in step {number}: this and the further steps are done in {parts} parts each, which gives "
            "the same result and takes longer."
        )


def fit(
    accelerator: Accelerator,
    objective: nn.Module,
    optimizer: AcceleratedOptimizer,
    batches: Callable[[int], Tensors],
    batch_size: int,
    steps: int,
    max_grad_norm: float,
    *,
    start: int = 0,
    learning_rate: Callable[[int], float] | None = None,
    kept: str = "nothing was saved",
) -> Iterator[Step]:
    """Optimiser steps, one per item; what is to happen after a step happens between the items.

    Several processes take the step that one would take with all their pictures: the mean of the loss
    is over the pictures, however many each process has. A step that float16's gradient scaler skips,
    because gradients overflowed, is done again with the smaller scale that it has chosen; and one in which memory
    runs out, in twice as many parts, as all after it.

    Args:
        accelerator: from `make_accelerator`; its gradient accumulation splits every batch.
        objective, optimizer: the loss and the optimiser of the trained parameters, both prepared by it.
        batches: this process's share of the batch of a step (from 0), on the CPU; called a step ahead by a thread,
            where the device is not the CPU.
        batch_size: of the shares of all processes together.
        steps: the step to stop at.
        max_grad_norm: clips the gradients of all trained parameters together; 0 does not clip.
        start: how many of the steps are done already.
        learning_rate: of a step (from 0); without it the optimiser's own.
        kept: what a divergence leaves behind.

    Raises:
        DivergedError: a loss that is not finite, in any process, or gradients that overflow at the smallest
            scale; the step is not taken.
        DeviceError: no memory for a single picture.
    """

    def diverged(what: str) -> DivergedError:
        return DivergedError(
            f"Training diverged: the {what}; {kept}.",
            "Start anew with a lower --lr, or with --dtype float32.",
        )

    with contextlib.closing(ahead(batches, range(start, steps), accelerator.device)) as prepared:
        for step, batch in prepared:
            if learning_rate is not None:
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(step)
            try_step = partial(_try_step, accelerator, objective, optimizer, batch, batch_size, max_grad_norm)
            repeated = 0
            while True:
                loss, grad_norm = _in_memory(try_step, accelerator, optimizer, len(batch), step + 1)
                if not math.isfinite(loss):
                    raise diverged(f"loss at step {step + 1} is {loss}")
                if not optimizer.step_was_skipped:
                    break
                repeated += 1
                if accelerator.scaler.get_scale() < SMALLEST_SCALE:
                    raise diverged(f"gradients at step {step + 1} overflow at every scale")
            yield Step(step + 1, loss, optimizer.param_groups[0]["lr"], grad_norm, repeated)
