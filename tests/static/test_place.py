"""Where something may be written: every refusal comes before the work, and nothing half there stays behind."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path

import pytest

from gqacheck import place
from gqacheck.errors import ReadError, UsageError


def refused(out: str, said: str, **options: bool) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        place.check_destination(out, [], label="OUT", **options)
    assert "\n" not in str(caught.value)


def test_a_destination_with_a_slash_behind_it_is_what_it_is_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to("elsewhere")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "file").write_text("mine")
    for name in ("link", "dangling"):
        refused(name, "is a link")
        refused(f"{name}/", "is a link")
    refused("file/", "exists already")


def test_a_file_named_with_a_slash_behind_it_is_written_without(tmp_path: Path) -> None:
    made = tmp_path / "made"
    made.write_text("mine")
    place.check_destination(f"{tmp_path}/out.bin/", [], label="OUT", file=True)
    place.move_into_place(str(made), f"{tmp_path}/out.bin/", label="OUT")
    assert (tmp_path / "out.bin").read_text() == "mine"


def test_the_folder_one_is_in_is_refused_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for out in (".", "./", str(tmp_path)):
        refused(out, "the folder that you are in")


def test_a_mount_point_is_refused_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "disk").mkdir()
    monkeypatch.setattr(place.os.path, "ismount", lambda path: str(path).endswith("disk"))
    refused(str(tmp_path / "disk"), "where a disk is mounted")


def test_a_name_that_no_file_can_have_is_refused_before_the_work(tmp_path: Path) -> None:
    refused(f"{tmp_path}/{'a' * 300}", "file name too long")
    refused(f"{tmp_path}/" + os.fsdecode(b"\xff"), "is not valid UTF-8")


def test_a_path_through_a_link_goes_where_the_system_takes_it(tmp_path: Path) -> None:
    (tmp_path / "far" / "inner").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "far" / "inner")
    out = f"{tmp_path}/link/../out"
    with place.workplace(out, ReadError) as work:
        assert os.path.dirname(work) == os.path.realpath(tmp_path / "far")
        os.mkdir(f"{work}/out")
        place.move_into_place(f"{work}/out", out, label="OUT")
    assert (tmp_path / "far" / "out").is_dir()


def test_a_file_that_cannot_be_read_or_written_is_one_sentence_and_nothing_stays(tmp_path: Path) -> None:
    with (
        pytest.raises(ReadError, match=r"^/some/file: input/output error; nothing was written$"),
        place.workplace(f"{tmp_path}/out", ReadError),
    ):
        raise OSError(errno.EIO, "Input/output error", "/some/file")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_process_told_to_leave_tidies_up_first(number: signal.Signals, tmp_path: Path) -> None:
    before = signal.signal(number, signal.SIG_DFL)  # under nohup it is ignored from the start, and stays so

    def write_half() -> None:
        with place.workplace(f"{tmp_path}/out", ReadError) as work:
            Path(work, "half").write_text("half")
            # where nothing is set up for it, the signal would end the tests themselves
            assert signal.getsignal(number) is not signal.SIG_DFL
            signal.raise_signal(number)

    try:
        with pytest.raises(SystemExit) as caught:
            write_half()
        after = signal.getsignal(number)
    finally:
        signal.signal(number, before)
    assert caught.value.code == 128 + number
    assert not list(tmp_path.iterdir())
    assert after is signal.SIG_DFL
