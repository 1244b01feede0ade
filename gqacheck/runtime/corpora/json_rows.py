"""JSON of unknown origin as rows, through the standard library, with strict limits on nesting and on repetition."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from gqacheck.errors import ReadError
from gqacheck.text import printable

MAX_PARTS = 1_000_000
"""Commas and opening brackets of one row: each may become an object in memory many times its size."""


class _Refused(ValueError):
    """What the standard library accepts and we do not."""


def json_object(data: bytes, where: str) -> dict[str, Any]:
    """One JSON object; ``where`` names it in an error. Raises ReadError."""
    if sum(map(data.count, (b",", b"[", b"{"))) > MAX_PARTS:
        raise ReadError(f"{where} has more than {MAX_PARTS} parts, which no row of text has")
    value = _loads(data, where)
    if not isinstance(value, dict):
        raise ReadError(f"{where} is not a JSON object with columns")
    return value


def json_list(lines: Iterable[bytes], path: str, limit: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number from 1, object) of each element of one JSON list of at most ``limit`` bytes. Raises ReadError."""
    data = bytearray()
    for line in lines:
        data += line
        if len(data) > limit:
            raise ReadError(f"{path} is one JSON list of more than {limit} bytes; save it as JSON lines")
    if sum(map(data.count, (b",", b"[", b"{"))) > 4 * MAX_PARTS:
        raise ReadError(f"{path} has more than {4 * MAX_PARTS} parts; save it as JSON lines")
    for number, row in enumerate(_loads(bytes(data), path), 1):
        if not isinstance(row, dict):
            raise ReadError(f"row {number} of {path} is not a JSON object with columns")
        yield number, row


def _loads(data: bytes, where: str) -> Any:
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_once)
    except _Refused as error:
        raise ReadError(f"{where} {error}") from error
    except UnicodeDecodeError as error:
        raise ReadError(f"{where} is not UTF-8 (byte {error.start})") from error
    except RecursionError as error:
        raise ReadError(f"{where} is nested too deeply") from error
    except ValueError as error:
        raise ReadError(f"{where} is not JSON: {printable(error)}") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = next(name for i, (name, _) in enumerate(pairs) if any(name == other for other, _ in pairs[:i]))
        raise _Refused(f"names {printable(twice, 60)} twice")
    return found
