"""Rows of a local file: text as it is, JSON lines, a JSON list, parquet. What a file holds is data, and is bounded."""

from __future__ import annotations

import gzip
import os
import stat
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from typing import IO, Any

from gqacheck.errors import MissingDependency, ReadError, UsageError
from gqacheck.runtime.corpora.json_rows import json_list, json_object
from gqacheck.text import printable, printable_list

MAX_TEXT_BYTES = 16 << 20
"""Of one corpus. A tokenizer needs up to 250 bytes of memory for each byte of text, where every byte is a token."""
MAX_FILE_BYTES = 1 << 30
"""Bytes of a data file, decompressed, that are looked at for its rows."""
TEXT_COLUMNS = ("text", "sentence")
JSON_SUFFIXES = (".jsonl", ".ndjson", ".json", ".jsonl.gz", ".ndjson.gz", ".json.gz")
DATA_SUFFIXES = (*JSON_SUFFIXES, ".parquet")


_PEEKED = 16
"""Rows that are looked at for the names of the columns."""


@dataclass(frozen=True, slots=True)
class Rows:
    """The texts of one column, and its name."""

    texts: tuple[str, ...]
    column: str


def is_data_file(path: str) -> bool:
    """Whether the name says that the file holds rows with columns."""
    return path.lower().endswith(DATA_SUFFIXES)


def read_rows(path: str, column: str = "", limit: int | None = None) -> Rows:
    """The texts of one column of a data file, the first ``limit`` of them.

    Raises:
        UsageError: the column that was named is not there, or several are and none was named.
        ReadError: missing, not of its kind, not text, empty or too large.
    """
    if path.lower().endswith(".parquet"):
        name = _parquet_column(path, column)
        return Rows(collect(_parquet(path, name, limit), path, limit), name)
    name = column or _json_column(path, limit)
    return Rows(collect(_json(path, name, limit, named=bool(column)), path, limit), name)


def collect(found: Iterable[tuple[int, object]], where: str, limit: int | None = None) -> tuple[str, ...]:
    """The (number, text) pairs as rows, checked and bounded; ``where`` names them in an error. Raises ReadError."""
    rows: list[str] = []
    size = 0
    for number, text in found:
        if limit is not None and len(rows) >= limit:
            break
        size += _size(text, f"row {number} of {where}")
        if size > MAX_TEXT_BYTES:
            raise ReadError(
                f"{where} has more than {MAX_TEXT_BYTES} bytes of text; read its first rows alone, with rows="
                f"{max(1, len(rows) // 2)} after the ? of --ppl"
            )
        rows.append(str(text))
    if not any(row.strip() for row in rows):
        raise ReadError(f"{where} is empty: there is nothing to measure perplexity on")
    return tuple(rows)


def choose_column(kinds: dict[str, bool], asked: str, where: str) -> str:
    """The column to read out of ``{name: whether it holds text}``.

    One that is called as columns of text are is never passed over for another: what it holds is then the fault.

    Raises:
        UsageError: ``asked`` is not there or holds no text; or nothing was asked, and several might be meant.
        ReadError: none of them holds text.
    """
    if asked:
        if asked not in kinds:
            raise UsageError(f"{where} has no column {printable(asked, 60)}; it has {printable_list(kinds)}")
        if not kinds[asked]:
            raise UsageError(f"column {printable(asked, 60)} of {where} holds no text")
        return asked
    texts = [name for name, is_text in kinds.items() if is_text]
    usual = [name for name in TEXT_COLUMNS if name in kinds]
    for name in [name for name in usual if name in texts] or (texts if len(texts) == 1 and not usual else []):
        return name
    if usual:
        raise ReadError(f"column {usual[0]} of {where} holds no text; name another one, with ?column=NAME")
    if not texts:
        raise ReadError(f"{where} has no column of text; it has {printable_list(kinds)}")
    raise UsageError(f"{where} has the text columns {printable_list(texts)}: say which one, with ?column=NAME")


def read_text(path: str) -> str:
    """A UTF-8 file as it is, without its byte order mark. Raises ReadError."""
    with _open_regular(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > MAX_TEXT_BYTES:
            raise ReadError(
                f"{path} has {size} bytes, more than {MAX_TEXT_BYTES}; give a part of it (a few hundred "
                "thousand tokens are more than any protocol needs)"
            )
        data = stream.read(MAX_TEXT_BYTES + 1)
    if b"\0" in data:
        raise ReadError(f"{path} is binary, not text")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ReadError(f"{path} is not UTF-8 text (byte {error.start}); convert it first") from error
    if not text.strip():
        raise ReadError(f"{path} is empty: there is nothing to measure perplexity on")
    return text


def _open_regular(path: str) -> IO[bytes]:
    """The file for reading; a pipe or a folder is refused without waiting. Raises ReadError."""
    try:
        stream = open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb")  # noqa: SIM115
    except (OSError, ValueError) as error:
        raise ReadError(f"cannot read the text file {path}: {getattr(error, 'strerror', None) or error}") from error
    if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
        stream.close()
        raise ReadError(f"{path} is not a regular file; give a UTF-8 text file")
    return stream


def _json_column(path: str, limit: int | None) -> str:
    """The column to read by the first rows; "" of no rows. Raises UsageError or ReadError."""
    texts: set[str] = set()
    others: dict[str, bool] = {}  # names in order, and whether anything but text and nothing was seen there
    for _, row in islice(_json_objects(path), min(_PEEKED, limit or _PEEKED)):
        for name in TEXT_COLUMNS:
            if name in row:
                return name  # a row in which it holds no text is refused by its number
        for name, value in row.items():
            others[name] = others.get(name, False) or not (value is None or isinstance(value, str))
            texts |= {name} if isinstance(value, str) else set()
    return choose_column({name: name in texts and not odd for name, odd in others.items()}, "", path) if others else ""


def _json(path: str, name: str, limit: int | None, *, named: bool) -> Iterator[tuple[int, object]]:
    """named: whether the column was asked for by its name."""
    for number, row in _json_objects(path):
        if name not in row:
            if number == 1 and named:
                choose_column(dict.fromkeys(row, True), name, path)
            raise ReadError(f"row {number} of {path} has no column {printable(name, 60)}")
        yield number, row[name]
        if limit is not None and number >= limit:
            return


def _json_objects(path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number from 1, object) of every row of JSON lines, or of one list of objects."""
    lines = _lines(path)
    first = next(lines, b"").removeprefix(b"\xef\xbb\xbf")
    lines = chain((first,), lines)
    if first.lstrip().startswith(b"[") and not path.lower().removesuffix(".gz").endswith(("jsonl", "ndjson")):
        yield from json_list(lines, path, MAX_TEXT_BYTES)
        return
    number = 0
    for line in lines:
        if line.strip():
            number += 1
            yield number, json_object(line, f"row {number} of {path}")


def _lines(path: str) -> Iterator[bytes]:
    """The lines of a file, decompressed. Raises ReadError."""
    total = 0
    with _open_regular(path) as raw:
        stream = gzip.GzipFile(fileobj=raw) if path.lower().endswith(".gz") else raw
        while True:
            try:
                line = stream.readline(MAX_TEXT_BYTES + 1)
            except (OSError, EOFError, zlib.error) as error:
                raise ReadError(f"{path} cannot be decompressed: {printable(error)}") from error
            total += len(line)
            if len(line) > MAX_TEXT_BYTES:
                raise ReadError(f"{path} has a line of more than {MAX_TEXT_BYTES} bytes, which no row of text is")
            if total > MAX_FILE_BYTES:
                raise ReadError(f"{path} has more than {MAX_FILE_BYTES} bytes; give a part of it")
            if not line:
                return
            yield line


@contextmanager
def _parquet_file(path: str) -> Iterator[Any]:
    """The open file. Raises ReadError, also for what goes wrong inside."""
    try:
        import pyarrow as arrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise MissingDependency(f"reading {os.path.basename(path)}", "run") from error
    with _open_regular(path) as stream:
        try:
            yield parquet.ParquetFile(stream)
        except (arrow.ArrowException, OSError, MemoryError, UnicodeDecodeError) as error:
            raise ReadError(f"{path} is not a sound parquet file: {printable(error)}") from error


def _parquet_column(path: str, asked: str) -> str:
    with _parquet_file(path) as table:
        fields = list(table.schema_arrow)
        name = choose_column({field.name: _is_text(field.type) for field in fields}, asked, path)
        if sum(field.name == name for field in fields) > 1:
            raise ReadError(f"{path} has more than one column {printable(name, 60)}")
        return name


def _is_text(kind: Any) -> bool:
    """Whether a column of this type of pyarrow holds strings, in whichever of its encodings."""
    kind = getattr(kind, "value_type", kind) if str(kind).startswith("dictionary") else kind
    return str(kind) in ("string", "large_string", "string_view")


def _parquet(path: str, name: str, limit: int | None) -> Iterator[tuple[int, object]]:
    number = 0
    with _parquet_file(path) as table:
        for batch in table.iter_batches(batch_size=64, columns=[name]):
            # a dot in the name also selects a field of a column that holds structures
            for text in batch.column(batch.schema.get_field_index(name)).to_pylist():
                number += 1
                yield number, text
                if limit is not None and number >= limit:
                    return


def _size(text: object, where: str) -> int:
    """Bytes of one row in UTF-8. Raises ReadError for what is no text."""
    if not isinstance(text, str):
        kind = "nothing" if text is None else type(text).__name__
        raise ReadError(f"{where} holds {kind}, not text")
    if "\0" in text:
        raise ReadError(f"{where} holds a NUL, so it is not text")
    try:
        return len(text.encode("utf-8"))
    except UnicodeEncodeError as error:
        raise ReadError(f"{where} holds half of a surrogate pair, so it is not text") from error
