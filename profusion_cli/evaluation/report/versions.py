"""Versions of everything that the numbers of a study may depend on."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from profusion_cli import __version__

LIBRARIES = ("torch", "diffusers", "transformers", "open_clip_torch", "deepface")


def versions() -> dict[str, str]:
    """Of everything that the numbers may depend on."""
    found = {"profusion": __version__, "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
