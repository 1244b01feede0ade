"""Safetensors files: the header read as strictly as the library reads it, the weights never.

A file is ``u64 N`` (little-endian), ``N`` bytes of JSON, then the weights. Each tensor names its dtype, shape and
``[begin, end)`` byte offsets after the header; sorted by offset they must follow each other without gap from 0, and
the last end must be the end of the file. What breaks the JSON makes the file unreadable; what breaks only the layout
leaves shapes that can still be checked, and is a defect.

Source: ``SafeTensors::read_metadata`` and ``Metadata::validate`` of the safetensors library 0.8.
"""

from __future__ import annotations

import gc
import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

from gqacheck.checkpoint import ITEMSIZE_BITS, Defect, StorageInfo, TensorInfo
from gqacheck.errors import ReadError
from gqacheck.formats.source import Source
from gqacheck.formats.strict_json import MAX_DEPTH, Pairs, describe_twice, parse_json, refuse_surrogates
from gqacheck.text import printable

MAX_HEADER_BYTES = 100_000_000
"""The library's own limit."""

DTYPES: Mapping[str, str] = MappingProxyType(
    {
        "BOOL": "bool", "F4": "float4_e2m1", "F6_E2M3": "float6_e2m3", "F6_E3M2": "float6_e3m2", "U8": "uint8",
        "I8": "int8", "F8_E5M2": "float8_e5m2", "F8_E4M3": "float8_e4m3fn", "F8_E8M0": "float8_e8m0fnu",
        "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz", "I16": "int16", "U16": "uint16",
        "F16": "float16", "BF16": "bfloat16", "I32": "int32", "U32": "uint32", "F32": "float32", "C64": "complex64",
        "F64": "float64", "I64": "int64", "U64": "uint64",
    }
)  # fmt: skip
"""The format's dtype names and this package's."""

_U64 = (1 << 64) - 1
_FIELDS = ("dtype", "shape", "data_offsets")


@dataclass(frozen=True, slots=True)
class SafetensorsFile:
    """One safetensors file: its tensors by name, its ``__metadata__`` strings, and what is wrong with its layout."""

    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str] = field(default_factory=dict)
    defects: tuple[Defect, ...] = ()


class _Entry(NamedTuple):
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class _Object(NamedTuple):
    pairs: Pairs
    depth: int


def read_safetensors(source: Source) -> SafetensorsFile:
    """The tensors of the safetensors file ``source``: the header is read, no weight is.

    Raises ``ReadError`` when the header cannot be read.
    """
    shown = printable(source.path)
    if source.size < 8:
        raise ReadError(f"{shown}: has {source.size} bytes; a safetensors header needs at least 8")
    (length,) = struct.unpack("<Q", source.read(0, 8))
    if length > MAX_HEADER_BYTES:
        raise ReadError(f"{shown}: claims a header of {length:,} bytes; safetensors allows {MAX_HEADER_BYTES:,}")
    if 8 + length > source.size:
        raise ReadError(
            f"{shown}: is cut short: its header is {length:,} bytes long and the file ends after {source.size - 8:,} "
            f"of them; fetch or save it again"
        )
    with _pause_collector():
        try:
            entries, metadata, twice = _parse_header(source.read(8, length))
        except ValueError as error:
            raise ReadError(f"{shown}: the safetensors header cannot be read: {error}") from None
        start = 8 + length
        shown = printable(os.path.basename(source.path))
        defects = list(_check_layout(entries, source.size - start, shown))
        if twice:
            told = describe_twice(twice, f"the header of {shown}")
            defects.insert(0, Defect("ambiguous", told, twice, fix=_SAVE_AGAIN))
        tensors = {key: _build_tensor(key, entry, source.path, start, source.size) for key, entry in entries.items()}
    return SafetensorsFile(tensors, metadata, tuple(defects))


_SAVE_AGAIN = "fetch or save the file again"


@contextmanager
def _pause_collector() -> Iterator[None]:
    """No cycle collection inside: a header of many tensors makes many objects and no cycle (a third of the time)."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _parse_header(data: bytes) -> tuple[dict[str, _Entry], dict[str, str], tuple[str, ...]]:
    """Entries by tensor name, the metadata, and the names that stand twice."""
    halves = b"\\ud" in data or b"\\uD" in data  # only then can a string hold half a surrogate pair

    def build(pairs: Pairs) -> _Entry | _Object:
        if halves:
            for key, value in pairs:
                refuse_surrogates(key)
                _refuse_surrogates_within(value)
        if len(pairs) == 3 and (pairs[0][0], pairs[1][0], pairs[2][0]) == _FIELDS:
            try:
                return _read_entry(pairs[0][1], pairs[1][1], pairs[2][1])
            except ValueError:
                pass  # judged again where the tensor's name is known; inside an unknown field it does no harm
        return _Object(pairs, 1 + max((_depth(value) for _, value in pairs), default=0))

    header = parse_json(data, strict=True, objects=build)
    if not isinstance(header, _Object):
        raise ValueError("it is not a JSON object")
    if header.depth > MAX_DEPTH:
        raise ValueError(f"it is nested more than {MAX_DEPTH} levels deep")
    entries: dict[str, _Entry] = {}
    metadata: dict[str, str] | None = None
    twice: dict[str, None] = {}
    for name, value in header.pairs:
        if name == "__metadata__":
            if metadata is not None:
                raise ValueError("it has __metadata__ more than once")
            metadata = _read_metadata(value)
            continue
        if name in entries:
            twice[name] = None
        try:
            entries[name] = value if isinstance(value, _Entry) else _read_unusual_entry(value)
        except ValueError as error:
            raise ValueError(f"tensor {printable(name)} {error}") from None
    return entries, metadata or {}, tuple(twice)


def _read_metadata(value: Any) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, _Object) or not all(isinstance(text, str) for _, text in value.pairs):
        raise ValueError("__metadata__ is not an object of strings")
    return dict(value.pairs)


def _read_unusual_entry(value: Any) -> _Entry:
    """An entry in another order, with further fields, or as a bare list: the library accepts these too."""
    if isinstance(value, list):
        if len(value) != 3:
            raise ValueError("is described by a list that is not [dtype, shape, data_offsets]")
        return _read_entry(*value)
    if not isinstance(value, _Object):
        raise ValueError("is not described by an object")
    found: dict[str, Any] = {}
    for key, item in value.pairs:
        if key in _FIELDS:
            if key in found:
                raise ValueError(f"has {key} more than once")
            found[key] = item
    missing = [key for key in _FIELDS if key not in found]
    if missing:
        raise ValueError(f"has no {missing[0]}")
    return _read_entry(*(found[key] for key in _FIELDS))


def _read_entry(dtype: Any, shape: Any, offsets: Any) -> _Entry:
    if isinstance(dtype, _Object) and len(dtype.pairs) == 1 and dtype.pairs[0][1] is None:
        dtype = dtype.pairs[0][0]  # serde reads {"F32": null} as the dtype F32
    if not isinstance(dtype, str) or dtype not in DTYPES:
        said = printable(dtype, 40) if isinstance(dtype, str) else "no string"
        raise ValueError(f"has the dtype {said}, which safetensors does not know")
    if not isinstance(shape, list):
        raise ValueError("has a shape that is not a list of sizes")
    product = 1
    for size in shape:
        if type(size) is not int or not 0 <= size <= _U64:
            raise ValueError("has a shape that is not a list of sizes")
        product *= size
        if product > _U64:
            raise ValueError("has a shape whose product does not fit 64 bits")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_size, offsets)):
        raise ValueError("has data_offsets that are not two byte counts")
    if product * ITEMSIZE_BITS[DTYPES[dtype]] > _U64:
        raise ValueError("has a size in bits that does not fit 64 bits")
    return _Entry(DTYPES[dtype], tuple(shape), offsets[0], offsets[1])


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _U64


def _depth(value: Any) -> int:
    """Levels of nesting in ``value``; an object carries its own."""
    if type(value) is _Entry:
        return 2
    if not isinstance(value, (list, _Object)):
        return 0
    deepest = 0
    stack = [(value, 0)]
    while stack:
        item, above = stack.pop()
        if isinstance(item, _Object):
            deepest = max(deepest, above + item.depth)
        elif isinstance(item, _Entry):
            deepest = max(deepest, above + 2)
        elif isinstance(item, list):
            deepest = max(deepest, above + 1)
            stack.extend((inner, above + 1) for inner in item)
    return deepest


def _refuse_surrogates_within(value: Any) -> None:
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            refuse_surrogates(item)
        elif isinstance(item, list):
            stack.extend(item)


def _check_layout(entries: Mapping[str, _Entry], held: int, shown: str) -> Iterator[Defect]:
    """What the library refuses in the layout; ``held`` is the number of bytes after the header.

    One defect per kind of fault, with the tensors that have it.
    """
    wrong_size: list[str] = []
    out_of_place: list[str] = []
    cut: list[str] = []
    first_wrong = first_place = (0, 0)
    end = last = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        bits = _numel(entry.shape) * ITEMSIZE_BITS[entry.dtype]
        if entry.end - entry.begin != bits // 8 or bits % 8:
            first_wrong = first_wrong if wrong_size else ((bits + 7) // 8, entry.end - entry.begin)
            wrong_size.append(name)
        if entry.begin != end or entry.end < entry.begin:
            first_place = first_place if out_of_place else (end, entry.begin)
            out_of_place.append(name)
        if entry.end > held:
            cut.append(name)
        end = entry.end
        last = max(last, entry.end)
    if cut:
        yield Defect(
            "storage-bounds",
            f"{shown} is cut short: its header describes {last:,} bytes of weights and the file holds {held:,}, so "
            f"{len(cut):,} of {len(entries):,} tensors reach past its end",
            tuple(cut), expected=last, actual=held, unit="bytes", fix=_SAVE_AGAIN,
        )  # fmt: skip
    if wrong_size:
        yield Defect(
            "storage-bounds",
            f"{shown}: {_whose(wrong_size)} shape and dtype need {first_wrong[0]:,} bytes, its data_offsets span "
            f"{first_wrong[1]:,}",
            tuple(wrong_size), expected=first_wrong[0], actual=first_wrong[1], unit="bytes", fix=_SAVE_AGAIN,
        )  # fmt: skip
    if out_of_place:
        yield Defect(
            "storage-bounds",
            f"{shown}: {_whose(out_of_place)} bytes begin at {first_place[1]:,} where the tensor before ends at "
            f"{first_place[0]:,}: safetensors allows neither gaps nor overlaps",
            tuple(out_of_place), expected=first_place[0], actual=first_place[1], unit="byte offset", fix=_SAVE_AGAIN,
        )  # fmt: skip
    if held > last:
        yield Defect(
            "storage-bounds",
            f"{shown}: {held - last:,} bytes follow the last tensor, which safetensors refuses to load",
            expected=last, actual=held, unit="bytes", fix=_SAVE_AGAIN,
        )  # fmt: skip


def _whose(names: list[str]) -> str:
    others = f" (and {len(names) - 1:,} more)" if len(names) > 1 else ""
    return f"{printable(names[0])}'s{others}"


def _numel(shape: tuple[int, ...]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product


def _build_tensor(name: str, entry: _Entry, file: str, start: int, file_size: int) -> TensorInfo:
    dtype, shape, begin, end = entry
    strides: list[int] = []
    step = 1
    for size in reversed(shape):
        strides.append(step)
        step *= size or 1
    strides.reverse()
    declared = max(0, end - begin)
    held = max(0, min(declared, file_size - start - begin))
    return TensorInfo(name, shape, dtype, tuple(strides), 0, StorageInfo(file, name, start + begin, held, declared))
