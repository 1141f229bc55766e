"""YAML as plain data: read with limits on size, depth, aliases and tags, and written for people to read."""

from __future__ import annotations

from typing import Any

import yaml

from profusion_cli.bundle.refusal import Refused, show

MAX_MANIFEST = 1 << 20
_MAX_DEPTH = 32
_YAML_TAG = "tag:yaml.org,2002:"
_TOO_DEEP = f"has a manifest nested more than {_MAX_DEPTH} deep"
_PLAIN_TAGS = {_YAML_TAG + tag for tag in ("map", "seq", "str", "int", "float", "bool", "null")}


class _PlainOnly:
    """A YAML loader's part that refuses dates, merge keys, repeated keys and endless numbers."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        if node.tag not in _PLAIN_TAGS:
            raise Refused(f"has a manifest with {show(node.value)}, which is not plain data")
        if isinstance(node, yaml.MappingNode):
            keys = [key.value for key, _ in node.value if key.tag == _YAML_TAG + "str"]
            if len(set(keys)) < len(node.value):
                raise Refused("has a manifest with a key that is repeated or not a text")
        elif isinstance(node, yaml.ScalarNode):
            node.value.encode()  # half a surrogate pair is no text
            if node.tag != _YAML_TAG + "str" and len(node.value) > 40:
                raise Refused(f"has a manifest with a number of {len(node.value)} digits")
        return super().construct_object(node, deep)


class _Loader(_PlainOnly, getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """Plain data, at the speed of libyaml where PyYAML has it."""


class _Dumper(yaml.SafeDumper):
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
    """Plain data from YAML that is checked for size, depth, aliases and tags before anything is built.

    Raises:
        Refused: it is anything else.
    """
    if len(data) > MAX_MANIFEST:
        raise Refused(f"has a manifest of {len(data)} bytes, and {MAX_MANIFEST} are allowed")
    try:
        text = bytes(data).decode("utf-8")
    except UnicodeDecodeError as error:
        raise Refused("has a manifest that is not UTF-8") from error
    depth = 0
    try:
        for event in yaml.parse(text, Loader=_Loader):
            if getattr(event, "anchor", None) is not None:
                raise Refused("has a manifest with YAML anchors or aliases, which are not allowed")
            if getattr(event, "tag", None) is not None:
                raise Refused(f"has a manifest with the YAML tag {show(event.tag)}, which is not allowed")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _MAX_DEPTH:
                raise Refused(_TOO_DEEP)
        return yaml.load(text, Loader=_Loader)
    except Refused:
        raise
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        if isinstance(error, RecursionError) or _open_brackets(text, error) > _MAX_DEPTH:
            raise Refused(_TOO_DEEP) from error
        reason = getattr(error, "problem", None) or "unreadable"
        raise Refused(f"has a manifest that is not valid YAML ({show(reason)[1:-1]})") from error


def _open_brackets(text: str, error: Exception) -> int:
    """How many brackets are open where PyYAML gave up: libyaml looks ahead of the events, up to a limit of its own."""
    mark = getattr(error, "problem_mark", None)
    before = text[: mark.index] if mark else ""
    return sum(before.count(opening) - before.count(closing) for opening, closing in ("[]", "{}"))
