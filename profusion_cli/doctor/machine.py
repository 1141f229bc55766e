"""The machine: versions, libraries that load, devices, memory and disks. No module here needs torch to be read."""

from __future__ import annotations

import os
import platform
import tempfile
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from rich.filesize import decimal

from profusion_cli.errors import OutputError, ProfusionError, UnavailableError
from profusion_cli.main_memory import main_memory

REQUIRED = (
    *("torch", "torchvision", "diffusers", "transformers", "accelerate", "huggingface_hub", "peft", "safetensors"),
    *("open_clip_torch", "opencv-contrib-python-headless", "numpy", "pillow", "pyyaml", "jinja2", "filelock"),
    *("psutil", "rich", "typer"),
)
"""What profusion is installed with."""
OPTIONAL = (
    *("bitsandbytes", "c2pa-python", "cryptography", "deepface", "matplotlib", "tensorboard", "hf_xet"),
    *("webdataset", "braceexpand"),
)
MODULES = ("torch", "torchvision", "diffusers", "transformers", "accelerate", "cv2")
"""Those whose installed parts are known not to fit together at times."""
VARIABLES = (
    *("HF_HOME", "HF_HUB_CACHE", "HF_ENDPOINT", "HF_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "TMPDIR"),
    *("PROFUSION_PRESET", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "PYTHONOPTIMIZE", "HTTPS_PROXY"),
)
"""Variables of the environment whose presence explains much; their values are nobody's business."""
LEAST = 100_000_000
"""Bytes without which next to nothing can be written."""


@dataclass(frozen=True)
class Trouble:
    """Something that keeps profusion from working.

    Args:
        exit_code: as `profusion_cli.errors` has them; 1 is a bug.
        message: what is wrong.
        hint: what to do.
    """

    exit_code: int
    message: str
    hint: str


def trouble_of(error: Exception) -> Trouble:
    """What an error means; one that is none of ours is a bug."""
    if isinstance(error, ProfusionError):
        return Trouble(error.exit_code, error.message, error.hint)
    said = " ".join(str(error).split())[:300]
    return Trouble(1, f"{type(error).__name__}: {said}", "Report it with all of this page.")


def version_of(distribution: str) -> str | None:
    """The version that is installed, or None."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def system() -> dict[str, str]:
    """Python and the operating system."""
    return {
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def variables() -> list[str]:
    """The variables of the environment that are set; never their values."""
    return [name for name in VARIABLES if os.environ.get(name)]


def broken_libraries() -> list[Trouble]:
    """Libraries that are not installed, or do not load."""
    troubles = []
    for name in REQUIRED:
        if version_of(name) is None:
            error = UnavailableError(f"The library '{name}' is not installed.", f"python -m pip install '{name}'")
            troubles.append(trouble_of(error))
    for name in MODULES:
        try:
            import_module(name)
        except Exception as error:  # a library of the wrong build raises what it likes
            said = " ".join(str(error).split())[:300]
            failure = UnavailableError(
                f"The library '{name}' does not load: {type(error).__name__}: {said}",
                "Install profusion again in a virtual environment of its own.",
            )
            troubles.append(trouble_of(failure))
    return troubles


def devices() -> list[dict[str, Any]]:
    """The CPU and the GPUs, with their memory in bytes."""
    import torch

    what = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"
    found: list[dict[str, Any]] = [{"name": "cpu", "what": what, **main_memory()}]
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        free, total = torch.cuda.mem_get_info(number)
        name = torch.cuda.get_device_name(number)
        found.append({"name": f"cuda:{number}", "what": name, "free": free, "total": total})
    if torch.backends.mps.is_available():
        total = torch.mps.recommended_max_memory()
        free = total - torch.mps.driver_allocated_memory()
        found.append({"name": "mps", "what": "Metal GPU", "free": free, "total": total})
    return found


def chosen(device: str, dtype: str) -> dict[str, str]:
    """The device and the precisions that these names mean on this machine.

    Raises:
        DeviceError: a device that it does not have.
    """
    from profusion_cli.runtime.device import resolve_device, resolve_dtype

    return {
        "device": str(resolve_device(device)),
        "dtype for sampling": resolve_dtype(device, dtype, training=False),
        "dtype for training": resolve_dtype(device, dtype, training=True),
    }


def disks() -> tuple[list[dict[str, Any]], list[Trouble]]:
    """Where outputs, downloads and temporary files go, with the free bytes; and what cannot be written."""
    from huggingface_hub import constants

    from profusion_cli.runtime.downloads import OTHER_DISK, free_space

    places = [
        ("outputs, in the current folder", Path.cwd, "Choose a place on another disk with -o."),
        ("downloads", lambda: Path(constants.HF_HUB_CACHE), OTHER_DISK),
        ("temporary files", lambda: Path(tempfile.gettempdir()), "Free some space, or set TMPDIR to another folder."),
    ]
    found, troubles = [], []
    for what, find, hint in places:
        try:
            folder = find().absolute()
            free = free_space(folder)
        except OSError as error:
            troubles.append(trouble_of(OutputError(f"There is no place for {what}: {error.strerror}.", hint)))
            continue
        found.append({"what": what, "free": free})
        nearest = next(place for place in (folder, *folder.parents) if place.exists())
        if not os.access(nearest, os.W_OK):
            troubles.append(trouble_of(OutputError(f"The folder for {what} cannot be written.", hint)))
        elif free < LEAST:
            troubles.append(trouble_of(OutputError(f"The disk for {what} has {decimal(free)} free.", hint)))
    return found, troubles
