"""Tensors as one new file: safetensors byte by byte, or a torch zip."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from gqacheck.checkpoint import TensorInfo
from gqacheck.formats.tensor_bytes import CODES, FileBytes, safetensors_header
from gqacheck.repair.facts import CannotRepair
from gqacheck.text import printable


def write_safetensors(path: str, tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str]) -> None:
    """Writes a new safetensors file, one tensor in memory at a time.

    Raises:
        CannotRepair: a dtype that safetensors does not have.
        ReadError: the bytes of a tensor are not there.
    """
    entries = ((name, info.dtype, info.shape, info.nbytes) for name, info in tensors.items())
    for info in tensors.values():
        if info.dtype not in CODES:
            raise CannotRepair(f"{printable(info.name)} is stored as {info.dtype}, which is not written")
    with FileBytes() as files, open(path, "xb") as stream:
        stream.write(safetensors_header(entries, metadata))
        for info in tensors.values():
            for chunk in files.chunks(info) if info.is_contiguous else (_gathered(info),):
                stream.write(chunk)


def _gathered(info: TensorInfo) -> memoryview:
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
