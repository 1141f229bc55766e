"""Devices, dtypes, generators, and the words for running out of memory."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from accelerate.utils.memory import clear_device_cache
from diffusers.hooks import apply_group_offloading

from profusion_cli.errors import DeviceError

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Placement:
    """Where models run and in which precision.

    Args:
        device: for example `cpu`, `cuda`, `cuda:1`, `mps`.
        dtype: of the UNet and the text encoder, and of PromptNet when sampling.
        encoder_dtype: of the VAE and the vision tower; on a GPU float16 where `dtype` is bfloat16, whose eight bits are
            few for pixels. A CPU has no fast float16, and bfloat16 moves the face world's pixels by 0.35 of 255 there.
        autocast: `no`, `fp16` or `bf16`: accelerate's mixed precision for training.
    """

    device: torch.device
    dtype: torch.dtype
    encoder_dtype: torch.dtype
    autocast: str


def resolve_device(name: str) -> torch.device:
    """The device of that name; `auto` is cuda, else mps, else cpu.

    Raises:
        DeviceError: an unknown name, or a device that this machine does not have.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda", "mps"):
        raise DeviceError(f"There is no device '{name}'.", "Use auto, cpu, cuda, cuda:N or mps.")
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            found = f"{count} CUDA GPU(s)" if count else "no CUDA GPU"
            raise DeviceError(
                f"--device {name} was asked for, but torch {torch.__version__} finds {found}.",
                "Use --device cpu, or install a GPU driver and a build of torch that match.",
            )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("--device mps was asked for, but this machine has no Metal GPU.", "Use --device cpu.")
    return device


def resolve_placement(device_name: str, dtype_name: str, training: bool) -> Placement:
    """Device and precision for a command.

    `auto` is bfloat16 on a CPU that computes it, and else float32; sampling in it keeps the changes of a fine-tuning
    (measured on the face world). On a GPU it is float16 for sampling, whose mantissa is finer, and for training
    bfloat16 where the GPU has it and else float16. Trained weights themselves are float32 while training.

    Raises:
        DeviceError: as `resolve_device`, or float16 training on a CPU.
    """
    device = resolve_device(device_name)
    if dtype_name != "auto":
        dtype = DTYPES[dtype_name]
    elif device.type == "cpu":
        dtype = torch.bfloat16 if cpu_computes_bfloat16() else torch.float32
    elif training and device.type == "cuda":
        dtype = torch.bfloat16 if _gpu_computes_bfloat16(device) else torch.float16
    else:
        dtype = torch.bfloat16 if training else torch.float16
    if training and dtype == torch.float16 and device.type != "cuda":
        raise DeviceError(
            f"float16 training needs a CUDA GPU, and the device is {device}.",
            "Use --dtype bfloat16 or --dtype float32.",
        )
    return placement_in(device, dtype)


def placement_in(device: torch.device, dtype: torch.dtype) -> Placement:
    """On a device, which need not be in this machine, in one of `DTYPES`."""
    encoder_dtype = torch.float16 if dtype == torch.bfloat16 and device.type != "cpu" else dtype
    autocast = {torch.float32: "no", torch.float16: "fp16", torch.bfloat16: "bf16"}[dtype]
    return Placement(device, dtype, encoder_dtype, autocast)


def resolve_dtype(device_name: str, dtype_name: str, training: bool) -> str:
    """The dtype's own name; what `auto` means depends on the machine, and what is named does not.

    Raises:
        DeviceError: `auto` on a device that this machine does not have.
    """
    if dtype_name != "auto":
        return dtype_name
    dtype = resolve_placement(device_name, dtype_name, training).dtype
    return next(name for name, known in DTYPES.items() if known == dtype)


def cpu_computes_bfloat16() -> bool:
    """Whether this machine's CPU does by itself, with AMX or AVX512-BF16; on others bfloat16 is slower than float32."""
    asked = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")  # not every release of torch has both
    return any(getattr(torch.cpu, name, lambda: False)() for name in asked)


def _gpu_computes_bfloat16(device: torch.device) -> bool:
    """Whether that GPU does, of which a machine may have different ones; without a number it is the current one."""
    with torch.cuda.device(device):
        return torch.cuda.is_bf16_supported(including_emulation=False)


Network = TypeVar("Network", bound=torch.nn.Module)
BATCHES = 64
"""Sizes of batches that a network is compiled for at most, one after the other; each further one is run as it is."""
CUBLAS_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
"""An environment variable: with room of its own for each stream, CUDA's matrix products repeat themselves."""


@contextmanager
def repeatable(wanted: bool) -> Iterator[None]:
    """While it lasts, and where it is wanted, torch computes the same bits whatever the number of threads.

    Everything runs on one CPU thread, because sums are cut up by threads; and on a GPU by algorithms that repeat
    themselves. CUDA reads its environment variable once: enter this before anything is computed.

    Raises:
        DeviceError: something has no such algorithm on the device.
    """
    if not wanted:
        yield
        return
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    benchmark = torch.backends.cudnn.benchmark
    os.environ.setdefault(CUBLAS_WORKSPACE, ":4096:8")
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        raise DeviceError(
            "--deterministic was asked for, and a part of the computation has no deterministic form on this device.",
            "Leave it out, or use --device cpu.",
        ) from error
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(strict)
        torch.backends.cudnn.benchmark = benchmark


def arranged(network: Network, device: torch.device, compiled: bool, offloaded: bool = False) -> Network:
    """A network on the device, in the order of memory that the convolutions of GPUs and CPUs want; changed in place.

    Args:
        network, device: see above.
        compiled: it will be; on a CPU it keeps its order then, as torch 2.14 foresees another order of some gradients
            than its convolutions give them, and ends.
        offloaded: it waits in main memory for the device.
    """
    network = network.to("cpu" if offloaded else device)
    keeps = device.type == "mps" or (device.type == "cpu" and compiled)
    return network if keeps else network.to(memory_format=torch.channels_last)


def ready(network: Network, placement: Placement, compiled: bool, offloaded: bool = False) -> Network:
    """A network on the device, in the precision and the order of memory that suit it.

    Args:
        network: is changed in place.
        placement: where to, and in which precision.
        compiled: by torch.compile, at its first use with each size of its inputs; on a GPU its kernels are replayed
            as CUDA graphs. See `compiling`.
        offloaded: its layers wait in main memory, and each is on the device while it computes, by diffusers. That is
            for drawing alone: a backward pass wants the weights where the forward pass had them.
    """
    network = arranged(network.to(placement.dtype), placement.device, compiled, offloaded)
    if offloaded:
        apply_group_offloading(network, placement.device, offload_type="leaf_level")
    if compiled:
        network.compile(dynamic=False, mode="reduce-overhead" if placement.device.type == "cuda" else None)
    return network


@contextmanager
def compiling(wanted: bool) -> Iterator[None]:
    """While it lasts, and where it is wanted, networks are compiled for every size of batch, and what torch.compile
    cannot do is told of.

    Raises:
        DeviceError: it does not work here.
    """
    if not wanted:
        yield
        return
    from torch import _dynamo

    try:
        with _dynamo.config.patch(recompile_limit=BATCHES):
            yield
    except Exception as error:
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        raise DeviceError(
            f"--compile was asked for, and torch.compile does not work here ({type(error).__name__}).",
            "It wants a C++ compiler, and on a GPU Triton: install them, or leave --compile out.",
        ) from error


def autocasting(placement: Placement) -> torch.autocast:
    """What of a network is in float32, while it is trained, computes in the precision of the placement."""
    return torch.autocast(placement.device.type, placement.dtype, enabled=placement.autocast != "no")


def picture_generator(seed: int, index: int) -> torch.Generator:
    """The generator of picture `index`: CPU, seeded with seed + index, the same on every device."""
    return torch.Generator("cpu").manual_seed(seed + index)


def step_generator(seed: int, step: int) -> torch.Generator:
    """The generator of one training step, so that step n draws the same whatever came before it."""
    return _generator_of(f"{seed}:{step}")


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """The generator of the order of one epoch, independent of those of the steps."""
    return _generator_of(f"{seed}:epoch:{epoch}")


def _generator_of(name: str) -> torch.Generator:
    """A CPU generator of its own for every name; torch seeds by 32 bits."""
    digest = hashlib.sha256(name.encode()).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:4], "little"))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch ran out of memory, on a GPU or on the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and (
        "out of memory" in text or "can't allocate memory" in text or "MPS backend out of memory" in text
    )


def free_memory() -> None:
    """Give back what nobody holds any more."""
    clear_device_cache(garbage_collection=True)
