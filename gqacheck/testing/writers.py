"""Write checkpoints with the standard library alone: torch zip, torch legacy, safetensors.

Used by the tests, the demo and other repositories' suites. Files are what ``torch.save`` and the safetensors library
write, so torch can load the state dicts; a module pickle needs its classes importable, as always.
"""

from __future__ import annotations

import json
import pickle
import struct
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gqacheck.checkpoint import ITEMSIZE_BITS

STORAGE_CLASSES = {
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "float32": "FloatStorage",
    "float64": "DoubleStorage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "int16": "ShortStorage",
    "int8": "CharStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
}
SAFETENSORS_DTYPES = {
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}


@dataclass(slots=True, eq=False)
class Storage:
    """Bytes that tensors view. ``declared`` overrides the element count the pickle claims (for broken files)."""

    data: bytes
    dtype: str
    declared: int | None = None

    @property
    def numel(self) -> int:
        """Elements, as the pickle will claim."""
        if self.declared is not None:
            return self.declared
        return len(self.data) * 8 // ITEMSIZE_BITS[self.dtype]


@dataclass(slots=True, eq=False)
class Tensor:
    """A view of a storage: ``shape``, ``strides`` and ``offset`` in elements."""

    storage: Storage
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0
    parameter: bool = False

    def dense(self) -> bytes:
        """The elements' bytes; only for contiguous views."""
        size = ITEMSIZE_BITS[self.storage.dtype] // 8
        count = 1
        for n in self.shape:
            count *= n
        return self.storage.data[self.offset * size : (self.offset + count) * size]


def contiguous_strides(shape: Iterable[int]) -> tuple[int, ...]:
    """Strides in elements of a dense row-major tensor of ``shape``."""
    strides: list[int] = []
    step = 1
    for size in reversed(tuple(shape)):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))


def tensor(
    shape: Iterable[int], dtype: str = "float16", data: bytes | None = None, *, parameter: bool = False
) -> Tensor:
    """A dense tensor over a storage of its own; zeros when ``data`` is not given."""
    shape = tuple(shape)
    count = 1
    for n in shape:
        count *= n
    if data is None:
        data = bytes(count * ITEMSIZE_BITS[dtype] // 8)
    return Tensor(Storage(data, dtype), shape, contiguous_strides(shape), parameter=parameter)


@dataclass(slots=True, frozen=True)
class Global:
    """A global by name: ``Global("torch", "float16")``."""

    module: str
    name: str


@dataclass(slots=True, eq=False)
class Reduce:
    """``callable(*args)`` when unpickled by Python, then ``items`` set on it, then ``state`` built into it."""

    callable: Global
    args: tuple[object, ...] = ()
    state: object = None
    items: Mapping[object, object] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Instance:
    """An object made by ``cls.__new__`` whose ``__dict__`` is ``state``."""

    cls: Global
    state: Mapping[str, object] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Raw:
    """Opcodes put into the stream as they are."""

    opcodes: bytes


class PickleWriter:
    """Emits protocol 2 opcodes, as ``torch.save`` does, from plain values and the classes of this file."""

    def __init__(self, *, legacy: bool = False) -> None:
        self.out = bytearray(b"\x80\x02")
        self.storages: list[Storage] = []
        self._keys: dict[int, str] = {}
        self._memo: dict[int, int] = {}
        self._alive: list[object] = []
        self._legacy = legacy

    def finish(self, value: object) -> bytes:
        """The whole stream for ``value``."""
        self.save(value)
        return bytes(self.out + b".")

    def save(self, value: object) -> None:
        """Emit one value."""
        if isinstance(value, (dict, list, Instance, Reduce, Tensor)):
            if id(value) in self._memo:
                self.out += b"j" + struct.pack("<I", self._memo[id(value)])
                return
            self._emit_shared(value)
        elif value is None or isinstance(value, (bool, int, float, str, bytes)):
            self._emit_plain(value)
        elif isinstance(value, tuple):
            self.out += b"("
            for item in value:
                self.save(item)
            self.out += b"t"
        elif isinstance(value, Global):
            self.out += b"c" + value.module.encode() + b"\n" + value.name.encode() + b"\n"
        elif isinstance(value, Raw):
            self.out += value.opcodes
        else:
            raise TypeError(f"cannot write a {type(value).__name__}")

    def _emit_plain(self, value: object) -> None:
        if value is None:
            self.out += b"N"
        elif isinstance(value, bool):
            self.out += b"\x88" if value else b"\x89"
        elif isinstance(value, int):
            if -(2**31) <= value < 2**31:
                self.out += b"J" + struct.pack("<i", value)
            else:
                body = pickle.encode_long(value)
                self.out += b"\x8a" + bytes([len(body)]) + body
        elif isinstance(value, float):
            self.out += b"G" + struct.pack(">d", value)
        elif isinstance(value, str):
            text = value.encode("utf-8", "surrogatepass")
            self.out += b"X" + struct.pack("<I", len(text)) + text
        else:
            assert isinstance(value, bytes)
            self.save(Reduce(Global("_codecs", "encode"), (value.decode("latin-1"), "latin1")))

    def _put(self, value: object) -> None:
        self._memo[id(value)] = len(self._memo)
        self._alive.append(value)
        self.out += b"r" + struct.pack("<I", self._memo[id(value)])

    def _emit_shared(self, value: object) -> None:
        if isinstance(value, dict):
            self.out += b"}"
            self._put(value)
            self._set_items(value)
        elif isinstance(value, list):
            self.out += b"]"
            self._put(value)
            self.out += b"("
            for item in value:
                self.save(item)
            self.out += b"e"
        elif isinstance(value, Instance):
            self.save(value.cls)
            self.out += b")\x81"
            self._put(value)
            self.save(dict(value.state))
            self.out += b"b"
        elif isinstance(value, Reduce):
            self.save(value.callable)
            self.save(value.args)
            self.out += b"R"
            self._put(value)
            if value.items:
                self._set_items(value.items)
            if value.state is not None:
                self.save(value.state)
                self.out += b"b"
        else:
            assert isinstance(value, Tensor)
            self._emit_tensor(value)

    def _set_items(self, items: Mapping[object, object]) -> None:
        self.out += b"("
        for key, item in items.items():
            self.save(key)
            self.save(item)
        self.out += b"u"

    def _emit_tensor(self, value: Tensor) -> None:
        rebuild = Raw(self._persistent(value.storage))
        args = (rebuild, value.offset, value.shape, value.strides, False, ordered_dict())
        view = Reduce(Global("torch._utils", "_rebuild_tensor_v2"), args)
        if value.parameter:
            self.save(Reduce(Global("torch._utils", "_rebuild_parameter"), (view, True, ordered_dict())))
        else:
            self.save(view)
        self._put(value)

    def _persistent(self, storage: Storage) -> bytes:
        if id(storage) not in self._keys:
            self._keys[id(storage)] = str(len(self.storages))
            self.storages.append(storage)
        outer, self.out = self.out, bytearray()
        cls = Global("torch", STORAGE_CLASSES[storage.dtype])
        fields: tuple[object, ...] = ("storage", cls, self._keys[id(storage)], "cpu", storage.numel)
        self.save((*fields, None) if self._legacy else fields)
        self.out += b"Q"
        body, self.out = bytes(self.out), outer
        return body


def ordered_dict(items: Mapping[object, object] | None = None) -> Reduce:
    """An ``OrderedDict`` as pickle writes it; with ``items`` they follow as SETITEMS."""
    return Reduce(Global("collections", "OrderedDict"), (), items=dict(items or {}))


def write_torch_zip(path: str | Path, value: object, *, prefix: str = "archive") -> Path:
    """What ``torch.save(value, path)`` writes: a stored zip with ``data.pkl`` and one record per storage."""
    writer = PickleWriter()
    body = writer.finish(value)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        _add(archive, f"{prefix}/data.pkl", body)
        _add(archive, f"{prefix}/.format_version", b"1")
        _add(archive, f"{prefix}/.storage_alignment", b"64")
        _add(archive, f"{prefix}/byteorder", b"little")
        for key, storage in enumerate(writer.storages):
            _add(archive, f"{prefix}/data/{key}", storage.data)
        _add(archive, f"{prefix}/version", b"3\n")
    return Path(path)


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), data)


def write_torch_legacy(path: str | Path, value: object) -> Path:
    """What ``torch.save(..., _use_new_zipfile_serialization=False)`` writes: five pickles, then the storages."""
    writer = PickleWriter(legacy=True)
    body = writer.finish(value)
    keys = [str(i) for i in range(len(writer.storages))]
    info = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    with open(path, "wb") as out:
        for head in (0x1950A86A20F9469CFC6C, 1001, info):
            pickle.dump(head, out, protocol=2)
        out.write(body)
        pickle.dump(keys, out, protocol=2)
        for storage in writer.storages:
            out.write(struct.pack("<q", len(storage.data) * 8 // ITEMSIZE_BITS[storage.dtype]))
            out.write(storage.data)
    return Path(path)


def write_safetensors(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> Path:
    """A safetensors file of dense copies of ``tensors``, in their order."""
    header: dict[str, object] = {"__metadata__": dict(metadata or {"format": "pt"})}
    position = 0
    for name, value in tensors.items():
        size = len(value.dense())
        header[name] = {
            "dtype": SAFETENSORS_DTYPES[value.storage.dtype],
            "shape": list(value.shape),
            "data_offsets": [position, position + size],
        }
        position += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for value in tensors.values():
            out.write(value.dense())
    return Path(path)
