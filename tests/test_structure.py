"""How the modules lie: small, in layers, and without circles."""

from __future__ import annotations

import ast
import functools
from collections import Counter
from pathlib import Path

import profusion_cli

PACKAGE = Path(profusion_cli.__file__).parent
LONGEST = 400
LAYERS = {
    "runtime": ("jobs", "commands", "evaluation", "app"),
    "jobs": ("commands", "evaluation", "app"),
    "evaluation": ("commands", "app"),
    "doctor": ("commands", "evaluation", "app"),
    "images": ("bundle", "runtime", "jobs", "commands", "evaluation", "app"),
    "bundle": ("runtime", "jobs", "commands", "evaluation", "app"),
}
"""What the modules of a folder may not know of."""


@functools.cache
def imports() -> dict[str, set[str]]:
    """The modules of the package that each one imports, wherever it does; those for types alone left out."""
    names = {module_name(path): path for path in PACKAGE.rglob("*.py")}
    found: dict[str, set[str]] = {}
    for name, path in names.items():
        wanted = set()
        for node in nodes(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                wanted |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f"{name} imports by dots"
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                wanted |= {full if full in names else str(node.module) for full in inner}
        found[name] = {other for other in wanted & set(names) if not name.startswith(f"{other}.")}
    return found


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def nodes(tree: ast.AST):
    """All of a tree but what stands under `if TYPE_CHECKING:`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        yield node
        yield from nodes(node)


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """One way round for each module that imports itself in the end."""
    found = []
    for start in graph:
        ways = [[start]]
        seen = set()
        while ways:
            way = ways.pop()
            for other in graph[way[-1]]:
                if other == start:
                    found.append([*way, start])
                    ways = []
                    break
                if other not in seen:
                    seen.add(other)
                    ways.append([*way, other])
    return found


def test_a_circle_would_be_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}})
    assert not circles({"a": {"b", "c"}, "b": {"c"}, "c": set()})


def test_no_module_imports_itself_by_way_of_others():
    graph = imports()
    assert len(graph) > 50 and sum(map(len, graph.values())) > 100
    assert circles(graph) == []


def test_lower_layers_know_nothing_of_higher_ones():
    for name, known in imports().items():
        for other in LAYERS.get(name.split(".")[1] if "." in name else "", ()):
            assert not [module for module in known if module.split(".")[1:2] == [other]], name


def test_no_two_classes_have_one_name():
    names = [
        node.name
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
    ]
    assert len(names) > 100
    assert [name for name, count in Counter(names).items() if count > 1] == []


def test_folders_say_what_lives_in_them():
    """Every folder's docstring names each of its modules, but for the outermost one."""
    for path in PACKAGE.rglob("__init__.py"):
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        assert text, path
        if path.parent in (PACKAGE, PACKAGE / "commands"):
            continue
        missing = [
            one.stem for one in path.parent.glob("*.py") if not one.stem.startswith("_") and f"`{one.stem}`" not in text
        ]
        assert not missing, path


def test_no_module_is_long():
    lines = {str(path): len(path.read_text(encoding="utf-8").splitlines()) for path in PACKAGE.rglob("*.py")}
    assert {path: count for path, count in lines.items() if count > LONGEST} == {}
