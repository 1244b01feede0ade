"""Ranged reads: exact or a clear error, counted, and never from a thing that blocks."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from gqacheck.errors import ReadError
from gqacheck.formats.source import Source


def test_read_returns_exactly_the_range_and_counts_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(100)))
    with Source.open(path) as source:
        assert source.size == 100
        assert source.read(10, 3) == b"\x0a\x0b\x0c"
        assert source.read(100, 0) == b""
        assert source.read(0, 100) == bytes(range(100))
        assert source.bytes_read == 103
        assert source.path == str(path)


@pytest.mark.parametrize(("offset", "n"), [(0, 101), (100, 1), (-1, 1), (5, -1), (2**70, 1), (0, 2**70)])
def test_read_outside_the_file_is_a_clear_error(tmp_path: Path, offset: int, n: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(100))
    with Source.open(path) as source, pytest.raises(ReadError, match="the file has 100"):
        source.read(offset, n)


def test_file_cut_while_it_is_read_is_a_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(100))
    with Source.open(path) as source:
        os.truncate(path, 50)
        with pytest.raises(ReadError, match="the file changed"):
            source.read(40, 20)


def test_read_after_close_is_a_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(100))
    with Source.open(path) as source:
        pass
    source.close()
    with pytest.raises(ReadError, match="closed"):
        source.read(0, 1)


def test_missing_file_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match="no such file"):
        Source.open(tmp_path / "nothing")


def test_name_with_a_null_byte_is_a_clear_error() -> None:
    with pytest.raises(ReadError, match="no path"):
        Source.open("a\0b")


def test_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match="is a folder"):
        Source.open(tmp_path)


def test_named_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(ReadError, match="is a named pipe"):
        Source.open(path)


def test_socket_is_refused(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as end:
        here = os.getcwd()
        os.chdir(tmp_path)  # the path of a socket may have only about 100 characters
        try:
            end.bind("socket")
        finally:
            os.chdir(here)
        with pytest.raises(ReadError, match="is a socket"):
            Source.open(tmp_path / "socket")


def test_device_is_refused() -> None:
    with pytest.raises(ReadError, match="is a character device"):
        Source.open("/dev/zero")


def test_loop_of_links_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(ReadError, match="symbolic links"):
        Source.open(tmp_path / "a")


def test_open_files_are_closed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        with Source.open(path) as source:
            source.read(0, 1)
        with pytest.raises(ReadError):
            Source.open(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before
