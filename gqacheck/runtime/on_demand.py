"""A model whose weights are read from their files when they are needed, and let go again.

A model of any size runs in the memory of its widest row and one block; slow, and meant for a single forward pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import wraps
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from gqacheck.checkpoint import TensorInfo
from gqacheck.runtime.configure import CannotRun
from gqacheck.runtime.layouts import Source
from gqacheck.runtime.weights import WeightReader, cast_to

BLOCK = 1 << 19
"""Elements of a projection that are in memory at once; by shape and not by bytes, so that two files that hold the
same in different dtypes are multiplied in the same pieces. Few enough to stay in the processor's cache."""
_KEPT = 1 << 24
MOST_AT_ONCE = 1 << 29
"""Elements of one layer, projections left out (stacked experts), that are still read whole."""


def read_on_demand(
    model: Any,
    layers: list[Any],
    sources: Mapping[str, Source],
    *,
    dtype: torch.dtype = torch.float32,
    rounded: torch.dtype | None = None,
) -> None:
    """Makes ``model``, whose parameters are on ``meta``, read them in ``dtype`` while it runs.

    layers: the decoder layers. sources: what each parameter is made of. rounded: a dtype that every number is cast to
    on the way.

    Raises:
        CannotRun: a layer holds more outside of its projections than is read at once.
    """
    reader = _Reader(sources, dtype, rounded)
    names = {id(parameter): name for name, parameter in model.named_parameters()}  # a tied lm_head reads the embedding
    embedding = model.get_input_embeddings()
    for module in model.modules():
        if module is embedding:
            _gather(module, names[id(module.weight)], reader)
        elif type(module) is nn.Linear:
            _multiply_by_blocks(module, names, reader)
    for layer in layers:
        _whole(layer, _others(layer, names), reader)
    inside = {id(module) for layer in layers for module in layer.modules()}
    for module in model.modules():
        if id(module) not in inside and module is not embedding and type(module) is not nn.Linear:
            _whole(module, _own(module, names), reader)
    _run_alone(model)


def _run_alone(model: Any) -> None:
    """Blocks this small are not shared out: torch's threads would wait for each other at the end of every single one.

    Nor is their memory given back after each: that takes as long as reading them.
    """
    forward = model.forward

    @wraps(forward)
    def alone(*arguments: Any, **options: Any) -> Any:
        torch.empty(_KEPT, dtype=torch.uint8)  # once a piece of this size is freed, glibc keeps smaller ones
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return forward(*arguments, **options)
        finally:
            torch.set_num_threads(threads)

    model.forward = alone


def quick_dtype() -> torch.dtype:
    """bfloat16 where the processor multiplies it, several times as fast as float32; else float32."""
    quick = torch._C._has_mkldnn and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if quick else torch.float32


class _Reader:
    def __init__(self, sources: Mapping[str, Source], dtype: torch.dtype, rounded: torch.dtype | None) -> None:
        self._sources, self._dtype, self._rounded = sources, dtype, rounded

    def whole(self, name: str) -> torch.Tensor:
        with WeightReader() as reader:
            return self._settled(self._sources[name].load(reader, None, "cpu"))

    def rows(self, name: str, start: int, count: int) -> torch.Tensor:
        """Rows of a parameter that is one stored tensor; of any other, cut out of the whole."""
        source = self._sources[name]
        if source.per_expert:
            return self.whole(name)[start : start + count]
        with WeightReader() as reader:
            return self._settled(reader.read(_rows(source.parts[0], start, count)))

    def _settled(self, values: torch.Tensor) -> torch.Tensor:
        values = values if self._rounded is None else cast_to(values, self._rounded)
        return cast_to(values, self._dtype).contiguous()


def _rows(info: TensorInfo, start: int, count: int) -> TensorInfo:
    offset = info.storage_offset + start * info.strides[0]
    return replace(info, shape=(count, *info.shape[1:]), storage_offset=offset)


def _multiply_by_blocks(module: nn.Linear, names: Mapping[int, str], reader: _Reader) -> None:
    weight, bias = names[id(module.weight)], None if module.bias is None else names[id(module.bias)]
    n_rows, columns = module.weight.shape
    step = max(1, BLOCK // max(columns, 1))

    def forward(values: torch.Tensor) -> torch.Tensor:
        added = None if bias is None else reader.whole(bias)
        made = values.new_empty((*values.shape[:-1], n_rows))
        for start in range(0, n_rows, step):
            stop = min(start + step, n_rows)
            part = None if added is None else added[start:stop]
            made[..., start:stop] = functional.linear(values, reader.rows(weight, start, stop - start), part)
        return made

    module.forward = forward  # type: ignore[method-assign, assignment]


def _gather(module: Any, name: str, reader: _Reader) -> None:
    """The rows of the ids that come in stand in for the table."""

    def before(_: Any, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        ids, places = torch.unique(arguments[0], return_inverse=True)
        rows = torch.cat([reader.rows(name, int(number), 1) for number in ids])
        module.weight = nn.Parameter(rows, requires_grad=False)
        return (places, *arguments[1:])

    module.padding_idx = None  # only gradients ask for it, and it may lie outside of these rows
    module.register_forward_pre_hook(before)


def _others(layer: nn.Module, names: Mapping[int, str]) -> list[tuple[nn.Module, str, str]]:
    """(owner, attribute, name) of a layer's parameters that belong to no projection."""
    found: list[tuple[nn.Module, str, str]] = []
    for module in layer.modules():
        if type(module) is nn.Linear:
            continue
        found += _own(module, names)
    size = sum(getattr(owner, leaf).numel() for owner, leaf, _ in found)
    if size > MOST_AT_ONCE:
        raise CannotRun(f"a layer holds {size:,} numbers in stacked experts, too many to read at once", supported=False)
    return found


def _own(module: nn.Module, names: Mapping[int, str]) -> list[tuple[nn.Module, str, str]]:
    return [(module, leaf, names[id(p)]) for leaf, p in module._parameters.items() if p is not None]


def _whole(module: nn.Module, entries: list[tuple[nn.Module, str, str]], reader: _Reader) -> None:
    """Reads ``entries`` before ``module`` runs and lets go of them afterwards."""
    if not entries:
        return

    def before(_: Any, __: Any) -> None:
        for owner, leaf, name in entries:
            setattr(owner, leaf, nn.Parameter(reader.whole(name), requires_grad=False))

    def after(_: Any, __: Any, ___: Any) -> None:
        for owner, leaf, _name in entries:
            values = getattr(owner, leaf)
            setattr(owner, leaf, nn.Parameter(torch.empty_like(values, device="meta"), requires_grad=False))

    module.register_forward_pre_hook(before)
    module.register_forward_hook(after)
