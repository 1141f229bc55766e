"""Pre-training from its pictures to its bundle."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object

from profusion_cli.bundle import Bundle, make_bundle
from profusion_cli.bundle.kinds import PROMPTNET_FILE
from profusion_cli.config import Config, PretrainConfig
from profusion_cli.dataset import Listing
from profusion_cli.errors import ConfigError, InputError
from profusion_cli.files import make_folder
from profusion_cli.launcher import process_count
from profusion_cli.listener import Listener
from profusion_cli.runtime.backbone import BaseModel
from profusion_cli.runtime.device import DTYPES, repeatable, resolve_placement
from profusion_cli.runtime.fitting import make_accelerator, unprepare
from profusion_cli.runtime.parts import parts_for
from profusion_cli.runtime.pretraining.checkpoints import (
    Checkpoint,
    check_settings,
    checkpoint_files,
    newest_checkpoint,
)
from profusion_cli.runtime.pretraining.log import LOG
from profusion_cli.runtime.pretraining.loop import run_steps
from profusion_cli.runtime.pretraining.sources import Pictures, open_pictures
from profusion_cli.runtime.pretraining.trainer import Trainer, settings_of
from profusion_cli.runtime.pretraining.work import claimed_work, clear_work
from profusion_cli.runtime.processes import lost_processes
from profusion_cli.runtime.weights import pack, promptnet_section
from profusion_cli.shards import Shards


def checkpoint_to_resume(trainer: Trainer, work: Path, listener: Listener) -> Checkpoint | None:
    """The checkpoint that `--resume` goes on from, or None where there is none yet.

    Raises:
        InputError: all are damaged, or the processes see different ones.
        ConfigError: it belongs to another configuration, or to a longer training.
    """
    steps = trainer.config.pretrain.steps
    found = newest_checkpoint(
        work, lambda path: listener.warn(f"'{path}' is damaged and passed over; an older one is tried.")
    )
    step = 0 if found is None else found.step
    if trainer.accelerator.num_processes > 1 and len(set(gather_object([step]))) > 1:
        raise InputError(
            f"The processes find different checkpoints in '{work}'.", "Give a folder that all machines share to --work."
        )
    if found is None:
        listener.note(f"There is no checkpoint in '{work}': starting anew.")
        return None
    check_settings(found.settings, trainer.settings, str(work))
    if step > steps:
        raise ConfigError(
            f"pretrain.steps={steps}, and {step} steps are done in '{work}'.", f"Use --steps {step} or more."
        )
    listener.note(f"Going on after step {step}.")
    return found


def parts_of_a_batch(own: PretrainConfig) -> int:
    """Into how many parts each process splits its share of a batch, for gradient accumulation.

    Raises:
        ConfigError: fewer pictures than processes.
    """
    processes = process_count()
    if own.batch_size < processes:
        raise ConfigError(
            f"pretrain.batch_size={own.batch_size} is less than the {processes} processes.",
            "It counts the pictures of all processes together: raise it.",
        )
    return min(own.gradient_accumulation, own.batch_size // processes)


def manifest_of(trainer: Trainer, pictures: Pictures, name: str, remembered: Mapping[str, Any]) -> dict[str, Any]:
    """What the bundle says of its making; see `pretrain`."""
    config, base = trainer.config, trainer.base
    return {
        "kind": "promptnet",
        "base": base.manifest(base.fingerprints(*parts_for("promptnet"))),
        "config": dict(remembered),
        "seed": config.seed,
        "inputs": pictures.inputs(name),
        "parents": [],
        "promptnet": promptnet_section(trainer.promptnet),
        "promptnet_source": {
            "weights": "pretrain",
            "steps": config.pretrain.steps,
            **pictures.counts,
        },
    }


def pretrain(
    config: Config,
    inputs: Listing | Shards,
    name: str,
    remembered: Mapping[str, Any],
    work: Path,
    cache: Path | None,
    resume: bool,
    force: bool,
    listener: Listener,
) -> tuple[Bundle | None, dict[str, Any]]:
    """Train a PromptNet.

    Args:
        config: the resolved configuration.
        inputs: the pictures, or tar shards of them.
        name: of the data set, where its pictures are too many to list.
        remembered: the configuration that the bundle remembers.
        work: folder for checkpoints, log and sample sheets.
        cache: folder for encoded pictures, or None.
        resume: go on from the newest checkpoint in `work`.
        force: without `resume`, overwrite an earlier training in `work`.
        listener: who hears of it.

    Returns:
        The bundle, in the main process alone; and a summary.
    """
    own, bundle = config.pretrain, None
    placement = resolve_placement(config.device, config.dtype, training=True)
    parts = parts_of_a_batch(own)
    if cache is not None and work not in cache.parents:
        make_folder(cache, "cache folder", "Give another --cache.")
    with contextlib.ExitStack() as stack:
        stack.enter_context(repeatable(config.deterministic))
        # before the processes know of one another, or transformers would write a random base in one of them only
        base = stack.enter_context(BaseModel(config.base, placement, listener))
        accelerator = make_accelerator(placement, parts)
        base.placement = replace(placement, device=accelerator.device)
        stack.enter_context(lost_processes(accelerator.num_processes))
        if accelerator.is_main_process:  # not before the processes are connected, or the others would wait for it
            stack.enter_context(claimed_work(work, resume, force))
        pictures = stack.enter_context(open_pictures(base, config, accelerator, inputs, cache, listener))
        trainer = Trainer(config, base, accelerator, settings_of(config, base, pictures.settings()))
        trainer.prepare(checkpoint_to_resume(trainer, work, listener) if resume else None)
        if accelerator.is_main_process and trainer.start == 0:
            clear_work(work)
        try:
            last = run_steps(trainer, pictures, work, listener)
        finally:
            unprepare(accelerator, trainer.objective)
        summary = {
            "kind": "promptnet",
            "steps": own.steps,
            "resumed_from": trainer.start,
            "last_loss": last[0].loss if last else None,
            "samples_per_second": round(last[1], 3) if last else None,
            "units": round(pictures.cost().units),
            **pictures.summary(),
            "num_processes": accelerator.num_processes,
            "work": str(work),
            "log": str(work / LOG),
        }
        if accelerator.is_main_process:
            manifest = manifest_of(trainer, pictures, name, remembered)
            files = {PROMPTNET_FILE: pack(trainer.weights(), DTYPES[own.save_dtype])}
            summary["checkpoint"] = str(checkpoint_files(work)[-1])
            bundle = make_bundle(manifest, files)
            summary["sha256"] = bundle.sha256
    # only here: a process that has failed tells why before it breaks the connections of the others
    accelerator.end_training()
    return bundle, summary
