"""Whether the lines of a child block are a parent block's in another order."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from gqacheck.lineage.assignment import assign
from gqacheck.lineage.evidence import MOST, apart, least_cosine, units

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

SCREENED_COLUMNS = 64
SHORTLIST = 3


def best_order(child: Floats, parent: Floats) -> tuple[float, list[int]]:
    """(cosine, order) of the order of parent lines that is most like the child's. child, parent: [L, C].

    ``order[line]`` is the parent's line at the child's ``line``.
    """
    import numpy as np

    dots = child @ parent.T
    order = assign(dots)
    size = float(np.linalg.norm(child)) * float(np.linalg.norm(parent))
    return (float(dots[np.arange(len(order)), order].sum()) / size if size else 0.0), order


def find_order(child: Floats, parent: Floats, n: float) -> tuple[tuple[int, ...], float, list[int]] | None:
    """(candidates, cosine, order) when the lines of ``child`` are a parent block's in another order, else None.

    child: [L, C]. parent: [N, L, C]. n: independent values of a block. There are L! orders to be lucky with, so the
    cosine must be out of their reach. candidates: the best block, then those that it cannot be told from, each as it
    stands or in its own best order; ``cosine`` and ``order`` are the best one's.
    """
    import numpy as np

    lines, columns = child.shape
    least = max(MOST, least_cosine(n, math.log(len(parent)) + math.lgamma(lines + 1), np.empty(0)))
    some = slice(0, columns, max(1, columns // SCREENED_COLUMNS))
    most = _most_possible(child[:, some], parent[:, :, some])
    shortlist = [int(j) for j in np.argsort(-most)[:SHORTLIST] if most[j] >= least]
    tried = sorted(((*best_order(child, parent[j]), j) for j in shortlist), reverse=True)
    if not tried or tried[0][0] < least:
        return None
    cosine, order, best = tried[0]
    theirs = units(parent)
    reached = theirs @ units(child[None])[0]
    alike = theirs @ units(parent[best][order][None])[0]
    for other, _, j in tried:
        reached[j], alike[j] = other, best_order(parent[best], parent[j])[0]
    distinct = apart(np.array(cosine), reached, alike, n)
    return (best, *(int(j) for j in np.argsort(-reached) if j != best and not distinct[j])), cosine, order


def _most_possible(child: Floats, parent: Floats) -> NDArray[Any]:
    """For each parent block the cosine that no order of its lines can exceed, [N]. child: [L, C]. parent: [N, L, C]."""
    import numpy as np

    blocks, lines, columns = parent.shape
    dots = child @ parent.reshape(-1, columns).T
    reached = dots.reshape(lines, blocks, lines).max(axis=2).sum(axis=0)
    size = np.linalg.norm(child) * np.sqrt(np.einsum("nlc,nlc->n", parent, parent))
    bound: NDArray[Any] = np.divide(reached, size, out=np.zeros_like(reached), where=size > 0)
    return bound
