"""`profusion finetune`: photos of one subject -> a subject bundle."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from profusion_cli import options
from profusion_cli.commands.augment import (
    augment_record,
    check_mask_options,
    decode,
    fill_backgrounds,
    find_mask,
    move,
    photo_input,
    warn_if_random_inpainting,
)
from profusion_cli.commands.common import (
    check_apart,
    check_one_stdin,
    configure,
    display_name,
    print_config,
    remember,
    remembered_config,
    warn_if_random,
)
from profusion_cli.console import Output
from profusion_cli.errors import BundleError, UsageError
from profusion_cli.files import STDIO, check_target, read_source
from profusion_cli.methods import PROFUSION, is_word_method

if TYPE_CHECKING:
    from profusion_cli.bundle import Bundle
    from profusion_cli.config import Config

FROM_BUNDLE = ("augment", "class_word")
"""What an images bundle still decides when another preset is asked for."""


def read_inputs(sources: list[str]) -> list[Bundle | Any]:
    """Images bundles, verified, and the bytes of everything else; None for what is not there.

    Raises:
        InputError: standard input that cannot be read.
        BundleError: a bundle that is damaged or of another kind.
    """
    from profusion_cli.bundle import looks_like_bundle, read_bundle

    inputs: list[Bundle | Any] = []
    for source in sources:
        data = read_source(source) if source == STDIO or os.path.isfile(source) else None
        if data is not None and looks_like_bundle(data):
            data = read_bundle(data, display_name(source)).require("images")
        inputs.append(data)
    return inputs


def check_augmentation(config: Config, photos: int, bundles: int, given: dict[str, bool]) -> bool:
    """Whether a photo is augmented first; options that would have no effect are refused.

    Raises:
        UsageError: such an option.
    """
    used = [name for name, is_given in given.items() if is_given]
    if bundles > 1 and given["--drop"]:
        raise UsageError(
            f"--drop counts the pictures of one sheet, and there are {bundles} images bundles.",
            "Fine-tune on one of them, or leave --drop out.",
        )
    if bundles:
        reason, allowed = "with an images bundle, whose pictures are made", ("--drop",)
        hint = "Leave it out, or give the photo."
    elif given["--no-augment"]:
        reason, allowed, hint = "with --no-augment", ("--no-augment",), "Leave one of them out."
    elif photos > 1:
        reason, allowed = "with several photos, which are views of the subject already", ("--no-augment",)
        hint = "Augment each with `profusion augment`, and give the bundles."
    elif config.finetune.method != PROFUSION:
        reason, allowed = f"with --method {config.finetune.method}, which trains on the photo itself", ("--no-augment",)
        hint = "Augment it with `profusion augment`, and give the bundle."
    elif config.finetune.steps == 0:
        reason, allowed, hint = "with --steps 0, which trains on nothing", ("--no-augment",), "Leave it out."
    else:
        return True
    for name in used:
        if name not in allowed:
            raise UsageError(f"{name} has no effect {reason}.", hint)
    return False


@options.takes("finetune", "augment", "promptnet", "class_word", "base.id", *options.MACHINE)
def finetune(
    photos: Annotated[
        list[str],
        typer.Argument(
            metavar="PHOTO...", help="Photos of one subject, or bundles of `profusion augment`; - is standard input."
        ),
    ],
    target: Annotated[
        str,
        typer.Option("-o", "--output", metavar="FILE", help="The subject bundle (.pfz); - is standard output."),
    ],
    no_augment: Annotated[
        bool,
        typer.Option("--no-augment", help="Train on the photo alone.", rich_help_panel=options.AUGMENTATION),
    ] = False,
    drop: Annotated[
        str | None,
        typer.Option(
            "--drop",
            metavar="N,N...",
            help="Leave these pictures out, numbered as on the sheet of the bundle.",
            rich_help_panel=options.AUGMENTATION,
        ),
    ] = None,
    mask: options.MaskOption = None,
    box: options.BoxOption = None,
    preset: options.Preset = None,
    settings: options.Settings = None,
    dry_run: options.DryRun = False,
    force: options.Force = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    *,
    flags: dict[str, Any],
) -> None:
    """Turn photos of one subject into a model of it.

    Fine-tunes PromptNet and the UNet's attention layers on the photos and writes a bundle that
    `profusion sample` draws from, without the photos. One photo is augmented first, as by `profusion
    augment`; several photos are views already and are trained on as they are.
    """
    promptnet = flags.get("promptnet.weights")
    check_one_stdin([*photos, mask or "", promptnet or ""])
    inputs = read_inputs(photos)
    bundles = [item for item in inputs if hasattr(item, "manifest")]
    remembered = remembered_config(bundles[0]) if bundles else None
    if remembered is not None and preset is not None:
        remembered = {key: value for key, value in remembered.items() if key in FROM_BUNDLE}
    config = configure(preset, remembered, flags, settings)
    if dry_run:
        print_config(config)
        return
    output = Output(quiet, as_json)
    if promptnet is not None and is_word_method(config.finetune.method):
        raise UsageError(
            f"--promptnet has no effect with --method {config.finetune.method}, whose S* is an ordinary word.",
            "Leave it out.",
        )
    check_mask_options(mask, box)
    given = {
        "--no-augment": no_augment,
        "--drop": drop is not None,
        "--mask": mask is not None,
        "--box": box is not None,
        "--views": "augment.views" in flags,
        "--no-inpaint": "augment.inpaint" in flags,
    }
    augmented = check_augmentation(config, len(photos) - len(bundles), len(bundles), given)
    check_apart([*photos, mask or "", promptnet or ""], [target])
    check_target(target, force, as_json)

    from PIL import Image

    from profusion_cli.augmentation import kept, parse_drop, read_images
    from profusion_cli.images import crop_square

    dropped = parse_drop(drop, config.augment.views) if augmented else []
    squares: list[Image.Image] = []
    further: list[Image.Image] = []
    origins: list[dict[str, str]] = []
    for source, item in zip(photos, inputs, strict=True):
        if item in bundles:
            images = read_images(item)
            if len(images.original) != config.base.resolution:
                raise BundleError(
                    f"The pictures in '{item.name}' have {len(images.original)} pixels a side, and the base model "
                    f"takes {config.base.resolution}.",
                    "Use the preset that they were made with, or run `profusion augment` again with this one.",
                )
            dropped = parse_drop(drop, len(images.pictures))
            squares.append(Image.fromarray(images.original))
            further += kept(images.images, dropped)
            origins += item.manifest["inputs"]
        else:
            picture = decode(read_source(source) if item is None else item, source, output)
            squares.append(crop_square(picture.image, config.base.resolution))
            origins.append(photo_input(picture))
    record: dict[str, Any] | None = {"dropped": dropped} if bundles else None
    if augmented:
        found, how, masks = find_mask(config, picture, mask, box, output)
        moved = move(squares[0], found, config, output)
        origins += masks
        record = {**augment_record(moved, config, how), "dropped": dropped}
    warn_if_random(config, output)
    if augmented and config.base.random is None:
        warn_if_random_inpainting(config, output)

    from profusion_cli.runtime.subjects import make_subject

    def more() -> tuple[list[Image.Image], dict[str, Any] | None]:
        if not augmented:
            return further, record
        made, _ = fill_backgrounds(moved, config, output)
        return kept(made.images, dropped), record

    made = make_subject(
        *(config, squares, origins, remember(config), target, force, output),
        parents=[bundle.sha256 for bundle in bundles],
        augment=more,
    )
    if target != STDIO:
        output.line(target)
    output.record({"path": target, **made})
