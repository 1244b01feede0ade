"""Which parent line each line of a child is: MLP channels and o_proj or down_proj columns, thousands at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from gqacheck.lineage.evidence import EQUAL, apart, even, independent_values, least_cosine, units

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Ints = NDArray[np.int32]

SURE: Final = 0.95
"""A line this close to the expected one is not looked for elsewhere."""

PRODUCT_BYTES: Final = 32 * 2**20
"""Most memory for the cosines of one step of a search."""

EQUALS: Final = 8
"""So many equal parent lines are looked behind for a different runner-up."""

SAMPLED: Final = 2048
"""Pairs of parent lines that show how alike unrelated ones are."""


def match_lines(
    child: Floats, parent: Floats, *, expected: Sequence[int] | Ints | None = None, block: int = 1024
) -> tuple[Ints, Floats]:
    """(parents [n], -1 where it matches none or cannot be told; similarities [n]). child: [n, C], parent: [m, C].

    expected: for each child line the parent line that it should be (-1: none known); it is answered wherever it is as
    good as the best, so an answer that differs from it is evidence against it. Without it the same places are expected.
    block: most child lines searched at once. A similarity is the cosine to the line answered, else to the best one.
    """
    import numpy as np

    hoped = _whole(expected, len(child), len(parent))
    found = _search(_Lines.of(child, parent), hoped, np.arange(len(child)), block)
    lost = np.flatnonzero(found[0] < 0)
    if len(lost) > len(child) // 2:
        evened = _search(_Lines.of(even(child), even(parent)), hoped, lost, block)
        told = np.flatnonzero(evened[0] >= 0)
        for plain, other in zip(found, evened, strict=True):
            plain[told] = other[told]
    return found


def _whole(expected: Sequence[int] | Ints | None, n: int, m: int) -> Ints:
    """The expected parent of each line, -1 where none is known. Raises ValueError when there is not one for each."""
    import numpy as np

    if expected is None:
        return np.where(np.arange(n) < m, np.arange(n), -1).astype(np.int32)
    hoped = np.asarray(expected, dtype=np.int32)
    if hoped.shape != (n,):
        raise ValueError(f"expected has shape {hoped.shape}, but the child has {n} lines")
    return np.where(hoped < m, hoped, -1).astype(np.int32)


@dataclass(frozen=True, slots=True)
class _Lines:
    """One view of all lines, each of length 1. child: [n, C], parent: [m, C]. n: independent values of a line."""

    child: Floats
    parent: Floats
    n: float
    least: float

    @classmethod
    def of(cls, child: Floats, parent: Floats) -> _Lines:
        n = min(independent_values(child), independent_values(parent))
        ours, theirs = units(child), units(parent)
        unrelated = _unrelated(theirs)
        return cls(ours, theirs, n, least_cosine(n, math.log(max(1, len(parent))), unrelated))


def _unrelated(lines: Floats) -> NDArray[Any]:
    """Cosines of up to ``SAMPLED`` pairs of different lines, the same ones every time."""
    import numpy as np

    m = len(lines)
    if m < 2:
        return np.empty(0)
    pairs = np.random.default_rng(0).integers(0, (m, m - 1), (SAMPLED, 2))
    first, second = pairs[:, 0], (pairs[:, 0] + 1 + pairs[:, 1]) % m
    cosines: NDArray[Any] = np.einsum("ij,ij->i", lines[first], lines[second])
    return cosines[cosines < 1 - EQUAL]


def _search(lines: _Lines, hoped: Ints, wanted: NDArray[Any], block: int) -> tuple[Ints, Floats]:
    """Parents and similarities of all lines; -1 and 0 for those not ``wanted``."""
    import numpy as np

    n, m = len(lines.child), len(lines.parent)
    parents, similarities = np.full(n, -1, dtype=np.int32), np.zeros(n, dtype=np.float32)
    guess = np.maximum(hoped, 0)
    close = np.where(hoped >= 0, np.einsum("ij,ij->i", lines.child, lines.parent[guess]), -1.0).astype(np.float32)
    sure = wanted[close[wanted] >= max(SURE, lines.least)]
    parents[sure], similarities[sure] = hoped[sure], close[sure]
    rest = wanted[close[wanted] < max(SURE, lines.least)]
    step = max(1, min(block, PRODUCT_BYTES // (4 * max(1, m))))
    for start in range(0, len(rest), step):
        rows = rest[start : start + step]
        parents[rows], similarities[rows] = _nearest(lines, rows, hoped[rows], close[rows])
    return parents, similarities


def _nearest(lines: _Lines, rows: NDArray[Any], hoped: Ints, close: Floats) -> tuple[Ints, Floats]:
    """Parents and similarities of some rows, looked for among all parent lines."""
    import numpy as np

    every = np.arange(len(rows))
    cosines = lines.child[rows] @ lines.parent.T
    best = cosines.argmax(axis=1)
    cosine = cosines[every, best]
    told = _first_is_clear(lines, cosines, best, cosine)
    guess = np.maximum(hoped, 0)
    alike = np.einsum("ij,ij->i", lines.parent[best], lines.parent[guess])
    excused = (hoped >= 0) & (close >= lines.least) & ~apart(cosine, close, alike, lines.n)
    parents = np.where(excused, hoped, np.where(told & (cosine >= lines.least), best, -1))
    return parents.astype(np.int32), np.where(excused, close, cosine)


def _first_is_clear(lines: _Lines, cosines: Floats, best: NDArray[Any], cosine: Floats) -> NDArray[Any]:
    """Whether the best parent of each row leads the next one that is not its equal. ``cosines`` is used up."""
    import numpy as np

    rows = np.arange(len(best))
    second = best.copy()
    runner_up = np.full(len(best), -1.0, dtype=np.float32)
    alike = np.ones(len(best), dtype=np.float32)
    for _ in range(min(EQUALS, cosines.shape[1])):
        cosines[rows, second[rows]] = -2.0
        second[rows] = cosines[rows].argmax(axis=1)
        runner_up[rows] = cosines[rows, second[rows]]
        alike[rows] = np.einsum("ij,ij->i", lines.parent[best[rows]], lines.parent[second[rows]])
        rows = rows[alike[rows] >= 1 - EQUAL]
        if not len(rows):
            break
    clear: NDArray[Any] = (runner_up <= -2.0) | apart(cosine, runner_up, alike, lines.n)
    return clear
