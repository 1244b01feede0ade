"""A comparison as text blocks, for a pipe and a terminal alike."""

from __future__ import annotations

from itertools import zip_longest

from gqacheck.compare.facts import Table
from gqacheck.compare.notes import notes
from gqacheck.compare.rows import rows
from gqacheck.report.document import Block, Cell, Grid, Span, line

ABOVE = "  and"
"""Label of a further line of the same cell."""


def compare_blocks(table: Table) -> tuple[Block, ...]:
    """The table with checkpoints as columns, and what stands below it."""
    blocks: list[Block] = [
        Grid(("", *(column.name for column in table.columns)), tuple(_lines(table)), indent=2),
        line(""),
    ]
    for note in notes(table):
        label = f"  {note.about}  " if note.about else "  "
        blocks.append(line(Span(note.text, "unknown" if note.is_problem else ""), label=Span(label, "dim")))
    return tuple(blocks)


def _lines(table: Table) -> list[tuple[Cell, ...]]:
    lines: list[tuple[Cell, ...]] = []
    for row in rows(table):
        deep = list(zip_longest(*row.cells, fillvalue=Span(""))) or [()]
        for number, cells in enumerate(deep):
            lines.append((row.label if not number else ABOVE, *cells))
    return lines
