"""Whether a projection that reads kept heads or channels was rewritten, so that its columns accuse nobody.

Least squares that make up for what was removed give ``kept = own + removed @ b``: a column keeps its own old values in
full and gains a mixture of the removed columns. It can come out far from its own, and when its own values are small even
close to a removed one. It is never drawn to another *kept* column: what belongs there at another place, or lacks its own
values, was put there by something else than least squares.

Measured on the trained fixtures (docs of the tests say how): over 61,980 rewritten o_proj heads none came out as another
kept head and 4 as a removed one, with their own values all there; over 185,000 down_proj columns none as another kept one
and 0.1 % as a removed one, at cosines of up to 0.94.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from gqacheck.lineage.evidence import DEVIATIONS, independent_values, units

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Ints = NDArray[np.int32]

Told: TypeAlias = Literal["similar", "rewritten", "unmatched"]

DISPLACED: Final = 0.01
"""Share of the lines at another kept line's place that shows a wrong order; a single block shows it too."""

ABSENT: Final = 0.05
"""Share of the lines that lack their own values and are a removed line that shows it; a single block shows it too."""

TIGHT: Final = 0.9
"""Nine in ten of the columns of a projection that was only trained further are at least this close to their own."""

SHIFTS: Final = 8


def decide_projection(
    child: Floats, parent: Floats, found: Sequence[int | None] | Ints, expected: Sequence[int | None] | Ints
) -> Told:
    """Whether o_proj or down_proj may be judged by what ``found`` says; nobody is to be accused unless ``similar``.

    child, parent: what was matched, [n, L, C] blocks or [n, C] lines. found: the parent block or line told for each
    (None or -1: none). expected: what the layer's other projections say stands there. ``rewritten``: it carries enough of
    the expected columns to be made from them. ``unmatched``: it does not.
    """
    import numpy as np

    told, own = _indices(found), _indices(expected)
    known = np.flatnonzero(own >= 0)
    if not len(known):
        return "similar" if (told >= 0).any() else "unmatched"
    told, own = told[known], own[known]
    ours, theirs = child[known].reshape(len(known), -1), parent.reshape(len(parent), -1)
    others = np.flatnonzero((told >= 0) & (told != own))
    if len(others):
        single = child.ndim == 3
        displaced = np.isin(told[others], own).sum()
        if displaced and (single or displaced >= DISPLACED * len(known)):
            return "similar"
        absent = _lacks_own(ours[others], theirs, told[others], own[others], _values(child, parent)).sum()
        if absent and (single or absent >= ABSENT * len(known)):
            return "similar"
        return "rewritten"
    if (told >= 0).all():
        return "similar"
    ours, theirs = units(ours), units(theirs)
    close = np.einsum("ij,ij->i", ours, theirs[own])
    if (told >= 0).any() and np.quantile(close, 0.1) >= TIGHT:
        return "similar"
    return "rewritten" if _carries(ours, theirs, own, close) else "unmatched"


def _indices(found: Sequence[int | None] | Ints) -> NDArray[Any]:
    import numpy as np

    return np.array([-1 if index is None else int(index) for index in found], dtype=np.int64)


def _values(child: Floats, parent: Floats) -> float:
    return min(independent_values(child), independent_values(parent))


def _lacks_own(ours: Floats, theirs: Floats, told: NDArray[Any], own: NDArray[Any], n: float) -> NDArray[Any]:
    """Whether rows that are ``told`` hold nothing of ``own``, of which least squares would have left all.

    The coefficient of what ``own`` has beyond ``told``, which least squares leave at 1, is to be below a half by four of
    its standard errors.
    """
    import numpy as np

    here, mine = theirs[told].astype(np.float64), theirs[own].astype(np.float64)
    row = ours.astype(np.float64)

    def dot(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
        product: NDArray[Any] = np.einsum("ij,ij->i", a, b)
        return product

    tiny = np.finfo(np.float64).tiny
    beyond = mine - here * (dot(mine, here) / np.maximum(dot(here, here), tiny))[:, None]
    size = np.maximum(dot(beyond, beyond), tiny)
    rest = row - here * (dot(row, here) / np.maximum(dot(here, here), tiny))[:, None]
    error = np.sqrt(dot(rest, rest) / (size * n))
    lacks: NDArray[Any] = dot(row, beyond) / size + 4 * error < 0.5
    return lacks


def _carries(ours: Floats, theirs: Floats, own: NDArray[Any], close: NDArray[Any]) -> bool:
    """Whether rows are closer to their own than to each other's by more than chance. Rows have length 1."""
    import numpy as np

    shifts = range(1, min(SHIFTS, len(own) - 1) + 1)
    if not shifts:
        return bool(close[0] > DEVIATIONS / np.sqrt(ours.shape[1]))
    foreign = np.concatenate([np.einsum("ij,ij->i", ours, theirs[np.roll(own, shift)]) for shift in shifts])
    spread = max(float(foreign.std()), 1 / np.sqrt(ours.shape[1]))
    return bool(close.mean() - foreign.mean() > DEVIATIONS * spread / np.sqrt(len(own)))
