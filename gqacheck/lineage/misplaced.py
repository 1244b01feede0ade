"""Rows that are the parent's, bit by bit, but of another projection or another layer than the one they stand in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from gqacheck.errors import ReadError
from gqacheck.geometry.facts import Layer
from gqacheck.geometry.origins import NOWHERE, Channels, Heads, Misplaced, MlpOrigin
from gqacheck.lineage.exact import tells
from gqacheck.lineage.layers import row_matrices
from gqacheck.lineage.matrix import Matrix
from gqacheck.lineage.pair import Pair

LEAST = 2
"""Rows from which it is said."""


def find_misplaced(
    pair: Pair, ours: Layer, theirs: Layer, heads: Mapping[str, Heads], mlps: Sequence[MlpOrigin]
) -> tuple[Misplaced, ...]:
    """Projections some rows of which are rows of another place in the parent, with the first of them.

    Looks only where rows match nothing in their own projection; experts are left out.
    """
    roles = [role for role in ("q", "k", "v") if role in heads and _unmatched_heads(heads[role])]
    if len(mlps) == 1 and mlps[0].expert is None:
        parts = (("gate", mlps[0].gate), ("up", mlps[0].up))
        roles += [role for role, channels in parts if channels is not None and _unmatched_channels(channels)]
    if not roles:
        return ()
    mine = row_matrices(pair.child, ours)
    found = [_look(pair, role, mine[role], theirs) for role in roles if role in mine]
    return tuple(one for one in found if one is not None)


def _unmatched_heads(heads: Heads) -> bool:
    return heads.state != "not-compared" and any(origin.how == "unmatched" for origin in heads.origins)


def _unmatched_channels(channels: Channels) -> bool:
    return channels.state != "not-compared" and NOWHERE in channels.parents


def _look(pair: Pair, role: str, matrix: Matrix, theirs: Layer) -> Misplaced | None:
    own = row_matrices(pair.parent, theirs).get(role)
    try:
        at_home = pair.lines(matrix, own, turned=False) if own is not None else [()] * matrix.n_lines
    except ReadError:
        return None
    for layer, other, place in _places(pair, role, theirs):
        if place.n_elements != (own or matrix).n_elements:
            continue
        try:
            lines = pair.lines(matrix, place, turned=False)
        except ReadError:
            continue
        rows = [
            n for n, (line, known) in enumerate(zip(lines, at_home, strict=True)) if line and tells(line) and not known
        ]
        if len(rows) >= LEAST:
            return Misplaced(
                role, other, layer, len(rows), matrix.n_lines, rows[0], lines[rows[0]][0], matrix.info.name
            )
    return None


def _places(pair: Pair, role: str, theirs: Layer) -> Iterator[tuple[int, str, Matrix]]:
    """Where else the rows may be from: the layer's other projections, then the same one of the other layers."""
    for other, matrix in row_matrices(pair.parent, theirs).items():
        if other != role:
            yield theirs.index, other, matrix
    for layer in pair.parent.geometry.layers:
        if layer.index != theirs.index:
            found = row_matrices(pair.parent, layer).get(role)
            if found is not None:
                yield layer.index, role, found
