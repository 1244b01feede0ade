"""Where something is written: beside its destination under another name first, then moved there in one step."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from gqacheck.errors import GqacheckError, UsageError
from gqacheck.text import printable


def check_destination(out: str, sources: Sequence[str], *, label: str, file: bool = False) -> None:
    """Nothing, when ``out`` is free and lies outside of ``sources``, and its folder is there.

    label: how messages call it (``-o``, ``OUT``). file: one file is to be written, not a folder.

    Raises:
        UsageError: it exists (an empty folder may), its folder does not, it is one of the sources or inside one, or no
        file can be called so.
    """
    shown = f"{label} {printable(out)}"
    if not out or "\0" in out:
        raise UsageError(f"{label} takes the path of a new folder or file")
    parent, name = _parent_and_name(out)
    place = os.path.join(parent, name)
    real = _real(out)
    for source in sources:
        original = _real(source)
        if real == original:
            raise UsageError(f"{shown} is the checkpoint itself or its parent: name a new folder or file")
        if os.path.isdir(original) and real.startswith(original.rstrip(os.sep) + os.sep):
            raise UsageError(f"{shown} lies inside {printable(source)}, which is not touched: name a place beside it")
    if not os.path.isdir(parent):
        raise UsageError(f"{shown}: the folder {printable(parent)} does not exist")
    if os.path.islink(place):
        raise UsageError(f"{shown} is a link: name a new folder or file")
    _refuse_name(place, shown)
    if os.path.lexists(place) and (file or not os.path.isdir(place) or os.listdir(place)):
        raise UsageError(f"{shown} exists already and is never overwritten: name a new folder or file")
    if os.path.isdir(place) and (os.path.ismount(place) or os.path.samefile(place, os.curdir)):
        why = "where a disk is mounted" if os.path.ismount(place) else "the folder that you are in"
        raise UsageError(f"{shown} is {why}, which cannot be replaced in one step: name a new folder inside it")


def _parent_and_name(out: str) -> tuple[str, str]:
    """The folder that ``out`` goes into, without links in it, and its name there."""
    head, name = os.path.split(out.rstrip(os.sep) or os.sep)
    if name in ("", os.curdir, os.pardir):
        head, name = os.path.split(os.path.realpath(out))
    return os.path.realpath(head or os.curdir), name


def _refuse_name(place: str, shown: str) -> None:
    try:
        os.lstat(place)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise UsageError(f"{shown}: {_reason(error)}: choose another name") from None
    try:
        place.encode("utf-8")
    except UnicodeEncodeError:
        raise UsageError(f"{shown} is not valid UTF-8, which safetensors cannot open: choose another name") from None


def _real(path: str) -> str:
    return os.path.realpath(os.path.abspath(path))


@contextmanager
def workplace(out: str, error: type[GqacheckError]) -> Iterator[str]:
    """A folder beside ``out`` to write in, removed at the end whatever happens.

    Raises:
        error: there is no space left, nothing can be written there, or a file cannot be read or written; one line.
    """
    parent, name = _parent_and_name(out)
    try:
        folder = tempfile.mkdtemp(prefix=f".{name[:60]}.", suffix=".part", dir=parent)
    except OSError as problem:
        raise error(f"{printable(parent)}: cannot be written to ({_reason(problem)})") from None
    try:
        with _tidy_when_told_to_leave():
            yield folder
    except OSError as problem:
        if problem.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise error(f"no space left in {printable(parent)}; nothing was written") from None
        if isinstance(problem, BrokenPipeError):
            raise  # whoever reads the output has gone
        where = problem.filename if isinstance(problem.filename, str) else parent
        raise error(f"{printable(where)}: {_reason(problem)}; nothing was written") from problem
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _tidy_when_told_to_leave() -> Iterator[None]:
    """Inside, SIGTERM and SIGHUP (a job that is over, a terminal that is closed) leave as Ctrl-C does: tidied up."""

    def leave(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    names = ("SIGTERM", "SIGHUP") if threading.current_thread() is threading.main_thread() else ()
    told = [getattr(signal, name) for name in names if hasattr(signal, name)]
    mine = [number for number in told if signal.getsignal(number) is signal.SIG_DFL]
    for number in mine:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number in mine:
            signal.signal(number, signal.SIG_DFL)


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
    parent, name = _parent_and_name(out)
    place = os.path.join(parent, name)
    try:
        if os.path.isdir(made):
            os.rename(made, place)  # replaces an empty folder and nothing else
        else:
            _move_file(made, place)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR, errno.EISDIR):
            raise UsageError(f"{label} {printable(out)} has appeared in the meantime; nothing was written") from None
        raise
    _sync_folder(parent)


def _move_file(made: str, out: str) -> None:
    try:
        os.link(made, out)  # fails where a name exists already; a rename would replace it
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        if os.path.lexists(out):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), out) from None
        os.rename(made, out)


def write_beside(path: str, text: str) -> None:
    """Writes a small text file beside its place and renames it into it. Raises OSError; nothing half stays."""
    temporary = f"{path}.{os.getpid()}.tmp"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with open(descriptor, "w", encoding="utf-8", errors="backslashreplace", newline="\n") as stream:
            stream.write(text)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


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
