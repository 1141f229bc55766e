"""Counting the memory of tensors that have none: on the meta device, where shapes are right and nothing is computed.

What is counted is what would be held at once, by the bytes of storages; allocators round up, and keep a little more.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

HALVED = frozenset(
    {F.linear, F.conv2d, torch.conv2d, torch.matmul, torch.bmm, torch.baddbmm, torch.addmm}
    | {torch.Tensor.matmul, torch.Tensor.bmm, torch.Tensor.__matmul__}
)
"""What autocast computes in half precision, of what the networks here call."""
NORMS = frozenset({F.group_norm, F.layer_norm})
WHOLE_ON_GPU = NORMS | {F.softmax, torch.softmax, torch.Tensor.softmax}
"""What it computes in float32 on a GPU, and on a CPU in the precision that comes; of what the networks here call.

https://docs.pytorch.org/docs/stable/amp.html#autocast-op-reference
"""


def _floats(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Any], Any]:
    """The same for tensors of floating point alone."""
    return lambda value: change(value) if isinstance(value, torch.Tensor) and value.is_floating_point() else value


class _Norm(torch.autograd.Function):
    """What a normalisation keeps and makes; torch's own is slow on the meta device."""

    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, groups: int) -> torch.Tensor:
        mean, deviation = (inputs.new_empty(groups, dtype=torch.float32) for _ in range(2))
        ctx.save_for_backward(inputs, mean, deviation)
        return torch.empty_like(inputs)


class LikeDevice(TorchFunctionMode):
    """While it lasts, tensors of the meta device have the precisions that they would have elsewhere, which torch's own
    autocast does not give them, and attention is torch's fused one, which keeps no scores.

    Args:
        autocast: the half precision that is trained in; None: none.
        on_gpu: as there.

    Attributes:
        copies: of parameters in half precision, which autocast keeps through the forward pass, by the parameters.
        keys: of the copies' memory.
    """

    def __init__(self, autocast: torch.dtype | None, on_gpu: bool) -> None:
        super().__init__()
        self._autocast, self._on_gpu = autocast, on_gpu
        self.copies: dict[nn.Parameter, torch.Tensor] = {}
        self.keys: set[int] = set()

    def _half(self, tensor: torch.Tensor) -> torch.Tensor:
        if self._autocast is None or tensor.dtype == self._autocast:
            return tensor
        if not (isinstance(tensor, nn.Parameter) and tensor.requires_grad):
            return tensor.to(self._autocast)
        if tensor not in self.copies:
            self.copies[tensor] = tensor.to(self._autocast)
            self.keys.add(_key(self.copies[tensor]))
        return self.copies[tensor]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            query, key, value = map(self._half, args[:3])
            return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value)[0]
        if self._autocast is not None and func in HALVED:
            args, kwargs = tree_map(_floats(self._half), (args, kwargs))
        elif self._autocast is not None and self._on_gpu and func in WHOLE_ON_GPU:
            args, kwargs = tree_map(_floats(torch.Tensor.float), (args, kwargs))
        if func in NORMS:
            inputs, over = args[:2]
            groups = len(inputs) * over if func is F.group_norm else inputs.shape[:-1].numel()
            return _Norm.apply(inputs, groups)
        return func(*args, **kwargs)


def _key(tensor: torch.Tensor) -> int:
    """Of the memory that a tensor looks into, while that lives."""
    return tensor.untyped_storage()._cdata


class Peak(TorchDispatchMode):
    """Counts the most bytes that are held at once of what is made while it lasts.

    Args:
        existing: tensors whose memory is not counted.

    Attributes:
        bytes: see above.
    """

    def __init__(self, existing: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()
        self.bytes = self._now = 0
        self._existing = {_key(tensor) for tensor in existing}
        self._live: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else (made,):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor)
        return made

    def _count(self, tensor: torch.Tensor) -> None:
        key, storage = _key(tensor), tensor.untyped_storage()
        if key in self._existing or key in self._live:
            return
        size = storage.nbytes()

        def gone(_: object) -> None:
            del self._live[key]
            self._now -= size

        self._live[key] = weakref.ref(storage, gone)
        self._now += size
        self.bytes = max(self.bytes, self._now)


class Saved(torch.autograd.graph.saved_tensors_hooks):
    """Counts the bytes that are kept for the backward pass of what is computed while it lasts.

    Args:
        parameters: whose memory is not counted.
        copies: keys of them in half precision, which are counted apart.

    Attributes:
        of_copies, of_others: the bytes.
        largest: of the others.
    """

    def __init__(self, parameters: Iterable[torch.Tensor], copies: set[int]) -> None:
        super().__init__(self.count, lambda tensor: tensor)
        self._parameters, self._copies = {_key(tensor) for tensor in parameters}, copies
        self._seen: dict[int, torch.Tensor] = {}
        self.of_copies = self.of_others = self.largest = 0

    def count(self, tensor: torch.Tensor) -> torch.Tensor:
        """Count a tensor that is kept, once."""
        key = _key(tensor)
        if key not in self._parameters and key not in self._seen:
            self._seen[key] = tensor
            size = tensor.untyped_storage().nbytes()
            if key in self._copies:
                self.of_copies += size
            else:
                self.of_others += size
                self.largest = max(self.largest, size)
        return tensor

    def each(self, pictures: int) -> float:
        """Of the others, for each of so many pictures, with the gradient of the largest in the backward pass."""
        return (self.of_others + self.largest) / pictures


@dataclass(frozen=True)
class Activations:
    """What is kept for the backward pass of a batch, in bytes.

    Args:
        copies: of the weights in half precision, whatever the batch.
        each: of every picture.
        blocks: of each part that is computed again in the backward pass: what that keeps meanwhile, as the first two.
    """

    copies: int
    each: float
    blocks: tuple[tuple[int, float], ...]

    def of(self, pictures: int) -> int:
        """The most that is held at once, for so many pictures."""
        again = max((copies + each * pictures for copies, each in self.blocks), default=0)
        return round(self.each * pictures + max(self.copies, again))


def activations(
    objective: nn.Module, batch: Any, others: Iterable[torch.Tensor], mode: LikeDevice, checkpointing: bool
) -> Activations:
    """What a loss keeps for its backward pass, by computing it on the meta device.

    Args:
        objective: the loss of a batch.
        batch: of two pictures at least, since some copies are left out for one.
        others: further parameters that it computes with.
        mode: in which precisions.
        checkpointing: activations of the networks' blocks are computed twice, as diffusers does it.
    """
    parameters = [*objective.parameters(), *objective.buffers(), *others]
    blocks: list[Saved] = []
    saved = Saved(parameters, mode.keys)

    def checkpointed(function: Callable[..., Any], *arguments: Any) -> Any:
        for argument in arguments:
            if isinstance(argument, torch.Tensor):
                saved.count(argument)
        blocks.append(Saved(parameters, mode.keys))
        with blocks[-1]:
            return function(*arguments)

    if checkpointing:
        for module in objective.children():
            module.enable_gradient_checkpointing()
        for module in objective.modules():
            if hasattr(module, "_gradient_checkpointing_func"):
                module._gradient_checkpointing_func = checkpointed
    with mode, saved:
        objective(batch)
    copies = sum(copy.untyped_storage().nbytes() for copy in mode.copies.values())
    each = saved.of_others / len(batch) if blocks else saved.each(len(batch))
    return Activations(copies, each, tuple((block.of_copies, block.each(len(batch))) for block in blocks))
