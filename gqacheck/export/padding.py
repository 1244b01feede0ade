"""How layers of different sizes are brought to one: which heads and channels stay, and where zeros go between them.

Every KV head keeps its query heads beside it. A group with fewer query heads than the others gets zeros at its end, a
layer with fewer groups gets whole groups of zeros at its end, an MLP zero channels at its end.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from gqacheck.export.facts import Refused
from gqacheck.geometry.facts import Attention, Expert, Geometry, Layer, Mlp, Norm, Projection
from gqacheck.geometry.family import Family

Axis: TypeAlias = tuple[tuple[int, bool], ...]
"""One dimension of a padded tensor: (how many, whether they are stored) in order; what is not stored is zero."""
Spread: TypeAlias = tuple[Axis | None, ...]
"""A padded tensor, dimension by dimension; None: as it is stored."""

_LISTED = re.compile(r"\.norms\.\d+\.weight$")  # StableLM

PADDED = "gqacheck_padded"
"""The config key that says what every layer had before zeros were added; nothing reads it but people."""


@dataclass(frozen=True, slots=True)
class Target:
    """What every layer has afterwards. group: query heads of one KV head. dense, routed, shared: MLP channels.

    0: no layer has such a part.
    """

    kv: int
    group: int
    dense: int = 0
    routed: int = 0
    shared: int = 0

    @property
    def heads(self) -> int:
        """Query heads."""
        return self.kv * self.group


def smallest(geometry: Geometry) -> Target:
    """The smallest sizes that every layer fits into.

    Raises:
        Refused: heads cannot be counted, or a layer's cannot be shared evenly.
    """
    full = [layer for layer in geometry.layers if layer.attention.kind == "full"]
    if not full and any(layer.attention.kind == "dropped" for layer in geometry.layers):
        raise Refused("no layer has an attention block left whose size the others could take")
    kv = group = 1 if full else 0
    for layer in full:
        n_q, n_kv = heads_of(layer)
        kv, group = max(kv, n_kv), max(group, n_q // n_kv)
    widths = [width for layer in geometry.layers for width in widths_of(layer)]
    dense, routed, shared = (
        max((width for kind, width in widths if kind == wanted), default=0) for wanted in ("dense", "routed", "shared")
    )
    return Target(kv, group, dense, routed, shared)


def heads_of(layer: Layer) -> tuple[int, int]:
    """Query heads and KV heads of a layer with full attention.

    Raises:
        Refused: they cannot be counted, or query heads do not share KV heads evenly.
    """
    n_q, n_kv = layer.attention.n_q_heads, layer.attention.n_kv_heads
    if not n_q or not n_kv:
        raise Refused(f"layer {layer.index}: its heads cannot be counted")
    if n_q % n_kv:
        raise Refused(f"layer {layer.index}: {n_q} query heads cannot share {n_kv} KV heads evenly")
    return n_q, n_kv


def widths_of(layer: Layer) -> Iterator[tuple[str, int]]:
    """Channels of the layer's MLP, or of each of its experts, with ``dense``, ``routed`` or ``shared``."""
    mlp = layer.mlp
    if mlp.kind in ("gated", "plain") and mlp.up is not None:
        yield "dense", mlp.up.rows
    for expert in mlp.experts:
        if expert.up is not None:
            yield "shared" if expert.index == "shared" else "routed", expert.up.rows


def spreads(geometry: Geometry, target: Target) -> dict[str, Spread]:
    """Stored name -> where its rows and columns go, for every tensor that gets zeros.

    Raises:
        Refused: zeros would change what a layer computes.
    """
    found: dict[str, Spread] = {}
    for layer in geometry.layers:
        if layer.attention.kind == "full":
            found |= _attention(layer, geometry.family, target)
        found |= _mlp(layer.mlp, geometry.family, target)
    return {name: spread for name, spread in found.items() if any(axis and _has_zeros(axis) for axis in spread)}


def _attention(layer: Layer, family: Family, target: Target) -> dict[str, Spread]:
    a = layer.attention
    n_q, n_kv = heads_of(layer)
    assert a.head_dim is not None
    unit = a.head_dim.value
    queries = query_axis(n_q, n_kv, target, unit)
    found: dict[str, Spread] = {}
    if a.fused is not None:
        found |= _rows(a.fused, _fused_axis(family, n_q, n_kv, target, unit))
    else:
        found |= _rows(a.q, query_axis(n_q, n_kv, target, a.q_unit or unit))
        for projection in (a.k, a.v):
            found |= _rows(projection, _ended(n_kv * unit, target.kv * unit))
    if a.o is not None:
        found[a.o.tensor] = (None, queries)
    if a.sinks is not None:
        for name in family.roles.get("sinks", ()):
            found[f"{layer.path}.{name}"] = (query_axis(n_q, n_kv, target, 1),)
    return found | _norms(layer, a, family, target)


def query_axis(n_q: int, n_kv: int, target: Target, unit: int) -> Axis:
    """Query heads of ``unit`` rows each: every group filled up by itself, then whole groups."""
    group = n_q // n_kv
    runs = [(group * unit, True), ((target.group - group) * unit, False)] * n_kv
    return _joined([*runs, ((target.kv - n_kv) * target.group * unit, False)])


def _fused_axis(family: Family, n_q: int, n_kv: int, target: Target, unit: int) -> Axis:
    """Rows of q, k and v in one tensor: one after the other, or KV head by KV head."""
    kv = _ended(n_kv * unit, target.kv * unit)
    if family.fused_qkv != "per-kv-group":
        return _joined([*query_axis(n_q, n_kv, target, unit), *kv, *kv])
    group = n_q // n_kv
    runs = [(group * unit, True), ((target.group - group) * unit, False), (2 * unit, True)] * n_kv
    return _joined([*runs, ((target.kv - n_kv) * (target.group + 2) * unit, False)])


def _norms(layer: Layer, a: Attention, family: Family, target: Target) -> dict[str, Spread]:
    """Norms of q and k: one per head has a row for each; one over all heads must not get any zeros."""
    n_q, n_kv = heads_of(layer)
    found: dict[str, Spread] = {}
    for norm, have, want, axis in (
        (a.q_norm, n_q, target.heads, query_axis(n_q, n_kv, target, 1)),
        (a.k_norm, n_kv, target.kv, _ended(n_kv, target.kv)),
    ):
        if norm is None or have == want:
            continue
        if _over_all_heads(norm, a, family):
            raise Refused(
                f"layer {layer.index}: {norm.name} takes the mean over all {have} heads together, and zeros beside "
                "them would change it"
            )
        if _LISTED.search(norm.tensor):
            raise Refused(f"layer {layer.index}: each head has a norm of its own, and those are not padded")
        if len(norm.shape) == 2:
            found[norm.tensor] = (axis, None)
    return found


def _over_all_heads(norm: Norm, a: Attention, family: Family) -> bool:
    wide = len(norm.shape) == 1 and a.head_dim is not None and norm.width != a.head_dim.value
    return family.qk_norm == "all-heads" or wide


def _mlp(mlp: Mlp, family: Family, target: Target) -> dict[str, Spread]:
    found: dict[str, Spread] = {}
    if mlp.kind in ("gated", "plain"):
        found |= _block(mlp, family, target.dense)
    for expert in mlp.experts:
        if expert.index == "stacked":
            found |= _stacked(expert, family, target.routed)
        else:
            found |= _block(expert, family, target.shared if expert.index == "shared" else target.routed)
    return found


def _block(block: Mlp | Expert, family: Family, width: int) -> dict[str, Spread]:
    found: dict[str, Spread] = {}
    if block.up is None or block.down is None:
        return found
    axis = _ended(block.up.rows, width)
    if block.fused is not None:
        found |= _rows(block.fused, _pair_axis(family, block.up.rows, width))
    else:
        found |= _rows(block.gate, axis) | _rows(block.up, axis)
    found[block.down.tensor] = (None, axis)
    return found


def _stacked(expert: Expert, family: Family, width: int) -> dict[str, Spread]:
    """All experts in one tensor, [experts, outputs, inputs] or [experts, inputs, outputs]."""
    found: dict[str, Spread] = {}
    if expert.up is None or expert.down is None or expert.fused is None:
        return found
    pair, axis = _pair_axis(family, expert.up.rows, width), _ended(expert.up.rows, width)
    turned = family.stacked_transposed
    found[expert.fused.tensor] = (None, None, pair) if turned else (None, pair, None)
    found[expert.down.tensor] = (None, axis, None) if turned else (None, None, axis)
    if expert.fused.bias_tensor is not None:
        found[expert.fused.bias_tensor] = (None, pair)
    return found


def _pair_axis(family: Family, have: int, want: int) -> Axis:
    """Rows of gate and up in one tensor: one after the other, or in turn."""
    if family.gate_up == "interleaved":
        return _ended(2 * have, 2 * want)
    return _joined([*_ended(have, want), *_ended(have, want)])


def _rows(projection: Projection | None, axis: Axis) -> dict[str, Spread]:
    """A projection's output rows, and its bias along with them."""
    if projection is None:
        return {}
    found: dict[str, Spread] = {projection.tensor: (axis, None)}
    if projection.bias_tensor is not None:
        found[projection.bias_tensor] = (axis,)
    return found


def _ended(have: int, want: int) -> Axis:
    """``have`` that are stored, and zeros up to ``want``."""
    return _joined([(have, True), (want - have, False)])


def _joined(runs: list[tuple[int, bool]]) -> Axis:
    made: list[tuple[int, bool]] = []
    for count, stored in runs:
        if made and made[-1][1] == stored:
            made[-1] = (made[-1][0] + count, stored)
        elif count:
            made.append((count, stored))
    return tuple(made)


def _has_zeros(axis: Axis) -> bool:
    return any(not stored for _, stored in axis)


def stored_size(axis: Axis) -> int:
    """How many of an axis are stored."""
    return sum(count for count, stored in axis if stored)


def full_size(axis: Axis) -> int:
    """How many an axis has with its zeros."""
    return sum(count for count, _ in axis)


def cut_axis(axis: Axis, start: int, count: int) -> tuple[int, Axis]:
    """``count`` of an axis from ``start`` on, and how many stored ones come before them."""
    made: list[tuple[int, bool]] = []
    before = at = 0
    for size, stored in axis:
        low, high = max(start, at), min(start + count, at + size)
        if high > low:
            made.append((high - low, stored))
        if stored:
            before += min(max(start - at, 0), size)
        at += size
    return before, _joined(made)


def layer_sizes(geometry: Geometry) -> Mapping[str, list[int | None]]:
    """What every layer had, for the config: 0 where a block was dropped, None where it is of another kind."""
    lists: dict[str, list[int | None]] = {}
    for layer in geometry.layers:
        a, m = layer.attention, layer.mlp
        gone = a.kind == "dropped"
        for key, value in (
            ("num_attention_heads", 0 if gone else a.n_q_heads),
            ("num_key_value_heads", 0 if gone else a.n_kv_heads),
            ("intermediate_size", 0 if m.kind == "dropped" else m.intermediate_size),
        ):
            lists.setdefault(key, []).append(value)
    return lists
