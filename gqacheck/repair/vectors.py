"""Biases, all-heads norms and sinks of a repaired projection: each block goes with its head or channel."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from gqacheck.geometry.facts import Attention
from gqacheck.geometry.family import Family
from gqacheck.geometry.lines import Kind
from gqacheck.geometry.origins import NOWHERE, LayerOrigin, VectorOrigin
from gqacheck.repair.facts import RoleTake, Take


def vector_takes(
    layer: LayerOrigin, child: Attention, parent: Attention, family: Family, takes: Sequence[RoleTake]
) -> list[RoleTake]:
    """Biases, all-heads norms and sinks: each follows the blocks of its projection."""
    found = []
    weights = {take.role: take for take in takes}
    for role, ours, theirs in (("q", child.q, parent.q), ("k", child.k, parent.k), ("v", child.v, parent.v)):
        stored = ours.bias if ours is not None else None
        n_parent = theirs.bias if theirs is not None else None
        unit = child.q_unit if role == "q" else child.head_dim.value if child.head_dim else None
        if (stored is None and n_parent is None) or not unit:
            continue
        found.append(_follow(layer, weights[role], "bias", (stored or 0) // unit, (n_parent or 0) // unit))
    if family.qk_norm in ("all-heads", "per-head-rows"):
        for role, norm, other in (("q", child.q_norm, parent.q_norm), ("k", child.k_norm, parent.k_norm)):
            if norm is not None and other is not None and child.head_dim is not None:
                n, n_parent = (_elements(x.shape) // child.head_dim.value for x in (norm, other))
                found.append(_follow(layer, weights[role], "norm", n, n_parent))
    if child.sinks is not None:
        found.append(_follow(layer, weights["q"], "sinks", child.sinks, parent.sinks or 0))
    return found


def _elements(shape: Sequence[int]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def _follow(layer: LayerOrigin, weight: RoleTake, kind: Kind, before: int, n_parent: int) -> RoleTake:
    """The take of a vector of ``before`` blocks (0: it is missing) beside ``weight``."""
    vector = next((v for v in layer.vectors if v.role == weight.role and v.kind == kind and v.expert is None), None)
    return follow(weight, vector, kind, before, n_parent)


def follow(weight: RoleTake, vector: VectorOrigin | None, kind: Kind, before: int, n_parent: int) -> RoleTake:
    """The take of a vector that goes with ``weight``: its block moves with the weight's unless it belongs elsewhere.

    A vector that was not cut with its weight (it is as long as the parent's) is cut now.
    """
    take = weight.take
    child = array("i", take.child)
    uncut = before != weight.before
    wrong = {} if vector is None else dict(zip(vector.wrong, vector.found, strict=False))
    belongs = {head: position for position, head in wrong.items()}
    for place, position in enumerate(take.child):
        head = take.parent[place]
        if uncut:
            child[place] = head if before == n_parent and head != NOWHERE else NOWHERE
        elif position == NOWHERE or position in wrong:
            child[place] = belongs.get(head, NOWHERE) if weight.whole != "--from-base" else NOWHERE
    return RoleTake(
        weight.role,
        Take(child, take.parent, take.orders),
        before,
        kind,
        weight.expert,
        weight.parent_expert,
        weight.whole,
    )
