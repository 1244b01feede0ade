"""Numbers from one stored dtype to another with the standard library: what ``tensor.to(dtype)`` would have written."""

from __future__ import annotations

import struct
from array import array

_CODES = {"float64": "d", "float32": "f", "float16": "e"}
ITEMSIZE = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
"""Bytes per element of the dtypes whose values are compared."""


def cast(data: bytes, source: str, target: str) -> bytes:
    """``data`` (little-endian elements of ``source``) rounded to ``target``, to nearest and ties to even.

    >>> cast(struct.pack("<f", 0.1), "float32", "float16") == struct.pack("<e", 0.1)
    True
    """
    if source == target:
        return data
    if source == "bfloat16":
        return cast(_widened(data), "float32", target)
    if target == "bfloat16":
        return _narrowed(cast(data, source, "float32"))
    n = len(data) // ITEMSIZE[source]
    values = struct.unpack(f"<{n}{_CODES[source]}", data)
    try:
        return struct.pack(f"<{n}{_CODES[target]}", *values)
    except OverflowError:
        return b"".join(_packed(value, _CODES[target]) for value in values)


def numbers(data: bytes, dtype: str) -> tuple[float, ...]:
    """The elements of ``data`` as floats."""
    if dtype == "bfloat16":
        data, dtype = _widened(data), "float32"
    return struct.unpack(f"<{len(data) // ITEMSIZE[dtype]}{_CODES[dtype]}", data)


def _packed(value: float, code: str) -> bytes:
    try:
        return struct.pack(f"<{code}", value)
    except OverflowError:  # torch rounds what is too large to infinity
        return struct.pack(f"<{code}", float("inf") if value > 0 else float("-inf"))


def _widened(data: bytes) -> bytes:
    """bfloat16 is the upper half of float32."""
    wide = bytearray(2 * len(data))
    wide[2::4] = data[0::2]
    wide[3::4] = data[1::2]
    return bytes(wide)


def _narrowed(data: bytes) -> bytes:
    words = array("I")
    assert words.itemsize == 4
    words.frombytes(data)
    if struct.pack("=H", 1) != struct.pack("<H", 1):
        words.byteswap()
    rounded = array("H", (_upper_half(word) for word in words))
    if struct.pack("=H", 1) != struct.pack("<H", 1):
        rounded.byteswap()
    return rounded.tobytes()


def _upper_half(word: int) -> int:
    if word & 0x7FFFFFFF > 0x7F800000:  # NaN stays NaN
        return (word >> 16 | 0x40) & 0xFFFF
    return (word + 0x7FFF + (word >> 16 & 1)) >> 16
