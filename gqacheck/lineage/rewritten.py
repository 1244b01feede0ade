"""Whether a projection that reads kept heads or channels was rewritten, so that its columns accuse nobody.

Least squares that make up for what was removed give ``kept = own + removed @ b``: a column keeps its own old values
in full and gains a mixture of the removed columns. It can come out far from its own, and when its own values are small
even close to a removed one. It is never drawn to another *kept* column: what is found at another's place, or lacks its
own values, was put there by something else than least squares.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from gqacheck.lineage.evidence import DEVIATIONS, even, independent_values, units

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Ints = NDArray[np.int32]

Told: TypeAlias = Literal["similar", "rewritten", "unmatched"]

DISPLACED: Final = 0.002
"""Share of the lines found at another kept line's place that shows a wrong order; a single block shows it too."""

ABSENT: Final = 0.05
"""Share of the lines that are a removed one, without their own values, that shows it; a single block shows it too."""

TIGHT: Final = 0.9
"""Nine in ten columns of a projection that was only trained further are at least this close to their own."""

SHIFTS: Final = 8
"""Wrong places that columns are compared with, to see how close chance brings them."""


def decide_projection(
    child: Floats, parent: Floats, found: Sequence[int | None] | Ints, expected: Sequence[int | None] | Ints
) -> Told:
    """Whether o_proj or down_proj may be judged by what ``found`` says; nobody is to be accused unless ``similar``.

    child, parent: what was matched, [n, L, C] blocks or [n, C] lines. found: the parent block or line told for each
    (None or -1: none). expected: what the layer's other projections say stands there. ``rewritten``: it carries enough
    of the expected columns to be made from them. ``unmatched``: it does not.
    """
    import numpy as np

    told, own = _indices(found), _indices(expected)
    known = np.flatnonzero(own >= 0)
    if not len(known):
        return "similar" if (told >= 0).any() else "unmatched"
    child, told, own = child[known], told[known], own[known]
    if ((told >= 0) & (told != own)).any():
        return "similar" if _misplaced(child, parent, told, own) else "rewritten"
    if (told >= 0).all():
        return "similar"
    plain, evened = _Pairs.of(units(child), units(parent), own), _Pairs.of(even(child), even(parent), own)
    if (told >= 0).any() and max(np.quantile(view.close, 0.1) for view in (plain, evened)) >= TIGHT:
        return "similar"
    return "rewritten" if plain.beat_chance() or evened.beat_chance() else "unmatched"


def _indices(found: Sequence[int | None] | Ints) -> NDArray[Any]:
    import numpy as np

    return np.array([-1 if index is None else int(index) for index in found], dtype=np.int64)


def _misplaced(child: Floats, parent: Floats, told: NDArray[Any], own: NDArray[Any]) -> bool:
    """Whether lines that are ``told`` to be others than their ``own`` cannot come from least squares."""
    import numpy as np

    others = np.flatnonzero((told >= 0) & (told != own))
    few = 0.0 if child.ndim == 3 else len(own)
    displaced = int(np.isin(told[others], own).sum())
    if displaced and displaced >= DISPLACED * few:
        return True
    n = min(independent_values(child), independent_values(parent))
    rows, lines = child[others].reshape(len(others), -1), parent.reshape(len(parent), -1)
    absent = int(_lacks_own(rows, lines[told[others]], lines[own[others]], n).sum())
    return absent > 0 and absent >= ABSENT * few


def _lacks_own(rows: Floats, told: Floats, own: Floats, n: float) -> NDArray[Any]:
    """Whether each row, which is like ``told``, holds nothing of ``own``, of which least squares would have left all.

    The coefficient of what ``own`` has beyond ``told``, which least squares leave at 1, is to be below a half by four
    of its standard errors.
    """
    import numpy as np

    tiny = np.finfo(np.float64).tiny
    row, here, mine = (lines.astype(np.float64) for lines in (rows, told, own))

    def dot(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
        product: NDArray[Any] = np.einsum("ij,ij->i", a, b)
        return product

    def beyond_here(lines: NDArray[Any]) -> NDArray[Any]:
        rest: NDArray[Any] = lines - here * (dot(lines, here) / np.maximum(dot(here, here), tiny))[:, None]
        return rest

    beyond, rest = beyond_here(mine), beyond_here(row)
    size = np.maximum(dot(beyond, beyond), tiny)
    error = np.sqrt(dot(rest, rest) / (size * n))
    lacks: NDArray[Any] = dot(row, beyond) / size + 4 * error < 0.5
    return lacks


@dataclass(frozen=True, slots=True)
class _Pairs:
    """Lines [n, C] of length 1 beside the parent's [m, C] that they should be. close: the cosines of the pairs, [n]."""

    ours: Floats
    theirs: Floats
    own: NDArray[Any]
    close: NDArray[Any]

    @classmethod
    def of(cls, child: Floats, parent: Floats, own: NDArray[Any]) -> _Pairs:
        import numpy as np

        ours, theirs = units(child), units(parent)
        dead = ~ours.any(axis=1) & ~theirs[own].any(axis=1)
        return cls(ours, theirs, own, np.where(dead, 1.0, np.einsum("ij,ij->i", ours, theirs[own])))

    def beat_chance(self) -> bool:
        """Whether lines are closer to their own than to each other's."""
        import numpy as np

        by_chance = 1 / np.sqrt(self.ours.shape[1])
        shifts = range(1, min(SHIFTS, len(self.own) - 1) + 1)
        if not shifts:
            return bool(self.close[0] > DEVIATIONS * by_chance)
        swapped = [np.einsum("ij,ij->i", self.ours, self.theirs[np.roll(self.own, shift)]) for shift in shifts]
        spread = max(float(np.std(swapped)), by_chance)
        return bool(self.close.mean() - np.mean(swapped) > DEVIATIONS * spread / np.sqrt(len(self.own)))
