"""Tensors of a torch pickle: from inert rebuild calls to TensorInfo, with each view held against its storage."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from gqacheck.checkpoint import ITEMSIZE_BITS, Defect, StorageInfo, TensorInfo
from gqacheck.errors import ReadError
from gqacheck.formats.pickle_values import Global, Obj, Persistent, Value

Kind = Literal["parameter", "buffer", "tensor"]

MAX_DIMENSIONS = 64
MAX_ELEMENTS = (1 << 63) - 1
MAX_TENSORS = 150_000
"""Names in one file; 61 layers of 256 experts of three matrices, each with its scale, make 93,696."""
MAX_DEFECTS = 10_000
_MAX_WRAPPERS = 16

STORAGE_DTYPES: Mapping[str, str] = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8",
    "ByteStorage": "uint8", "BoolStorage": "bool", "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128", "QInt8Storage": "qint8", "QUInt8Storage": "quint8",
    "QInt32Storage": "qint32", "QUInt4x2Storage": "quint4x2", "QUInt2x4Storage": "quint2x4",
    "UntypedStorage": "uint8",
}  # fmt: skip
"""Element type by the storage class of a persistent id."""

_DTYPE_ALIASES = {
    "float": "float32", "double": "float64", "half": "float16", "long": "int64", "int": "int32", "short": "int16",
    "cfloat": "complex64", "cdouble": "complex128", "chalf": "complex32", "float4_e2m1fn_x2": "uint8",
}  # fmt: skip

_REBUILDS = frozenset(
    {
        "_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3", "_rebuild_parameter",
        "_rebuild_parameter_with_state", "_rebuild_qtensor", "_rebuild_sparse_tensor", "_rebuild_sparse_csr_tensor",
        "_rebuild_nested_tensor", "_rebuild_meta_tensor_no_storage", "_rebuild_wrapper_subclass",
        "_rebuild_device_tensor_from_numpy", "_rebuild_device_tensor_from_cpu_tensor", "_rebuild_from_type",
        "_rebuild_from_type_v2",
    }
)  # fmt: skip
_REBUILD_MODULES = frozenset({"torch._utils", "torch._tensor", "torch.tensor"})
_WRAPPERS = frozenset({"torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer", "torch.autograd.variable.Variable"})


@dataclass(frozen=True, slots=True)
class StorageId:
    """What a persistent id says of a storage: its key, element type, and how many elements it claims.

    ``view``, in legacy files only: name, first element and number of elements of the part that is meant.
    """

    key: str
    dtype: str
    numel: int
    view: tuple[str, int, int] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes the storage claims."""
        return self.numel * ITEMSIZE_BITS[self.dtype] // 8


@dataclass(frozen=True, slots=True)
class Layout:
    """One tensor without its name."""

    shape: tuple[int, ...]
    dtype: str
    strides: tuple[int, ...]
    storage_offset: int
    storage: StorageInfo | None
    is_parameter: bool
    remark: str = ""


def dtype_name(value: Value) -> str | None:
    """``float16`` for the global ``torch.float16``; None for anything else."""
    if type(value) is not Global or value.module != "torch":
        return None
    name = _DTYPE_ALIASES.get(value.name, value.name)
    return name if name in ITEMSIZE_BITS else None


def storage_id(reference: Persistent) -> StorageId | None:
    """What the persistent id of a storage says; None for another kind of persistent id. Raises ReadError."""
    pid = reference.pid
    if type(pid) is not tuple or not pid or pid[0] != "storage" or type(pid[0]) is not str:
        return None
    if len(pid) not in (5, 6):
        raise ReadError(f"a storage reference has {len(pid)} parts where torch writes 5")
    storage_class, key, numel = pid[1], pid[2], pid[4]
    if type(storage_class) is not Global or storage_class.name not in STORAGE_DTYPES:
        shown = storage_class.path if type(storage_class) is Global else type(storage_class).__name__
        raise ReadError(f"a storage is of the unknown class {shown}")
    if type(key) is not str or len(key) > 1000:
        raise ReadError("a storage is named by something that is no short text")
    view = None
    if len(pid) == 6 and pid[5] is not None:
        view = pid[5]
        if type(view) is not tuple or len(view) != 3 or type(view[0]) is not str:
            raise ReadError(f"storage {key}: its view is not described by a name, an offset and a size")
        view = (view[0], _count(view[1], "offset of a storage view"), _count(view[2], "size of a storage view"))
    return StorageId(key, STORAGE_DTYPES[storage_class.name], _count(numel, f"size of storage {key}"), view)


def _count(value: Value, what: str) -> int:
    if type(value) is not int:
        raise ReadError(f"the {what} is a value of type {type(value).__name__} where a number belongs")
    if not 0 <= value <= MAX_ELEMENTS:
        raise ReadError(f"the {what} is {value}, which no tensor can have")
    return value


def _integers(value: Value, what: str) -> tuple[int, ...]:
    if type(value) is Obj and type(value.callee) is Global and value.callee.path == "torch.Size":
        value = value.args[0] if len(value.args) == 1 else value
    if type(value) is not tuple:
        raise ReadError(f"the {what} of a tensor is a value of type {type(value).__name__} where a tuple belongs")
    if len(value) > MAX_DIMENSIONS:
        raise ReadError(f"the {what} of a tensor has {len(value)} entries; torch has at most {MAX_DIMENSIONS}")
    for number in value:
        if type(number) is not int:
            raise ReadError(f"the {what} of a tensor holds a value of type {type(number).__name__}")
    return value


def is_tensor(value: Value) -> bool:
    """Whether the value is a call that rebuilds a tensor."""
    for _ in range(_MAX_WRAPPERS):
        if type(value) is not Obj or type(value.callee) is not Global:
            return False
        callee = value.callee
        if callee.name in _REBUILDS:
            return callee.module in _REBUILD_MODULES
        if callee.path not in _WRAPPERS or not value.args:
            return False
        value = value.args[0]
    return False


class TensorReader:
    """Reads the tensors of one file. ``locate`` finds the bytes of a storage; defects gather in ``defects``."""

    def __init__(self, locate: Callable[[StorageId], StorageInfo]) -> None:
        self._locate = locate
        self._layouts: dict[int, Layout] = {}
        self._storages: dict[str, tuple[StorageId, StorageInfo]] = {}
        self._named = 0
        self.defects: list[Defect] = []

    def tensor(self, name: str, value: Obj, kind: Kind) -> TensorInfo:
        """The tensor under the name it is stored by. Raises ReadError when the call makes no tensor."""
        self._named += 1
        if self._named > MAX_TENSORS:
            raise ReadError(f"the pickle names more than {MAX_TENSORS} tensors")
        layout = self._layouts.get(id(value))
        if layout is None:
            try:
                layout = self._layout(value, 0)
            except ReadError as error:
                raise ReadError(f"tensor {name[:200]}: {error}") from None
            self._layouts[id(value)] = layout
        if kind == "tensor" and layout.is_parameter:
            kind = "parameter"
        tensor = TensorInfo(
            name, layout.shape, layout.dtype, layout.strides, layout.storage_offset, layout.storage, kind
        )
        if layout.storage is not None:
            self._check_view(tensor, layout.storage)
        return tensor

    def remark(self, value: Obj) -> str:
        """What is special about a tensor already read: ``sparse``, ``nested``, …; "" for a plain one."""
        return self._layouts[id(value)].remark

    def _layout(self, value: Value, depth: int) -> Layout:
        if depth > _MAX_WRAPPERS:
            raise ReadError(f"it is wrapped more than {_MAX_WRAPPERS} times")
        if not is_tensor(value):
            raise ReadError(f"a value of type {type(value).__name__} stands where a tensor belongs")
        if value.state is not None and not _harmless_state(value.state):
            raise ReadError("its content is replaced after it was made, which torch has not written since 0.3")
        name, args = value.callee.name, value.args
        try:
            return self._rebuild(value, name, args, depth)
        except IndexError:
            raise ReadError(f"{name} was given only {len(args)} arguments") from None

    def _rebuild(self, value: Obj, name: str, args: tuple[Value, ...], depth: int) -> Layout:
        if name in ("_rebuild_tensor_v2", "_rebuild_tensor"):
            return self._strided(args[0], args[1], args[2], args[3], None)
        if name == "_rebuild_tensor_v3":
            return self._strided(args[0], args[1], args[2], args[3], _dtype(args[6]))
        if name in ("_rebuild_parameter", "_rebuild_parameter_with_state") or value.callee.path in _WRAPPERS:
            inner = self._layout(args[0], depth + 1)
            return _with(inner, is_parameter=not value.callee.path.endswith("Buffer"))
        if name in ("_rebuild_from_type", "_rebuild_from_type_v2"):
            if type(args[2]) is not tuple:
                raise ReadError(f"{name} was not given a tuple of arguments")
            inner = self._layout(Obj(args[0], args[2]), depth + 1)
            new_type = args[1].path if type(args[1]) is Global else ""
            return _with(inner, is_parameter=inner.is_parameter or new_type == "torch.nn.parameter.Parameter")
        if name == "_rebuild_qtensor":
            return _with(self._strided(args[0], args[1], args[2], args[3], None), remark="quantized by torch")
        if name == "_rebuild_meta_tensor_no_storage":
            return _bodiless(args[1], _dtype(args[0]), args[2], "on the meta device, without values")
        if name == "_rebuild_wrapper_subclass":
            remark = f"an instance of {args[0].path[:120]}" if type(args[0]) is Global else "a tensor subclass"
            return _bodiless(args[2], _dtype(args[1]), args[3], f"{remark}, without values of its own")
        if name in ("_rebuild_sparse_tensor", "_rebuild_sparse_csr_tensor"):
            return self._sparse(args[1], depth)
        if name == "_rebuild_nested_tensor":
            buffer = self._layout(args[0], depth + 1)
            return _with(buffer, remark="nested; its buffer is shown")
        if name == "_rebuild_device_tensor_from_cpu_tensor":
            return self._layout(args[0], depth + 1)
        raise ReadError(f"{name} is not supported; save the model on the CPU and check that file")

    def _sparse(self, data: Value, depth: int) -> Layout:
        if type(data) is not tuple or len(data) < 3:
            raise ReadError("a sparse tensor was not given its parts")
        # (indices, values, size, …) or, for the compressed layouts, (rows, columns, values, size)
        at = 2 if is_tensor(data[2]) else 1
        values = self._layout(data[at], depth + 1)
        return _bodiless(data[at + 1], values.dtype, None, "sparse; its values are not followed")

    def _strided(self, reference: Value, offset: Value, size: Value, stride: Value, dtype: str | None) -> Layout:
        if type(reference) is not Persistent:
            if (
                type(reference) is Obj
                and type(reference.callee) is Global
                and reference.callee.name == "_load_from_bytes"
            ):
                raise ReadError("it was written by plain pickle, not by torch.save; load it and torch.save it")
            raise ReadError(f"its storage is a value of type {type(reference).__name__}")
        identity = storage_id(reference)
        if identity is None:
            raise ReadError("its storage is a reference to something that is no storage")
        shape, strides = _shape(size), _integers(stride, "strides")
        if len(shape) != len(strides):
            raise ReadError(f"it has {len(shape)} sizes but {len(strides)} strides")
        if type(offset) is not int:
            raise ReadError(f"its storage offset is a value of type {type(offset).__name__}")
        return Layout(shape, dtype or identity.dtype, strides, offset, self._storage(identity), False)

    def _storage(self, identity: StorageId) -> StorageInfo:
        key = identity.view[0] if identity.view else identity.key
        found = self._storages.get(key)
        if found is None:
            storage = self._locate(identity)
            self._storages[key] = (identity, storage)
            if storage.nbytes != storage.declared_nbytes:
                short = storage.nbytes < storage.declared_nbytes
                self._report(
                    Defect(
                        "storage-bounds",
                        f"storage {storage.key} holds {storage.nbytes} bytes, but the pickle declares "
                        f"{storage.declared_nbytes} of {identity.dtype}",
                        expected=storage.declared_nbytes,
                        actual=storage.nbytes,
                        unit="bytes",
                        fix="copy or download the file again" if short else "save the model again with torch.save",
                    )
                )
            return storage
        first, storage = found
        if first.dtype != identity.dtype:
            raise ReadError(f"storage {identity.key} is used as {first.dtype} and as {identity.dtype}")
        if (first.numel, first.view) != (identity.numel, identity.view):
            self._storages[key] = (identity, storage)
            self._report(
                Defect(
                    "ambiguous",
                    f"storage {identity.key} is declared with {first.numel} and with {identity.numel} elements",
                    expected=first.numel,
                    actual=identity.numel,
                    unit="elements",
                    fix="save the model again with torch.save",
                )
            )
        return storage

    def _report(self, defect: Defect) -> None:
        self.defects.append(defect)
        if len(self.defects) > MAX_DEFECTS:
            raise ReadError(
                f"more than {MAX_DEFECTS} tensors do not fit their storages; the first: {self.defects[0].message}"
            )

    def _check_view(self, tensor: TensorInfo, storage: StorageInfo) -> None:
        offset, itembits = tensor.storage_offset, ITEMSIZE_BITS[tensor.dtype]
        elements = storage.nbytes * 8 // itembits
        if tensor.numel == 0:
            lowest = last = offset if offset < 0 else 0
        else:
            reach = [(size - 1) * stride for size, stride in zip(tensor.shape, tensor.strides, strict=True)]
            lowest = offset + sum(n for n in reach if n < 0)
            last = offset + sum(n for n in reach if n > 0) + 1
        if lowest >= 0 and last <= elements:
            return
        if lowest < 0:
            message = f"the view reaches {-lowest} elements before its storage {storage.key}"
        else:
            message = f"the view reaches element {last}, but storage {storage.key} holds {elements} of {tensor.dtype}"
        self._report(
            Defect(
                "storage-bounds", message, (tensor.name,), elements, lowest if lowest < 0 else last, "elements",
                "save the model again from the process that made it",
            )
        )  # fmt: skip


def _harmless_state(state: Value) -> bool:
    """Attributes, or the flags of torch 0.3 (requires_grad, volatile, hooks): neither touches the values."""
    return type(state) is dict or (type(state) is tuple and len(state) == 3 and type(state[0]) is bool)


def _dtype(value: Value) -> str:
    name = dtype_name(value)
    if name is None:
        shown = value.path if type(value) is Global else f"a value of type {type(value).__name__}"
        raise ReadError(f"its dtype is {shown}, which is unknown")
    return name


def _shape(value: Value) -> tuple[int, ...]:
    shape = _integers(value, "shape")
    numel = 1
    for size in shape:
        if size < 0:
            raise ReadError(f"its shape holds the size {size}")
        numel *= size
    if numel > MAX_ELEMENTS or (not numel and max(shape) > MAX_ELEMENTS):
        raise ReadError(f"its shape has more than {MAX_ELEMENTS} elements")
    return shape


def _bodiless(size: Value, dtype: str, stride: Value, remark: str) -> Layout:
    shape = _shape(size)
    strides = None if stride is None else _integers(stride, "strides")
    if strides is None or len(strides) != len(shape):
        steps, step = [], 1
        for width in reversed(shape):
            steps.append(step)
            step *= max(width, 1)
        strides = tuple(reversed(steps))
    return Layout(shape, dtype, strides, 0, None, False, remark)


def _with(layout: Layout, *, is_parameter: bool | None = None, remark: str | None = None) -> Layout:
    return Layout(
        layout.shape,
        layout.dtype,
        layout.strides,
        layout.storage_offset,
        layout.storage,
        layout.is_parameter if is_parameter is None else is_parameter,
        layout.remark if remark is None else remark,
    )
