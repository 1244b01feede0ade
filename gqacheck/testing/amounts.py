"""How much of a model went, layer by layer, beside how much was asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gqacheck.errors import GqacheckError
from gqacheck.geometry.measure import measure
from gqacheck.testing.complaint import violation
from gqacheck.testing.requests import PruningRequest

if TYPE_CHECKING:
    from gqacheck.testing.strategies import PruningCase

_WORDS: Mapping[str, str] = {
    "kv_groups": "KV groups",
    "queries": "query heads of each KV head",
    "mlp": "MLP channels",
    "hidden": "columns of the hidden state",
    "head_dim": "rows of each head",
}
_ROUNDED = 1e-9
"""Of a number of parts: 0.2 * 15 is not quite 3."""


def hold_amounts(child: Any, case: PruningCase, rounding: float, *, uniform: bool) -> None:
    """What was asked for is gone, to the number of parts where the pruner cuts alike, and nothing else is."""
    __tracebackhide__ = True
    before, after = sizes_of(case.config.build("float32")), measured(child, case)
    if len(before) != len(after):
        raise violation(f"{len(before)} layers were given and {len(after)} came back: none was to go", case)
    chosen = case.request.layer_range(len(before))
    for layer, (old, new) in enumerate(zip(before, after, strict=True)):
        for what, size in old.items():
            wanted = _wanted(case.request, what, size) if layer in chosen else 0.0
            gone = size - new.get(what, 0)
            if wanted and not uniform and 0 <= gone < size:
                continue
            if gone != wanted and abs(gone - wanted) >= (rounding - _ROUNDED if wanted else 0):
                raise violation(
                    f"layer {layer}: {gone} of {size} {_WORDS[what]} went where {wanted:.3g} were asked for", case
                )
    for part in case.request.parts:
        wanted = sum(_wanted(case.request, part, before[layer].get(part, 0)) for layer in chosen)
        gone = sum(before[layer].get(part, 0) - after[layer].get(part, 0) for layer in chosen)
        if wanted and wanted >= rounding * len(chosen) and not gone:
            raise violation(f"no {_WORDS[part]} went where {wanted:.3g} were asked for", case)


def _wanted(request: PruningRequest, what: str, size: float) -> float:
    """How many of ``size`` are to go; 0 of what no request speaks of."""
    return next((request.removes(part, size) for part in request.parts if part == what), 0.0)


def measured(child: Any, case: PruningCase) -> list[dict[str, float]]:
    """``sizes_of`` a pruned model, which must have some."""
    __tracebackhide__ = True
    try:
        return sizes_of(child)
    except GqacheckError as error:
        raise violation(f"the pruned model cannot be measured: {error}", case) from None


def sizes_of(model: Any) -> list[dict[str, float]]:
    """By layer: KV heads, query heads of each, MLP channels; and what no request asks to cut."""
    from gqacheck.runtime.live import describe_model

    geometry = measure(describe_model(model))
    found: list[dict[str, float]] = []
    for layer in geometry.layers:
        a, mlp = layer.attention, layer.mlp
        counts: dict[str, float] = {
            "kv_groups": a.n_kv_heads or 0,
            "queries": (a.n_q_heads or 0) / (a.n_kv_heads or 1),
            "hidden": geometry.hidden_size.value if geometry.hidden_size else 0,
            "head_dim": a.head_dim.value if a.head_dim else 0,
        }
        if mlp.intermediate_size is not None:
            counts["mlp"] = mlp.intermediate_size
        found.append({name: int(count) if count == int(count) else count for name, count in counts.items()})
    return found
