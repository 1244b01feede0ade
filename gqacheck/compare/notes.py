"""The sentences below the table: where each column came from, what each number is, what it must not be taken for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gqacheck.compare.facts import ReadingRow, Table
from gqacheck.text import printable, printable_list


@dataclass(frozen=True, slots=True)
class Note:
    """One sentence with what it is about: a column's name, ``[1]`` for a row, "" for the whole table."""

    about: str
    text: str
    is_problem: bool = False


def notes(table: Table) -> tuple[Note, ...]:
    """The columns, then the numbered rows in the order of the table, then what concerns all of it."""
    return (*_columns(table), *_rows(table), *_whole(table))


def _columns(table: Table) -> Iterator[Note]:
    for column in table.columns:
        saved = f", as the report {printable(column.report)} says" if column.report else ""
        yield Note(column.name, f"{printable(column.path, 400)}{saved}")
        if column.problem:
            what = f"no {' and no '.join(column.missing)}" if column.missing else "could not check"
            yield Note(column.name, f"{what}: {printable(column.problem, 600)}", True)


def _rows(table: Table) -> Iterator[Note]:
    number = 0
    for row in table.readings:
        number += 1
        yield Note(f"[{number}]", _reading(row))
        for text in _ratios(table, row):
            yield Note(f"[{number}]", text)
    for made in table.texts:
        number += 1
        yield Note(f"[{number}]", made.settings or "with settings that are not known")
    if len(table.texts) > 1:
        yield Note(f"[{number}]", "texts that were generated otherwise stand in rows of their own")
    if table.speed is not None:
        yield Note(f"[{number + 1}]", table.speed.settings)


def _reading(row: ReadingRow) -> str:
    tokens = f", {row.text_tokens:,} tokens" if row.text_tokens is not None else ""
    text = f"text {row.fingerprint[:12]}" if row.fingerprint else "text unknown"
    apart = f"; in a row of its own: {row.apart}" if row.apart else ""
    return f"perplexity on {row.corpus}; {row.protocol or 'protocol unknown'}; {text}{tokens}{apart}"


def _ratios(table: Table, row: ReadingRow) -> Iterator[str]:
    """What must be said of the ratios in one row."""
    pairs = [(c.name, cell) for c, cell in zip(table.columns, row.cells, strict=True) if cell is not None]
    left_out = {cell.ratio.left_out for _, cell in pairs if cell.ratio is not None and cell.ratio.left_out}
    for names in sorted(left_out):
        yield f"*: the ratio is without {printable_list(names)}, which the base does not read"
    divided = [name for name, cell in pairs if cell.ratio is not None and cell.ratio.way == "quotient"]
    if divided:
        yield f"{printable_list(divided)}: one value divided by the other, not measured window beside window"
    differs = [name for name, cell in pairs if cell.no_ratio == "base differs"]
    if differs:
        yield (
            f"{printable_list(differs)}: no ratio, for the base measured something else beside it than in its own "
            "column"
        )


def _whole(table: Table) -> Iterator[Note]:
    if table.base is None and table.base_path is not None:
        yield Note("", f"ratios are to {printable(table.base_path, 400)}, as the reports say")
    versions = sorted({column.version for column in table.columns if column.version})
    if len(versions) > 1:
        yield Note("", f"checked by different versions of gqacheck: {printable_list(versions)}")
    for text in table.notes:
        yield Note("", text)
