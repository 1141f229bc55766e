"""What is wrong with a bundle, in words that are safe to show."""

from __future__ import annotations

AGAIN = "Copy or download it again, or make it again with profusion."


class Refused(ValueError):
    """What is wrong, as a phrase that continues "'x.pfz' ..."."""

    def __init__(self, phrase: str, hint: str = AGAIN) -> None:
        super().__init__(phrase)
        self.hint = hint


def show(value: object) -> str:
    """`value` from an untrusted file, short and without control characters."""
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
