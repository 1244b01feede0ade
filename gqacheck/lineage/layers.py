"""Which parent layer a layer came from: the one that holds its k rows (or v, q, up rows where k is not comparable)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from gqacheck.checkpoint import TensorInfo
from gqacheck.errors import ReadError
from gqacheck.geometry.facts import Geometry, Layer
from gqacheck.lineage.cast import ITEMSIZE
from gqacheck.lineage.exact import Candidates, find_lines, index_lines, share_found
from gqacheck.lineage.matrix import Matrix, attention_matrices, mlp_matrices
from gqacheck.lineage.pair import ROW_SAMPLE, Pair, Side

_MOST_ROWS = 512
"""Rows of a layer that are looked for in every parent layer."""
ENOUGH = 0.5
"""Share of a layer's rows that must be the parent layer's; or their mean cosine to the most similar ones."""
SURELY = 0.9
CLEARLY = 0.1
"""By how much of mean cosine the most similar layer must be ahead of the next."""


class LayerFinder:
    """Finds parent layers bit by bit; what was read of a parent layer is kept."""

    def __init__(self, pair: Pair) -> None:
        self._pair = pair
        self._parents = {layer.index: layer for layer in pair.parent.geometry.layers}
        self._indices: dict[tuple[int, str, str], Mapping[bytes, Candidates]] = {}

    def find(self, layer: Layer, guess: int) -> int | None:
        """The parent's layer that ``layer`` came from: ``guess`` where that fits, else the nearest that does."""
        probes = list(self._probes(layer))
        for index in sorted(self._parents, key=lambda index: (abs(index - guess), index)):
            for role, matrix, samples in probes:
                known = self._index(index, role, matrix)
                if (
                    known is not None
                    and share_found(find_lines(samples, known, ITEMSIZE.get(matrix.info.dtype, 1))) >= ENOUGH
                ):
                    return index
        return None

    def find_similar(self, layer: Layer, guess: int) -> int | None:
        """The parent's layer whose rows are most like this one's, where that is clear; needs numpy."""
        from gqacheck.lineage.arrays import likeness

        for role, ours in row_matrices(self._pair.child, layer).items():
            scores: dict[int, float] = {}
            for index, parent in sorted(self._parents.items(), key=lambda item: abs(item[0] - guess)):
                theirs = row_matrices(self._pair.parent, parent).get(role)
                if theirs is not None:
                    try:
                        scores[index] = likeness(self._pair, ours, theirs)
                    except ReadError:
                        continue
                    if scores[index] >= SURELY:
                        return index
            ranked = sorted(scores.values(), reverse=True)
            if ranked and ranked[0] >= ENOUGH and (len(ranked) == 1 or ranked[0] - ranked[1] >= CLEARLY):
                return max(scores, key=scores.__getitem__)
        return None

    def _probes(self, layer: Layer) -> Iterator[tuple[str, Matrix, list[bytes]]]:
        """Rows of the child's layer to look for, role by role, at most two roles."""
        found = 0
        for role, matrix in row_matrices(self._pair.child, layer).items():
            if found == 2:
                return
            part = Matrix(
                matrix.info, matrix.base, matrix.lines[:_MOST_ROWS], matrix.line_stride, matrix.elements, matrix.stride
            )
            window, _ = self._pair.windows(matrix, ROW_SAMPLE, spread=False)
            try:
                yield role, matrix, self._pair.child.samples(part, window)
            except ReadError:
                continue
            found += 1

    def _index(self, index: int, role: str, like: Matrix) -> Mapping[bytes, Candidates] | None:
        key = (index, role, like.info.dtype)
        if key not in self._indices:
            matrix = row_matrices(self._pair.parent, self._parents[index]).get(role)
            self._indices[key] = {} if matrix is None else self._read(matrix, like)
        return self._indices[key] or None

    def _read(self, matrix: Matrix, like: Matrix) -> Mapping[bytes, Candidates]:
        _, window = self._pair.windows(like, ROW_SAMPLE, spread=False)
        if window and max(window) >= matrix.n_elements:
            return {}
        try:
            return index_lines(self._pair.parent_samples(matrix, window, like.info.dtype))
        except ReadError:
            return {}


def row_matrices(side: Side, layer: Layer) -> dict[str, Matrix]:
    """The projections of a layer that can tell it from others: k, v, q, then up, gate and a first expert's."""
    tensors = side.checkpoint.tensors
    found: dict[str, Matrix] = {}
    if layer.attention.kind == "full":
        attention = attention_matrices(side.geometry, layer.attention, tensors)
        found |= {role: attention[role] for role in ("k", "v", "q") if role in attention}
    found |= _mlp_rows(side.geometry, layer, tensors)
    return found


def _mlp_rows(geometry: Geometry, layer: Layer, tensors: Mapping[str, TensorInfo]) -> dict[str, Matrix]:
    mlp = layer.mlp
    if mlp.kind == "moe":
        if not mlp.experts:
            return {}
        first = mlp.experts[0]
        stacked = 0 if first.index == "stacked" else None
        return mlp_matrices(geometry, (("up", first.up), ("gate", first.gate)), tensors, expert=stacked)
    return mlp_matrices(geometry, (("up", mlp.up), ("gate", mlp.gate)), tensors)
