"""The head map of the text report: for one layer each KV position, what it holds, and which query heads read it."""

from __future__ import annotations

from collections.abc import Sequence

from gqacheck.geometry.origins import LayerOrigin, Lineage
from gqacheck.report.document import Block, Cell, Grid, Line, Span, cell_text, line
from gqacheck.report.seats import Seat, runs, seats, tally
from gqacheck.report.words import layers_words, plural

MAP_CODES = ("GQA601", "GQA608", "GQA602", "GQA603")
"""Rules that show the map, once: under the first of them that fired."""
MAP_WIDTH = 79
"""Columns: narrower than the usual terminal, which then need not break it."""
INDENT = 10
MAX_BANDS = 2
LONGEST_CELL = 24
MAX_OTHERS = 4
"""Lines on further layers; more are one line."""


def head_map_blocks(lineage: Lineage, layers: Sequence[int]) -> list[Block]:
    """The map of the first of ``layers`` that has something misplaced, and a line on each group of the others."""
    maps = {layer.index: (layer, made) for layer in lineage.layers if layer.index in layers and (made := seats(layer))}
    wrong = [index for index, (_, made) in maps.items() if not tally(made).clean]
    if not wrong:
        return []
    first, made = maps[wrong[0]]
    alike: dict[object, list[int]] = {}
    for index in wrong:
        alike.setdefault(_key(maps[index][1]), []).append(index)
    same, *others = alike.values()
    each = ", the same in each" if len(same) > 1 else ""
    blocks: list[Block] = [
        line(f"{layers_words(same)}{each}; heads by their number in the parent{_rewritten(first)}", label=_label("map"))
    ]
    blocks += _bands(made)
    blocks += _others([(indices, maps[indices[0]][1]) for indices in others])
    return blocks


def _key(made: Sequence[Seat]) -> object:
    return tuple((seat.kv, seat.v_head, tuple((r.head, r.wrong, r.o_head) for r in seat.readers)) for seat in made)


def _label(name: str) -> tuple[str, Span]:
    return "  ", Span(f"{name:7} ", "dim")


def _rewritten(layer: LayerOrigin) -> str:
    return "; o_proj was rewritten" if layer.o is not None and layer.o.state == "rewritten" else ""


def _bands(made: Sequence[Seat]) -> list[Block]:
    """The positions as columns, folded; of very many the part that begins beside the first wrong one."""
    columns = [_column(seat, made) for seat in made]
    names = _names(made)
    room = MAP_WIDTH - INDENT - max(map(len, names))
    begin = 0
    if len(_fold(columns, room)) > MAX_BANDS:
        begin = max(0, next((seat.position for seat in made if seat.wrong or seat.v_head is not None), 0) - 1)
    folded = _fold(columns[begin:], room)
    blocks: list[Block] = [_grid(names, band) for band in folded[:MAX_BANDS]]
    shown = range(begin, begin + sum(map(len, folded[:MAX_BANDS])))
    left = [seat for seat in made if seat.position not in shown]
    if left:
        n = tally(left)
        where = runs(seat.position for seat in left).replace(",", ", ")
        blocks.append(_under(f"positions {where}: {n.wrong} of {plural(n.heads, 'query head')} misread"))
    return blocks


def _names(made: Sequence[Seat]) -> list[str]:
    names = ["position", "KV head", "its q heads", "trained on", "pairing"]
    if any(seat.v_head is not None for seat in made):
        names.insert(2, "v_proj has")
    if any(reader.o_head is not None for seat in made for reader in seat.readers):
        names.insert(-2, "o_proj has")
    return names


def _column(seat: Seat, made: Sequence[Seat]) -> tuple[Cell, ...]:
    """The cells of one position, one for each of ``_names``."""
    readers = seat.readers
    cells: list[Cell] = [str(seat.position), _kv(seat.kv), _heads([reader.head for reader in readers])]
    if any(other.v_head is not None for other in made):
        moved = seat.v_head is not None
        cells.insert(2, Span(f"{_kv(seat.v_head)} x", "error") if moved else _kv(seat.kv))
    if any(reader.o_head is not None for other in made for reader in other.readers):
        moved = any(reader.o_head is not None for reader in readers)
        text = _heads([reader.head if reader.o_head is None else reader.o_head for reader in readers])
        cells.append(Span(f"{text} x", "error") if moved else text)
    owners = dict.fromkeys(reader.own for reader in readers if reader.own is not None)
    cells.append(",".join(_kv(own) for own in owners) or "?")
    cells.append(_pairing(seat))
    return tuple(cells)


def _pairing(seat: Seat) -> Span:
    n = len(seat.readers)
    if seat.wrong:
        return Span("x" if seat.wrong == n else f"x {seat.wrong}/{n}", "error")
    if seat.unknown:
        return Span("?" if seat.unknown == n else f"? {seat.unknown}/{n}", "unknown")
    return Span("ok", "ok")


def _kv(number: int | None) -> str:
    return "?" if number is None else f"k{number}"


def _heads(heads: Sequence[int | None]) -> str:
    """``0-3``, ``0,2,5``, ``4-6,?``."""
    known = runs(head for head in heads if head is not None)
    text = ",".join(part for part in (known, "?" if None in heads else "") if part)
    return text if len(text) <= LONGEST_CELL else f"{text[:LONGEST_CELL].rpartition(',')[0]},… ({len(heads)})"


def _fold(columns: Sequence[tuple[Cell, ...]], room: int) -> list[list[tuple[Cell, ...]]]:
    """The columns in bands that are each at most ``room`` wide, two spaces before every column."""
    bands: list[list[tuple[Cell, ...]]] = []
    used = 0
    for column in columns:
        width = 2 + max(len(cell_text(cell)) for cell in column)
        if not bands or used + width > room:
            bands.append([])
            used = 0
        bands[-1].append(column)
        used += width
    return bands


def _grid(names: Sequence[str], band: Sequence[tuple[Cell, ...]]) -> Grid:
    header, *rows = ((name, *(column[row] for column in band)) for row, name in enumerate(names))
    return Grid(tuple(str(cell) for cell in header), tuple(rows), indent=INDENT)


def _others(groups: Sequence[tuple[list[int], tuple[Seat, ...]]]) -> list[Block]:
    """What is said of the layers whose map is another one."""
    if not groups:
        return []
    if len(groups) <= MAX_OTHERS:
        return [_under(f"{layers_words(indices)}: {_counts([made])}; {_holds(made)}") for indices, made in groups]
    indices = [index for group, _ in groups for index in group]
    return [_under(f"{layers_words(indices)}: {_counts([made for _, made in groups])}, in {len(groups)} other maps")]


def _counts(maps: Sequence[Sequence[Seat]]) -> str:
    """``20 of 24 query heads misread``, over several maps ``16 to 20 of 24 …``."""
    made = [tally(one) for one in maps]
    words = [f"{_span([n.wrong for n in made])} of {_span([n.heads for n in made])} query heads misread"]
    for counts, text in (
        ([n.unknown for n in made], "not told"),
        ([n.moved_o for n in made], "with o_proj columns of another"),
        ([n.moved_v for n in made], "v heads beside another k head"),
    ):
        if any(counts):
            words.append(f"{_span(counts)} {text}")
    return ", ".join(words)


def _span(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low} to {high}"


def _holds(made: Sequence[Seat]) -> str:
    kept = [seat.kv for seat in made if seat.kv is not None]
    return f"KV heads {runs(kept).replace(',', ', ')}" if kept else "no KV head told"


def _under(text: str) -> Line:
    return line(text, label=" " * INDENT)
