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

SAMPLED: Final = 2048
"""Pairs of parent lines that show how alike unrelated ones are."""


def match_lines(
    child: Floats, parent: Floats, *, expected: Sequence[int] | Ints | None = None, block: int = 1024
) -> tuple[Ints, Floats]:
    """(parents [n], -1 where it matches none or cannot be told; similarities [n]). child: [n, C], parent: [m, C].

    expected: for each child line the parent line that it should be (-1: none known); it is answered wherever it is as
    good as the best, so an answer that differs from it is evidence against it. Between equal parent lines only
    ``expected`` decides. Lines that are zero on both sides are as expected, at 1. Without ``expected`` the child is
    first looked at in place, and taken so when nine lines in ten are. block: most child lines searched at once. A
    similarity is the cosine to the line answered, else to the best one.

    Raises:
        ValueError: ``expected`` has another length than the child.
    """
    import numpy as np

    if not len(child) or not len(parent):
        return np.full(len(child), -1, dtype=np.int32), np.zeros(len(child), dtype=np.float32)
    plain = _Lines.of(units(child), units(parent))
    hoped = plain.in_place() if expected is None else _checked(expected, len(child), len(parent))
    parents, similarities = _search(plain, hoped, np.arange(len(child)), block)
    del plain
    lost = np.flatnonzero(parents < 0)
    if len(lost) > len(child) // 2:
        evened = _Lines.of(even(child), even(parent))
        if expected is None:
            hoped = evened.in_place()
        other, cosines = _search(evened, hoped, lost, block)
        told = lost[other[lost] >= 0]
        parents[told], similarities[told] = other[told], cosines[told]
    return parents, similarities


def _checked(expected: Sequence[int] | Ints, n: int, m: int) -> Ints:
    """The expected parent of each line, -1 where it is not one of the parent's."""
    import numpy as np

    hoped = np.asarray(expected, dtype=np.int32)
    if hoped.shape != (n,):
        raise ValueError(f"expected names the parents of {hoped.size} lines, but the child has {n}")
    return np.where((hoped >= 0) & (hoped < m), hoped, -1).astype(np.int32)


@dataclass(frozen=True, slots=True)
class _Lines:
    """One view of all lines, each of length 1. child: [n, C], parent: [m, C]. n: independent values of a line.

    least: below it a line is nobody's. least_hoped: the same when only one parent is asked about.
    """

    child: Floats
    parent: Floats
    n: float
    least: float
    least_hoped: float

    @classmethod
    def of(cls, child: Floats, parent: Floats) -> _Lines:
        n = min(independent_values(child), independent_values(parent))
        unrelated = _unrelated(parent)
        least = least_cosine(n, math.log(len(parent)), unrelated)
        return cls(child, parent, n, least, least_cosine(n, 0.0, unrelated))

    def cosines_to(self, parents: Ints) -> Floats:
        """The cosine of each line to one parent line; -1 where there is none, 1 where both are zero."""
        import numpy as np

        theirs = self.parent[np.maximum(parents, 0)]
        both_zero = ~self.child.any(axis=1) & ~theirs.any(axis=1)
        close = np.where(both_zero, 1.0, np.einsum("ij,ij->i", self.child, theirs))
        return np.where(parents >= 0, close, -1.0).astype(np.float32)

    def in_place(self) -> Ints:
        """Every line's own number where nine lines in ten are the parent's of the same number, else -1 everywhere."""
        import numpy as np

        same = np.arange(len(self.child), dtype=np.int32)
        same[len(self.parent) :] = -1
        if np.quantile(self.cosines_to(same), 0.1) >= SURE:
            return same
        return np.full(len(same), -1, dtype=np.int32)


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
    close = lines.cosines_to(hoped)
    enough = close[wanted] >= max(SURE, lines.least_hoped)
    sure, rest = wanted[enough], wanted[~enough]
    parents[sure], similarities[sure] = hoped[sure], close[sure]
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
    cosines[every, best] = -2.0
    second = cosines.argmax(axis=1)
    alike = np.einsum("ij,ij->i", lines.parent[best], lines.parent[second])
    clear = apart(cosine, cosines[every, second], alike, lines.n) | (len(lines.parent) == 1)
    told = clear & (cosine >= lines.least)
    alike = np.einsum("ij,ij->i", lines.parent[best], lines.parent[np.maximum(hoped, 0)])
    excused = (close >= lines.least_hoped) & ~apart(cosine, close, alike, lines.n)
    parents = np.where(excused, hoped, np.where(told, best, -1))
    return parents.astype(np.int32), np.where(excused, close, cosine)
