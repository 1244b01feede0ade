"""Which parts of a parent its child still has: the plan by which ``masked`` turns the parent into a reference.

Layers, heads, channels and experts are the parent's, as lineage found them. What lineage could not tell is not guessed:
it stands in ``Kept.notes``, and what follows from such a plan is partial.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from gqacheck.geometry.facts import Geometry, Layer
from gqacheck.geometry.origins import NOWHERE, Channels, Heads, LayerOrigin, Lineage, MlpOrigin

SHARED = "shared"


@dataclass(frozen=True, slots=True)
class KeptLayer:
    """What stays of one parent layer.

    heads: query heads; None when all of them stay, () when the attention gives nothing any more, not even its bias.
    channels: of the dense MLP, in the same way. experts: of an expert (its number, or ``shared``) the channels that
    stay; one that is not named stays whole.
    """

    heads: tuple[int, ...] | None = None
    channels: tuple[int, ...] | None = None
    experts: Mapping[int | str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def whole(self) -> bool:
        """Whether nothing is missing."""
        return self.heads is None and self.channels is None and not self.experts


@dataclass(frozen=True, slots=True)
class Kept:
    """What stays of a parent: one entry per parent layer, by position; None for a layer that is gone.

    hidden: the residual columns that stay, None for all. notes: where the plan is not exactly what the child has, one
    sentence each. lacking: something that the child lacks, or has otherwise, is not masked.
    """

    layers: tuple[KeptLayer | None, ...]
    hidden: tuple[int, ...] | None = None
    notes: tuple[str, ...] = ()
    lacking: bool = False

    @property
    def whole(self) -> bool:
        """Whether nothing is missing, so that masking would change nothing."""
        return self.hidden is None and all(layer is not None and layer.whole for layer in self.layers)


def kept_of(lineage: Lineage, child: Geometry, parent: Geometry) -> Kept:
    """The plan that leaves in the parent what the child still has, with a note on every part that it leaves out.

    A head is missing when it is no query head's origin, a channel when it is none of ``down``'s (else of ``up``'s, else
    of ``gate``'s), a layer when it is no layer's parent. Where the child holds fewer parts than the parent and some of
    its parts match nothing, every part that was not found counts as missing: that errs on the side of the pruning.
    """
    notes = _Notes()
    position_of = {layer.index: position for position, layer in enumerate(parent.layers)}
    layer_of = {layer.index: layer for layer in child.layers}
    found: dict[int, list[KeptLayer]] = {}
    order: list[int] = []
    foreign: list[int] = []
    for origin in lineage.layers:
        position = position_of.get(origin.parent) if origin.parent is not None else None
        if position is None:
            foreign.append(origin.index)
            continue
        order.append(position)
        layer = _kept_layer(origin, layer_of.get(origin.index), parent.layers[position], notes)
        found.setdefault(position, []).append(layer)
    gone = [position for position in range(len(parent.layers)) if position not in found]
    stand_in = len(foreign) >= len(gone)  # as many foreign layers as missing ones: none was removed
    if foreign:
        notes.add(foreign, "it matches no layer of the parent, so what it should be compared with is not known")
    if len(set(order)) < len(order):
        repeated = sorted({parent.layers[position].index for position in order if order.count(position) > 1})
        notes.say(f"parent layers {_ranges(repeated)} stand more than once in the child, and once in the reference")
    elif any(a > b for a, b in pairwise(order)):
        notes.say("the child's layers stand in another order than the parent's; the reference keeps the parent's")
    return Kept(
        layers=tuple(
            _union(found[position]) if position in found else KeptLayer() if stand_in else None
            for position in range(len(parent.layers))
        ),
        hidden=tuple(lineage.kept_hidden) if lineage.kept_hidden is not None else None,
        notes=notes.sentences(),
        lacking=notes.lacking,
    )


class _Notes:
    """Sentences about layers, each said once for all the layers that it holds for.

    ``lacking`` becomes true with the first one that tells of something that the plan does not mask.
    """

    def __init__(self) -> None:
        self.lacking = False
        self._layers: dict[str, list[int]] = {}
        self._whole: list[str] = []

    def add(self, layers: Iterable[int], sentence: str, *, lacking: bool = True) -> None:
        self.lacking = self.lacking or lacking
        self._layers.setdefault(sentence, []).extend(layers)

    def say(self, sentence: str) -> None:
        self.lacking = True
        self._whole.append(sentence)

    def sentences(self) -> tuple[str, ...]:
        each = (
            f"layer{'' if len(set(layers)) == 1 else 's'} {_ranges(layers)}: {sentence}"
            for sentence, layers in self._layers.items()
        )
        return (*self._whole, *each)


def _ranges(numbers: Iterable[int]) -> str:
    """``4-11, 13``."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def _kept_layer(origin: LayerOrigin, child: Layer | None, parent: Layer, notes: _Notes) -> KeptLayer:
    heads = None
    if parent.attention.kind == "full":
        heads = _kept_heads(origin, child, parent, notes)
    dense: tuple[int, ...] | None = None
    experts: dict[int | str, tuple[int, ...]] = {}
    for mlp in origin.mlps:
        channels = _kept_channels(origin.index, mlp, notes)
        if channels is None:
            continue
        if mlp.expert is None:
            dense = channels
        elif mlp.parent_expert is not None:
            experts[mlp.parent_expert] = channels
    if child is not None and child.mlp.kind in ("dropped", "absent") and parent.mlp.kind not in ("dropped", "absent"):
        dense = ()
    elif not origin.mlps and _width(child) != _width(parent):
        notes.add([origin.index], "its MLP was not compared, so its missing channels could not be masked")
    _note_lost_experts(origin, child, parent, notes)
    return KeptLayer(heads, dense, experts)


def _width(layer: Layer | None) -> int | None:
    return layer.mlp.intermediate_size if layer is not None else None


def _kept_heads(origin: LayerOrigin, child: Layer | None, parent: Layer, notes: _Notes) -> tuple[int, ...] | None:
    if child is not None and child.attention.kind in ("dropped", "absent"):
        return ()
    n_parent = origin.parent_n_q or parent.attention.n_q_heads
    n_child = origin.n_q or (child.attention.n_q_heads if child is not None else None)
    candidates = _candidates(origin.q, origin.o)
    if not n_parent or candidates is None:
        if n_parent is None or n_child != n_parent:
            reason = (origin.q.reason if origin.q is not None else "") or "its query heads were not matched"
            notes.add([origin.index], f"{reason}, so the missing ones could not be masked")
        return None
    taken, doubled = _assign(candidates)
    kept = tuple(sorted({head for head in taken if head is not None and 0 <= head < n_parent}))
    unknown = sum(head is None for head in taken)
    missing = n_parent - len(kept)
    if doubled:
        notes.add([origin.index], f"parent query heads {_ranges(doubled)} stand more than once in the child")
    if missing <= unknown:
        return None
    if not kept:
        notes.add([origin.index], "its query heads match none of the parent's, so none were masked")
        return None
    if unknown:
        notes.add(
            [origin.index],
            f"{unknown} of {len(taken)} query heads match none of the parent's, so all {missing} that were not found "
            "are masked",
            lacking=False,
        )
    return kept


def _candidates(q: Heads | None, o: Heads | None) -> list[tuple[int, ...]] | None:
    """For each position the parent heads that it may be, () when none; None when neither projection can be judged."""
    told = [heads for heads in (q, o) if heads is not None and heads.told and heads.origins]
    if not told:
        return None
    found = []
    for position, origin in enumerate(told[0].origins):
        mine = origin.heads if origin.how != "mixed" else ()
        if len(told) > 1 and position < len(told[1].origins):
            other = told[1].origins[position]
            theirs = other.heads if other.how != "mixed" else ()
            mine = tuple(head for head in mine if head in theirs) or mine or theirs
        found.append(mine)
    return found


def _assign(candidates: Sequence[tuple[int, ...]]) -> tuple[list[int | None], list[int]]:
    """One head for each position, different ones where there is a choice, and the heads that were taken twice."""
    taken: list[int | None] = [None] * len(candidates)
    used: set[int] = set()
    doubled: list[int] = []
    for position in sorted(range(len(candidates)), key=lambda position: len(candidates[position])):
        options = candidates[position]
        if not options:
            continue
        head = next((head for head in options if head not in used), options[0])
        if head in used:
            doubled.append(head)
        used.add(head)
        taken[position] = head
    return taken, doubled


def _kept_channels(layer: int, mlp: MlpOrigin, notes: _Notes) -> tuple[int, ...] | None:
    stored = [channels for channels in (mlp.down, mlp.up, mlp.gate) if channels is not None]
    # down speaks for the MLP, unless it was rewritten in part and another projection was not
    told = min((c for c in stored if c.told and _lost(c) < len(c.parents)), key=_lost, default=None)
    where = "its MLP" if mlp.expert is None else "its shared expert" if mlp.expert == SHARED else f"expert {mlp.expert}"
    if told is None:
        if any(len(channels.parents) not in (0, channels.n_parent) for channels in stored) or not stored:
            notes.add([layer], f"the channels of {where} match none of the parent's, so none were masked")
        elif stored and all(not len(channels.parents) for channels in stored):
            reason = next((channels.reason for channels in stored if channels.reason), "") or f"{where} was not matched"
            notes.add([layer], f"{reason}, so its missing channels could not be masked")
        return None
    kept = {channel for channel in told.parents if channel != NOWHERE and channel < told.n_parent}
    unknown = _lost(told)
    missing = told.n_parent - len(kept)
    if len(kept) + unknown < len(told.parents):
        notes.add([layer], f"some of the parent's channels stand more than once in {where}")
    if missing <= unknown:
        return None
    if unknown:
        notes.add(
            [layer],
            f"{unknown} of {len(told.parents)} channels of {where} match none of the parent's, so all {missing} that "
            "were not found are masked",
            lacking=False,
        )
    return tuple(sorted(kept))


def _lost(channels: Channels) -> int:
    """Positions whose channel matches nothing."""
    return sum(channel == NOWHERE for channel in channels.parents)


def _note_lost_experts(origin: LayerOrigin, child: Layer | None, parent: Layer, notes: _Notes) -> None:
    before, after = parent.mlp.n_experts_stored, child.mlp.n_experts_stored if child is not None else None
    if before and after is not None and after < before:
        notes.add([origin.index], f"{before - after} of {before} experts are gone, which the reference still has")
    unmatched = [mlp.expert for mlp in origin.mlps if mlp.expert is not None and mlp.parent_expert is None]
    if unmatched:
        notes.add([origin.index], f"{len(unmatched)} experts match none of the parent's")


def _union(layers: Sequence[KeptLayer]) -> KeptLayer:
    """What at least one of several copies of a layer still has."""
    if len(layers) == 1:
        return layers[0]
    named = set(layers[0].experts).intersection(*(layer.experts for layer in layers[1:]))
    return KeptLayer(
        _joined([layer.heads for layer in layers]),
        _joined([layer.channels for layer in layers]),
        {expert: tuple(sorted({c for layer in layers for c in layer.experts[expert]})) for expert in named},
    )


def _joined(parts: Sequence[tuple[int, ...] | None]) -> tuple[int, ...] | None:
    kept: set[int] = set()
    for part in parts:
        if part is None:
            return None
        kept.update(part)
    return tuple(sorted(kept))
