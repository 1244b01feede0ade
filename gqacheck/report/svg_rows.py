"""One row of the SVG head map per layer: the checkpoint's heads, the base's, and what is wrong in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gqacheck.geometry.origins import Heads, LayerOrigin, Lineage
from gqacheck.report.seats import Seat, Tally, runs, seats, tally
from gqacheck.report.svg_parts import REMOVED, UNKNOWN, Strip, box, crosses, escaped, ink_on, rings, shape, strip, words

MANY_LAYERS = 64
"""From here on rows are thinner."""
PANEL = 448
"""SVG units that a panel of heads aims at."""
LEAST_PANEL = 230
"""Room for the heading of a panel of few heads."""
DIGIT = 5.0
"""Width of a character of a label inside a bar."""
LONGEST_REMARK = 46


@dataclass(frozen=True, slots=True)
class Row:
    """One layer of the figure with its map."""

    layer: LayerOrigin
    seats: tuple[Seat, ...]
    tally: Tally

    @property
    def drawn(self) -> bool:
        """Whether there is anything to colour."""
        layer = self.layer
        return bool(layer.parent_group and layer.q is not None and layer.q.told)

    @property
    def kept(self) -> frozenset[int]:
        """The base's query heads that are in the checkpoint."""
        if self.seats:
            return frozenset(r.head for seat in self.seats for r in seat.readers if r.head is not None)
        return _heads_of(self.layer.q)

    @property
    def kept_kv(self) -> frozenset[int]:
        """The base's KV heads that are in the checkpoint."""
        if self.seats:
            return frozenset(seat.kv for seat in self.seats if seat.kv is not None)
        return _heads_of(self.layer.k)

    @property
    def all_told(self) -> bool:
        """Whether every query head has its origin, so that those of the base that were not seen are gone."""
        return bool(self.drawn and self.layer.q and all(origin.head is not None for origin in self.layer.q.origins))

    @property
    def all_kv_told(self) -> bool:
        """The same of the KV heads."""
        k = self.layer.k
        return bool(k is not None and k.told and all(origin.head is not None for origin in k.origins))

    @property
    def removes(self) -> bool:
        """Whether a head of the base is certainly missing."""
        return self.all_told and len(self.kept) < (self.layer.parent_n_q or 0)


def _heads_of(heads: Heads | None) -> frozenset[int]:
    if heads is None or not heads.told:
        return frozenset()
    return frozenset(origin.head for origin in heads.origins if origin.head is not None)


@dataclass(frozen=True, slots=True)
class Frame:
    """Where everything stands, in SVG units: the panels, a cell, the bar under it, the pitch of the rows.

    labels: whether the bars are wide enough for the names of their KV heads.
    """

    unit: float
    cell: float
    bar: float
    pitch: float
    left: float
    right: float
    remarks: float
    width: float
    labels: bool
    n_groups: int


def rows_of(lineage: Lineage | None) -> list[Row]:
    """The layers of a lineage that was compared, each with its map."""
    if lineage is None or not lineage.compared:
        return []
    return [Row(layer, made, tally(made)) for layer in lineage.layers for made in [seats(layer)]]


def frame_for(rows: Sequence[Row], margin: float, narrowest: float) -> Frame:
    """A frame for these rows: cells of 5 to 22 units by the number of heads, thin rows for very many layers."""
    mine = max(max(_n_positions(row.layer) for row in rows), 1)
    theirs = max(max(row.layer.parent_n_q or 0 for row in rows), 1)
    n_groups = max(max(row.layer.parent_n_kv or 0 for row in rows), 1)
    unit = float(max(5, min(22, PANEL // max(mine, theirs))))
    many = len(rows) > MANY_LAYERS
    shortest = min((row.layer.group or 1 for row in rows if row.seats), default=1) * unit
    labels = not many and shortest >= DIGIT * len(f"k{n_groups - 1}") + 2
    cell, bar = (8.0, 3.0) if many else (12.0, 10.0 if labels else 5.0)
    left = margin + 62
    moved = any(row.layer.parent not in (None, row.layer.index) for row in rows)
    right = left + max(mine * unit, LEAST_PANEL) + (74 if moved else 56)
    remarks = right + max(theirs * unit, LEAST_PANEL) + 14
    room = 6.1 * max(min(len(remark_of(row)[0]), LONGEST_REMARK) for row in rows)
    width = max(narrowest, remarks + room + margin)
    return Frame(unit, cell, bar, cell + bar + (3 if many else 6), left, right, remarks, width, labels, n_groups)


def _n_positions(layer: LayerOrigin) -> int:
    return max(layer.n_q or 0, len(layer.q.origins) if layer.q else 0)


def row_parts(p: str, row: Row, at: Frame, y: float) -> list[str]:
    """The elements of one layer, whose upper edge is ``y``."""
    layer = row.layer
    base = y + at.cell - (0 if at.cell < 10 else 2)
    text, kind = remark_of(row)
    parts = [f"<g><title>{escaped(_spoken(row), 400)}</title>"]
    parts.append(words(p, at.left - 8, base, f"layer {layer.index}", "m end"))
    parts += _mine(p, row, at, y)
    if layer.parent is not None and layer.parent != layer.index:
        parts.append(words(p, at.right - 8, base, f"from {layer.parent}", "m end"))
    parts += _theirs(p, row, at, y)
    if text:
        parts.append(words(p, at.remarks, base, text, kind, LONGEST_REMARK))
    return [*parts, "</g>"]


def _mine(p: str, row: Row, at: Frame, y: float) -> list[str]:
    """The checkpoint's heads in its order, over what they read."""
    cells = Strip(at.left, y, at.unit, at.cell)
    under = y + at.cell + 1
    n = _n_positions(row.layer)
    if not row.seats:
        owners = _owners(row.layer)
        whole = Strip(at.left, under, at.unit * n, at.bar)
        return [*strip(p, cells, owners), _ruled(p, "left", at, y, n), *strip(p, whole, [None])] if n else []
    readers = [reader for seat in row.seats for reader in seat.readers]
    wide = at.unit * (row.layer.group or 1)
    parts = strip(p, cells, [reader.own for reader in readers])
    parts.append(_ruled(p, "left", at, y, n))
    parts += _bar(p, row, Strip(at.left, under, wide, at.bar))
    if at.labels:
        for seat in row.seats:
            if seat.kv is not None:
                middle = at.left + wide * (seat.position + 0.5)
                parts.append(words(p, middle, under + at.bar - 2, f"k{seat.kv}", f"s {ink_on(seat.kv)}"))
    parts += crosses(p, cells, [reader.position for reader in readers if reader.wrong])
    return parts + rings(p, cells, [reader.position for reader in readers if reader.o_head is not None])


def _bar(p: str, row: Row, at: Strip) -> list[str]:
    """The KV heads under their readers; where v is another head than k, the lower half of the bar is v's."""
    parts = strip(p, at, [seat.kv for seat in row.seats], apart=True)
    for seat in row.seats:
        if seat.v_head is not None:
            half = Strip(at.x + at.unit * seat.position, at.y + at.height / 2, at.unit, at.height / 2)
            parts += strip(p, half, [seat.v_head])
    return parts


def _theirs(p: str, row: Row, at: Frame, y: float) -> list[str]:
    """The base's heads in its order: coloured where kept; hollow where removed, which only a row told in full shows."""
    layer = row.layer
    group, n_kv = layer.parent_group, layer.parent_n_kv or 0
    if not row.drawn or group is None:
        return []
    kept, kept_kv = row.kept, row.kept_kv
    gone, gone_kv = REMOVED if row.all_told else UNKNOWN, REMOVED if row.all_kv_told else UNKNOWN
    heads = [head // group if head in kept else gone for head in range(n_kv * group)]
    bars = [kv if kv in kept_kv else gone_kv for kv in range(n_kv)]
    return [
        *strip(p, Strip(at.right, y, at.unit, at.cell), heads),
        _ruled(p, "right", at, y, n_kv * group),
        *strip(p, Strip(at.right, y + at.cell + 1, at.unit * group, at.bar), bars, apart=True),
    ]


def _owners(layer: LayerOrigin) -> list[int | None]:
    """The KV head that each position was trained with, where the layer's pairing cannot be told."""
    if layer.q is None or not layer.q.told or not layer.parent_group:
        return [None] * _n_positions(layer)
    return [None if origin.head is None else layer.own_kv(origin.head) for origin in layer.q.origins]


def _ruled(p: str, name: str, at: Frame, y: float, n: int) -> str:
    """Thin lines between ``n`` cells of a panel."""
    return shape(p, name, box(at.left if name == "left" else at.right, y, at.unit * n, at.cell))


def remark_of(row: Row) -> tuple[str, str]:
    """What is wrong in this layer, or why it was not told, with its class."""
    counts = row.tally
    if not row.seats:
        return _untold(row.layer), "dim"
    found = []
    if counts.wrong:
        found.append(f"{counts.wrong} of {counts.heads} misread")
    if counts.moved_o:
        found.append(f"{counts.moved_o} o_proj moved")
    if counts.moved_v:
        found.append(f"{counts.moved_v} v moved")
    if found:
        return ", ".join(found), "bad"
    return (f"{counts.unknown} of {counts.heads} not told", "dim") if counts.unknown else ("", "")


def _untold(layer: LayerOrigin) -> str:
    """Why the pairing of a layer cannot be told."""
    parts = [heads for heads in (layer.q, layer.k) if heads is not None and not heads.told]
    for heads in parts:
        if heads.reason:
            return heads.reason
    if layer.not_compared:
        return layer.not_compared[0]
    if parts:
        return f"{parts[0].role}_proj {parts[0].state.replace('-', ' ')}"
    if layer.n_q and layer.n_kv and layer.group is None:
        return f"{layer.n_q} query heads over {layer.n_kv} KV heads"
    return "not compared"


def _spoken(row: Row) -> str:
    """The row in words, for a pointer that rests on it and for screen readers."""
    text, _ = remark_of(row)
    if not row.seats:
        return f"layer {row.layer.index}: {text}"
    each = "; ".join(
        f"k{'?' if seat.kv is None else seat.kv} is read by query heads "
        + (runs(r.head for r in seat.readers if r.head is not None) or "?")
        for seat in row.seats
    )
    return f"layer {row.layer.index}: {text or 'every query head reads its own KV head'}. {each}"
