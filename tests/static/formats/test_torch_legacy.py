"""Files of before torch 1.6: five pickles, then the storages one after the other."""

from __future__ import annotations

import io
import pickle
import struct
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gqacheck.errors import NotACheckpoint, ReadError
from gqacheck.formats.source import Source
from gqacheck.formats.torch_legacy import MAGIC, TorchFile, read_torch_legacy
from gqacheck.testing.sketch import sketch_llama
from gqacheck.testing.writers import (
    Global,
    Instance,
    PickleWriter,
    Raw,
    Reduce,
    ordered_dict,
    tensor,
    write_torch_legacy,
)

SKETCH = sketch_llama(n_layers=1, hidden_size=24, n_q_heads=3, n_kv_heads=1, vocab_size=8, intermediate_size=8, seed=1)
SYSTEM = {"protocol_version": 1001, "little_endian": True}


class Memory(Source):
    """Bytes in memory, read as a file."""

    def __init__(self, data: bytes) -> None:
        super().__init__("memory.bin", 0, len(data))
        self.data = data

    def _fetch(self, offset: int, n: int) -> bytes:
        return self.data[offset : offset + n]

    def close(self) -> None:
        """There is nothing to close."""


def read(data: bytes) -> TorchFile:
    return read_torch_legacy(Memory(data))


def reference(key: str, numel: int, *, cls: str = "FloatStorage", view: Any = None) -> Raw:
    writer = PickleWriter()
    writer.out.clear()
    writer.save(("storage", Global("torch", cls), key, "cpu", numel, view))
    return Raw(bytes(writer.out) + b"Q")


def view(storage: Raw, *size: int) -> Reduce:
    stride = tuple(range(len(size), 0, -1)) if len(size) > 1 else (1,)
    return Reduce(Global("torch._utils", "_rebuild_tensor_v2"), (storage, 0, size, stride, False, None))


def legacy(
    value: object, keys: object, *storages: bytes, magic: int = MAGIC, protocol: int = 1001, system: object = SYSTEM
) -> bytes:
    heads = b"".join(pickle.dumps(head, 2) for head in (magic, protocol, system))
    return heads + PickleWriter(legacy=True).finish(value) + pickle.dumps(keys, 2) + b"".join(storages)


def block(numel: int, data: bytes) -> bytes:
    return struct.pack("<q", numel) + data


@pytest.mark.parametrize("module", [False, True])
def test_sketch_is_read_with_every_byte_at_its_place(tmp_path: Path, module: bool) -> None:
    path = SKETCH.write_legacy(tmp_path / "x.bin", module=module)
    with Source.open(path) as source:
        found = read_torch_legacy(source)
    assert found.kind == ("module" if module else "state-dict")
    assert sorted(found.tensors) == sorted(SKETCH.tensors)
    whole = path.read_bytes()
    for name, drawn in SKETCH.tensors.items():
        storage = found.tensors[name].storage
        assert storage is not None
        assert whole[storage.offset : storage.offset + storage.nbytes] == drawn.storage.data
    assert found.defects == ()


def test_weights_are_not_read(tmp_path: Path) -> None:
    path = write_torch_legacy(
        tmp_path / "x.bin", {"big.weight": tensor((3000, 1000)), "b.weight": tensor((3000, 1000))}
    )
    with Source.open(path) as source:
        read_torch_legacy(source)
    assert source.size > 12_000_000
    assert source.bytes_read < 140_000


def test_view_of_a_storage_has_its_own_place() -> None:
    root, part = reference("r", 10), reference("r", 10, view=("v", 4, 3))
    data = legacy({"a.weight": view(root, 10), "b.weight": view(part, 3)}, ["r"], block(10, bytes(range(40))))
    found = read(data)
    storage = found.tensors["b.weight"].storage
    assert storage is not None
    assert (storage.key, storage.nbytes, storage.declared_nbytes) == ("v", 12, 12)
    assert data[storage.offset : storage.offset + 12] == bytes(range(16, 28))
    assert found.defects == ()


def test_view_past_its_storage_is_a_defect() -> None:
    part = reference("r", 10, view=("v", 8, 3))
    found = read(legacy({"b.weight": view(part, 3)}, ["r"], block(10, bytes(40))))
    record, tensor_view = found.defects
    assert (record.expected, record.actual) == (12, 8)
    assert (tensor_view.expected, tensor_view.actual) == (2, 3)


def test_class_with_its_source_text_is_data() -> None:
    # ('module', class, source file, source text): how torch saved the classes of whole modules
    writer = PickleWriter()
    writer.out.clear()
    writer.save(("module", Global("mine", "Net"), "/home/net.py", "import os; os.system('false')" * 20))
    made = Raw(bytes(writer.out) + b"Q)\x81")
    writer.out.clear()
    writer.save({"_parameters": ordered_dict({"weight": tensor((2,))}), "_buffers": {}, "_modules": {}})
    body = legacy(Raw(made.opcodes + bytes(writer.out) + b"b"), ["0"], block(2, bytes(4)))
    found = read(body)
    assert (found.kind, found.modules[""].class_name) == ("module", "mine.Net")
    assert "mine.Net" in found.globals


def test_file_cut_within_the_storages_keeps_its_shapes() -> None:
    value = {"a.weight": view(reference("0", 4), 4), "b.weight": view(reference("1", 4), 4)}
    whole = legacy(value, ["0", "1"], block(4, bytes(16)), block(4, bytes(16)))
    for cut in range(1, 40):
        found = read(whole[:-cut])
        assert sorted(found.tensors) == ["a.weight", "b.weight"]
        short = [defect for defect in found.defects if defect.unit == "bytes"]
        assert short[-1].expected == 16
        assert short[-1].actual == max(16 - cut, 0)


def test_storage_with_another_count_is_a_defect() -> None:
    found = read(legacy({"a.weight": view(reference("0", 4), 4)}, ["0"], block(3, bytes(12))))
    assert (found.defects[0].expected, found.defects[0].actual) == (16, 12)


def test_storage_without_a_key_is_a_defect() -> None:
    found = read(legacy({"a.weight": view(reference("0", 4), 4)}, []))
    assert (found.defects[0].expected, found.defects[0].actual) == (16, 0)


A = {"a.weight": view(reference("0", 4), 4)}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (legacy(A, ["0", "1"], block(4, bytes(16))), "names '1', which no tensor uses"),
        (legacy(A, ["0", "0"], block(4, bytes(16))), "names a storage twice"),
        (legacy(A, "0", block(4, bytes(16))), "no list of texts"),
        (legacy(A, [0], block(4, bytes(16))), "no list of texts"),
        (legacy(A, ["0"], block(-1, bytes(16))), "claims -1 elements"),
        (legacy(A, ["0"], block(2**62, bytes(16))), f"claims {2**62} elements"),
        (legacy(A, ["0"], protocol=1002), "its legacy protocol is not 1001"),
        (legacy(A, ["0"], system={"little_endian": False}), "big-endian"),
        (legacy(A | {"b.weight": view(reference("0", 4, cls="IntStorage"), 4)}, ["0"]),
         "storage 0 is used as 4 elements of float32 and as 4 of int32"),
        (legacy(A | {"b.weight": view(reference("0", 5), 4)}, ["0"]),
         "storage 0 is used as 4 elements of float32 and as 5 of float32"),
        (legacy({"a.weight": view(reference("0", 4, view=("v", -1, 2)), 2)}, ["0"]), "offset of a storage view is -1"),
        (legacy({"a.weight": view(reference("0", 4, view=("v", 0)), 2)}, ["0"]), "not described by a name, an offset"),
        (legacy({"a.weight": view(reference("0", 4, view=5), 2)}, ["0"]), "not described by a name, an offset"),
    ],
)  # fmt: skip
def test_file_that_contradicts_itself_is_a_clear_error(data: bytes, said: str) -> None:
    with pytest.raises(ReadError) as caught:
        read(data)
    assert said in str(caught.value)
    assert str(caught.value).startswith("memory.bin: ")


def test_other_pickle_is_no_checkpoint() -> None:
    with pytest.raises(NotACheckpoint, match="lacks torch's magic number"):
        read(pickle.dumps({"a": 1}))


def test_tar_of_torch_01_is_named() -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name in ("sys_info", "pickle", "tensors", "storages"):
            archive.addfile(tarfile.TarInfo(name))
    with pytest.raises(ReadError, match=r"a tar file of torch 0\.1"):
        read(out.getvalue())


@pytest.mark.parametrize("data", [b"", b"\x80", b"\x00" * 5000, b"not a checkpoint at all", b"<!DOCTYPE html>"])
def test_file_of_another_kind_is_a_clear_error(data: bytes) -> None:
    with pytest.raises(ReadError):
        read(data)


WHOLE = legacy(A | {"b": 5}, ["0"], block(4, bytes(16)))


def outcome(data: bytes) -> str:
    try:
        return read(data).kind
    except ReadError as error:
        return str(error)


def test_file_cut_within_the_pickles_is_a_clear_error() -> None:
    assert outcome(WHOLE) == "state-dict"
    for n in range(len(WHOLE) - 24):
        assert outcome(WHOLE[:n]).startswith("memory.bin: ")


@settings(derandomize=True, deadline=None, max_examples=400)
@given(st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4))
def test_file_with_bytes_changed_is_read_or_a_clear_error(changes: list[tuple[int, int]]) -> None:
    raw = bytearray(WHOLE)
    for at, byte in changes:
        raw[at % len(raw)] = byte
    assert "\n" not in outcome(bytes(raw))


def test_instance_of_the_sketch_writer_is_a_module() -> None:
    found = read(legacy(Instance(Global("a", "B"), {"_parameters": {}, "_buffers": {}, "_modules": {}}), []))
    assert found.kind == "module"
