"""Reading what the page and the command wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from profusion_cli.errors import InputError
from profusion_cli.files import read_source

DAMAGED = "Get a whole copy of the file, as the page or the command wrote it."


def read_object(path: str | Path, kind: str, what: str) -> dict[str, Any]:
    """A JSON object of this kind; `what` says it in words.

    Raises:
        InputError: missing, damaged, or something else.
    """
    try:
        content = json.loads(bytes(read_source(str(path))).decode("utf-8-sig"))
    except (ValueError, RecursionError):
        raise InputError(f"'{path}' is damaged: it is not JSON text.", DAMAGED) from None
    if not isinstance(content, dict) or content.get("kind") != kind:
        raise InputError(f"'{path}' is not {what}.", f"Give {what}.")
    return content
