"""Biases, all-heads norms and sinks: whether each value goes with the head or channel whose weight stands there."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from gqacheck.errors import ReadError
from gqacheck.geometry.facts import Attention, Layer, Projection
from gqacheck.geometry.lines import channel_rows, fused_rows
from gqacheck.geometry.origins import NOWHERE, Heads, MlpOrigin, State, VectorOrigin
from gqacheck.lineage.cast import numbers
from gqacheck.lineage.exact import tells
from gqacheck.lineage.matrix import Matrix, plain_matrix
from gqacheck.lineage.pair import Pair, Side

_NEAR = 0.2
"""A block that is another parent head's lies this close to it, relative to how far it is from its own."""

_FEW = 4
"""Entries of a block below which it is judged like a channel: with the whole vector, not by itself."""

Kind = Literal["bias", "norm", "sinks"]


@dataclass(frozen=True, slots=True)
class _Vector:
    """One vector of the child and its parent's: entries of both, ``width`` to a position."""

    role: str
    kind: Kind
    tensor: str
    ours: bytes
    theirs: bytes
    dtype: str
    width: int
    size: int

    def block(self, data: bytes, position: int) -> bytes:
        """The entries of one position."""
        step = self.width * self.size
        return data[position * step : (position + 1) * step]


def trace_vectors(
    pair: Pair, ours: Layer, theirs: Layer, heads: Mapping[str, Heads], mlps: Sequence[MlpOrigin]
) -> tuple[VectorOrigin, ...]:
    """What is wrong with the vectors of one layer, one value per vector."""
    found = [
        vector if isinstance(vector, VectorOrigin) else _by_head(vector, heads[vector.role])
        for vector in _of_heads(pair, ours, theirs)
        if _told(heads, vector.role)
    ]
    if ours.mlp.kind in ("gated", "plain") and theirs.mlp.kind == ours.mlp.kind and mlps:
        found += list(_of_channels(pair, ours, theirs, mlps[0]))
    if ours.mlp.router is not None and theirs.mlp.router is not None:
        found += _of_router(pair, ours.mlp.router, theirs.mlp.router, mlps)
    return tuple(found)


def _told(heads: Mapping[str, Heads], role: str) -> bool:
    return role in heads and heads[role].told


def _of_heads(pair: Pair, ours: Layer, theirs: Layer) -> Iterator[_Vector | VectorOrigin]:
    a, b = ours.attention, theirs.attention
    width = a.head_dim.value if a.head_dim else None
    if not width:
        return
    for role, mine, parents, unit in (
        ("q", a.q, b.q, a.q_unit), ("k", a.k, b.k, width), ("v", a.v, b.v, width),
    ):  # fmt: skip
        if mine is None or parents is None or unit is None or mine.bias is None or parents.bias is None:
            continue
        yield from _read(pair, role, "bias", _bias(pair.child, a, mine), _bias(pair.parent, b, parents), unit)
    for role, norm, parent_norm in (("q", a.q_norm, b.q_norm), ("k", a.k_norm, b.k_norm)):
        if norm is not None and parent_norm is not None and _all_heads(pair.child, a, role):
            yield from _read(
                pair, role, "norm", _whole(pair.child, norm.tensor), _whole(pair.parent, parent_norm.tensor), width
            )
    if a.sinks and b.sinks:
        yield from _read(
            pair, "q", "sinks", _whole(pair.child, f"{a.path}.sinks"), _whole(pair.parent, f"{b.path}.sinks"), 1
        )


def _all_heads(side: Side, attention: Attention, role: str) -> bool:
    """Whether the norm has its own values for every head (OLMo-2), and not the same for all (Qwen3)."""
    norm, projection = (attention.q_norm, attention.q) if role == "q" else (attention.k_norm, attention.k)
    if norm is None or projection is None:
        return False
    entries = 1
    for size in norm.shape:
        entries *= size
    return side.geometry.family.qk_norm in ("all-heads", "per-head-rows") and entries == projection.rows


def _bias(side: Side, attention: Attention, projection: Projection) -> Sequence[Matrix] | None:
    """The bias with one entry as a line, in the order of the projection's rows."""
    info = side.checkpoint.tensors.get(projection.bias_tensor or "")
    if info is None or len(info.shape) != 1:
        return None
    rows: Sequence[int] | None = range(info.shape[0])
    if projection.derived is not None:
        if projection.role in ("gate", "up"):
            rows = channel_rows(projection, info.shape[0])
        else:
            rows = fused_rows(side.geometry, attention, projection.role)
    return None if rows is None else [Matrix(info, info.storage_offset, rows, info.strides[0], range(1), 1)]


def _whole(side: Side, tensor: str) -> Sequence[Matrix] | None:
    """A vector, a matrix of one row per head, or a list of vectors, one per head (StableLM), entry by entry."""
    tensors = side.checkpoint.tensors
    before, listed, after = tensor.partition(".norms.0.")
    names = [tensor]
    while listed and f"{before}.norms.{len(names)}.{after}" in tensors:
        names.append(f"{before}.norms.{len(names)}.{after}")
    infos = [tensors.get(name) for name in names]
    if any(info is None or not info.shape or not info.is_contiguous for info in infos):
        return None
    return [Matrix(info, info.storage_offset, range(info.numel), 1, range(1), 1) for info in infos if info is not None]


def _read(
    pair: Pair, role: str, kind: Kind, ours: Sequence[Matrix] | None, theirs: Sequence[Matrix] | None, width: int
) -> Iterator[_Vector | VectorOrigin]:
    """The vector of both, or that it was not compared; nothing where one of the two has none."""
    if not ours or not theirs:
        return
    if any(sum(matrix.n_lines for matrix in side) % width for side in (ours, theirs)):
        yield VectorOrigin(role, kind, "not-compared", ours[0].info.name)
        return
    dtype = ours[0].info.dtype
    try:
        mine = b"".join([sample for matrix in ours for sample in pair.child.samples(matrix, range(1))])
        parents = b"".join([sample for matrix in theirs for sample in pair.parent_samples(matrix, range(1), dtype)])
    except ReadError:
        yield VectorOrigin(role, kind, "not-compared", ours[0].info.name)
        return
    size = len(mine) // max(1, sum(matrix.n_lines for matrix in ours))
    yield _Vector(role, kind, ours[0].info.name, mine, parents, dtype, width, size)


def _by_head(vector: _Vector, heads: Heads) -> VectorOrigin:
    """The vector's blocks against those of the heads that the weight's rows came from."""
    if vector.width < _FEW and len(vector.ours) == len(heads.origins) * vector.width * vector.size:
        return _by_channel(vector, [NOWHERE if origin.head is None else origin.head for origin in heads.origins])
    n_parent = len(vector.theirs) // (vector.width * vector.size)
    if len(vector.ours) != len(heads.origins) * vector.width * vector.size:
        return VectorOrigin(vector.role, vector.kind, "not-compared", vector.tensor)
    parents = [vector.block(vector.theirs, head) for head in range(n_parent)]
    wrong: list[int] = []
    found: list[int] = []
    exact = rewritten = 0
    for position, origin in enumerate(heads.origins):
        mine = vector.block(vector.ours, position)
        if origin.head is None or not any(mine) or origin.heads[0] >= n_parent:
            continue  # zeros were masked, and add nothing
        own = [_ordered(vector, parents[head], origin.order) for head in origin.heads]
        if mine in own:
            exact += 1
            continue
        other = _nearest(vector, mine, own, parents)
        if other is None:
            rewritten += 1
        elif other not in origin.heads:
            wrong.append(position)
            found.append(other)
    state: State = "rewritten" if rewritten and not exact and not wrong else "exact"
    return VectorOrigin(vector.role, vector.kind, state, vector.tensor, tuple(wrong), tuple(found), len(heads.origins))


def _ordered(vector: _Vector, block: bytes, order: tuple[int, ...] | None) -> bytes:
    if order is None or len(order) != vector.width:
        return block
    return b"".join(block[line * vector.size : (line + 1) * vector.size] for line in order)


def _nearest(vector: _Vector, mine: bytes, own: Sequence[bytes], parents: Sequence[bytes]) -> int | None:
    """The parent's block that ``mine`` is, where that is clear; None when it may be its own, changed by training."""
    if mine in parents:
        return parents.index(mine)
    distances = [_distance(vector, mine, block) for block in parents]
    best = min(range(len(parents)), key=distances.__getitem__)
    mine_to_own = min(_distance(vector, mine, block) for block in own)
    return best if distances[best] < _NEAR * mine_to_own else None


def _distance(vector: _Vector, a: bytes, b: bytes) -> float:
    return math.dist(numbers(a, vector.dtype), numbers(b, vector.dtype))


def _of_channels(pair: Pair, ours: Layer, theirs: Layer, mlp: MlpOrigin) -> Iterator[VectorOrigin]:
    for role, mine, parents, channels in (
        ("gate", ours.mlp.gate, theirs.mlp.gate, mlp.gate), ("up", ours.mlp.up, theirs.mlp.up, mlp.up),
    ):  # fmt: skip
        if mine is None or parents is None or channels is None or not channels.told:
            continue
        pieces = _bias(pair.child, ours.attention, mine), _bias(pair.parent, theirs.attention, parents)
        for vector in _read(pair, role, "bias", *pieces, 1):
            if isinstance(vector, VectorOrigin):
                yield vector
            elif len(vector.ours) == len(channels.parents) * vector.size:
                yield _by_channel(vector, channels.parents)
            else:
                yield VectorOrigin(role, "bias", "not-compared", vector.tensor)


def _by_channel(vector: _Vector, origins: Sequence[int]) -> VectorOrigin:
    """Single numbers tell little one by one, so the vector is accused only as a whole."""
    entry: Callable[[bytes, int], bytes] = vector.block
    places: dict[bytes, int] = {}
    for channel in range(len(vector.theirs) // vector.size):
        places.setdefault(entry(vector.theirs, channel), channel)
    off = [
        position
        for position, channel in enumerate(origins)
        if channel != NOWHERE and entry(vector.ours, position) != entry(vector.theirs, channel)
    ]
    if len(off) >= 2 and _belongs_elsewhere(vector, origins, off):
        found = tuple(places[entry(vector.ours, position)] for position in off)
        return VectorOrigin(vector.role, vector.kind, "exact", vector.tensor, tuple(off), found, len(origins))
    state: State = "rewritten" if len(off) == len(origins) else "exact"
    return VectorOrigin(vector.role, vector.kind, state, vector.tensor, positions=len(origins))


def _belongs_elsewhere(vector: _Vector, origins: Sequence[int], off: Sequence[int]) -> bool:
    """Whether the values that are not their own line's are all the parent's of other lines, and no training moved them.

    Numbers of 16 bits meet by chance, so the whole vector must be a selection of the parent's values, none more often
    than there, and what is off must be as far from its own as lines are from each other.
    """
    size = vector.size
    ours = Counter(vector.ours[at : at + size] for at in range(0, len(vector.ours), size))
    theirs = Counter(vector.theirs[at : at + size] for at in range(0, len(vector.theirs), size))
    if any(count > theirs[value] for value, count in ours.items()):
        return False
    parents, mine = numbers(vector.theirs, vector.dtype), numbers(vector.ours, vector.dtype)
    apart = sorted(abs(mine[position] - parents[origins[position]]) for position in off)
    return apart[len(apart) // 2] > _NEAR * statistics.pstdev(parents)


def _of_router(pair: Pair, ours: Projection, theirs: Projection, mlps: Sequence[MlpOrigin]) -> list[VectorOrigin]:
    """Whether the router's row at each expert's place is that of the parent's expert that stands there."""
    mine, parents = pair.child.checkpoint.tensors.get(ours.tensor), pair.parent.checkpoint.tensors.get(theirs.tensor)
    if mine is None or parents is None or len(mine.shape) != 2 or len(parents.shape) != 2:
        return []
    try:
        lines = pair.lines(plain_matrix(mine), plain_matrix(parents), turned=False)
    except ReadError:
        return [VectorOrigin("router", "router", "not-compared", mine.name)]
    experts = {mlp.expert: mlp.parent_expert for mlp in mlps if isinstance(mlp.expert, int)}
    wrong = [
        (position, line[0])
        for position, line in enumerate(lines)
        if line and tells(line) and experts.get(position) is not None and experts[position] not in line
    ]
    known = any(line and tells(line) for line in lines)
    positions, found = tuple(position for position, _ in wrong), tuple(row for _, row in wrong)
    state: State = "exact" if known else "rewritten"
    return [VectorOrigin("router", "router", state, mine.name, positions, found, len(lines))]
