"""The forms in which tools read wikitext: rows of the data set, the raw file, whole pages, detokenised pages.

The data set holds the lines of ``wiki.test.raw``, with "" for a line that holds only a blank. So the file can be put
together again byte for byte, and the pages of lm-evaluation-harness out of that.
Source: the loading scripts of wikitext and wikitext_document_level; the wikitext task of lm-evaluation-harness 0.4.13.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

TEST_ROWS = 4358
TEST_SHA256 = "173c87a53759e0201f33e0ccf978e510c2042d7f2cb78229d9a50d79b9e7dd08"
"""Lines and content of ``wiki.test.raw`` of wikitext-2-raw-v1, 1,290,590 bytes."""
_BLANK = " \n"
_DEGREE = "\N{DEGREE SIGN}"
_BEFORE = (
    ("s '", "s'"), (" @-@ ", "-"), (" @,@ ", ","), (" @.@ ", "."),
    (" : ", ": "), (" ; ", "; "), (" . ", ". "), (" ! ", "! "), (" ? ", "? "), (" , ", ", "),
)  # fmt: skip
_PAIRS = (("(", ")"), ("[", "]"), ("{", "}"), ('"', '"'), ("'", "'"))
_AFTER = (
    ("= = = =", "===="), ("= = =", "==="), ("= =", "=="), (f" {_DEGREE} ", _DEGREE),
    (" \n", "\n"), ("\n ", "\n"), (" N ", " 1 "), (" 's", "'s"),
)  # fmt: skip
_SLASHED = re.compile(r"/' [0-9]/")


def rows_of(raw: str) -> tuple[str, ...]:
    """The rows that the data set holds for a raw file: its lines with their newline, "" for a blank one."""
    lines = raw.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    kept = [f"{line}\n" for line in lines[:-1]] + ([lines[-1]] if lines[-1] else [])
    return tuple(line if line.strip() else "" for line in kept)


def raw_of(rows: Sequence[str]) -> str:
    """The raw file that the rows were made from."""
    return "".join(row or _BLANK for row in rows)


def pages_of(raw: str) -> tuple[str, ...]:
    """The articles of a raw file, each from its heading ``= Title =`` up to the next one."""
    pages: list[list[str]] = [[]]
    for line in raw.split("\n"):
        if _is_title(line):
            pages.append([])
        pages[-1].append(line)
    return tuple(page for page in map("\n".join, pages) if page.strip())


def _is_title(line: str) -> bool:
    merged = line.replace("= = =", "===").replace("= =", "==").strip()
    return merged.startswith("= ") and merged.endswith(" =")


def detokenised(page: str) -> str:
    """A page as the model reads it under lm-evaluation-harness, its oddities included. Time grows with the length."""
    text = _SLASHED.sub("/'[0-9]/", page.replace(*_BEFORE[0]))
    for old, new in _BEFORE[1:]:
        text = text.replace(old, new)
    for opening, closing in _PAIRS:
        text = _without_margins(text, opening, closing)
    for old, new in _AFTER:
        text = text.replace(old, new)
    return text


def _without_margins(text: str, opening: str, closing: str) -> str:
    """``text`` without the white space just inside each pair of brackets or quotes."""
    parts: list[str] = []
    done = 0
    while (start := text.find(opening, done)) >= 0 and (end := text.find(closing, start + 1)) >= 0:
        parts += (text[done : start + 1], text[start + 1 : end].strip(), closing)
        done = end + 1
    return "".join((*parts, text[done:]))
