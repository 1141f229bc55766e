"""Photos and views -> a subject."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from profusion_cli.augmentation import check_drop, kept, read_images
from profusion_cli.bundle import Bundle, make_bundle
from profusion_cli.bundle.manifest import PARENT
from profusion_cli.config import Config
from profusion_cli.errors import BundleError, UsageError
from profusion_cli.images import Photo, crop_square, strip
from profusion_cli.jobs.configuration import remember, warn_if_random
from profusion_cli.jobs.models import SubjectModels
from profusion_cli.jobs.parents import needs_parent, remember_parent
from profusion_cli.jobs.photos import as_photo, photo_input
from profusion_cli.jobs.trust import remember_own
from profusion_cli.jobs.views import Region, fill_backgrounds, move, warn_if_random_inpainting
from profusion_cli.listener import LIBRARIES, LOGGED, Listener
from profusion_cli.methods import PROFUSION
from profusion_cli.previews import Previews

PREVIEW_SIZE = 256


def preview_strip(squares: list[Image.Image]) -> bytes:
    """The reference views side by side, as PNG."""
    small = [square.resize((PREVIEW_SIZE, PREVIEW_SIZE), Image.Resampling.LANCZOS) for square in squares]
    buffer = io.BytesIO()
    strip(small).save(buffer, "PNG")
    return buffer.getvalue()


@dataclass(frozen=True)
class _Inputs:
    """What a subject is made from.

    Args:
        squares: the photos as RGB squares of the base's resolution; they become the reference views.
        further: pictures to train on that are made already.
        origins: kind, name and SHA-256 of each photo, for the manifest.
        parents: SHA-256 of the bundles that they come from.
        record: how further pictures were made, for the manifest; None: there are none.
    """

    squares: list[Image.Image]
    further: list[Image.Image]
    origins: list[dict[str, Any]]
    parents: list[str]
    record: dict[str, Any] | None


def _read(inputs: Sequence[Photo | Bundle], config: Config, drop: Sequence[int]) -> _Inputs:
    """Photos and images bundles as pictures of the base's size.

    Raises:
        BundleError: pictures of another size.
        UsageError: pictures left out that are not there.
    """
    size = config.base.resolution
    read = _Inputs([], [], [], [], None)
    for item in inputs:
        if isinstance(item, Photo):
            read.squares.append(crop_square(item.image, size))
            read.origins.append(photo_input(item))
            continue
        images = read_images(item)
        if len(images.original) != size:
            raise BundleError(
                f"The pictures in '{item.name}' have {len(images.original)} pixels a side, and the base model takes "
                f"{size}.",
                "Use the preset that they were made with, or run `profusion augment` again with this one.",
            )
        check_drop(drop, len(images.pictures))
        read.squares.append(Image.fromarray(images.original))
        read.further.extend(kept(images.images, drop))
        read.origins.extend(item.manifest["inputs"])
        read.parents.append(item.sha256)
    return replace(read, record={"dropped": list(drop)} if read.parents else None)


def references_of(
    inputs: Sequence[Photo | Bundle], config: Config
) -> tuple[list[tuple[str, Image.Image]], list[dict[str, Any]]]:
    """The photos of a subject.

    Returns:
        Name and reference view of each; and kind, name and SHA-256, for records.

    Raises:
        BundleError: pictures of another size than the base model's.
    """
    read = _read(inputs, config, ())
    names = [Path(item.name).stem for item in inputs]
    return list(zip(names, read.squares, strict=True)), read.origins


def is_augmented(inputs: Sequence[Photo | Bundle], config: Config) -> bool:
    """Whether a subject's one photo is augmented first: several, and pictures from a bundle, are views already."""
    own = config.finetune
    return len(inputs) == 1 and isinstance(inputs[0], Photo) and own.method == PROFUSION and own.steps > 0


def check_inputs(inputs: Sequence[Photo | Bundle], config: Config, augment: bool, drop: Sequence[int]) -> None:
    """All of `make_subject` that can be found wrong with its inputs without a model; see there."""
    _read(inputs, config, drop)
    if augment and is_augmented(inputs, config):
        check_drop(drop, config.augment.views)


def make_subject(
    photos: Sequence[Photo | Image.Image | Bundle],
    config: Config,
    *,
    augment: bool = True,
    region: Region | None = None,
    drop: Sequence[int] = (),
    models: SubjectModels | None = None,
    previews: Previews | None = None,
    consent: str | None = None,
    listener: Listener = LOGGED,
) -> Bundle:
    """Photos of one subject -> the subject, as a bundle that `draw` draws from.

    Args:
        photos: of one subject; or images bundles, as `make_views` makes them.
        config: the resolved configuration.
        augment: where there is one photo, and ProFusion tunes, train on views made from it too.
        region: where the subject is, if views are made.
        drop: numbers of views that are left out, as on the sheet of the bundle, which counts from 1.
        models: of further subjects by the same configuration; None: there are none.
        previews: what is drawn while it is tuned; None: nothing.
        consent: what the bundle says of the consent of who is in the photos; None: nothing, and nothing is asked.
        listener: who hears of it.

    Raises:
        UsageError: no photo; or `region`, `drop` or `previews` where they have no effect.
        InputError: a photo that cannot be used, or no subject found in it.
        BundleError: pictures of another size than the base model's, or a PromptNet that does not fit it.
        UnavailableError: weights that cannot be had.
        DivergedError: the loss is no finite number any more.
    """
    inputs = [item if isinstance(item, Bundle) else as_photo(item) for item in photos]
    if not inputs:
        raise UsageError("There is no photo.", "Give one at least.")
    augment = augment and is_augmented(inputs, config)
    if region is not None and not augment:
        raise UsageError("A region has no effect where no views are made.", "Leave it out.")
    if drop and not augment and not any(isinstance(item, Bundle) for item in inputs):
        raise UsageError("There are no views to drop.", "Leave `drop` out.")
    if previews is not None and config.finetune.steps == 0:
        raise UsageError("There are no steps to draw previews of.", "Leave `previews` out.")
    read, moved = _read(inputs, config, drop), None
    if augment:
        check_drop(drop, config.augment.views)
        moved = move(inputs[0], config, region or Region(), listener)
        read.origins.extend(moved.inputs)
        read = replace(read, record={**moved.record, "dropped": list(drop)})
    warn_if_random(config, listener)
    if moved is not None and config.base.random is None:
        warn_if_random_inpainting(config, listener)

    def further() -> list[Image.Image]:
        if moved is None:
            return read.further
        painter = models.painter if models else None
        augmented, _ = fill_backgrounds(moved.augmented, config, listener, painter)
        return kept(augmented.images, drop)

    with listener.working(LIBRARIES):
        from profusion_cli.runtime.choosing import fitted
        from profusion_cli.runtime.needs import finetuning_needs, provide
        from profusion_cli.runtime.subjects import tune_subject

    provide(finetuning_needs(config, augments=moved is not None))
    config = models.fitted(moved is not None) if models else fitted(config, moved is not None, listener)
    if models is None:
        tuned = tune_subject(config, read.squares, further, listener, previews)
    else:
        tuned = models.tuner.tune(read.squares, further, previews)
    manifest = {
        "kind": "subject",
        "base": tuned.base,
        "config": remember(config),
        "seed": config.seed,
        "inputs": read.origins,
        "parents": [*read.parents, *tuned.parents],
        **tuned.manifest,
        "augmentation": read.record,
        **({} if consent is None else {"consent": consent}),
    }
    remember_own(config, tuned.base["fingerprint"], listener)
    made = make_bundle(manifest, tuned.files, preview_strip(read.squares))
    if needs_parent(made):
        remember_parent(config, made.manifest[PARENT], listener)
    return made
