"""`profusion augment`: a photo -> the subject on other backgrounds, as an images bundle."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from profusion_cli import options
from profusion_cli.commands.common import (
    check_apart,
    check_bundle_target,
    check_one_stdin,
    check_region,
    decode,
    print_config,
    quoted,
    read_region,
)
from profusion_cli.config import Config
from profusion_cli.console import Output
from profusion_cli.errors import UsageError
from profusion_cli.files import STDIO, atomic_output, check_target, read_source

if TYPE_CHECKING:
    from profusion_cli.bundle import Bundle


@options.takes("augment", "class_word", *options.MACHINE, "mark")
def augment(
    photo: Annotated[
        str,
        typer.Argument(metavar="PHOTO", help=f"A photo of the subject ({options.PHOTO_LIMITS}); - is standard input."),
    ],
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
            help="Also write the pictures and their numbered sheet as PNG files into this folder.",
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
    from profusion_cli.jobs.configuration import configure

    started = time.perf_counter()
    output = Output(quiet, as_json)
    config = configure(preset, None, flags, settings, output)
    check_one_stdin([photo, mask or ""])
    check_region(mask, box)
    for name in ("device", "dtype", "deterministic"):
        if name in flags and not config.augment.inpaint:
            raise UsageError(f"--{name} has no effect where nothing is inpainted.", "Leave it out.")
    saved = _saved_names(save_images, config.augment.views)
    check_apart([photo, mask or ""], [target, *saved])
    check_bundle_target(target, force, as_json)
    for path in saved:
        check_target(path, force)

    from profusion_cli.jobs.views import make_views

    picture, region = decode(read_source(photo), photo, output), read_region(mask, box, output)
    if dry_run:
        print_config(config)
        return
    made = make_views(picture, config, region, output)
    made.save(target, force)
    if target != STDIO:
        output.line(target)
    _save_images(made, saved, config, force)
    if target != STDIO:
        for path in saved:
            output.line(path)
    seconds = time.perf_counter() - started
    images = {"pictures": saved[:-1], "sheet": saved[-1] if saved else None}
    output.record({"path": target, **summary(made), **images, "seconds": round(seconds, 2)})
    output.finished(seconds, "" if target == STDIO else f"profusion finetune {quoted(target)} -o me.pfz")


def summary(made: Bundle) -> dict[str, Any]:
    """What `--json` says of the views."""
    record = made.manifest["augmentation"]
    return {
        "sha256": made.sha256,
        "kind": made.kind,
        "views": len(record["views"]),
        "inpainted": record["inpainted"],
        "mask": record["mask"],
    }


def _saved_names(folder: str | None, views: int) -> list[str]:
    """The file names of the original, of the pictures, numbered as on the sheet, and of the sheet."""
    if folder is None:
        return []
    if not folder or folder == STDIO:
        raise UsageError(f"--save-images '{folder}' is no folder.", "Name a folder; it is made when it is missing.")
    digits = max(len(str(views)), 2)
    names = ["original", *(f"{number:0{digits}d}" for number in range(1, views + 1)), "sheet"]
    return [str(Path(folder) / f"{name}.png") for name in names]


def _save_images(made: Bundle, paths: list[str], config: Config, force: bool) -> None:
    """The sheet and the pictures of an images bundle as PNG files with their records."""
    if not paths:
        return
    from PIL import Image

    from profusion_cli.augmentation import read_images, sheet
    from profusion_cli.images import encode_png, parameters_text
    from profusion_cli.images.marks import COMPOSITE, made_by

    common = {"tool": made.manifest["tool"], "inputs": made.manifest["inputs"]}
    record, augmented = made.manifest["augmentation"], read_images(made)
    marked = {**common, **(made_by(COMPOSITE, config.mark) if record["inpainted"] else {})}

    def text_of(seed: int) -> str:
        if not record["inpainted"]:
            return ""
        used = {
            "Steps": config.augment.steps,
            "Sampler": "DDIM",
            "CFG scale": f"{config.augment.guidance_scale:g}",
            "Seed": seed,
        }
        return parameters_text(record["prompt"], record["negative_prompt"], used)

    pictures = [(Image.fromarray(augmented.original), "", {**common, "number": 0, "view": None})]
    for number, (image, view) in enumerate(zip(augmented.images, record["views"], strict=True), 1):
        pictures.append((image, text_of(view["seed"]), {**marked, "number": number, "view": view}))
    pictures.append((sheet(augmented), text_of(config.seed), {**marked, "views": record["views"]}))
    for path, picture in zip(paths, pictures, strict=True):
        with atomic_output(path, force) as file:
            file.write(encode_png(*picture))
