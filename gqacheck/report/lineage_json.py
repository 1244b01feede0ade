"""The ``lineage`` object of the JSON report: the whole map of every layer, in the parent's numbers.

Positions are the child's, from 0. Channels are written as runs in the child's order, ``0-99,104``, with ``?`` where a
channel matches nothing, for a model has hundreds of thousands of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from gqacheck.geometry.origins import (
    NOWHERE,
    Channels,
    Heads,
    LayerOrigin,
    Lineage,
    Misread,
    MlpOrigin,
    Origin,
    VectorOrigin,
)


def lineage_data(lineage: Lineage) -> dict[str, Any]:
    """The lineage as plain dicts and lists; times are left out, so that the same check gives the same bytes."""
    return {
        "relation": lineage.relation,
        "reason": lineage.reason,
        "method": lineage.method,
        "fine_tuned": _number(lineage.fine_tuned),
        "n_parent_layers": lineage.n_parent_layers,
        "kept_hidden": None if lineage.kept_hidden is None else channel_runs(lineage.kept_hidden),
        "notes": list(lineage.notes),
        "bytes_read": lineage.bytes_read,
        "layers": [_layer(layer) for layer in lineage.layers],
    }


def _layer(layer: LayerOrigin) -> dict[str, Any]:
    return {
        "index": layer.index,
        "parent": layer.parent,
        "n_q_heads": layer.n_q,
        "n_kv_heads": layer.n_kv,
        "group_size": layer.group,
        "parent_n_q_heads": layer.parent_n_q,
        "parent_n_kv_heads": layer.parent_n_kv,
        "parent_group_size": layer.parent_group,
        "paired": layer.paired,
        "misread": [_misread(found) for found in layer.misread()],
        "cause": layer.cause,
        "q": _heads(layer.q),
        "k": _heads(layer.k),
        "v": _heads(layer.v),
        "o": _heads(layer.o),
        "mlps": [_mlp(mlp) for mlp in layer.mlps],
        "vectors": [_vector(vector) for vector in layer.vectors],
        "not_compared": list(layer.not_compared),
    }


def _misread(found: Misread) -> dict[str, Any]:
    return {"position": found.position, "head": found.head, "own_kv": found.own, "reads_kv": found.reads}


def _heads(heads: Heads | None) -> dict[str, Any] | None:
    if heads is None:
        return None
    similar = [origin.similarity for origin in heads.origins]
    return {
        "state": heads.state,
        "reason": heads.reason,
        "tensor": heads.tensor,
        "n_parent": heads.n_parent,
        "origins": [_origin(origin) for origin in heads.origins],
        "mixed": [position for position, origin in enumerate(heads.origins) if origin.how == "mixed"],
        "similarity": None if all(value is None for value in similar) else [_number(value) for value in similar],
        "orders": _orders(heads.origins),
    }


def _origin(origin: Origin) -> int | list[int] | None:
    if not origin.heads:
        return None
    return origin.heads[0] if len(origin.heads) == 1 else list(origin.heads)


def _orders(origins: Sequence[Origin]) -> list[dict[str, Any]]:
    """Orders of lines inside a head other than the parent's, each with the positions that have it."""
    alike: dict[tuple[int, ...], list[int]] = {}
    for position, origin in enumerate(origins):
        if origin.order is not None:
            alike.setdefault(origin.order, []).append(position)
    return [{"positions": positions, "order": list(order)} for order, positions in alike.items()]


def _mlp(mlp: MlpOrigin) -> dict[str, Any]:
    told = [part for part in (mlp.gate, mlp.up, mlp.down) if part is not None and part.told]
    return {
        "expert": mlp.expert,
        "parent_expert": mlp.parent_expert,
        "misaligned": misaligned(told) if len(told) > 1 else None,
        "gate": _channels(mlp.gate),
        "up": _channels(mlp.up, mlp.gate),
        "down": _channels(mlp.down, mlp.gate or mlp.up),
    }


def misaligned(parts: Sequence[Channels]) -> int:
    """Positions at which the parts hold different channels of the parent; one that matches nothing is not counted."""
    if all(part.parents == parts[0].parents for part in parts):
        return 0
    return sum(len(set(found) - {NOWHERE}) > 1 for found in zip(*(part.parents for part in parts), strict=False))


def _channels(part: Channels | None, beside: Channels | None = None) -> dict[str, Any] | None:
    """``parents`` is null, and ``same_as`` names the other projection, where both hold the same channels."""
    if part is None:
        return None
    same = beside is not None and bool(part.parents) and part.parents == beside.parents
    return {
        "state": part.state,
        "reason": part.reason,
        "tensor": part.tensor,
        "n_parent": part.n_parent,
        "kept": len(part.parents) - part.parents.count(NOWHERE),
        "unmatched": part.parents.count(NOWHERE),
        "similarity": _number(part.similarity),
        "same_as": beside.role if same and beside is not None else None,
        "parents": None if same else channel_runs(part.parents),
    }


def channel_runs(parents: Iterable[int]) -> str:
    """``0-99,104,?,7-8``: the parent's numbers in the child's order, ascending neighbours as one run."""
    made: list[list[int]] = []
    for parent in parents:
        if made and parent != NOWHERE and parent == made[-1][1] + 1 and made[-1][1] != NOWHERE:
            made[-1][1] = parent
        else:
            made.append([parent, parent])
    return ",".join("?" if a == NOWHERE else str(a) if a == b else f"{a}-{b}" for a, b in made)


def _vector(vector: VectorOrigin) -> dict[str, Any]:
    return {
        "role": vector.role,
        "kind": vector.kind,
        "state": vector.state,
        "tensor": vector.tensor,
        "expert": vector.expert,
        "positions": vector.positions,
        "wrong": list(vector.wrong),
        "found": list(vector.found),
    }


def _number(value: float | None) -> float | None:
    """Six decimals: cosines differ in the last digits from one machine to the next. NaN and infinities are null."""
    return None if value is None or not math.isfinite(value) else round(float(value), 6)
