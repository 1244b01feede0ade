"""Saved JSON reports (``gqacheck --format json``): which files they are, and what stands in them, within bounds."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from gqacheck.compare.untrusted import items, mapping
from gqacheck.errors import ReadError
from gqacheck.formats.strict_json import parse_json
from gqacheck.text import printable

SCHEMA = "gqacheck/1"
LARGEST = 64 << 20
"""Bytes of one report; a thousand checkpoints of eighty layers stay below it."""
MOST_CHECKPOINTS = 64
_MOST_VALUES = 2_000_000
_BOMS = {b"\xff\xfe": "utf-16-le", b"\xfe\xff": "utf-16-be", b"\xef\xbb\xbf": "utf-8"}


def is_report(path: str) -> bool:
    """Whether ``path`` is a file that says, at its beginning or its end, that it follows a schema of ours."""
    try:
        if not os.path.isfile(path):
            return False
        with open(path, "rb") as stream:
            head = stream.read(4096)
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - 4096))
            tail = stream.read(4096)
    except (OSError, ValueError):  # a name with a null character is no file
        return False
    plain = [part.replace(b"\0", b"") for part in (head, tail)]  # UTF-16, as PowerShell's > writes it
    opens = plain[0].lstrip(b"\xff\xfe\xef\xbb\xbf \t\r\n").startswith(b"{")
    return opens and any(b'"schema"' in part and b'"gqacheck' in part for part in plain)


def read_report(path: str) -> tuple[Mapping[str, Any], ...]:
    """The checkpoints of a saved report, unchecked, each with the report's ``version`` under ``"version"``.

    Raises:
        ReadError: it is too large, no JSON, or no report of this schema.
    """
    what = printable(path)
    try:
        with open(path, "rb") as stream:
            data = stream.read(LARGEST + 1)
    except OSError as error:
        raise ReadError(f"{what}: {error.strerror or error}") from error
    if len(data) > LARGEST:
        raise ReadError(f"{what} is larger than {LARGEST >> 20} MB, which no report is")
    try:
        report = mapping(parse_json(_as_utf8(data), max_values=_MOST_VALUES))
    except ValueError as error:
        raise ReadError(f"{what}: cannot be read as a report: {error}") from error
    schema = report.get("schema")
    if schema != SCHEMA:
        raise ReadError(f"{what}: {_not_ours(schema)}")
    checkpoints = report.get("checkpoints")
    if isinstance(checkpoints, list) and len(checkpoints) > MOST_CHECKPOINTS:
        raise ReadError(
            f"{what} holds {len(checkpoints):,} checkpoints; a table has {MOST_CHECKPOINTS} columns at most"
        )
    entries = [entry for entry in items(checkpoints, MOST_CHECKPOINTS) if isinstance(entry, dict)]
    if not entries:
        raise ReadError(f"{what} holds no checkpoints: make it anew with gqacheck CKPT --format json")
    return tuple({**entry, "version": report.get("version")} for entry in entries)


def _as_utf8(data: bytes) -> bytes:
    for mark, encoding in _BOMS.items():
        if data.startswith(mark):
            return data[len(mark) :].decode(encoding, "replace").encode("utf-8", "replace")
    return data


def _not_ours(schema: Any) -> str:
    if isinstance(schema, str) and schema.startswith("gqacheck-compare/"):
        return "it is a table of gqacheck compare; give the reports or checkpoints that it was made of"
    said = printable(schema, 40) if isinstance(schema, str) else "none"
    return f"it is no report that is read here: its schema is {said}, not {SCHEMA}"
