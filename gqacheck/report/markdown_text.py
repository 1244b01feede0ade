"""Text of a checkpoint inside GitHub-flavoured Markdown: it never becomes markup, a mention, a link or a formula."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from gqacheck.text import printable

BREAK = "\u200b"
"""Zero-width space: GitHub looks for mentions, issue numbers and emoji in the finished text, where no escape helps.
It leaves those in code alone, and so do we: what stands there is copied."""
_MARKUP = re.compile(r"[\\`*_~|<>&\[\](){}!$^\"']")
_LINKS = re.compile(r"(?<=[@#])(?=[\w-])|(?i:(?<=\bGH)(?=-\d))|(?<=:)(?=[\w+-]+:)|(?<=:)(?=//)|(?i:(?<=\bwww)(?=\.))")
_IN_CODE = re.compile(rf"{_MARKUP.pattern}|:(?=//)|(?i:w(?=ww\.))")
"""Markup, and what makes the parser itself see a link, in code too: a character reference is enough against both."""
_LIST_OR_HEADING = re.compile(r"[-+=#: ]|\d(?=\d*[.)])")


def prose(text: object, limit: int = 1000) -> str:
    """``text`` on one line: what Markdown would read as markup is a character reference, what GitHub links is broken.

    It may stand anywhere in a paragraph, a list item or a table cell, and at its beginning.
    """
    shown = _LINKS.sub(BREAK, printable(text, limit))
    shown = _MARKUP.sub(_reference, shown)
    first = _LIST_OR_HEADING.match(shown)
    return _reference(first) + shown[1:] if first else shown


def _reference(match: re.Match[str]) -> str:
    return f"&#{ord(match.group())};"


def code(text: object, limit: int = 200) -> str:
    """``text`` in the typeface of code. HTML, so that no number of backticks in it ends it."""
    return f"<code>{_literal(text, limit)}</code>"


def _literal(text: object, limit: int = 1000) -> str:
    """``text`` inside an element for code: no markup, no address, and nothing added to it."""
    return _IN_CODE.sub(_reference, printable(text, limit))


def table(header: Sequence[str], rows: Iterable[Sequence[str]], numbers: Iterable[int] = ()) -> list[str]:
    """The lines of a table whose cells are Markdown already; columns in ``numbers`` stand to the right."""
    right = frozenset(numbers)
    rule = ("---:" if column in right else "---" for column in range(len(header)))
    return [_row(header), _row(tuple(rule)), *map(_row, rows), ""]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def as_typed(lines: Iterable[str]) -> list[str]:
    """``lines`` in columns as they are, in the typeface of code."""
    return ["<pre>", *(_literal(text) for text in lines), "</pre>"]


def folded(summary: str, lines: Iterable[str], *, open_: bool = False) -> list[str]:
    """``lines`` in a part that opens on a click; ``summary`` is Markdown-safe text."""
    return [f"<details{' open' if open_ else ''}><summary>{summary}</summary>", "", *lines, "", "</details>", ""]
