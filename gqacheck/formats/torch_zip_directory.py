"""The directory of a zip archive, read from its tail; entries are found, never extracted."""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct

from gqacheck.checkpoint import Defect
from gqacheck.errors import ReadError
from gqacheck.formats.source import Source

MAX_ENTRIES = 300_000
MAX_DIRECTORY = 48 << 20
"""Bytes of central directory that are read; the 299 records of an 8B model take 24 KB."""
MAX_INFLATED = 16 << 20

_END = Struct("<4s4H2LH")
_END64_LOCATOR = Struct("<4sLQL")
_END64 = Struct("<4sQ2H2L4Q")
_CENTRAL = Struct("<4s6H3L5H2L")
_LOCAL = Struct("<4s5H3L2H")
_NONE32 = 0xFFFFFFFF
_STORED, _DEFLATED = 0, 8
_ENCRYPTED, _SIZES_FOLLOW = 0x1, 0x8


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry as the central directory has it. Sizes in bytes; ``header`` is the offset of its local header."""

    name: str
    raw_name: bytes
    flags: int
    method: int
    compressed: int
    size: int
    header: int


class Directory:
    """The entries of one archive by name, in the order of the file, and the defects seen while reading them."""

    def __init__(self, source: Source, start: int, entries: dict[str, Entry], defects: list[Defect]) -> None:
        self._source = source
        self._start = start
        self._data: dict[str, int] = {}
        self.entries = entries
        self.defects = defects

    def data_offset(self, entry: Entry) -> int:
        """The absolute offset of the entry's first byte, from its local header, which must agree. Raises ReadError."""
        known: int | None = self._data.get(entry.name)
        if known is not None:
            return known
        source = self._source
        length = _LOCAL.size + len(entry.raw_name)
        if entry.header + length > self._start:
            raise ReadError(f"{source.path}: zip entry {_shown(entry)} begins beyond the archive's data")
        raw = source.read(entry.header, length)
        magic, _, flags, method, _, _, _, compressed, size, n_name, n_extra = _LOCAL.unpack_from(raw)
        if magic != b"PK\x03\x04":
            raise ReadError(f"{source.path}: zip entry {_shown(entry)} has no header where the directory points")
        data: int = entry.header + _LOCAL.size + n_name + n_extra
        if data + entry.compressed > self._start:
            raise ReadError(f"{source.path}: zip entry {_shown(entry)} reaches {data + entry.compressed - self._start} "
                            "bytes into the archive's directory")  # fmt: skip
        sizes_differ = not flags & _SIZES_FOLLOW and (
            (size != _NONE32 and size != entry.size) or (compressed != _NONE32 and compressed != entry.compressed)
        )
        if raw[_LOCAL.size :] != entry.raw_name or n_name != len(entry.raw_name):
            self._disagree(entry, "its name")
        elif method != entry.method or (flags ^ entry.flags) & _ENCRYPTED:
            self._disagree(entry, "how it is stored")
        elif sizes_differ:
            self._disagree(entry, f"its size ({size} and {entry.size} bytes)")
        self._data[entry.name] = data
        return data

    def _disagree(self, entry: Entry, what: str) -> None:
        self.defects.append(
            _ambiguous(f"zip entry {_shown(entry)}: its header and the archive's directory disagree on {what}")
        )

    def stored(self, entry: Entry) -> tuple[int, int]:
        """Absolute offset and bytes of an entry that lies uncompressed in the file. Raises ReadError."""
        if entry.flags & _ENCRYPTED:
            raise ReadError(f"{self._source.path}: zip entry {_shown(entry)} is encrypted")
        if entry.method != _STORED or entry.compressed != entry.size:
            raise ReadError(
                f"{self._source.path}: zip entry {_shown(entry)} is compressed, which torch.save never does; "
                "unpack the archive and pack it again with zip -0, or save it again"
            )
        return self.data_offset(entry), entry.size

    def inflated(self, entry: Entry) -> bytes:
        """The content of a deflated entry of at most 16 MB. Raises ReadError."""
        path = self._source.path
        if entry.method != _DEFLATED or entry.flags & _ENCRYPTED:
            raise ReadError(f"{path}: zip entry {_shown(entry)} is stored in a way torch does not read")
        if max(entry.size, entry.compressed) > MAX_INFLATED:
            raise ReadError(
                f"{path}: zip entry {_shown(entry)} would unpack to {entry.size} bytes; at most {MAX_INFLATED} are"
            )
        import zlib

        raw = self._source.read(self.data_offset(entry), entry.compressed)
        engine = zlib.decompressobj(-15)
        try:
            data = engine.decompress(raw, entry.size + 1)
        except zlib.error:
            raise ReadError(f"{path}: zip entry {_shown(entry)} does not unpack") from None
        if len(data) != entry.size or not engine.eof:
            raise ReadError(f"{path}: zip entry {_shown(entry)} does not unpack to the {entry.size} bytes it declares")
        return data


def read_directory(source: Source) -> Directory:
    """The directory of the archive. Raises ReadError when there is none or it is unreasonable."""
    start, size, n_entries, end = _find_directory(source)
    path = source.path
    defects: list[Defect] = []
    if n_entries > MAX_ENTRIES or size > MAX_DIRECTORY:
        raise ReadError(
            f"{path}: a zip directory of {n_entries} entries in {size} bytes is more than any checkpoint has"
        )
    if start + size != end:
        if start + size > end:
            raise ReadError(f"{path}: the zip directory ends at byte {start + size}, past its own end record at {end}")
        defects.append(_ambiguous(f"{end - start - size} bytes lie between the zip directory and its end record"))
    raw = source.read(start, size)
    if raw.count(b"PK\x01\x02") > MAX_ENTRIES:
        raise ReadError(f"{path}: the zip directory has more than {MAX_ENTRIES} entries")
    entries: dict[str, Entry] = {}
    found: list[Entry] = []
    at = 0
    while at < size:
        entry, at = _entry(path, raw, at)
        if entry.name in entries:
            defects.append(_ambiguous(f"the archive holds {_shown(entry)} twice"))
        elif ".." in entry.name.split("/") or entry.name[:1] == "/":
            defects.append(_ambiguous(f"the archive holds {_shown(entry)}, a place outside of itself"))
        entries[entry.name] = entry
        found.append(entry)
    if len(found) != n_entries:
        defects.append(_ambiguous(f"the zip directory has {len(found)} entries, but its end record says {n_entries}"))
    _check_overlaps(path, found, start, defects)
    if len(defects) > 64:
        defects = [*defects[:64], _ambiguous(f"{len(defects) - 64} more faults of the zip directory")]
    return Directory(source, start, entries, defects)


def _find_directory(source: Source) -> tuple[int, int, int, int]:
    """Offset, bytes and entries of the central directory, and the offset of the record that ends it."""
    path = source.path
    for reach in (1024, 66 << 10):
        n = min(reach, source.size)
        tail = source.read(source.size - n, n)
        at = tail.rfind(b"PK\x05\x06")
        if at >= 0 or n == source.size:
            break
    if at < 0 or at + _END.size > n:
        raise ReadError(
            f"{path}: the zip archive has no directory at its end; the file is truncated or still downloading"
        )
    _, disk, _, _, n_entries, size, start, n_comment = _END.unpack_from(tail, at)
    end = source.size - n + at
    if end + _END.size + n_comment > source.size:
        raise ReadError(f"{path}: the zip archive ends within its comment; the file is truncated")
    locator = b""
    if end >= _END64_LOCATOR.size:
        at -= _END64_LOCATOR.size
        locator = tail[at : at + _END64_LOCATOR.size] if at >= 0 else source.read(end - 20, 20)
    if locator[:4] != b"PK\x06\x07":
        if _NONE32 in (size, start) or n_entries == 0xFFFF:
            raise ReadError(
                f"{path}: the zip archive is larger than its end record can say, and the long form is missing"
            )
        return start, size, n_entries, end
    end64 = _END64_LOCATOR.unpack(locator)[2]
    if end64 + _END64.size > end:
        raise ReadError(f"{path}: the zip64 end record is said to lie at byte {end64}, past the end record at {end}")
    magic, _, _, _, disk, _, _, n64, size64, start64 = _END64.unpack(source.read(end64, _END64.size))
    if magic != b"PK\x06\x06" or disk:
        raise ReadError(f"{path}: the zip64 end record is damaged")
    short = ((size, size64, _NONE32), (start, start64, _NONE32), (n_entries, n64, 0xFFFF))
    if any(small not in (large, none) for small, large, none in short):
        raise ReadError(f"{path}: the two end records of the zip archive contradict each other")
    return start64, size64, n64, end64


def _entry(path: str, raw: bytes, at: int) -> tuple[Entry, int]:
    if at + _CENTRAL.size > len(raw):
        raise ReadError(f"{path}: the zip directory is cut off in its entry at byte {at}")
    fields = _CENTRAL.unpack_from(raw, at)
    magic, _, _, flags, method, _, _, _, compressed, size, n_name, n_extra, n_comment, _, _, _, header = fields
    if magic != b"PK\x01\x02":
        raise ReadError(f"{path}: the zip directory is damaged at byte {at}")
    at += _CENTRAL.size
    raw_name = raw[at : at + n_name]
    extra = raw[at + n_name : at + n_name + n_extra]
    at += n_name + n_extra + n_comment
    if at > len(raw):
        raise ReadError(f"{path}: the zip directory is cut off in its last entry")
    name = raw_name.decode("utf-8", "backslashreplace")
    if _NONE32 in (size, compressed, header):
        size, compressed, header = _long_sizes(path, name, extra, size, compressed, header)
    return Entry(name, raw_name, flags, method, compressed, size, header), at


def _long_sizes(path: str, name: str, extra: bytes, size: int, compressed: int, header: int) -> tuple[int, int, int]:
    """Size, compressed size and header offset with the zip64 extra field filled in where they say so."""
    at = 0
    while at + 4 <= len(extra):
        kind = int.from_bytes(extra[at : at + 2], "little")
        n = int.from_bytes(extra[at + 2 : at + 4], "little")
        if kind == 1:
            field = extra[at + 4 : at + 4 + n]
            values = [size, compressed, header]
            for i, value in enumerate(values):
                if value == _NONE32:
                    if len(field) < 8:
                        break
                    values[i] = int.from_bytes(field[:8], "little")
                    field = field[8:]
            else:
                return values[0], values[1], values[2]
            break
        at += 4 + n
    raise ReadError(f"{path}: zip entry {name[:80]!r} is said to be larger than 4 GB, but its long size is missing")


def _check_overlaps(path: str, entries: list[Entry], start: int, defects: list[Defect]) -> None:
    ordered = sorted(entries, key=lambda entry: entry.header)
    for i, entry in enumerate(ordered):
        stop = entry.header + _LOCAL.size + len(entry.raw_name) + entry.compressed
        limit = ordered[i + 1].header if i + 1 < len(ordered) else start
        if stop > start:
            raise ReadError(
                f"{path}: zip entry {_shown(entry)} ends at byte {stop}, past the archive's data ({start} bytes)"
            )
        if stop > limit:
            defects.append(_ambiguous(f"zip entry {_shown(entry)} overlaps {_shown(ordered[i + 1])}"))


def _shown(entry: Entry) -> str:
    return repr(entry.name[:80])


def _ambiguous(message: str) -> Defect:
    return Defect("ambiguous", message, fix="do not trust this file; save the model again with torch.save")
