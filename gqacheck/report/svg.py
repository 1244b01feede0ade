"""The head map as an SVG figure: every layer's query heads over the KV heads they read, beside what was kept.

On the left a checkpoint as it runs: a row of query heads in its own order, coloured by the KV head of the parent they
were trained with, over a bar in the colour of the KV head they read. Two colours in one block are heads in the wrong
place. On the right the parent's heads in the parent's order: coloured where kept, hollow where removed. Cutting whole
groups leaves holes that line up with the bar below; cutting off the last heads does not.
"""

from __future__ import annotations

from collections.abc import Sequence

from gqacheck.report.seats import rewritten
from gqacheck.report.svg_parts import (
    CROSSED,
    REMOVED,
    Strip,
    box,
    crosses,
    definitions,
    escaped,
    number,
    rings,
    shape,
    strip,
    style,
    words,
)
from gqacheck.report.svg_rows import Frame, Row, frame_for, row_parts, rows_of
from gqacheck.report.words import layers_words
from gqacheck.result import CheckpointReport, Report

MARK = 'data-gqacheck="head-map"'
"""Attribute by which a later run knows that the figure may be replaced."""
TITLE = "Head map: which KV head each query head reads"
MARGIN = 20
NARROWEST = 760
LETTER = 6.1
"""Mean width of a letter of running text in SVG units, on the generous side: nothing here can measure text."""
MAX_CAUSES = 3


def render_svg(report: Report) -> str:
    """The figures of all checkpoints, one under the other, as one SVG document."""
    if len(report.checkpoints) == 1:
        return head_map_svg(report.checkpoints[0])
    y, width, parts = 0.0, 0.0, []
    for position, checkpoint in enumerate(report.checkpoints):
        body, wide, high = _figure(checkpoint, f"gqm{position}")
        parts.append(f'<svg y="{number(y)}" width="{number(wide)}" height="{number(high)}">{body}</svg>')
        y, width = y + high, max(width, wide)
    paper = [style("gqm", 0, ()), definitions("gqm", 0, ()), shape("gqm", "paper", box(0, 0, width, y))]
    return _document("gqm", "\n".join([*paper, *parts]), width, y)


def head_map_svg(report: CheckpointReport, prefix: str = "gqm") -> str:
    """The figure of one checkpoint: a whole SVG document, the same bytes for the same report.

    ``prefix`` begins every id and class, so that several figures can stand in one HTML page. Without a lineage the
    figure says in words why there is nothing to draw.
    """
    return _document(prefix, *_figure(report, prefix))


def _document(p: str, body: str, width: float, height: float) -> str:
    size = f'width="{number(width)}" height="{number(height)}" viewBox="0 0 {number(width)} {number(height)}"'
    return f'<svg {MARK} xmlns="http://www.w3.org/2000/svg" class="{p}" role="img" {size}>\n{body}\n</svg>\n'


def _figure(report: CheckpointReport, p: str) -> tuple[str, float, float]:
    """What stands inside the document, with its width and height."""
    rows = rows_of(report.lineage)
    lines = _sentences(report, rows)
    top = 48.0 + 18 * len(lines)
    if not any(row.drawn for row in rows):
        frame = [style(p, 0, ()), definitions(p, 0, ()), *_head(p, lines, NARROWEST, top + MARGIN)]
        return "\n".join(frame), NARROWEST, top + MARGIN
    at = frame_for(rows, MARGIN, NARROWEST)
    legend, top = _legend(p, rows, at, top)
    key, top = _key(p, rows, at, top)
    height = top + at.pitch * len(rows) + MARGIN
    rulers = (("left", at.left, at.unit), ("right", at.right, at.unit))
    parts = [
        style(p, at.n_groups, [name for name, *_ in rulers]),
        definitions(p, at.n_groups, rulers),
        *_head(p, lines, at.width, height),
        *legend,
        *key,
        *("\n".join(row_parts(p, row, at, top + at.pitch * n)) for n, row in enumerate(rows)),
    ]
    return "\n".join(parts), at.width, height


def _head(p: str, lines: Sequence[tuple[str, str]], width: float, height: float) -> list[str]:
    """The title for screen readers and for the eye, and the sentences under it, on paper."""
    room = int((width - 2 * MARGIN) / LETTER)
    return [
        f"<title>{TITLE}</title><desc>{escaped('. '.join(text for text, _ in lines), 800)}</desc>",
        shape(p, "paper", box(0, 0, width, height)),
        words(p, MARGIN, 30, TITLE, "h"),
        *(words(p, MARGIN, 52 + 18 * n, text, kind, room) for n, (text, kind) in enumerate(lines)),
    ]


def _sentences(report: CheckpointReport, rows: Sequence[Row]) -> list[tuple[str, str]]:
    """What the figure shows, in words, each with its class."""
    lineage = report.lineage
    names = [(f"checkpoint: {report.path}", "dim")]
    if report.base is not None:
        names.append((f"base: {report.base.path}", "dim"))
    if lineage is None:
        return [(report.error or "no base was given (--base), so there is nothing to compare with", "b"), *names]
    if not rows:
        return [(f"not compared: {lineage.reason or 'no layer has a counterpart in the base'}", "b"), *names]
    lines = verdict_lines(rows)
    causes: dict[str, list[int]] = {}
    for row in rows:
        if row.layer.cause:
            causes.setdefault(row.layer.cause, []).append(row.layer.index)
    lines += [(f"cause in {layers_words(where)}: {cause}", "") for cause, where in list(causes.items())[:MAX_CAUSES]]
    where = rewritten(lineage, "o")
    if where:
        lines.append((f"o_proj was rewritten in {layers_words(where)}, which is no misalignment", ""))
    return [*lines, *names]


def verdict_lines(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """What is misplaced and where; that nothing is only when every head was told."""
    lines = []
    for counts, text in (
        ([row.tally.wrong for row in rows], "read a KV head that they were not trained with"),
        ([row.tally.moved_o for row in rows], "have the o_proj columns of another head"),
    ):
        where = [row for row, count in zip(rows, counts, strict=True) if count]
        if where:
            heads = sum(row.tally.heads for row in where)
            layers = layers_words([row.layer.index for row in where])
            lines.append((f"{sum(counts):,} of the {heads:,} query heads in {layers} {text}", "bad"))
    moved = [row.layer.index for row in rows if row.tally.moved_v]
    if moved:
        lines.append((f"v_proj holds other heads than k_proj in {layers_words(moved)}", "bad"))
    untold = [row.layer.index for row in rows if not row.seats or row.tally.unknown]
    if not lines and not untold:
        return [("every query head reads the KV head that it was trained with", "b")]
    if not lines:
        lines.append(("no query head was found to read a KV head that is not its own", "b"))
    if untold:
        lines.append((f"not everything could be told in {layers_words(untold)}", ""))
    return lines


def _legend(p: str, rows: Sequence[Row], at: Frame, top: float) -> tuple[list[str], float]:
    """The marks that this figure uses, each with its meaning, in lines as wide as the figure; and where they end."""
    unit = 12
    parts: list[str] = []
    x, y = float(MARGIN), top
    for kind, text in _marks(rows, at):
        wide = 4 * unit + 8 + len(text) * LETTER + 22
        if x > MARGIN and x + wide > at.width:
            x, y = float(MARGIN), y + 24
        parts += [
            *_sample(p, kind, Strip(x, y, unit, 12), narrow=at.unit < CROSSED),
            words(p, x + 4 * unit + 8, y + 13, text, "dim"),
        ]
        x += wide
    return parts, y + 34


def _marks(rows: Sequence[Row], at: Frame) -> list[tuple[str, str]]:
    marks = [("block", "query heads over the KV head that they read; of one colour: trained together")]
    if any(row.tally.wrong for row in rows):
        marks.append(("cross", "reads a KV head that it was not trained with"))
    if any(row.tally.moved_o for row in rows):
        marks.append(("ring", "its o_proj columns are another head's"))
    if any(row.tally.moved_v for row in rows):
        marks.append(("split", "v_proj (below) holds another head than k_proj"))
    if any(row.removes for row in rows):
        marks.append(("gone", "removed from the base"))
    if any(row.tally.unknown or not row.seats for row in rows):
        marks.append(("none", "matches nothing in the base, or was not compared"))
    if at.n_groups > 8:
        marks.append(("pattern", "patterns tell KV groups of one colour apart"))
    return marks


def _sample(p: str, kind: str, at: Strip, *, narrow: bool) -> list[str]:
    """A block of four cells that shows one mark, as it is drawn in ``narrow`` cells where those of the figure are."""
    shown: dict[str, list[int | None]] = {
        "cross": [1] * 4,
        "gone": [REMOVED] * 4,
        "none": [None] * 4,
        "pattern": [1, 1, 9, 9],
    }
    groups = shown.get(kind, [0] * 4)
    bar = {"gone": REMOVED, "none": None}.get(kind, 0)
    parts = strip(p, at, groups)
    under = Strip(at.x, at.y + at.height + 1, 4 * at.unit, 4)
    if kind == "split":
        parts += strip(p, Strip(under.x, under.y + 2, under.unit, 2), [5])
        under = Strip(under.x, under.y, under.unit, 2)
    if kind != "pattern":
        parts += strip(p, under, [bar])
    if kind == "cross":
        parts += crosses(p, Strip(at.x, at.y, at.unit / 2, at.height) if narrow else at, range(8 if narrow else 4))
    return parts + (rings(p, at, [1, 2]) if kind == "ring" else [])


def _key(p: str, rows: Sequence[Row], at: Frame, top: float) -> tuple[list[str], float]:
    """The headings, and the base's own heads with the names of its KV heads: the key to the colours."""
    whole = max((row for row in rows if row.layer.parent_group), key=lambda row: row.layer.parent_n_q or 0)
    group, n_kv = whole.layer.parent_group or 1, whole.layer.parent_n_kv or 0
    y = top + 22
    wide = at.unit * group
    step = max(1, -(-5 * len(f"k{n_kv - 1}") // int(wide)))
    parts = [
        words(p, at.left, top + 10, "this checkpoint, in its own order", "b"),
        words(p, at.right, top + 10, "the base: what was kept", "b"),
        words(p, at.right - 8, y + at.cell - 2, "base", "m end"),
        *strip(p, Strip(at.right, y, at.unit, at.cell), [head // group for head in range(n_kv * group)]),
        shape(p, "right", box(at.right, y, at.unit * n_kv * group, at.cell)),
        *strip(p, Strip(at.right, y + at.cell + 1, wide, 4), range(n_kv)),
        *(words(p, at.right + wide * (n + 0.5), y + at.cell + 14, f"k{n}", "s") for n in range(0, n_kv, step)),
    ]
    return parts, y + at.cell + 26
