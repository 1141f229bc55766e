"""What the commands share: inputs from files and pipes, and the configuration they end up with."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import takewhile
from typing import TYPE_CHECKING

from profusion_cli.config import Config
from profusion_cli.console import Output, print_result
from profusion_cli.errors import UsageError
from profusion_cli.files import STDIO, read_source

if TYPE_CHECKING:
    from profusion_cli.bundle import Bundle
    from profusion_cli.images import Photo
    from profusion_cli.jobs.views import Region


BUNDLE_SUFFIX = ".pfz"


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


def decode(data: bytes, source: str, output: Output, as_mask: bool = False) -> Photo:
    """A picture from the command line, with what there is to say about it.

    Raises:
        InputError: as `decode_photo`.
    """
    from profusion_cli.images import decode_photo

    picture = decode_photo(data, display_name(source), as_mask)
    for note in picture.notes:
        output.warn(note)
    return picture


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
        BundleError: it is damaged or of another kind.
    """
    from profusion_cli.bundle import read_bundle

    return read_bundle(read_source(source), display_name(source)).require(kind)


def print_config(config: Config) -> None:
    """The resolved configuration as YAML on standard output (`--dry-run`)."""
    import yaml

    print_result(yaml.safe_dump(config.as_dict(), sort_keys=False, allow_unicode=True).rstrip())


def split_arguments(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Bundles first, then prompts: `-` and names that end in .pfz, or name a file, are bundles.

    Raises:
        UsageError: no bundle, or one behind a prompt.
    """

    def is_bundle(argument: str) -> bool:
        return argument == STDIO or argument.endswith(BUNDLE_SUFFIX) or os.path.isfile(argument)

    bundles = list(takewhile(is_bundle, arguments))
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
