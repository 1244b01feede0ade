"""Tiny random parents and children cut from them, right or with a planted mistake, as state dicts in folders."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

HEAD_DIM, HIDDEN, VOCAB, WIDTH = 8, 48, 64, 20
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Cut:
    """What one layer keeps, per role, in order; roles that are not named keep what the right cut keeps."""

    kv: Sequence[int]
    q: Sequence[int]
    channels: Sequence[int]
    spoilt: Mapping[str, Sequence[int]] = field(default_factory=dict)

    def of(self, role: str, *, right: bool) -> Sequence[int]:
        default = {"q": self.q, "o": self.q, "k": self.kv, "v": self.kv}.get(role, self.channels)
        return default if right else self.spoilt.get(role, default)


def config(family: str, n_q: int, n_kv: int, n_layers: int, width: int = WIDTH, **more: Any) -> dict[str, Any]:
    """config.json of a tiny model of this family."""
    return {
        "model_type": family,
        "architectures": [f"{family.capitalize()}ForCausalLM"],
        "hidden_size": HIDDEN,
        "vocab_size": VOCAB,
        "num_hidden_layers": n_layers,
        "num_attention_heads": n_q,
        "num_key_value_heads": n_kv,
        "head_dim": HEAD_DIM,
        "intermediate_size": width,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "max_position_embeddings": 128,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    } | more


def parent_tensors(n_q: int, n_kv: int, n_layers: int, seed: int = 0, *, bias: bool = False) -> Tensors:
    """Random weights of a parent with these counts."""
    made = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=made) * 0.3

    found = {"model.embed_tokens.weight": random(VOCAB, HIDDEN), "model.norm.weight": 1 + 0.1 * random(HIDDEN)}
    for index in range(n_layers):
        stem = f"model.layers.{index}"
        for role, n in (("q", n_q), ("k", n_kv), ("v", n_kv)):
            found[f"{stem}.self_attn.{role}_proj.weight"] = random(n * HEAD_DIM, HIDDEN)
            if bias:
                found[f"{stem}.self_attn.{role}_proj.bias"] = random(n * HEAD_DIM)
        found[f"{stem}.self_attn.o_proj.weight"] = random(HIDDEN, n_q * HEAD_DIM)
        for role in ("gate", "up"):
            found[f"{stem}.mlp.{role}_proj.weight"] = random(WIDTH, HIDDEN)
        found[f"{stem}.mlp.down_proj.weight"] = random(HIDDEN, WIDTH)
        found[f"{stem}.input_layernorm.weight"] = 1 + 0.1 * random(HIDDEN)
        found[f"{stem}.post_attention_layernorm.weight"] = 1 + 0.1 * random(HIDDEN)
    return found | {"lm_head.weight": random(VOCAB, HIDDEN)}


def cut_tensors(parent: Tensors, cuts: Mapping[int, Cut], *, right: bool = True) -> Tensors:
    """The parent's tensors cut as ``cuts`` say, with their mistakes unless ``right``. Biases go with their weights."""
    child = {name: tensor.clone() for name, tensor in parent.items()}
    for index, cut in cuts.items():
        for role in ("q", "k", "v"):
            rows = _lines(cut.of(role, right=right), HEAD_DIM)
            for leaf in ("weight", "bias"):
                name = f"model.layers.{index}.self_attn.{role}_proj.{leaf}"
                if name in child:
                    named = cut.of(f"{role} bias", right=False) if f"{role} bias" in cut.spoilt and not right else None
                    picked = _lines(named, HEAD_DIM) if leaf == "bias" and named is not None else rows
                    child[name] = child[name][picked].contiguous()
        columns = _lines(cut.of("o", right=right), HEAD_DIM)
        name = f"model.layers.{index}.self_attn.o_proj.weight"
        child[name] = child[name][:, columns].contiguous()
        for role in ("gate", "up", "down"):
            name = f"model.layers.{index}.mlp.{role}_proj.weight"
            kept = list(cut.of(role, right=right))
            child[name] = (child[name][:, kept] if role == "down" else child[name][kept]).contiguous()
    return child


def _lines(blocks: Sequence[int], unit: int) -> list[int]:
    return [block * unit + line for block in blocks for line in range(unit)]


def write_folder(folder: Path, tensors: Tensors, values: Mapping[str, Any]) -> Path:
    """A model folder as transformers reads it."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(dict(values)))
    return folder


def read_folder(folder: str | Path) -> Tensors:
    """Every tensor of a folder."""
    found: Tensors = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        found |= load_file(path)
    return found


def same(one: Tensors, other: Tensors) -> list[str]:
    """Names of the tensors that differ by a bit, or that only one has."""
    names = [name for name in one.keys() | other.keys() if name not in one or name not in other]
    both = one.keys() & other.keys()
    return sorted([*names, *(n for n in both if one[n].dtype != other[n].dtype or not torch.equal(one[n], other[n]))])
