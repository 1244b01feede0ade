"""Text from files made safe to print: names in a checkpoint are data, never terminal commands."""

from __future__ import annotations

from collections.abc import Iterable


def printable(text: object, limit: int = 200) -> str:
    r"""``text`` on one line, at most ``limit`` characters, with everything that is not printable escaped.

    Control characters, ANSI sequences, line breaks, bidirectional overrides, zero-width characters and lone
    surrogates come out as ``\x1b``, ``\n``, ``\u202e``…; what is too long loses its middle::

        >>> printable("a\x1b[31mb")
        'a\\x1b[31mb'
    """
    shown = _elide(text if isinstance(text, str) else str(text), limit)
    if shown.isprintable():
        return shown
    return _elide("".join(c if c.isprintable() else _escape(c) for c in shown), limit)


def printable_list(items: Iterable[object], shown: int = 4, limit: int = 80) -> str:
    """``a, b, c and 12 more``: the first ``shown`` items, each printable, and how many were left out."""
    names = list(items)
    head = ", ".join(printable(name, limit) for name in names[:shown])
    return f"{head} and {len(names) - shown:,} more" if len(names) > shown else head


def _elide(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    tail = max(0, (limit - 1) // 3)
    return text[: limit - 1 - tail] + "…" + (text[-tail:] if tail else "")


def _escape(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")
