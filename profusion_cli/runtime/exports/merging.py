"""One Python file of a module and all that it takes from this package, for those who have it not."""

from __future__ import annotations

import ast
import importlib.util
from dataclasses import dataclass
from pathlib import Path

from profusion_cli import __version__

PACKAGE = "profusion_cli"
_HEADER = f'''"""{{title}}

Made by profusion {__version__} of its own modules, each of which begins at a line of dashes. Apache-2.0.
"""

from __future__ import annotations
'''


@dataclass(frozen=True)
class _Module:
    """A module, taken apart.

    Args:
        name: with dots.
        imports: module and name of what it imports from elsewhere; without a module: that itself.
        needs: modules of this package that it imports from, in order.
        body: its lines without its docstring and imports.
        names: what it defines.
    """

    name: str
    imports: tuple[tuple[str, str], ...]
    needs: tuple[str, ...]
    body: str
    names: frozenset[str]


def merged(module: str) -> str:
    """The source of one file that needs this package no more.

    Args:
        module: of this package.

    Raises:
        ValueError: two of the modules define one name, or one imports from this package in a way that is not followed.
    """
    parts: dict[str, _Module] = {}
    _collect(module, parts)
    defined: dict[str, str] = {}
    for part in parts.values():
        for name in part.names:
            if name in defined:
                raise ValueError(f"{part.name} and {defined[name]} both define {name}")
            defined[name] = part.name
    imports = sorted({found for part in parts.values() for found in part.imports})
    whole = [f"import {name}" for module, name in imports if not module]
    names = {module: [name for of, name in imports if of == module] for module, _ in imports if module}
    lines = [*whole, *(f"from {module} import {', '.join(found)}" for module, found in names.items())]
    title = ast.get_docstring(_tree(module)).splitlines()[0]
    sections = [f"# --- {part.name} ---\n\n{part.body}" for part in parts.values()]
    return "\n\n".join([_HEADER.format(title=title) + "\n" + "\n".join(lines), *sections]) + "\n"


def _collect(name: str, parts: dict[str, _Module]) -> None:
    """What a module needs, and then itself."""
    module = _read(name)
    for other in module.needs:
        if other not in parts:
            _collect(other, parts)
    parts[name] = module


def _source(name: str) -> str:
    return Path(importlib.util.find_spec(name).origin).read_text(encoding="utf-8")


def _tree(name: str) -> ast.Module:
    return ast.parse(_source(name))


def _read(name: str) -> _Module:
    lines, imports, needs, names, gone = _source(name).splitlines(), [], [], set(), set()
    for number, node in enumerate(_tree(name).body):
        is_docstring = number == 0 and isinstance(node, ast.Expr)
        if isinstance(node, ast.Import):
            imports += [("", ast.unparse(alias)) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module.startswith(PACKAGE):
            if any(alias.asname for alias in node.names):
                raise ValueError(f"{name} renames what it imports from {node.module}")
            needs.append(node.module)
        elif isinstance(node, ast.ImportFrom):
            imports += [(node.module, ast.unparse(alias)) for alias in node.names if node.module != "__future__"]
        elif not (is_docstring or _is_for_types(node)):
            names |= _defined_by(node)
            continue
        gone |= set(range(node.lineno - 1, node.end_lineno))
    body = "\n".join(line for number, line in enumerate(lines) if number not in gone).strip()
    if f"from {PACKAGE}" in body or f"import {PACKAGE}" in body:
        raise ValueError(f"{name} imports from {PACKAGE} inside a block")
    return _Module(name, tuple(imports), tuple(dict.fromkeys(needs)), body, frozenset(names))


def _is_for_types(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def _defined_by(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return {one.id for target in targets for one in ast.walk(target) if isinstance(one, ast.Name)}
