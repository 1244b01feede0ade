"""Casts of single values whose result is known by hand; tests/lineage compares all bit patterns with torch."""

from __future__ import annotations

import struct

from gqacheck.lineage.cast import cast, numbers


def test_cast_to_bfloat16_rounds_ties_to_even() -> None:
    for value, expected in ((0x3F808000, 0x3F80), (0x3F818000, 0x3F82), (0x3F808001, 0x3F81), (0x7F800000, 0x7F80)):
        assert cast(struct.pack("<I", value), "float32", "bfloat16") == struct.pack("<H", expected)


def test_cast_of_what_is_too_large_for_float16_is_infinite() -> None:
    assert numbers(cast(struct.pack("<2f", 1e9, -1e9), "float32", "float16"), "float16") == (
        float("inf"),
        -float("inf"),
    )


def test_cast_of_nan_stays_nan() -> None:
    for dtype in ("bfloat16", "float16", "float64"):
        (value,) = numbers(cast(struct.pack("<I", 0x7FFFFFFF), "float32", dtype), dtype)
        assert value != value


def test_cast_to_the_same_dtype_is_the_same_bytes() -> None:
    assert cast(b"\x01\x02", "bfloat16", "bfloat16") == b"\x01\x02"
