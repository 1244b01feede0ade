"""Stored tensors as torch tensors, straight from the bytes of the file: nothing is unpickled, nothing executed."""

from __future__ import annotations

import contextlib
import mmap
import os
from io import FileIO
from types import TracebackType

import torch

from gqacheck.checkpoint import TensorInfo
from gqacheck.errors import ReadError

_NARROW = ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu")
_WIDE = ("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64")
_READABLE = {name: getattr(torch, name) for name in (*_WIDE, *_NARROW, "uint16", "uint32", "uint64")}
_REPEATED_BYTES = 1 << 24  # a view may repeat its storage (stride 0) up to this size, not without bound
_FORGET_FROM = 1 << 22
_TWICE_IN_MEMORY = 1 << 26  # bytes up to which a tensor may be in memory both as stored and in another dtype
_FLOATING = frozenset(("float16", "bfloat16", "float32", "float64", *_NARROW))


def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype of a stored dtype's name.

    Raises:
        ReadError: for a dtype that no weight can be read from (packed 4- and 6-bit floats, ``qint8``, complex).
    """
    dtype: torch.dtype | None = _READABLE.get(name)
    if dtype is None:
        raise ReadError(f"tensors of dtype {name} cannot be run; dequantise the checkpoint first")
    return dtype


def is_floating(name: str) -> bool:
    """Whether a stored dtype holds real numbers that a weight can be made of."""
    return name in _FLOATING


def cast_to(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """``values`` in another dtype, each rounded once."""
    if values.dtype == torch.float16 and dtype == torch.bfloat16:
        values = values.float()  # exact; the two steps take a quarter of the time of the one
    return values.to(dtype)


class WeightReader:
    """Reads tensors of a checkpoint from its files, one at a time; every file is opened once.

    What ``read`` returns never aliases the file: the file may be overwritten while the model lives.
    """

    def __init__(self) -> None:
        self._files: dict[str, FileIO] = {}
        self._maps: dict[str, mmap.mmap] = {}
        self._in_memory: dict[str, int] = {}
        self._asked = 0
        self._stored = 0
        self._storages: set[tuple[str, str]] = set()

    def __enter__(self) -> WeightReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        maps, self._maps = self._maps, {}
        for mapped in maps.values():
            with contextlib.suppress(BufferError):  # a traceback still holds a view: the collector closes it
                mapped.close()
        files, self._files = self._files, {}
        for stream in files.values():
            stream.close()

    def read(self, info: TensorInfo, *, dtype: torch.dtype | None = None, device: str = "cpu") -> torch.Tensor:
        """The tensor ``info`` as a fresh tensor of ``info.shape`` in ``dtype`` (the stored one when None).

        Strides are honoured; a layout without gaps or overlaps (a transposed weight) is kept, any other becomes
        contiguous.

        Raises:
            ReadError: the tensor has no bytes, reaches past its storage or past the file, or cannot be a weight.
        """
        stored = torch_dtype(info.dtype)
        storage = info.storage
        if storage is None:
            raise ReadError(f"{info.name} has no bytes in the file (it was saved from the meta device)")
        last = _last_element(info)
        size = stored.itemsize
        if (last + 1) * size > storage.nbytes:
            raise ReadError(
                f"{info.name} needs {(last + 1) * size} bytes of its storage, but the file holds {storage.nbytes}"
            )
        if info.numel * size > max(storage.nbytes, _REPEATED_BYTES):
            raise ReadError(
                f"{info.name} repeats a storage of {storage.nbytes} bytes into {info.numel * size} bytes; "
                "save it with .contiguous()"
            )
        if info.numel == 0:
            return torch.empty(info.shape, dtype=dtype or stored, device=device)
        self._asked += info.numel * size
        if (storage.file, storage.key) not in self._storages:
            self._storages.add((storage.file, storage.key))
            self._stored += storage.nbytes
        if self._asked > 2 * self._stored + _REPEATED_BYTES:
            raise ReadError(
                f"the tensors up to {info.name} take {self._asked} bytes out of storages of {self._stored} bytes: "
                "they repeat each other without bound"
            )
        start = storage.offset + info.storage_offset * size
        nbytes = (last - info.storage_offset + 1) * size
        if device == "meta":
            return torch.empty(info.shape, dtype=dtype or stored, device=device)
        if start >= 0 and info.is_contiguous and (dtype in (None, stored) or nbytes <= _TWICE_IN_MEMORY):
            flat = torch.empty(info.numel, dtype=stored)
            self._fill(flat, info.name, storage.file, start)
            return flat.reshape(info.shape).to(device=device, dtype=dtype or stored)
        mapped = self._map(storage.file)
        # a mapping of a file that has shrunk since would kill the process, not raise
        if storage.offset < 0 or start + nbytes > min(len(mapped), os.stat(storage.file).st_size):
            raise _truncated(info.name, storage.file)
        view = torch.frombuffer(mapped, dtype=stored, count=nbytes // size, offset=start)
        tensor = view.as_strided(info.shape, info.strides).to(device=device, dtype=dtype or stored, copy=True)
        del view
        self._forget(storage.file, nbytes)
        return tensor

    def _fill(self, flat: torch.Tensor, name: str, file: str, start: int) -> None:
        """Reads bytes of ``file`` from ``start`` on until ``flat`` is full; quicker than by a mapping."""
        left = flat.view(torch.uint8).numpy().data
        try:
            stream = self._open(file)
            stream.seek(start)
            while left:
                got = stream.readinto(left)
                if not got:
                    raise _truncated(name, file)
                left = left[got:]
        except OSError as error:
            raise _unreadable(file, error) from error

    def _forget(self, file: str, nbytes: int) -> None:
        """Lets go of pages that were copied, so that the peak is the model and not the model plus its file.

        Every so many bytes, of the whole file: of many small tensors none fills pages of its own.
        """
        self._in_memory[file] = self._in_memory.get(file, 0) + nbytes
        if self._in_memory[file] >= _FORGET_FROM and hasattr(mmap.mmap, "madvise"):
            self._maps[file].madvise(mmap.MADV_DONTNEED)
            self._in_memory[file] = 0

    def _open(self, file: str) -> FileIO:
        stream = self._files.get(file)
        if stream is None:
            stream = self._files[file] = FileIO(file)
        return stream

    def _map(self, file: str) -> mmap.mmap:
        mapped = self._maps.get(file)
        if mapped is None:
            try:
                # copy-on-write: torch wants a writable buffer, the file must never change
                mapped = mmap.mmap(self._open(file).fileno(), 0, access=mmap.ACCESS_COPY)
            except (OSError, ValueError) as error:
                raise _unreadable(file, error) from error
            self._maps[file] = mapped
        return mapped


def _truncated(name: str, file: str) -> ReadError:
    return ReadError(f"{name} lies past the end of {os.path.basename(file)}: the file is truncated")


def _unreadable(file: str, error: Exception) -> ReadError:
    return ReadError(f"cannot read the weights in {file}: {error}")


def _last_element(info: TensorInfo) -> int:
    """Index in the storage of the view's last element; -1 for an empty one."""
    if info.storage_offset < 0 or any(size < 0 for size in info.shape) or any(stride < 0 for stride in info.strides):
        raise ReadError(f"{info.name} has a negative size, stride or offset")
    if len(info.shape) != len(info.strides):
        raise ReadError(f"{info.name} has {len(info.shape)} sizes but {len(info.strides)} strides")
    if info.numel == 0:
        return -1
    return info.storage_offset + sum((size - 1) * stride for size, stride in zip(info.shape, info.strides, strict=True))


def same_bytes(a: TensorInfo, b: TensorInfo) -> bool:
    """Whether two stored tensors are the very same view of the same storage (tied weights)."""
    return (
        a.storage is not None
        and b.storage is not None
        and (a.storage.file, a.storage.key, a.storage.offset) == (b.storage.file, b.storage.key, b.storage.offset)
        and (a.storage_offset, a.shape, a.strides, a.dtype) == (b.storage_offset, b.shape, b.strides, b.dtype)
    )
