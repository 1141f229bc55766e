"""Files of prompts."""

from __future__ import annotations

from profusion_cli.errors import InputError
from profusion_cli.files import read_source


def read_prompts(source: str) -> list[str]:
    """The lines of a prompts file; empty lines and lines that begin with # are left out.

    Raises:
        InputError: not readable as text, or no prompt in it.
    """
    try:
        text = bytes(read_source(source)).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"The prompts file '{source}' is not UTF-8 text.", "Save it as UTF-8.") from None
    prompts = [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if not prompts:
        raise InputError(f"The prompts file '{source}' has no prompts.", "Write one prompt per line.")
    return prompts
