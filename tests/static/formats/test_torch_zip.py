"""The zip container: exact offsets from few reads, and one clear line for every archive that lies."""

from __future__ import annotations

import struct
import zipfile
import zlib
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from time import process_time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gqacheck.errors import NotACheckpoint, ReadError
from gqacheck.formats import torch_zip_directory
from gqacheck.formats.source import Source
from gqacheck.formats.torch_zip import TorchFile, read_torch_zip
from gqacheck.testing.sketch import sketch_llama
from gqacheck.testing.writers import (
    Global,
    Instance,
    PickleWriter,
    Storage,
    Tensor,
    ordered_dict,
    tensor,
    write_torch_zip,
)


class Memory(Source):
    """Bytes in memory, read as a file: what a source over a network would replace."""

    def __init__(self, data: bytes) -> None:
        super().__init__("memory.bin", 0, len(data))
        self.data = data

    def _fetch(self, offset: int, n: int) -> bytes:
        return self.data[offset : offset + n]

    def close(self) -> None:
        """There is nothing to close."""


def outcome(data: bytes) -> str:
    """What was read, or the message; anything else than ReadError escapes."""
    try:
        return read_torch_zip(Memory(data)).kind
    except ReadError as error:
        return str(error)


def read(path: Path) -> TorchFile:
    with Source.open(path) as source:
        return read_torch_zip(source)


def ambiguities(file: TorchFile) -> list[str]:
    return [defect.message for defect in file.defects if defect.kind == "ambiguous"]


def small() -> dict[str, object]:
    return {"a.weight": tensor((2, 3), "float32", bytes(range(24))), "b.weight": tensor((5,), "float16", bytes(10))}


def body(value: object) -> bytes:
    return PickleWriter().finish(value)


def archive(path: Path, members: list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as out:
        for name, data in members:
            out.writestr(zipfile.ZipInfo(name), data, method)
    return path


def members() -> list[tuple[str, bytes]]:
    return [
        ("archive/data.pkl", body(small())),
        ("archive/byteorder", b"little"),
        ("archive/data/0", bytes(range(24))),
        ("archive/data/1", bytes(10)),
        ("archive/version", b"3\n"),
    ]


def test_storage_offset_points_at_the_bytes(tmp_path: Path) -> None:
    path = write_torch_zip(tmp_path / "x.bin", small())
    found = read(path).tensors["a.weight"]
    assert found.storage is not None
    assert path.read_bytes()[found.storage.offset : found.storage.offset + found.storage.nbytes] == bytes(range(24))
    assert (found.shape, found.strides, found.dtype) == ((2, 3), (3, 1), "float32")
    assert found.storage.file == str(path)
    assert found.storage.declared_nbytes == 24


def test_storage_offset_counts_the_padding_of_the_local_header(tmp_path: Path) -> None:
    # torch pads each record to 64 bytes with an extra field that only the local header has
    path = tmp_path / "x.bin"
    records = {}
    with open(path, "wb") as out:
        for name, data in members():
            raw = name.encode()
            pad = -(out.tell() + 30 + len(raw) + 4) % 64
            records[raw] = (out.tell(), data)
            out.write(struct.pack("<4s5H3L2H", b"PK\x03\x04", 0, 8, 0, 0, 0, 0, 0, 0, len(raw), pad + 4))
            out.write(raw + struct.pack("<2sH", b"FB", pad) + b"Z" * pad + data)
        start = out.tell()
        for raw, (offset, data) in records.items():
            n = len(data)
            out.write(
                struct.pack("<4s6H3L5H2L", b"PK\x01\x02", 0, 0, 8, 0, 0, 0, 0, n, n, len(raw), 0, 0, 0, 0, 0, offset)
            )
            out.write(raw)
        end = out.tell()
        out.write(struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 5, 5, end - start, start, 0))
    found = read(path)
    assert found.defects == ()
    storage = found.tensors["a.weight"].storage
    assert storage is not None
    assert storage.offset % 64 == 0
    assert path.read_bytes()[storage.offset : storage.offset + 24] == bytes(range(24))


def test_weights_are_not_read(tmp_path: Path) -> None:
    path = write_torch_zip(tmp_path / "x.bin", {"big.weight": tensor((3000, 1000), "float16")})
    with Source.open(path) as source:
        read_torch_zip(source)
    assert source.size > 6_000_000
    assert source.bytes_read < 3_000


def test_zip64_directory_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # as for an archive of more than 65,535 records or 4 GB, which zipfile writes the same way above these limits
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 2)
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 8)
    path = archive(tmp_path / "x.bin", members())
    assert b"PK\x06\x06" in path.read_bytes()
    found = read(path)
    assert found.defects == ()
    assert sorted(found.tensors) == ["a.weight", "b.weight"]


def test_compressed_pickle_is_read(tmp_path: Path) -> None:
    parts = members()
    path = tmp_path / "x.bin"
    with zipfile.ZipFile(path, "w") as out:
        out.writestr(zipfile.ZipInfo(parts[0][0]), parts[0][1], zipfile.ZIP_DEFLATED)
        for name, data in parts[1:]:
            out.writestr(zipfile.ZipInfo(name), data)
    assert sorted(read(path).tensors) == ["a.weight", "b.weight"]


def test_compressed_storage_is_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.bin", members(), zipfile.ZIP_DEFLATED)
    with pytest.raises(ReadError, match=r"compressed, which torch\.save never does"):
        read(path)


def test_deflate_bomb_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as out:
        out.writestr("archive/data.pkl", bytes(20 << 20))
    begun = process_time()
    with pytest.raises(ReadError, match=f"would unpack to {20 << 20} bytes"):
        read(path)
    assert process_time() - begun < 1


def test_deflate_bomb_that_declares_little_is_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.bin", [("archive/data.pkl", bytes(4 << 20))], zipfile.ZIP_DEFLATED)
    raw = path.read_bytes()
    path.write_bytes(raw.replace(struct.pack("<L", 4 << 20), struct.pack("<L", 100)))
    with pytest.raises(ReadError, match="does not unpack to the 100 bytes it declares"):
        read(path)


def test_damaged_deflate_stream_is_refused(tmp_path: Path) -> None:
    parts = members()[:1]
    path = archive(tmp_path / "x.bin", parts, zipfile.ZIP_DEFLATED)
    packer = zlib.compressobj(6, zlib.DEFLATED, -15)
    packed = packer.compress(parts[0][1]) + packer.flush()
    raw = path.read_bytes()
    assert packed in raw
    path.write_bytes(raw.replace(packed, b"\xff" * len(packed)))
    with pytest.raises(ReadError, match="does not unpack"):
        read(path)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [(8, 1, "is encrypted"), (10, 12, "stored in a way torch does not read")],
    ids=["encrypted", "bzip2"],
)
def test_pickle_stored_in_another_way_is_refused(tmp_path: Path, field: int, value: int, said: str) -> None:
    path = archive(tmp_path / "x.bin", members())
    raw = bytearray(path.read_bytes())
    struct.pack_into("<H", raw, raw.rindex(b"archive/data.pkl") - 46 + field, value)
    path.write_bytes(raw)
    with pytest.raises(ReadError, match=said):
        read(path)


def test_duplicate_member_is_ambiguous(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate"):
        path = archive(tmp_path / "x.bin", [*members(), ("archive/data.pkl", body({"other": tensor((1,))}))])
    assert "the archive holds 'archive/data.pkl' twice" in ambiguities(read(path))


def test_second_pickle_under_another_prefix_is_ambiguous(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.bin", [*members(), ("other/data.pkl", body({"other": tensor((1,))}))])
    found = read(path)
    assert sorted(found.tensors) == ["a.weight", "b.weight"]
    assert "2 pickles" in ambiguities(found)[0]


def test_pickle_under_a_prefix_that_torch_does_not_look_in_is_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.bin", [("notes/readme", b"x"), *members()])
    with pytest.raises(ReadError, match="begins with 'notes/readme', where torch would look"):
        read(path)


def test_member_outside_the_archive_is_ambiguous(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.bin", [*members(), ("../../etc/cron.d/x", b"x"), ("/etc/passwd", b"x")])
    assert [message for message in ambiguities(read(path)) if "outside of itself" in message] == [
        "the archive holds '../../etc/cron.d/x', a place outside of itself",
        "the archive holds '/etc/passwd', a place outside of itself",
    ]


def test_header_that_disagrees_with_the_directory_is_ambiguous(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.bin", members())
    raw = path.read_bytes()
    at = raw.index(b"archive/data/0")
    path.write_bytes(raw[:at] + b"archive/data/9" + raw[at + 14 :])
    assert ambiguities(read(path)) == [
        "zip entry 'archive/data/0': its header and the archive's directory disagree on its name"
    ]


def test_header_with_another_size_is_ambiguous(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.bin", members())
    raw = bytearray(path.read_bytes())
    at = raw.index(b"archive/data/0") - 30
    struct.pack_into("<L", raw, at + 22, 23)
    path.write_bytes(raw)
    assert ambiguities(read(path)) == [
        "zip entry 'archive/data/0': its header and the archive's directory disagree on its size (23 and 24 bytes)"
    ]


def test_overlapping_members_are_ambiguous(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.bin", members())
    raw = bytearray(path.read_bytes())
    first = raw.index(b"archive/data/0") - 30
    central = raw.rindex(b"archive/data/1") - 46
    struct.pack_into("<L", raw, central + 42, first)
    path.write_bytes(raw)
    messages = ambiguities(read(path))
    assert "zip entry 'archive/data/0' overlaps 'archive/data/1'" in messages


def test_bytes_after_the_pickle_are_ambiguous(tmp_path: Path) -> None:
    parts = members()
    parts[0] = (parts[0][0], parts[0][1] + body({"second": tensor((1,))}))
    assert "data.pkl goes on for" in ambiguities(read(archive(tmp_path / "x.bin", parts)))[0]


def test_missing_storage_record_is_a_bounds_defect(tmp_path: Path) -> None:
    parts = [part for part in members() if part[0] != "archive/data/1"]
    found = read(archive(tmp_path / "x.bin", parts))
    assert sorted(found.tensors) == ["a.weight", "b.weight"]
    first = found.defects[0]
    assert (first.kind, first.expected, first.actual, first.unit) == ("storage-bounds", 10, 0, "bytes")


def test_short_storage_record_is_a_bounds_defect(tmp_path: Path) -> None:
    parts = [(name, data[:8] if name == "archive/data/1" else data) for name, data in members()]
    found = read(archive(tmp_path / "x.bin", parts))
    record, view = found.defects
    assert (record.kind, record.expected, record.actual, record.unit) == ("storage-bounds", 10, 8, "bytes")
    assert (view.tensors, view.expected, view.actual, view.unit) == (("b.weight",), 4, 5, "elements")


def test_storage_key_with_a_path_is_only_a_name(tmp_path: Path) -> None:
    writer = PickleWriter()
    data = writer.finish({"w.weight": tensor((2,))}).replace(
        b"X\x01\x00\x00\x000", b"X\x10\x00\x00\x00../../etc/passwd"
    )
    found = read(archive(tmp_path / "x.bin", [("archive/data.pkl", data)]))
    assert found.defects[0].actual == 0


def test_big_endian_weights_are_refused(tmp_path: Path) -> None:
    parts = [(name, b"big" if name == "archive/byteorder" else data) for name, data in members()]
    with pytest.raises(ReadError, match="big-endian"):
        read(archive(tmp_path / "x.bin", parts))


def test_unknown_byte_order_is_refused(tmp_path: Path) -> None:
    parts = [(name, b"middle" if name == "archive/byteorder" else data) for name, data in members()]
    with pytest.raises(ReadError, match="neither 'little' nor 'big'"):
        read(archive(tmp_path / "x.bin", parts))


def test_file_of_before_the_byte_order_record_is_read(tmp_path: Path) -> None:
    parts = [part for part in members() if part[0] != "archive/byteorder"]
    assert len(read(archive(tmp_path / "x.bin", parts)).tensors) == 2


def test_torchscript_archive_is_named(tmp_path: Path) -> None:
    found = read(archive(tmp_path / "x.bin", [*members(), ("archive/constants.pkl", b"\x80\x02).")]))
    assert found.kind == "other"
    assert "TorchScript" in found.description


def test_other_zip_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(NotACheckpoint, match=r"without data\.pkl"):
        read(archive(tmp_path / "x.bin", [("word/document.xml", b"<x/>")]))


def test_empty_zip_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(NotACheckpoint, match="an empty zip"):
        read(archive(tmp_path / "x.bin", []))


def test_zip_comment_is_no_fault(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.bin", members())
    with zipfile.ZipFile(path, "a") as out:
        out.comment = b"c" * 3000
    assert read(path).defects == ()


def test_million_entries_are_refused_in_bounded_time(tmp_path: Path) -> None:
    entry = struct.pack("<4s6H3L5H2L", b"PK\x01\x02", 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0) + b"ab"
    directory = entry * 1_000_000
    path = tmp_path / "x.bin"
    path.write_bytes(directory + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 9, 9, len(directory), 0, 0))
    begun = process_time()
    with pytest.raises(ReadError, match="more than 300000 entries"):
        read(path)
    assert process_time() - begun < 1


def test_too_large_a_directory_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    with open(path, "wb") as out:
        out.truncate(3 << 30)
        out.seek(3 << 30)
        out.write(struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 9, 9, 3 << 30, 0, 0))
    with Source.open(path) as source, pytest.raises(ReadError, match="more than any checkpoint has"):
        read_torch_zip(source)
    assert source.bytes_read < 100_000


def end64(n: int, size: int, start: int, at: int) -> bytes:
    record = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, n, n, size, start)
    return record + struct.pack("<4sLQL", b"PK\x06\x07", 0, at, 1)


@pytest.mark.parametrize(
    ("long_record", "short_fields", "said"),
    [
        (True, (0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF), None),
        (False, (0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF), "the long form is missing"),
        (True, (5, 7, 7), "contradict each other"),
    ],
)  # fmt: skip
def test_zip64_record_is_needed_and_must_agree(
    tmp_path: Path, long_record: bool, short_fields: tuple[int, int, int], said: str | None
) -> None:
    path = archive(tmp_path / "x.bin", members())
    raw = path.read_bytes()
    at = raw.rindex(b"PK\x05\x06")
    n, size, start = struct.unpack_from("<H2L", raw, at + 10)
    extra = end64(n, size, start, at) if long_record else b""
    few, small_size, small_start = short_fields
    path.write_bytes(
        raw[:at] + extra + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, few, few, small_size, small_start, 0)
    )
    if said is None:
        assert read(path).defects == ()
    else:
        with pytest.raises(ReadError, match=said):
            read(path)


def test_zip64_record_that_points_past_the_end_is_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.bin", members())
    raw = path.read_bytes()
    at = raw.rindex(b"PK\x05\x06")
    path.write_bytes(raw[:at] + end64(5, 2**63, 2**63, 2**63) + raw[at:])
    with pytest.raises(ReadError, match=f"said to lie at byte {2**63}"):
        read(path)


def test_zip64_extra_field_that_is_missing_is_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.bin", members())
    raw = bytearray(path.read_bytes())
    struct.pack_into("<L", raw, raw.rindex(b"archive/data/1") - 46 + 24, 0xFFFFFFFF)
    path.write_bytes(raw)
    with pytest.raises(ReadError, match="long size is missing"):
        read(path)


@pytest.mark.parametrize(
    "content", [b"", b"PK", b"PK\x03\x04", bytes(5000), b"PK\x05\x06", b"PK\x03\x04" + bytes(70_000)]
)
def test_file_without_a_directory_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.bin"
    path.write_bytes(content)
    with pytest.raises(ReadError, match="no directory at its end"):
        read(path)


def test_archive_truncated_at_every_byte_is_refused(tmp_path: Path) -> None:
    whole = write_torch_zip(tmp_path / "x.bin", small()).read_bytes()
    assert outcome(whole) == "state-dict"
    for n in range(len(whole)):
        assert outcome(whole[:n]).startswith("memory.bin: ")


@settings(derandomize=True, deadline=None, max_examples=400)
@given(st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4))
def test_archive_with_bytes_changed_is_read_or_a_clear_error(changes: list[tuple[int, int]]) -> None:
    raw = bytearray(whole_module())
    for at, byte in changes:
        raw[at % len(raw)] = byte
    assert "\n" not in outcome(bytes(raw))


@cache
def whole_module() -> bytes:
    sketch = sketch_llama(n_layers=1, hidden_size=8, n_q_heads=3, n_kv_heads=1, vocab_size=4, intermediate_size=4)
    with TemporaryDirectory() as folder:
        return sketch.write_module(Path(folder) / "whole.bin").read_bytes()


def test_bounds_of_the_directory_hold(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = archive(tmp_path / "x.bin", members())
    assert read(path).kind == "state-dict"
    monkeypatch.setattr(torch_zip_directory, "MAX_ENTRIES", 4)
    with pytest.raises(ReadError, match="5 entries"):
        read(path)


def test_huge_tokenizer_is_stepped_over(tmp_path: Path) -> None:
    text = '{"version":"1.0","model":{"vocab":{' + ",".join(f'"token{i}é":{i}' for i in range(200_000)) + "}}}"
    state = {"_tokenizer": Instance(Global("tokenizers", "Tokenizer"))}
    holder = Instance(Global("transformers", "PreTrainedTokenizerFast"), state)
    path = sketch_llama(n_layers=1).write_module(tmp_path / "x.bin", extra={"tokenizer": holder, "text": text})
    with Source.open(path) as source:
        found = read_torch_zip(source)
    assert found.kind == "module"
    assert source.size > 3_000_000
    assert source.bytes_read < 100_000


def test_views_of_one_storage_share_its_key(tmp_path: Path) -> None:
    storage = Storage(bytes(48), "float32")
    one = Tensor(storage, (3,), (1,), 0)
    two = Tensor(storage, (3,), (2,), 3)
    found = read(write_torch_zip(tmp_path / "x.bin", ordered_dict({"one.weight": one, "two.weight": two})))
    assert found.tensors["one.weight"].storage is found.tensors["two.weight"].storage
    assert found.tensors["two.weight"].storage_offset == 3
