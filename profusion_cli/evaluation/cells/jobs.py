"""What a cell needs done before it can be drawn: a resolved configuration in, a file written, or a `ProfusionError`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from profusion_cli.bundle import read_bundle
from profusion_cli.config import Config
from profusion_cli.errors import out_of_memory
from profusion_cli.evaluation.cells import work
from profusion_cli.evaluation.cells.marks import NOT_OF_SUBJECTS
from profusion_cli.evaluation.cells.work import Meter, Within
from profusion_cli.files import read_source
from profusion_cli.images import decode_photo
from profusion_cli.jobs import promptnet, subject, views
from profusion_cli.jobs.configuration import configure, with_full_path
from profusion_cli.runtime.device import is_out_of_memory


def make_views(photo: Path, target: Path, meter: Meter, config: Config) -> None:
    """Augment a photo.

    Args:
        photo: see above.
        target: the bundle of views; it is overwritten.
        meter: of the run.
        config: sections `augment` and `base`, class word, seed, device and dtype.

    Raises:
        ProfusionError: it cannot be done.
    """
    own = _with_the_presets(config, *NOT_OF_SUBJECTS, "finetune", "promptnet")
    with _memory("Lower augment.batch_size under `settings` in the study."):
        listener = Within(meter, [work.views(own)])
        made = views.make_views(decode_photo(read_source(str(photo)), str(photo)), own, listener=listener)
    made.save(target, force=True)


def make_subject(source: Path, target: Path, meter: Meter, config: Config, *, augmented: bool) -> None:
    """Fine-tune on a subject.

    Args:
        source: a photo, or the bundle of its views.
        target: the subject's bundle; it is overwritten.
        meter: of the run.
        config: all but the sections `sample` and `pretrain`.
        augmented: the source is views; a photo is taken as it is.

    Raises:
        ProfusionError: it cannot be done.
    """
    own, data = _with_the_presets(config, *NOT_OF_SUBJECTS), read_source(str(source))
    given = read_bundle(data, str(source)) if augmented else decode_photo(data, str(source))
    with _memory("Raise finetune.gradient_accumulation under `settings` in the study."):
        made = subject.make_subject([given], own, augment=False, listener=Within(meter, work.tuning(own)))
    made.save(target, force=True)


def work_of_subject(config: Config, *, augmented: bool) -> int:
    """How much work a subject is, with its views if it has any."""
    if config.finetune.steps == 0:
        return 0
    return sum(work.tuning(_with_the_presets(config, "sample"))) + (work.views(config) if augmented else 0)


def make_promptnet(pictures: str | Path, target: Path, folder: Path, cache: Path, meter: Meter, config: Config) -> None:
    """Pre-train a PromptNet; a training that was cut off goes on where it was.

    Args:
        pictures: as for `profusion pretrain`.
        target: the PromptNet's bundle.
        folder: for checkpoints.
        cache: folder for encoded pictures.
        meter: of the run.
        config: sections `base`, `promptnet` and `pretrain`, class word, concept prompt, seed, device and dtype.

    Raises:
        ProfusionError: it cannot be done.
    """
    own = _with_the_presets(config, "sample", "plans", "finetune", "augment", "placeholder")
    resume = any(folder.glob("checkpoint-*"))
    with _memory("Raise pretrain.gradient_accumulation under `settings` in the study."):
        made, _ = promptnet.pretrain(
            [str(pictures)],
            own,
            folder,
            cache=cache,
            resume=resume,
            force=not resume,
            listener=Within(meter, work.pretraining(own)),
        )
    made.save(target, force=True)


def _with_the_presets(config: Config, *names: str) -> Config:
    """A configuration with the preset's own values for what a bundle does not depend on, and remembers all the same."""
    own = configure(config.preset, None, {"finetune.method": config.finetune.method})
    return with_full_path(replace(config, **{name: getattr(own, name) for name in names}))


@contextmanager
def _memory(hint: str) -> Iterator[None]:
    """What does not fit into memory fails its cells, and the others go on.

    Raises:
        DeviceError: it does not.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise out_of_memory(error, hint) from error
