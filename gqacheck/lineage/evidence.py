"""How much cosine similarity is enough to name a parent, and when two parents cannot be told apart.

A child block is taken to be ``c * parent + noise``. Three questions, each with a bound that comes from that:

*Is it anything of this parent's?* Two unrelated blocks of n independent values have a cosine of about ``1 / sqrt(n)``;
the chance that the best of k unrelated ones reaches s is at most ``k * (1 - s**2) ** (n / 2)``. Real heads share a mean
and a few large columns, so n counts columns by their energy, and the parent's own blocks show how alike unrelated ones
are.

*Is it this one rather than that one?* With r the cosine between the two parents, the true one leads by
``c * (1 - r)`` on average with a standard deviation of ``sqrt(2 * (1 - r) * (1 - c**2) / n)``. The lead must be
``DEVIATIONS`` of these, and ``SHARE`` of its expectation: noise need not be random, and a block averaged from three
parts of one head and one part of another is just about the first.

*Are they the same?* Parents closer than ``EQUAL`` are equal; nothing in the child can tell them apart. And a parent at
``FINE_TUNED`` or more is never ruled out, however close another one is, unless that one differs by rounding alone.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from numpy.typing import NDArray

DEVIATIONS: Final = 5.0
SHARE: Final = 0.5
FINE_TUNED: Final = 0.99
ROUNDED: Final = 0.9999
EQUAL: Final = 1e-5  # of 1 - cosine: float32 products of equal lines come within 1e-6
LEAST: Final = 0.6
MOST: Final = 0.8
NATS: Final = 9.0  # a chance of 1 in 8,000 that noise passes for a parent, before the other two questions


def finite(blocks: NDArray[Any]) -> NDArray[Any]:
    """The blocks, those that hold NaN or infinity set to zero. blocks: [K, L, C]."""
    import numpy as np

    found: NDArray[Any] = np.where(np.isfinite(blocks).all(axis=(1, 2), keepdims=True), blocks, 0).astype(blocks.dtype)
    return found


def units(blocks: NDArray[Any]) -> NDArray[Any]:
    """The blocks as rows of length 1. blocks: [K, ...] → [K, n], same dtype. All zero, NaN or infinite: zero."""
    import numpy as np

    rows = blocks.reshape(len(blocks), -1)
    length = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))[:, None]
    sound = (length > 0) & np.isfinite(length)
    found: NDArray[Any] = np.divide(rows, length, out=np.zeros_like(rows), where=sound, casting="same_kind")
    return found


def even(blocks: NDArray[Any]) -> NDArray[Any]:
    """The blocks with columns of one size over all of them, then lines of one size: what a folded norm leaves alone.

    blocks: [K, L, C] or [K, C]. Scales of columns and lines, whatever they are, change it little.
    """
    rows = blocks.reshape(-1, blocks.shape[-1])
    return units(units(rows.T).T).reshape(blocks.shape)


def independent_values(blocks: NDArray[Any]) -> float:
    """How many values of one block count: those of its lines times its columns, large columns counting as few.

    blocks: [K, L, C] or [K, C]. Participation ratio of the columns' energies: C when they are all of one size, 1 when
    one column holds everything.
    """
    import numpy as np

    rows = blocks.reshape(-1, blocks.shape[-1])
    energy = np.einsum("ij,ij->j", rows, rows, dtype=np.float64)
    energy[~np.isfinite(energy)] = 0.0
    if not energy.any():
        return 1.0
    energy /= energy.max()
    lines = blocks.shape[1] if blocks.ndim == 3 else 1
    return float(lines * energy.sum() ** 2 / (energy**2).sum())


def least_cosine(n: float, alternatives: float, unrelated: NDArray[Any]) -> float:
    """The cosine below which a block is nobody's.

    n: independent values. alternatives: natural logarithm of how many were tried. unrelated: cosines between different
    parents; three of their standard deviations above their mean is asked for, but never more than ``MOST``, because a
    child at 0.9 is to be matched however alike the parent's own heads are.
    """
    by_chance = math.sqrt(1 - math.exp(-2 * (alternatives + NATS) / n))
    alike = float(unrelated.mean() + 3 * unrelated.std()) if unrelated.size else 0.0
    return max(LEAST, by_chance, min(MOST, alike))


def apart(best: NDArray[Any], other: NDArray[Any], overlap: NDArray[Any], n: float) -> NDArray[Any]:
    """Whether cosine ``best`` names its parent rather than the one of cosine ``other``; elementwise over arrays.

    overlap: cosine between those two parents. n: independent values.
    """
    import numpy as np

    distinct = 1 - overlap
    noise = np.sqrt(2 * np.maximum(distinct, 0) * np.maximum(1 - best**2, 0) / n)
    lead = best - other
    open_to_doubt = (distinct <= EQUAL) | ((other >= FINE_TUNED) & (best < ROUNDED))
    told: NDArray[Any] = ~open_to_doubt & (lead >= SHARE * best * distinct) & (lead >= DEVIATIONS * noise)
    return told
