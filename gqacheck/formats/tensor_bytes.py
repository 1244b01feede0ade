"""The bytes of stored tensors, a piece at a time, and the header that stands before them in a safetensors file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, BinaryIO

from gqacheck.checkpoint import ITEMSIZE_BITS, TensorInfo
from gqacheck.errors import ReadError
from gqacheck.formats.safetensors import DTYPES
from gqacheck.formats.source import Source
from gqacheck.text import printable

CHUNK = 1 << 22
"""Bytes of a piece: small enough that it is still in the processor's cache when it is written or compared."""
CODES: Mapping[str, str] = {name: code for code, name in DTYPES.items()}
"""This package's dtype names -> those of the safetensors format."""


class FileBytes:
    """Bytes of stored tensors, row after row; every file is opened once."""

    def __init__(self) -> None:
        self._sources: dict[str, Source] = {}

    def __enter__(self) -> FileBytes:
        return self

    def __exit__(self, *_: object) -> None:
        for source in self._sources.values():
            source.close()

    def chunks(self, info: TensorInfo) -> Iterator[bytes]:
        """The bytes of a tensor whose rows lie one after the other.

        Raises:
            ReadError: they are not there, or the rows do not lie so.
        """
        source, start = self._place(info)
        for at in range(0, info.nbytes, CHUNK):
            yield source.read(start + at, min(CHUNK, info.nbytes - at))

    def copy(self, info: TensorInfo, to: BinaryIO) -> Iterator[int]:
        """Writes the same bytes to ``to``; how many, piece by piece.

        Raises:
            ReadError: as ``chunks``.
            OSError: ``to`` does not take them.
        """
        source, start = self._place(info)
        for at in range(0, info.nbytes, CHUNK):
            n = min(CHUNK, info.nbytes - at)
            source.copy(start + at, n, to)
            yield n

    def _place(self, info: TensorInfo) -> tuple[Source, int]:
        """The file that holds the tensor, and where in it."""
        storage = info.storage
        if storage is None:
            raise ReadError(f"{printable(info.name)} has no bytes in the file")
        if not info.is_contiguous:
            raise ReadError(f"{printable(info.name)} does not lie row after row in the file")
        start = info.storage_offset * ITEMSIZE_BITS[info.dtype] // 8
        if info.storage_offset < 0 or start + info.nbytes > storage.nbytes:
            raise ReadError(f"{printable(info.name)} reaches past its storage of {storage.nbytes} bytes")
        source = self._sources.get(storage.file)
        if source is None:
            source = self._sources[storage.file] = Source.open(storage.file)
        return source, storage.offset + start


def safetensors_header(tensors: Iterable[tuple[str, str, tuple[int, ...], int]], metadata: Mapping[str, str]) -> bytes:
    """The first bytes of a safetensors file that holds ``tensors`` (name, dtype, shape, bytes), in this order.

    Raises:
        KeyError: a dtype that the format does not have.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, dtype, shape, nbytes in tensors:
        header[name] = {"dtype": CODES[dtype], "shape": list(shape), "data_offsets": [end, end + nbytes]}
        end += nbytes
    text = json.dumps(header, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
