"""A tensor of the export, not yet made: where its elements come from, a few megabytes at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Protocol

from gqacheck.checkpoint import ITEMSIZE_BITS, TensorInfo

if TYPE_CHECKING:
    import torch

    from gqacheck.runtime.weights import WeightReader

BLOCK = 1 << 22
"""Bytes of a block, about: few enough to stay in the processor's cache."""


class Content(Protocol):
    """Some rows of a tensor."""

    @property
    def numel(self) -> int:
        """Number of elements."""

    def blocks(self, reader: WeightReader) -> Iterator[torch.Tensor]:
        """The elements in row-major order, as tensors of any shape and of any dtype of real numbers.

        Raises:
            ReadError: the bytes of a stored tensor are not there.
        """


@dataclass(frozen=True, slots=True)
class Stored:
    """A stored tensor, or a view of one (strides and offset say which elements)."""

    info: TensorInfo

    @property
    def shape(self) -> tuple[int, ...]:
        """As stored."""
        return self.info.shape

    @property
    def numel(self) -> int:
        """Number of elements."""
        return self.info.numel

    def entry(self, number: int) -> Stored:
        """One entry of the first dimension."""
        return Stored(narrowed(self.info, number))

    def rows(self, start: int, count: int) -> Stored:
        """``count`` rows from row ``start`` on."""
        return Stored(rows_of(self.info, start, count))

    def blocks(self, reader: WeightReader) -> Iterator[torch.Tensor]:
        """The elements, some rows at a time; a row that is too long by itself is cut again."""
        info = self.info
        width = max(1, ITEMSIZE_BITS.get(info.dtype, 8) // 8)
        row = prod(info.shape[1:]) * width
        if not info.shape or info.nbytes <= BLOCK:
            yield reader.read(info)
            return
        step = BLOCK // max(row, 1)
        if not step:
            for number in range(info.shape[0]):
                yield from Stored(narrowed(info, number)).blocks(reader)
            return
        for start in range(0, info.shape[0], step):
            yield reader.read(rows_of(info, start, min(step, info.shape[0] - start)))


def rows_of(info: TensorInfo, start: int, count: int) -> TensorInfo:
    """``count`` rows of a stored tensor from row ``start`` on, as a view."""
    offset = info.storage_offset + start * info.strides[0]
    return replace(info, shape=(count, *info.shape[1:]), storage_offset=offset)


def narrowed(info: TensorInfo, number: int) -> TensorInfo:
    """One entry of a stored tensor's first dimension, as a view."""
    offset = info.storage_offset + number * info.strides[0]
    return replace(info, shape=info.shape[1:], strides=info.strides[1:], storage_offset=offset)


@dataclass(frozen=True, slots=True)
class Zeros:
    """``numel`` zeros."""

    numel: int

    def blocks(self, reader: WeightReader) -> Iterator[torch.Tensor]:
        """Them, some at a time."""
        import torch

        step = BLOCK >> 3  # elements, which are eight times as wide at most where they are written
        for start in range(0, self.numel, step):
            yield torch.zeros(min(step, self.numel - start), dtype=torch.bool)  # exact in any dtype


@dataclass(frozen=True, slots=True)
class Planned:
    """One tensor of the export. ``contents`` follow each other in memory; ``dtype`` is the one that is written."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    contents: tuple[Content, ...]

    @property
    def numel(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return self.numel * ITEMSIZE_BITS[self.dtype] // 8

    @property
    def raw(self) -> tuple[TensorInfo, ...] | None:
        """The stored tensors whose bytes are its bytes, None when something has to be computed or gathered."""
        found: list[TensorInfo] = []
        for content in self.contents:
            if not isinstance(content, Stored) or content.info.dtype != self.dtype or not content.info.is_contiguous:
                return None
            found.append(content.info)
        return tuple(found)
