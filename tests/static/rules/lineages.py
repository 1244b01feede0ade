"""Lineages made by hand: each head is written as the number of the parent's head that it came from.

layer_of([0, 1, 4, 5], [0, 1])                    # q and k; v goes with k, o with q; the parent is 12:3
layer_of([0, (4, 5), None], [0], v=[2])           # 4 or 5 (equal heads), one that matches nothing
layer_of([mixed(1, 2), 3], [0], o="rewritten")    # rows of two heads; a projection that matches nothing
lineage_of(layer_of(…), layer_of(…))              # layers 0, 1, …
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeAlias

from harness import Case

from gqacheck.geometry.origins import (
    Channels,
    Heads,
    LayerOrigin,
    Lineage,
    MlpOrigin,
    Origin,
    Relation,
    VectorOrigin,
)
from gqacheck.lineage.cause import layer_cause
from gqacheck.testing.sketch import sketch_llama

Entry: TypeAlias = "int | tuple[int, ...] | Origin | None"
Entries: TypeAlias = "Sequence[Entry] | str | Heads | None"
"""Head by head; or the state of a whole projection ("rewritten", "unmatched", "not-compared"); None: not there."""

UNSAID: Any = object()


def mixed(*heads: int) -> Origin:
    """Rows of several parent heads."""
    return Origin("mixed", heads)


def turned(head: int, *order: int) -> Origin:
    """A parent head whose lines stand in another order."""
    return Origin("exact", (head,), order=order)


def similar(head: int, cosine: float) -> Origin:
    """A parent head told by similarity."""
    return Origin("similar", (head,), cosine)


def heads_of(role: str, entries: Entries, n_parent: int) -> Heads | None:
    """One projection."""
    if entries is None or isinstance(entries, Heads):
        return entries
    tensor = f"{role}_proj.weight"
    if isinstance(entries, str):
        return Heads(role, entries, n_parent, (), tensor, "because")  # type: ignore[arg-type]
    origins = tuple(_origin(entry) for entry in entries)
    state = "similar" if any(origin.how == "similar" for origin in origins) else "exact"
    return Heads(role, state, n_parent, origins, tensor)


def _origin(entry: Entry) -> Origin:
    if isinstance(entry, Origin):
        return entry
    if entry is None:
        return Origin("unmatched")
    return Origin("exact", (entry,) if isinstance(entry, int) else entry)


def mlp_of(
    gate: Sequence[int] | str | None,
    up: Any = UNSAID,
    down: Any = UNSAID,
    *,
    n_parent: int = 96,
    expert: int | str | None = None,
    parent_expert: int | str | None = None,
) -> MlpOrigin:
    """One triple; up and down go with gate unless said."""
    up, down = gate if up is UNSAID else up, gate if down is UNSAID else down
    made = [channels_of(role, given, n_parent) for role, given in (("gate", gate), ("up", up), ("down", down))]
    return MlpOrigin(*made, expert=expert, parent_expert=parent_expert)


def channels_of(role: str, given: Sequence[int] | str | None, n_parent: int) -> Channels | None:
    """One MLP projection."""
    if given is None:
        return None
    tensor = f"{role}_proj.weight"
    if isinstance(given, str):
        return Channels(role, given, n_parent, tensor=tensor, reason="because")  # type: ignore[arg-type]
    return Channels(role, "exact", n_parent, array("i", given), tensor=tensor)


def layer_of(
    q: Entries = UNSAID,
    k: Entries = UNSAID,
    v: Entries = UNSAID,
    o: Entries = UNSAID,
    *,
    index: int = 0,
    parent: int | None = UNSAID,
    ratio: tuple[int, int] = (12, 3),
    mlps: Sequence[MlpOrigin] = (mlp_of(range(8), n_parent=8),),
    vectors: Sequence[VectorOrigin] = (),
    not_compared: Sequence[str] = (),
) -> LayerOrigin:
    """One layer of a child of a parent with ``ratio`` (query heads, KV heads); uncut where nothing is said."""
    n_q, n_kv = ratio
    q = list(range(n_q)) if q is UNSAID else q
    k = list(range(n_kv)) if k is UNSAID else k
    v, o = k if v is UNSAID else v, q if o is UNSAID else o
    made = [
        heads_of(role, given, n) for role, given, n in (("q", q, n_q), ("k", k, n_kv), ("v", v, n_kv), ("o", o, n_q))
    ]
    counts = [len(heads.origins) or None if heads is not None else None for heads in made[:2]]
    layer = LayerOrigin(
        index,
        index if parent is UNSAID else parent,
        counts[0],
        counts[1],
        n_q,
        n_kv,
        *made,
        mlps=tuple(mlps),
        vectors=tuple(vectors),
        not_compared=tuple(not_compared),
    )
    return replace(layer, cause=layer_cause(layer))


def lineage_of(*layers: LayerOrigin, relation: Relation = "child", n_parent: int | None = None, **more: Any) -> Lineage:
    """The lineage of these layers, numbered from 0 where two have the same index."""
    numbered = len({layer.index for layer in layers}) == len(layers)
    placed = layers if numbered else tuple(renumbered(layer, index) for index, layer in enumerate(layers))
    return Lineage(relation, layers=placed, n_parent_layers=n_parent or len(layers), **more)


def renumbered(layer: LayerOrigin, index: int) -> LayerOrigin:
    """The same layer in another place of the child; it came from that place of the parent unless it has moved."""
    return replace(layer, index=index, parent=index if layer.parent == layer.index else layer.parent)


def beside(*layers: LayerOrigin, lineage: Lineage | None = None, **options: Any) -> Case:
    """A small Llama of that many layers, with this lineage."""
    found = lineage if lineage is not None else lineage_of(*layers)
    return Case(sketch_llama(n_layers=max(1, len(found.layers))), lineage=found, **options)
