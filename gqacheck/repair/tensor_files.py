"""Tensors as one new file: safetensors byte by byte, or a torch zip."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from gqacheck.checkpoint import TensorInfo
from gqacheck.errors import ReadError
from gqacheck.formats.safetensors import DTYPES
from gqacheck.formats.source import Source
from gqacheck.repair.facts import CannotRepair
from gqacheck.text import printable

_CHUNK = 1 << 24
_CODES = {name: code for code, name in DTYPES.items()}


def write_safetensors(path: str, tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str]) -> None:
    """Writes a new safetensors file, one tensor in memory at a time.

    Raises:
        CannotRepair: a dtype that safetensors does not have.
        ReadError: the bytes of a tensor are not there.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, info in tensors.items():
        header[name] = {
            "dtype": _code(info),
            "shape": list(info.shape),
            "data_offsets": [end, end + info.nbytes],
        }
        end += info.nbytes
    text = json.dumps(header, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    with _Files() as files, open(path, "xb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for info in tensors.values():
            for chunk in files.chunks(info):
                stream.write(chunk)


def _code(info: TensorInfo) -> str:
    try:
        return _CODES[info.dtype]
    except KeyError:
        raise CannotRepair(f"{printable(info.name)} is stored as {info.dtype}, which is not written") from None


class _Files:
    """Bytes of stored tensors, row after row; every file is opened once."""

    def __init__(self) -> None:
        self._sources: dict[str, Source] = {}

    def __enter__(self) -> _Files:
        return self

    def __exit__(self, *_: object) -> None:
        for source in self._sources.values():
            source.close()

    def chunks(self, info: TensorInfo) -> Iterator[bytes | memoryview]:
        """The tensor's bytes in pieces.

        Raises:
            ReadError: they are not there.
        """
        storage = info.storage
        if storage is None:
            raise ReadError(f"{printable(info.name)} has no bytes in the file")
        if not info.is_contiguous:
            yield self._gathered(info)
            return
        size = info.nbytes // max(1, info.numel)
        start = info.storage_offset * size
        if start + info.nbytes > storage.nbytes:
            raise ReadError(f"{printable(info.name)} reaches past its storage of {storage.nbytes} bytes")
        source = self._sources.get(storage.file)
        if source is None:
            source = self._sources[storage.file] = Source.open(storage.file)
        for at in range(0, info.nbytes, _CHUNK):
            yield source.read(storage.offset + start + at, min(_CHUNK, info.nbytes - at))

    def _gathered(self, info: TensorInfo) -> memoryview:
        from gqacheck.repair.apply import tensor_bytes
        from gqacheck.runtime.weights import WeightReader

        with WeightReader() as reader:
            return tensor_bytes(reader.read(info))


def write_torch(path: str, tensors: Mapping[str, TensorInfo], unwrapped: Sequence[str]) -> None:
    """Writes a new torch file: the tensors by name, under the keys ``unwrapped``; tied ones stay tied.

    Raises:
        CannotRepair: the file could not be written to the end.
        ReadError: the bytes of a tensor are not there.
    """
    import torch

    from gqacheck.runtime.weights import WeightReader

    loaded: dict[tuple[object, ...], Any] = {}
    content: Any = {}
    with WeightReader() as reader:
        for name, info in tensors.items():
            storage = info.storage
            key = (storage and (storage.file, storage.key), info.storage_offset, info.shape, info.strides, info.dtype)
            if storage is None or key not in loaded:
                loaded[key] = reader.read(info)
            content[name] = loaded[key]  # tied weights stay tied
    for key_around in reversed(unwrapped):
        content = {key_around: content}
    with told_when_full(path), open(path, "xb") as stream:
        torch.save(content, stream)


@contextmanager
def told_when_full(path: str) -> Iterator[None]:
    """torch raises a RuntimeError of its own where a file could not be written to the end."""
    try:
        yield
    except RuntimeError as error:
        if "PytorchStreamWriter" in str(error) or "write failed" in str(error) or "unexpected pos" in str(error):
            where = printable(os.path.dirname(os.path.dirname(os.path.abspath(path))))
            raise CannotRepair(
                f"{where}: the file could not be written to the end, there may be no space left"
            ) from None
        raise
