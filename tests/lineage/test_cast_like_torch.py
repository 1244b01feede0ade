"""The standard library's casts beside torch's, over every bit pattern of 16 bits and many of 32."""

from __future__ import annotations

import pytest
import torch

from gqacheck.lineage.cast import cast

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}


def patterns(dtype: torch.dtype) -> torch.Tensor:
    if dtype.itemsize == 2:
        return torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(dtype)
    generator = torch.Generator().manual_seed(3)
    bits = torch.randint(-(1 << 31), (1 << 31) - 1, (200_000,), generator=generator, dtype=torch.int64)
    values = bits.to(torch.int32).view(torch.float32)
    halfway = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int64).to(torch.int32).mul(1 << 16).add(1 << 15)
    return torch.cat([values, halfway.view(torch.float32)]).to(dtype)


@pytest.mark.parametrize("target", DTYPES)
@pytest.mark.parametrize("source", DTYPES)
def test_cast_gives_the_bits_that_torch_gives(source: str, target: str) -> None:
    values = patterns(DTYPES[source])
    values = values[~values.isnan()]
    expected = values.to(DTYPES[target])
    got = cast(values.view(torch.uint8).numpy().tobytes(), source, target)
    assert torch.equal(torch.frombuffer(bytearray(got), dtype=DTYPES[target]), expected)
