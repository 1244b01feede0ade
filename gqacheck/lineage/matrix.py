"""A projection's weight as lines in a file: the rows of q, k, v, gate and up, the columns of o and down.

However a family stores them: by themselves, fused (``[Q|K|V]``, per KV group, ``[gate|up]``, interleaved), transposed,
or stacked over experts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gqacheck.checkpoint import TensorInfo
from gqacheck.geometry.facts import Attention, Geometry, Projection
from gqacheck.geometry.lines import channel_rows, fused_rows


@dataclass(frozen=True, slots=True)
class Matrix:
    """Lines of equal length inside one stored tensor; line i has its element j at
    ``base + lines[i] * line_stride + elements[j] * stride`` (in elements of the tensor's storage)."""

    info: TensorInfo
    base: int
    lines: Sequence[int]
    line_stride: int
    elements: Sequence[int]
    stride: int

    @property
    def n_lines(self) -> int:
        """Number of lines."""
        return len(self.lines)

    @property
    def n_elements(self) -> int:
        """Elements of one line."""
        return len(self.elements)

    @property
    def turned(self) -> Matrix:
        """The same numbers with columns as lines."""
        return Matrix(self.info, self.base, self.elements, self.stride, self.lines, self.line_stride)


def attention_matrices(
    geometry: Geometry, attention: Attention, tensors: Mapping[str, TensorInfo]
) -> dict[str, Matrix]:
    """Role (``q k v o``) -> its lines; a role is absent when its weight is not a plain 2-D tensor of the file."""
    found: dict[str, Matrix] = {}
    for role, projection in (("q", attention.q), ("k", attention.k), ("v", attention.v), ("o", attention.o)):
        info = tensors.get(projection.tensor) if projection is not None else None
        if projection is None or info is None or len(info.shape) != 2:
            continue
        if projection.derived is None:
            matrix = plain_matrix(info)
        else:
            rows = fused_rows(geometry, attention, role)
            if rows is None:
                continue
            matrix = plain_matrix(info, rows=rows)
        found[role] = matrix.turned if role == "o" else matrix
    return found


def plain_matrix(info: TensorInfo, *, rows: Sequence[int] | None = None) -> Matrix:
    """A 2-D tensor with its rows as lines; ``rows``: only these."""
    n_rows, n_columns = info.shape
    row_stride, column_stride = info.strides
    return Matrix(info, info.storage_offset, range(n_rows) if rows is None else rows, row_stride, range(n_columns),
                  column_stride)  # fmt: skip


def mlp_matrices(
    geometry: Geometry,
    projections: Sequence[tuple[str, Projection | None]],
    tensors: Mapping[str, TensorInfo],
    *,
    expert: int | None = None,
) -> dict[str, Matrix]:
    """Role (``gate up down``) -> its channels as lines. ``expert``: which one of a stacked tensor."""
    found: dict[str, Matrix] = {}
    for role, projection in projections:
        info = tensors.get(projection.tensor) if projection is not None else None
        if projection is None or info is None:
            continue
        whole = (
            _stacked(geometry, info, expert)
            if expert is not None
            else plain_matrix(info)
            if len(info.shape) == 2
            else None
        )
        if whole is None:
            continue
        if role == "down":
            found[role] = whole.turned
            continue
        rows = channel_rows(projection, len(whole.lines))
        found[role] = Matrix(info, whole.base, rows, whole.line_stride, whole.elements, whole.stride)
    return found


def _stacked(geometry: Geometry, info: TensorInfo, expert: int) -> Matrix | None:
    """One expert's share of ``[experts, outputs, inputs]`` (or ``[experts, inputs, outputs]``: the family says)."""
    if len(info.shape) != 3 or expert >= info.shape[0]:
        return None
    base = info.storage_offset + expert * info.strides[0]
    matrix = Matrix(info, base, range(info.shape[1]), info.strides[1], range(info.shape[2]), info.strides[2])
    return matrix.turned if geometry.family.stacked_transposed else matrix
