"""Text as it comes from command lines, which may hold bytes that are no text."""

from __future__ import annotations

NO_TEXT_HINT = "Check the encoding of the terminal, or of the script that it comes from."


def is_text(value: str) -> bool:
    """Whether it holds characters alone: what Python makes of bytes that are no UTF-8 is none."""
    return not any("\ud800" <= character <= "\udfff" for character in value)


def encodable(text: str) -> str:
    """`text` with lone surrogates (undecodable command line bytes) as question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")
