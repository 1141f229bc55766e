"""What of a fine-tuning is left to the machine (`auto`): what is trained, in how many parts, what is computed twice.

The first of a short list that fits what the device has free is taken, from the fastest to the smallest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from rich.filesize import decimal

from profusion_cli.bundle import Bundle
from profusion_cli.config import Config, FinetuneConfig
from profusion_cli.errors import DeviceError
from profusion_cli.listener import Listener, who_hears
from profusion_cli.runtime.device import DTYPES, Placement, placement_in, resolve_placement
from profusion_cli.runtime.estimates import Estimate, finetuning_estimate, sampling_estimate
from profusion_cli.runtime.memory import free
from profusion_cli.runtime.optimizers import check_optimizer
from profusion_cli.thrift import AUTO

MARGIN = 0.1
"""Of the free memory, which is left alone: for what allocators round up, and what is not counted."""
TRAINED = ("attention", "lora")
"""What `train=auto` may be, in this order."""


CHOICES = ("train", "gradient_accumulation", "gradient_checkpointing")
"""Keys of `finetune` that may be left to the machine."""
UNKNOWN = "What it needs of the memory is told when the files that describe its models are here."


@dataclass(frozen=True)
class MemoryFit:
    """A fine-tuning beside the memory that there is.

    Args:
        config: the resolved configuration; nothing in it is left to choose if there is an estimate.
        estimate: what it will need; None: not known before its models are here, or before the device is.
        device: in words.
        free: bytes that the device has free; None: it is not in this machine.
        chosen: what was left to choose, as settings; empty where nothing was.
    """

    config: Config
    estimate: Estimate | None
    device: str
    free: int | None
    chosen: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether it does, with the margin; what is not known does."""
        return self.estimate is None or self.free is None or _fits(self.estimate, self.free)

    def lines(self) -> list[str]:
        """What there is to say of it."""
        lines = [f"Chosen for what is free: {', '.join(self.chosen)}."] if self.chosen else []
        if self.estimate is None and self.free is None and is_open(self.config.finetune):
            left = ", ".join(f"finetune.{name}" for name in CHOICES if getattr(self.config.finetune, name) == AUTO)
            return [
                f"There is no device {self.device} in this machine to choose for: what is needed is told where a value "
                f"is given for {left}."
            ]
        if self.estimate is None:
            return [UNKNOWN]
        return [*lines, f"{_needs(self.estimate.total, self.device, self.free)}: {_parts(self.estimate)}."]


def _needs(needed: int, device: str, available: int | None) -> str:
    left = "which is not in this machine" if available is None else f"where {decimal(available)} are free"
    return f"Needs about {decimal(needed)} on {device}, {left}"


def _parts(estimate: Estimate) -> str:
    """Where the memory goes, in words."""
    words, tuning = [], estimate.tuning
    if tuning:
        own = {
            "weights": tuning.weights,
            "gradients": tuning.gradients,
            "optimiser": tuning.optimizer,
            "activations": tuning.activations,
        }
        listed = ", ".join(f"{name} {decimal(size)}" for name, size in own.items())
        words.append(f"tuning {decimal(tuning.total)} ({listed})")
    if estimate.views:
        words.append(f"making views {decimal(estimate.views)}")
    return ", ".join([*words, f"encoding {decimal(estimate.encoding)}"])


def is_open(own: FinetuneConfig) -> bool:
    """Whether something is left to choose."""
    return any(getattr(own, name) == AUTO for name in CHOICES)


def candidates(own: FinetuneConfig) -> Iterator[FinetuneConfig]:
    """What a fine-tuning may be, from the fastest to the smallest: smaller parts cost less time than activations that
    are computed twice, which are some 30 % of a step."""
    pictures = own.batch_size * (2 if own.prior_pictures else 1)
    powers = [2**power for power in range(pictures.bit_length())]
    for train in TRAINED if own.train == AUTO else (own.train,):
        for twice in (False, True) if own.gradient_checkpointing == AUTO else (own.gradient_checkpointing,):
            for parts in powers if own.gradient_accumulation == AUTO else (own.gradient_accumulation,):
                yield replace(own, train=train, gradient_checkpointing=twice, gradient_accumulation=parts)


def fit(config: Config, augments: bool, placement: Placement, available: int | None) -> MemoryFit:
    """A fine-tuning that fits, as far as it is left to choose.

    Args:
        config: the resolved configuration.
        augments: whether views of a photo are made first.
        placement: of the training.
        available: bytes that its device has free; None: it is not in this machine.
    """
    own, device = config.finetune, str(placement.device)
    if available is None and is_open(own):
        return MemoryFit(config, None, device, None)
    tried, estimate = config, None
    for one in candidates(own):
        tried = replace(config, finetune=one)
        estimate = finetuning_estimate(tried, placement, augments)
        if estimate is None:
            return MemoryFit(config, None, device, available)
        if available is not None and _fits(estimate, available):
            break
    names = ("train", "gradient_accumulation", "gradient_checkpointing")
    chosen = tuple(
        f"finetune.{name}={str(getattr(tried.finetune, name)).lower()}" for name in names if getattr(own, name) == AUTO
    )
    return MemoryFit(tried, estimate, device, available, chosen)


def _fits(estimate: Estimate, available: int) -> bool:
    return estimate.total <= (1 - MARGIN) * available


def fitted(config: Config, augments: bool, listener: Listener) -> Config:
    """The configuration, in which nothing is left to choose, after its memory is told of.

    Raises:
        DeviceError: a device that this machine does not have.
        UnavailableError: an optimiser whose library is not there.
    """
    check_optimizer(config.finetune.optimizer)
    placement = resolve_placement(config.device, config.dtype, training=config.finetune.steps > 0)
    found = fit(config, augments, placement, free(placement.device))
    for line in found.lines():
        (listener.note if found.fits else listener.warn)(line)
    if not found.fits:
        listener.warn(
            "That is more than fits: it may run out of memory. What helps: --train auto, --gradient-accumulation auto, "
            "--set finetune.gradient_checkpointing=auto, --optimizer adamw8bit."
        )
    return found.config


def offloads(config: Config, placement: Placement, subjects: Sequence[Bundle]) -> bool:
    """Whether UNet and PromptNet wait in main memory while pictures of subjects are drawn; it is told where that was
    left to choose."""
    if config.offload != AUTO:
        return config.offload == "group"
    if placement.device.type == "cpu" or config.compile:
        return False
    needed, available = sampling_estimate(config, placement, len(subjects)), free(placement.device)
    if needed is None or needed <= (1 - MARGIN) * available:
        return False
    who_hears().note(
        f"Drawing needs about {decimal(needed)}, and {decimal(available)} are free: UNet and PromptNet wait in main "
        "memory, which is slower (--offload none keeps them on the device)."
    )
    return True


def foreseen(config: Config, augments: bool) -> MemoryFit:
    """What a fine-tuning would need, for `--dry-run`: of models that may not be here, on a device that may not be.

    Raises:
        DeviceError: a device that there is nowhere.
    """
    return fit(config, augments, *_foreseen_place(config, trains=config.finetune.steps > 0))


def drawing_foreseen(config: Config, subjects: int) -> str:
    """What drawing so many subjects would need, in words; see `foreseen`."""
    placement, available = _foreseen_place(config, trains=False)
    needed = sampling_estimate(config, placement, subjects)
    if needed is None:
        return UNKNOWN
    return f"{_needs(needed, str(placement.device), available)}."


def _foreseen_place(config: Config, trains: bool) -> tuple[Placement, int | None]:
    """Where a job would run, and the bytes that are free there; None: it is a GPU that this machine does not have."""
    try:
        placement = resolve_placement(config.device, config.dtype, training=trains)
        return placement, free(placement.device)
    except DeviceError:
        if not config.device.startswith(("cuda", "mps")):
            raise
        half = torch.bfloat16 if trains else torch.float16
        dtype = half if config.dtype == "auto" else DTYPES[config.dtype]
        return placement_in(torch.device(config.device), dtype), None
