"""What a cell needs done before it can be drawn: a resolved configuration in, a file written, or a `ProfusionError`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import typer

from profusion_cli.config import Config
from profusion_cli.errors import ProfusionError
from profusion_cli.evaluation.cells.marks import PRETRAINING, subject_settings, views_settings
from profusion_cli.mappings import flat


class CommandError(ProfusionError):
    """A command that a cell needs has failed, and said why."""

    def __init__(self, command: str, exit_code: int) -> None:
        super().__init__(f"`profusion {command}` failed with exit code {exit_code}; what it said stands above.")
        self.exit_code = exit_code


def make_views(photo: Path, target: Path, config: Config) -> None:
    """Augment a photo.

    Args:
        photo: see above.
        target: the bundle of views; it is overwritten.
        config: sections `augment` and `base`, class word, seed, device and dtype.

    Raises:
        ProfusionError: it cannot be done.
    """
    _run("augment", str(photo), target, config, views_settings(config), "--force")


def make_subject(source: Path, target: Path, config: Config, *, augmented: bool) -> None:
    """Fine-tune on a subject.

    Args:
        source: a photo, or the bundle of its views.
        target: the subject's bundle; it is overwritten.
        config: all but the sections `sample` and `pretrain`.
        augmented: the source is views; a photo is taken as it is.

    Raises:
        ProfusionError: it cannot be done.
    """
    flags = () if augmented else ("--no-augment",)
    _run("finetune", str(source), target, config, subject_settings(config), "--force", *flags)


def make_promptnet(pictures: str | Path, target: Path, work: Path, cache: Path, config: Config) -> None:
    """Pre-train a PromptNet; a training that was cut off goes on where it was.

    Args:
        pictures: as for `profusion pretrain`.
        target: the PromptNet's bundle.
        work: folder for checkpoints.
        cache: folder for encoded pictures.
        config: sections `base`, `promptnet` and `pretrain`, class word, concept prompt, seed, device and dtype.

    Raises:
        ProfusionError: it cannot be done.
    """
    settings = {key: value for key, value in config.as_dict().items() if key in PRETRAINING}
    flags = ["--work", str(work), "--cache", str(cache), "--dtype", config.dtype, "--device", config.device]
    flags += ["--resume"] if any(work.glob("checkpoint-*")) else ["--force"]
    _run("pretrain", str(pictures), target, config, settings, *flags)


def _run(command: str, source: str, target: Path, config: Config, settings: Mapping[str, Any], *flags: str) -> None:
    """One of the ordinary commands, in this process."""
    from profusion_cli.app import app

    given = [f"--set={key}={json.dumps(value)}" for key, value in flat(settings).items()]
    arguments = [command, source, "-o", str(target), "--preset", config.preset, "-q", *given]
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):  # standard output is the results'
        code = app([*arguments, *flags], standalone_mode=False)
    if code in (130, 143):  # the command has said that it was interrupted
        raise typer.Exit(code)
    if code:
        raise CommandError(command, code)
