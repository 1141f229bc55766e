"""`profusion sample`: subject bundles and prompts -> pictures."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from contextlib import closing
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any

import typer

from profusion_cli import options
from profusion_cli.commands.common import (
    check_apart,
    check_one_stdin,
    check_unexpanded,
    check_whole,
    credentials_of,
    decode,
    open_bundle,
    plan_remarks,
    print_config,
    split_arguments,
)
from profusion_cli.commands.each import do_each, names_of, sharing
from profusion_cli.commands.resources import memory_of_drawing
from profusion_cli.console import Output
from profusion_cli.errors import UsageError
from profusion_cli.files import STDIO, atomic_output, check_target, read_source
from profusion_cli.prompt_files import read_prompts
from profusion_cli.prompts import PLACEHOLDER, alternatives
from profusion_cli.samplers import subject_weights

if TYPE_CHECKING:
    from PIL import Image

    from profusion_cli.bundle import Bundle
    from profusion_cli.config import Config
    from profusion_cli.images.credentials import Credentials
    from profusion_cli.jobs.pictures import Picture
    from profusion_cli.starting import Start

SHEET_CELL = 256
START = "Start from a picture"
SCORES = "Scores"
STRENGTH = 0.75
"""Where the authors' code starts: at timestep 750 of 1000."""


@options.takes(
    "sample",
    "placeholder",
    "class_word",
    "base.id",
    "promptnet.weights",
    *options.MACHINE,
    "compile",
    "offload",
    "mark",
)
def sample(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="SUBJECT... PROMPT...",
            help='Subject bundles (- is standard input), then prompts with S*, such as "S* in anime style"; '
            '"S* in a {red|blue} hat" is two.',
        ),
    ],
    target: Annotated[
        str | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FOLDER|FILE",
            help="A folder ('pictures' by default; names that are taken there get a number), a .png file when one "
            "picture is made, or - (standard output).",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    each: Annotated[
        bool,
        typer.Option(
            "--each",
            help="Draw each subject by itself, in a folder of its own, with everything loaded once; pictures that are "
            "there already are skipped.",
        ),
    ] = False,
    start_from: Annotated[
        str | None,
        typer.Option(
            "--start-from",
            metavar="FILE",
            help="Draw over this picture in place of noise alone, and so keep its composition.",
            rich_help_panel=START,
        ),
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option(
            "--strength",
            min=0.01,
            max=1,
            metavar="X",
            help=f"How much of it is drawn anew: the part of the steps that is taken. Default: {STRENGTH}, with a mask "
            "1.",
            rich_help_panel=START,
        ),
    ] = None,
    inpaint_mask: Annotated[
        str | None,
        typer.Option(
            "--inpaint-mask",
            metavar="FILE",
            help="Draw where this picture of the same size is light, and leave the rest as it was.",
            rich_help_panel=START,
        ),
    ] = None,
    score: Annotated[
        str | None,
        typer.Option(
            "--score",
            metavar="JUDGE",
            help="Tell and record how like the subject's photo each picture is, from -1 to 1, by faceworld, ArcFace, "
            "AdaFace or DINOv2 (all but the first want `pip install 'profusion[evaluation]'`), or auto. Copies of the "
            "photo score highest.",
            rich_help_panel=SCORES,
        ),
    ] = None,
    best: Annotated[
        int | None,
        typer.Option(
            "--best",
            min=1,
            metavar="K",
            help="Of the pictures of each prompt (-n), keep the K with the highest --score.",
            rich_help_panel=SCORES,
        ),
    ] = None,
    prompts_file: Annotated[
        str | None, typer.Option("--prompts", metavar="FILE", help="Read further prompts from a file, one per line.")
    ] = None,
    sheet: Annotated[
        str | None,
        typer.Option(
            "--sheet", metavar="FILE", help="Also write a labelled contact sheet (PNG).", rich_help_panel=options.OUTPUT
        ),
    ] = None,
    sign: options.Sign = None,
    key: options.SignKey = None,
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
    """Draw a subject wherever the prompts put it.

    Picture j of every prompt is drawn with seed + j, whatever the batch size. With several subjects,
    S* stands for each in turn; S1*, S2* name them within one prompt. A bundle remembers the values of its
    preset, which take the place of the defaults below.
    """
    from profusion_cli.commands.picture_targets import check_useful, plan_targets, references
    from profusion_cli.jobs.configuration import configure, remembered_config
    from profusion_cli.jobs.parents import names_promptnet
    from profusion_cli.jobs.trust import check_trusted

    started, output = time.perf_counter(), Output(quiet, as_json)
    start, credentials = read_start(start_from, strength, inpaint_mask, output), credentials_of(sign, key)
    if prompts_file is None:
        check_unexpanded(arguments, flags.get("placeholder", PLACEHOLDER))
    sources, texts = split_arguments(arguments)
    pictures_in = [start_from or "", inpaint_mask or ""]
    check_one_stdin([*sources, *pictures_in, prompts_file or "", flags.get("promptnet.weights", "")])
    texts = [one for text in texts for one in alternatives(text)]
    further = [] if prompts_file is None else [one for text in read_prompts(prompts_file) for one in alternatives(text)]
    if not texts and not further:
        raise UsageError("There is no prompt.", 'Add one, such as "S* in anime style", or --prompts FILE.')
    if best is not None and (score is None or each):
        raise UsageError(
            f"--best {'cannot be had with --each' if each else 'has no effect without --score'}.", "Leave it out."
        )
    if each:
        if score is not None:
            raise UsageError("--score and --each exclude one another.", "Draw the subjects one by one.")
        if sheet is not None:
            raise UsageError("--sheet shows subjects together, and --each draws them apart.", "Leave one of them out.")
        given = (preset, flags, settings, trust_base, dry_run, force, start, credentials, output)
        draw_each(sources, [*texts, *further], target, *given)
        output.finished(time.perf_counter() - started)
        return
    bundles = [open_bundle(source, "subject") for source in sources]
    config = configure(preset, remembered_config(bundles[0]), flags, settings, output)
    check_useful(config, flags)
    check_best(best, config, len(bundles), score)
    named = names_promptnet(flags, settings)
    check_whole(texts, config.placeholder)
    texts += further

    from profusion_cli.jobs.pictures import draw
    from profusion_cli.jobs.scoring import Scorer, best_of, judge_named, scored

    made = []
    with closing(
        draw(bundles, texts, config, class_word=flags.get("class_word"), promptnet=named, start=start, listener=output)
    ) as pictures:
        targets = plan_targets(target, texts, config, force, as_json, best)
        check_apart(pictures_in, list(targets.values()))
        labelled = Sheet(sheet, targets.values(), force, references(bundles)) if sheet is not None else None
        if dry_run:
            scales, _ = subject_weights(config.sample, len(bundles))
            remarks = [*plan_remarks(config, bundles, texts, scales, start), memory_of_drawing(config, len(bundles))]
            print_config(config, remarks)
            return
        check_trusted(config, bundles[0], preset, flags, settings, consent=trust_base)
        judged: Iterable[Picture] = pictures
        if score is not None:
            judged = scored(pictures, Scorer(judge_named(score, config), bundles[0], config))
            judged = judged if best is None else best_of(judged, best, config.sample.num_images)
        for picture in judged:
            path = targets[picture.prompt, picture.index]
            picture.save(path, force, credentials)
            if path != STDIO:
                output.line(path)
            if labelled is not None:
                labelled.add(picture)
            if score is not None:
                output.note(f"{path}: {picture.record['score']['by']} {picture.record['score']['value']}")
            kept = {key: picture.record[key] for key in ("prompt", "seed", "score") if key in picture.record}
            made.append({"path": path, **kept})
    if labelled is not None:
        labelled.save(credentials)
        if target != STDIO:
            output.line(sheet)
    output.record({"pictures": made, "sheet": sheet})
    output.finished(time.perf_counter() - started)


def draw_each(
    sources: list[str],
    texts: list[str],
    target: str | None,
    preset: str | None,
    flags: dict[str, Any],
    settings: list[str] | None,
    trust_base: bool,
    dry_run: bool,
    force: bool,
    start: Start | None,
    credentials: Credentials | None,
    output: Output,
) -> None:
    """Every subject by itself, drawn as if it had been the only one."""
    from profusion_cli.commands.picture_targets import DEFAULT_FOLDER, check_useful, names_in
    from profusion_cli.jobs.configuration import configure, remembered_config
    from profusion_cli.jobs.parents import names_promptnet, needs_parent
    from profusion_cli.jobs.pictures import Bases, draw
    from profusion_cli.jobs.trust import check_trusted

    folders, word = names_of(sources, DEFAULT_FOLDER if target is None else target), flags.get("class_word")

    @lru_cache(maxsize=1)
    def config_of(source: str) -> tuple[Bundle, Config]:
        bundle = open_bundle(source, "subject")
        config = configure(preset, remembered_config(bundle), flags, settings, output)
        check_useful(config, flags)
        check_whole(texts, config.placeholder)
        check_trusted(config, bundle, preset, flags, settings, consent=trust_base)
        return bundle, config

    def targets_of(source: str, config: Config) -> dict[tuple[int, int], str]:
        return names_in(folders[source], texts, config)

    def done(source: str) -> bool:
        if force or not os.path.isdir(folders[source]):
            return False
        return all(map(os.path.exists, targets_of(source, config_of(source)[1]).values()))

    def do(source: str) -> dict[str, Any]:
        bundle, config = config_of(source)
        targets, made = targets_of(source, config), []
        named = names_promptnet(flags, settings) and needs_parent(bundle)
        base = bases.of(config)
        given: dict[str, Any] = {"class_word": word, "promptnet": named, "base": base, "start": start}
        for picture in draw([bundle], texts, config, **given, listener=output):
            path = targets[picture.prompt, picture.index]
            picture.save(path, True, credentials)
            output.line(path)
            made.append({"path": path, "prompt": picture.record["prompt"], "seed": picture.record["seed"]})
        return {"pictures": made}

    if dry_run:
        print_config(config_of(sources[0])[1])
        return
    device = flags.get("device", "auto")
    with sharing(device) as processes, Bases(output) as bases:
        outcome = do_each(sources, done, do, output, processes)
    if processes is None or processes.is_main:
        output.record(outcome.as_dict())
        outcome.check()


def check_best(best: int | None, config: Config, subjects: int, score: str | None) -> None:
    """There is one subject to be like, and are more pictures than are kept.

    Raises:
        UsageError: there are not.
    """
    if score is not None and subjects > 1:
        raise UsageError("--score is of one subject.", "Leave it out.")
    if best is not None and best >= config.sample.num_images:
        raise UsageError(
            f"--best {best} keeps all of {config.sample.num_images} picture(s).",
            f"Draw more with -n, such as -n {4 * best}.",
        )


def read_start(path: str | None, strength: float | None, mask: str | None, output: Output) -> Start | None:
    """What `--start-from` and its companions say.

    Raises:
        UsageError: they are given without it.
        InputError: a picture that cannot be used, or a mask that does not fit it.
    """
    if path is None:
        for option, given in (("--strength", strength), ("--inpaint-mask", mask)):
            if given is not None:
                raise UsageError(f"{option} has no effect without --start-from.", "Leave it out, or add that.")
        return None
    from profusion_cli.starting import Start

    photo = decode(read_source(path), path, output, drawn=True)
    region = None if mask is None else decode(read_source(mask), mask, output, as_mask=True)
    return Start(photo, strength or (STRENGTH if mask is None else 1.0), region)


class Sheet:
    """The labelled contact sheet of `--sheet`: a row for each prompt, below the references.

    Args:
        path: where it goes.
        others: where the pictures go.
        force: overwrite it.
        references: name and first view of each subject.

    Raises:
        UsageError: a name that is taken, or that is not a PNG's.
        OutputError: something is in the way.
    """

    def __init__(self, path: str, others: Iterable[str], force: bool, references: list[tuple[str, Any]]) -> None:
        taken = {os.path.realpath(place) for other in others for place in (other, os.path.dirname(other))}
        if path == STDIO or os.path.realpath(path) in taken:
            raise UsageError(f"--sheet '{path}' is where something else goes.", "Give the sheet a file of its own.")
        if not path.lower().endswith(".png"):
            raise UsageError(f"--sheet '{path}' is not a .png name, and the sheet is a PNG.", "Use a .png name.")
        check_target(path, force)
        self.path, self.force, self.references = path, force, references
        self.rows: dict[int, tuple[str, list[Image.Image]]] = {}
        self.pictures: list[Picture] = []

    def add(self, picture: Picture) -> None:
        """A picture, small, behind those of its row."""
        from PIL import Image

        small = picture.image.copy()
        small.thumbnail((SHEET_CELL, SHEET_CELL), Image.Resampling.LANCZOS)
        self.rows.setdefault(picture.prompt, (picture.record["prompt"], []))[1].append(small)
        self.pictures.append(replace(picture, image=small))

    def save(self, credentials: Credentials | None) -> None:
        """Write it, with the record of its first picture, and what each one is of its own; signed by what there is."""
        from profusion_cli.images import contact_sheet, encode_png

        whole = contact_sheet(list(self.rows.values()), self.references, SHEET_CELL)
        first = self.pictures[0]
        each = [{key: picture.record[key] for key in ("prompt", "text", "seed")} for picture in self.pictures]
        data = encode_png(whole, first.parameters, {**first.record, "pictures": each})
        with atomic_output(self.path, self.force) as file:
            file.write(data if credentials is None else credentials.sign(data, self.path, first.record))
