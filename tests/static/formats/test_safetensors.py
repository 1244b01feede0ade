"""The safetensors reader, on files written byte by byte."""

from __future__ import annotations

import gc
import json
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gqacheck.checkpoint import ITEMSIZE_BITS
from gqacheck.errors import ReadError
from gqacheck.formats import open_checkpoint
from gqacheck.formats.safetensors import DTYPES, SafetensorsFile, read_safetensors
from gqacheck.formats.source import Source

ENTRY = b'{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}'


def write(path: Path, header: bytes | dict[str, object], body: int = 24, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + bytes(body))
    return path


def read(path: Path) -> SafetensorsFile:
    with Source.open(path) as source:
        return read_safetensors(source)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def test_tensor_sound_file_is_located_to_the_byte(file: Path) -> None:
    header = {
        "b": {"dtype": "F16", "shape": [4], "data_offsets": [24, 32]},
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    }
    found = read(write(file, header, 32))
    a, b = found.tensors["a"], found.tensors["b"]
    start = 8 + len(json.dumps(header))
    assert (a.shape, a.dtype, a.strides, a.is_contiguous) == ((2, 3), "float32", (3, 1), True)
    assert a.storage is not None
    assert b.storage is not None
    assert (a.storage.file, a.storage.key, a.storage.offset, a.storage.nbytes) == (str(file), "a", start, 24)
    assert (b.storage.offset, b.storage.nbytes, b.storage.declared_nbytes) == (start + 24, 8, 8)
    assert found.metadata == {"format": "pt"}
    assert found.defects == ()


@pytest.mark.parametrize("stored", sorted(DTYPES))
def test_tensor_every_dtype_has_its_size(stored: str, file: Path) -> None:
    bits = ITEMSIZE_BITS[DTYPES[stored]]
    found = read(write(file, {"a": {"dtype": stored, "shape": [8], "data_offsets": [0, bits]}}, bits))
    assert found.defects == ()
    assert found.tensors["a"].nbytes == bits


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (b"[]", "not a JSON object"),
        (b'"a"', "not a JSON object"),
        (b'{"a":' + ENTRY, "not JSON"),
        (b'{"a":' + ENTRY + b"}x", "not JSON"),
        (b'{"a":' + ENTRY + b",}", "not JSON"),
        (b'{"a\xff":' + ENTRY + b"}", "not UTF-8"),
        (b'\xef\xbb\xbf{"a":' + ENTRY + b"}", "byte-order mark"),
        ('{"a":1}'.encode("utf-16"), "not UTF-8"),
        (b'{"a":{"dtype":"F32","shape":[6],"data_offsets":[0,24],"x":NaN}}', "NaN is no JSON number"),
        (b'{"a":{"dtype":"F32","shape":[6],"data_offsets":[0,24],"x":-Infinity}}', "-Infinity is no JSON number"),
        (b'{"a":{"dtype":"F32","shape":[6],"data_offsets":[0,24],"x":1e999}}', "out of range"),
        (b'{"a":{"dtype":"F32","shape":[6],"data_offsets":[0,24],"x":' + b"9" * 400 + b"}}", "out of range"),
        (b'{"a":{"dtype":"F32","shape":[6],"data_offsets":[0,24],"x":"\\ud800"}}', "half a surrogate pair"),
        (b'{"\\uDFFF":' + ENTRY + b"}", "half a surrogate pair"),
        (b'{"a":{"dtype":"F32","shape":[true,6],"data_offsets":[0,24]}}', "shape that is not a list of sizes"),
        (b'{"a":{"dtype":"F32","shape":[6.0],"data_offsets":[0,24]}}', "shape that is not a list of sizes"),
        (b'{"a":{"dtype":"F32","shape":[-6],"data_offsets":[0,24]}}', "shape that is not a list of sizes"),
        (b'{"a":{"dtype":"F32","shape":[18446744073709551616],"data_offsets":[0,24]}}', "not a list of sizes"),
        (b'{"a":{"dtype":"F32","shape":[9223372036854775808,4,0],"data_offsets":[0,0]}}', "does not fit 64 bits"),
        (b'{"a":{"dtype":"F32","shape":[1152921504606846976],"data_offsets":[0,24]}}', "does not fit 64 bits"),
        (b'{"a":{"dtype":"F32","shape":[6],"data_offsets":[-0,24]}}', "not two byte counts"),
        (b'{"a":{"dtype":"F32","shape":[6],"data_offsets":[0,24,24]}}', "not two byte counts"),
        (b'{"a":{"dtype":"F32","shape":[6],"data_offsets":null}}', "not two byte counts"),
        (b'{"a":{"dtype":"F32","shape":null,"data_offsets":[0,24]}}', "not a list of sizes"),
        (b'{"a":{"dtype":["F32"],"shape":[6],"data_offsets":[0,24]}}', "dtype no string"),
        (b'{"a":{"dtype":{"F32":1},"shape":[6],"data_offsets":[0,24]}}', "dtype no string"),
        (b'{"a":{"dtype":{"F32":null,"F16":null},"shape":[6],"data_offsets":[0,24]}}', "dtype no string"),
        (b'{"a":{"dtype":"F32","shape":[6]}}', "has no data_offsets"),
        (b'{"a":{"dtype":"F32","dtype":"F32","shape":[6],"data_offsets":[0,24]}}', "has dtype more than once"),
        (b'{"a":{"dtype":"f32","shape":[6],"data_offsets":[0,24]}}', "dtype f32, which safetensors does not know"),
        (b'{"a":{"dtype":4,"shape":[6],"data_offsets":[0,24]}}', "dtype no string"),
        (b'{"a":null}', "not described by an object"),
        (b'{"a":' + ENTRY + b',"__metadata__":{"k":1}}', "__metadata__ is not an object of strings"),
        (b'{"a":' + ENTRY + b',"__metadata__":["k"]}', "__metadata__ is not an object of strings"),
        (b'{"a":' + ENTRY + b',"__metadata__":{},"__metadata__":{}}', "__metadata__ more than once"),
        (b'{"a":{"dtype":"F32","shape":[6],"data_offsets":[0,24],"x":' + b"[" * 126 + b"]" * 126 + b"}}", "nested"),
        (b'{"a":' + b"[" * 50_000, "nested"),
        (b'{"a":' + b"[]," * 1_400_000, "more than 2,600,000 are not read"),
        (b'{"a":' + b"0," * 200_017, "about 200,018 values in 1 objects, which is no list of tensors"),
        (b'{"a":' + b"{" * 400_000, "about 400,001 objects; more than 400,000 are not read"),
        (b'{"a":{"dtype":"F32","shape":[6],"data_offsets":[-1,23]}}', "not two byte counts"),
        (b'{"a":{"dtype":"F32","shape":[6],"data_offsets":[0,18446744073709551616]}}', "not two byte counts"),
        (b'{"a\x1b[31m":{"dtype":"F32","shape":1,"data_offsets":[0,24]}}', "not JSON"),
        (b'{"a\\u001b[31m":{"dtype":"F32","shape":1,"data_offsets":[0,24]}}', "tensor a\\x1b[31m has a shape"),
    ],
)
def test_header_that_the_library_refuses_is_one_printable_line(header: bytes, said: str, file: Path) -> None:
    with pytest.raises(ReadError) as caught:
        read(write(file, header))
    assert said in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "header",
    [
        b'{"a":["F32",[2,3],[0,24]]}',
        b'{"a":{"data_offsets":[0,24],"shape":[2,3],"dtype":"F32"}}',
        b'{"a":{"dtype":{"F32":null},"shape":[2,3],"data_offsets":[0,24]}}',
        b'{"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24],"x":{"dtype":1,"shape":2,"data_offsets":3}}}',
        b'{"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24],"x":' + b"[" * 125 + b"]" * 125 + b"}}",
        b'  {"a":' + ENTRY + b',"__metadata__":null}   \n',
        b'{"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24],"x":123456789012345678901234567890}}',
        b'{"a":' + ENTRY + b',"__metadata__":{"k":"\\ud83d\\ude00"}}',
    ],
)
def test_header_that_the_library_accepts_is_read_alike(header: bytes, file: Path) -> None:
    found = read(write(file, header))
    assert found.tensors["a"].shape == (2, 3)
    assert found.defects == ()
    assert found.metadata == ({"k": "\U0001f600"} if b"ud83d" in header else {})


def test_header_longer_than_the_file_is_cut_short(file: Path) -> None:
    with pytest.raises(ReadError, match="cut short: its header is 5,000 bytes long"):
        read(write(file, b'{"a":' + ENTRY + b"}", length=5000))


def test_file_too_short_for_a_header_says_how_short(file: Path) -> None:
    file.write_bytes(bytes(7))
    with pytest.raises(ReadError, match="has 7 bytes; a safetensors header needs at least 8"):
        read(file)
    file.write_bytes(bytes(8))
    with pytest.raises(ReadError, match="is not JSON"):
        read(file)


def test_reading_leaves_the_garbage_collector_as_it_was(file: Path) -> None:
    assert gc.isenabled()
    read(write(file, b'{"a":' + ENTRY + b"}"))
    assert gc.isenabled()
    with pytest.raises(ReadError):
        read(write(file, b"{"))
    assert gc.isenabled()
    gc.disable()
    try:
        read(write(file, b'{"a":' + ENTRY + b"}"))
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_header_over_the_limit_is_refused_unread(file: Path) -> None:
    with pytest.raises(ReadError, match="is cut short"):
        open_checkpoint(write(file, b'{"a":' + ENTRY + b"}", length=100_000_000))
    with pytest.raises(ReadError, match="claims a header of 100,000,001 bytes"):
        open_checkpoint(write(file, b'{"a":' + ENTRY + b"}", length=100_000_001))


def test_name_stored_twice_is_ambiguous_and_the_last_is_read(file: Path) -> None:
    first = b'{"dtype":"F32","shape":[5],"data_offsets":[0,20]}'
    found = read(write(file, b'{"a":' + first + b',"a":' + ENTRY + b"}"))
    assert [defect.kind for defect in found.defects] == ["ambiguous"]
    assert found.defects[0].tensors == ("a",)
    assert found.tensors["a"].shape == (2, 3)


def test_file_cut_in_the_weights_is_a_defect_with_the_bytes_that_are_left(file: Path) -> None:
    header = {
        "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "b": {"dtype": "F32", "shape": [2, 3], "data_offsets": [24, 48]},
        "c": {"dtype": "F32", "shape": [1], "data_offsets": [48, 52]},
    }
    found = read(write(file, header, 30))
    (defect,) = found.defects
    assert (defect.kind, defect.tensors, defect.expected, defect.actual) == ("storage-bounds", ("b", "c"), 52, 30)
    held = {name: tensor.storage.nbytes for name, tensor in found.tensors.items() if tensor.storage}
    assert held == {"a": 24, "b": 6, "c": 0}
    assert found.tensors["b"].shape == (2, 3)


@pytest.mark.parametrize(
    ("entries", "body", "said"),
    [
        ({"a": ("F32", [2, 3], 0, 24)}, 25, "1 bytes follow the last tensor"),
        ({"a": ("F32", [2, 3], 4, 28)}, 28, "neither gaps nor overlaps"),
        ({"a": ("F32", [2, 3], 0, 24), "b": ("F32", [6], 20, 44)}, 44, "neither gaps nor overlaps"),
        ({"a": ("F32", [2, 3], 0, 20)}, 20, "need 24 bytes, its data_offsets span 20"),
        ({"a": ("F4", [3], 0, 1)}, 1, "need 2 bytes, its data_offsets span 1"),
        ({"a": ("F32", [2, 3], 24, 0)}, 24, "neither gaps nor overlaps"),
    ],
)
def test_layout_that_the_library_refuses_is_a_defect(
    entries: dict[str, tuple[str, list[int], int, int]], body: int, said: str, file: Path
) -> None:
    header: dict[str, object] = {
        name: {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
        for name, (dtype, shape, begin, end) in entries.items()
    }
    found = read(write(file, header, body))
    assert any(said in defect.message for defect in found.defects)
    assert {defect.kind for defect in found.defects} == {"storage-bounds"}
    assert set(found.tensors) == set(entries)


def test_layout_faults_of_one_kind_are_one_defect_that_names_the_first(file: Path) -> None:
    header = {
        "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
        "b": {"dtype": "F32", "shape": [3], "data_offsets": [5, 9]},
        "c": {"dtype": "F32", "shape": [1], "data_offsets": [10, 14]},
    }
    size, place = read(write(file, header, 14)).defects
    assert "a's (and 1 more) shape and dtype need 8 bytes, its data_offsets span 4" in size.message
    assert (size.tensors, size.expected, size.actual) == (("a", "b"), 8, 4)
    assert "b's (and 1 more) bytes begin at 5 where the tensor before ends at 4" in place.message
    assert (place.tensors, place.expected, place.actual) == (("b", "c"), 4, 5)
    header["b"]["data_offsets"] = [4, 8]
    header["c"]["data_offsets"] = [8, 12]
    header["b"]["shape"] = [1]
    (size,) = read(write(file, header, 12)).defects
    assert "a's shape and dtype need" in size.message


def test_empty_tensor_takes_no_bytes_and_no_blame(file: Path) -> None:
    header: dict[str, object] = {
        "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "e": {"dtype": "F32", "shape": [0, 7], "data_offsets": [24, 24]},
        "f": {"dtype": "F32", "shape": [3, 0, 5], "data_offsets": [24, 24]},
        "s": {"dtype": "F32", "shape": [], "data_offsets": [24, 28]},
    }
    found = read(write(file, header, 28))
    assert found.defects == ()
    assert (found.tensors["e"].strides, found.tensors["f"].strides) == ((7, 1), (5, 5, 1))  # as torch has them
    assert (found.tensors["e"].numel, found.tensors["s"].numel, found.tensors["s"].strides) == (0, 1, ())


SIZES = st.lists(st.tuples(st.sampled_from(sorted(DTYPES)), st.lists(st.integers(0, 5), max_size=3)), max_size=6)


@settings(derandomize=True, deadline=None, max_examples=150)
@given(SIZES, st.randoms(use_true_random=False))
def test_reader_any_sound_layout_in_any_order_has_no_defect(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[tuple[str, list[int]]], order: object
) -> None:
    header: dict[str, object] = {}
    position = 0
    for number, (dtype, shape) in enumerate(sizes):
        count = 1
        for size in shape:
            count *= size
        if count * ITEMSIZE_BITS[DTYPES[dtype]] % 8:
            shape, count = [*shape, 4], count * 4
        end = position + count * ITEMSIZE_BITS[DTYPES[dtype]] // 8
        header[f"t{number}"] = {"dtype": dtype, "shape": shape, "data_offsets": [position, end]}
        position = end
    names = list(header)
    order.shuffle(names)  # type: ignore[attr-defined]
    path = tmp_path_factory.mktemp("sound") / "model.safetensors"
    found = read(write(path, {name: header[name] for name in names}, position))
    assert found.defects == ()
    assert {name: list(tensor.shape) for name, tensor in found.tensors.items()} == {
        name: entry["shape"]  # type: ignore[index]
        for name, entry in header.items()
    }


@settings(derandomize=True, deadline=None, max_examples=400)
@given(st.data())
def test_reader_any_damaged_header_is_an_error_or_a_checkpoint_never_a_crash(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    text = bytearray(b'{"__metadata__":{"format":"pt"},"a":' + ENTRY + b',"b":["F16",[4],[24,32]]}')
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text) - 1))
        text[at : at + data.draw(st.integers(0, 3))] = data.draw(
            st.sampled_from(
                [b'"', b"{", b"}", b"[", b"]", b",", b":", b"-", b"9", b"\x00", b"\xc3", b"null", b"1e9", b""]
            )
        )
    path = write(tmp_path_factory.mktemp("damaged") / "model.safetensors", bytes(text), 32)
    try:
        read(path)
    except ReadError as error:
        assert str(error).isprintable()  # noqa: PT017  either outcome is right, a crash is not
