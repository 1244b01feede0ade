"""What may stand side by side: readings of one text, cut into the same tokens by one protocol, share a row; nothing
else does. A ratio is to one base only, on the same windows where the check measured that."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import replace

from gqacheck.compare.facts import Cell, Column, Ratio, Reading, ReadingRow, Texts, TextsRow
from gqacheck.text import printable

_SAME = 0.01
"""Share by which the base's perplexity beside a child may differ from its own: other dtypes and devices stay below."""


def same_place(one: str, other: str) -> bool:
    """Whether two paths are one file or folder, or spelt alike."""
    return one == other or os.path.realpath(one) == os.path.realpath(other)


def base_of_all(columns: Sequence[Column], base: int | None) -> tuple[str | None, str]:
    """The path that ratios in the table are to, None without one; and a note when columns disagree about it."""
    if base is not None:
        return columns[base].path, ""
    stated = [c.base for c in columns if c.base and any(r.relative is not None for r in c.readings)]
    if not stated:
        return None, ""
    others = [path for path in stated if not same_place(path, stated[0])]
    if others:
        names = f"{printable(stated[0], 60)} and {printable(others[0], 60)}"
        return None, f"ratios are left out: the reports were made beside different bases, {names}; name one with --base"
    return stated[0], ""


def group_readings(columns: Sequence[Column], base: int | None, base_path: str | None) -> tuple[ReadingRow, ...]:
    """All perplexities in rows of what is comparable, rows of one corpus below each other."""
    cells: dict[tuple[object, ...], dict[int, Reading]] = {}
    for number, column in enumerate(columns):
        for reading in column.readings:
            key = _key(reading, number)
            while number in cells.get(key, {}):  # a report that says the same thing twice
                key = (*key, "again")
            cells.setdefault(key, {})[number] = reading
    rows: list[ReadingRow] = []
    for found in cells.values():
        first = next(iter(found.values()))
        ours = found.get(base) if base is not None else None
        made = [
            _cell(column, found[number], ours, base_path) if number in found else None
            for number, column in enumerate(columns)
        ]
        row = ReadingRow(
            first.corpus, first.protocol, first.protocol_name, first.fingerprint, first.text_tokens, tuple(made)
        )
        rows.append(replace(row, apart=_apart(rows, row)))
    order = list(dict.fromkeys(row.corpus for row in rows))
    return tuple(sorted(rows, key=lambda row: order.index(row.corpus)))


def _key(reading: Reading, number: int) -> tuple[object, ...]:
    known = bool(reading.fingerprint and reading.protocol)
    key = (reading.fingerprint, reading.protocol, reading.protocol_name, reading.text_tokens)
    return key if known else (*key, number)


def _apart(before: Sequence[ReadingRow], row: ReadingRow) -> str:
    above = next((one for one in before if one.corpus == row.corpus or one.fingerprint == row.fingerprint), None)
    if above is None:
        return ""
    reasons = []
    if not row.fingerprint or not row.protocol:
        reasons.append("its protocol or its text is not known")
    if above.fingerprint != row.fingerprint:
        reasons.append("another text")
    if (above.protocol, above.protocol_name) != (row.protocol, row.protocol_name):
        reasons.append("another protocol")
    if above.fingerprint == row.fingerprint and above.text_tokens != row.text_tokens:
        counts = [f"{n:,}" if n is not None else "unknown" for n in (above.text_tokens, row.text_tokens)]
        reasons.append(f"another tokenizer (the text has {counts[1]} tokens here and {counts[0]} above)")
    return " and ".join(reasons) or "it was measured twice"


def _cell(column: Column, reading: Reading, base: Reading | None, base_path: str | None) -> Cell:
    """A reading with its ratio: the check's own where it is to this base, else the quotient of two complete values."""
    if base_path is None or column.is_base or reading.value is None:
        return Cell(reading)
    relative = reading.relative
    if relative is not None and column.base and same_place(column.base, base_path):
        if relative.base_broken:
            return Cell(reading, no_ratio="base broken")
        if relative.ratio is not None and not math.isnan(relative.ratio):
            if not relative.left_out and not reading.not_comparable and _differ(relative.base_value, base):
                return Cell(reading, no_ratio="base differs")
            error = relative.difference_stderr
            stderr = relative.ratio * error if error is not None and math.isfinite(relative.ratio) else None
            return Cell(reading, Ratio(relative.ratio, stderr, "same windows", relative.left_out))
    if base is None or base.value is None:
        return Cell(reading, no_ratio="no base value")
    if reading.not_comparable or base.not_comparable:
        return Cell(reading, no_ratio="not comparable")
    if not base.value or not math.isfinite(base.value) or math.isnan(reading.value):
        return Cell(reading, no_ratio="no base value")
    return Cell(reading, Ratio(reading.value / base.value, None, "quotient"))


def _differ(beside: float | None, base: Reading | None) -> bool:
    """Whether the base measured something else beside the child than by itself."""
    if base is None or base.not_comparable or not base.value or beside is None:
        return False
    return not abs(beside / base.value - 1) <= _SAME


def group_texts(columns: Sequence[Column]) -> tuple[TextsRow, ...]:
    """Generated texts, those of the same prompts and settings in one row."""
    rows: dict[str, list[Texts | None]] = {}
    for number, column in enumerate(columns):
        if column.texts is not None:
            rows.setdefault(column.texts.settings, [None] * len(columns))[number] = column.texts
    return tuple(TextsRow(settings, tuple(cells)) for settings, cells in rows.items())


def with_names(columns: Sequence[Column]) -> tuple[Column, ...]:
    """The columns with short names, each another: the end of the path, longer where ends are alike."""
    paths = [column.path for column in columns]
    parts = [_parts(path) for path in paths]
    taken: dict[str, int] = {}
    named = []
    for column, mine in zip(columns, parts, strict=True):
        others = [other for other in parts if other != mine]
        n = next((n for n in range(1, len(mine)) if all(mine[-n:] != other[-n:] for other in others)), len(mine))
        name = printable("base" if column.is_base else "/".join(mine[-n:]), NAME_LENGTH)
        taken[name] = taken.get(name, 0) + 1
        while taken[name] > 1 and f"{name} #{taken[name]}" in taken:
            taken[name] += 1
        unique = name if taken[name] == 1 else f"{name} #{taken[name]}"
        taken.setdefault(unique, 1)
        named.append(replace(column, name=unique))
    return tuple(named)


def _parts(path: str) -> list[str]:
    parts = [part for part in path.replace("\\", "/").split("/") if part not in ("", ".")]
    if len(parts) > 1 and parts[-1] in ("pytorch_model.bin", "model.safetensors"):  # the folder tells them apart
        parts.pop()
    return parts or [path]


NAME_LENGTH = 20
"""Characters of a column's name at most, before what makes it unique."""
