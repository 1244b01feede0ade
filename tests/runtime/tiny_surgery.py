"""Heads and channels removed from live tiny models by hand, layer by layer, so that the cut model still runs."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

# layer -> (query heads kept in each kept KV group, KV heads kept): 12:3 untouched, 8:2, 9:3 and 4:1
HEADS = {1: ((0, 1, 2, 3), (0, 2)), 2: ((0, 2, 3), (0, 1, 2)), 3: ((0, 1, 2, 3), (1,))}
WIDTHS = {1: 0.5, 2: 0.75}
GROUP, KV = 4, 3


def cut_layers(model: Any, layers: Any = None, *, heads: bool = True, mlp: bool = True) -> None:
    """Cut ``model`` in place as HEADS and WIDTHS say; layers without full attention keep their mixer."""
    found = model.base_model.layers if hasattr(model.base_model, "layers") else model.base_model.h
    for index in layers if layers is not None else (1, 2, 3):
        layer = found[index]
        attention = getattr(layer, "self_attn", None) or getattr(layer, "self_attention", None)
        if heads and attention is not None and index in HEADS:
            cut_attention(attention, *HEADS[index])
        if mlp and index in WIDTHS:
            cut_mlp(layer.mlp, WIDTHS[index])


def cut_attention(attention: Any, in_group: tuple[int, ...], kv: tuple[int, ...]) -> None:
    """Keep KV heads ``kv`` and, of each, the query heads ``in_group``."""
    head_dim = attention.head_dim
    queries = [group * GROUP + member for group in kv for member in in_group]
    n_q, n_kv = len(queries), len(kv)
    if hasattr(attention, "query_key_value"):  # Falcon: per KV group [4 q, k, v]
        units = [group * (GROUP + 2) + member for group in kv for member in (*in_group, GROUP, GROUP + 1)]
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
    take(attention.o_proj, columns=_rows(queries, head_dim))
    for name, heads in (("q_norm", queries), ("k_norm", kv)):
        norm = getattr(attention, name, None)
        if norm is not None and norm.weight.dim() == 2:  # Cohere: [heads, head_dim]
            norm.weight = nn.Parameter(norm.weight[list(heads)])
        elif norm is not None and norm.weight.numel() > head_dim:  # OLMo-2: all heads
            norm.weight = nn.Parameter(norm.weight[_rows(heads, head_dim)])
    for name, heads in (("q_layernorm", queries), ("k_layernorm", kv)):
        if hasattr(attention, name):  # StableLM: one module per head
            norm = getattr(attention, name)
            norm.norms = nn.ModuleList(norm.norms[head] for head in heads)
            norm.num_heads = len(heads)
    if hasattr(attention, "sinks"):
        attention.sinks = nn.Parameter(attention.sinks[queries])
    for name, count in (("num_heads", n_q), ("num_key_value_heads", n_kv), ("num_key_value_groups", n_q // n_kv)):
        if hasattr(attention, name):
            setattr(attention, name, count)


def cut_mlp(mlp: Any, share: float) -> None:
    """Keep the first ``share`` of the channels of an MLP or of every expert."""
    if hasattr(mlp, "experts"):
        _cut_experts(mlp.experts, share)
        if hasattr(mlp, "shared_expert"):
            cut_mlp(mlp.shared_expert, share)
        return
    names = [name for name in ("gate_proj", "up_proj", "c_fc", "dense_h_to_4h") if hasattr(mlp, name)]
    down = next(getattr(mlp, name) for name in ("down_proj", "c_proj", "dense_4h_to_h") if hasattr(mlp, name))
    width = int(down.in_features * share)
    if hasattr(mlp, "gate_up_proj"):
        old = down.in_features
        take(mlp.gate_up_proj, rows=[*range(width), *range(old, old + width)])
    for name in names:
        take(getattr(mlp, name), rows=list(range(width)))
    take(down, columns=list(range(width)))


def _cut_experts(experts: Any, share: float) -> None:
    if hasattr(experts, "gate_up_proj_bias"):  # gpt-oss: [E, H, 2 I], gate and up interleaved
        width = int(experts.down_proj.shape[1] * share)
        experts.gate_up_proj = nn.Parameter(experts.gate_up_proj[:, :, : 2 * width])
        experts.gate_up_proj_bias = nn.Parameter(experts.gate_up_proj_bias[:, : 2 * width])
        experts.down_proj = nn.Parameter(experts.down_proj[:, :width])
        experts.intermediate_size = width
        return
    old = experts.down_proj.shape[2]
    width = int(old * share)
    rows = [*range(width), *range(old, old + width)]
    experts.gate_up_proj = nn.Parameter(experts.gate_up_proj[:, rows])
    experts.down_proj = nn.Parameter(experts.down_proj[:, :, :width].contiguous())
    experts.intermediate_dim = width


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
