"""What the commands share: inputs from files and pipes, and the configuration they end up with."""

from __future__ import annotations

import fnmatch
import os
import shlex
import subprocess
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from profusion_cli.config import Config
from profusion_cli.console import Output, print_result, print_yaml
from profusion_cli.errors import BundleError, InputError, UsageError
from profusion_cli.files import STDIO, check_target, read_source
from profusion_cli.plans import asked_of, cost_of, lines_of, plan_of, without_subject
from profusion_cli.prompts import parse_prompt, placeholder_pattern

if TYPE_CHECKING:
    from profusion_cli.bundle import Bundle
    from profusion_cli.images import Photo
    from profusion_cli.images.credentials import Credentials
    from profusion_cli.jobs.views import Region
    from profusion_cli.starting import Start


BUNDLE_SUFFIX = ".pfz"
FILE_SUFFIXES = (
    *(".png", ".apng", ".jpg", ".jpeg", ".webp", ".gif", ".tif", ".tiff", ".bmp", ".avif", ".jp2", ".svg", ".pdf"),
    *(".mp4", ".avi", ".mov", ".webm", ".mkv", ".zip", BUNDLE_SUFFIX),
    *(".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".onnx", ".yaml", ".yml", ".json", ".txt", ".html"),
)
"""What a name ends in that is meant for a file of a certain kind, not for a folder."""


def display_name(source: str) -> str:
    """How messages call an input."""
    return "standard input" if source == STDIO else source


def check_one_stdin(sources: Sequence[str]) -> None:
    """Standard input can be read only once.

    Raises:
        UsageError: `-` is given twice.
    """
    if list(sources).count(STDIO) > 1:
        raise UsageError(
            "'-' is given twice, and standard input can be read only once.", "Name the other input's file."
        )


def check_apart(sources: Sequence[str], targets: Sequence[str]) -> None:
    """No output takes the place of an input, or of another output, not even with `--force`.

    Raises:
        UsageError: one would.
    """
    inputs = {os.path.realpath(source) for source in sources if source not in ("", STDIO)}
    files = [os.path.realpath(target) for target in targets if target != STDIO]
    folders = {os.path.dirname(path) for path in files}
    for path in files:
        if path in inputs:
            raise UsageError(f"'{path}' is an input, and an output would take its place.", "Choose another name.")
        if path in folders or files.count(path) > 1:
            raise UsageError(f"'{path}' is where another output goes.", "Choose another name.")


def check_suffix(target: str, written: Collection[str], otherwise: str = "") -> None:
    """A name is that of a file of a kind that is written here, or says nothing of the kind.

    Args:
        target: the name.
        written: endings of what is written here.
        otherwise: what else it may name, for messages; a sentence where no file is written.

    Raises:
        UsageError: it is empty, or that of another file.
    """
    if not target:
        raise UsageError("The name of the output is empty.", "Name a file with -o.")
    suffix = Path(target).suffix.lower()
    if suffix in FILE_SUFFIXES and suffix not in written and not os.path.isdir(target):
        kinds = " or ".join(", ".join(written).rsplit(", ", 1))
        raise UsageError(
            f"'{target}' would be a {suffix} file, which is not written here.",
            f"Use a {kinds} name{', ' if otherwise else ''}{otherwise}." if written else otherwise,
        )


def check_bundle_target(target: str, force: bool, as_json: bool) -> None:
    """A bundle can be written there; see `check_target`.

    Raises:
        UsageError: no name, that of another kind of file, or `-o -` with `--json`.
        OutputError: it exists, cannot be written, or is a terminal.
    """
    check_suffix(target, (BUNDLE_SUFFIX,))
    check_target(target, force, as_json)


def decode(data: bytes, source: str, output: Output, as_mask: bool = False, drawn: bool = False) -> Photo:
    """A picture from the command line, with what there is to say about it.

    Args:
        data: of the file.
        source: its name.
        output: who hears of it.
        as_mask: it is a mask.
        drawn: it may be one that profusion drew, and nothing is said of that.

    Raises:
        InputError: as `decode_photo`.
    """
    from profusion_cli.images import decode_photo

    picture = decode_photo(data, display_name(source), as_mask)
    for note in picture.notes:
        output.warn(note)
    if not (as_mask or drawn) and (subjects := drawn_from(data, picture.name)):
        output.warn(f"'{picture.name}' was drawn by profusion from {subjects}: a photo says more of the subject.")
    return picture


def credentials_of(certificate: str | None, key: str | None, flags: Mapping[str, Any]) -> Credentials | None:
    """What `--sign` and `--key` name; None: nothing is signed.

    Raises:
        UsageError: one of them is missing, or `--no-mark` is among the flags.
        UnavailableError, InputError: as `Credentials`.
    """
    if certificate is not None and "mark" in flags:
        raise UsageError("--sign says what --no-mark leaves out.", "Leave one of them out.")
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise UsageError("--sign and --key go together.", "Give both, or neither.")
    from profusion_cli.images.credentials import Credentials

    return Credentials(certificate, key)


def check_region(mask: str | None, box: str | None) -> None:
    """One way to say where the subject is.

    Raises:
        UsageError: two, or a box that is none.
    """
    if mask is not None and box is not None:
        raise UsageError("--mask and --box are given together.", "Leave one of them out.")
    if box is not None:
        from profusion_cli.masks import parse_box

        parse_box(box)


def read_region(mask: str | None, box: str | None, output: Output) -> Region | None:
    """Where `--mask` or `--box` says that the subject is; None: neither is given.

    Raises:
        UsageError: as `check_region`.
        InputError: a mask that is no picture.
    """
    from profusion_cli.jobs.views import Region
    from profusion_cli.masks import parse_box

    check_region(mask, box)
    if mask is None and box is None:
        return None
    picture = None if mask is None else decode(read_source(mask), mask, output, as_mask=True)
    return Region(picture, None if box is None else parse_box(box))


def open_bundle(source: str, kind: str) -> Bundle:
    """A verified bundle of the wanted kind, from a file or `-`.

    Raises:
        InputError: it cannot be read.
        BundleError: it is damaged, of another kind, or a file of another kind, which is told.
    """
    from profusion_cli.bundle import looks_like_bundle, read_bundle

    data, name = read_source(source), display_name(source)
    if not looks_like_bundle(data) and (other := _what_instead(data, name)):
        from profusion_cli.bundle.kinds import KINDS

        what, hint = other
        raise BundleError(f"'{name}' is {what}, and {KINDS[kind].holds} {KINDS[kind].verb} needed here.", hint)
    return read_bundle(data, name).require(kind)


def _what_instead(data: bytes, name: str) -> tuple[str, str] | None:
    """What a file is that is no bundle, and what to do about it; None: nothing that is known here."""
    from profusion_cli.images.opening import is_safetensors, open_image

    if is_safetensors(data):
        hint = "Weights of other tools are not read here: make a bundle from a photo with `profusion finetune`."
        return "a safetensors file, such as a LoRA", hint
    try:
        with open_image(data, name):
            pass
    except InputError:
        return None
    if subjects := drawn_from(data, name):
        return "a picture that profusion drew", f"Give the bundle that it was drawn from: {subjects}."
    return "a picture", "This is a photo: run `profusion finetune` on it first."


def drawn_from(data: bytes, name: str) -> str:
    """The names of the bundles that a picture says it was drawn from; empty where profusion did not draw it."""
    from profusion_cli.images import read_record

    try:
        _, record = read_record(data, name)
    except InputError:
        return ""
    subjects = record.get("subjects")
    if not isinstance(subjects, list):
        return ""
    return ", ".join(str(item["name"]) for item in subjects if isinstance(item, dict) and "name" in item)


def quoted(argument: str) -> str:
    """An argument as one types it into the shell."""
    if os.name != "nt":
        return shlex.quote(argument)
    text = subprocess.list2cmdline([argument])
    return f'"{text}"' if any(mark in text for mark in "&|<>^%!()") and not text.startswith('"') else text


def print_config(config: Config, remarks: Iterable[str] = ()) -> None:
    """The resolved configuration as YAML on standard output (`--dry-run`), and remarks as its comments."""
    print_yaml(config.as_dict())
    for remark in remarks:
        print_result(f"# {remark}")


def views_of(bundle: Bundle) -> int:
    """How many reference views a subject has, at least 1."""
    from profusion_cli.bundle.kinds import VIEWS_FILE

    found = bundle.shapes(VIEWS_FILE).get("latents_mean") if VIEWS_FILE in bundle.files else None
    return found[1][0] if found and found[1] else 1


def plan_remarks(
    config: Config,
    bundles: Sequence[Bundle],
    prompts: Sequence[str],
    scales: Sequence[float],
    start: Start | None = None,
) -> Iterator[str]:
    """What pictures of prompts are drawn by, and what they cost; see `print_config`.

    Args:
        config: the resolved configuration.
        bundles: of the subjects.
        prompts: of the pictures.
        scales: guidance scale of each subject in a picture.
        start: what they are drawn over.
    """
    from profusion_cli.bundle.kinds import WORD_FILE

    learned = all(WORD_FILE not in bundle.files for bundle in bundles)
    seen = max(map(views_of, bundles)) if config.sample.references == "mean" else 1
    strength = 1.0 if start is None else start.strength
    costs = {}
    for prompt in prompts:
        parsed = parse_prompt(prompt, config.placeholder, len(bundles), bare=start is not None)
        own = without_subject(config) if parsed.bare else config
        asked = asked_of(own.sample, own.sample.subject_guidance if parsed.bare else scales, parsed.joint)
        costs[prompt] = cost_of(plan_of(own, strength), asked, learned and not parsed.bare, seen)
    return lines_of(plan_of(config, strength), costs)


def split_arguments(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Bundles first, then prompts: `-` and names that end in .pfz, or name a file, are bundles.

    Raises:
        UsageError: no bundle, or one behind a prompt.
    """

    def is_bundle(argument: str) -> bool:
        return argument == STDIO or argument.endswith(BUNDLE_SUFFIX) or os.path.isfile(argument)

    bundles = list(takewhile(is_bundle, arguments))
    if not bundles and os.path.isdir(arguments[0]):
        raise UsageError(
            f"'{arguments[0]}' is a folder, and the subjects (.pfz files, or -) come first, then the prompts.",
            "Name a bundle in it, as `profusion finetune` makes them.",
        )
    if not bundles:
        raise UsageError(
            f"'{arguments[0]}' is not a bundle: the subjects (.pfz files, or -) come first, then the prompts.",
            'For example: profusion sample me.pfz "S* in anime style"',
        )
    prompts = arguments[len(bundles) :]
    if late := next(filter(is_bundle, prompts), None):
        raise UsageError(
            f"'{late}' stands behind the prompt '{prompts[0]}'.", "Give the subjects first, then the prompts."
        )
    return bundles, prompts


def check_unexpanded(arguments: Sequence[str], placeholder: str) -> None:
    """The shell has not put names of files in the placeholder's place.

    Args:
        arguments: subjects and prompts.
        placeholder: as far as it is known before the bundles are read.

    Raises:
        UsageError: a file that it would expand to, where no argument has a placeholder.
    """
    if any(map(placeholder_pattern(placeholder).search, arguments)):
        return
    for argument in arguments[1:]:
        if fnmatch.fnmatchcase(argument, placeholder) and os.sep not in argument and os.path.exists(argument):
            raise UsageError(
                f"'{argument}' is a file here, and no prompt has the placeholder {placeholder}.", _quote(placeholder)
            )


def check_whole(prompts: Sequence[str], placeholder: str) -> None:
    """The prompts of the command line are more than the words of one that the shell has cut.

    Raises:
        InputError: one of several is a single word without the placeholder.
    """
    for prompt in prompts:
        if len(prompts) > 1 and len(prompt.split()) == 1 and not placeholder_pattern(placeholder).search(prompt):
            raise InputError(f"The prompt '{prompt}' has no placeholder {placeholder}.", _quote(placeholder))


def _quote(placeholder: str) -> str:
    expands = any(mark in placeholder for mark in "*?[")
    return (f"Did the shell expand {placeholder}? " if expands else "") + "Put the prompt in quotes."
