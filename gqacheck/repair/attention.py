"""Which heads one attention block is made of after the repair: each kept KV head with its own query heads."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from gqacheck.geometry.facts import Attention
from gqacheck.geometry.family import Family
from gqacheck.geometry.origins import NOWHERE, Heads, LayerOrigin
from gqacheck.repair.facts import RoleTake, Take
from gqacheck.repair.queries import Importance, Names, choose_queries, lazily
from gqacheck.repair.vectors import vector_takes
from gqacheck.rules.heads import counted

_Orders = Sequence[tuple[int, ...] | None]


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """The takes of q, k, v, o and what goes with them, the head counts afterwards and why these moved ("" if not)."""

    takes: tuple[RoleTake, ...]
    heads: tuple[int, int]
    counts: str = ""


@dataclass(frozen=True, slots=True)
class _Standing:
    """One projection's blocks as they stand: the heads that each may be (none when not told) and its inner order."""

    names: Names
    orders: _Orders

    @property
    def usual_order(self) -> tuple[int, ...] | None:
        """The order that most blocks share; None when they stand as in the parent."""
        counts = Counter(order for names, order in zip(self.names, self.orders, strict=True) if names)
        return counts.most_common(1)[0][0] if counts else None


def attention_faults(layer: LayerOrigin, child: Attention, parent: Attention, family: Family) -> tuple[str, ...]:
    """What is wrong with the pairing of one layer, in a few words each; () when nothing is, or it cannot be told."""
    q, k, v, o = layer.q, layer.k, layer.v, layer.o
    found = []
    if layer.misread():
        found.append("query heads read a KV head that is not theirs")
    if q is not None and k is not None and q.told and k.told and k.origins:
        n_q, n_kv = len(q.origins), len(k.origins)
        group = layer.parent_group
        if n_q % n_kv:
            found.append(f"{n_q} query heads over {counted(n_kv, 'KV head')} do not divide")
        elif group is not None and n_q // n_kv > group and not layer.misread():
            found.append(f"{n_q // n_kv} query heads per KV head where the parent has {group}")
    if _differ(k, v):
        found.append("k_proj and v_proj hold different heads")
    if _differ(q, o):
        found.append("q_proj and o_proj hold different heads")
    for vector in layer.vectors:
        if vector.role in ("q", "k", "v") and vector.expert is None and vector.wrong:
            found.append(f"the {vector.kind} of {vector.role} belongs to other heads")
    for projection in (child.q, child.k, child.v):
        if projection is not None and projection.bias not in (None, projection.rows):
            found.append(f"the bias of {projection.role} was not cut with its weight")
    for projection, other in ((child.q, parent.q), (child.k, parent.k), (child.v, parent.v)):
        lost = projection is not None and other is not None and projection.bias is None and other.bias is not None
        if lost and projection is not None and family.bias.get(projection.role) == "required":
            found.append(f"the bias of {projection.role} is missing")
    if child.o is None and parent.o is not None and child.q is not None:
        found.append("o_proj is missing")
    return tuple(found)


def _differ(one: Heads | None, other: Heads | None) -> bool:
    """Whether two projections, both told, hold other heads than each other at some position."""
    if one is None or other is None or not one.told or not other.told:
        return False
    if len(one.origins) != len(other.origins):
        return True
    pairs = zip(_names(one), _names(other), strict=True)
    return any(a and b and not a & b for a, b in pairs)


def plan_attention(
    layer: LayerOrigin,
    child: Attention,
    parent: Attention,
    family: Family,
    *,
    importance: Importance | None = None,
    from_base: bool = False,
) -> AttentionPlan | str:
    """What the attention of ``layer`` is made of, or one sentence that says why it cannot be told.

    The KV heads are those that most of q, k, v and o speak for, k first; each gets the parent's ratio at most, filled
    with its own query heads: those the checkpoint still holds, then the most important.
    """
    q, k, v = layer.q, layer.k, layer.v
    group = layer.parent_group
    if q is None or k is None or v is None or not (k.told or v.told):
        return "its k_proj and v_proj hold no heads of the parent"
    if group is None or layer.parent is None:
        return "the parent's query heads do not divide over its KV heads"
    kept = _kept_kv_heads(layer, group)
    if kept is None:
        return "some of its KV heads match nothing in the parent, so their query heads cannot be told"
    n_q = len(q.origins)
    size = min(n_q // len(kept), group)
    if size < 1:
        return f"{counted(n_q, 'query head')} cannot serve {counted(len(kept), 'KV head')}"
    wanted = choose_queries(kept, size, group, _names(q), lazily(importance, layer.parent))
    if wanted is None:
        return f"a KV head is kept so often that the parent's {counted(group, 'query head')} for it do not suffice"
    takes = _takes(layer, kept, wanted, size, from_base=from_base)
    takes += vector_takes(layer, child, parent, family, takes)
    moved = ""
    if (n_q, len(k.origins)) != (len(wanted), len(kept)):
        moved = f"{n_q} query heads over {counted(len(k.origins), 'KV head')} become {len(wanted)} over {len(kept)}"
    return AttentionPlan(tuple(takes), (len(wanted), len(kept)), moved)


def _names(heads: Heads | None) -> list[frozenset[int]]:
    if heads is None or not heads.told:
        return [frozenset()] * (len(heads.origins) if heads is not None else 0)
    return [frozenset(o.heads) if o.head is not None else frozenset() for o in heads.origins]


def _standing(heads: Heads) -> _Standing:
    return _Standing(_names(heads), [origin.order for origin in heads.origins])


def _kept_kv_heads(layer: LayerOrigin, group: int) -> list[int] | None:
    """The KV heads in their order: what most projections say; where they are even, k before v before q before o."""
    assert layer.k is not None
    assert layer.v is not None
    k, v = _first_names(layer.k), _first_names(layer.v)
    if len(k) == len(v):  # a head that is told in one of the two is told
        k, v = ([a if a is not None else b for a, b in zip(x, y, strict=True)] for x, y in ((k, v), (v, k)))
    lists: list[tuple[int, ...]] = [
        tuple(name for name in names if name is not None) for names in (k, v) if names and None not in names
    ]
    sizes = dict.fromkeys(len(names) for names in lists)
    for heads in (layer.q, layer.o):
        for n_kv in sizes:
            owners = _owners(_names(heads), n_kv, group)
            if owners is not None:
                lists.append(owners)
    if not lists:
        return None
    votes = Counter(lists)
    most = max(votes.values())
    return list(next(names for names in lists if votes[names] == most))


def _first_names(heads: Heads) -> list[int | None]:
    return [min(names) if names else None for names in _names(heads)]


def _owners(names: Names, n_kv: int, group: int) -> tuple[int, ...] | None:
    """The KV head that the query heads of each group were trained with, when all of a group agree on one."""
    if not names or len(names) % n_kv:
        return None
    size = len(names) // n_kv
    found = []
    for start in range(0, len(names), size):
        owners = [frozenset(head // group for head in heads) for heads in names[start : start + size]]
        common = frozenset.intersection(*owners)
        if not common:
            return None
        found.append(min(common))
    return tuple(found)


def _takes(
    layer: LayerOrigin, kept: Sequence[int], wanted: Sequence[int], size: int, *, from_base: bool
) -> list[RoleTake]:
    assert layer.q is not None
    assert layer.k is not None
    assert layer.v is not None
    k, v = _standing(layer.k), _standing(layer.v)
    takes = []
    for role, own, turning, heads in (("k", k, "q", layer.q), ("v", v, "o", layer.o)):
        usual = own.usual_order
        take, orders = _take(kept, own, [usual] * len(kept), any_order=True, from_base=from_base)
        takes.append(RoleTake(role, take, len(own.names), whole="--from-base" if from_base else ""))
        # rows inside a query head stand as those of the KV head that it reads
        needed = [orders[place // size] for place in range(len(wanted))]
        if heads is None:
            takes.append(RoleTake(turning, _all_from_parent(wanted, needed), 0))
            continue
        told = heads.told
        take, _ = _take(wanted, _standing(heads), needed, any_order=False, from_base=from_base or not told)
        whole = "--from-base" if from_base else "" if told else f"it is {heads.state} in the checkpoint"
        takes.append(RoleTake(turning, take, len(heads.origins), whole=whole))
    # an output projection that was fitted to what stood here stays only where nothing it reads changes
    q, o = next(t for t in takes if t.role == "q"), next(t for t in takes if t.role == "o")
    others = [t for t in takes if t.role != "o"]
    if layer.o is not None and not layer.o.told and not from_base and not any(t.changes for t in others):
        same = len(layer.o.origins) in (0, len(q.take))
        if same:
            takes.remove(o)
    return takes


def _take(
    wanted: Sequence[int], own: _Standing, needed: _Orders, *, any_order: bool, from_base: bool
) -> tuple[Take, list[tuple[int, ...] | None]]:
    """Where each wanted head comes from, and the inner order it then has: where it stands, else elsewhere in the
    checkpoint, else the parent."""
    n = len(wanted)
    child = array("i", [NOWHERE]) * n
    used: set[int] = set()

    def fits(position: int, place: int) -> bool:
        right_order = any_order or own.orders[position] == needed[place]
        return position not in used and wanted[place] in own.names[position] and right_order

    if not from_base:
        for place in range(min(n, len(own.names))):
            if fits(place, place):
                child[place] = place
                used.add(place)
        for place in range(n):
            if child[place] == NOWHERE:
                found = next((p for p in range(len(own.names)) if fits(p, place)), None)
                if found is not None:
                    child[place] = found
                    used.add(found)
    orders = [own.orders[child[p]] if child[p] != NOWHERE else needed[p] for p in range(n)]
    from_parent = {p: order for p, order in enumerate(orders) if child[p] == NOWHERE and order is not None}
    return Take(child, array("i", wanted), from_parent), orders


def _all_from_parent(wanted: Sequence[int], needed: _Orders) -> Take:
    orders = {place: order for place, order in enumerate(needed) if order is not None}
    return Take(array("i", [NOWHERE]) * len(wanted), array("i", wanted), orders)
