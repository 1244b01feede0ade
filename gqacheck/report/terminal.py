"""Blocks on a terminal: colour and line breaks through rich, which is imported only here and only when needed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

from gqacheck.report.document import Block, Grid, Line, Span, Style, cell_text
from gqacheck.text import printable

if TYPE_CHECKING:
    from rich.console import Console

STYLES: dict[Style, str] = {
    "": "",
    "strong": "bold",
    "dim": "dim",
    "error": "bold red",
    "warning": "bold yellow",
    "note": "bold cyan",
    "ok": "bold green",
    "unknown": "bold yellow",
}
NARROWEST_BODY = 24
"""Columns: below this a long label stands on a line of its own, and the rest is indented by four."""


def render_terminal(blocks: Iterable[Block], *, width: int, colour: bool) -> str:
    """The same words as ``plain``, broken at ``width`` columns, with ANSI styles when ``colour``.

    Nothing in the blocks is read as markup, as an emoji code or as something to highlight.
    """
    from io import StringIO

    from rich.console import Console

    console = Console(
        file=StringIO(),
        width=max(width, 20),
        force_terminal=colour,
        color_system="standard" if colour else None,
        no_color=not colour,
        legacy_windows=False,
        markup=False,
        emoji=False,
        highlight=False,
    )
    with console.capture() as capture:
        for block in blocks:
            if isinstance(block, Grid):
                _print_grid(console, block)
            else:
                _print_line(console, block, console.width)
    lines = capture.get().split("\n")
    return "\n".join(text.rstrip(" ") for text in lines)


def _print_line(console: Console, block: Line, width: int) -> None:
    from rich.cells import cell_len
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    label = Text.assemble(*((span.shown, STYLES[span.style]) for span in block.label))
    body = Text.assemble(*((span.shown, STYLES[span.style]) for span in block.spans))
    wide = cell_len(label.plain)
    if not wide:
        console.print(body)
    elif width - wide < NARROWEST_BODY and len(label.plain.strip()) > 0:
        label.rstrip()
        console.print(label)
        console.print(Padding(body, (0, 0, 0, 4)))
    else:
        grid = Table.grid()
        grid.add_column(width=wide, no_wrap=True)
        grid.add_column(overflow="fold")
        grid.add_row(label, body)
        console.print(grid)


def _print_grid(console: Console, block: Grid) -> None:
    """The grid as columns; where they do not fit, each row as a sentence of ``name value`` pairs."""
    from rich.cells import cell_len
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    header = [printable(title) for title in block.header]
    rows = [[cell_text(cell) for cell in row] for row in block.rows]
    widths = [max(cell_len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    last_may_wrap = len(header) - 1 in block.left and widths[-1] > NARROWEST_BODY
    fixed = sum(widths[:-1]) + 2 * (len(widths) - 1) + block.indent
    if fixed + (NARROWEST_BODY if last_may_wrap else widths[-1]) > console.width:
        for first, *rest in rows:
            pairs = [f"{title} {cell}".strip() for title, cell in zip(header[1:], rest, strict=True) if cell]
            title = f"{header[0]} {first}: " if block.indent else f"{first}: "
            console.print(Padding(Text(title + ", ".join(pairs)), (0, 0, 0, block.indent)))
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for column, title in enumerate(header):
        justify: Literal["left", "right"] = "left" if column in block.left else "right"
        wraps = last_may_wrap and column == len(header) - 1
        table.add_column(Text(title), justify=justify, no_wrap=not wraps)
    for row, shown in zip(block.rows, rows, strict=True):
        styles = (STYLES[cell.style] if isinstance(cell, Span) else "" for cell in row)
        table.add_row(*(Text(text, style) for text, style in zip(shown, styles, strict=True)))
    console.print(Padding(table, (0, 0, 0, block.indent)))
