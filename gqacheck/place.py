"""Where something is written: beside its destination under another name first, then moved there in one step."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from gqacheck.errors import GqacheckError, UsageError
from gqacheck.text import printable


def check_destination(out: str, sources: Sequence[str], *, label: str, file: bool = False) -> None:
    """Nothing, when ``out`` is free and lies outside of ``sources``, and its folder is there.

    label: how messages call it (``-o``, ``OUT``). file: one file is to be written, not a folder.

    Raises:
        UsageError: it exists (an empty folder may), its folder does not, or it is one of the sources or inside one.
    """
    shown = f"{label} {printable(out)}"
    if not out or "\0" in out:
        raise UsageError(f"{label} takes the path of a new folder or file")
    real = _real(out)
    for source in sources:
        original = _real(source)
        if real == original:
            raise UsageError(f"{shown} is the checkpoint itself or its parent: name a new folder or file")
        if os.path.isdir(original) and real.startswith(original.rstrip(os.sep) + os.sep):
            raise UsageError(f"{shown} lies inside {printable(source)}, which is not touched: name a place beside it")
    if os.path.islink(out):
        raise UsageError(f"{shown} is a link: name a new folder or file")
    if os.path.lexists(out) and (file or not os.path.isdir(out) or os.listdir(out)):
        raise UsageError(f"{shown} exists already and is never overwritten: name a new folder or file")
    parent = os.path.dirname(os.path.abspath(out))
    if not os.path.isdir(parent):
        raise UsageError(f"{shown}: the folder {printable(parent)} does not exist")


def _real(path: str) -> str:
    return os.path.realpath(os.path.abspath(path))


@contextmanager
def workplace(out: str, error: type[GqacheckError]) -> Iterator[str]:
    """A folder beside ``out`` to write in, removed at the end whatever happens.

    Raises:
        error: there is no space left, or nothing can be written there; one line.
    """
    parent, name = os.path.split(os.path.abspath(out))
    try:
        folder = tempfile.mkdtemp(prefix=f".{name[:60]}.", suffix=".part", dir=parent)
    except OSError as problem:
        raise error(f"{printable(parent)}: cannot be written to ({_reason(problem)})") from None
    try:
        yield folder
    except OSError as problem:
        if problem.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise error(f"no space left in {printable(parent)}; nothing was written") from None
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def require_space(folder: str, nbytes: int, error: type[GqacheckError], *, what: str) -> None:
    """Nothing, when ``nbytes`` fit on the disk of ``folder``. what: who needs them (``the repair``).

    Raises:
        error: they do not.
    """
    free = shutil.disk_usage(folder).free
    if nbytes > free:
        where = printable(os.path.dirname(folder))
        raise error(
            f"no space left in {where}: {what} needs about {nbytes / 1e9:.2f} GB and {free / 1e9:.2f} GB are free"
        )


def move_into_place(made: str, out: str, *, label: str) -> None:
    """Gives ``made`` (a file or folder on the same disk) its final name in one step and never replaces anything.

    Raises:
        UsageError: something has appeared there in the meantime.
    """
    sync(made)
    try:
        if os.path.isdir(made):
            os.rename(made, out)  # replaces an empty folder and nothing else
        else:
            _move_file(made, out)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR, errno.EISDIR):
            raise UsageError(f"{label} {printable(out)} has appeared in the meantime; nothing was written") from None
        raise
    _sync_folder(os.path.dirname(os.path.abspath(out)))


def _move_file(made: str, out: str) -> None:
    try:
        os.link(made, out)  # fails where a name exists already; a rename would replace it
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        if os.path.lexists(out):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), out) from None
        os.rename(made, out)


def sync(path: str) -> None:
    """What was written under ``path`` (a file, or a folder of files) reaches the disk before it gets its name."""
    files = [path] if os.path.isfile(path) else [os.path.join(path, name) for name in os.listdir(path)]
    for file in files:
        with contextlib.suppress(OSError):
            descriptor = os.open(file, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def _sync_folder(path: str) -> None:
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
