"""The pictures of a run that people compare."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from profusion_cli.errors import ConfigError, InputError
from profusion_cli.evaluation.folder import STUDY_FILE
from profusion_cli.evaluation.pairs.page import Entry
from profusion_cli.evaluation.runner import Run
from profusion_cli.evaluation.study.reading import read_study
from profusion_cli.evaluation.study.schema import Study, is_reconstruction
from profusion_cli.evaluation.study.subjects import photo_file
from profusion_cli.methods import class_noun
from profusion_cli.prompts import parse_prompt


def comparison_of(folder: Path) -> tuple[Study, list[Entry], int, int]:
    """The study of a run, its finished pictures for people to compare, the seed, and how many cells are unfinished.

    Raises:
        InputError: no run.
        ConfigError: a study that names no methods to compare.
    """
    path = folder / STUDY_FILE
    if not path.is_file():
        raise InputError(f"'{folder}' holds no run.", "Make one with `profusion evaluate STUDY -o DIR`.")
    study = read_study(str(path))
    if study.pairs is None:
        raise ConfigError(
            f"The study in '{folder}' names no methods to compare.", "Add `pairs: {ours: ..., others: [...]}` to it."
        )
    run = Run(folder, replace(study, metrics={}, outputs={}), elsewhere=True)
    chosen = [method for method in study.methods if method.name in (study.pairs.ours, *study.pairs.others)]
    entries, unfinished = [], 0
    for cell in run.cells(chosen):
        unfinished += cell.made is None
        photo = photo_file(cell.subject, cell.subject.context, folder / "photos")
        for picture in cell.made["pictures"] if cell.made is not None else ():
            if is_reconstruction(picture["index"]):
                continue
            file = cell.folder / picture["file"]
            prompt = parse_prompt(picture["prompt"]).twin([f"this {class_noun(cell.config.class_word)}"])
            entries.append(Entry(cell.method.name, cell.subject.name, prompt, picture["index"], file, photo))
    return study, entries, study.config(chosen[0]).seed, unfinished
