"""A stored tensor with zeros between its rows and columns, made a few megabytes at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from gqacheck.checkpoint import ITEMSIZE_BITS, TensorInfo
from gqacheck.export.content import BLOCK, Stored, Zeros, narrowed, rows_of
from gqacheck.export.padding import Axis, Spread, cut_axis, full_size, stored_size

if TYPE_CHECKING:
    import torch

    from gqacheck.runtime.weights import WeightReader


@dataclass(frozen=True, slots=True)
class Padded:
    """``info`` laid out as ``spread`` says, one axis or None for each of its dimensions."""

    info: TensorInfo
    spread: Spread

    @property
    def shape(self) -> tuple[int, ...]:
        """With the zeros."""
        return tuple(
            size if axis is None else full_size(axis) for size, axis in zip(self.info.shape, self.spread, strict=True)
        )

    @property
    def numel(self) -> int:
        """Number of elements, zeros included."""
        return prod(self.shape)

    def entry(self, number: int) -> Padded:
        """One entry of the first dimension, which has no zeros."""
        return Padded(narrowed(self.info, number), self.spread[1:])

    def rows(self, start: int, count: int) -> Padded:
        """``count`` rows from row ``start`` on, zeros counted."""
        axis = self.spread[0]
        if axis is None:
            return Padded(rows_of(self.info, start, count), self.spread)
        before, mine = cut_axis(axis, start, count)
        return Padded(rows_of(self.info, before, stored_size(mine)), (mine, *self.spread[1:]))

    def blocks(self, reader: WeightReader) -> Iterator[torch.Tensor]:
        """The elements, some rows at a time; a row that is too long by itself is cut again."""
        inner = prod(self.shape[1:])
        width = max(1, ITEMSIZE_BITS.get(self.info.dtype, 8) // 8)
        step = BLOCK // max(inner * width, 1)
        at = 0
        for count, stored in self.spread[0] or ((self.info.shape[0], True),):
            if not stored:
                yield from Zeros(count * inner).blocks(reader)
                continue
            if not step:
                for number in range(at, at + count):
                    yield from self.entry(number).blocks(reader)
            elif not any(self.spread[1:]):
                yield from Stored(rows_of(self.info, at, count)).blocks(reader)
            else:
                for start in range(at, at + count, step):
                    values = reader.read(rows_of(self.info, start, min(step, at + count - start)))
                    yield _spread_out(values, self.spread)
            at += count


def _spread_out(values: torch.Tensor, spread: Spread) -> torch.Tensor:
    """``values`` with zeros along every dimension but the first."""
    for dimension, axis in enumerate(spread):
        if dimension and axis is not None:
            values = _along(values, dimension, axis)
    return values


def _along(values: torch.Tensor, dimension: int, axis: Axis) -> torch.Tensor:
    import torch

    shape = list(values.shape)
    shape[dimension] = full_size(axis)
    made = torch.zeros(shape, dtype=values.dtype)
    at = taken = 0
    for count, stored in axis:
        if stored:
            made.narrow(dimension, at, count).copy_(values.narrow(dimension, taken, count))
            taken += count
        at += count
    return made


@dataclass(frozen=True, slots=True)
class Ones:
    """``numel`` ones, for a norm in front of a block of zeros."""

    numel: int

    def blocks(self, reader: WeightReader) -> Iterator[torch.Tensor]:
        """Them."""
        import torch

        yield torch.ones(self.numel, dtype=torch.bool)  # exact in any dtype
