"""`profusion augment`: a photo -> the subject on other backgrounds, as an images bundle."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from profusion_cli import __version__, options
from profusion_cli.commands.common import check_apart, check_one_stdin, configure, display_name, print_config, remember
from profusion_cli.config import Config
from profusion_cli.console import Output
from profusion_cli.errors import UsageError
from profusion_cli.files import STDIO, atomic_output, check_target, read_source

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from profusion_cli.augmentation import Augmented
    from profusion_cli.images import Photo


def decode(data: Any, source: str, output: Output, as_mask: bool = False) -> Photo:
    """A picture from the command line, with what there is to say about it."""
    from profusion_cli.images import decode_photo

    picture = decode_photo(data, display_name(source), as_mask)
    for note in picture.notes:
        output.warn(note)
    return picture


def photo_input(photo: Photo, kind: str = "photo") -> dict[str, str]:
    """What a manifest remembers of an input."""
    return {"kind": kind, "name": Path(photo.name).name, "sha256": photo.sha256}


def find_mask(
    config: Config, photo: Photo, mask: str | None, box: str | None, output: Output
) -> tuple[np.ndarray, dict[str, Any], list[dict[str, str]]]:
    """Where the subject is: from `--mask`, `--box`, or the preset's method.

    Returns:
        The mask; how it was found, for the manifest; and further inputs.

    Raises:
        UsageError: a box that is none.
        InputError: a mask that cannot be used, or nothing found.
    """
    from profusion_cli import masks

    size = config.base.resolution
    if mask is not None:
        picture = decode(read_source(mask), mask, output, as_mask=True)
        found = masks.file_mask(picture.image, picture.name, photo.image, size)
        return found, {"method": "file"}, [photo_input(picture, "mask")]
    if box is not None:
        corners = masks.parse_box(box)
        return masks.box_mask(corners, photo.image, size), {"method": "box", "box": list(corners)}, []
    if config.augment.method == "thing":
        return masks.thing_mask(photo.image, photo.name, size), {"method": "thing"}, []
    found, others = masks.face_mask(photo.image, photo.name, size)
    if others:
        output.warn(
            f"'{photo.name}' shows {others + 1} faces; the largest is taken. Choose another with --box or --mask."
        )
    return found, {"method": "face"}, []


def check_mask_options(mask: str | None, box: str | None) -> None:
    """One way to say where the subject is.

    Raises:
        UsageError: two, or a box that is none.
    """
    from profusion_cli.masks import parse_box

    if mask is not None and box is not None:
        raise UsageError("--mask and --box are given together.", "Leave one of them out.")
    if box is not None:
        parse_box(box)


def move(square: Image.Image, mask: np.ndarray, config: Config, output: Output) -> Augmented:
    """The views of a photo, still without backgrounds, with a word on those that lost much of the subject.

    Raises:
        InputError: nothing of the subject is left in a view.
    """
    from profusion_cli.augmentation import VISIBLE, cut_off, move_subject

    moved = move_subject(square, mask, config.augment, config.seed)
    if numbers := cut_off(moved):
        shown = ",".join(str(number) for number in numbers)
        output.warn(f"Less than {VISIBLE:.0%} of the subject lies in these pictures: {shown}. See --drop of finetune.")
    return moved


def fill_backgrounds(moved: Augmented, config: Config, output: Output) -> tuple[Augmented, dict[str, Any]]:
    """Give the moved subjects backgrounds; also what a manifest remembers of the model that painted them."""
    if not config.augment.inpaint:
        from profusion_cli.augmentation import plain_backgrounds

        output.warn("The backgrounds are plain colours: they are not inpainted.")
        return moved.on(plain_backgrounds(moved)), {"id": None, "revision": None, "fingerprint": {}}
    from profusion_cli.runtime.inpaint import paint_backgrounds

    backgrounds, origin = paint_backgrounds(moved, config, output)
    return moved.on(backgrounds), origin


def warn_if_random_inpainting(config: Config, output: Output) -> None:
    """Random weights are called random."""
    if config.augment.inpaint and config.augment.model.id is None:
        output.warn("The inpainting model has random weights: the backgrounds are noise.")


def augment_record(moved: Augmented, config: Config, how: dict[str, Any]) -> dict[str, Any]:
    """What a manifest remembers of an augmentation."""
    from profusion_cli.augmentation import background_prompt, describe

    return {"mask": how, **describe(moved, config.augment, background_prompt(config))}


@options.takes("augment", "class_word", *options.MACHINE)
def augment(
    photo: Annotated[str, typer.Argument(metavar="PHOTO", help="A photo of the subject; - is standard input.")],
    target: Annotated[
        str,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="The images bundle (.pfz); - is standard output.",
            rich_help_panel=options.OUTPUT,
        ),
    ],
    save_images: Annotated[
        str | None,
        typer.Option(
            "--save-images",
            metavar="DIR",
            help="Also write the pictures as PNG files into this folder.",
            rich_help_panel=options.OUTPUT,
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
    """Show the subject of a photo at other places, on other backgrounds.

    The subject is cut out (--mask, --box, or by the preset's augment.method: face or thing), moved, and an
    inpainting model paints the rest. Look at the sheet, preview.png in the bundle, and give the bundle to
    `profusion finetune`, which can leave pictures out with --drop.
    """
    config = configure(preset, None, flags, settings)
    if dry_run:
        print_config(config)
        return
    started = time.perf_counter()
    output = Output(quiet, as_json)
    check_one_stdin([photo, mask or ""])
    check_mask_options(mask, box)
    for name in ("device", "dtype"):
        if name in flags and not config.augment.inpaint:
            raise UsageError(f"--{name} has no effect where nothing is inpainted.", "Leave it out.")
    check_target(target, force, as_json)
    saved = _saved_names(save_images, config.augment.views)
    check_apart([photo, mask or ""], [target, *saved])
    for path in saved:
        check_target(path, force)

    from profusion_cli.augmentation import write_images
    from profusion_cli.images import crop_square

    picture = decode(read_source(photo), photo, output)
    found, how, further = find_mask(config, picture, mask, box, output)
    square = crop_square(picture.image, config.base.resolution)
    moved = move(square, found, config, output)
    warn_if_random_inpainting(config, output)
    made, origin = fill_backgrounds(moved, config, output)
    record = augment_record(made, config, how)
    inputs = [photo_input(picture), *further]
    manifest = {
        "base": origin,
        "config": remember(config),
        "seed": config.seed,
        "inputs": inputs,
        "parents": [],
        "augmentation": record,
    }
    sha256 = write_images(target, made, manifest, force)
    if target != STDIO:
        output.line(target)
    _save([square, *made.images], saved, config, record, inputs, force)
    if target != STDIO:
        for path in saved:
            output.line(path)
    output.record(
        {
            "path": target,
            "sha256": sha256,
            "kind": "images",
            "views": len(made.pictures),
            "inpainted": config.augment.inpaint,
            "mask": how,
            "pictures": saved,
            "seconds": round(time.perf_counter() - started, 2),
        }
    )


def _saved_names(folder: str | None, views: int) -> list[str]:
    """The original's file name, then those of the pictures, numbered as on the sheet."""
    if folder is None:
        return []
    if not folder or folder == STDIO:
        raise UsageError(f"--save-images '{folder}' is no folder.", "Name a folder; it is made when it is missing.")
    digits = max(len(str(views)), 2)
    names = ["original", *(f"{number:0{digits}d}" for number in range(1, views + 1))]
    return [str(Path(folder) / f"{name}.png") for name in names]


def _save(
    images: list[Image.Image],
    paths: list[str],
    config: Config,
    record: dict[str, Any],
    inputs: list[dict[str, str]],
    force: bool,
) -> None:
    from profusion_cli.images import encode_png, parameters_text

    tool = {"name": "profusion", "version": __version__}
    for number, path in enumerate(paths):
        view = record["views"][number - 1] if number else None
        text = ""
        if view is not None and record["inpainted"]:
            used = {
                "Steps": config.augment.steps,
                "Sampler": "DDIM",
                "CFG scale": f"{config.augment.guidance_scale:g}",
                "Seed": view["seed"],
            }
            text = parameters_text(record["prompt"], record["negative_prompt"], used)
        data = encode_png(images[number], text, {"tool": tool, "inputs": inputs, "number": number, "view": view})
        with atomic_output(path, force) as file:
            file.write(data)
