"""Sampled lines of a weight, straight from the file: a few elements of each, a few per cent of an 8B model."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from types import TracebackType

from gqacheck.checkpoint import StorageInfo
from gqacheck.errors import ReadError
from gqacheck.formats.source import Source
from gqacheck.lineage.cast import ITEMSIZE
from gqacheck.lineage.matrix import Matrix

_SHORT_LINE = 1024
"""Bytes: lines that lie this close are read together, for one longer read costs less than many short ones."""
_CHUNK = 1 << 22
"""Bytes of one read at most."""
_TYPECODES = {2: "H", 4: "I", 8: "Q"}


class LineReader:
    """Reads samples of lines from the files of one or more checkpoints; every file is opened once."""

    def __init__(self) -> None:
        self._sources: dict[str, Source] = {}

    @property
    def bytes_read(self) -> int:
        """Bytes handed out so far."""
        return sum(source.bytes_read for source in self._sources.values())

    def __enter__(self) -> LineReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for source in self._sources.values():
            source.close()

    def samples(self, matrix: Matrix, window: Sequence[int]) -> list[bytes]:
        """For each line the bytes of its elements ``window`` (indices into the line), in that order.

        Raises:
            ReadError: the tensor has no bytes, reaches past its storage, or its dtype holds no real numbers.
        """
        storage, size = _check(matrix)
        if not matrix.n_lines or not window:
            return [b""] * matrix.n_lines
        places = [matrix.elements[element] for element in window]
        if matrix.stride == 1:
            return self._along(matrix, storage, size, places)
        return self._across(matrix, storage, size, places)

    def _along(self, matrix: Matrix, storage: StorageInfo, size: int, places: Sequence[int]) -> list[bytes]:
        """The elements of a line lie side by side: one short read per line, or one per many short lines."""
        low, high = min(places), max(places) + 1
        dense = len(places) == high - low and all(place == low + n for n, place in enumerate(places))
        source = self._open(storage.file)
        start = storage.offset + (matrix.base + low) * size
        step, length = matrix.line_stride * size, (high - low) * size
        lines: list[bytes] = []
        if 0 < step <= _SHORT_LINE:
            for first, count in _runs(matrix.lines):
                for begin in range(first, first + count, max(1, _CHUNK // step)):
                    n = min(max(1, _CHUNK // step), first + count - begin)
                    block = source.read(start + begin * step, (n - 1) * step + length)
                    lines += [block[i * step : i * step + length] for i in range(n)]
        else:
            lines = [source.read(start + line * step, length) for line in matrix.lines]
        if dense:
            return lines
        cuts = [((place - low) * size, (place - low + 1) * size) for place in places]
        return [b"".join([line[a:b] for a, b in cuts]) for line in lines]

    def _across(self, matrix: Matrix, storage: StorageInfo, size: int, places: Sequence[int]) -> list[bytes]:
        """The lines lie side by side: one run of bytes per element gives that element of every line."""
        code = _TYPECODES[size]
        joined = array(code, bytes(matrix.n_lines * len(places) * size))
        first, last = min(matrix.lines), max(matrix.lines)
        every = isinstance(matrix.lines, range) and matrix.lines.step > 0
        for number, place in enumerate(places):
            span = self._run(matrix, storage, size, place, first, last - first + 1)
            if every:
                joined[number :: len(places)] = span[:: matrix.lines.step]  # type: ignore[attr-defined]
            else:
                joined[number :: len(places)] = array(code, [span[line - first] for line in matrix.lines])
        data, width = joined.tobytes(), len(places) * size
        return [data[at : at + width] for at in range(0, len(data), width)]

    def _run(self, matrix: Matrix, storage: StorageInfo, size: int, place: int, first: int, count: int) -> array[int]:
        """One element of ``count`` consecutive lines."""
        source, step = self._open(storage.file), max(1, matrix.line_stride)
        found = array(_TYPECODES[size])
        each = max(1, _CHUNK // (step * size))
        for begin in range(first, first + count, each):
            n = min(each, first + count - begin)
            at = matrix.base + place * matrix.stride + begin * matrix.line_stride
            values = array(_TYPECODES[size])
            values.frombytes(source.read(storage.offset + at * size, ((n - 1) * step + 1) * size))
            found.extend(values[::step] if matrix.line_stride else values * n)
        return found

    def _open(self, file: str) -> Source:
        source = self._sources.get(file)
        if source is None:
            source = self._sources[file] = Source.open(file)
        return source


def _check(matrix: Matrix) -> tuple[StorageInfo, int]:
    info = matrix.info
    size = ITEMSIZE.get(info.dtype)
    if size is None:
        raise ReadError(f"{info.name} is stored as {info.dtype}, whose values are not compared")
    storage = info.storage
    if storage is None:
        raise ReadError(f"{info.name} has no bytes in the file")
    if min(matrix.base, matrix.line_stride, matrix.stride, storage.offset) < 0:
        raise ReadError(f"{info.name} has a negative stride or offset")
    if matrix.n_lines and matrix.n_elements:
        last = matrix.base + max(matrix.lines) * matrix.line_stride + max(matrix.elements) * matrix.stride
        if (last + 1) * size > storage.nbytes:
            raise ReadError(f"{info.name} needs {(last + 1) * size} bytes of its storage, which holds {storage.nbytes}")
    return storage, size


def _runs(lines: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Runs of consecutive stored lines as (first, how many), in order."""
    if isinstance(lines, range) and lines.step == 1:
        yield lines.start, len(lines)
        return
    first = previous = lines[0]
    for line in lines[1:]:
        if line != previous + 1:
            yield first, previous - first + 1
            first = line
        previous = line
    yield first, previous - first + 1
