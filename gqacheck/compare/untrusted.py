"""Values out of a file that anybody may have written: each is of its type and within bounds, or it is None."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from gqacheck.text import printable

LARGEST = 10**18
"""Of whole numbers: more parameters, bytes or tokens than that has nothing."""


def mapping(value: Any) -> Mapping[str, Any]:
    """``value`` when it is a JSON object, else an empty one."""
    return value if isinstance(value, dict) else {}


def items(value: Any, most: int) -> tuple[Any, ...]:
    """The entries of a JSON list, () when it is none or has more than ``most``."""
    return tuple(value) if isinstance(value, (list, tuple)) and len(value) <= most else ()


def whole(value: Any) -> int | None:
    """A whole number from 0 up."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LARGEST else None


def real(entry: Mapping[str, Any], key: str) -> float | None:
    """The number under ``key``; infinities and NaN, which JSON has no number for, stand as text under ``key_text``."""
    value = entry.get(key)
    if value is None:
        text = entry.get(f"{key}_text")
        return {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}.get(text) if isinstance(text, str) else None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def positive(entry: Mapping[str, Any], key: str) -> float | None:
    """``real`` unless it is below 0; NaN passes."""
    value = real(entry, key)
    return None if value is None or value < 0 else value


def text(value: Any, limit: int = 200) -> str:
    """A string on one line, printable and of bounded length; "" when it is none."""
    return printable(value, limit) if isinstance(value, str) else ""
