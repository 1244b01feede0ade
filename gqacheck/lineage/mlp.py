"""The channels of one layer's MLP, dense or expert by expert, beside those of its parent layer."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from gqacheck.checkpoint import TensorInfo
from gqacheck.errors import ReadError
from gqacheck.geometry.facts import Expert, Layer, Mlp, Projection
from gqacheck.geometry.origins import NOWHERE, Channels, MlpOrigin
from gqacheck.lineage.exact import BLANK, ZERO, Candidates, share_found, tells
from gqacheck.lineage.matrix import Matrix, mlp_matrices
from gqacheck.lineage.pair import Pair, Side

ROLES = ("gate", "up", "down")
_PROBE = 64
"""Channels of an expert that are looked for in the parent's experts."""
_ENOUGH = 0.5


@dataclass(frozen=True, slots=True)
class Triple:
    """One gate/up/down triple as lines: the dense MLP (``expert`` None), an expert by number, or ``shared``."""

    expert: int | str | None
    matrices: Mapping[str, Matrix]


def trace_mlps(pair: Pair, ours: Layer, theirs: Layer) -> tuple[tuple[MlpOrigin, ...], list[str]]:
    """Where the channels of every triple of the layer came from, and a sentence for each part that was left alone."""
    mine, parents = list(triples(pair.child, ours.mlp)), list(triples(pair.parent, theirs.mlp))
    if not mine:
        return (), []
    if not parents:
        return (), ["mlp: the parent's layer has none"]
    found, left = [], []
    by_name = {triple.expert: triple for triple in parents}
    for number, triple in enumerate(mine):
        parent = by_name.get(triple.expert)
        if isinstance(triple.expert, int):
            parent = _parent_expert(pair, triple, parents, number)
        if parent is None:
            name = "its dense MLP" if triple.expert is None else f"expert {triple.expert}"
            left.append(f"mlp: {name} stands beside none in the parent's layer")
            continue
        channels, reasons = _trace(pair, triple, parent)
        left += reasons
        found.append(MlpOrigin(**channels, expert=triple.expert, parent_expert=parent.expert))
    return tuple(found), left


def triples(side: Side, mlp: Mlp) -> Iterator[Triple]:
    """The triples of one layer; a stacked tensor gives one per expert."""
    tensors = side.checkpoint.tensors
    if mlp.kind != "moe":
        found = mlp_matrices(side.geometry, (("gate", mlp.gate), ("up", mlp.up), ("down", mlp.down)), tensors)
        if found:
            yield Triple(None, found)
        return
    for expert in mlp.experts:
        if expert.index != "stacked":
            found = mlp_matrices(side.geometry, _projections(expert), tensors)
            if found:
                yield Triple(expert.index, found)
            continue
        for number in range(_stacked_count(expert, tensors)):
            yield Triple(number, mlp_matrices(side.geometry, _projections(expert), tensors, expert=number))


def _projections(expert: Expert) -> Sequence[tuple[str, Projection | None]]:
    return (("gate", expert.gate), ("up", expert.up), ("down", expert.down))


def _stacked_count(expert: Expert, tensors: Mapping[str, TensorInfo]) -> int:
    for projection in (expert.up, expert.down):
        info = tensors.get(projection.tensor) if projection is not None else None
        if info is not None and len(info.shape) == 3:
            return info.shape[0]
    return 0


def _parent_expert(pair: Pair, triple: Triple, parents: Sequence[Triple], guess: int) -> Triple | None:
    """The parent's expert that holds this one's channels: that of the same number first."""
    order = sorted((p for p in parents if isinstance(p.expert, int)), key=lambda p: abs(int(p.expert or 0) - guess))
    role = next((role for role in ("up", "gate") if role in triple.matrices), None)
    if role is None:
        return order[0] if order else None
    whole = triple.matrices[role]
    probe = Matrix(whole.info, whole.base, whole.lines[:_PROBE], whole.line_stride, whole.elements, whole.stride)
    for parent in order:
        if role in parent.matrices and _same_width(pair, whole, parent.matrices[role]):
            lines = pair.lines(probe, parent.matrices[role], turned=False)
            if share_found(lines) >= _ENOUGH:
                return parent
    if pair.similar:
        from gqacheck.lineage.arrays import likeness

        likely = {
            number: likeness(pair, whole, parent.matrices[role])
            for number, parent in enumerate(order)
            if role in parent.matrices
        }
        best = max(likely, key=likely.__getitem__, default=None)
        if best is not None and likely[best] >= _ENOUGH:
            return order[best]
    return next((parent for parent in order if parent.expert == triple.expert), None)


def _trace(pair: Pair, ours: Triple, theirs: Triple) -> tuple[dict[str, Channels], list[str]]:
    lines: dict[str, list[Candidates]] = {}
    found: dict[str, Channels] = {}
    left: list[str] = []
    for role in ROLES:
        mine, parent = ours.matrices.get(role), theirs.matrices.get(role)
        if mine is None or parent is None:
            continue
        if not _same_width(pair, mine, parent):
            left.append(f"{role}: its lines are of another width than the parent's")
            continue
        try:
            lines[role] = pair.lines(mine, parent, turned=role == "down")
        except ReadError as error:
            left.append(f"{role}: {error}")
            found[role] = Channels(role, "not-compared", parent.n_lines, tensor=mine.info.name, reason=str(error))
    for role in lines:
        others = [lines[other] for other in lines if other != role and len(lines[other]) == len(lines[role])]
        parents = settle(lines[role], others, theirs.matrices[role].n_lines)
        found[role] = Channels(
            role, "exact", theirs.matrices[role].n_lines, parents, tensor=ours.matrices[role].info.name
        )
    if any(not _all_told(candidates) for candidates in lines.values()):
        found |= _similar(pair, ours, theirs, found, lines)
        _follow(found, lines)
    return found, left


def _all_told(lines: Sequence[Candidates]) -> bool:
    return all(line and line != BLANK for line in lines)


def _follow(found: Mapping[str, Channels], lines: Mapping[str, Sequence[Candidates]]) -> None:
    """Lines of zeros go with the other projections, now that similarity has told those."""
    for role, candidates in lines.items():
        others = [found[other].parents for other in lines if other != role and found[other].told]
        for position, line in enumerate(candidates):
            near = [parents[position] for parents in others if position < len(parents) and parents[position] != NOWHERE]
            if line == ZERO and near and position < len(found[role].parents):
                found[role].parents[position] = near[0]


def _same_width(pair: Pair, ours: Matrix, theirs: Matrix) -> bool:
    return ours.n_elements == (len(pair.kept) if pair.kept is not None else theirs.n_elements)


def settle(lines: Sequence[Candidates], others: Sequence[Sequence[Candidates]], n_parent: int) -> array[int]:
    """One parent channel per line; where equal channels leave a choice, the one that the other projections have too.

    A line of zeros adds nothing and goes with the others; zeros in every projection count as the channel of that place.
    """
    parents = array("i", bytes(4 * len(lines)))
    for position, candidates in enumerate(lines):
        near = [other[position] for other in others if other[position] and tells(other[position])]
        if candidates == ZERO:
            parents[position] = near[0][0] if near else min(position, n_parent - 1)
        elif candidates and tells(candidates):
            shared = [candidate for candidate in candidates if any(candidate in other for other in near)]
            parents[position] = (shared or candidates)[0]
        else:
            parents[position] = NOWHERE
    return parents


def _similar(
    pair: Pair, ours: Triple, theirs: Triple, exact: Mapping[str, Channels], lines: Mapping[str, list[Candidates]]
) -> dict[str, Channels]:
    """The projections whose lines are not all the parent's bit by bit, told by cosine similarity."""
    from dataclasses import replace

    unsure = [role for role in lines if not _all_told(lines[role])]
    if not pair.similar:
        reason = "its numbers are not the parent's bit by bit, and similarity needs the [lineage] extra (numpy)"
        return {
            role: replace(exact[role], state="not-compared", parents=array("i"), reason=reason)
            for role in unsure
            if sum(bool(line) and tells(line) for line in lines[role]) < _ENOUGH * len(lines[role])
        }
    from gqacheck.lineage.arrays import COLUMN_ELEMENTS, both
    from gqacheck.lineage.similar import decide_projection, match_lines

    found = dict(exact)
    for role in sorted(unsure, key=("up", "gate", "down").index):
        mine, parent = ours.matrices[role], theirs.matrices[role]
        child_lines, parent_lines = both(pair, mine, parent, COLUMN_ELEMENTS, spread=role == "down")
        expected = _expected(role, found, mine.n_lines)
        matched, cosines = match_lines(child_lines, parent_lines, expected=expected)
        parents = array("i", exact[role].parents)
        told = [position for position, line in enumerate(lines[role]) if not line or line == BLANK]
        for position in told:
            parents[position] = int(matched[position])
        least = min((float(cosines[position]) for position in told if parents[position] != NOWHERE), default=None)
        found_now = any(parents[position] != NOWHERE for position in told)
        state = "similar" if found_now else "exact" if len(told) < len(parents) else "unmatched"
        if expected is not None and len(told) > _ENOUGH * len(parents):
            state = decide_projection(child_lines, parent_lines, matched, expected)
        found[role] = replace(exact[role], state=state, parents=parents, similarity=least)  # type: ignore[arg-type]
    return {role: found[role] for role in unsure}


def _expected(role: str, found: Mapping[str, Channels], n: int) -> array[int] | None:
    """What stands at each position by the other projections of the triple that are already told."""
    for other in ("up", "gate", "down"):
        channels = found.get(other)
        if other == role or channels is None or not channels.told or len(channels.parents) != n:
            continue
        if sum(channel != NOWHERE for channel in channels.parents) > _ENOUGH * n:
            return channels.parents
    return None
