"""The safetensors reader beside the safetensors library: what one accepts the other must read alike."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gqacheck.errors import ReadError
from gqacheck.formats import open_checkpoint
from gqacheck.formats.safetensors import DTYPES, read_safetensors
from gqacheck.formats.source import Source

Tensors = dict[str, tuple[str, tuple[int, ...], bytes]]

HEADER = {
    "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b": {"dtype": "F16", "shape": [4], "data_offsets": [24, 32]},
    "c": {"dtype": "F32", "shape": [0], "data_offsets": [32, 32]},
    "__metadata__": {"format": "pt", "x": "\U0001f600\n"},
}
PIECES = [
    b'"', b"{", b"}", b"[", b"]", b",", b":", b"0", b"1", b"9", b"-", b".", b"e", b" ", b"\\", b"u", b"F32", b"F16",
    b"BF16", b"F4", b"null", b"true", b"NaN", b'"a"', b'"dtype"', b'"shape"', b"\x00", b"\xc3\xa9", b"24", b"32",
    b"\\ud800", b"18446744073709551616", b'"x":1,', b"1e999", b'{"F32":null}', b'["F16",[4],[24,32]]', b"[" * 126,
]  # fmt: skip


def read_with_library(data: bytes) -> Tensors | None:
    """The tensors that the library finds, None when it refuses the file."""
    try:
        found: list[tuple[str, dict[str, Any]]] = safetensors.deserialize(data)
    except safetensors.SafetensorError:
        return None
    return {name: (entry["dtype"], tuple(entry["shape"]), bytes(entry["data"])) for name, entry in found}


def read_with_gqacheck(path: Path) -> Tensors | None:
    """The tensors that gqacheck finds, None when it refuses the file or finds its layout at fault."""
    names = {ours: theirs for theirs, ours in DTYPES.items()}
    data = path.read_bytes()
    try:
        with Source.open(path) as source:
            found = read_safetensors(source)
    except ReadError:
        return None
    if any(defect.kind != "ambiguous" for defect in found.defects):
        return None
    tensors: Tensors = {}
    for name, tensor in found.tensors.items():
        assert tensor.storage is not None
        begin = tensor.storage.offset
        tensors[name] = (names[tensor.dtype], tensor.shape, data[begin : begin + tensor.storage.nbytes])
    return tensors


@settings(derandomize=True, deadline=None, max_examples=1000)
@given(data=st.data())
def test_reader_agrees_with_the_library_on_any_mutated_file(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    text = bytearray(json.dumps(HEADER).encode())
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, len(text) - 1))
        action = data.draw(st.sampled_from(["put", "cut", "copy", "byte"]))
        if action == "put":
            text[at : at + data.draw(st.integers(0, 3))] = data.draw(st.sampled_from(PIECES))
        elif action == "cut":
            del text[at : at + data.draw(st.integers(1, 6))]
        elif action == "copy":
            start = data.draw(st.integers(0, len(text) - 1))
            text[at:at] = text[start : start + data.draw(st.integers(1, 60))]
        else:
            text[at] = data.draw(st.integers(0, 255))
        text = text or bytearray(b"{}")
    body = bytes(range(data.draw(st.sampled_from([32, 32, 32, 32, 31, 33, 0]))))
    length = len(text) + data.draw(st.sampled_from([0, 0, 0, 0, 0, 1, -1, 1000]))
    content = struct.pack("<Q", max(0, length)) + bytes(text) + body
    path = tmp_path_factory.getbasetemp() / "mutated.safetensors"
    path.write_bytes(content)
    assert read_with_gqacheck(path) == read_with_library(content)


def test_reader_reads_every_dtype_that_torch_writes(tmp_path: Path) -> None:
    names = [
        "bool", "uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float16", "bfloat16",
        "float32", "float64", "complex64", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz",
        "float8_e8m0fnu",
    ]  # fmt: skip
    tensors = {name: torch.zeros(2, 3).to(getattr(torch, name)) for name in names}
    tensors["scalar"] = torch.tensor(1.0)
    tensors["empty"] = torch.zeros(0, 5)
    safetensors.torch.save_file(tensors, tmp_path / "all.safetensors", metadata={"format": "pt"})
    found = open_checkpoint(tmp_path / "all.safetensors")
    assert found.defects == ()
    assert {name: (f"torch.{tensor.dtype}", tensor.shape) for name, tensor in found.tensors.items()} == {
        name: (str(tensor.dtype), tuple(tensor.shape)) for name, tensor in tensors.items()
    }


def test_reader_duplicate_name_reads_the_one_that_the_library_reads(tmp_path: Path) -> None:
    text = (
        b'{"a":{"dtype":"F32","shape":[5],"data_offsets":[0,20]},"a":{"dtype":"F32","shape":[6],"data_offsets":[0,24]}}'
    )
    path = tmp_path / "twice.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(24))
    found = open_checkpoint(path)
    assert read_with_gqacheck(path) == read_with_library(path.read_bytes())
    assert [defect.kind for defect in found.defects] == ["ambiguous"]
