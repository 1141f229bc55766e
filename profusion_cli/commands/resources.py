"""What `finetune` says of memory and time: what it will need, and what it took."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from profusion_cli.commands.common import print_config
from profusion_cli.jobs.summaries import size_words

if TYPE_CHECKING:
    from profusion_cli.bundle import Bundle
    from profusion_cli.config import Config


def print_fit(config: Config, augments: bool) -> None:
    """The resolved configuration, with what is left to choose chosen where that can be, and what it will need."""
    from profusion_cli.runtime.choosing import foreseen

    fit = foreseen(config, augments)
    print_config(fit.config, fit.lines())


def memory_of_drawing(config: Config, subjects: int) -> str:
    """What drawing so many subjects will need, in a sentence."""
    from profusion_cli.runtime.choosing import drawing_foreseen

    return drawing_foreseen(config, subjects)


def free_bytes(config: Config) -> int:
    """What the device has free, before anything is loaded."""
    from profusion_cli.runtime.device import resolve_device
    from profusion_cli.runtime.memory import free

    return free(resolve_device(config.device))


def estimate(made: Bundle, config: Config) -> dict[str, int]:
    """What was told that the subject would need of the device's memory, for `--json`."""
    from profusion_cli.config import build_config
    from profusion_cli.runtime.choosing import foreseen

    resolved = build_config({**made.manifest["config"], "device": config.device, "dtype": config.dtype})
    told = foreseen(resolved, "mask" in (made.manifest["augmentation"] or {})).estimate
    return {} if told is None else told.as_dict()


def usage(config: Config, seconds: float) -> dict[str, Any]:
    """What `--json` says of time and memory."""
    from profusion_cli.runtime.device import resolve_device
    from profusion_cli.runtime.memory import peak

    return {"peak_bytes": peak(resolve_device(config.device)), "seconds": round(seconds, 2)}


def memory_words(used: Mapping[str, Any]) -> str:
    """The most memory that was held at once, of `usage`, for people; empty where it is not known."""
    most = used["peak_bytes"]
    return "" if most is None else size_words(most)
