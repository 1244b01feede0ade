"""The facts of one checkpoint, as its bytes tell them: immutable, plain, and read without running anything.

Three sources of truth stay apart here, because a broken cut shows where they disagree:
``tensors`` (what is stored), ``modules`` (what a whole-module pickle says of itself) and ``config``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Literal, TypeAlias

Plain: TypeAlias = "bool | int | float | str | tuple[Plain, ...] | Mapping[str, Plain] | None"
"""What JSON can say. Values from a pickle that are anything else never get this far."""

ITEMSIZE_BITS: Mapping[str, int] = MappingProxyType(
    {
        "bool": 8, "uint8": 8, "int8": 8, "int16": 16, "uint16": 16, "int32": 32, "uint32": 32, "int64": 64,
        "uint64": 64, "float16": 16, "bfloat16": 16, "float32": 32, "float64": 64, "complex32": 32, "complex64": 64,
        "complex128": 128, "float8_e4m3fn": 8, "float8_e5m2": 8, "float8_e4m3fnuz": 8, "float8_e5m2fnuz": 8,
        "float8_e8m0fnu": 8, "float4_e2m1": 4, "float6_e2m3": 6, "float6_e3m2": 6, "qint8": 8, "quint8": 8,
        "qint32": 32, "quint4x2": 8, "quint2x4": 8, "bits8": 8,
    }
)  # fmt: skip
"""Bits per element of every dtype name used in this package (torch spelling, without ``torch.``)."""


class Container(StrEnum):
    """What a consumer runs from; it decides the severity of a config that does not match.

    A whole-module pickle runs from its modules, a folder from its config.json, a bare state dict from
    whatever the reader builds.
    """

    MODULE = "module"
    STATE_DICT = "state-dict"
    FOLDER = "folder"


@dataclass(frozen=True, slots=True)
class StorageInfo:
    """One block of bytes that one or more tensors view.

    ``offset`` is the absolute byte offset in ``file`` of its first byte; ``nbytes`` what the file really
    holds; ``declared_nbytes`` what the pickle or header claims.
    """

    file: str
    key: str
    offset: int
    nbytes: int
    declared_nbytes: int


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One stored tensor. ``shape`` in elements, ``strides`` and ``storage_offset`` in elements of ``dtype``.

    ``storage`` is None for a tensor without bytes (meta device). Names are as stored, prefixes included.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    strides: tuple[int, ...]
    storage_offset: int = 0
    storage: StorageInfo | None = None
    kind: Literal["parameter", "buffer", "tensor"] = "tensor"

    @property
    def numel(self) -> int:
        """Number of elements."""
        n = 1
        for size in self.shape:
            n *= size
        return n

    @property
    def nbytes(self) -> int:
        """Bytes of the elements, were they stored densely."""
        return (self.numel * ITEMSIZE_BITS.get(self.dtype, 0) + 7) // 8

    @property
    def is_contiguous(self) -> bool:
        """Whether the elements lie row after row without gaps."""
        expected = 1
        for size, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if size > 1:
                if stride != expected:
                    return False
                expected *= size
        return True


@dataclass(frozen=True, slots=True)
class ModuleInfo:
    """One ``nn.Module`` of a whole-module pickle or of a live model: its class and its plain attributes.

    ``class_name`` is fully qualified (``torch.nn.modules.linear.Linear``). ``attributes`` holds only plain
    values (ints, floats, strings, booleans, None, short sequences of them); an attribute that is absent here
    is *absent*, never stale.
    """

    path: str
    class_name: str
    attributes: Mapping[str, Plain] = field(default_factory=dict)

    @property
    def short_class(self) -> str:
        """The class name without its module."""
        return self.class_name.rpartition(".")[2]


@dataclass(frozen=True, slots=True)
class ConfigInfo:
    """The model's config as plain data. ``source`` names it in messages: ``config.json``, ``pickled config``, …"""

    values: Mapping[str, Plain]
    source: str
    class_name: str | None = None


@dataclass(frozen=True, slots=True)
class TokenizerInfo:
    """Where the tokenizer can be recovered from, as data. Nothing is read until a runtime check asks.

    kind
        ``folder``: tokenizer files lie in the folder ``file``.
        ``tokenizers-json``: the JSON of the ``tokenizers`` library, ``nbytes`` bytes at ``offset`` of ``file``,
        in ``encoding`` (``utf-8``, or ``latin-1-utf-8`` for protocol-2 pickles, where the bytes are UTF-8 whose
        code points are latin-1 bytes).
        ``sentencepiece``: the same for a serialized sentencepiece model.
    attributes: special tokens and other plain attributes pickled beside it.
    """

    kind: Literal["folder", "tokenizers-json", "sentencepiece"]
    file: str
    offset: int = 0
    nbytes: int = 0
    encoding: Literal["utf-8", "latin-1-utf-8", "bytes"] = "utf-8"
    class_name: str | None = None
    attributes: Mapping[str, Plain] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Defect:
    """A fault of the container that left it readable all the same; the GQA012, 014 and 015 rules report it.

    ``message`` is one lower-case sentence without a layer prefix; ``expected``/``actual`` are counts in ``unit``.
    """

    kind: Literal["storage-bounds", "shard-index", "shard-size", "ambiguous"]
    message: str
    tensors: tuple[str, ...] = ()
    expected: int | str | None = None
    actual: int | str | None = None
    unit: str = ""
    fix: str = ""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Everything that one checkpoint says of itself.

    path: as the caller gave it. root: the folder that holds the files (the file's parent for a single file).
    format: ``torch-zip-module``, ``torch-zip-state-dict``, ``torch-legacy-module``, ``torch-legacy-state-dict``,
        ``safetensors``, ``folder-safetensors``, ``folder-torch`` (sharded ones end in ``-sharded``), ``live-module``.
    tensors / modules: by stored name / module path (relative to the model object; the root module's path is "").
    globals: every global that any pickle named, sorted, fully qualified.
    unwrapped: keys that were opened to reach the model, e.g. ``("model",)``.
    ignored: one sentence per file or entry that was seen and left alone.
    quantization: the quantisation method when the weights are packed, else None.
    file_bytes, bytes_read: bytes; seconds: wall-clock time of the reading.
    """

    path: str
    root: str
    format: str
    container: Container
    tensors: Mapping[str, TensorInfo]
    modules: Mapping[str, ModuleInfo] = field(default_factory=dict)
    config: ConfigInfo | None = None
    generation_config: ConfigInfo | None = None
    tokenizer: TokenizerInfo | None = None
    globals: tuple[str, ...] = ()
    unwrapped: tuple[str, ...] = ()
    defects: tuple[Defect, ...] = ()
    ignored: tuple[str, ...] = ()
    quantization: str | None = None
    own_code: bool = False
    file_bytes: int = 0
    bytes_read: int = 0
    seconds: float = 0.0

    @property
    def parameters(self) -> int:
        """Number of parameters: elements of distinct stored tensors, buffers left out, tied weights counted once."""
        seen: set[tuple[object, ...]] = set()
        total = 0
        for tensor in self.tensors.values():
            if tensor.kind == "buffer":
                continue
            if tensor.storage is not None:
                key = (tensor.storage.file, tensor.storage.key, tensor.storage_offset, tensor.shape, tensor.strides)
                if key in seen:
                    continue
                seen.add(key)
            total += tensor.numel
        return total
