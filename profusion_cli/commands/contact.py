"""The labelled contact sheet of `sample --sheet`."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from profusion_cli.errors import UsageError
from profusion_cli.files import STDIO, atomic_output, check_target

if TYPE_CHECKING:
    from PIL import Image

    from profusion_cli.images.credentials import Credentials
    from profusion_cli.jobs.pictures import Picture

SHEET_CELL = 256


class ContactSheet:
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
        from profusion_cli.images.credentials import signed

        whole = contact_sheet(list(self.rows.values()), self.references, SHEET_CELL)
        first = self.pictures[0]
        each = [{key: picture.record[key] for key in ("prompt", "text", "seed")} for picture in self.pictures]
        mixed = any(picture.record["sample"] != first.record["sample"] for picture in self.pictures)
        record = {**first.record, **({"mixed": True} if mixed else {}), "pictures": each}
        data = encode_png(whole, first.parameters, record)
        with atomic_output(self.path, self.force) as file:
            file.write(signed(data, self.path, first.record, credentials))
