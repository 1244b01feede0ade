"""HTML and SVG elements as values. Every text and attribute is escaped here and nowhere else; there is no way around it
but ``Markup``, which holds what this package drew itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

from gqacheck.text import printable

OPENING = '<!doctype html>\n<html lang="en" data-gqacheck="report">'
"""How every report begins, by which a later run knows that it may be replaced."""
LONGEST = 1500
"""Characters of one text: longer than any honest message."""
_EMPTY = frozenset(("meta", "br", "wbr", "hr"))
_HARMLESS = frozenset(
    ("class", "id", "lang", "dir", "role", "scope", "colspan", "open", "title", "tabindex", "charset", "name",
     "content", "http-equiv", "data-gqacheck", "width", "height", "x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "r",
     "rx")
)  # fmt: skip
"""Attributes that can neither run nor load anything; ``aria-*`` and links inside the page are let through as well."""


@dataclass(frozen=True, slots=True)
class Markup:
    """Markup made by this package from nothing but escaped parts: the style sheet and the head map."""

    text: str


@dataclass(frozen=True, slots=True)
class Element:
    """One element with its attributes and children; ``written`` makes it text."""

    name: str
    attributes: tuple[tuple[str, str], ...] = ()
    children: tuple[Node, ...] = ()


Node: TypeAlias = Element | Markup | str | None
"""None is nothing: a part that is not there."""


def e(name: str, /, *children: Node | Iterable[Node], **attributes: str | float | bool | None) -> Element:
    """An element. ``class_`` is ``class``, ``aria_label`` is ``aria-label``; None and False leave an attribute out.

    Raises ValueError for an attribute that could run or load something, which is a mistake of the caller.
    """
    made = []
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        attribute = key.rstrip("_").replace("_", "-")
        text = "" if value is True else f"{value:g}" if isinstance(value, float) else str(value)
        inside = attribute == "href" and text.startswith("#")
        if not (inside or attribute in _HARMLESS or attribute.startswith("aria-")):
            raise ValueError(f"no report has an attribute {attribute}={text[:60]!r}")
        made.append((attribute, text))
    if name in ("script", "iframe", "object", "embed", "link", "form", "base", "img"):
        raise ValueError(f"no report has an element {name}")
    return Element(name, tuple(made), tuple(_flat(children)))


def _flat(children: Iterable[Node | Iterable[Node]]) -> Iterable[Node]:
    for child in children:
        if child is None or isinstance(child, (Element, Markup, str)):
            yield child
        else:
            yield from child


def code(text: object, limit: int = 200) -> Element:
    """A name of the checkpoint, in the typeface of code, in its own direction of writing, that may break anywhere."""
    return e("code", printable(text, limit), dir="auto")


def written(node: Node) -> str:
    """The node as ASCII: what it holds reads the same in every encoding."""
    parts: list[str] = []
    _write(node, parts)
    return "".join(parts).encode("ascii", "xmlcharrefreplace").decode("ascii")


def _write(node: Node, parts: list[str]) -> None:
    if node is None:
        return
    if isinstance(node, str):
        parts.append(_escaped(node))
        return
    if isinstance(node, Markup):
        parts.append(node.text)
        return
    attributes = "".join(f' {name}="{_escaped(value)}"' for name, value in node.attributes)
    parts.append(f"<{node.name}{attributes}>")
    for child in node.children:
        _write(child, parts)
    if node.name not in _EMPTY:
        parts.append(f"</{node.name}>")


def _escaped(text: str) -> str:
    """``text`` as character data or inside a quoted attribute: printable, on one line, of bounded length."""
    shown = printable(text, LONGEST)
    for raw, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ('"', "&quot;"), ("'", "&#39;")):
        shown = shown.replace(raw, entity)
    return shown
