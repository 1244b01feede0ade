"""What a cosine alone overlooks: a head that was pooled from several, a few lines that changed places inside one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from gqacheck.geometry.origins import Origin

if TYPE_CHECKING:
    from gqacheck.lineage.similar import Floats

CLOSE: Final = 0.97
"""Cosine from which a block is one parent head and nothing besides."""
COMPANION: Final = 0.5
"""Cosine of what a head leaves unexplained to another parent head from which that one is part of the block: two heads
that were pooled leave 1, four leave 0.58, noise and low-rank updates leave next to nothing."""
PARTLY: Final = 0.9
"""Cosine that a block must have when some of its lines are the parent's bit by bit and others are not: edits of single
numbers leave more, lines of another model less."""
MOVED: Final = 0.3
"""By how much of cosine a line must be nearer to another line of the head than to that of its place."""


def doubted(origin: Origin, child: Floats, parent: Floats, *, partly: bool) -> Origin:
    """``origin`` of one block told by similarity, or what is left of it on a second look.

    child: [L, C]; parent: [N, L, C]; partly: some of its lines are the parent's bit by bit.
    """
    if origin.how != "similar" or not origin.heads or origin.similarity is None:
        return origin
    if partly and origin.similarity < PARTLY:
        return Origin("unmatched", (), origin.similarity)
    if origin.similarity < CLOSE:
        heads = (
            *origin.heads,
            *(head for head in companions(child, parent, origin.heads[0]) if head not in origin.heads),
        )
        origin = replace(origin, heads=heads)
    if len(origin.heads) == 1 and origin.order is None:
        origin = replace(origin, order=moved_lines(child, parent[origin.heads[0]]))
    return origin


def companions(child: Floats, parent: Floats, best: int) -> Sequence[int]:
    """Other parent heads that the block holds a part of, largest part first. child: [L, C]; parent: [N, L, C]."""
    import numpy as np

    own = parent[best].ravel().astype(np.float64)
    own /= max(float(np.linalg.norm(own)), 1e-30)
    others = parent.reshape(len(parent), -1).astype(np.float64)
    others = others - np.outer(others @ own, own)
    left = child.ravel().astype(np.float64)
    left = left - (left @ own) * own
    sizes = np.maximum(np.linalg.norm(others, axis=1) * np.linalg.norm(left), 1e-30)
    cosines = (others @ left) / sizes
    cosines[best] = 0.0
    return [int(head) for head in np.argsort(-cosines) if cosines[head] >= COMPANION]


def moved_lines(child: Floats, parent: Floats) -> tuple[int, ...] | None:
    """For each line the parent's line, where some have changed places with each other; None otherwise. Both [L, C]."""
    import numpy as np

    a = child / np.maximum(np.linalg.norm(child, axis=1, keepdims=True), 1e-30)
    b = parent / np.maximum(np.linalg.norm(parent, axis=1, keepdims=True), 1e-30)
    cosines = a @ b.T
    best = cosines.argmax(axis=1)
    lines = np.arange(len(cosines))
    moved = np.flatnonzero(cosines[lines, best] - cosines.diagonal() > MOVED)
    if len(moved) < 2 or sorted(best[moved]) != list(moved):
        return None
    order = lines.copy()
    order[moved] = best[moved]
    return tuple(int(line) for line in order)
