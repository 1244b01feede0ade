"""Tensors of a pickle: what each rebuild call says, and views held against their storages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gqacheck.checkpoint import TensorInfo
from gqacheck.errors import ReadError
from gqacheck.formats.source import Source
from gqacheck.formats.torch_zip import TorchFile, read_torch_zip
from gqacheck.testing.writers import (
    Global,
    Instance,
    PickleWriter,
    Raw,
    Reduce,
    Storage,
    Tensor,
    ordered_dict,
    tensor,
    write_torch_zip,
)

FLOATS = tensor((4, 6), "float32", bytes(range(96)))


def read(path: Path, value: object) -> TorchFile:
    write_torch_zip(path / "x.bin", value)
    with Source.open(path / "x.bin") as source:
        return read_torch_zip(source)


def one(path: Path, call: object) -> TensorInfo:
    """The tensor that one rebuild call makes, beside a plain one."""
    found = read(path, {"x": call, "y.weight": FLOATS})
    assert found.defects == ()
    return found.tensors["x"]


def utils(name: str, *args: object, module: str = "torch._utils", **more: Any) -> Reduce:
    return Reduce(Global(module, name), args, **more)


def reference(
    numel: object = 24, *, key: object = "7", storage: object = Global("torch", "FloatStorage"), kind: str = "storage"
) -> Raw:
    """A persistent id, spelled out, so that every part can be wrong."""
    writer = PickleWriter()
    writer.out.clear()
    writer.save((kind, storage, key, "cpu", numel))
    return Raw(bytes(writer.out) + b"Q")


def view(size: object = (4, 6), stride: object = (6, 1), offset: object = 0, storage: object | None = None) -> Reduce:
    return utils("_rebuild_tensor_v2", reference() if storage is None else storage, offset, size, stride, False, None)


def test_parameter_is_told_from_a_tensor(tmp_path: Path) -> None:
    assert one(tmp_path, tensor((2,), parameter=True)).kind == "parameter"
    assert one(tmp_path, tensor((2,))).kind == "tensor"


@pytest.mark.parametrize(
    "wrap",
    [
        lambda inner: utils("_rebuild_parameter", inner, True, ordered_dict()),
        lambda inner: utils("_rebuild_parameter_with_state", inner, True, ordered_dict(), {"seen": True}),
        lambda inner: Reduce(Global("torch.nn.parameter", "Parameter"), (inner, True)),
        lambda inner: Reduce(Global("torch.autograd.variable", "Variable"), (inner,), state=(True, False, None)),
    ],
)  # fmt: skip
def test_wrapped_tensor_keeps_its_layout(tmp_path: Path, wrap: Any) -> None:
    found = one(tmp_path, wrap(FLOATS))
    assert (found.shape, found.strides, found.dtype, found.kind) == ((4, 6), (6, 1), "float32", "parameter")


@pytest.mark.parametrize("name", ["_rebuild_from_type_v2", "_rebuild_from_type"])
@pytest.mark.parametrize("module", ["torch._tensor", "torch.tensor"])
def test_tensor_with_attributes_is_read_through(tmp_path: Path, name: str, module: str) -> None:
    rebuild = Global("torch._utils", "_rebuild_parameter")
    kind = Global("torch.nn.parameter", "Parameter")
    found = one(tmp_path, utils(name, rebuild, kind, (FLOATS, True, ordered_dict()), {"a": 1}, module=module))
    assert (found.shape, found.kind) == ((4, 6), "parameter")


def test_tensor_v3_takes_its_own_dtype(tmp_path: Path) -> None:
    bytes24 = Storage(bytes(24), "uint8")
    inner = Tensor(bytes24, (24,), (1,))
    call = utils(
        "_rebuild_tensor_v3",
        reference(24, storage=Global("torch.storage", "UntypedStorage")),
        0, (4, 6), (6, 1), False, ordered_dict(), Global("torch", "float8_e4m3fn"),
    )  # fmt: skip
    found = read(tmp_path, {"x": call, "y.weight": inner})
    assert (found.tensors["x"].dtype, found.tensors["x"].shape) == ("float8_e4m3fn", (4, 6))
    assert found.tensors["x"].storage is not None
    assert found.tensors["x"].storage.declared_nbytes == 24


def test_size_object_is_a_shape(tmp_path: Path) -> None:
    found = read(tmp_path, {"x": view(Reduce(Global("torch", "Size"), ((4, 6),)))})
    assert found.tensors["x"].shape == (4, 6)


def test_meta_tensor_has_a_shape_and_no_storage(tmp_path: Path) -> None:
    call = utils("_rebuild_meta_tensor_no_storage", Global("torch", "float16"), (3, 5), (5, 1), False)
    file = read(tmp_path, {"x": call, "y.weight": FLOATS})
    found = file.tensors["x"]
    assert (found.shape, found.dtype, found.strides, found.storage) == ((3, 5), "float16", (5, 1), None)
    assert file.ignored == ("x: on the meta device, without values",)


def test_wrapper_subclass_has_a_shape_and_no_storage(tmp_path: Path) -> None:
    call = utils("_rebuild_wrapper_subclass", Global("torchao", "Packed"), Global("torch", "bfloat16"), (3, 5), (5, 1))
    file = read(tmp_path, {"x": call, "y.weight": FLOATS})
    assert (file.tensors["x"].shape, file.tensors["x"].storage) == ((3, 5), None)
    assert file.ignored == ("x: an instance of torchao.Packed, without values of its own",)


@pytest.mark.parametrize(
    "call",
    [
        utils("_rebuild_sparse_tensor", Global("torch", "sparse_coo"), (tensor((2, 3), "int64"), FLOATS, (9, 8), True)),
        utils("_rebuild_sparse_csr_tensor", Global("torch", "sparse_csr"),
              (tensor((3,), "int64"), tensor((3,), "int64"), FLOATS, (9, 8))),
    ],
)  # fmt: skip
def test_sparse_tensor_has_its_dense_shape_and_no_storage(tmp_path: Path, call: Reduce) -> None:
    file = read(tmp_path, {"x": call, "y.weight": FLOATS})
    found = file.tensors["x"]
    assert (found.shape, found.dtype, found.strides, found.storage) == ((9, 8), "float32", (8, 1), None)
    assert "sparse" in file.ignored[0]


def test_quantized_tensor_keeps_its_packed_dtype(tmp_path: Path) -> None:
    storage = reference(24, storage=Global("torch", "QInt8Storage"))
    call = utils(
        "_rebuild_qtensor", storage, 0, (4, 6), (6, 1), (Global("torch", "per_tensor_affine"), 0.1, 0), False, None
    )
    file = read(tmp_path, {"x": call, "y.weight": FLOATS})
    assert (file.tensors["x"].dtype, file.tensors["x"].shape) == ("qint8", (4, 6))
    assert file.ignored == ("x: quantized by torch",)


def test_same_tensor_twice_shares_its_storage(tmp_path: Path) -> None:
    file = read(tmp_path, {"a.weight": FLOATS, "b.weight": FLOATS})
    assert file.tensors["a.weight"].storage is file.tensors["b.weight"].storage


# --- views against their storages


def bounds(path: Path, size: tuple[int, ...], stride: tuple[int, ...], offset: int) -> list[tuple[Any, ...]]:
    """Bounds defects (expected, actual) of one view of 24 float32; the tensor itself must be there all the same."""
    file = read(path, {"x.weight": Tensor(FLOATS.storage, size, stride, offset)})
    assert file.tensors["x.weight"].shape == size
    return [(defect.expected, defect.actual, defect.tensors) for defect in file.defects]


@pytest.mark.parametrize(
    ("size", "stride", "offset"),
    [
        ((4, 6), (6, 1), 0), ((6, 4), (1, 6), 0), ((4, 3), (6, 2), 1), ((24,), (1,), 0), ((1,), (1,), 23), ((), (), 23),
        ((1000, 1000), (0, 0), 23),
        ((2, 1), (12, 99), 0), ((0,), (1,), 24), ((0, 5), (9, 9), 0), ((1, 24), (10**9, 1), 0),
    ],
)  # fmt: skip
def test_view_within_its_storage_is_no_defect(
    tmp_path: Path, size: tuple[int, ...], stride: tuple[int, ...], offset: int
) -> None:
    assert bounds(tmp_path, size, stride, offset) == []


@pytest.mark.parametrize(
    ("size", "stride", "offset", "actual"),
    [
        ((25,), (1,), 0, 25), ((24,), (1,), 1, 25), ((4, 6), (7, 1), 0, 27), ((4, 7), (6, 1), 0, 25), ((), (), 24, 25),
        ((2,), (2**62,), 0, 2**62 + 1), ((3,), (2**63 - 1,), 2**63 - 1, 3 * (2**63 - 1) + 1),
        ((1,), (1,), 2**64, 2**64 + 1),
        ((4, 6), (-6, 1), 0, -18), ((2,), (-1,), 0, -1), ((1,), (1,), -5, -5), ((0,), (1,), -5, -5),
    ],
)  # fmt: skip
def test_view_outside_its_storage_is_a_defect_with_both_numbers(
    tmp_path: Path, size: tuple[int, ...], stride: tuple[int, ...], offset: int, actual: int
) -> None:
    assert bounds(tmp_path, size, stride, offset) == [(24, actual, ("x.weight",))]


def test_storage_that_claims_more_than_it_holds_is_a_defect(tmp_path: Path) -> None:
    # torch.load(mmap=True, weights_only=True) takes such a file and hands out the neighbours' bytes
    lying = Tensor(Storage(bytes(96), "float32", declared=30), (5, 6), (6, 1))
    first, second = read(tmp_path, {"x.weight": lying}).defects
    assert (first.kind, first.expected, first.actual, first.unit) == ("storage-bounds", 120, 96, "bytes")
    assert (second.kind, second.expected, second.actual, second.unit) == ("storage-bounds", 24, 30, "elements")


def test_one_storage_with_two_sizes_is_ambiguous(tmp_path: Path) -> None:
    file = read(tmp_path, {"a.weight": view(storage=reference(24)), "b.weight": view(storage=reference(30))})
    kinds = [(defect.kind, defect.expected, defect.actual) for defect in file.defects]
    assert ("ambiguous", 24, 30) in kinds


def test_defects_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gqacheck.formats.torch_tensors.MAX_DEFECTS", 5)
    bad = {f"{i}.weight": view((99,), (1,)) for i in range(10)}
    with pytest.raises(ReadError, match="more than 5 tensors do not fit their storages"):
        read(tmp_path, bad)


def test_tensors_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gqacheck.formats.torch_tensors.MAX_TENSORS", 5)
    with pytest.raises(ReadError, match="names more than 5 tensors"):
        read(tmp_path, {f"{i}.weight": FLOATS for i in range(6)})


# --- what is no tensor


HALF = Global("torch", "HalfStorage")


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (view((4, True)), "the shape of a tensor holds a value of type bool"),
        (view((4, "6")), "the shape of a tensor holds a value of type str"),
        (view((4, 6.0)), "the shape of a tensor holds a value of type float"),
        (view((4, None)), "the shape of a tensor holds a value of type NoneType"),
        (view([4, 6]), "the shape of a tensor is a value of type list"),
        (view("46"), "the shape of a tensor is a value of type str"),
        (view(24), "the shape of a tensor is a value of type int"),
        (view((4, -6)), "its shape holds the size -6"),
        (view((2**40, 2**40), (0, 0)), "more than 9223372036854775807 elements"),
        (view((0, 2**64), (0, 0)), "more than 9223372036854775807 elements"),
        (view((1,) * 65, (1,) * 65), "has 65 entries"),
        (view((4, 6), (6,)), "2 sizes but 1 strides"),
        (view((4, 6), (6, False)), "the strides of a tensor holds a value of type bool"),
        (view(offset="0"), "its storage offset is a value of type str"),
        (view(offset=True), "its storage offset is a value of type bool"),
        (view(storage="0"), "its storage is a value of type str"),
        (view(storage=tensor((1,))), "its storage is a value of type Obj"),
        (view(storage=reference(True)), "the size of storage 7 is a value of type bool"),
        (view(storage=reference("24")), "the size of storage 7 is a value of type str"),
        (view(storage=reference(-1)), "the size of storage 7 is -1"),
        (view(storage=reference(2**63)), "which no tensor can have"),
        (view(storage=reference(key=7)), "named by something that is no short text"),
        (view(storage=reference(storage=Global("os", "system"))), "unknown class os.system"),
        (view(storage=reference(storage="FloatStorage")), "unknown class str"),
        (view(storage=reference(kind="module")), "a reference to something that is no storage"),
        (utils("_rebuild_tensor_v2", reference(), 0), "_rebuild_tensor_v2 was given only 2 arguments"),
        (utils("_rebuild_tensor_v3", reference(), 0, (4, 6), (6, 1), False, None, 5), "its dtype is a value of type"),
        (utils("_rebuild_tensor_v3", reference(), 0, (4, 6), (6, 1), False, None, Global("os", "system")),
         "its dtype is os.system, which is unknown"),
        (utils("_rebuild_parameter", 5, True, None), "a value of type int stands where a tensor belongs"),
        (utils("_rebuild_from_type_v2", 5, 6, (FLOATS,), None, module="torch._tensor"), "stands where a tensor"),
        (utils("_rebuild_from_type_v2", Global("os", "system"), 6, ("rm",), None, module="torch._tensor"),
         "stands where a tensor belongs"),
        (utils("_rebuild_from_type_v2", 5, 6, [FLOATS], None, module="torch._tensor"), "a tuple of arguments"),
        (utils("_rebuild_sparse_tensor", 5, 6), "not given its parts"),
        (utils("_rebuild_device_tensor_from_numpy", 5, 6), "save the model on the CPU"),
        (utils("_rebuild_tensor_v2", Reduce(Global("torch.storage", "_load_from_bytes"), ("x",)), 0, (1,), (1,)),
         "written by plain pickle, not by torch.save"),
        (utils("_rebuild_tensor_v2", reference(), 0, (4, 6), (6, 1), False, None, state=(reference(), 0, (9,), (1,))),
         "replaced after it was made"),
    ],
)  # fmt: skip
def test_call_that_makes_no_tensor_is_a_clear_error(tmp_path: Path, call: object, said: str) -> None:
    with pytest.raises(ReadError) as caught:
        read(tmp_path, {"model.x.weight": call, "y.weight": FLOATS})
    assert said in str(caught.value)
    assert "x.bin: tensor model.x.weight: " in str(caught.value)


def test_one_storage_under_two_dtypes_is_a_clear_error(tmp_path: Path) -> None:
    value = {"a.weight": view(), "b.weight": view(storage=reference(storage=HALF))}
    with pytest.raises(ReadError, match="storage 7 is used as float32 and as float16"):
        read(tmp_path, value)


def test_deep_wrapping_is_a_clear_error(tmp_path: Path) -> None:
    wrapped: object = FLOATS
    for _ in range(200):
        wrapped = utils("_rebuild_parameter", wrapped, True, None)
    with pytest.raises(ReadError, match="wrapped more than 16 times"):
        read(tmp_path, {"x": wrapped, "y.weight": FLOATS})


def test_million_deep_wrapping_is_no_tensor(tmp_path: Path) -> None:
    # the class called with itself, 300,000 levels down: told as no tensor, without recursion
    nested = Raw(b"ctorch.nn.parameter\nParameter\nq\x010" + b"h\x01" * 300_000 + b")" + b"R\x85" * 299_999 + b"R")
    file = read(tmp_path, {"x": nested, "y.weight": FLOATS, "w.weight": FLOATS, "v.weight": FLOATS})
    assert sorted(file.tensors) == ["v.weight", "w.weight", "y.weight"]


def test_object_that_is_no_tensor_is_told(tmp_path: Path) -> None:
    file = read(tmp_path, {"x._extra_state": Instance(Global("io", "BytesIO")), "y.weight": FLOATS})
    assert file.ignored == ("x._extra_state: an object of class io.BytesIO, not a tensor",)
