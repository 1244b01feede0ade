"""Refuses a ``tokenizer.json`` whose replacements multiply a text: forty of them make 2**40 letters out of one."""

from __future__ import annotations

import json
from typing import Any

MOST_GROWTH = 1_000.0
"""Times by which all replacements together may lengthen a text; healthy tokenizers stay below ten."""

MOST_STEPS = 10_000


def refuse_expansion(text: str) -> None:
    """Nothing, for a tokenizer whose steps can lengthen a text only moderately.

    ``text`` is the JSON of the ``tokenizers`` library. A replacement of a fixed string lengthens a text by at most
    content / pattern; one of a regular expression, which may match nothing, by content + 1.

    Raises:
        ValueError: they multiply beyond ``MOST_GROWTH``, or the text is no JSON object.
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError("the tokenizer is not readable JSON") from error
    if not isinstance(found, dict):
        raise ValueError("the tokenizer is not a JSON object")
    waiting: list[Any] = [found.get("normalizer"), found.get("pre_tokenizer")]
    growth, steps = 1.0, 0
    while waiting:
        step = waiting.pop()
        steps += 1
        if isinstance(step, list):
            waiting += step
        elif isinstance(step, dict):
            if step.get("type") == "Replace":
                growth *= _growth(step.get("pattern"), step.get("content"))
            waiting += [value for value in step.values() if isinstance(value, list | dict)]
        if growth > MOST_GROWTH or steps > MOST_STEPS:
            raise ValueError("the tokenizer's replacements multiply the text without bound")


def _growth(pattern: Any, content: Any) -> float:
    if not isinstance(content, str):
        return 1.0
    fixed = pattern.get("String") if isinstance(pattern, dict) else None
    if isinstance(fixed, str) and fixed:
        return max(1.0, len(content.encode()) / len(fixed.encode()))
    return len(content.encode()) + 1.0
