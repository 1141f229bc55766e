"""What `finetune` draws: previews while it tunes, in one growing sheet, and pictures right after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from profusion_cli.commands.common import BUNDLE_SUFFIX, display_name
from profusion_cli.console import Output
from profusion_cli.errors import ConfigError, UsageError
from profusion_cli.files import STDIO, atomic_output
from profusion_cli.methods import is_word_method
from profusion_cli.prompts import alternatives, parse_prompt

if TYPE_CHECKING:
    from PIL import Image

    from profusion_cli.bundle import Bundle
    from profusion_cli.config import Config
    from profusion_cli.images import Photo
    from profusion_cli.jobs.models import SubjectModels
    from profusion_cli.previews import Previews

PREVIEW_SUFFIX = ".preview.png"


@dataclass(frozen=True)
class Drawing:
    """What is drawn beside a bundle.

    Args:
        prompts: of `--draw`; there may be none.
        folder: of the pictures.
        every: `--preview-every`; None: there are no previews.
    """

    prompts: tuple[str, ...]
    folder: str
    every: int | None

    def preview(self, target: str) -> str | None:
        """Where the sheet of previews of a bundle goes; None: there is none."""
        if self.every is None:
            return None
        path = Path(target)
        return str(path.with_name((path.stem if path.suffix == BUNDLE_SUFFIX else path.name) + PREVIEW_SUFFIX))


def check_draw(
    prompts: Sequence[str], pictures: str | None, every: int | None, config: Config, target: str, references: int
) -> Drawing:
    """What is drawn, and where to.

    Args:
        prompts: of `--draw`.
        pictures: `--pictures`.
        every: `--preview-every`.
        config: the resolved configuration.
        target: `-o`.
        references: how many reference views the subject will have.

    Raises:
        UsageError: a folder or previews without prompts; previews where nothing is trained; or standard output for the
            bundle and the names of pictures.
        InputError: a prompt that cannot be used.
        ConfigError: the pictures are to show PromptNet a view that there will not be.
    """
    if prompts and target == STDIO:
        raise UsageError(
            "--draw tells the names of its pictures where '-o -' writes the bundle.", "Name a file with -o."
        )
    for option, given in (("--pictures", pictures), ("--preview-every", every)):
        if given is not None and not prompts:
            raise UsageError(f"{option} has no effect without --draw.", "Leave it out, or add --draw PROMPT.")
    if every is not None and config.finetune.steps == 0:
        raise UsageError("--preview-every has no effect with --steps 0, which trains on nothing.", "Leave it out.")
    for text in prompts:
        parse_prompt(text, config.placeholder)
    if prompts and config.sample.reference > references and not is_word_method(config.finetune.method):
        raise ConfigError(
            f"sample.reference={config.sample.reference}, and the subject will have {references} reference view(s).",
            "Set sample.reference to one that it will have.",
        )
    from profusion_cli.commands.picture_targets import DEFAULT_FOLDER

    prompts = [one for text in prompts for one in alternatives(text)]
    return Drawing(tuple(prompts), DEFAULT_FOLDER if pictures is None else pictures, every)


def previews_of(
    drawing: Drawing, inputs: Sequence[Photo | Bundle], path: str | None, config: Config, force: bool, output: Output
) -> Previews | None:
    """What is drawn while a subject is tuned, into a sheet.

    Args:
        drawing: see there.
        inputs: that the subject is tuned on.
        path: of the sheet; None: there is none.
        config: the resolved configuration.
        force: overwrite the sheet of before.
        output: for what is told meanwhile.
    """
    if path is None:
        return None
    from profusion_cli.previews import Previews

    sheet = PreviewSheet(path, drawing, inputs, config, force, output)
    return Previews(drawing.prompts, drawing.every, sheet.add)


class PreviewSheet:
    """A row for each prompt, below the photos, and a column for each time that previews are drawn; it is written anew
    each time.

    Args:
        path: where it goes.
        drawing, inputs, config, force, output: as of `previews_of`.
    """

    def __init__(
        self,
        path: str,
        drawing: Drawing,
        inputs: Sequence[Photo | Bundle],
        config: Config,
        force: bool,
        output: Output,
    ) -> None:
        from profusion_cli.jobs.subject import references_of

        self._path, self._drawing, self._config, self._force, self._output = path, drawing, config, force, output
        self._references, self._origins = references_of(inputs, config)
        self._rows: list[tuple[str, list[Image.Image]]] = [(text, []) for text in drawing.prompts]
        self._times: list[int] = []

    def add(self, done: int, pictures: Sequence[Image.Image]) -> None:
        """Pictures of all prompts, after so many steps.

        Raises:
            OutputError: the sheet exists (without `force`) or cannot be written.
        """
        from profusion_cli.images import contact_sheet, encode_png
        from profusion_cli.images.sheets import SHOWN
        from profusion_cli.jobs.lineage import picture_parameters, preview_record

        for (_, row), picture in zip(self._rows, pictures, strict=True):
            small = picture.copy()
            small.thumbnail((SHOWN, SHOWN))
            row.append(small)
        if not self._times:
            every = self._drawing.every
            self._output.note(
                f"'{self._path}' shows the subject now, and every {every} steps again, from the same noise."
            )
        self._times.append(done)
        heads = [f"step {number}" for number in self._times]
        whole = contact_sheet(self._rows, self._references, SHOWN, heads=heads)
        record = preview_record(self._drawing.prompts, self._origins, self._times, self._config)
        with atomic_output(self._path, self._force) as file:
            file.write(encode_png(whole, picture_parameters(record, self._config, pictures[0]), record))
        self._force = True


def drawn_record(pictures: Sequence[str], preview: str | None) -> dict[str, Any]:
    """What `--json` says of all that was drawn, if anything was."""
    told = {"pictures": list(pictures), "preview": preview}
    return {name: value for name, value in told.items() if value}


def draw_subject(
    made: Bundle,
    target: str,
    prompts: Sequence[str],
    targets: Mapping[tuple[int, int], str],
    config: Config,
    force: bool,
    models: SubjectModels,
    output: Output,
) -> list[str]:
    """Pictures of a subject, with the models that it was tuned with; their paths."""
    from profusion_cli.jobs.parents import needs_parent
    from profusion_cli.jobs.pictures import draw

    subject, paths = replace(made, name=display_name(target)), []
    given: dict[str, Any] = {"base": models.tuner.base, "promptnet": needs_parent(made)}
    for picture in draw([subject], prompts, config, **given, listener=output):
        paths.append(targets[picture.prompt, picture.index])
        picture.save(paths[-1], force)
        output.line(paths[-1])
    return paths
