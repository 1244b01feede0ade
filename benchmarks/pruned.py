"""Pruned whole-module pickles of any size with real bytes, written without ever holding the model in memory.

The model is pickled from the meta device with its storages skipped; noise is then written where they lie in the file.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

GEOMETRIES = {
    "2GB": {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 10, "num_attention_heads": 24,
            "head_dim": 128, "vocab_size": 32000},
    "8B": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
           "head_dim": 128, "vocab_size": 128256},
}  # fmt: skip
KV = 8
KINDS = ("whole", "uniform", "non-uniform")
_SPREAD = 0.02
_NOISE = 1 << 26


def write_pruned(size: str, kind: str, path: Path) -> Path:
    """``{"model": ..., "tokenizer": None}`` in float16, as LLM-Pruner saves it.

    kind: ``whole`` is not cut. ``uniform``: four of eight KV groups and three quarters of the channels of every layer,
    and a config that says so. ``non-uniform``: the two outermost layers stay whole at each end, and those between keep
    seven to five groups and as large a share of the channels, the later the fewer.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = GEOMETRIES[size]
    config = LlamaConfig(num_key_value_heads=KV, tie_word_embeddings=False, **shape)
    with torch.device("meta"):
        model = LlamaForCausalLM(config).to(torch.float16)
    depth, wide, group = shape["num_hidden_layers"], shape["intermediate_size"], shape["num_attention_heads"] // KV
    for number, layer in enumerate(model.model.layers):
        if kind == "uniform":
            _cut(layer, 4 * group, 4, wide * 3 // 4, shape)
        elif kind == "non-uniform" and 2 <= number < depth - 2:
            kept = 7 - 3 * (number - 2) // (depth - 4)
            _cut(layer, kept * group, kept, wide * kept // KV, shape)
    if kind == "uniform":
        config.num_attention_heads, config.num_key_value_heads, config.intermediate_size = 4 * group, 4, wide * 3 // 4
    model.to_empty(device="cpu")
    model.model.rotary_emb = type(model.model.rotary_emb)(config)  # its buffers as they are computed
    config.dtype = torch.float16
    with torch.serialization.skip_data():
        torch.save({"model": model, "tokenizer": None}, path)
    _fill(path, dict(model.named_buffers()))
    return path


def _cut(layer: Any, heads: int, kv: int, wide: int, shape: dict[str, int]) -> None:
    hidden, dim = shape["hidden_size"], shape["head_dim"]
    sizes = {"q_proj": (hidden, heads * dim), "k_proj": (hidden, kv * dim), "v_proj": (hidden, kv * dim),
             "o_proj": (heads * dim, hidden), "gate_proj": (hidden, wide), "up_proj": (hidden, wide),
             "down_proj": (wide, hidden)}  # fmt: skip
    for name, (columns, rows) in sizes.items():
        owner = layer.self_attn if hasattr(layer.self_attn, name) else layer.mlp
        setattr(owner, name, nn.Linear(columns, rows, bias=False, device="meta", dtype=torch.float16))
    layer.mlp.intermediate_size = wide


def _fill(path: Path, buffers: dict[str, torch.Tensor]) -> None:
    """Real bytes where ``torch.save`` skipped them: noise, ones for the norms, and the buffers as they are."""
    from gqacheck import open_checkpoint

    noise = torch.empty(_NOISE).normal_(std=_SPREAD, generator=torch.Generator().manual_seed(8)).to(torch.float16)
    tensors = open_checkpoint(path).tensors
    file = os.open(path, os.O_WRONLY)
    try:
        for number, (name, info) in enumerate(tensors.items()):
            assert info.storage is not None
            at, left = info.storage.offset, info.numel
            if name in buffers:
                os.pwrite(file, bytes(buffers[name].contiguous().view(torch.uint8).numpy()), at)
                continue
            if len(info.shape) == 1:
                os.pwrite(file, bytes(torch.ones(left, dtype=torch.float16).view(torch.uint8).numpy()), at)
                continue
            start = number * 7919 % (_NOISE // 2)  # every tensor from another place on, so that no two are alike
            while left:
                count = min(left, _NOISE - start)
                data = noise[start : start + count].view(torch.uint8).numpy().data
                assert os.pwrite(file, data, at) == len(data)
                at, left, start = at + 2 * count, left - count, 0
    finally:
        os.close(file)


if __name__ == "__main__":  # in a process of its own, so that the one that measures stays small
    write_pruned(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
