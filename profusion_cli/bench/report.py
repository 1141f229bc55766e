"""Everything that is measured, as plain data, and as a table."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from rich.filesize import decimal

from profusion_cli import __version__
from profusion_cli.bench.contenders import Bench, Way, tuning_steps
from profusion_cli.bench.measure import Measured, matrix_speed, measured, operations
from profusion_cli.config import Config
from profusion_cli.jobs.configuration import warn_if_random
from profusion_cli.listener import Listener
from profusion_cli.runtime.backbone import BaseModel
from profusion_cli.runtime.device import Placement, compiling, repeatable, resolve_placement
from profusion_cli.runtime.needs import base_needs, promptnet_needs, provide

WARM_UP = 2
"""Steps, or evaluations, that are not counted."""


def bench(config: Config, rounds: int, limit: int | None, tuned: bool, listener: Listener) -> dict[str, Any]:
    """Measure a base model on a device.

    Args:
        config: the resolved configuration.
        rounds: how often everything is run; all of it once, and then all of it again.
        limit: steps of each picture that are run; the time of a whole one is told by what they cost. None: all.
        tuned: fine-tuning steps too.
        listener: who hears how far it is.

    Returns:
        Plain data: seconds of whole pictures and single evaluations, bytes, floating point operations.

    Raises:
        UnavailableError: weights that cannot be had.
    """
    provide([*base_needs(config), *promptnet_needs(config)])
    warn_if_random(config, listener)
    placement = resolve_placement(config.device, config.dtype, training=False)
    with repeatable(config.deterministic), compiling(config.compile):
        record: dict[str, Any] = {
            "profusion": __version__,
            "torch": torch.__version__,
            "device": _device(placement.device),
            "threads": torch.get_num_threads(),
            "dtype": str(placement.dtype).removeprefix("torch."),
            "preset": config.preset,
            "resolution": config.base.resolution,
            "random": config.base.random is not None,
            "compiled": config.compile,
            "rounds": rounds,
            "matrix_speed": matrix_speed(placement.device, placement.dtype),
        }
        record |= _drawing(config, placement, rounds, limit, listener)
        record["fine_tuning_step"] = _tuning(config, rounds, listener) if tuned else None
    return record


def _drawing(
    config: Config, placement: Placement, rounds: int, limit: int | None, listener: Listener
) -> dict[str, Any]:
    """Of pictures and single evaluations; nothing of them stays in memory."""
    with BaseModel(config.base, placement, listener) as base:
        stand = Bench(base, config)
        parts, ways = stand.parts(), stand.ways()
        limits = {way.name: min(limit or way.steps, way.steps) for way in ways}
        drawn: dict[str, list[Measured]] = {way.name: [] for way in ways}
        alone: dict[str, list[Measured]] = {name: [] for name in parts}
        with torch.inference_mode(), listener.progress("Measuring", rounds) as step:
            counted = {name: operations(run) for name, run in parts.items()}
            for way in ways:
                way.run(WARM_UP)
            for run in parts.values():
                run()
            for done in range(rounds):
                for way in _turned(ways, done):
                    drawn[way.name].append(measured(partial(way.run, limits[way.name]), placement.device))
                for name in _turned(list(parts), done):
                    alone[name].append(measured(parts[name], placement.device))
                step(done + 1)
    shares = [counted[name] / counted["UNet"] for name in ("PromptNet", "text encoder")]
    evaluations = {
        name: _spread([one.seconds for one in alone[name]], [one.peak for one in alone[name]])
        | {"operations": counted[name], "units": counted[name] / counted["UNet"]}
        for name in parts
    }
    pictures = {way.name: _picture(way, limits[way.name], drawn[way.name], shares) for way in ways}
    return {"evaluations": evaluations, "pictures": pictures}


def _turned(things: Sequence[Any], by: int) -> list[Any]:
    """In an order that begins with another one each round, so that none always comes behind the same."""
    by %= len(things)
    return [*things[by:], *things[:by]]


def _picture(way: Way, limit: int, runs: list[Measured], shares: list[float]) -> dict[str, Any]:
    whole, cut = way.cut(way.steps).units(*shares), way.cut(limit).units(*shares)
    seconds = [run.seconds * whole / cut for run in runs]
    return _spread(seconds, [run.peak for run in runs]) | {"steps": way.steps, "steps_run": limit, "units": whole}


def _spread(seconds: list[float], peaks: list[int | None]) -> dict[str, Any]:
    known = [peak for peak in peaks if peak is not None]
    return {
        "seconds": statistics.median(seconds),
        "least": min(seconds),
        "most": max(seconds),
        "peak": max(known, default=None),
    }


def _tuning(config: Config, rounds: int, listener: Listener) -> dict[str, Any]:
    """Of the steps of a fine-tuning, without the first."""
    placement = resolve_placement(config.device, config.dtype, training=True)
    ends: list[float] = []

    def step(done: int) -> None:
        ends.append(time.perf_counter())
        shown(done)

    with (
        BaseModel(config.base, placement, listener) as base,
        listener.progress("Fine-tuning", rounds + 1) as shown,
    ):
        whole = measured(lambda: tuning_steps(base, config, rounds + 1, step), placement.device)
    seconds = [after - before for before, after in pairwise(ends)]
    return _spread(seconds, [whole.peak]) | {
        "pictures": config.finetune.batch_size,
        "dtype": {"no": "float32", "bf16": "bfloat16", "fp16": "float16"}[placement.autocast],
    }


def _device(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({platform.processor() or platform.machine()})"


def lines_of(record: dict[str, Any]) -> Iterator[str]:
    """The record as Markdown."""
    weights = ", random weights" if record["random"] else ""
    weights += ", compiled" if record["compiled"] else ""
    yield (
        f"profusion {record['profusion']}, torch {record['torch']}, {record['device']}, {record['threads']} threads, "
        f"{record['dtype']}; preset {record['preset']}{weights}, {record['resolution']} pixels; {record['rounds']} "
        f"rounds, medians and ranges. Matrices are multiplied at {record['matrix_speed'] / 1e12:.3g} TFLOP/s."
    )
    yield "Pictures are drawn from noise to latents; prompts without S* are encoded before."
    yield ""
    yield "| a picture | steps | U | seconds | range | of the pipeline's | by FLOPs alone | peak |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    one = record["evaluations"]["UNet"]["operations"]
    first = next(iter(record["pictures"].values()))["seconds"]
    for name, row in record["pictures"].items():
        cut = "" if row["steps_run"] == row["steps"] else f", {row['steps_run']} run"
        yield (
            f"| {name} | {row['steps']}{cut} | {row['units']:.1f} | {_times(row)} | {row['seconds'] / first:.2f} | "
            f"{row['units'] * one / record['matrix_speed']:.3g} s | {_bytes(row['peak'])} |"
        )
    yield ""
    yield "| one evaluation | GFLOP | U | seconds | range | by FLOPs alone | peak |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for name, row in record["evaluations"].items():
        yield (
            f"| {name} | {row['operations'] / 1e9:.4g} | {row['units']:.3f} | {_times(row)} | "
            f"{row['operations'] / record['matrix_speed']:.3g} s | {_bytes(row['peak'])} |"
        )
    if (tuning := record["fine_tuning_step"]) is not None:
        yield ""
        yield f"| a step of fine-tuning, {tuning['dtype']} | seconds | range | peak |"
        yield "| --- | --- | --- | --- |"
        yield f"| {tuning['pictures']} pictures | {_times(tuning)} | {_bytes(tuning['peak'])} |"


def _times(row: dict[str, Any]) -> str:
    return f"{row['seconds']:.3g} | {row['least']:.3g} to {row['most']:.3g}"


def _bytes(count: int | None) -> str:
    return "not known here" if count is None else decimal(count)
