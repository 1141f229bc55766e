"""Files of prompts, one on a line, each with settings of its own if need be."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import yaml

from profusion_cli.config import Config, build_config
from profusion_cli.errors import ConfigError, InputError
from profusion_cli.files import read_source
from profusion_cli.mappings import merge
from profusion_cli.prompts import alternatives

_WITH_SETTINGS = re.compile(r"""\{.*?\bprompt["']?\s*:.*\}""")
"""A line that is a mapping, in YAML or JSON: `{prompt: S* at sea, seed: 3}`."""
_EXAMPLE = 'For example: {"prompt": "S* at sea", "seed": 3, "width": 512, "text_guidance": 6}'


@dataclass(frozen=True)
class PromptLine:
    """A prompt.

    Args:
        text: of the prompt.
        settings: that it is drawn by, over those of all: keys of `sample`, and `seed`.
        place: where it stands, for messages; empty: on the command line.
    """

    text: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    place: str = ""

    def each(self) -> list[PromptLine]:
        """Those that it stands for, one for each choice in it."""
        return [replace(self, text=text) for text in alternatives(self.text)]

    def config(self, common: Config) -> Config:
        """What it is drawn by.

        Raises:
            InputError: a setting that there is not, or a value that is wrong.
        """
        if not self.settings:
            return common
        own = {key: value for key, value in self.settings.items() if key != "seed"}
        seed = {"seed": self.settings["seed"]} if "seed" in self.settings else {}
        try:
            return build_config(merge(common.as_dict(), {"sample": own, **seed}))
        except ConfigError as error:
            raise InputError(f"{self.place}: {error.message}", error.hint) from error


def read_prompts(source: str) -> list[PromptLine]:
    """The prompts of a file; empty lines and lines that begin with # are left out.

    Raises:
        InputError: not readable as text, no prompt in it, or a line with settings that is none.
    """
    try:
        text = bytes(read_source(source)).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"The prompts file '{source}' is not UTF-8 text.", "Save it as UTF-8.") from None
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1)]
    entries = [
        _entry(line, f"Line {number} of '{source}'") for number, line in lines if line and not line.startswith("#")
    ]
    if not entries:
        raise InputError(f"The prompts file '{source}' has no prompts.", "Write one prompt per line.")
    return entries


def _entry(line: str, place: str) -> PromptLine:
    if not _WITH_SETTINGS.fullmatch(line):
        return PromptLine(line, place=place)
    try:
        values = yaml.safe_load(line)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        problem = " ".join(str(error).split())[:200]
        raise InputError(f"{place} is no mapping in YAML or JSON: {problem}.", _EXAMPLE) from None
    if not isinstance(values, dict) or not isinstance(values.get("prompt"), str):
        raise InputError(f"{place} has no prompt that is a text.", _EXAMPLE)
    return PromptLine(values["prompt"], {str(key): value for key, value in values.items() if key != "prompt"}, place)
