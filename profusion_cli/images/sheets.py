"""Pictures side by side: contact sheets, numbered sheets and strips."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from PIL import Image, ImageDraw

from profusion_cli.images.lettering import Font, draw_lines, font_of, line_height, wrap

SHOWN = 256
"""Strips and animations are so many pixels high at least."""
_PAPER, _INK, _QUIET, _LINE = "#faf9f7", "#22211f", "#6b6862", "#d8d5cf"


@dataclass(frozen=True)
class _Measures:
    """Sizes in pixels of a contact sheet of so many columns."""

    cell: int
    columns: int

    @property
    def gap(self) -> int:
        return max(self.cell // 16, 4)

    @property
    def margin(self) -> int:
        return 2 * self.gap

    @property
    def label_width(self) -> int:
        return max(self.cell * 7 // 8, 96)

    @property
    def width(self) -> int:
        return 2 * self.margin + self.label_width + self.columns * (self.cell + self.gap)

    def left(self, column: int) -> int:
        return self.margin + self.label_width + self.gap + column * (self.cell + self.gap)

    def font(self, part: int) -> Font:
        return font_of(max(self.cell // part, 10))

    @property
    def title_font(self) -> Font:
        return self.font(11)

    @property
    def label_font(self) -> Font:
        return self.font(15)

    @property
    def caption_font(self) -> Font:
        return self.font(19)


_Paint = Callable[[Image.Image, int], None]
"""Draws a block of a sheet, from so many pixels below its top."""
_Block = tuple[int, _Paint]


def contact_sheet(
    rows: Sequence[tuple[str, Sequence[Image.Image]]],
    references: Sequence[tuple[str, Image.Image]],
    cell: int = 256,
    title: str = "",
    heads: Sequence[str] = (),
) -> Image.Image:
    """Reference pictures first, then one row per prompt: its text on the left, its pictures beside it.

    Args:
        rows: (prompt, pictures), drawn in order.
        references: (caption, picture), as many to a row as the prompts have pictures, or 4.
        cell: side in pixels of the square that a picture is fitted into, aspect kept.
        heads: what stands above the columns of the rows.

    Returns:
        An RGB image, its size fixed by the number of rows and columns, by `title` and by `heads`.
    """
    columns = max([1, min(len(references), 4), *(len(pictures) for _, pictures in rows)])
    measures = _Measures(cell, columns)
    title_block = _title_block(measures, title)
    blocks = [title_block, *_reference_blocks(measures, references)]
    if references and rows:
        blocks.append((measures.gap, partial(_draw_rule, measures)))
    blocks.append(_heads_block(measures, heads))
    blocks += [
        (cell + measures.gap, partial(_draw_row, measures, prompt, _INK, [("", picture) for picture in pictures]))
        for prompt, pictures in rows
    ]
    filled = max(sum(height for height, _ in blocks) - measures.gap, title_block[0])
    sheet = Image.new("RGB", (measures.width, 2 * measures.margin + filled), _PAPER)
    y = measures.margin
    for height, paint in blocks:
        paint(sheet, y)
        y += height
    return sheet


def _title_block(measures: _Measures, title: str) -> _Block:
    font = measures.title_font
    lines = wrap(title, font, measures.width - 2 * measures.margin, 2)

    def paint(sheet: Image.Image, y: int) -> None:
        draw_lines(ImageDraw.Draw(sheet), lines, measures.margin, y, font, _INK)

    return len(lines) * line_height(font) + measures.gap if lines else 0, paint


def _heads_block(measures: _Measures, heads: Sequence[str]) -> _Block:
    font = measures.caption_font
    columns = [wrap(head, font, measures.cell, 3) for head in heads]

    def paint(sheet: Image.Image, y: int) -> None:
        for column, lines in enumerate(columns):
            draw_lines(ImageDraw.Draw(sheet), lines, measures.left(column), y, font, _QUIET)

    return max(map(len, columns), default=0) * line_height(font), paint


def _reference_blocks(measures: _Measures, references: Sequence[tuple[str, Image.Image]]) -> list[_Block]:
    font = measures.caption_font
    most = max((len(wrap(caption, font, measures.cell, 2)) for caption, _ in references), default=0)
    captions = most * line_height(font) + measures.gap // 2 if most else 0
    return [
        (
            measures.cell + measures.gap + captions,
            partial(
                _draw_row,
                measures,
                "" if start else "Reference",
                _QUIET,
                references[start : start + measures.columns],
            ),
        )
        for start in range(0, len(references), measures.columns)
    ]


def _draw_row(
    measures: _Measures, label: str, ink: str, pictures: Sequence[tuple[str, Image.Image]], sheet: Image.Image, y: int
) -> None:
    """A label, and (caption, picture) beside it."""
    draw, cell, font = ImageDraw.Draw(sheet), measures.cell, measures.label_font
    lines = wrap(label, font, measures.label_width - measures.gap, max(cell // line_height(font), 1))
    draw_lines(draw, lines, measures.margin, y + (cell - len(lines) * line_height(font)) // 2, font, ink)
    for column, (caption, picture) in enumerate(pictures):
        x = measures.left(column)
        scale = min(cell / picture.width, cell / picture.height)
        size = (max(round(picture.width * scale), 1), max(round(picture.height * scale), 1))
        corner = (x + (cell - size[0]) // 2, y + (cell - size[1]) // 2)
        sheet.paste(picture.convert("RGB").resize(size, Image.Resampling.LANCZOS), corner)
        lines = wrap(caption, measures.caption_font, cell, 2)
        draw_lines(draw, lines, x, y + cell + measures.gap // 3, measures.caption_font, _QUIET)


def _draw_rule(measures: _Measures, sheet: Image.Image, y: int) -> None:
    ends = (measures.margin, y, measures.width - measures.margin, y)
    ImageDraw.Draw(sheet).line(ends, _LINE, max(measures.cell // 128, 1))


def numbered_sheet(pictures: Sequence[tuple[str, Image.Image]], cell: int = 160, columns: int = 8) -> Image.Image:
    """Pictures in rows, each with its caption below it."""
    columns = min(columns, len(pictures))
    gap, font = max(cell // 16, 4), font_of(max(cell // 10, 10))
    pitch = cell + gap + line_height(font)
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (gap + columns * (cell + gap), gap + rows * pitch), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for index, (caption, picture) in enumerate(pictures):
        x, y = gap + index % columns * (cell + gap), gap + index // columns * pitch
        sheet.paste(picture.convert("RGB").resize((cell, cell), Image.Resampling.LANCZOS), (x, y))
        draw.text((x + cell // 2, y + cell), caption, font=font, fill=_INK, anchor="ma")
    return sheet


def enlarged(pictures: Sequence[Image.Image]) -> list[Image.Image]:
    """Pictures of one size, enlarged by Lanczos where they are less than `SHOWN` pixels high."""
    height = max(SHOWN, pictures[0].height)
    size = (round(pictures[0].width * height / pictures[0].height), height)
    return [picture if picture.size == size else picture.resize(size, Image.Resampling.LANCZOS) for picture in pictures]


def strip(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures side by side, each at the height of the tallest."""
    height = max(picture.height for picture in pictures)
    scaled = [
        picture.resize((round(picture.width * height / picture.height), height), Image.Resampling.LANCZOS)
        if picture.height != height
        else picture
        for picture in pictures
    ]
    whole = Image.new("RGB", (sum(picture.width for picture in scaled), height))
    left = 0
    for picture in scaled:
        whole.paste(picture, (left, 0))
        left += picture.width
    return whole
