"""Ranged reads over one file, counted. Nothing in this package opens a checkpoint any other way."""

from __future__ import annotations

import errno
import os
import stat
from types import TracebackType
from typing import BinaryIO

from gqacheck.errors import ReadError

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a character device"),
    (stat.S_ISBLK, "a block device"),
)


class Source:
    """One regular local file, read by offset and length.

    ``path`` is the path as the caller gave it, ``size`` its bytes when it was opened, ``bytes_read`` the bytes
    handed out so far. ``_fetch`` is the one method that a source over a network would replace.

        >>> with Source.open("model.bin") as source:        # doctest: +SKIP
        ...     source.read(0, 4)
        b'PK\\x03\\x04'
    """

    __slots__ = ("_descriptor", "bytes_read", "path", "size")

    def __init__(self, path: str, descriptor: int, size: int) -> None:
        self.path = path
        self.size = size
        self.bytes_read = 0
        self._descriptor = descriptor

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Source:
        """The opened file. Never blocks: a pipe, a device or a folder is refused before anything is read.

        Raises ReadError with one sentence when the path is missing, unreadable or no regular file.
        """
        name = os.fspath(path)
        try:
            _require_regular(name, os.stat(name).st_mode)
            flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
            descriptor = os.open(name, flags)
        except (OSError, ValueError) as error:
            raise ReadError(f"{name}: {_reason(error)}") from None
        try:
            facts = os.fstat(descriptor)
            _require_regular(name, facts.st_mode)
        except BaseException:
            os.close(descriptor)
            raise
        return cls(name, descriptor, facts.st_size)

    def read(self, offset: int, n: int) -> bytes:
        """Exactly ``n`` bytes from ``offset``. Raises ReadError when the file does not hold them."""
        if offset < 0 or n < 0 or offset + n > self.size:
            raise ReadError(
                f"{self.path}: bytes {offset} to {offset + n} were asked for, but the file has {self.size}; "
                "it is truncated or damaged"
            )
        if self._descriptor < 0:
            raise ReadError(f"{self.path}: read after it was closed")
        try:
            data = self._fetch(offset, n)
        except OSError as error:
            raise ReadError(f"{self.path}: {_reason(error)}") from None
        if len(data) != n:
            raise ReadError(f"{self.path}: {n} bytes were asked for at {offset}, {len(data)} came; the file changed")
        self.bytes_read += n
        return data

    def copy(self, offset: int, n: int, to: BinaryIO) -> None:
        """Writes ``n`` bytes from ``offset`` on to ``to``, inside the kernel where it can.

        Raises:
            ReadError: the file does not hold them.
            OSError: ``to`` does not take them.
        """
        done = self._handed_over(offset, n, to) if offset >= 0 and offset + n <= self.size else 0
        if done < n:
            to.write(self.read(offset + done, n - done))

    def _handed_over(self, offset: int, n: int, to: BinaryIO) -> int:
        """How many bytes the kernel copied; none where it cannot (another system, two kinds of file system)."""
        done = 0
        if not hasattr(os, "copy_file_range") or self._descriptor < 0:
            return done
        to.flush()
        try:
            while done < n and (got := os.copy_file_range(self._descriptor, to.fileno(), n - done, offset + done)):
                done += got
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
        self.bytes_read += done
        return done

    def _fetch(self, offset: int, n: int) -> bytes:
        data = os.pread(self._descriptor, n, offset)
        if len(data) == n or not data:
            return data
        parts = [data]
        got = len(data)
        while got < n:
            data = os.pread(self._descriptor, n - got, offset + got)
            if not data:
                break
            parts.append(data)
            got += len(data)
        return b"".join(parts)

    def close(self) -> None:
        """Give the file back; reading afterwards raises ReadError."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Source:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


def _require_regular(name: str, mode: int) -> None:
    if stat.S_ISREG(mode):
        return
    kind = next((text for test, text in _KINDS if test(mode)), "no regular file")
    raise ReadError(f"{name}: is {kind}, not a file; name the checkpoint file itself")


def _reason(error: OSError | ValueError) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, PermissionError):
        return "permission denied"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return "this is no path that the system accepts"
