"""The container of torch.save before torch 1.6: five pickles, then the storages one after the other."""

from __future__ import annotations

from gqacheck.checkpoint import ITEMSIZE_BITS, StorageInfo
from gqacheck.errors import NotACheckpoint, ReadError
from gqacheck.formats.pickle_machine import Unpickled, collection_paused, read_pickle
from gqacheck.formats.source import Source
from gqacheck.formats.torch_file import TorchFile
from gqacheck.formats.torch_objects import read_objects
from gqacheck.formats.torch_tensors import StorageId, storage_id

__all__ = ["TorchFile", "read_torch_legacy"]

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001


def read_torch_legacy(source: Source) -> TorchFile:
    """The facts of a legacy torch.save file; nothing is executed and no weight is read.

    Raises ReadError when it cannot be read, NotACheckpoint when it is something else.
    """
    with collection_paused():
        return _read(source)


def _read(source: Source) -> TorchFile:
    if source.size > 262 and source.read(257, 5) == b"ustar":
        raise ReadError(
            f"{source.path}: a tar file of torch 0.1; load it with an old torch and torch.save it again to check it"
        )
    reader = _Window(source)
    magic = reader.pickle(0, "the magic number")
    if magic.value != MAGIC or type(magic.value) is not int:
        raise NotACheckpoint(
            f"{source.path}: a pickle, but not one that torch.save wrote: it lacks torch's magic number"
        )
    protocol = reader.pickle(magic.end, "the protocol number")
    if protocol.value != PROTOCOL:
        raise ReadError(f"{source.path}: its legacy protocol is not {PROTOCOL}; no torch ever wrote another")
    system = reader.pickle(protocol.end, "the system record")
    if type(system.value) is dict and system.value.get("little_endian") is False:
        raise ReadError(
            f"{source.path}: the weights are big-endian; load and save the model on a little-endian machine to check it"
        )
    unpickled = reader.pickle(system.end, "the object")
    keys = reader.pickle(unpickled.end, "the storage keys")
    try:
        storages = _lay_out(source, keys, _identities(unpickled))

        def locate(identity: StorageId) -> StorageInfo:
            return _locate(source.path, storages, identity)

        return read_objects(unpickled, locate, source.path)
    except ReadError as error:
        message = str(error)
        raise ReadError(message if message.startswith(source.path) else f"{source.path}: {message}") from None


class _Window:
    """Reads consecutive pickles whose ends are not known beforehand, no byte twice."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._at = 0
        self._data = b""

    def fetch(self, offset: int, n: int) -> bytes:
        skip = offset - self._at
        have = self._data[skip : skip + n] if 0 <= skip < len(self._data) else b""
        if len(have) < n:
            have += self._source.read(offset + len(have), n - len(have))
        if offset + n > self._at + len(self._data):
            self._at, self._data = offset, have
        return have

    def pickle(self, start: int, what: str) -> Unpickled:
        if start >= self._source.size:
            raise ReadError(f"{self._source.path}: the file ends before {what}")
        return read_pickle(self.fetch, start, self._source.size, name=f"{self._source.path}: {what}")


def _identities(unpickled: Unpickled) -> dict[str, StorageId]:
    """The storages that the object refers to, by key. Raises ReadError when references contradict each other."""
    found: dict[str, StorageId] = {}
    for reference in unpickled.persistents:
        identity = storage_id(reference)
        if identity is None:
            continue
        first = found.setdefault(identity.key, identity)
        if (first.dtype, first.numel) != (identity.dtype, identity.numel):
            raise ReadError(
                f"storage {identity.key} is used as {first.numel} elements of {first.dtype} "
                f"and as {identity.numel} of {identity.dtype}"
            )
    return found


def _lay_out(source: Source, keys: Unpickled, identities: dict[str, StorageId]) -> dict[str, tuple[int, int]]:
    """Absolute offset and bytes of each storage: each is preceded by its number of elements, an int64."""
    if type(keys.value) is not list or not all(type(key) is str for key in keys.value):
        raise ReadError("its list of storage keys is no list of texts")
    if len(set(keys.value)) != len(keys.value):
        raise ReadError("its list of storage keys names a storage twice")
    places: dict[str, tuple[int, int]] = {}
    at = keys.end
    for key in keys.value:
        identity = identities.get(key)
        if identity is None:
            raise ReadError(f"its list of storage keys names {key[:60]!r}, which no tensor uses")
        if at + 8 > source.size:
            places[key] = (source.size, 0)
            at = source.size
            continue
        numel = int.from_bytes(source.read(at, 8), "little", signed=True)
        nbytes = numel * ITEMSIZE_BITS[identity.dtype] // 8
        if numel < 0 or nbytes > source.size:
            raise ReadError(f"storage {key[:60]} claims {numel} elements in a file of {source.size} bytes")
        at += 8
        places[key] = (at, min(nbytes, max(source.size - at, 0)))
        at += nbytes
    return places


def _locate(path: str, places: dict[str, tuple[int, int]], identity: StorageId) -> StorageInfo:
    offset, nbytes = places.get(identity.key, (0, 0))
    if identity.view is None:
        return StorageInfo(path, identity.key, offset, nbytes, identity.nbytes)
    key, first, numel = identity.view
    width = ITEMSIZE_BITS[identity.dtype] // 8
    left = max(nbytes - first * width, 0)
    return StorageInfo(path, key, offset + first * width, min(numel * width, left), numel * width)
