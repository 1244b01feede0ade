"""Which residual columns a child of another hidden size kept: the embedding tells."""

from __future__ import annotations

from collections.abc import Sequence

from gqacheck.lineage.cast import cast
from gqacheck.lineage.exact import index_lines
from gqacheck.lineage.matrix import Matrix
from gqacheck.lineage.pair import Side

_TOKENS = 24
"""Embedding rows that are looked at; their values in one column tell it from every other."""


def kept_columns(child: Side, parent: Side) -> Sequence[int] | None:
    """The parent's residual column of each of the child's; None when the embeddings do not tell.

    Raises:
        ReadError: an embedding cannot be read.
    """
    ours, theirs = _embedding(child), _embedding(parent)
    if ours is None or theirs is None:
        return None
    n_tokens = min(ours.n_elements, theirs.n_elements)
    tokens = sorted({n * (n_tokens - 1) // max(1, _TOKENS - 1) for n in range(_TOKENS)})
    found = child.samples(ours, tokens)
    index = index_lines([cast(data, theirs.info.dtype, ours.info.dtype) for data in parent.samples(theirs, tokens)])
    columns = [index.get(sample, ()) for sample in found]
    if any(len(column) != 1 or column[0] < 0 for column in columns):
        return None
    kept = [column[0] for column in columns]
    return kept if len(set(kept)) == len(kept) else None


def _embedding(side: Side) -> Matrix | None:
    """The token embedding with hidden columns as lines."""
    embedding = side.geometry.embedding
    info = side.checkpoint.tensors.get(embedding.tensor) if embedding else None
    if info is None or len(info.shape) != 2:
        return None
    rows, columns = range(info.shape[0]), range(info.shape[1])
    return Matrix(info, info.storage_offset, columns, info.strides[1], rows, info.strides[0])
