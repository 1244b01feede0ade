"""JSON from strangers: bounded in size, depth and values, with every key that is written twice reported.

Two readers of one text must see the same content, so the differences between JSON parsers are settled here:
``read_json`` is what Python's ``json`` (and so transformers) accepts; ``strict=True`` is what serde_json (and so
the safetensors library) accepts: no NaN or Infinity, numbers within range (lone surrogates: ``refuse_surrogates``).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from gqacheck.checkpoint import Plain
from gqacheck.errors import ReadError
from gqacheck.text import printable, printable_list

MAX_VALUES = 2_600_000
"""Commas and brackets in one text. A safetensors header with 300,000 tensors holds 2.4 million."""

MAX_PLAIN_VALUES = 1_000_000
"""The same for a config or an index, which become Python objects one by one."""

MAX_OBJECTS = 400_000
"""Objects in one text."""

VALUES_PER_OBJECT = 16
SPARE_VALUES = 200_000
"""What a header may hold: a tensor of six sizes has 13 commas and brackets; the rest is for the metadata's texts."""

MAX_DEPTH = 127
"""Nesting that serde_json allows."""

MAX_WIDE_BYTES = 24_000_000
"""A text that is not ASCII may cost four bytes per character in memory; one larger than this is refused."""

MAX_DIGITS = 4300
"""Digits of one integer: what Python's ``int`` accepts by default, and with it every reader in Python."""

Pairs = list[tuple[str, Any]]


def parse_json(
    data: bytes,
    *,
    strict: bool = False,
    objects: Callable[[Pairs], Any] | None = None,
    max_values: int = MAX_VALUES,
) -> Any:
    """The value that the JSON text ``data`` says; ``objects`` builds each JSON object from its key-value pairs.

    Raises ``ValueError`` with one printable sentence when the text is not JSON or goes past a bound.
    """
    if data.startswith(b"\xef\xbb\xbf"):
        raise ValueError("it starts with a UTF-8 byte-order mark, which JSON readers refuse; save it without")
    values = data.count(b",") + data.count(b"[") + data.count(b"{")
    if values > max_values:
        raise ValueError(f"it holds about {values:,} values; more than {max_values:,} are not read")
    n_objects = data.count(b"{")
    if n_objects > MAX_OBJECTS:
        raise ValueError(f"it holds about {n_objects:,} objects; more than {MAX_OBJECTS:,} are not read")
    if strict and values > SPARE_VALUES + VALUES_PER_OBJECT * n_objects:
        raise ValueError(f"it holds about {values:,} values in {n_objects:,} objects, which is no list of tensors")
    if len(data) > MAX_WIDE_BYTES and not data.isascii():
        raise ValueError(f"it is {len(data):,} bytes long and not ASCII; more than {MAX_WIDE_BYTES:,} are not read")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 text (byte {error.start:,})") from None
    decoder = json.JSONDecoder(
        object_pairs_hook=objects,
        parse_int=_read_strict_integer if strict else _read_integer,
        parse_float=_read_finite if strict else float,
        parse_constant=_refuse_constant if strict else float,
    )
    try:
        value = decoder.decode(text)
    except RecursionError:
        raise ValueError(f"it is nested more than {MAX_DEPTH} levels deep") from None
    except json.JSONDecodeError as error:
        message = f"{error.msg} (line {error.lineno:,}, column {error.colno:,})"
        raise ValueError(f"it is not JSON: {printable(message[:1].lower() + message[1:])}") from None
    return value


def read_plain(data: bytes, what: str) -> tuple[dict[str, Plain], tuple[str, ...]]:
    """The JSON object in ``data`` as plain values, and the keys that stand in it twice (the last one wins).

    ``what`` names the text in messages. Strings come out as valid Unicode (a lone surrogate becomes U+FFFD).
    Raises ``ReadError`` when the text is not a JSON object.
    """
    twice: dict[str, None] = {}

    def build(pairs: Pairs) -> dict[str, Plain]:
        values: dict[str, Plain] = {}
        for key, value in pairs:
            name = _valid(key)
            if name in values:
                twice[name] = None
            values[name] = value
        return values

    try:
        value = parse_json(data, objects=build, max_values=MAX_PLAIN_VALUES)
        if not isinstance(value, dict):
            raise ValueError(f"it holds {_describe(value)} where a JSON object is expected")
        plain = {key: _freeze(item, 1) for key, item in value.items()}
    except ValueError as error:
        raise ReadError(f"{what}: cannot be read: {error}") from None
    return plain, tuple(twice)


def describe_twice(keys: tuple[str, ...], what: str) -> str:
    """The sentence for keys that stand twice in ``what``."""
    return f"{what} has {printable_list(keys)} more than once; the last one was read, other readers may take the first"


def _freeze(value: Any, depth: int) -> Plain:
    if depth > MAX_DEPTH:
        raise ValueError(f"it is nested more than {MAX_DEPTH} levels deep")
    if isinstance(value, dict):
        return {key: _freeze(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list):
        return tuple(_freeze(item, depth + 1) for item in value)
    if isinstance(value, str):
        return _valid(value)
    plain: Plain = value
    return plain


def _valid(text: str) -> str:
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _read_integer(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"it holds a number of {len(text):,} digits")
    return int(text)


def _read_strict_integer(text: str) -> int | float:
    """As serde_json: what does not fit 64 bits, and minus zero, are floats."""
    return _read_finite(text) if len(text) > 20 or text == "-0" else int(text)


def _read_finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"it is not JSON that every reader accepts: the number {printable(text, 40)} is out of range")
    return value


def _refuse_constant(name: str) -> float:
    raise ValueError(f"it is not JSON: {name} is no JSON number")


def refuse_surrogates(text: str) -> None:
    """Raise ``ValueError`` when ``text`` holds half a surrogate pair, which serde_json does not read."""
    if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
        raise ValueError("it is not JSON that every reader accepts: a string holds half a surrogate pair")


def _describe(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return "a number"
    return "a string" if isinstance(value, str) else f"a list of {len(value):,} values"
