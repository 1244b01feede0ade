"""Which channels one MLP is made of after the repair: gate, up and down in step."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence

from gqacheck.geometry.facts import Projection
from gqacheck.geometry.origins import NOWHERE, Channels, LayerOrigin, MlpOrigin
from gqacheck.repair.facts import RoleTake, Take
from gqacheck.repair.vectors import follow

Projections = Mapping[str, Projection | None]
"""Role (``gate up down``) -> the projection as measured."""

_ROLES = ("gate", "up", "down")


def channel_faults(layer: LayerOrigin, mlp: MlpOrigin, child: Projections, parent: Projections) -> tuple[str, ...]:
    """What is wrong with one gate/up/down triple, in a few words each; () when nothing is, or it cannot be told."""
    told = _told(mlp)
    found = []
    names = list(told)
    for number, one in enumerate(names):
        for other in names[number + 1 :]:
            a, b = told[one].parents, told[other].parents
            if len(a) != len(b) or any(x != y and NOWHERE not in (x, y) for x, y in zip(a, b, strict=True)):
                found.append(f"{one}_proj and {other}_proj hold different channels")
    for vector in layer.vectors:
        if vector.role in _ROLES and vector.expert == mlp.expert and vector.wrong:
            found.append(f"the {vector.kind} of {vector.role} belongs to other channels")
    for role in ("gate", "up"):
        projection = child.get(role)
        if projection is not None and projection.bias not in (None, projection.rows):
            found.append(f"the bias of {role} was not cut with its weight")
    if any(child.values()):
        found += [f"{role}_proj is missing" for role in _ROLES if child.get(role) is None and parent.get(role)]
    return tuple(found)


def plan_channels(
    layer: LayerOrigin, mlp: MlpOrigin, child: Projections, parent: Projections, *, from_base: bool = False
) -> tuple[RoleTake, ...] | str:
    """What gate, up and down are made of, or one sentence that says why it cannot be told.

    The channels are those that two of the three agree on; else those of the one that does not simply hold the first
    ones, gate before up before down.
    """
    if mlp.expert is not None and mlp.parent_expert is None:
        return f"expert {mlp.expert} matches none of the parent's"
    told = _told(mlp)
    wanted = _wanted(told)
    if wanted is None:
        return "its projections hold no channels of the parent"
    takes = []
    for role in _ROLES:
        own = getattr(mlp, role)
        if child.get(role) is None and parent.get(role) is None:
            continue
        take = _take(wanted, own if role in told else None, from_base=from_base)
        if take is None:
            return f"channel {wanted.index(NOWHERE)} matches nothing in the parent"
        before = len(own.parents) if own is not None and own.told else _width(role, child.get(role))
        whole = "--from-base" if from_base else "" if role in told else f"it is {own.state if own else 'missing'}"
        takes.append(RoleTake(role, take, before, "weight", mlp.expert, mlp.parent_expert, whole))
    takes = _keep_fitted(takes, told)
    vectors = []
    for weight in takes:
        if weight.role == "down":
            continue
        ours, theirs = child.get(weight.role), parent.get(weight.role)
        stored, n_parent = (p.bias if p is not None else None for p in (ours, theirs))
        if stored is not None or n_parent is not None:
            vector = next((v for v in layer.vectors if v.role == weight.role and v.expert == mlp.expert), None)
            vectors.append(follow(weight, vector, "bias", stored or 0, n_parent or 0))
    return (*takes, *vectors)


def _told(mlp: MlpOrigin) -> dict[str, Channels]:
    found = {role: getattr(mlp, role) for role in _ROLES}
    return {role: channels for role, channels in found.items() if channels is not None and channels.told}


def _width(role: str, projection: Projection | None) -> int:
    if projection is None:
        return 0
    return projection.columns if role == "down" else projection.rows


def _wanted(told: Mapping[str, Channels]) -> list[int] | None:
    """The parent's channel at each position, ``NOWHERE`` where nobody tells; None when nothing is told at all."""
    if not told:
        return None
    for one in told.values():
        allies = [other for other in told.values() if other is not one and _agree(one.parents, other.parents)]
        if allies:
            return [max(names) for names in zip(one.parents, *(ally.parents for ally in allies), strict=True)]
    chosen = next((channels for channels in told.values() if not _first_ones(channels)), next(iter(told.values())))
    others = [channels.parents for channels in told.values() if len(channels.parents) == len(chosen.parents)]
    return [
        name if name != NOWHERE else max(names)
        for name, *names in zip(chosen.parents, *others, strict=True)
    ]  # fmt: skip


def _agree(one: Sequence[int], other: Sequence[int]) -> bool:
    return len(one) == len(other) and all(a == b or NOWHERE in (a, b) for a, b in zip(one, other, strict=True))


def _first_ones(channels: Channels) -> bool:
    """Whether the projection was cut to its first channels."""
    names = channels.parents
    return len(names) < channels.n_parent and all(name == place for place, name in enumerate(names))


def _take(wanted: Sequence[int], own: Channels | None, *, from_base: bool) -> Take | None:
    """Where each wanted channel comes from; None when one is nowhere to be had."""
    stands = own.parents if own is not None else array("i")
    places: dict[int, list[int]] = {}
    if not from_base:
        for position, name in enumerate(stands):
            if name != NOWHERE:
                places.setdefault(name, []).append(position)
    child = array("i", [NOWHERE]) * len(wanted)
    used = set()
    for place, name in enumerate(wanted):
        if place < len(stands) and (name == NOWHERE or (not from_base and stands[place] == name)):
            child[place] = place
            used.add(place)
        elif name == NOWHERE:
            return None
    for place, name in enumerate(wanted):
        if child[place] == NOWHERE:
            found = next((position for position in places.get(name, ()) if position not in used), None)
            if found is not None:
                child[place] = found
                used.add(found)
    return Take(child, array("i", wanted))


def _keep_fitted(takes: list[RoleTake], told: Mapping[str, Channels]) -> list[RoleTake]:
    """A down_proj that was fitted to what stands here stays where nothing it reads changes."""
    if "down" in told or any(take.changes for take in takes if take.role != "down"):
        return takes
    return [take for take in takes if take.role != "down" or take.before != len(take.take)]
