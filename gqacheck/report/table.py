"""The layer table: layers of equal shape on one row, with what changed from the parent beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gqacheck.geometry.facts import Attention, Geometry, Layer, Projection
from gqacheck.report.document import Grid
from gqacheck.report.words import layer_ranges, layers_words
from gqacheck.rules.rule import Finding, Severity

COMPACT_GROUPS = 3
"""Shapes that still fit into one sentence; more are a table."""


@dataclass(frozen=True, slots=True)
class Group:
    """Layers on one row: their indices, one of them for its numbers, their standing to the base, their error codes."""

    indices: list[int]
    layer: Layer
    standing: str
    codes: tuple[str, ...]


def groups(geometry: Geometry, base: Geometry | None = None, findings: Sequence[Finding] = ()) -> list[Group]:
    """Layers of equal shape, standing to the base and errors, in order of first layer."""
    errors: dict[int, dict[str, None]] = {}
    for finding in findings:
        if finding.severity is Severity.ERROR:
            for index in finding.layers:
                errors.setdefault(index, {})[finding.code] = None
    found: dict[tuple[object, ...], Group] = {}
    for layer in geometry.layers:
        standing, codes = _standing(layer, base), tuple(errors.get(layer.index, ()))
        group = found.setdefault((layer.signature, _sizes(layer), standing, codes), Group([], layer, standing, codes))
        group.indices.append(layer.index)
    return list(found.values())


def _standing(layer: Layer, base: Geometry | None) -> str:
    """``as base``, ``cut`` or ``differs``; "" when no layer of the base can be named beside this one."""
    if base is None or not base.layers:
        return ""
    parents = {parent.index: parent for parent in base.layers}
    parent = base.layers[0] if base.uniform else parents.get(layer.index)
    if parent is None:
        return "not compared"
    ours, theirs = _sizes(layer), _sizes(parent)
    if layer.signature == parent.signature and ours == theirs:
        return "as base"
    smaller = all(a is None or b is None or a <= b for a, b in zip(ours, theirs, strict=True))
    return "cut" if smaller else "differs"


def _sizes(layer: Layer) -> tuple[int | None, ...]:
    a, m = layer.attention, layer.mlp
    rows = [projection.rows if projection else None for projection in (a.q, a.k, a.v, m.gate)]
    columns = [projection.columns if projection else None for projection in (a.o, m.down)]
    return (*rows, *columns, m.intermediate_size, m.n_experts_stored)


def layer_grid(geometry: Geometry, base: Geometry | None = None, findings: Sequence[Finding] = ()) -> Grid:
    """The table of all layers; what changed from the base, and the codes of errors, stand at the end of a row."""
    header = ["layers", "q heads", "kv heads", "ratio", "head_dim", "mlp"]
    made = groups(geometry, base, findings)
    faults = any(group.codes for group in made)
    rows = []
    for group in made:
        a = group.layer.attention
        head_dim = str(a.head_dim.value) if a.head_dim else "?"
        row = [layer_ranges(group.indices), *heads(a), head_dim if a.kind == "full" else "-", mlp(group.layer)]
        row += [group.standing] if base else []
        row += [", ".join(group.codes)] if faults else []
        rows.append(tuple(row))
    header += [""] * (len(rows[0]) - len(header) if rows else 0)
    return Grid(tuple(header), tuple(rows), left=frozenset({0, 6, 7}))


def layers_sentence(geometry: Geometry) -> str | None:
    """All layers in one phrase, None when they have too many shapes for it.

    ``32 layers of 32 q, 8 kv heads (4:1), mlp 14336, head_dim 128 (config.json)``
    """
    shapes = groups(geometry)
    if not shapes or len(shapes) > COMPACT_GROUPS:
        return None
    n = geometry.n_layers
    count = f"{n} layer{'s' if n != 1 else ''}"
    widths = {layer.attention.head_dim.value for layer in geometry.layers if layer.attention.head_dim}
    sources = ", ".join(head_dim_sources(geometry.layers))
    head_dim = f", head_dim {', '.join(map(str, sorted(widths)))} ({sources})" if widths else ""
    if len(shapes) == 1:
        return f"{count} of {_shape(shapes[0].layer)}{head_dim}"
    each = "; ".join(f"{layers_words(group.indices)} of {_shape(group.layer)}" for group in shapes)
    return f"{count}{head_dim}: {each}"


def _shape(layer: Layer) -> str:
    a = layer.attention
    width = f"mlp {mlp(layer)}"
    if a.kind != "full":
        return f"{kind_words(a)}, {width}"
    if a.head_dim is None:
        return f"{_rows(a.q)} of q, {_rows(a.k)} of k (head_dim unknown), {width}"
    q, kv, parts = heads(a)
    return f"{q} q, {kv} kv heads ({parts}), {width}"


def heads(attention: Attention) -> tuple[str, str, str]:
    """Query heads, KV heads and their ratio, as written in the table; rows where heads do not divide."""
    if attention.kind != "full":
        return kind_words(attention), "-", "-"
    n_q, n_kv = attention.n_q_heads, attention.n_kv_heads
    q = str(n_q) if n_q is not None else _rows(attention.q)
    kv = str(n_kv) if n_kv is not None else _rows(attention.k)
    return q, kv, ratio(n_q, n_kv)


def _rows(projection: Projection | None) -> str:
    return f"{projection.rows} rows" if projection else "none"


def ratio(n_q: int | None, n_kv: int | None) -> str:
    """``4:1``, ``31:7`` in lowest terms, ``?`` when one is unknown or zero."""
    if not n_q or not n_kv:
        return "?"
    from math import gcd

    common = gcd(n_q, n_kv)
    return f"{n_q // common}:{n_kv // common}"


def kind_words(attention: Attention) -> str:
    """What stands in the place of heads in a layer without full attention."""
    return {"linear": "linear attention", "mla": "latent attention", "dropped": "dropped", "absent": "none"}.get(
        attention.kind, attention.kind
    )


def mlp(layer: Layer) -> str:
    """``14336``, ``40/128`` where gate and up differ, ``8 x 14336`` for experts, ``-`` for none."""
    width = layer.mlp.intermediate_size
    if layer.mlp.kind in ("dropped", "absent") or width is None:
        return layer.mlp.kind if layer.mlp.kind == "dropped" else "-"
    if layer.mlp.kind == "moe" and layer.mlp.n_experts_stored:
        return f"{layer.mlp.n_experts_stored} x {width}"
    if layer.mlp.gate is not None and layer.mlp.gate.rows != width:
        return f"{layer.mlp.gate.rows}/{width}"
    return str(width)


def head_dim_sources(layers: Sequence[Layer]) -> tuple[str, ...]:
    """Where head_dim was taken from, each source once."""
    return tuple(dict.fromkeys(layer.attention.head_dim.source for layer in layers if layer.attention.head_dim))
