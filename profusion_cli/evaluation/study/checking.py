"""What the parts of a study say of each other."""

from __future__ import annotations

import re
from collections.abc import Sequence

from profusion_cli.errors import ConfigError, InputError
from profusion_cli.evaluation.metrics import COST, RECONSTRUCTION, SECOND
from profusion_cli.evaluation.study.schema import DRAWN, PER_PROMPT, PER_SUBJECT, Figure, Method, Study, near
from profusion_cli.faceworld.world import ATTRIBUTES, TRAITS
from profusion_cli.prompts import parse_prompt

OF_KIND = {"against": "table", "x": "curve", "y": "curve", "subject": "sheet"}
"""Keys of an output that are for one kind alone."""


def check_study(study: Study) -> None:
    """Whether a study makes sense as a whole.

    Raises:
        ConfigError: it does not, with the key.
    """
    if study.subjects.photos and study.subjects.faceworld:
        raise ConfigError("subjects holds both photos and faceworld.", "Give one of the two.")
    _check_prompts(study)
    if not study.methods:
        raise ConfigError("methods is empty.", "Give one at least.")
    for method in study.methods:
        _check_method(study, method)
    _check_pairs(study)
    for key, output in study.outputs.items():
        _check_output(study, key, output)


def names_cost(study: Study) -> bool:
    """Whether a table or plot tells what pictures cost."""
    return any(COST in (*output.columns, output.x, output.y) for output in study.outputs.values())


def check_columns(study: Study, columns: Sequence[str], distances: Sequence[str]) -> None:
    """Whether tables and plots name columns that metrics have.

    Args:
        study: see above.
        columns: of scores of single pictures.
        distances: columns that judge the pictures of a method together.

    Raises:
        ConfigError: one that is not among them.
    """
    for key, output in study.outputs.items():
        for wanted in filter(None, (*output.columns, output.x, output.y)):
            column = wanted.removeprefix(RECONSTRUCTION).removeprefix(SECOND)
            if column in distances and column != wanted:
                raise ConfigError(
                    f"outputs.{key}: there is no '{wanted}': a distance is of all pictures of the prompts.",
                    f"Name '{column}'.",
                )
            if column not in (*columns, *distances) and wanted != COST:
                raise ConfigError(
                    f"outputs.{key}: no metric has a column '{wanted}'.", near(wanted, [*columns, *distances])
                )


def _check_prompts(study: Study) -> None:
    texts = [prompt.text for prompt in study.prompts]
    for prompt in study.prompts:
        try:
            parse_prompt(prompt.text)
        except InputError as error:
            raise ConfigError(error.message, error.hint) from None
        if texts.count(prompt.text) > 1:
            raise ConfigError(f"The prompt '{prompt.text}' stands there twice.", "For more of a prompt, set pictures.")
        for key, value in prompt.asks.items():
            known = {**ATTRIBUTES, **TRAITS}
            if value not in known.get(key, ()):
                raise ConfigError(
                    f"prompts: '{prompt.text}' asks for {key}: {value}, which the face world does not know.",
                    near(value, known[key]) if key in known else near(key, list(known)),
                )
    if len(texts) >= PER_SUBJECT // PER_PROMPT:
        raise ConfigError(f"{len(texts)} prompts are too many.", f"Give fewer than {PER_SUBJECT // PER_PROMPT}.")


def _check_method(study: Study, method: Method) -> None:
    if [other.name for other in study.methods].count(method.name) > 1:
        raise ConfigError(f"Two methods are called '{method.name}'.", "Give each a name, and a value once.")
    try:
        study.config(method)
    except ConfigError as error:
        raise ConfigError(f"methods.{method.name}: {error.message}", error.hint) from None
    if study.counts_of(method).prompts > len(study.prompts):
        raise ConfigError(
            f"methods.{method.name}: more prompts per subject than the {len(study.prompts)} that there are.",
            "Give fewer, or add prompts.",
        )
    if method.kind == DRAWN and study.subjects.faceworld is None:
        raise ConfigError(f"methods.{method.name}: only the face world is drawn.", "Leave the method out.")
    if method.photo and study.subjects.faceworld is None:
        raise ConfigError(f"methods.{method.name}: a photo on the disk is what it is.", "Leave `photo` out.")


def _check_pairs(study: Study) -> None:
    if study.pairs is None:
        return
    names = [method.name for method in study.methods]
    ours, others = study.pairs.ours, study.pairs.others
    for wanted in (ours, *others):
        if wanted not in names:
            raise ConfigError(f"pairs: there is no method '{wanted}'.", near(wanted, names))
    if ours in others or not others or study.pairs.count < 1:
        raise ConfigError("pairs compares one method with others, in 1 pair or more.", "Mend ours, others or count.")


def _check_output(study: Study, key: str, output: Figure) -> None:
    names = [method.name for method in study.methods]
    families = [method.family for method in study.methods]
    if not re.fullmatch(r"[\w-]+", key):
        raise ConfigError(f"outputs: '{key}' is no name of a file.", "Use letters, digits, - and _.")
    if output.subject < 0:
        raise ConfigError(f"outputs.{key}: there is no subject {output.subject}.", "Count from 0.")
    if output.against and output.against not in names:
        raise ConfigError(f"outputs.{key}: there is no method '{output.against}'.", near(output.against, names))
    for wanted in output.methods:
        if wanted not in names and wanted not in families:
            raise ConfigError(f"outputs.{key}: there is no method '{wanted}'.", near(wanted, names))
    if output.kind == "curve" and not (output.x and output.y):
        raise ConfigError(f"outputs.{key}: a curve needs x and y.", "Name two columns.")
    for name, kind in OF_KIND.items():
        if getattr(output, name) and output.kind != kind:
            raise ConfigError(f"outputs.{key}: {name} is for a {kind}, not a {output.kind}.", "Leave it out.")
    if output.columns and output.kind == "sheet":
        raise ConfigError(f"outputs.{key}: a sheet has no columns of scores.", "Leave `columns` out.")
