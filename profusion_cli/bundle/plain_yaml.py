"""YAML as plain data: read with limits on size, number, depth, aliases and tags, and written for people to read."""

from __future__ import annotations

from typing import Any

import yaml

from profusion_cli.bundle.refusal import Refused, show

MAX_MANIFEST = 1 << 20
MAX_VALUES = 30_000
"""Three times as many as the manifest of a subject on Stable Diffusion 2 has; more take seconds to read."""
_MAX_DEPTH = 32
_YAML_TAG = "tag:yaml.org,2002:"
_TOO_DEEP = f"has a manifest nested more than {_MAX_DEPTH} deep"
_TEXT = f"{_YAML_TAG}str"
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""At the speed of libyaml where PyYAML has it."""
_PLAIN = {
    f"{_YAML_TAG}int": _Loader.construct_yaml_int,
    f"{_YAML_TAG}float": _Loader.construct_yaml_float,
    f"{_YAML_TAG}bool": _Loader.construct_yaml_bool,
    f"{_YAML_TAG}null": _Loader.construct_yaml_null,
}
"""What makes values of texts; dates and merge keys are left out."""


class _Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
    """Readable YAML without anchors; a tensor takes one line."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_dict(self, data: dict[str, Any]) -> yaml.Node:
        return self.represent_mapping(_YAML_TAG + "map", data, flow_style=set(data) == {"dtype", "shape"})

    def represent_str(self, data: str) -> yaml.Node:
        """Bytes of a file name that are no UTF-8 become escapes."""
        return super().represent_str(data.encode("utf-8", "backslashreplace").decode())


for _add in (_Dumper.add_representer, _Dumper.add_multi_representer):  # the types, and their subclasses
    _add(dict, _Dumper.represent_dict)
    _add(str, _Dumper.represent_str)


def dump_plain(value: Any) -> bytes:
    """Plain data as YAML.

    Raises:
        ValueError: something in it is not plain.
    """
    try:
        return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000).encode()
    except yaml.YAMLError as error:
        raise ValueError(f"the manifest cannot be written: {error}") from error


def parse_plain(data: bytes | memoryview) -> Any:
    """Plain data from YAML that is checked for size, number, depth, aliases and tags before anything is built.

    Raises:
        Refused: it is anything else.
    """
    if len(data) > MAX_MANIFEST:
        raise Refused(f"has a manifest of {len(data)} bytes, and {MAX_MANIFEST} are allowed")
    try:
        text = bytes(data).decode("utf-8")
    except UnicodeDecodeError as error:
        raise Refused("has a manifest that is not UTF-8") from error
    try:
        return _Reader(text).read()
    except Refused:
        raise
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        if isinstance(error, RecursionError) or _open_brackets(text, error) > _MAX_DEPTH:
            raise Refused(_TOO_DEEP) from error
        reason = getattr(error, "problem", None) or "unreadable"
        raise Refused(f"has a manifest that is not valid YAML ({show(reason)[1:-1]})") from error


class _Reader:
    """Builds plain data from the events of a YAML text, one by one, and stops at the first that is too much."""

    def __init__(self, text: str) -> None:
        self.loader, self.values = _Loader(text), 0

    def read(self) -> Any:
        """The value of the only document; None where there is none."""
        value, event = None, self._next()
        if not isinstance(event, yaml.StreamEndEvent):
            value = self._value(self._next(), 1)
            self._next()  # the end of the document
            if not isinstance(self._next(), yaml.StreamEndEvent):
                raise Refused("has a manifest of more than one YAML document")
        return value

    def _next(self) -> yaml.Event:
        event = self.loader.get_event()
        return self.loader.get_event() if isinstance(event, yaml.StreamStartEvent) else event

    def _value(self, event: yaml.Event, depth: int) -> Any:
        """The value that begins with `event`."""
        if event.anchor is not None:
            raise Refused("has a manifest with YAML anchors or aliases, which are not allowed")
        if event.tag is not None:
            raise Refused(f"has a manifest with the YAML tag {show(event.tag)}, which is not allowed")
        self.values += 1
        if self.values > MAX_VALUES:
            raise Refused(f"has a manifest of more than {MAX_VALUES} values")
        if isinstance(event, yaml.ScalarEvent):
            return self._scalar(event)
        if depth > _MAX_DEPTH:
            raise Refused(_TOO_DEEP)
        if isinstance(event, yaml.SequenceStartEvent):
            return self._sequence(depth)
        return self._mapping(depth)

    def _sequence(self, depth: int) -> list[Any]:
        items = []
        while not isinstance(event := self._next(), yaml.SequenceEndEvent):
            items.append(self._value(event, depth + 1))
        return items

    def _mapping(self, depth: int) -> dict[str, Any]:
        table: dict[str, Any] = {}
        while not isinstance(event := self._next(), yaml.MappingEndEvent):
            key = self._value(event, depth + 1)
            if not isinstance(key, str) or key in table:
                raise Refused("has a manifest with a key that is repeated or not a text")
            table[key] = self._value(self._next(), depth + 1)
        return table

    def _scalar(self, event: yaml.ScalarEvent) -> Any:
        text = event.value
        text.encode()  # half a surrogate pair is no text
        tag = self.loader.resolve(yaml.ScalarNode, text, event.implicit)
        if tag == _TEXT:
            return text
        if tag not in _PLAIN:
            raise Refused(f"has a manifest with {show(text)}, which is not plain data")
        if len(text) > 40:
            raise Refused(f"has a manifest with a number of {len(text)} digits")
        return _PLAIN[tag](self.loader, yaml.ScalarNode(tag, text))


def _open_brackets(text: str, error: Exception) -> int:
    """How many brackets are open where PyYAML gave up: libyaml looks ahead of the events, up to a limit of its own."""
    mark = getattr(error, "problem_mark", None)
    before = text[: mark.index] if mark else ""
    return sum(before.count(opening) - before.count(closing) for opening, closing in ("[]", "{}"))
