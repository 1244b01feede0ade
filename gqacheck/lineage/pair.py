"""A child beside its parent: the same sampled elements of both, the parent's cast to the child's dtype."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from gqacheck.checkpoint import Checkpoint
from gqacheck.geometry.facts import Geometry
from gqacheck.lineage.cast import ITEMSIZE, cast
from gqacheck.lineage.exact import Candidates, find_lines, index_lines
from gqacheck.lineage.matrix import Matrix

Samples: TypeAlias = Callable[[Matrix, Sequence[int]], "list[bytes]"]
"""For each line of a matrix the bytes of its elements in a window; `LineReader.samples` reads them from files."""
Progress: TypeAlias = Callable[[str, int, int], None]

ROW_SAMPLE = 32
"""Elements of a row that are compared bit by bit; they lie side by side, so that a row costs one short read."""
COLUMN_SAMPLE = 16
"""Elements of a column; each costs a whole row of the file, which holds that element of every column."""


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two: what it says of itself, what it measures, and how sampled lines of it are read."""

    checkpoint: Checkpoint
    geometry: Geometry
    samples: Samples


@dataclass(slots=True)
class Pair:
    """Child and parent with what is needed to read lines of both.

    kept: the parent's residual columns that the child kept, None for all of them. similar: whether numpy is there for
    what is not bit-identical. notes: sentences for the reader, each once.
    """

    child: Side
    parent: Side
    kept: Sequence[int] | None = None
    similar: bool = True
    notes: dict[str, None] = field(default_factory=dict)

    def windows(self, matrix: Matrix, n: int, *, spread: bool) -> tuple[Sequence[int], Sequence[int]]:
        """``n`` elements of the child's lines to look at and the parent's elements they stand beside.

        Side by side from the second third of the line on, or spread over all of it.
        """
        width = matrix.n_elements
        n = min(n, width)
        if spread:
            ours: Sequence[int] = [number * width // n for number in range(n)]
        else:
            first = min(width // 3, width - n)
            ours = range(first, first + n)
        return ours, ours if self.kept is None else [self.kept[element] for element in ours]

    def lines(self, ours: Matrix, theirs: Matrix, *, turned: bool) -> list[Candidates]:
        """For each child line the parent's lines with the same sample. ``turned``: the lines are columns.

        Raises:
            ReadError: one of the two cannot be read.
        """
        ours_at, theirs_at = self.windows(ours, COLUMN_SAMPLE if turned else ROW_SAMPLE, spread=turned)
        index = index_lines(self.parent_samples(theirs, theirs_at, ours.info.dtype))
        return find_lines(self.child.samples(ours, ours_at), index, ITEMSIZE.get(ours.info.dtype, 1))

    def parent_samples(self, matrix: Matrix, window: Sequence[int], dtype: str) -> list[bytes]:
        """The parent's samples as the child's ``dtype`` would hold them."""
        samples = self.parent.samples(matrix, window)
        if matrix.info.dtype == dtype or not samples or not samples[0]:
            return samples
        data = cast(b"".join(samples), matrix.info.dtype, dtype)
        width = len(data) // len(samples)
        return [data[at : at + width] for at in range(0, len(data), width)]
