"""Which parent block or line each one of a child is, told by cosine similarity where the bits differ.

Pure functions over float32 arrays; nothing here reads a file. ``evidence`` says when a cosine is enough. What these
functions answer may accuse a checkpoint, so every doubt is answered with several candidates or with none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from gqacheck.lineage.assignment import assign
from gqacheck.lineage.evidence import EQUAL, LEAST, apart, even, finite, independent_values, least_cosine, units
from gqacheck.lineage.order import best_order, find_order
from gqacheck.lineage.rewritten import Told, decide_projection
from gqacheck.lineage.similar_lines import match_lines

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

__all__ = ["BlockMatch", "Told", "decide_projection", "match_blocks", "match_lines"]

DOUBTED: Final = 0.9
"""Below this cosine a block is also looked at with even scales, and its lines in other orders."""


@dataclass(frozen=True, slots=True)
class BlockMatch:
    """Which parent block one child block is.

    candidates: every parent block that it may be, best first: one when it is told, several where the parent's blocks
        are equal or too alike for the difference to tell, () when it matches none. Accuse only what none excuses.
    parent: ``candidates[0]`` where it is told, where the candidates are equal blocks, or where ``expected`` is one of
        them (then it stands first); None when undecided (several candidates) or unmatched (none).
    similarity: cosine to ``candidates[0]``, else to the most similar block. order: for each line of the child's block
        the line of the parent's it came from, None when they stand as in the parent.
    """

    parent: int | None
    similarity: float
    candidates: tuple[int, ...] = ()
    order: tuple[int, ...] | None = None


def match_blocks(child: Floats, parent: Floats, *, expected: Sequence[int | None] | None = None) -> list[BlockMatch]:
    """One match for each child block. child: [P, L, C], parent: [N, L, C], the same L lines and C sampled columns.

    expected: for each position the parent block that it should be; it decides only between candidates. A block that
    the child holds twice is answered twice. Scales of lines and columns (a folded norm) and orders of lines inside the
    block (rotary layouts) are seen through where the plain cosine tells nothing.
    """
    if not len(child) or not len(parent):
        return [BlockMatch(None, 0.0)] * len(child)
    child, parent = finite(child), finite(parent)
    plain = _Cosines.of(child, parent)
    told = [plain.look(position) for position in range(len(child))]
    if any(len(look.candidates) != 1 for look in told):
        evened = _Cosines.of(even(child), even(parent))
        told = [_clearer(look, evened.look(position)) for position, look in enumerate(told)]
    matches = _named(told, plain.overlap, expected)
    return [
        _in_order(match, child[position], parent, plain.n) if match.similarity < DOUBTED else match
        for position, match in enumerate(matches)
    ]


@dataclass(frozen=True, slots=True)
class _Look:
    """What one view says of one child block. candidates: most similar first. similarity: to each parent block, [N]."""

    candidates: tuple[int, ...]
    similarity: NDArray[Any]


@dataclass(frozen=True, slots=True)
class _Cosines:
    """One view of all blocks. similarity: [P, N]; overlap: [N, N] between parents; n: independent values of a block."""

    similarity: NDArray[Any]
    overlap: NDArray[Any]
    n: float
    least: float

    @classmethod
    def of(cls, child: Floats, parent: Floats) -> _Cosines:
        import numpy as np

        ours, theirs = units(child.astype(np.float64)), units(parent.astype(np.float64))
        overlap = theirs @ theirs.T
        n = min(independent_values(child), independent_values(parent))
        unrelated = overlap[~np.eye(len(parent), dtype=bool)]
        tried = math.log(max(1, len(child) * len(parent)))
        return cls(ours @ theirs.T, overlap, n, least_cosine(n, tried, unrelated[unrelated < 1 - EQUAL]))

    def look(self, position: int) -> _Look:
        """The parents that the block at one position may be; no candidates when it is none of them."""
        row = self.similarity[position]
        best = int(row.argmax())
        if row[best] < self.least:
            return _Look((), row)
        distinct = apart(row[best], row, self.overlap[best], self.n)
        return _Look(tuple(int(j) for j in (-row).argsort(kind="stable") if not distinct[j]), row)


def _clearer(plain: _Look, evened: _Look) -> _Look:
    """The view that tells one parent; the other one is asked only where the plain cosine is low or tells nothing."""
    if not evened.candidates or len(plain.candidates) == 1:
        return plain
    if not plain.candidates:
        best = int(plain.similarity.argmax())
        close = plain.similarity[best] >= LEAST and best not in evened.candidates
        return _Look((*evened.candidates, best), evened.similarity) if close else evened
    narrower = len(evened.candidates) == 1 and evened.candidates[0] in plain.candidates
    return evened if narrower and plain.similarity.max() < DOUBTED else plain


def _named(told: list[_Look], overlap: NDArray[Any], expected: Sequence[int | None] | None) -> list[BlockMatch]:
    """The matches, undecided blocks shared out one to one over what the decided ones leave."""
    import numpy as np

    undecided = [position for position, look in enumerate(told) if len(look.candidates) > 1]
    taken = {look.candidates[0] for look in told if len(look.candidates) == 1}
    share: dict[int, int] = {}
    if undecided:
        gain = np.full((len(undecided), len(overlap)), -4.0)
        for row, position in enumerate(undecided):
            for j in told[position].candidates:
                gain[row, j] = told[position].similarity[j] - (2.0 if j in taken else 0.0)
        share = dict(zip(undecided, assign(gain), strict=True))
    matches = []
    for position, look in enumerate(told):
        first = look.candidates[:1]
        hoped = expected[position] if expected is not None else None
        if share.get(position) in look.candidates:
            first = (share[position],)
        if hoped in look.candidates:
            first = (hoped,)
        candidates = first + tuple(j for j in look.candidates if j not in first)
        equal = all(overlap[candidates[0], j] >= 1 - EQUAL for j in candidates)
        named = candidates[0] if candidates and (equal or candidates[0] == hoped) else None
        best = candidates[0] if candidates else int(look.similarity.argmax())
        matches.append(BlockMatch(named, float(look.similarity[best]), candidates))
    return matches


def _in_order(match: BlockMatch, child: Floats, parent: Floats, n: float) -> BlockMatch:
    """``match``, or the one that another order of the block's lines makes clear. child: [L, C], parent: [N, L, C]."""
    if match.candidates:
        here = match.candidates[0]
        cosine, order = best_order(child, parent[here])
        ordered = order == sorted(order)
        if ordered or 1 - cosine > (1 - match.similarity) / 2:
            return match
        return BlockMatch(match.parent, cosine, match.candidates, tuple(order))
    found = find_order(child, parent, n)
    if found is None:
        return match
    candidates, cosine, order = found
    return BlockMatch(candidates[0] if len(candidates) == 1 else None, cosine, candidates, tuple(order))
