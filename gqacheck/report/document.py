"""What a text report is made of, before it is known whether a terminal or a pipe will show it.

The same blocks go to both, so that both say the same words. Every string in them may come from a file: the
writers escape each one and interpret none.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from gqacheck.text import printable

Style: TypeAlias = Literal["", "strong", "dim", "error", "warning", "note", "ok", "unknown"]
LONGEST_SPAN = 1500
"""Characters of one span: longer than any honest message, short enough that a hostile one cannot flood a screen."""


@dataclass(frozen=True, slots=True)
class Span:
    """A run of text in one style."""

    text: str
    style: Style = ""

    @property
    def shown(self) -> str:
        """The text with everything unprintable escaped, and of bounded length."""
        return printable(self.text, LONGEST_SPAN)


@dataclass(frozen=True, slots=True)
class Line:
    """One line. Where a terminal must break it, what follows stands under ``spans``, to the right of ``label``."""

    spans: tuple[Span, ...] = ()
    label: tuple[Span, ...] = ()


Cell: TypeAlias = str | Span


def cell_text(cell: Cell) -> str:
    """What a cell of a grid shows, escaped and of bounded length."""
    return printable(cell.text if isinstance(cell, Span) else cell)


@dataclass(frozen=True, slots=True)
class Grid:
    """A table with two spaces between its columns, ``indent`` spaces from the left.

    ``left`` names the columns (by index) that are aligned to the left; numbers stand to the right. A cell that is a
    ``Span`` has a style.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    left: frozenset[int] = frozenset({0})
    indent: int = 2


Block: TypeAlias = Line | Grid


def line(*parts: str | Span, label: str | Span | Sequence[str | Span] = ()) -> Line:
    """A line of strings and spans."""
    labels = (label,) if isinstance(label, (str, Span)) else label
    return Line(_spans(parts), _spans(labels))


def _spans(parts: Iterable[str | Span]) -> tuple[Span, ...]:
    return tuple(part if isinstance(part, Span) else Span(part) for part in parts)


def plain(blocks: Iterable[Block]) -> str:
    """The blocks as plain text, one line each, never broken; ends with a newline unless empty."""
    lines: list[str] = []
    for block in blocks:
        if isinstance(block, Grid):
            lines.extend(_plain_grid(block))
        else:
            lines.append("".join(span.shown for span in (*block.label, *block.spans)).rstrip())
    return "".join(text + "\n" for text in lines)


def _plain_grid(grid: Grid) -> list[str]:
    rows = [tuple(map(cell_text, row)) for row in (grid.header, *grid.rows)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(grid.header))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if column in grid.left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append((" " * grid.indent + "  ".join(cells)).rstrip())
    return lines
