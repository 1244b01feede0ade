"""Heads and channels removed from live tiny models by hand, layer by layer, so that the cut model still runs."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

# layer -> (query heads kept in each kept KV group, KV heads kept): 12:3 untouched, 8:2, 9:3 and 4:1
HEADS = {1: ((0, 1, 2, 3), (0, 2)), 2: ((0, 2, 3), (0, 1, 2)), 3: ((0, 1, 2, 3), (1,))}
WIDTHS = {1: 0.5, 2: 0.75}
GROUP, KV = 4, 3


def cut_layers(model: Any, layers: Any = None, *, heads: bool = True, mlp: bool = True) -> None:
    """Cut ``model`` in place as HEADS and WIDTHS say; layers without full attention keep their mixer."""
    found = decoder_layers(model)
    for index in layers if layers is not None else (1, 2, 3):
        layer = found[index]
        attention = getattr(layer, "self_attn", None) or getattr(layer, "self_attention", None)
        if heads and attention is not None and index in HEADS:
            cut_attention(attention, *HEADS[index])
        if mlp and index in WIDTHS:
            cut_mlp(mlp_of(layer), WIDTHS[index])


def decoder_layers(model: Any) -> Any:
    """The list of decoder layers."""
    backbone = model.base_model.model if hasattr(model.base_model, "lm_head") else model.base_model  # Llama-4
    return backbone.layers if hasattr(backbone, "layers") else backbone.h


def mlp_of(layer: Any) -> Any:
    """The feed-forward block of a layer."""
    names = ("mlp", "feed_forward", "block_sparse_moe")
    return next(getattr(layer, name) for name in names if hasattr(layer, name))


def cut_attention(attention: Any, in_group: tuple[int, ...], kv: tuple[int, ...]) -> None:
    """Keep KV heads ``kv`` and, of each, the query heads ``in_group``."""
    cut_heads(attention, [head * GROUP + member for head in kv for member in in_group], kv)


def cut_heads(attention: Any, queries: list[int], kv: Sequence[int]) -> None:
    """Keep these query heads and KV heads, in this order; query heads stand beside whichever KV head comes out."""
    head_dim = attention.head_dim
    n_q, n_kv = len(queries), len(kv)
    if hasattr(attention, "query_key_value"):  # Falcon: per KV group [4 q, k, v]
        group = n_q // n_kv
        units = []
        for place, head in enumerate(kv):
            mine = queries[place * group : (place + 1) * group]
            units += [query // GROUP * (GROUP + 2) + query % GROUP for query in mine]
            units += [head * (GROUP + 2) + GROUP, head * (GROUP + 2) + GROUP + 1]
        take(attention.query_key_value, rows=_rows(units, head_dim))
        take(attention.dense, columns=_rows(queries, head_dim))
        attention.num_heads, attention.num_kv_heads = n_q, n_kv
        return
    if hasattr(attention, "qkv_proj"):  # Phi-3: [Q | K | V], and forward reads the config
        q_rows, k_rows = GROUP * KV * head_dim, KV * head_dim
        rows = [*_rows(queries, head_dim)]
        rows += [q_rows + row for row in _rows(kv, head_dim)]
        rows += [q_rows + k_rows + row for row in _rows(kv, head_dim)]
        take(attention.qkv_proj, rows=rows)
        attention.config = copy.copy(attention.config)
        attention.config.num_attention_heads, attention.config.num_key_value_heads = n_q, n_kv
    else:
        unit = attention.q_proj.out_features // (GROUP * KV)  # twice head_dim where q carries a gate
        take(attention.q_proj, rows=_rows(queries, unit))
        take(attention.k_proj, rows=_rows(kv, head_dim))
        take(attention.v_proj, rows=_rows(kv, head_dim))
    take(attention.dense if hasattr(attention, "dense") else attention.o_proj, columns=_rows(queries, head_dim))
    for name, heads in (("q_norm", queries), ("k_norm", kv)):
        norm = getattr(attention, name, None)
        if norm is not None and norm.weight.dim() == 2:  # Cohere: [heads, head_dim]
            norm.weight = nn.Parameter(norm.weight[list(heads)])
        elif norm is not None and norm.weight.numel() > head_dim:  # OLMo-2: all heads
            norm.weight = nn.Parameter(norm.weight[_rows(heads, head_dim)])
    for name, heads in (("q_layernorm", queries), ("k_layernorm", kv)):
        if hasattr(getattr(attention, name, None), "norms"):  # StableLM: one module per head
            norm = getattr(attention, name)
            norm.norms = nn.ModuleList(norm.norms[head] for head in heads)
            norm.num_heads = len(heads)
    if hasattr(attention, "sinks"):
        attention.sinks = nn.Parameter(attention.sinks[queries])
    counts = {"num_heads": n_q, "num_attention_heads": n_q, "num_key_value_heads": n_kv}
    for name, count in (counts | {"num_key_value_groups": n_q // n_kv}).items():
        if hasattr(attention, name):
            setattr(attention, name, count)


def cut_mlp(mlp: Any, share: float) -> None:
    """Keep the first ``share`` of the channels of an MLP or of every expert."""
    widths = mlp_widths(mlp)
    cut_channels(mlp, {part: list(range(int(width * share))) for part, width in widths.items()})


def mlp_widths(mlp: Any) -> dict[Any, int]:
    """Channels of each part of an MLP: None for a dense one, experts by number, ``shared``."""
    if not hasattr(mlp, "experts"):
        return {None: _down(mlp).in_features}
    down = mlp.experts.down_proj
    width = down.shape[1] if _transposed(mlp.experts) else down.shape[2]
    found: dict[Any, int] = dict.fromkeys(range(down.shape[0]), width)
    if _shared(mlp) is not None:
        found["shared"] = _shared(mlp).down_proj.in_features
    return found


def cut_channels(mlp: Any, kept: dict[Any, list[int]]) -> None:
    """Keep these channels of each part that ``mlp_widths`` names, in this order; experts keep equally many."""
    if hasattr(mlp, "experts"):
        _cut_experts(mlp.experts, [kept[number] for number in range(mlp.experts.down_proj.shape[0])])
        if _shared(mlp) is not None:
            cut_channels(_shared(mlp), {None: kept["shared"]})
        return
    channels = kept[None]
    names = [name for name in ("gate_proj", "up_proj", "c_fc", "fc1", "dense_h_to_4h") if hasattr(mlp, name)]
    if hasattr(mlp, "gate_up_proj"):
        old = _down(mlp).in_features
        take(mlp.gate_up_proj, rows=[*channels, *(old + channel for channel in channels)])
    for name in names:
        take(getattr(mlp, name), rows=channels)
    take(_down(mlp), columns=channels)


def _down(mlp: Any) -> Any:
    return next(getattr(mlp, name) for name in ("down_proj", "c_proj", "fc2", "dense_4h_to_h") if hasattr(mlp, name))


def _shared(mlp: Any) -> Any:
    """The expert that every token passes, None where there is none."""
    return getattr(mlp, "shared_expert", None) or getattr(mlp, "shared_experts", None)


def _transposed(experts: Any) -> bool:
    """gpt-oss and Llama-4: [E, H, 2 I]."""
    return experts.gate_up_proj.shape[1] == experts.down_proj.shape[2]


def _cut_experts(experts: Any, kept: list[list[int]]) -> None:
    width = len(kept[0])
    if _transposed(experts) and not hasattr(experts, "gate_up_proj_bias"):  # Llama-4
        old = experts.down_proj.shape[1]
        halves = [[*channels, *(old + channel for channel in channels)] for channels in kept]
        experts.gate_up_proj = _each(experts.gate_up_proj, halves, 1)
        experts.down_proj = _each(experts.down_proj, kept, 0)
        experts.intermediate_size = experts.expert_dim = width
        return
    if _transposed(experts):  # gpt-oss: gate and up in turn
        pairs = [[2 * channel + half for channel in channels for half in (0, 1)] for channels in kept]
        experts.gate_up_proj = _each(experts.gate_up_proj, pairs, 1)
        experts.gate_up_proj_bias = _each(experts.gate_up_proj_bias, pairs, 0)
        experts.down_proj = _each(experts.down_proj, kept, 0)
        experts.intermediate_size = width
        return
    old = experts.down_proj.shape[2]
    rows = [[*channels, *(old + channel for channel in channels)] for channels in kept]
    experts.gate_up_proj = _each(experts.gate_up_proj, rows, 0)
    experts.down_proj = _each(experts.down_proj, kept, 1)
    experts.intermediate_dim = width


def _each(stacked: Any, kept: list[list[int]], side: int) -> Any:
    """Of every expert's tensor the indices that it keeps along ``side``."""
    chosen = [one.index_select(side, torch.tensor(indices)) for one, indices in zip(stacked, kept, strict=True)]
    return nn.Parameter(torch.stack(chosen).contiguous())


def take(linear: Any, *, rows: list[int] | None = None, columns: list[int] | None = None) -> None:
    """Keep rows or columns of one Linear, its bias and its features in step."""
    if rows is not None:
        linear.weight = nn.Parameter(linear.weight[rows])
        if linear.bias is not None:
            linear.bias = nn.Parameter(linear.bias[rows])
        linear.out_features = len(rows)
    if columns is not None:
        linear.weight = nn.Parameter(linear.weight[:, columns])
        linear.in_features = len(columns)


def _rows(units: Any, size: int) -> list[int]:
    return [unit * size + row for unit in units for row in range(size)]


def drop_layers(model: Any, kept: list[int], *, renumber: bool = True) -> None:
    """Keep the decoder layers ``kept``, in step with every per-layer list of the config."""
    backbone = model.base_model
    name = "layers" if hasattr(backbone, "layers") else "h"
    old = getattr(backbone, name)
    setattr(backbone, name, nn.ModuleList(old[index] for index in kept))
    config = model.config
    if getattr(config, "layer_types", None) is not None:
        config.layer_types = [config.layer_types[index] for index in kept]
    config.num_hidden_layers = len(kept)
    if renumber:
        for position, index in enumerate(kept):
            for module in old[index].modules():
                if hasattr(module, "layer_idx"):
                    module.layer_idx = position
