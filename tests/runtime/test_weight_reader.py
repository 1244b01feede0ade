"""Bytes of a file as tensors: read into memory where rows follow each other, through a mapping where they do not."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gqacheck.checkpoint import StorageInfo, TensorInfo
from gqacheck.errors import ReadError
from gqacheck.runtime import weights
from gqacheck.runtime.weights import WeightReader, cast_to

VIEWS = {
    "rows": ((4, 6), (6, 1), 0),
    "some rows": ((2, 6), (6, 1), 6),
    "one row": ((1, 6), (77, 1), 12),
    "transposed": ((6, 4), (1, 6), 0),
    "every other column": ((4, 3), (6, 2), 1),
    "repeated": ((3, 6), (0, 1), 6),
    "one number": ((), (), 5),
}


def stored(tmp_path: Path, view: str) -> tuple[TensorInfo, torch.Tensor]:
    values = (torch.arange(24) - 7).to(torch.float16)
    path = tmp_path / "w"
    path.write_bytes(b"xyz" + values.numpy().tobytes())
    shape, strides, offset = VIEWS[view]
    info = TensorInfo("w", shape, "float16", strides, offset, StorageInfo(str(path), "0", 3, 48, 48))
    return info, values.as_strided(shape, strides, offset)


@pytest.mark.parametrize("most", [0, 1 << 26], ids=["one copy in memory", "two"])
@pytest.mark.parametrize("dtype", [None, torch.float16, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("view", VIEWS)
def test_every_view_is_read_as_torch_sees_it(
    view: str, dtype: torch.dtype | None, most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "_TWICE_IN_MEMORY", most)
    info, expected = stored(tmp_path, view)
    with WeightReader() as reader:
        read = reader.read(info, dtype=dtype)
    assert torch.equal(read, expected.to(dtype or torch.float16))
    assert read.dtype == (dtype or torch.float16)
    read += 1  # its own memory, and no element of it twice
    assert torch.equal(read, (expected + 1).to(read.dtype))
    assert Path(tmp_path / "w").read_bytes()[3:] == (torch.arange(24) - 7).to(torch.float16).numpy().tobytes()


@pytest.mark.parametrize("view", VIEWS)
def test_every_view_of_a_file_that_shrank_is_refused(view: str, tmp_path: Path) -> None:
    info, _ = stored(tmp_path, view)
    with WeightReader() as reader:
        reader.read(info)
        os.truncate(tmp_path / "w", 3 + 2 * info.storage_offset)
        with pytest.raises(ReadError, match="w lies past the end of w: the file is truncated"):
            reader.read(info)


def test_a_file_that_went_away_is_a_read_error_for_every_view(tmp_path: Path) -> None:
    for view in VIEWS:
        info, _ = stored(tmp_path, view)
        (tmp_path / "w").unlink()
        with WeightReader() as reader, pytest.raises(ReadError, match="cannot read the weights in"):
            reader.read(info)


def test_a_shape_is_had_without_reading_and_still_checked(tmp_path: Path) -> None:
    info, expected = stored(tmp_path, "rows")
    (tmp_path / "w").unlink()
    with WeightReader() as reader:
        read = reader.read(info, dtype=torch.float32, device="meta")
        assert (read.shape, read.dtype, read.is_meta) == (expected.shape, torch.float32, True)
        with pytest.raises(ReadError, match="but the file holds 48"):
            reader.read(replace(info, shape=(9, 6)), device="meta")


def test_half_precision_is_rounded_once_on_the_way_to_bfloat16() -> None:
    every = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.float16)
    made, expected = cast_to(every, torch.bfloat16), every.to(torch.bfloat16)
    numbers = ~every.isnan()
    assert torch.equal(made[numbers].view(torch.int16), expected[numbers].view(torch.int16))
    assert bool(made[~numbers].isnan().all())
    assert cast_to(every, torch.float16) is every


def test_a_model_read_on_demand_leaves_the_number_of_threads_as_it_was() -> None:
    from torch import nn

    from gqacheck.runtime import on_demand

    class Model(nn.Module):
        def forward(self, fail: bool) -> int:
            if fail:
                raise ValueError
            return torch.get_num_threads()

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        model = Model()
        on_demand._run_alone(model)
        assert model(False) == 1
        assert torch.get_num_threads() == 2
        with pytest.raises(ValueError):  # noqa: PT011
            model(True)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
