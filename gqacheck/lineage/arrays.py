"""Sampled lines as numpy arrays, for what is told by similarity; numpy is imported here and only when it is needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gqacheck.lineage.matrix import Matrix
from gqacheck.lineage.pair import Pair, Side

if TYPE_CHECKING:
    from gqacheck.lineage.similar import Floats

ROW_ELEMENTS = 256
"""Elements of a row of q, k or v that are compared."""
COLUMN_ELEMENTS = 64
"""Elements of a column of o, and of a channel, that are compared."""
_PROBE_LINES = 64
_MOST_LINES = 4096
"""Rows of a layer that are looked at to tell which parent layer it is."""


def have_numpy() -> bool:
    """Whether similarity can be computed here."""
    from importlib.util import find_spec

    return find_spec("numpy") is not None


def both(pair: Pair, ours: Matrix, theirs: Matrix, n: int, *, spread: bool) -> tuple[Floats, Floats]:
    """The same ``n`` sampled elements of the child's lines [n, C] and of the parent's [m, C], in float32.

    Raises:
        ReadError: one of the two cannot be read.
    """
    ours_at, theirs_at = pair.windows(ours, n, spread=spread)
    return _floats(pair.child, ours, ours_at), _floats(pair.parent, theirs, theirs_at)


def likeness(pair: Pair, ours: Matrix, theirs: Matrix) -> float:
    """Mean cosine of some of the child's lines, each to the most similar one of the parent's.

    Raises:
        ReadError: one of the two cannot be read.
    """
    import numpy as np

    every = max(1, ours.n_lines // _PROBE_LINES)
    probe = Matrix(ours.info, ours.base, ours.lines[::every], ours.line_stride, ours.elements, ours.stride)
    lines = theirs.lines[:_MOST_LINES]
    few = Matrix(theirs.info, theirs.base, lines, theirs.line_stride, theirs.elements, theirs.stride)
    if _past_the_end(pair, ours, theirs):
        return 0.0
    a, b = both(pair, probe, few, ROW_ELEMENTS, spread=False)
    a = a / np.maximum(np.linalg.norm(a, axis=1, keepdims=True), 1e-12)
    b = b / np.maximum(np.linalg.norm(b, axis=1, keepdims=True), 1e-12)
    return float((a @ b.T).max(axis=1).mean()) if len(a) and len(b) else 0.0


def _past_the_end(pair: Pair, ours: Matrix, theirs: Matrix) -> bool:
    return ours.n_elements != (len(pair.kept) if pair.kept is not None else theirs.n_elements)


def _floats(side: Side, matrix: Matrix, window: Sequence[int]) -> Floats:
    import numpy as np

    data = b"".join(side.samples(matrix, window))
    if matrix.info.dtype == "bfloat16":
        values = (np.frombuffer(data, dtype="<u2").astype(np.uint32) << 16).view(np.float32)
    else:
        code = {"float16": "<f2", "float32": "<f4", "float64": "<f8"}[matrix.info.dtype]
        with np.errstate(over="ignore"):
            values = np.frombuffer(data, dtype=code).astype(np.float32)
    found: Floats = np.nan_to_num(values.reshape(matrix.n_lines, len(window)), posinf=0.0, neginf=0.0)
    return found
