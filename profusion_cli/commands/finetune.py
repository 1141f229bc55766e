"""`profusion finetune`: photos of one subject -> a subject bundle."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated, Any

import typer

from profusion_cli import options
from profusion_cli.commands.common import (
    BUNDLE_SUFFIX,
    check_apart,
    check_bundle_target,
    check_one_stdin,
    decode,
    display_name,
    quoted,
    read_region,
)
from profusion_cli.commands.drawing import Drawing, check_draw, draw_subject, drawn_record, previews_of
from profusion_cli.commands.each import do_each, names_of, sharing
from profusion_cli.commands.resources import estimate, free_bytes, memory_words, print_fit, usage
from profusion_cli.console import Output
from profusion_cli.errors import InputError, UsageError
from profusion_cli.files import STDIO, check_target, read_source
from profusion_cli.methods import PROFUSION, is_word_method
from profusion_cli.texts import is_text

if TYPE_CHECKING:
    from profusion_cli.bundle import Bundle
    from profusion_cli.config import Config

FROM_BUNDLE = ("augment", "class_word")
"""What an images bundle still decides when another preset is asked for."""


def read_inputs(sources: list[str]) -> list[Bundle | Any]:
    """Images bundles, verified, and the bytes of everything else; None for what is not there.

    Raises:
        InputError: a folder, or standard input that cannot be read.
        BundleError: a bundle that is damaged or of another kind.
    """
    from profusion_cli.bundle import looks_like_bundle, read_bundle

    inputs: list[Bundle | Any] = []
    for source in sources:
        if os.path.isdir(source):
            raise InputError(f"'{source}' is a folder, and photos are needed.", "Name the photos in it.")
        data = read_source(source) if source == STDIO or os.path.isfile(source) else None
        if data is not None and looks_like_bundle(data):
            data = read_bundle(data, display_name(source)).require("images")
        inputs.append(data)
    return inputs


def remembered_of(bundles: Sequence[Bundle], preset: str | None) -> dict[str, Any] | None:
    """What images bundles say of the configuration: all of it, or what does not belong to another preset."""
    from profusion_cli.jobs.configuration import remembered_config

    if not bundles:
        return None
    remembered = remembered_config(bundles[0])
    return remembered if preset is None else {key: remembered[key] for key in FROM_BUNDLE if key in remembered}


def check_given(config: Config, flags: Mapping[str, Any], photos: int, bundles: int, given: Mapping[str, bool]) -> None:
    """Options that would have no effect are refused.

    Args:
        config: the resolved configuration.
        flags: values of keys given as options.
        photos, bundles: how many of each are given.
        given: whether each option that concerns augmentation is.

    Raises:
        UsageError: such an option.
    """
    method = config.finetune.method
    if "promptnet.weights" in flags and is_word_method(method):
        raise UsageError(
            f"--promptnet has no effect with --method {method}, whose S* is an ordinary word.", "Leave it out."
        )
    if bundles > 1 and given["--drop"]:
        raise UsageError(
            f"--drop counts the pictures of one sheet, and there are {bundles} images bundles.",
            "Fine-tune on one of them, or leave --drop out.",
        )
    if bundles:
        reason, allowed = "with an images bundle, whose pictures are made", "--drop"
        hint = "Leave it out, or give the photo."
    elif given["--no-augment"]:
        reason, allowed, hint = "with --no-augment", "--no-augment", "Leave one of them out."
    elif photos > 1:
        reason, allowed = "with several photos, which are views of the subject already", "--no-augment"
        hint = "Augment each with `profusion augment`, and give the bundles."
    elif method != PROFUSION:
        reason, allowed = f"with --method {method}, which trains on the photo itself", "--no-augment"
        hint = "Augment it with `profusion augment`, and give the bundle."
    elif config.finetune.steps == 0:
        reason, allowed, hint = "with --steps 0, which trains on nothing", "--no-augment", "Leave it out."
    else:
        return
    for name, is_given in given.items():
        if is_given and name != allowed:
            raise UsageError(f"{name} has no effect {reason}.", hint)


def parse_drop(text: str | None) -> list[int]:
    """The numbers of `--drop 3,7`, sorted, each once.

    Raises:
        UsageError: not numbers.
    """
    if text is None:
        return []
    try:
        return sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise UsageError(
            f"--drop '{text}' is not a number, nor numbers with commas between.", "For example: --drop 3,7"
        ) from None


@options.takes("finetune", "augment", "promptnet", "class_word", "base.id", *options.MACHINE, "compile", "mark")
def finetune(
    photos: Annotated[
        list[str],
        typer.Argument(
            metavar="PHOTO...",
            help=f"Photos of one subject ({options.PHOTO_LIMITS}), or bundles of `profusion augment`; - is standard "
            "input.",
        ),
    ],
    target: Annotated[
        str,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE|FOLDER",
            help="The subject bundle (.pfz); - is standard output. With --each a folder.",
        ),
    ],
    each: Annotated[
        bool,
        typer.Option(
            "--each",
            help="Make one bundle of each photo, with everything loaded once, and skip those that are there already.",
        ),
    ] = False,
    draw: Annotated[
        list[str] | None,
        typer.Option("--draw", metavar="PROMPT", help="Draw this too, right after tuning; may be repeated."),
    ] = None,
    pictures: Annotated[
        str | None,
        typer.Option("--pictures", metavar="FOLDER", help="Where --draw puts its pictures ('pictures' by default)."),
    ] = None,
    preview_every: Annotated[
        int | None,
        typer.Option(
            "--preview-every",
            min=1,
            metavar="N",
            help="While tuning, draw the prompts of --draw every N steps, from the same noise, into a growing sheet "
            "beside the bundle (me.preview.png).",
        ),
    ] = None,
    consent: Annotated[
        str | None,
        typer.Option(
            "--consent",
            metavar="TEXT",
            help="What the bundle says of the consent of who is in the photos; `profusion inspect` shows it.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
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
    trust_base: options.TrustBase = False,
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
    from profusion_cli.commands.picture_targets import plan_targets
    from profusion_cli.jobs.configuration import configure
    from profusion_cli.jobs.trust import check_trusted

    started = time.perf_counter()
    output = Output(quiet, as_json)
    promptnet = flags.get("promptnet.weights")
    check_one_stdin([*photos, mask or "", promptnet or ""])
    inputs = [] if each else read_inputs(photos)
    if consent is not None and not (consent.strip() and is_text(consent)):
        raise UsageError("--consent is empty, or no text in UTF-8.", "Say who has consented to what, or leave it out.")
    if "mark" in flags and not draw:
        raise UsageError("--no-mark has no effect without --draw.", "Leave it out.")
    bundles = [item for item in inputs if hasattr(item, "manifest")]
    config = configure(preset, remembered_of(bundles, preset), flags, settings, output)
    if trust_base and not bundles:
        raise UsageError("--trust-base has no effect where no bundle says what to load.", "Leave it out.")
    given = {
        "--no-augment": no_augment,
        "--drop": drop is not None,
        "--mask": mask is not None,
        "--box": box is not None,
        "--views": "augment.views" in flags,
        "--no-inpaint": "augment.inpaint" in flags,
    }
    check_given(config, flags, 1 if each else len(photos) - len(bundles), len(bundles), given)
    drawing = check_draw(draw or [], pictures, preview_every, config, target, 1 if each else len(photos))
    if "compile" in flags and config.finetune.steps == 0 and not draw:
        raise UsageError("--compile has no effect with --steps 0, which trains on nothing.", "Leave it out.")
    if each:
        refuse_with_each(given)
        tune_each(photos, target, config, drawing, not no_augment, consent, force, dry_run, output, started)
        return
    dropped, region, preview = parse_drop(drop), read_region(mask, box, output), drawing.preview(target)
    check_apart([*photos, mask or "", promptnet or ""], [target] if preview is None else [target, preview])
    check_bundle_target(target, force, as_json)
    if preview is not None:
        check_target(preview, force)

    from profusion_cli.jobs.models import SubjectModels
    from profusion_cli.jobs.subject import check_inputs, is_augmented, make_subject

    before = free_bytes(config) if as_json and not dry_run else None
    decoded = [
        item if item in bundles else decode(read_source(source) if item is None else item, source, output)
        for source, item in zip(photos, inputs, strict=True)
    ]
    prompts = drawing.prompts
    targets = plan_targets(drawing.folder, [(text, config) for text in prompts], force, as_json) if prompts else {}
    if dry_run:
        check_inputs(decoded, config, not no_augment, dropped)
        print_fit(config, not no_augment and is_augmented(decoded, config))
        return
    if bundles:
        check_trusted(config, bundles[0], preset, flags, settings, consent=trust_base, promptnet=True)
    options_of = {"augment": not no_augment, "region": region, "drop": dropped, "consent": consent, "listener": output}
    with SubjectModels(config, output) if prompts else nullcontext() as models:
        previews = previews_of(drawing, decoded, preview, config, force, output)
        made = make_subject(decoded, config, models=models, previews=previews, **options_of)
        made.save(target, force)
        if target != STDIO:
            output.line(target)
        if preview is not None:
            output.line(preview)
        drawn = draw_subject(made, target, prompts, targets, config, force, models, output) if models else []
    seconds = time.perf_counter() - started
    record = {"path": target, **summary(made, config), **drawn_record(drawn, preview)}
    used = usage(config, seconds)
    output.record({**record, "free_bytes": before, **used})
    example = f'profusion sample {quoted(target)} "{config.placeholder} in anime style"'
    output.finished(seconds, "" if target == STDIO else example, memory_words(used))


def refuse_with_each(given: Mapping[str, bool]) -> None:
    """What belongs to one photo cannot be said of each.

    Raises:
        UsageError: it is.
    """
    for name in ("--drop", "--mask", "--box"):
        if given[name]:
            raise UsageError(f"{name} is of one photo, and --each takes several.", "Leave it out.")


def tune_each(
    photos: Sequence[str],
    folder: str,
    config: Config,
    drawing: Drawing,
    augment: bool,
    consent: str | None,
    force: bool,
    dry_run: bool,
    output: Output,
    started: float,
) -> None:
    """One bundle of each photo, and pictures of each where there are prompts."""
    from profusion_cli.commands.picture_targets import plan_targets
    from profusion_cli.jobs.models import SubjectModels
    from profusion_cli.jobs.subject import make_subject

    targets = {photo: f"{name}{BUNDLE_SUFFIX}" for photo, name in names_of(photos, folder).items()}
    pictures = names_of(photos, drawing.folder)
    sheets = {photo: drawing.preview(target) for photo, target in targets.items()}
    check_apart(photos, [*targets.values(), *filter(None, sheets.values())])
    if dry_run:
        print_fit(config, augment and config.finetune.method == PROFUSION and config.finetune.steps > 0)
        return

    before = free_bytes(config) if output.as_json else None

    def do(photo: str) -> dict[str, Any]:
        target, sheet, prompts = targets[photo], sheets[photo], drawing.prompts
        drawn = plan_targets(pictures[photo], [(text, config) for text in prompts], force, False)
        inputs = [decode(read_source(photo), photo, output)]
        # of a photo whose bundle is not there, a sheet is left over from a run that was broken off
        previews = previews_of(drawing, inputs, sheet, config, True, output)
        given: dict[str, Any] = {"augment": augment, "consent": consent, "listener": output}
        made = make_subject(inputs, config, models=models, previews=previews, **given)
        made.save(target, force)
        output.line(target)
        if sheet is not None:
            output.line(sheet)
        paths = draw_subject(made, target, prompts, drawn, config, force, models, output) if prompts else []
        return {"path": target, **summary(made, config), **drawn_record(paths, sheet)}

    with sharing(config.device) as processes, SubjectModels(config, output) as models:
        outcome = do_each(photos, lambda photo: not force and os.path.exists(targets[photo]), do, output, processes)
    if processes is not None and not processes.is_main:
        return
    seconds = time.perf_counter() - started
    used = usage(config, seconds)
    output.record({"path": folder, **outcome.as_dict(), "free_bytes": before, **used})
    output.finished(seconds, memory=memory_words(used))
    outcome.check()


def summary(made: Bundle, config: Config) -> dict[str, Any]:
    """What `--json` says of a subject."""
    losses = made.manifest["loss"] or {"first": None, "last": None}
    return {
        "sha256": made.sha256,
        "kind": made.kind,
        "method": config.finetune.method,
        "views": made.manifest["pictures"],
        "steps": config.finetune.steps,
        "first_loss": losses["first"],
        "last_loss": losses["last"],
        "estimate": estimate(made, config),
    }
