"""A comparison as a table of GitHub's Markdown. Whatever a file said is text there: no markup, no HTML, no links."""

from __future__ import annotations

import re

from gqacheck.compare.facts import Table
from gqacheck.compare.notes import notes
from gqacheck.compare.rows import rows
from gqacheck.text import printable

_MARKUP = re.compile(r"([\\`*_{}\[\]()+!|<>~$&])")
_LINK = re.compile(r"(?i)(\b(?:https?|ftp|www)(?=[:.])|[@#])")
_LONGEST = 1000


def render_markdown(table: Table) -> str:
    """The table, and below it a list of what stands below it; ends with a newline."""
    header = ["", *(escape(column.name) for column in table.columns)]
    lines = [_row(header), _row(["---", *("---:" for _ in table.columns)])]
    for row in rows(table):
        label = escape(row.label.strip())
        cells = ["; ".join(escape(span.text) for span in cell if span.text) for cell in row.cells]
        lines.append(_row([f"&nbsp;&nbsp;{label}" if row.label.startswith(" ") else label, *cells]))
    lines.append("")
    for note in notes(table):
        about = f"**{escape(note.about)}**: " if note.about else ""
        lines.append(f"- {about}{escape(note.text)}")
    return "\n".join(lines) + "\n"


def escape(text: str) -> str:
    """``text`` as it will be read, on one line: marks of Markdown and HTML are characters, addresses are no links."""
    shown = _MARKUP.sub(r"\\\1", printable(text, _LONGEST))
    return _LINK.sub(lambda found: f"{found[1]}<!-- -->", shown).strip()


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
