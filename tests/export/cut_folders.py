"""Folders with a modelling file, written by hand from tiny cut models, and the cut models they have to equal."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from planned_cuts import LayerPlan, attention_of, cut_by, layers_of, random_plan
from safetensors.torch import save_file
from tiny_models import tiny_model

from gqacheck.export.code import architecture, auto_map, block_norms, model_type, modelling_file

SIZES = ("num_attention_heads", "num_key_value_heads", "intermediate_size")
# Cases of tiny_models -> family; a case that is not named here is its own family.
FAMILY = {
    "llama_rope3": "llama",
    "llama_bias": "llama",
    "qwen2_tied": "qwen2",
    "qwen2_sliding": "qwen2",
    "cohere_qk_norm": "cohere",
    "hunyuan": "hunyuan_v1_dense",
}


@dataclass(frozen=True)
class Cut:
    """A cut model in memory with what its layers measure; dropped blocks stand in it with nothing to add."""

    family: str
    model: Any
    sizes: dict[str, list[int]]
    dropped: tuple[str, ...]  # prefixes of the tensors that a folder does not have


def random_cut(
    case: str, seed: int, *, no_attention: Collection[int] = (), no_mlp: Collection[int] = (), **settings: Any
) -> Cut:
    """One case of ``tiny_models`` cut at random, without the attention or the MLP of these layers."""
    parent = tiny_model(case, **settings)
    return as_cut(case, cut_by(parent, random_plan(parent, seed, depth=False)), no_attention, no_mlp)


def planned_cut(case: str, plan: list[LayerPlan | None], **settings: Any) -> Cut:
    """The same by a plan."""
    return as_cut(case, cut_by(tiny_model(case, **settings), plan))


def as_cut(case: str, model: Any, no_attention: Collection[int] = (), no_mlp: Collection[int] = ()) -> Cut:
    """``model`` with its sizes; a dropped block is one whose last projection is zero, so that it adds nothing."""
    family = FAMILY.get(case, case)
    attention_norms, mlp_norms = block_norms(family)
    sizes: dict[str, list[int]] = {name: [] for name in SIZES}
    dropped: list[str] = []
    for index, layer in enumerate(layers_of(model)):
        attention = attention_of(layer)
        n_q = attention.o_proj.in_features // attention.head_dim
        n_kv = n_q // attention.num_key_value_groups if hasattr(attention, "num_key_value_groups") else 0
        n_kv = n_kv or attention.num_key_value_heads
        down = layer.mlp.down_proj if hasattr(layer.mlp, "down_proj") else layer.mlp.c_proj
        width = down.in_features
        if index in no_attention:
            _silence(attention.o_proj)
            dropped += [f"model.layers.{index}.{name}." for name in ("self_attn", *attention_norms)]
            n_q = n_kv = 0
        if index in no_mlp:
            _silence(down)
            dropped += [f"model.layers.{index}.{name}." for name in ("mlp", *mlp_norms)]
            width = 0
        for name, size in zip(SIZES, (n_q, n_kv, width), strict=True):
            sizes[name].append(size)
    return Cut(family, model, sizes, tuple(dropped))


def _silence(linear: Any) -> None:
    with torch.no_grad():
        for parameter in linear.parameters():
            parameter.zero_()


def write_folder(cut: Cut, folder: Path, dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
    """config.json, the modelling file and model.safetensors in ``folder``, which is made."""
    folder.mkdir(parents=True)
    config = config_of(cut, **changes)
    (folder / "config.json").write_text(json.dumps(config, default=str), encoding="utf-8")
    name, source = modelling_file(cut.family)
    (folder / name).write_text(source, encoding="utf-8")
    save_file(tensors_of(cut, dtype), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def config_of(cut: Cut, **changes: Any) -> dict[str, Any]:
    """What config.json says, rope settings in the words of transformers 4 too."""
    values = cut.model.config.to_dict()
    rope = values.get("rope_parameters") or {}
    if "rope_theta" in rope:
        values["rope_theta"] = rope["rope_theta"]
        others = {key: value for key, value in rope.items() if key != "rope_theta"}
        values["rope_scaling"] = others if others.get("rope_type", "default") != "default" else None
    elif "full_attention" in rope:
        values["rope_theta"] = rope["full_attention"]["rope_theta"]
        values["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
    return {
        **values,
        **{name: max(*sizes, 1) for name, sizes in cut.sizes.items()},
        "head_dim": attention_of(layers_of(cut.model)[0]).head_dim,
        "gqacheck_layers": cut.sizes,
        "model_type": model_type(cut.family),
        "architectures": [architecture(cut.family)],
        "auto_map": auto_map(cut.family),
        **changes,
    }


def tensors_of(cut: Cut, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """What the folder stores: neither a tied lm_head nor anything of a dropped block."""
    tied = cut.model.config.tie_word_embeddings
    return {
        name: value.to(dtype).contiguous().clone()
        for name, value in cut.model.state_dict().items()
        if not name.startswith(cut.dropped) and not (tied and name == "lm_head.weight")
    }
