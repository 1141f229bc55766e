"""Sharing cells out to several processes, so that little is made by two of them: the second of two subjects, where a
share ends between them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from itertools import groupby

from profusion_cli.evaluation.cells import jobs, work
from profusion_cli.evaluation.cells.bundles import bundle_key
from profusion_cli.evaluation.cells.cell import Cell
from profusion_cli.evaluation.study.schema import SUBJECT, TWO


def units_of(cells: Sequence[Cell], names_of: Callable[[Cell], Collection[str]]) -> list[list[Cell]]:
    """Cells in units that one process makes: of one subject, and joined by what is made for several of them.

    Args:
        cells: each is in one of the units.
        names_of: what is made for a cell beside its pictures.

    Returns:
        The units, in the order of their subjects.
    """
    units = []
    for _, own in groupby(sorted(cells, key=_subject), _subject):
        apart: list[tuple[set[str], list[Cell]]] = []
        for cell in own:
            names, members = set(names_of(cell)), [cell]
            joined = [unit for unit in apart if unit[0] & names]
            apart = [unit for unit in apart if not unit[0] & names]
            for others, before in reversed(joined):
                names, members = names | others, before + members
            apart.append((names, members))
        units += [members for _, members in apart]
    return units


def work_of(unit: Sequence[Cell]) -> float:
    """How much work a unit is: what is made for it and drawn, and judging, which counts as one evaluation a picture."""
    wanted = [cell for cell in unit if cell.made is None]
    bundles = {
        bundle_key(cell): jobs.work_of_subject(cell.config, augmented=cell.method.augment)
        for cell in wanted
        if cell.method.kind in (SUBJECT, TWO)
    }
    return sum(bundles.values()) + sum(map(work.drawing, wanted)) + sum(len(cell.jobs) for cell in unit)


def share_out(works: Sequence[float], count: int) -> list[int]:
    """The process of each piece of work: neighbours stay together, and all processes have about as much to do.

    A piece goes where its middle falls when the whole is cut into equal parts. So no process has more than its part
    and one piece.

    Args:
        works: how much work each piece is, 0 or more.
        count: of the processes.

    Returns:
        A number from 0 to `count` - 1 for each piece, never less than the one before.
    """
    total, before, ranks = sum(works) or 1.0, 0.0, []
    for amount in works:
        ranks.append(min(int((before + amount / 2) * count / total), count - 1))
        before += amount
    return ranks


def _subject(cell: Cell) -> int:
    return cell.number
