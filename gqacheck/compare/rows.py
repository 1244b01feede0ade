"""The table as labelled rows of short cells, the same for every rendering, and the sentences that stand below it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from gqacheck.compare.facts import Cell, Column, LayerSizes, ReadingRow, Speed, Table, Texts
from gqacheck.report.document import Span, Style
from gqacheck.report.words import bytes_words, layer_ranges, scaled
from gqacheck.rules.perplexity import perplexity_text

MOST_SHAPES = 6
"""Lines that the heads or the widths of one column take; more are summed up."""
WIDEST = 24
"""Characters of such a line; where layers are too scattered for it, their number stands instead."""
_VERDICTS: dict[str, tuple[str, Style]] = {
    "pass": ("PASS", "ok"),
    "fail": ("FAIL", "error"),
    "error": ("COULD NOT CHECK", "unknown"),
}
_UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Row:
    """One measure. cells: the lines of every column's cell, () for nothing. A label with two spaces before it belongs
    to the row above."""

    label: str
    cells: tuple[tuple[Span, ...], ...]


def rows(table: Table) -> tuple[Row, ...]:
    """The rows of the table, in the order in which they are shown."""
    return tuple(_rows(table))


def _rows(table: Table) -> Iterator[Row]:
    columns = table.columns
    base = columns[table.base] if table.base is not None else None
    yield _row("verdict", columns, _verdict)
    if any(column.missing for column in columns):
        yield _row("NOT MEASURED", columns, lambda c: [Span(what, "unknown") for what in c.missing])
    if any(column.errors for column in columns):
        yield _row("errors", columns, _errors)
    yield _row("parameters", columns, lambda c: _amount(c.parameters, scaled))
    if base is not None:
        yield _row("  of the base", columns, lambda c: _share(c, c.parameters, base.parameters))
    yield _row("size of the files", columns, lambda c: _amount(c.file_bytes, bytes_words))
    if base is not None:
        yield _row("  of the base", columns, lambda c: _share(c, c.file_bytes, base.file_bytes))
    yield _row("layers", columns, lambda c: _amount(None if c.layers is None else len(c.layers), str))
    yield _row("q:kv heads", columns, lambda c: _shapes(c.layers, _heads, "counts"))
    yield _row("MLP width", columns, lambda c: _shapes(c.layers, _width, "widths"))
    if len({column.run_as for column in columns if column.run_as}) > 1:
        yield _row("run in", columns, lambda c: (c.run_as,) if c.run_as else ())
    for number, row in enumerate(table.readings, 1):
        yield from _reading_rows(row, number)
    for number, made in enumerate(table.texts, len(table.readings) + 1):
        yield Row(f"flagged texts [{number}]", tuple(_flagged(one) for one in made.cells))
        yield Row("  mean rep-4", tuple(() if t is None else _spans(_two(t.rep_4)) for t in made.cells))
    if table.speed is not None:
        number = len(table.readings) + len(table.texts) + 1
        beside = f"  of {columns[table.speed.reference].name}"
        cells = [one if one is not None else Speed((), ()) for one in table.speed.cells]
        yield Row(f"prefill tok/s [{number}]", tuple(_rate(one.prefill) for one in cells))
        yield Row(beside, tuple(_times(one.prefill_ratio) for one in cells))
        yield Row(f"decode tok/s [{number}]", tuple(_rate(one.decode) for one in cells))
        yield Row(beside, tuple(_times(one.decode_ratio) for one in cells))


def _row(label: str, columns: Sequence[Column], cell: Callable[[Column], Sequence[str | Span]]) -> Row:
    return Row(label, tuple(_spans(*cell(column)) for column in columns))


def _spans(*lines: str | Span) -> tuple[Span, ...]:
    return tuple(one if isinstance(one, Span) else Span(one) for one in lines)


def _verdict(column: Column) -> tuple[Span, ...]:
    word, style = _VERDICTS.get(column.verdict, (_UNKNOWN, "unknown"))
    code = "" if column.exit_code is None else f" (exit {column.exit_code})"
    return (Span(word + code if len(word) < 8 else word, style),)


def _errors(column: Column) -> tuple[str, ...]:
    shown = column.errors if len(column.errors) <= MOST_SHAPES else column.errors[: MOST_SHAPES - 1]
    left = len(column.errors) - len(shown)
    return (*shown, *((f"and {left:,} more",) if left else ()))


def _amount(value: int | None, words: Callable[[int], str]) -> tuple[str]:
    return (_UNKNOWN if value is None else words(value),)


def _share(column: Column, value: int | None, base: int | None) -> tuple[str, ...]:
    if column.is_base or value is None or not base:
        return ()
    return (f"{_percent(100 * (value / base))} %",)


def _percent(value: float) -> str:
    return f"{value:.1f}" if value < 1e5 else f"{value:.1e}"


def _shapes(layers: Sequence[LayerSizes] | None, words: Callable[[LayerSizes], str], noun: str) -> tuple[str, ...]:
    """``24:6 in 4-28``, one line each; ``32:8`` where all layers are alike; the range where there are too many."""
    if layers is None:
        return (_UNKNOWN,)
    found: dict[str, list[int]] = {}
    for layer in layers:
        found.setdefault(words(layer), []).append(layer.index)
    if len(found) == 1:
        return (next(iter(found)),)
    lines = [f"{shape} in {layer_ranges(indices)}" for shape, indices in found.items()]
    if len(lines) <= MOST_SHAPES and all(len(line) <= WIDEST for line in lines):
        return tuple(lines)
    counted = sorted(found.items(), key=lambda item: -len(item[1]))
    most = [f"{shape} ×{len(indices)}" for shape, indices in counted[: MOST_SHAPES - 1]]
    left = len(found) - len(most)
    return (*most, *((f"{left:,} other {noun}",) if left else ()))


def _heads(layer: LayerSizes) -> str:
    if layer.attention not in ("full", _UNKNOWN):
        return layer.attention
    return ":".join("?" if n is None else str(n) for n in (layer.n_q_heads, layer.n_kv_heads))


def _width(layer: LayerSizes) -> str:
    if layer.mlp in ("dropped", "absent"):
        return layer.mlp
    width = "?" if layer.intermediate_size is None else str(layer.intermediate_size)
    return f"{layer.n_experts}x{width}" if layer.n_experts else width


def _reading_rows(row: ReadingRow, number: int) -> Iterator[Row]:
    cells = row.cells
    name = row.corpus.rpartition("/")[2].strip() or row.corpus
    name = name if len(name) <= 16 else f"{name[:7]}…{name[-8:]}"
    yield Row(f"PPL {name} [{number}]", tuple(() if one is None else _spans(value_words(one)) for one in cells))
    if any(one is not None and one.reading.not_comparable for one in cells):
        yield Row("  NOT COMPARABLE", tuple(_why_not(one) for one in cells))
    if any(one is not None and one.reading.bits_per_byte is not None for one in cells):
        yield Row("  bits per byte", tuple(_bits(one) for one in cells))
    if any(one is not None and (one.ratio is not None or one.no_ratio) for one in cells):
        yield Row("  of the base", tuple(() if one is None else _spans(*_ratio(one)) for one in cells))


def value_words(cell: Cell) -> str:
    """``12.34 ± 0.41``."""
    value, error = cell.reading.value, cell.reading.stderr
    if value is None:
        return _UNKNOWN
    return perplexity_text(value) + ("" if error is None else f" ± {perplexity_text(error)}")


def _bits(cell: Cell | None) -> tuple[Span, ...]:
    bits = None if cell is None else cell.reading.bits_per_byte
    return () if bits is None else (Span(f"{bits:.4f}" if bits < 1e5 else f"{bits:.1e}"),)


def _why_not(cell: Cell | None) -> tuple[Span, ...]:
    return (Span(cell.reading.not_comparable, "warning"),) if cell is not None and cell.reading.not_comparable else ()


def _ratio(cell: Cell) -> tuple[str, ...]:
    if cell.ratio is None:
        return (cell.no_ratio,) if cell.no_ratio else ()
    return (ratio_words(cell.ratio.value, cell.ratio.stderr) + ("*" if cell.ratio.left_out else ""),)


def ratio_words(value: float, stderr: float | None = None) -> str:
    """``×1.21 ± 0.02``, ``×50,821``."""
    known = stderr is not None and math.isfinite(stderr)
    error = f" ± {_two(stderr) if value < 100 else f'{stderr:,.0f}'}" if known else ""
    return f"×{_two(value)}{error}"


def _two(value: float | None) -> str:
    if value is None:
        return _UNKNOWN
    if not math.isfinite(value) or value >= 1e9:
        return perplexity_text(value)
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def _flagged(texts: Texts | None) -> tuple[Span, ...]:
    if texts is None:
        return ()
    return (Span(f"{texts.flagged} of {texts.judged}", "" if not texts.flagged else "warning"),)


def _rate(rounds: tuple[float, ...]) -> tuple[Span, ...]:
    if not rounds:
        return ()
    value = statistics.median(rounds)
    return _spans(f"{value:,.0f}" if value >= 10 else f"{value:.2f}")


def _times(rounds: tuple[float, ...]) -> tuple[Span, ...]:
    if not rounds:
        return ()
    return _spans(f"×{_two(statistics.median(rounds))} ({_two(min(rounds))}-{_two(max(rounds))})")
