"""Many pictures -> a PromptNet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from profusion_cli.bundle import Bundle
from profusion_cli.config import Config
from profusion_cli.dataset import list_pictures
from profusion_cli.jobs.configuration import remember
from profusion_cli.jobs.trust import remember_own
from profusion_cli.listener import LIBRARIES, LOGGED, Listener


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
        images: picture files and folders, or one metadata file (`.jsonl`) that groups pictures of one identity.
        config: the resolved configuration; its `pretrain` section decides.
        work: folder for checkpoints, log and sample sheets.
        cache: folder for encoded pictures, for this and other trainings.
        resume: go on from the newest checkpoint in `work`.
        force: without `resume`, overwrite an earlier training in `work`.
        listener: who hears of it.

    Returns:
        The PromptNet as a bundle, in the main process alone; and a summary: steps, loss, speed, pictures.

    Raises:
        UsageError, InputError: pictures that cannot be listed, or none that can be read.
        ConfigError: a checkpoint of other settings, or fewer pictures in a step than processes.
        OutputError: a training is in `work` already, or nothing can be written there.
        Interrupted: a signal; a checkpoint is saved.
        DivergedError: the loss is no finite number any more.
        DeviceError: another process of the training has ended.
    """
    listing = list_pictures(images)
    if config.base.random is not None:
        listener.warn("The base model has random weights: it exercises every step, and draws noise.")
    with listener.working(LIBRARIES):
        from profusion_cli.runtime.needs import base_needs, provide
        from profusion_cli.runtime.pretraining.run import pretrain

    provide(base_needs(config))
    name = Path(images[0]).name or images[0]
    made, summary = pretrain(config, listing, name, remember(config), work, cache, resume, force, listener)
    if made is not None:
        remember_own(config, made.manifest["base"]["fingerprint"], listener)
    return made, summary
