"""Many pictures -> a PromptNet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from profusion_cli.bundle import Bundle
from profusion_cli.config import Config
from profusion_cli.errors import UsageError
from profusion_cli.jobs.configuration import remember
from profusion_cli.jobs.trust import remember_own
from profusion_cli.listener import LIBRARIES, LOGGED, Listener
from profusion_cli.shards import Shards, list_inputs


def pretrain(
    images: Sequence[str],
    config: Config,
    work: Path,
    *,
    cache: Path | None = None,
    resume: bool = False,
    force: bool = False,
    listener: Listener = LOGGED,
) -> tuple[Bundle | None, dict[str, Any]]:
    """Train a PromptNet on many pictures, in as many processes as a launcher has started.

    Args:
        images: picture files and folders, one metadata file (`.jsonl`) that groups pictures of one identity, or tar
            shards.
        config: the resolved configuration; its `pretrain` section decides.
        work: folder for checkpoints, log and sample sheets.
        cache: folder for encoded pictures, for this and other trainings; None: each is encoded when it comes.
        resume: go on from the newest checkpoint in `work`.
        force: without `resume`, overwrite an earlier training in `work`.
        listener: who hears of it.

    Returns:
        The PromptNet as a bundle, in the main process alone; and a summary: steps, loss, speed, pictures.

    Raises:
        UsageError, InputError: pictures that cannot be listed, or none that can be read; a cache for shards.
        UnavailableError: the libraries that read shards are not installed.
        ConfigError: a checkpoint of other settings, or fewer pictures in a step than processes.
        OutputError: a training is in `work` already, nothing can be written there, or the cache does not fit on the
            disk.
        Interrupted: a signal; a checkpoint is saved.
        DivergedError: the loss is no finite number any more.
        DeviceError: another process of the training has ended.
    """
    inputs = list_inputs(images)
    if isinstance(inputs, Shards) and cache is not None:
        raise UsageError(
            "Tar shards have no cache: their pictures are not known beforehand.",
            "Leave --cache out, or unpack the shards into a folder.",
        )
    if config.base.random is not None:
        listener.warn("The base model has random weights: it exercises every step, and draws noise.")
    with listener.working(LIBRARIES):
        from profusion_cli.runtime.needs import base_needs, provide
        from profusion_cli.runtime.pretraining.run import pretrain

    provide(base_needs(config))
    name = Path(images[0]).name or images[0]
    made, summary = pretrain(config, inputs, name, remember(config), work, cache, resume, force, listener)
    if made is not None:
        remember_own(config, made.manifest["base"]["fingerprint"], listener)
    return made, summary
