"""`profusion sample`: subject bundles and prompts -> pictures."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
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
    open_bundle,
    plan_remarks,
    print_config,
    split_arguments,
)
from profusion_cli.commands.contact import ContactSheet
from profusion_cli.commands.each import do_each, names_of, sharing
from profusion_cli.commands.resources import memory_of_drawing
from profusion_cli.console import Output
from profusion_cli.errors import UsageError
from profusion_cli.files import STDIO
from profusion_cli.prompt_files import PromptLine, read_prompts
from profusion_cli.prompts import PLACEHOLDER
from profusion_cli.samplers import subject_weights

if TYPE_CHECKING:
    from profusion_cli.bundle import Bundle
    from profusion_cli.config import Config
    from profusion_cli.images.credentials import Credentials
    from profusion_cli.jobs.pictures import Picture
    from profusion_cli.starting import Start

START = "Start from a picture"
SCORES = "Scores"


@options.takes(*options.DRAWING)
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
            help="How much of it is drawn anew: the part of the steps that is taken. Default: 0.75, with a mask 1.",
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
        str | None,
        typer.Option(
            "--prompts",
            metavar="FILE",
            help='Read further prompts from a file, one per line; as {"prompt": "S* at sea", "seed": 3, "width": 512} '
            "with settings of its own.",
        ),
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
    from profusion_cli.commands.picture_targets import (
        check_best,
        check_references,
        check_useful,
        plan_targets,
        read_start,
        references,
    )
    from profusion_cli.evaluation.scoring import Scorer, best_of, judge_named, scored
    from profusion_cli.jobs.configuration import configure, remembered_config
    from profusion_cli.jobs.parents import names_promptnet
    from profusion_cli.jobs.pictures import Bases, draw
    from profusion_cli.jobs.trust import check_trusted

    started, output = time.perf_counter(), Output(quiet, as_json)
    credentials = credentials_of(sign, key, flags)
    start = read_start(start_from, strength, inpaint_mask, output)
    if prompts_file is None:
        check_unexpanded(arguments, flags.get("placeholder", PLACEHOLDER))
    sources, texts = split_arguments(arguments)
    pictures_in = [start_from or "", inpaint_mask or ""]
    check_one_stdin([*sources, *pictures_in, prompts_file or "", flags.get("promptnet.weights", "")])
    listed = [] if prompts_file is None else read_prompts(prompts_file)
    entries = [one for entry in [*map(PromptLine, texts), *listed] for one in entry.each()]
    if not entries:
        raise UsageError("There is no prompt.", 'Add one, such as "S* in anime style", or --prompts FILE.')
    if best is not None and (score is None or each):
        reason = "cannot be had with --each" if each else "has no effect without --score"
        raise UsageError(f"--best {reason}.", "Leave it out." if each else "Add --score JUDGE, or leave it out.")
    if each:
        if score is not None:
            raise UsageError("--score and --each exclude one another.", "Draw the subjects one by one.")
        if sheet is not None:
            raise UsageError("--sheet shows subjects together, and --each draws them apart.", "Leave one of them out.")
        given = (preset, flags, settings, trust_base, dry_run, force, start, credentials, output)
        draw_each(sources, entries, target, *given)
        output.finished(time.perf_counter() - started)
        return
    bundles = [open_bundle(source, "subject") for source in sources]
    config = configure(preset, remembered_config(bundles[0]), flags, settings, output)
    check_useful(config, flags)
    check_references(bundles, flags, output)
    named, word = names_promptnet(flags, settings), flags.get("class_word")
    check_whole(texts, config.placeholder)
    groups = grouped([(entry.text, entry.config(config)) for entry in entries])
    judge = None if score is None else judge_named(score, config)
    check_best(best, [group.config for group in groups], len(bundles), score)

    given: dict[str, Any] = {"class_word": word, "promptnet": named, "start": start}
    for group in groups:  # all of them are looked at before the first is drawn
        draw(bundles, group.texts, group.config, **given).close()
    targets = plan_targets(target, [(text, one.config) for one in groups for text in one.texts], force, as_json, best)
    check_apart(pictures_in, list(set(targets.values())))
    labelled = ContactSheet(sheet, targets.values(), force, references(bundles)) if sheet is not None else None
    check_apart(pictures_in, [] if sheet is None else [sheet])
    if dry_run:
        scales, _ = subject_weights(config.sample, len(bundles))
        remarks = [line for one in groups for line in plan_remarks(one.config, bundles, one.texts, scales, start)]
        print_config(config, [*remarks, memory_of_drawing(config, len(bundles))])
        return
    check_trusted(config, bundles[0], preset, flags, settings, consent=trust_base)
    scorer = None if judge is None else Scorer(judge, bundles[0], config)

    def drawn(bases: Bases) -> Iterator[Picture]:
        for group in groups:
            base = bases.of(group.config) if len(groups) > 1 else None
            with closing(draw(bundles, group.texts, group.config, **given, base=base, listener=output)) as pictures:
                judged: Iterable[Picture] = pictures
                if scorer is not None:
                    judged = scored(pictures, scorer)
                    judged = judged if best is None else best_of(judged, best, group.config.sample.num_images)
                for picture in judged:
                    yield replace(picture, prompt=group.first + picture.prompt)

    made = []
    with Bases(output) as bases, closing(drawn(bases)) as pictures:
        for picture in pictures:
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


@dataclass(frozen=True)
class Group:
    """Prompts that follow one another and are drawn by the same settings.

    Args:
        config: those.
        texts: of the prompts.
        first: number of the first of them.
    """

    config: Config
    texts: list[str]
    first: int


def grouped(drawn: list[tuple[str, Config]]) -> list[Group]:
    """Prompts with what each is drawn by, in as few groups as there can be."""
    groups: list[Group] = []
    for number, (text, config) in enumerate(drawn):
        if groups and groups[-1].config == config:
            groups[-1].texts.append(text)
        else:
            groups.append(Group(config, [text], number))
    return groups


def draw_each(
    sources: list[str],
    entries: list[PromptLine],
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

    if odd := next((entry for entry in entries if entry.settings), None):
        raise UsageError(f"{odd.place} has settings of its own, which --each does not take.", "Leave one of them out.")
    texts = [entry.text for entry in entries]
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
        return names_in(folders[source], [(text, config) for text in texts])

    def done(source: str) -> bool:
        if force or not os.path.isdir(folders[source]):
            return False
        return all(map(os.path.exists, targets_of(source, config_of(source)[1]).values()))

    def do(source: str) -> dict[str, Any]:
        bundle, config = config_of(source)
        targets, made = targets_of(source, config), []
        if start is not None:
            check_apart([start.photo.name, *([start.mask.name] if start.mask else [])], list(targets.values()))
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
