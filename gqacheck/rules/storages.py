"""GQA012 and GQA013: the bytes behind the tensors, too few or too many; and the readers' defects as violations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

from gqacheck.checkpoint import ITEMSIZE_BITS, Defect, StorageInfo, TensorInfo
from gqacheck.geometry.facts import Subject
from gqacheck.rules.heads import counted
from gqacheck.rules.rule import Quantity, Severity, Violation
from gqacheck.text import printable

_SHOWN_TENSORS = 16
_WASTE_BYTES = 64
_WASTE_SHARE = 0.01
"""A storage counts as oversized when more than this share of it, and more than so many bytes, is in no view."""

_StorageKey = tuple[str, str]
Kind = Literal["storage-bounds", "shard-index", "shard-size", "ambiguous"]


def needs_torch_storages(subject: Subject) -> tuple[str, str] | None:
    """A torch file, the only kind whose tensors are views of storages."""
    if "torch" not in subject.checkpoint.format:
        return "torch-file", "only torch files store a tensor apart from the memory that it views"
    return None


def defects_of(subject: Subject, *kinds: Kind) -> list[Defect]:
    """The defects that the readers found, of these kinds."""
    return [defect for defect in subject.checkpoint.defects if defect.kind in kinds]


def from_defect(defect: Defect, *, consequence: str, severity: Severity | None = None) -> Violation:
    """A defect as a violation; its message, numbers and fix are the reader's."""
    return Violation(
        message=defect.message,
        tensors=defect.tensors,
        expected=Quantity(defect.expected, defect.unit) if defect.expected is not None else None,
        actual=Quantity(defect.actual, defect.unit) if defect.actual is not None else None,
        source="container",
        consequence=consequence,
        fix=defect.fix,
        severity=severity,
    )


def storage_bounds(subject: Subject) -> Iterator[Violation]:
    """A tensor reaches past the bytes that are there for it.

    What it checks
        That every storage is as long as the pickle declares, and that every view (shape, strides, offset) stays
        inside its storage.

    Why it matters
        The missing values are somebody else's bytes or none at all: a truncated download, a damaged copy, or a file
        made to be misread.

    What you would see
        `storage has wrong byte size` or `setStorage: … are out of bounds for storage` from torch.load; with
        mmap=True some of these files load without an error and return bytes of another tensor.

    Fix
        Copy or download the file again; if that does not help, save it again from the process that made it.

    Known misses
        Bytes that are there and wrong.

    Source
        torch 2.13: a plain load compares sizes, a memory-mapped one does not in every case.
    """
    reported = defects_of(subject, "storage-bounds")
    for defect in reported:
        yield from_defect(
            defect,
            consequence="torch.load refuses the tensor, or with mmap=True returns bytes that belong to another one",
        )
    if not reported:
        yield from _measured_bounds(subject.checkpoint.tensors)


def _measured_bounds(tensors: Mapping[str, TensorInfo]) -> Iterator[Violation]:
    """The same from the numbers alone, for readers that did not look."""
    short: dict[_StorageKey, StorageInfo] = {}
    for name, tensor in tensors.items():
        storage = tensor.storage
        if storage is None:
            continue
        if storage.nbytes < storage.declared_nbytes:
            short.setdefault((storage.file, storage.key), storage)
        first, last = _byte_range(tensor)
        if first < 0 or last > storage.nbytes:
            yield Violation(
                message=f"a view needs bytes {first} to {last} of a storage of {storage.nbytes}",
                tensors=(name,),
                expected=Quantity(storage.nbytes, "bytes"),
                actual=Quantity(last if first >= 0 else first, "bytes"),
                source="tensor views",
                consequence="torch.load refuses the tensor, or with mmap=True returns bytes that belong to another one",
                fix="save the model again from the process that made it",
            )
    for storage in short.values():
        yield Violation(
            message=f"storage {printable(storage.key, 60)} holds {storage.nbytes} bytes, "
            f"{storage.declared_nbytes} are declared",
            expected=Quantity(storage.declared_nbytes, "bytes"),
            actual=Quantity(storage.nbytes, "bytes"),
            source="storage sizes",
            consequence="torch.load refuses the file",
            fix="copy or download the file again",
        )


def _byte_range(tensor: TensorInfo) -> tuple[int, int]:
    """First byte and the one after the last that the view touches; equal for a view without elements."""
    bits = ITEMSIZE_BITS.get(tensor.dtype, 8)
    if tensor.numel == 0:
        return 0, 0
    reach = [(size - 1) * stride for size, stride in zip(tensor.shape, tensor.strides, strict=False)]
    first = tensor.storage_offset + sum(n for n in reach if n < 0)
    last = tensor.storage_offset + sum(n for n in reach if n > 0) + 1
    return first * bits // 8, (last * bits + 7) // 8


def oversized_storage(subject: Subject) -> Iterator[Violation]:
    """The file still holds weights that were pruned away.

    What it checks
        For every storage of a torch file, the bytes that all views of it use together against the bytes that it
        holds. Tied weights and several views of one storage add up; a few spare bytes do not count.

    Why it matters
        `weight[:rows]` is a view of the whole old weight, and torch.save writes the whole. The file is as large as
        before, and the removed weights can be read out of it.

    What you would see
        A file that did not shrink; more memory used after loading than the parameters need.

    Fix
        `weight = weight.clone()` after cutting and before torch.save, or save as safetensors.

    Known misses
        Storages that only something outside the model uses.

    Source
        torch.save stores storages, not tensors; measured on torch 2.13.
    """
    used: dict[_StorageKey, dict[tuple[object, ...], int]] = {}
    held: dict[_StorageKey, int] = {}
    names: dict[_StorageKey, list[str]] = {}
    for name, tensor in subject.checkpoint.tensors.items():
        storage = tensor.storage
        if storage is None:
            continue
        key = (storage.file, storage.key)
        held[key] = storage.nbytes
        names.setdefault(key, []).append(name)
        view = (tensor.storage_offset, tensor.shape, tensor.strides, tensor.dtype)
        used.setdefault(key, {})[view] = tensor.nbytes
    wasteful = [key for key, nbytes in held.items() if _is_wasteful(nbytes, sum(used[key].values()))]
    if not wasteful:
        return
    total = sum(held[key] for key in wasteful)
    needed = sum(sum(used[key].values()) for key in wasteful)
    tensors = [name for key in wasteful for name in names[key]]
    yield Violation(
        message=(
            f"{_megabytes(total)} are stored for {counted(len(tensors), 'tensor')} that use {_megabytes(needed)}: "
            f"{_megabytes(total - needed)} of what was cut away is still in the file"
        ),
        tensors=tuple(tensors[:_SHOWN_TENSORS]),
        expected=Quantity(needed, "bytes"),
        actual=Quantity(total, "bytes"),
        source="storage sizes",
        consequence="the file and the memory after loading do not shrink, and the removed weights can be recovered",
        fix="call .clone() on every cut weight before torch.save, or save as safetensors",
        severity=Severity.WARNING,
    )


def _is_wasteful(nbytes: int, needed: int) -> bool:
    return nbytes - needed > max(_WASTE_BYTES, _WASTE_SHARE * nbytes)


def _megabytes(nbytes: int) -> str:
    """``3.41 MB``; KB below a tenth of that, where MB would round to nothing."""
    return f"{nbytes / 1e6:,.2f} MB" if nbytes >= 100_000 else f"{nbytes / 1e3:,.2f} KB"
