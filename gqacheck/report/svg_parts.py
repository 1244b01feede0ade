"""Pieces of the SVG figure: colours, patterns, escaped text, and strips of heads. Nothing here knows a checkpoint.

A KV group has one of eight colours and, from the ninth group on, also a pattern over it, so that 64 groups look
different and no two of them differ by hue alone to an eye that sees few hues.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gqacheck.text import printable

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#606060")
"""Source: Okabe and Ito, "Color universal design" (2008), with grey in the place of black; in an order in which
neighbours differ in lightness too."""
LIGHT_INK = frozenset((0, 7))
"""Colours so dark that what stands on them is white."""
CROSSED = 8
"""Narrowest cell, in SVG units, that a cross fits into; narrower ones are struck through."""
UNKNOWN = None
REMOVED = -1
_OVERLAYS = (
    "",
    "M0 1.5h5",
    "M1.5 0v5",
    "M-1 1l2-2M0 5l5-5M4 6l2-2",
    "M-1 4l2 2M0 0l5 5M4-1l2 2",
    "M0 2.5h5M2.5 0v5",
    "M0 5l5-5M0 0l5 5",
    "M1 2.5h3M1 1.5h3M1 3.5h3",
)
"""One tile of 5 x 5 units per pattern, drawn as lines."""


@dataclass(frozen=True, slots=True)
class Strip:
    """A row of equal cells: the corner, the width of one cell and the height, in SVG units."""

    x: float
    y: float
    unit: float
    height: float


def escaped(text: str, limit: int = 160) -> str:
    """``text`` as XML character data or inside an attribute: printable, of bounded length, nothing of it markup."""
    shown = printable(text, limit)
    for raw, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ('"', "&quot;"), ("'", "&#39;")):
        shown = shown.replace(raw, entity)
    return shown


def number(value: float) -> str:
    """A coordinate with at most two decimals."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def words(p: str, x: float, y: float, text: str, kind: str = "", limit: int = 160) -> str:
    """One line of text with its baseline at ``y``; ``kind`` names more classes, each without the prefix ``p``."""
    classes = " ".join(f"{p}-{name}" for name in ("t", *kind.split()))
    return f'<text class="{classes}" x="{number(x)}" y="{number(y)}">{escaped(text, limit)}</text>'


def shape(p: str, kind: str, path: str) -> str:
    """One path of a class."""
    return f'<path class="{p}-{kind}" d="{path}"/>'


def box(x: float, y: float, width: float, height: float) -> str:
    """The path of a rectangle."""
    return f"M{number(x)} {number(y)}h{number(width)}v{number(height)}h{number(-width)}z"


def strip(p: str, at: Strip, groups: Sequence[int | None], *, apart: bool = False) -> list[str]:
    """Cells coloured by KV group: ``UNKNOWN`` is hatched, ``REMOVED`` hollow.

    Neighbours of one group are one shape, unless ``apart``: then there is a gap after every cell.
    """
    found: dict[str, list[str]] = {}
    start, gap = 0, 1 if apart else 0
    for end in range(1, len(groups) + 1):
        if end < len(groups) and groups[end] == groups[start] and not apart:
            continue
        outline = box(at.x + start * at.unit, at.y, (end - start) * at.unit - gap, at.height)
        for kind in _kinds(groups[start]):
            found.setdefault(kind, []).append(outline)
        start = end
    return [shape(p, kind, "".join(outlines)) for kind, outlines in sorted(found.items())]


def _kinds(group: int | None) -> tuple[str, ...]:
    if group is UNKNOWN:
        return ("none",)
    if group == REMOVED:
        return ("gone",)
    colour, overlay = f"c{group % 8}", _overlay(group)
    return (colour, overlay) if overlay else (colour,)


def _overlay(group: int) -> str:
    """The class of the pattern over a group's colour, "" for the first eight groups. ``o`` sorts after ``c``."""
    which = group // 8 % len(_OVERLAYS)
    return f"o{which}{'w' if group % 8 in LIGHT_INK else 'k'}" if which else ""


def ink_on(group: int | None) -> str:
    """The class of a label that stands on a group's colour."""
    return "w" if group is not None and group % 8 in LIGHT_INK else "k"


def crosses(p: str, at: Strip, positions: Iterable[int]) -> list[str]:
    """A cross in each of these cells; where cells are too narrow for one, a line struck through them."""
    found = list(positions)
    if not found:
        return []
    middle = at.y + at.height / 2
    if at.unit < CROSSED:
        path = "".join(f"M{number(at.x + n * at.unit)} {number(middle)}h{number(at.unit)}" for n in found)
    else:
        size = min(at.unit, at.height) - 5
        path = "".join(
            f"M{number(at.x + (n + 0.5) * at.unit - size / 2)} {number(middle - size / 2)}"
            f"l{number(size)} {number(size)}m{number(-size)} 0l{number(size)} {number(-size)}"
            for n in found
        )
    return [shape(p, "halo", path), shape(p, "mark", path)]


def rings(p: str, at: Strip, positions: Iterable[int]) -> list[str]:
    """A ring in the upper right corner of each of these cells."""
    r = min(2.5, at.unit / 3)
    path = "".join(
        f"M{number(at.x + (n + 1) * at.unit - 2 * r - 0.5)} {number(at.y + r)}"
        f"a{number(r)} {number(r)} 0 1 0 {number(2 * r)} 0a{number(r)} {number(r)} 0 1 0 {number(-2 * r)} 0z"
        for n in positions
    )
    return [shape(p, "ring", path)] if path else []


def definitions(p: str, groups: int, rulers: Sequence[tuple[str, float, float]]) -> str:
    """The patterns: those over colours that ``groups`` KV groups need, the hatching, and thin lines between cells.

    A ruler is (name, x, width of a cell): what is filled with it gets a line at every multiple.
    """
    tiles = []
    for which in sorted({group // 8 % len(_OVERLAYS) for group in range(8, groups)} - {0}):
        for ink in "kw":
            tiles.append(
                f'<pattern id="{p}-o{which}{ink}" width="5" height="5" patternUnits="userSpaceOnUse">'
                f'<path class="{p}-i{ink}" d="{_OVERLAYS[which]}"/></pattern>'
            )
    tiles.append(
        f'<pattern id="{p}-none" width="5" height="5" patternUnits="userSpaceOnUse">'
        f'<path class="{p}-hatch" d="{_OVERLAYS[3]}"/></pattern>'
    )
    for name, x, unit in rulers:
        line = f'<path class="{p}-line" d="M0 0v8" stroke-width="{1.6 if unit > 8 else 0.9}"/>'
        size = f'x="{number(x)}" width="{number(unit)}" height="8" patternUnits="userSpaceOnUse"'
        tiles.append(f'<pattern id="{p}-{name}" {size}>{line}</pattern>')
    return f"<defs>{''.join(tiles)}</defs>"


def style(p: str, groups: int, rulers: Sequence[str]) -> str:
    """The style sheet, light and dark. Every selector begins with ``p``: inside a page it touches nothing else."""
    mono = "ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace"
    rules = [
        f".{p}{{max-width:100%;height:auto}}",
        f".{p}-paper{{fill:#fff}}",
        f".{p}-t{{font:11px system-ui,-apple-system,'Segoe UI','DejaVu Sans',sans-serif;fill:#1f2328}}",
        f".{p}-h{{font-size:15px;font-weight:600}}",
        f".{p}-b{{font-weight:600}}",
        f".{p}-dim{{fill:#59636e}}",
        f".{p}-bad{{fill:#b3261e;font-weight:600}}",
        f".{p}-m{{font-family:{mono};font-size:10px}}",
        f".{p}-s{{font-family:{mono};font-size:8px;text-anchor:middle}}",
        f".{p}-end{{text-anchor:end}}",
        f".{p}-k{{fill:#000}}.{p}-w{{fill:#fff}}",
        *(f".{p}-c{n}{{fill:{colour}}}" for n, colour in enumerate(COLOURS)),
        *(
            f".{p}-o{which}{ink}{{fill:url(#{p}-o{which}{ink})}}"
            for which in range(1, len(_OVERLAYS))
            for ink in "kw"
            if groups > 8 * which
        ),
        f".{p}-ik{{stroke:#000;stroke-opacity:.4;stroke-width:1.1;fill:none}}",
        f".{p}-iw{{stroke:#fff;stroke-opacity:.5;stroke-width:1.1;fill:none}}",
        f".{p}-none{{fill:url(#{p}-none);stroke:#8c959f;stroke-width:.8}}",
        f".{p}-hatch{{stroke:#8c959f;stroke-width:1;fill:none}}",
        f".{p}-gone{{fill:#f3f4f6;stroke:#c5cbd3;stroke-width:.8}}",
        *(f".{p}-{name}{{fill:url(#{p}-{name})}}" for name in rulers),
        f".{p}-line{{stroke:#fff;fill:none}}",
        f".{p}-halo{{stroke:#fff;stroke-width:2.8;stroke-opacity:.85;fill:none}}",
        f".{p}-mark{{stroke:#000;stroke-width:1.4;fill:none}}",
        f".{p}-ring{{stroke:#000;stroke-width:1.2;fill:#fff}}",
    ]
    dark = [
        f".{p}-paper{{fill:#15181d}}",
        f".{p}-t{{fill:#e6edf3}}",
        f".{p}-dim{{fill:#9aa5b1}}",
        f".{p}-bad{{fill:#ff8a80}}",
        f".{p}-k{{fill:#000}}.{p}-w{{fill:#fff}}",
        f".{p}-line{{stroke:#15181d}}",
        f".{p}-none,.{p}-hatch{{stroke:#6e7681}}",
        f".{p}-gone{{fill:#20252c;stroke:#444c56}}",
    ]
    return f"<style>{''.join(rules)}@media (prefers-color-scheme:dark){{{''.join(dark)}}}</style>"
