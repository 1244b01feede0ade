"""Planned tensors as safetensors shards: one block in memory at a time, and read back afterwards."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from gqacheck.checkpoint import ITEMSIZE_BITS
from gqacheck.errors import UsageError
from gqacheck.export.content import Planned
from gqacheck.export.facts import CannotExport
from gqacheck.formats.tensor_bytes import CODES, FileBytes, safetensors_header
from gqacheck.text import printable

if TYPE_CHECKING:
    import torch


Progress = Callable[[str, int, int], None]
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
          "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}  # fmt: skip
_SMALLEST_SHARD = 1
_TOLD_EVERY = 1 << 26
_COMPARED = 1 << 20


@dataclass(frozen=True, slots=True)
class Shard:
    """One file to write: its name and its tensors, widest dtype first, so that each starts on a multiple of its own."""

    name: str
    tensors: tuple[Planned, ...]

    @property
    def header(self) -> bytes:
        """The first bytes of the file."""
        entries = ((each.name, each.dtype, each.shape, each.nbytes) for each in self.tensors)
        return safetensors_header(entries, {"format": "pt"})


def parse_size(size: str | int) -> int:
    """Bytes of ``"200MB"``, ``"5GB"``, ``"1.5GiB"`` or a number.

    Raises:
        UsageError: it is none, or not above 0.
    """
    text = str(size).strip().upper().replace("_", "") if type(size) in (str, int) else ""
    number = text.rstrip("BIKMGT")
    unit = text[len(number) :]
    try:
        value = float(number) * _UNITS[unit]
    except (KeyError, ValueError):
        value = 0.0
    if not _SMALLEST_SHARD <= value < 1 << 60:
        raise UsageError(f"--max-shard-size takes a size such as 200MB or 5GB, not {printable(size, 60)}")
    return int(value)


def plan_shards(tensors: Sequence[Planned], max_bytes: int) -> tuple[Shard, ...]:
    """The files: in order, none above ``max_bytes`` unless one tensor is."""
    groups: list[list[Planned]] = [[]]
    filled = 0
    for each in tensors:
        if groups[-1] and filled + each.nbytes > max_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(each)
        filled += each.nbytes
    if len(groups) == 1:
        return (Shard(SINGLE, _aligned(groups[0])),)
    n = len(groups)
    return tuple(
        Shard(f"model-{number:05d}-of-{n:05d}.safetensors", _aligned(group)) for number, group in enumerate(groups, 1)
    )


def _aligned(tensors: Sequence[Planned]) -> tuple[Planned, ...]:
    for each in tensors:
        if each.name == "__metadata__" or any("\ud800" <= c <= "\udfff" for c in each.name):
            raise CannotExport(
                f"a stored tensor is called {printable(each.name)}, which safetensors cannot hold: rename it"
            )
        if each.dtype not in CODES:
            raise CannotExport(
                f"{printable(each.name)} is stored as {each.dtype}, which safetensors does not have: choose a --dtype"
            )
    return tuple(sorted(tensors, key=lambda each: -ITEMSIZE_BITS[each.dtype]))


def write_shards(folder: str, shards: Sequence[Shard], progress: Progress | None = None) -> None:
    """Writes every shard, and the index where there are several; each is compared with the source as soon as it stands.

    Compared then, because both are still in the page cache: a checkpoint that is larger than it is read once less.

    Raises:
        CannotExport: a number does not fit the dtype that was asked for, or a shard does not read back.
        ReadError: the bytes of a stored tensor are not there.
    """
    total = sum(each.nbytes for shard in shards for each in shard.tensors)
    told = _Told("write", 2 * total, progress)
    for shard in shards:
        write_shard(folder, shard, told.add)
        wrong = first_difference(folder, shard, told.add)
        if wrong:
            raise CannotExport(f"{wrong} does not read back as it was written; nothing was written")
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": total, "total_parameters": sum(e.numel for s in shards for e in s.tensors)},
            "weight_map": {each.name: shard.name for shard in shards for each in shard.tensors},
        }
        with open(os.path.join(folder, INDEX), "x", encoding="utf-8") as text:
            json.dump(index, text, indent=2)
            text.write("\n")


def write_shard(folder: str, shard: Shard, told: Callable[[int], None]) -> None:
    """Writes one shard; ``told`` hears of the bytes as they are written.

    Raises:
        CannotExport: a number does not fit the dtype that was asked for.
        ReadError: the bytes of a stored tensor are not there.
    """
    with open(os.path.join(folder, shard.name), "xb") as stream:
        stream.write(shard.header)
        for each in shard.tensors:
            _write(each, stream, told)


def _write(each: Planned, stream: BinaryIO, told: Callable[[int], None]) -> None:
    written = 0
    for nbytes in _written(each, stream):
        written += nbytes
        told(nbytes)
    if written != each.nbytes:
        raise CannotExport(
            f"{printable(each.name)} came out as {written} bytes where {each.nbytes} were planned; please report it"
        )


def _written(each: Planned, stream: BinaryIO) -> Iterator[int]:
    """Writes the tensor; how many bytes, piece by piece."""
    if each.raw is None:
        for piece in pieces_of(each):
            yield stream.write(piece)
        return
    with FileBytes() as files:
        for info in each.raw:
            yield from files.copy(info, stream)


def pieces_of(each: Planned) -> Iterator[bytes | memoryview]:
    """The tensor's bytes as they stand in the file.

    Raises:
        CannotExport: a number does not fit the dtype that was asked for.
        ReadError: the bytes of a stored tensor are not there.
    """
    raw = each.raw
    if raw is not None:
        with FileBytes() as files:
            for info in raw:
                yield from files.chunks(info)
        return
    from gqacheck.runtime.weights import WeightReader, torch_dtype

    target = torch_dtype(each.dtype)
    for content in each.contents:
        with WeightReader() as reader:
            for block in content.blocks(reader):
                yield _bytes_of(cast(block, target, each))


def cast(block: torch.Tensor, target: torch.dtype, each: Planned) -> torch.Tensor:
    """``block`` in the dtype ``target``; ``each`` is the tensor it is of.

    Raises:
        CannotExport: a number does not fit.
    """
    import torch

    from gqacheck.runtime.weights import cast_to

    if block.dtype == target:
        return block
    made = cast_to(block, target)
    narrow = block.is_floating_point() and torch.finfo(target).max < torch.finfo(block.dtype).max
    if narrow and not bool(made.isfinite().all()) and bool((block.isfinite() & ~made.isfinite()).any()):
        most = float(block[block.isfinite()].abs().max())
        raise CannotExport(
            f"{printable(each.name)} holds {most:.3g}, more than {each.dtype} can ({torch.finfo(target).max:.3g}): "
            "choose --dtype bfloat16 or float32"
        )
    return made


def _bytes_of(values: torch.Tensor) -> memoryview:
    import torch

    flat = values.detach().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def first_difference(folder: str, shard: Shard, told: Callable[[int], None]) -> str:
    """The name of the first tensor that a shard does not hold as planned; "" when it holds all.

    Raises:
        ReadError: the source cannot be read any more.
    """
    header = shard.header
    with open(os.path.join(folder, shard.name), "rb") as stream:
        if stream.read(len(header)) != header:
            return shard.name
        for each in shard.tensors:
            for piece in pieces_of(each):
                if not _same(stream, piece):
                    return each.name
                told(len(piece))
        return shard.name if stream.read(1) else ""


def _same(stream: BinaryIO, piece: bytes | memoryview) -> bool:
    for at in range(0, len(piece), _COMPARED):
        expected = bytes(piece[at : at + _COMPARED])  # a memoryview is compared ten times as slowly
        if stream.read(len(expected)) != expected:
            return False
    return True


class _Told:
    """Bytes done, told now and then."""

    def __init__(self, what: str, total: int, progress: Progress | None) -> None:
        self._what, self._total, self._progress = what, max(total, 1), progress
        self._done = self._last = 0

    def add(self, nbytes: int) -> None:
        self._done += nbytes
        if self._progress is not None and (self._done - self._last >= _TOLD_EVERY or self._done >= self._total):
            self._last = self._done
            self._progress(self._what, self._done, self._total)
