"""Bytes that go from file to file without being looked at."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from gqacheck.checkpoint import StorageInfo, TensorInfo
from gqacheck.errors import ReadError
from gqacheck.formats import tensor_bytes
from gqacheck.formats.source import Source
from gqacheck.formats.tensor_bytes import FileBytes

DATA = bytes(range(256)) * 300


@pytest.fixture(params=["by the kernel", "no such call", "refused", "refused half way"])
def file(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file, on a system that copies in one of four ways."""
    path = tmp_path / "in"
    path.write_bytes(DATA)
    real = getattr(os, "copy_file_range", None)
    if request.param == "no such call":
        monkeypatch.delattr(os, "copy_file_range", raising=False)
    elif request.param != "by the kernel":
        if real is None:
            pytest.skip("this system has no copy_file_range")
        calls = []

        def refuse(source: int, target: int, count: int, offset: int) -> int:
            calls.append(count)
            if len(calls) == 1 and request.param == "refused half way":
                return int(real(source, target, min(count, 1000), offset))
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

        monkeypatch.setattr(os, "copy_file_range", refuse)
    return path


def test_copied_bytes_stand_where_writing_would_have_put_them(file: Path, tmp_path: Path) -> None:
    with Source.open(file) as source, open(tmp_path / "out", "xb") as out:
        out.write(b"header")
        source.copy(100, 5000, out)
        out.write(b"between")
        source.copy(0, 0, out)
        source.copy(len(DATA) - 3000, 3000, out)
        assert out.tell() == 6 + 5000 + 7 + 3000
        assert source.bytes_read == 8000
    assert (tmp_path / "out").read_bytes() == b"header" + DATA[100:5100] + b"between" + DATA[-3000:]


@pytest.mark.parametrize(("offset", "count"), [(-1, 10), (len(DATA) - 5, 6), (len(DATA) + 1, 1)])
def test_bytes_that_are_not_there_are_not_copied(offset: int, count: int, file: Path, tmp_path: Path) -> None:
    with Source.open(file) as source, open(tmp_path / "out", "xb") as out:
        with pytest.raises(ReadError, match="truncated or damaged"):
            source.copy(offset, count, out)
        assert out.tell() == 0


def test_a_file_that_shrinks_while_it_is_copied_is_said_to_have_changed(file: Path, tmp_path: Path) -> None:
    with Source.open(file) as source, open(tmp_path / "out", "xb") as out:
        os.truncate(file, 2000)
        with pytest.raises(ReadError, match="the file changed"):
            source.copy(0, len(DATA), out)


def test_a_full_disk_is_not_mistaken_for_a_system_that_cannot_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").write_bytes(DATA)

    def full(*_: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "copy_file_range", full, raising=False)
    with (
        Source.open(tmp_path / "in") as source,
        open(tmp_path / "out", "xb") as out,
        pytest.raises(OSError, match=os.strerror(errno.ENOSPC)),
    ):
        source.copy(0, 100, out)


def test_a_tensor_is_copied_piece_by_piece_as_it_is_read(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensor_bytes, "CHUNK", 1000)
    storage = StorageInfo(str(file), "0", 64, 20000, 20000)
    info = TensorInfo("w", (50, 30), "float16", (30, 1), 8, storage)
    with FileBytes() as files, open(tmp_path / "out", "xb") as out:
        assert list(files.copy(info, out)) == [1000, 1000, 1000]
        read = b"".join(files.chunks(info))
    assert (tmp_path / "out").read_bytes() == read == DATA[80:3080]
    for broken in (TensorInfo("w", (2, 2), "float16", (1, 2), 0, storage), TensorInfo("w", (2, 2), "float16", (2, 1))):
        with FileBytes() as files, open(tmp_path / "more", "wb") as out, pytest.raises(ReadError):
            list(files.copy(broken, out))
