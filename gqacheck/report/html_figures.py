"""Figures of the HTML report as inline SVG: columns per layer, and perplexities with their errors on a log scale.

Across, everything stands in percent and nothing is stretched; downwards in pixels. So a figure is as legible on a
telephone as on paper, and has no size to fit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gqacheck.report.html_elements import Element, Node, e
from gqacheck.report.words import layer_ranges

HIGH = 72
"""Pixels of the tallest column."""
ROW = 44
"""Pixels of one perplexity: its name and value, and the line that it stands on."""
MARGIN = 3.0
"""Percent that stay free at both ends of a scale."""


@dataclass(frozen=True, slots=True)
class Columns:
    """One number per layer. before: the same in the base, or None. shown: how a value is written."""

    title: str
    values: Mapping[int, float]
    before: Mapping[int, float] | None = None
    unit: str = ""

    def shown(self, value: float) -> str:
        """``24``, ``14,336``, ``82.6 %``."""
        return f"{value:,.1f} %" if self.unit == "%" else f"{value:,.0f}"


def columns(made: Columns, wrong: frozenset[int] = frozenset()) -> Element:
    """A column per layer over a paler one of the base; layers in ``wrong`` have errors and are marked."""
    layers = sorted(made.values)
    top = max([*made.values.values(), *(made.before or {}).values(), 1.0])
    step = 100 / max(1, len(layers))
    wide = step * (0.82 if len(layers) < 90 else 1.0)
    drawn: list[Node] = []
    for place, index in enumerate(layers):
        value, whole = made.values[index], (made.before or {}).get(index)
        x, high = place * step, HIGH * value / top
        parts: list[Node] = []
        if whole is not None:
            before = HIGH * whole / top
            parts.append(_bar("before", x, HIGH - before, wide, before))
        parts.append(_bar("wrong" if index in wrong else "now", x, HIGH - high, wide, max(high, 1.0)))
        told = f"layer {index}: {made.shown(value)}"
        told += f" (base {made.shown(whole)})" if whole is not None and whole != value else ""
        drawn.append(e("g", e("title", told), *parts))
    svg = e("svg", *drawn, class_="columns", width="100%", height=HIGH, role="img", aria_label=_in_words(made))
    low, high = min(made.values.values()), max(made.values.values())
    span = made.shown(high) if low == high else f"{made.shown(low).removesuffix(' %')} to {made.shown(high)}"
    return e(
        "figure",
        e("figcaption", e("b", made.title), e("span", span, class_="dim")),
        svg,
        e("div", *(e("span", name) for name in _ends(layers)), class_="ends", aria_hidden="true"),
        class_="small",
    )


def _bar(kind: str, x: float, y: float, width: float, height: float) -> Element:
    return e("rect", class_=kind, x=f"{x:.3f}%", y=f"{y:.1f}", width=f"{width:.3f}%", height=f"{height:.1f}", rx="1")


def _ends(layers: Sequence[int]) -> list[str]:
    return [f"layer {layers[0]}"] if len(layers) == 1 else [f"layer {layers[0]}", f"layer {layers[-1]}"]


def _in_words(made: Columns) -> str:
    """The figure for those who do not see it: ``query heads: 32 in layers 0-3; 24 in layers 4-28``."""
    alike: dict[str, list[int]] = {}
    for index, value in made.values.items():
        alike.setdefault(made.shown(value), []).append(index)
    each = [f"{value} in layers {layer_ranges(indices)}" for value, indices in list(alike.items())[:12]]
    more = f"; and {len(alike) - 12} more values" if len(alike) > 12 else ""
    return f"{made.title} per layer: {'; '.join(each)}{more}"


@dataclass(frozen=True, slots=True)
class Measured:
    """One perplexity: its name, the value with its standard error, and its text. kind is a class of the style sheet.

    partial: of a part of the text only, and drawn hollow.
    """

    name: str
    value: float
    text: str
    stderr: float | None = None
    kind: str = "now"
    partial: bool = False


def perplexities(rows: Sequence[Measured], guess: float | None, healthy: tuple[float, float] | None = None) -> Element:
    """Perplexities on one log scale, error bars of one standard error; a line where guessing blindly would stand."""
    values = [limit for row in rows for limit in _limits(row)]
    marks = [*values, *([guess] if guess else []), *(healthy or ())]
    low = math.floor(math.log10(min(marks)) - 0.05) if marks else 0
    high = math.ceil(math.log10(max(marks)) + 0.05) if marks else 1
    bottom = ROW * len(rows) + 4

    def x(value: float) -> str:
        share = (math.log10(value) - low) / max(1, high - low)
        return f"{MARGIN + share * (100 - 2 * MARGIN):.2f}%"

    drawn: list[Node] = []
    step = max(1, -(-(high - low) // 6))
    for power in range(low, high + 1):
        at = x(10.0**power)
        drawn.append(e("line", class_="grid", x1=at, x2=at, y1=0, y2=bottom))
        if (power - low) % step == 0:
            end = " first" if power == low else " last" if power == high else ""
            drawn.append(e("text", _power(power), class_=f"tick{end}", x=at, y=bottom + 14))
    if healthy:
        drawn.append(e("line", class_="healthy", x1=x(healthy[0]), x2=x(healthy[1]), y1=bottom - 1, y2=bottom - 1))
    if guess:
        drawn.append(e("line", class_="guess", x1=x(guess), x2=x(guess), y1=0, y2=bottom))
    for place, row in enumerate(rows):
        y = ROW * place + 32
        drawn.append(e("text", row.name, class_="name", x=0, y=y - 16))
        drawn.append(e("text", row.text, class_="value", x="100%", y=y - 16))
        drawn.append(e("line", class_="track", x1="0", x2="100%", y1=y, y2=y))
        inside = _limits(row)
        if len(inside) > 1:
            drawn.append(e("line", class_=f"error {row.kind}", x1=x(inside[0]), x2=x(inside[-1]), y1=y, y2=y))
        if inside:
            title = e("title", f"{row.name}: {row.text}")
            kind = f"{row.kind} hollow" if row.partial else row.kind
            drawn.append(e("circle", title, class_=kind, cx=x(row.value), cy=y, r=5))
    told = f"perplexity: {'; '.join(f'{row.name} {row.text}' for row in rows)}"
    return e("svg", *drawn, class_="scale", width="100%", height=bottom + 20, role="img", aria_label=told)


def _limits(row: Measured) -> list[float]:
    """What a row needs of the scale: the value and the ends of its error; [] when it has no place on one."""
    if not math.isfinite(row.value) or row.value <= 0 or row.value > 1e300:
        return []
    if row.stderr is None or not math.isfinite(row.stderr) or row.stderr <= 0:
        return [row.value]
    return [max(row.value - row.stderr, row.value / 10), row.value, min(row.value + row.stderr, 1e300)]


def _power(power: int) -> str:
    return f"{10**power:,}" if 0 <= power <= 6 else f"1e{power}"
