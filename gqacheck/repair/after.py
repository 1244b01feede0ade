"""A layer's geometry as a plan leaves it."""

from __future__ import annotations

from dataclasses import replace

from gqacheck.geometry.facts import Layer, Projection
from gqacheck.repair.facts import LayerPlan


def after(layer: Layer, plan: LayerPlan) -> Layer:
    """The layer with its projections as long as the plan makes them: where blocks lie in a fused tensor follows."""
    attention, mlp = layer.attention, layer.mlp
    if plan.heads is not None and attention.head_dim is not None and attention.q_unit:
        n_q, n_kv = plan.heads
        width = attention.head_dim.value
        attention = replace(
            attention,
            q=_long(attention.q, n_q * attention.q_unit, 0),
            k=_long(attention.k, n_kv * width, 0),
            v=_long(attention.v, n_kv * width, 0),
            o=_long(attention.o, 0, n_q * width),
        )
    widths = {take.role: len(take.take) for take in plan.takes if take.expert is None and take.kind == "weight"}
    if "up" in widths:
        width = widths["up"]
        mlp = replace(mlp, gate=_long(mlp.gate, width, 0), up=_long(mlp.up, width, 0), down=_long(mlp.down, 0, width))
    return replace(layer, attention=attention, mlp=mlp)


def _long(projection: Projection | None, rows: int, columns: int) -> Projection | None:
    if projection is None:
        return None
    bias = rows if projection.bias is not None and rows else projection.bias
    return replace(projection, rows=rows or projection.rows, columns=columns or projection.columns, bias=bias)
