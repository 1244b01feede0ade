"""What was measured, as (name, number) for ``user_properties`` and from there for JUnit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gqacheck.plugin.plan import Part
from gqacheck.text import printable


def numbers(part: Part, data: dict[str, Any]) -> dict[str, Any]:
    """The numbers of one part, each under a name of its own; what was not measured is not there."""
    pairs = _of_file(data) if part.group == "GQA0" else _of_run(data["metrics"]) if part.group == "GQA7" else ()
    return {printable(name): value for name, value in pairs if value is not None}


def _of_file(data: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name in ("parameters", "file_bytes", "bytes_read", "family"):
        yield name, data[name]
    for name, state in data["claims"].items():
        yield f"claim_{name}", state


def _of_run(metrics: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for value in metrics["perplexity"]:
        name = f"perplexity {value['corpus']} {value['protocol_name']}"
        yield name, _value(value, "value")
        yield f"{name} ratio", _value(value, "ratio")
    for number, sample in enumerate((metrics["generation"] or {}).get("samples", ()), start=1):
        for key, called in (("rep_4", "rep-4"), ("zlib_ratio", "zlib ratio"), ("nll", "nll")):
            yield f"generation {number} {sample['language']} {called}", _value(sample, key)
    consistency = metrics["consistency"] or {}
    for one in consistency.get("comparisons", ()):
        if not one["skipped"]:
            yield f"consistency {one['check']} {one['what']}", _value(one, "difference")
    if consistency.get("induction"):
        yield "induction drop", _value(consistency["induction"], "drop")


def _value(found: dict[str, Any], key: str) -> Any:
    """A number; NaN and infinities, which JSON has not, as text."""
    return found[key] if found[key] is not None else found.get(f"{key}_text")
