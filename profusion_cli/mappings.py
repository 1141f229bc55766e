"""Plain mappings: laid over one another, by dotted keys, and turned into frozen dataclasses, checked key by key."""

from __future__ import annotations

import difflib
import functools
import math
import types
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from profusion_cli.errors import ConfigError
from profusion_cli.texts import NO_TEXT_HINT, is_text

NAMES_OF_FILES = ("id", "weights", "preset")
"""Ends of the keys whose text may hold any bytes, as the name of a file."""
LONGEST_SHOWN = 200
"""Characters of a value in a message."""


KINDS = {int: "a whole number", bool: "true or false"}
"""What may be given beside words, for messages."""


def words_of(hint: Any) -> tuple[str, ...]:
    """The words of a type such as `int | Literal["auto"]`, beside its values; none of other types."""
    own = [option for option in get_args(hint) if option is not type(None)]
    is_union = get_origin(hint) in (Union, types.UnionType) and len(own) > 1
    return next((get_args(option) for option in own if is_union and get_origin(option) is Literal), ())


class FlagText(str):
    """Text given with `--set`, where `1e-4` may be a number although YAML reads it as text."""


def changed(config: Any) -> dict[str, Any]:
    """What of a configuration differs from the defaults of this version, as plain data: a digest of it stays the same
    when a later version has more keys."""
    result: dict[str, Any] = {}
    for item in fields(config):
        value = getattr(config, item.name)
        if is_dataclass(value):
            if inner := changed(value):
                result[item.name] = inner
        elif item.default is MISSING or value != item.default:
            result[item.name] = plain(value)
    return result


def plain(value: Any) -> Any:
    """A value as YAML writes it: tuples become lists, text plain text."""
    if isinstance(value, FlagText):
        return str(value)
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    return value


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings laid over one another, later ones winning, key by key at every depth."""
    result: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            if isinstance(value, Mapping) and isinstance(result.get(key), Mapping):
                result[key] = merge(result[key], value)
            else:
                result[key] = value
    return result


def nested(flat: Mapping[Any, Any]) -> dict[str, Any]:
    """`{"sample.steps": 10}` as `{"sample": {"steps": 10}}`; a key that is no text, as YAML has, becomes one."""
    result: dict[str, Any] = {}
    for path, value in flat.items():
        layer: Any = value
        for key in reversed(str(path).split(".")):
            layer = {key: layer}
        result = merge(result, layer)
    return result


def flat(settings: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """`{"sample": {"steps": 10}}` as `{"sample.steps": 10}`."""
    result: dict[str, Any] = {}
    for key, value in settings.items():
        result |= flat(value, f"{path}{key}.") if isinstance(value, Mapping) else {f"{path}{key}": value}
    return result


_type_hints = functools.cache(get_type_hints)


def build(cls: type, values: Any, path: str) -> Any:
    """A frozen dataclass from a plain mapping, checked key by key; `path` is how messages call it.

    Raises:
        ConfigError: as `build_config`.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(
            f"{path or 'The configuration'} must be a mapping, not {_shown(values)}.", "Indent its keys below it."
        )
    hints = _type_hints(cls)
    known = {item.name: item for item in fields(cls)}
    arguments = {}
    for key, value in values.items():
        full = f"{path}.{key}" if path else str(key)
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            raise ConfigError(
                f"There is no configuration key '{full}'.",
                f"Did you mean '{f'{path}.' if path else ''}{near[0]}'?"
                if near
                else f"Known keys here: {', '.join(known)}.",
            )
        if is_dataclass(known[key].default) and isinstance(value, Mapping):
            value = merge(asdict(known[key].default), value)
        arguments[key] = _coerce(value, hints[key], full)
        _check_range(arguments[key], known[key].metadata, full)
    for name, item in known.items():
        if name not in arguments and item.default is MISSING and item.default_factory is MISSING:
            full = f"{path}.{name}" if path else name
            raise ConfigError(f"The configuration key '{full}' is missing.", "Add it to the preset file.")
    return cls(**arguments)


def _wrong(full: str, value: Any, expected: str, hint: str = "") -> ConfigError:
    return ConfigError(f"{full}={_shown(value)} is not {expected}.", hint or f"Give {expected}.")


def _shown(value: Any) -> str:
    """A value in a message, of which nobody reads more than a line."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no numbers of so many digits
        text = "a number of so many digits"
    return text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 3]}..."


def _coerce(value: Any, hint: Any, full: str) -> Any:
    origin, options = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (dict, list):
        if not isinstance(value, origin):
            raise _wrong(full, value, "a mapping" if origin is dict else "a list")
        items = value.items() if origin is dict else enumerate(value)
        coerced = {key: _coerce(entry, options[-1], f"{full}.{key}") for key, entry in items}
        return coerced if origin is dict else list(coerced.values())
    if origin in (Union, types.UnionType):
        if (words := words_of(hint)) and value in words:
            return str(value)
        if value is None and type(None) in options:
            return None
        inner = next(option for option in options if option is not type(None))
        try:
            return _coerce(value, inner, full)
        except ConfigError as error:
            if not words:
                raise
            raise _wrong(full, value, f"{KINDS[inner]}, or {', '.join(words)}") from error
    if origin is Literal:
        if not isinstance(value, str) or value not in options:
            near = difflib.get_close_matches(str(value), options, n=1)
            raise _wrong(full, value, f"one of {', '.join(options)}", f"Did you mean '{near[0]}'?" if near else "")
        return str(value)
    if origin is tuple:
        entries = value if isinstance(value, list | tuple) else [value]
        return tuple(_coerce(entry, options[0], full) for entry in entries)
    if is_dataclass(hint):
        return build(hint, value, full)
    if hint is bool:
        if not isinstance(value, bool):
            raise _wrong(full, value, "true or false")
        return value
    if hint is int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise _wrong(full, value, "a whole number")
        return value
    if hint is float:
        if isinstance(value, FlagText) and _is_number(value):
            value = float(value)
        if isinstance(value, str) and _is_number(value):
            raise _wrong(full, value, "a number in YAML", f"YAML reads {value} as text: write {_yaml_float(value)}.")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise _wrong(full, value, "a number")
        try:
            return float(value)
        except OverflowError:
            raise _wrong(full, value, "a number") from None
    if not isinstance(value, str):
        raise _wrong(full, value, "text", "Put it in quotes, inside those of the shell.")
    if "\0" in value:
        raise _wrong(full, value, "text, since it holds a NUL character", "Leave that out.")
    if full.rpartition(".")[2] not in NAMES_OF_FILES and not is_text(value):
        raise _wrong(full, value, "text in UTF-8", NO_TEXT_HINT)
    return str(value)


def _is_number(text: str) -> bool:
    """Whether text reads as a number, with an end: not as `nan` or `inf`."""
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _yaml_float(text: str) -> str:
    mantissa, _, exponent = f"{float(text):e}".partition("e")
    return f"{float(mantissa)}e{int(exponent):+d}"


def _check_range(value: Any, metadata: Mapping[str, Any], full: str) -> None:
    for number in value if isinstance(value, tuple) else (value,):
        if not isinstance(number, int | float):
            continue
        low, high = metadata.get("low"), metadata.get("high")
        if not abs(number) < float("inf") or (low is not None and number < low) or (high is not None and number > high):
            span = f"between {low} and {high}" if high is not None else f"at least {low}"
            raise ConfigError(f"{full}={_shown(number)} is out of range.", f"Use a value {span}.")
