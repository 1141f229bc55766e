"""Every key of the configuration with its type, range, default and help, read from the dataclasses' fields."""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from profusion_cli.config import Config
from profusion_cli.mappings import words_of

TYPE_WORDS = {str: "text", int: "whole number", float: "number", bool: "true or false"}


@dataclass(frozen=True)
class Key:
    """One key of the configuration.

    Args:
        name: dotted, as `--set` takes it.
        hint: its type.
        field: of the dataclass that it belongs to; its metadata are those of `profusion_cli.settings.setting`.
        default: where no preset says otherwise; MISSING: a preset must.
    """

    name: str
    hint: Any
    field: Field[Any]
    default: Any

    @property
    def help(self) -> str:
        return self.field.metadata["help"]

    @property
    def is_required(self) -> bool:
        """Whether every preset must give it."""
        return self.default is MISSING

    @property
    def flags(self) -> list[str]:
        """The names of its option; none where only `--set` reaches it."""
        flag = self.field.metadata["flag"]
        return flag.split("/") if flag else []

    @property
    def flag(self) -> str | None:
        """Its option as messages call it."""
        return self.flags[-1] if self.flags else None

    @property
    def is_switch(self) -> bool:
        """Whether giving the option says all."""
        return self.hint is bool

    @property
    def value_type(self) -> Any:
        """Its type where it is not null."""
        return unwrapped(self.hint)

    @property
    def words(self) -> tuple[str, ...]:
        """What may be given in place of a value of the type."""
        return words_of(self.hint)

    @property
    def is_list(self) -> bool:
        return get_origin(self.value_type) is tuple

    @property
    def type(self) -> str:
        """In words: `number`, `one of a, b`..."""
        inner = self.value_type
        if self.words:
            return f"{TYPE_WORDS[inner]}, or {', '.join(self.words)}"
        optional = " or null" if inner is not self.hint else ""
        if get_origin(inner) is Literal:
            return f"one of {', '.join(get_args(inner))}{optional}"
        if get_origin(inner) is tuple:
            return f"list of {TYPE_WORDS[get_args(inner)[0]]}s{optional}"
        return TYPE_WORDS[inner] + optional

    @property
    def range(self) -> str:
        """In words; empty where every value of the type will do."""
        low, high = self.field.metadata["low"], self.field.metadata["high"]
        if low is None:
            return ""
        return f"{low:g} or more" if high is None else f"{_number(low)} to {_number(high)}"


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


def unwrapped(hint: Any) -> Any:
    """`X` of `X | None`."""
    if get_origin(hint) in (Union, types.UnionType):
        return next(option for option in get_args(hint) if option is not type(None))
    return hint


def keys_of(section: type, prefix: str = "", default: Any = MISSING) -> Iterator[Key]:
    """Every key of a dataclass and of those inside it, in their order.

    Args:
        section: the dataclass.
        prefix: what the keys' names begin with, with its dot.
        default: the section's value where no preset says otherwise.
    """
    hints = get_type_hints(section)
    for item in fields(section):
        inner, value = unwrapped(hints[item.name]), item.default if default is MISSING else getattr(default, item.name)
        if is_dataclass(inner):
            yield from keys_of(inner, f"{prefix}{item.name}.", MISSING if value is None else value)
        else:
            yield Key(f"{prefix}{item.name}", hints[item.name], item, value)


@functools.cache
def all_keys() -> dict[str, Key]:
    """Every key of the configuration, by its name."""
    return {key.name: key for key in keys_of(Config)}


def keys_with_flags(names: tuple[str, ...]) -> list[Key]:
    """The keys of these names, and those of these sections that have an option.

    Raises:
        ValueError: the caller's mistake: a name of neither.
    """
    keys = [key for key in all_keys().values() if key.flags]
    chosen = []
    for name in names:
        found = [key for key in keys if key.name == name or key.name.startswith(f"{name}.")]
        if not found:
            raise ValueError(f"no option sets '{name}', or a key of that section")
        chosen += found
    return chosen
