"""Lines of text in pictures, in Pillow's own font."""

from __future__ import annotations

import unicodedata

from PIL import ImageDraw, ImageFont

from profusion_cli.texts import encodable

Font = ImageFont.FreeTypeFont


def font_of(size: int) -> Font:
    """The font at a size in pixels."""
    font = ImageFont.load_default(size=size)
    assert isinstance(font, Font)
    return font


def line_height(font: Font) -> int:
    """From one line to the next, in pixels."""
    return round(sum(font.getmetrics()) * 1.15)


def draw_lines(draw: ImageDraw.ImageDraw, lines: list[str], x: int, y: int, font: Font, ink: str) -> None:
    """Lines one below the other, from the upper left corner at (x, y)."""
    for line in lines:
        draw.text((x, y), line, font=font, fill=ink)
        y += line_height(font)


def wrap(text: str, font: Font, width: int, most: int) -> list[str]:
    """`text` in at most `most` lines of `width` pixels; what does not fit becomes an ellipsis."""
    lines, line = [], ""
    for word in _drawable(text[:2000]).split():
        if line and font.getlength(f"{line} {word}") <= width:
            line = f"{line} {word}"
            continue
        lines += [line] if line else []
        while font.getlength(word) > width and len(word) > 1 and len(lines) <= most:
            fits = next((n for n in range(2, len(word)) if font.getlength(word[:n]) > width), len(word)) - 1
            lines.append(word[:fits])
            word = word[fits:]
        line = word
    lines += [line] if line else []
    if len(lines) > most:
        last = lines[most - 1]
        while last and font.getlength(f"{last}…") > width:
            last = last[:-1]
        lines[most - 1 :] = [f"{last.rstrip()}…"]
    return lines


def _drawable(text: str) -> str:
    """`text` without accents and long dashes, which Pillow's built-in font draws as boxes."""
    parts = unicodedata.normalize("NFKD", text.translate({0x2013: "-", 0x2014: "-", 0xD7: "x"}))
    return "".join(part for part in encodable(parts) if not unicodedata.combining(part))
