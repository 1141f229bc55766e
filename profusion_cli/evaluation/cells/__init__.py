"""Cells, each one method on one subject.

What a cell is (`cell`), what it depends on (`marks`), the `bundles` that it draws from, made by the `jobs`, how it is
drawn (`studio`, `making`) and judged (`judging`, with `features` for distances), how much `work` that is, and its
`sharing` out to several processes.
"""
