"""A comparison as JSON, ``gqacheck-compare/1``: keys are only ever added."""

from __future__ import annotations

import json
import statistics
from typing import Any

from gqacheck.compare.facts import Cell, Column, ReadingRow, Speed, SpeedRow, Table, TextsRow
from gqacheck.report.runtime_json import number

SCHEMA_NAME = "gqacheck-compare/1"


def render_json(table: Table) -> str:
    """One JSON document: ASCII only, ending in a newline; NaN and infinities are null beside a text."""
    return json.dumps(as_data(table), indent=1, allow_nan=False) + "\n"


def as_data(table: Table) -> dict[str, Any]:
    """The comparison as plain dicts and lists. Every list of ``values`` has one entry per column, null for nothing."""
    return {
        "schema": SCHEMA_NAME,
        "version": table.version,
        "exit_code": table.exit_code,
        "base": table.base,
        "base_path": table.base_path,
        "columns": [_column(column) for column in table.columns],
        "perplexity": [_readings(row) for row in table.readings],
        "generation": [_texts(row) for row in table.texts],
        "speed": None if table.speed is None else _speeds(table.speed),
        "notes": list(table.notes),
    }


def _column(column: Column) -> dict[str, Any]:
    return {
        "name": column.name,
        "path": column.path,
        "source": column.source,
        "report": column.report or None,
        "is_base": column.is_base,
        "verdict": column.verdict,
        "exit_code": column.exit_code,
        "problem": column.problem or None,
        "missing": list(column.missing),
        "errors": list(column.errors),
        "family": column.family,
        "parameters": column.parameters,
        "file_bytes": column.file_bytes,
        "run_as": column.run_as or None,
        "version": column.version or None,
        "layers": None
        if column.layers is None
        else [
            {
                "index": layer.index,
                "n_q_heads": layer.n_q_heads,
                "n_kv_heads": layer.n_kv_heads,
                "head_dim": layer.head_dim,
                "intermediate_size": layer.intermediate_size,
                "attention": layer.attention,
                "mlp": layer.mlp,
                "n_experts": layer.n_experts,
            }
            for layer in column.layers
        ],
    }


def _readings(row: ReadingRow) -> dict[str, Any]:
    return {
        "corpus": row.corpus,
        "protocol": row.protocol,
        "protocol_name": row.protocol_name,
        "fingerprint": row.fingerprint,
        "text_tokens": row.text_tokens,
        "apart": row.apart or None,
        "values": [None if cell is None else _reading(cell) for cell in row.cells],
    }


def _reading(cell: Cell) -> dict[str, Any]:
    reading, ratio = cell.reading, cell.ratio
    return {
        **number("value", reading.value),
        "stderr": reading.stderr,
        "comparable": not reading.not_comparable,
        "not_comparable": reading.not_comparable or None,
        "tokens": reading.tokens,
        "windows": reading.windows,
        "windows_in_all": reading.windows_in_all,
        "vocab_size": reading.vocab_size,
        "bits_per_byte": reading.bits_per_byte,
        **number("ratio", None if ratio is None else ratio.value),
        "ratio_stderr": None if ratio is None else ratio.stderr,
        "ratio_way": None if ratio is None else ratio.way,
        "ratio_left_out": [] if ratio is None else list(ratio.left_out),
        "no_ratio": cell.no_ratio or None,
    }


def _texts(row: TextsRow) -> dict[str, Any]:
    values = [
        None if one is None else {"judged": one.judged, "flagged": one.flagged, "mean_rep_4": one.rep_4}
        for one in row.cells
    ]
    return {"settings": row.settings, "values": values}


def _speeds(row: SpeedRow) -> dict[str, Any]:
    values = [None if one is None else _speed(one) for one in row.cells]
    return {"settings": row.settings, "reference": row.reference, "unit": "tokens per second", "values": values}


def _speed(speed: Speed) -> dict[str, Any]:
    rounds = {
        "prefill": speed.prefill,
        "decode": speed.decode,
        "prefill_ratio": speed.prefill_ratio,
        "decode_ratio": speed.decode_ratio,
    }
    return {
        name: {"median": statistics.median(each), "least": min(each), "most": max(each), "rounds": list(each)}
        if each
        else None
        for name, each in rounds.items()
    }
