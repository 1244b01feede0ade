"""A repaired child spread out into its parent's shape: every block where its origin stands there, zeros elsewhere.

Where the pairing is right, this computes what the child computes: the parent's own counts then say which query head
reads which KV head. It is the reference for a child whose tensors are not the parent's bit by bit.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from gqacheck.geometry.facts import Attention, Geometry, Layer
from gqacheck.geometry.origins import NOWHERE, Channels, Heads, LayerOrigin, Lineage, MlpOrigin
from gqacheck.repair.facts import LayerPlan, RoleTake, Take


class CannotExpand(Exception):
    """The child cannot be spread out; the message says why."""


def expand_plans(lineage: Lineage, child: Geometry, parent: Geometry) -> tuple[LayerPlan, ...]:
    """For every layer the plan that gives it the parent's head and channel counts, with nothing of the parent in it.

    Raises:
        CannotExpand: a block's place in the parent is not known or taken twice, or the family cannot be masked so.
    """
    if child.family.qk_norm == "all-heads":
        raise CannotExpand("its norms over all heads count what is masked")
    ours = {layer.index: layer for layer in child.layers}
    theirs = {layer.index: layer for layer in parent.layers}
    plans = []
    for origin in lineage.layers:
        layer = ours.get(origin.index)
        other = theirs.get(origin.parent) if origin.parent is not None else None
        if layer is None or other is None or origin.parent is None:
            continue
        takes: list[RoleTake] = []
        heads = None
        if layer.attention.kind == "full":
            takes += _heads(origin, layer.attention, other.attention)
            n_q, n_kv = other.attention.n_q_heads, other.attention.n_kv_heads
            heads = (n_q, n_kv) if n_q and n_kv else None
        for mlp in origin.mlps:
            takes += _channels(origin.index, mlp, layer, other)
        plans.append(LayerPlan(origin.index, origin.parent, (), tuple(takes), heads))
    return tuple(plans)


def _heads(layer: LayerOrigin, child: Attention, parent: Attention) -> list[RoleTake]:
    n_q, n_kv, group = child.n_q_heads, child.n_kv_heads, layer.group
    total_q, total_kv = parent.n_q_heads, parent.n_kv_heads
    if layer.q is None or layer.k is None or not (n_q and n_kv and group and total_q and total_kv):
        raise CannotExpand(f"layer {layer.index}: its heads were not compared")
    if total_q % total_kv:
        raise CannotExpand(f"layer {layer.index}: the parent's query heads do not divide over its KV heads")
    parent_group = total_q // total_kv
    kv = _places(layer.k, n_kv, layer.index)
    q: list[int] = []
    for position in range(n_q):
        pool = range(kv[position // group] * parent_group, (kv[position // group] + 1) * parent_group)
        names = _names(layer.q, position)
        own = [head for head in names if head not in q]
        free = [head for head in pool if head not in q]
        chosen = own or ([] if names else free)
        if not chosen:
            raise CannotExpand(f"layer {layer.index}: query head {position} has no place of its own in the parent")
        q.append(next((head for head in chosen if head in pool), chosen[0]))
    v = _own_places(layer.v, kv, layer.index)
    o = _own_places(layer.o, q, layer.index)
    takes = []
    roles = (("q", q, total_q, n_q), ("k", kv, total_kv, n_kv), ("v", v, total_kv, n_kv), ("o", o, total_q, n_q))
    for role, places, total, before in roles:
        take = _spread(places, total)
        takes.append(RoleTake(role, take, before))
        projection = {"q": child.q, "k": child.k, "v": child.v}.get(role)
        if projection is not None and projection.bias is not None:
            takes.append(RoleTake(role, take, before, "bias"))
        norm = {"q": child.q_norm, "k": child.k_norm}.get(role)
        if norm is not None and len(norm.shape) == 2:
            takes.append(RoleTake(role, take, before, "norm"))
    if child.sinks is not None:
        takes.append(RoleTake("q", _spread(q, total_q), n_q, "sinks"))
    return takes


def _names(heads: Heads, position: int) -> tuple[int, ...]:
    if not heads.told or position >= len(heads.origins):
        return ()
    origin = heads.origins[position]
    return origin.heads if origin.head is not None else ()


def _places(heads: Heads, n: int, index: int) -> list[int]:
    """One parent head for each position, no two the same."""
    found: list[int] = []
    for position in range(n):
        free = [head for head in _names(heads, position) if head not in found]
        if not free:
            raise CannotExpand(f"layer {index}: KV head {position} has no place of its own in the parent")
        found.append(free[0])
    return found


def _own_places(heads: Heads | None, others: Sequence[int], index: int) -> list[int]:
    """Where the blocks stand by their own origin; by that of their partners where they have none (a rewritten o)."""
    if heads is None or not heads.told or len(heads.origins) != len(others):
        return list(others)
    found: list[int] = []
    for position, other in enumerate(others):
        names = _names(heads, position)
        found.append(other if other in names or not names else names[0])
    if len(set(found)) < len(found):
        raise CannotExpand(f"layer {index}: two blocks of {heads.role} have one place in the parent")
    return found


def _spread(places: Sequence[int], total: int) -> Take:
    child = array("i", [NOWHERE]) * total
    for position, place in enumerate(places):
        child[place] = position
    return Take(child, array("i", [NOWHERE]) * total)


def _channels(index: int, mlp: MlpOrigin, layer: Layer, other: Layer) -> list[RoleTake]:
    from gqacheck.geometry.lines import mlp_projections

    told = [channels for channels in (mlp.gate, mlp.up, mlp.down) if channels is not None and channels.told]
    if not told:
        raise CannotExpand(f"layer {index}: its MLP channels were not compared")
    n, total = len(told[0].parents), told[0].n_parent
    named = _named_channels(told, n)
    takes = []
    for role, projection in mlp_projections(layer.mlp, mlp.expert).items():
        if projection is None:
            continue
        own: Channels | None = getattr(mlp, role)
        stands = own.parents if own is not None and own.told and len(own.parents) == n else named
        names = [name if name != NOWHERE else other for name, other in zip(stands, named, strict=True)]
        take = _spread(_channel_places(names, total, index), total)
        takes.append(RoleTake(role, take, n, "weight", mlp.expert, mlp.parent_expert))
        if role != "down" and projection.bias is not None:
            takes.append(RoleTake(role, take, n, "bias", mlp.expert, mlp.parent_expert))
    return takes


def _named_channels(told: Sequence[Channels], n: int) -> list[int]:
    """The parent's channel at each position by the first projection that tells it, ``NOWHERE`` where none does."""
    lists = [channels.parents for channels in told if len(channels.parents) == n]
    return [next((names[place] for names in lists if names[place] != NOWHERE), NOWHERE) for place in range(n)]


def _channel_places(named: Sequence[int], total: int, index: int) -> list[int]:
    """One parent channel for each position, no two the same; a channel that matches nothing takes a free one."""
    taken = [name for name in named if name != NOWHERE]
    if len(set(taken)) < len(taken):
        raise CannotExpand(f"layer {index}: some of its channels are the parent's same one")
    free = iter(sorted(set(range(total)) - set(taken)))
    places = []
    for name in named:
        place = name if name != NOWHERE else next(free, NOWHERE)
        if place == NOWHERE:
            raise CannotExpand(f"layer {index}: it has more channels than the parent")
        places.append(place)
    return places
