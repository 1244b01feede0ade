"""The zip container of torch.save (torch 1.6 and later)."""

from __future__ import annotations

from gqacheck.checkpoint import Defect, StorageInfo
from gqacheck.errors import NotACheckpoint, ReadError
from gqacheck.formats.pickle_machine import Unpickled, collection_paused, read_pickle
from gqacheck.formats.source import Source
from gqacheck.formats.torch_file import TorchFile
from gqacheck.formats.torch_objects import read_objects
from gqacheck.formats.torch_tensors import StorageId
from gqacheck.formats.torch_zip_directory import Directory, Entry, read_directory

__all__ = ["TorchFile", "read_torch_zip"]


def read_torch_zip(source: Source) -> TorchFile:
    """The facts of a zip that torch.save wrote; nothing is executed and no weight is read.

    Raises ReadError when it cannot be read, NotACheckpoint when it is another kind of zip.
    """
    with collection_paused():
        return _read(source)


def _read(source: Source) -> TorchFile:
    directory = read_directory(source)
    if not directory.entries:
        raise NotACheckpoint(f"{source.path}: an empty zip archive")
    prefix = _prefix(source, directory)
    if f"{prefix}constants.pkl" in directory.entries:
        return TorchFile("other", "a TorchScript archive (torch.jit.save); save the model itself with torch.save")
    _check_byte_order(source, directory, prefix)
    unpickled, trailing = _unpickle(source, directory, directory.entries[f"{prefix}data.pkl"])

    def locate(identity: StorageId) -> StorageInfo:
        entry = directory.entries.get(f"{prefix}data/{identity.key}")
        if entry is None:
            return StorageInfo(source.path, identity.key, 0, 0, identity.nbytes)
        offset, nbytes = directory.stored(entry)
        return StorageInfo(source.path, identity.key, offset, nbytes, identity.nbytes)

    try:
        file = read_objects(unpickled, locate, source.path)
    except ReadError as error:
        raise ReadError(_with_path(source.path, str(error))) from None
    defects = (*directory.defects, *trailing, *file.defects)
    return TorchFile(
        file.kind, file.description, file.tensors, file.modules, file.config, file.generation_config, file.tokenizer,
        file.globals, file.unwrapped, defects, file.ignored,
    )  # fmt: skip


def _with_path(path: str, message: str) -> str:
    return message if message.startswith(path) else f"{path}: {message}"


def _prefix(source: Source, directory: Directory) -> str:
    """The folder that holds data.pkl: the one of the archive's first entry, as torch finds it."""
    first = next(iter(directory.entries))
    prefix = first[: first.find("/") + 1]
    others = [name for name in directory.entries if name.endswith("/data.pkl") and name.count("/") == 1]
    if f"{prefix}data.pkl" in directory.entries and prefix:
        if len(others) > 1:
            directory.defects.append(
                Defect(
                    "ambiguous",
                    f"the archive holds {len(others)} pickles ({', '.join(repr(name[:60]) for name in others[:3])})",
                    expected=1,
                    actual=len(others),
                    unit="pickles",
                    fix="do not trust this file; save the model again with torch.save",
                )
            )
        return prefix
    if others:
        raise ReadError(
            f"{source.path}: data.pkl lies in {others[0]!r}, but the archive begins with {first[:80]!r}, "
            "where torch would look for it; it was packed by something else than torch.save"
        )
    raise NotACheckpoint(
        f"{source.path}: a zip archive without data.pkl, not written by torch.save; it begins with {first[:80]!r}"
    )


def _check_byte_order(source: Source, directory: Directory, prefix: str) -> None:
    entry = directory.entries.get(f"{prefix}byteorder")
    if entry is None:
        return
    offset, nbytes = directory.stored(entry)
    if nbytes > 16:
        raise ReadError(f"{source.path}: the byteorder record has {nbytes} bytes where 'little' belongs")
    order = source.read(offset, nbytes)
    if order == b"big":
        raise ReadError(
            f"{source.path}: the weights are big-endian; load and save the model on a little-endian machine to check it"
        )
    if order != b"little":
        raise ReadError(f"{source.path}: the byteorder record is {order!r}, neither 'little' nor 'big'")


def _unpickle(source: Source, directory: Directory, entry: Entry) -> tuple[Unpickled, tuple[Defect, ...]]:
    name = f"{source.path}: data.pkl"
    if entry.method == 0:
        start, nbytes = directory.stored(entry)
        unpickled = read_pickle(source.read, start, start + nbytes, name=name)
        after = start + nbytes - unpickled.end
    else:
        data = directory.inflated(entry)
        unpickled = read_pickle(lambda offset, n: data[offset : offset + n], 0, len(data), name=name, located=False)
        after = len(data) - unpickled.end
    if not after:
        return unpickled, ()
    defect = Defect(
        "ambiguous",
        f"data.pkl goes on for {after} bytes after its end",
        expected=0,
        actual=after,
        unit="bytes",
        fix="do not trust this file; save the model again with torch.save",
    )
    return unpickled, (defect,)
