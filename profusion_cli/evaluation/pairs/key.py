"""The key of a page: which picture is whose."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from profusion_cli.errors import InputError
from profusion_cli.evaluation.pairs.reading import DAMAGED, read_object

KIND = "key"


@dataclass(frozen=True)
class Pair:
    """One pair, unblinded: the methods on both sides, and what was asked for."""

    left: str
    right: str
    subject: str
    prompt: str
    index: int

    def other(self, ours: str) -> str:
        """The method that ours is compared with."""
        return self.right if self.left == ours else self.left


@dataclass(frozen=True)
class PairsKey:
    """The key of a page: its id, the method that all others are compared with, and its pairs by id."""

    page: str
    ours: str
    pairs: Mapping[str, Pair]


def key_path(target: Path) -> Path:
    """Where the key of the page in the folder `target` lies: beside it."""
    target = Path(os.path.abspath(target))
    return target.with_name(f"{target.name}-key.json")


def read_key(path: str | Path) -> PairsKey:
    """The key that `write_pairs` wrote beside a page.

    Raises:
        InputError: missing, damaged, or not a key.
    """
    content = read_object(path, KIND, "the key of a page of pairs")
    try:
        key = PairsKey(content["page"], content["ours"], {id: Pair(**pair) for id, pair in content["pairs"].items()})
        texts = [key.page, key.ours, *(text for p in key.pairs.values() for text in (p.left, p.right, p.subject))]
        one_sided = all((pair.left == key.ours) != (pair.right == key.ours) for pair in key.pairs.values())
        if not (key.pairs and one_sided and all(isinstance(text, str) for text in texts)):
            raise ValueError
    except (KeyError, TypeError, AttributeError, ValueError):
        raise InputError(f"'{path}' is damaged: it is no key of pairs.", DAMAGED) from None
    return key
