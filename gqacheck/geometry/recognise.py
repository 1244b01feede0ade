"""Which family a checkpoint belongs to, and how that is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from gqacheck.checkpoint import Checkpoint, ModuleInfo, Plain
from gqacheck.errors import UsageError
from gqacheck.geometry.families import (
    FAMILIES,
    GENERIC,
    Family,
    family_by_class,
    family_by_model_type,
    family_by_name,
    without_certainty,
)
from gqacheck.geometry.names import LayerList

# (names that one layer must hold, names that no layer may hold, family); the first that fits is taken.
_ATTN = "self_attn."
_SIGNATURES: tuple[tuple[tuple[str, ...], tuple[str, ...], str], ...] = (
    (("attention.wqkv.weight", "feed_forward.w1.weight"), (), "internlm2"),
    ((_ATTN + "W_pack.weight",), (), "baichuan"),
    (("self_attention.query_key_value.weight", "mlp.dense_h_to_4h.weight", "post_attention_layernorm.weight"),
     ("input_layernorm.bias",), "chatglm"),
    (("self_attention.query_key_value.weight", "mlp.dense_h_to_4h.weight"), (), "falcon"),
    ((_ATTN + "kv_a_proj_with_mqa.weight", "mlp.gate.weight"), (), "deepseek_v3"),
    ((_ATTN + "kv_a_proj_with_mqa.weight",), (), "minicpm3"),
    (("linear_attn.in_proj_qkvz.weight",), (), "qwen3_next"),
    (("linear_attn.in_proj_qkv.weight", "mlp.gate.weight"), (), "qwen3_5_moe"),
    (("linear_attn.in_proj_qkv.weight",), (), "qwen3_5"),
    ((_ATTN + "sinks",), (), "gpt_oss"),
    ((_ATTN + "qkv_proj.weight", "mlp.gate_up_proj.weight"), (), "phi3"),
    (("cross_attn.q_proj.weight",), (), "mllama"),
    (("feed_forward.gate_proj.weight", _ATTN + "q_proj.weight"), (), "llama4"),
    (("block_sparse_moe.gate.weight", _ATTN + "q_norm.weight"), (), "minimax_m2"),
    (("block_sparse_moe.gate.weight", "input_layernorm.bias"), (), "phimoe"),
    (("block_sparse_moe.gate.weight",), (), "mixtral"),
    (("block_sparse_moe.input_linear.weight",), (), "granitemoe"),
    (("block_sparse_moe.experts.gate_up_proj",), (), "granitemoe"),
    (("mlp.router.weight", "mlp.experts.gate_up_proj", "input_layernorm.bias"), (), "phimoe"),
    (("mlp.e_score_correction_bias",), (), "minimax_m2"),
    (("mlp.gate.weight", "mlp.shared_expert_gate.weight"), (), "qwen2_moe"),
    (("mlp.gate.weight", "mlp.shared_experts.up_proj.weight", _ATTN + "q_proj.weight"), (), "glm4_moe"),
    (("mlp.gate.weight", _ATTN + "q_norm.weight"), (), "qwen3_moe"),
    (("mlp.gate.weight", "mlp.experts.gate_up_proj"), (), "mixtral"),
    (("mlp.c_fc.weight", _ATTN + "q_proj.weight"), (), "starcoder2"),
    (("mlp.fc1.weight", _ATTN + "dense.weight"), (), "phi"),
    (("pre_feedforward_layernorm.weight", _ATTN + "q_norm.weight"), (), "gemma3"),
    (("pre_feedforward_layernorm.weight",), (), "gemma2"),
    (("post_self_attn_layernorm.weight", "mlp.gate_up_proj.weight"), (), "glm4"),
    (("mlp.gate_up_proj.weight", _ATTN + "q_proj.weight"), (), "glm"),
    (("post_feedforward_layernorm.weight", _ATTN + "q_norm.weight"), ("input_layernorm.weight",), "olmo2"),
    (("attention_layernorm.weight", "feedforward_layernorm.weight"), (), "apertus"),
    ((_ATTN + "query_layernorm.weight",), (), "hunyuan_v1_dense"),
    ((_ATTN + "q_norm.weight", "post_attention_layernorm.weight"), (), "qwen3"),
    (("mlp.gate_proj.weight", "input_layernorm.bias"), (), "stablelm"),
    (("mlp.up_proj.weight", "input_layernorm.bias"), ("mlp.gate_proj.weight",), "nemotron"),
    (("mlp.up_proj.weight", _ATTN + "q_proj.weight"), ("mlp.gate_proj.weight",), "arcee"),
    (("mlp.gate_proj.weight", "input_layernorm.weight"), ("post_attention_layernorm.weight",), "cohere"),
    (("mlp.gate_proj.weight", _ATTN + "q_proj.weight"), ("input_layernorm.weight",), "olmo"),
    ((_ATTN + "q_proj.bias", "mlp.gate_proj.weight"), (_ATTN + "o_proj.bias",), "qwen2"),
    ((_ATTN + "q_proj.weight", "mlp.gate_proj.weight"), (), "llama"),
)  # fmt: skip


def recognise(
    checkpoint: Checkpoint,
    config: Mapping[str, Plain],
    wrapped: bool,
    modules: Mapping[str, ModuleInfo],
    group: LayerList,
    asked: str | None,
) -> tuple[Family, str]:
    """The family and its source: ``--family``, config, module classes, tensor names, in this order.

    config: the text model's; wrapped: a multimodal config was opened for it. asked: ``--family``.

    Raises
        UsageError: ``asked`` names no family.
    """
    if asked is not None:
        chosen = family_by_name(asked)
        if chosen is None:
            known = ", ".join(family.name for family in FAMILIES)
            raise UsageError(f"--family {asked!r} is not known; the families are: {known}, generic")
        return chosen, "--family"
    found = _from_config(checkpoint, config, wrapped) or _from_classes(modules, group.path)
    if found is not None:
        return found
    guessed = _from_names(group)
    stranger = config.get("model_type")
    if isinstance(stranger, str) and stranger:
        source = f"tensor names (model_type {stranger!r} is not known)"
        if guessed is not None and guessed.attention == "mla":
            return replace(guessed, name="generic", generic=True), source
        return GENERIC, source
    if guessed is not None:
        return guessed, "tensor names"
    return GENERIC, "tensor names"


def _from_config(checkpoint: Checkpoint, config: Mapping[str, Plain], wrapped: bool) -> tuple[Family, str] | None:
    if checkpoint.config is None:
        return None
    outer = checkpoint.config.values if wrapped else {}
    for values in (config, outer):
        model_type = values.get("model_type")
        if isinstance(model_type, str):
            family = family_by_model_type(model_type)
            if family is not None:
                return family, "config model_type"
        architectures = values.get("architectures")
        if isinstance(architectures, tuple | list):
            for name in architectures[:4]:
                family = family_by_class(name) if isinstance(name, str) else None
                if family is not None:
                    return family, "config architectures"
    if checkpoint.config.class_name:
        family = family_by_class(checkpoint.config.class_name)
        if family is not None:
            return family, "config class"
    return None


def _from_classes(modules: Mapping[str, ModuleInfo], layers_path: str) -> tuple[Family, str] | None:
    """A layer's own class says most, then the modules around it, from the inside out."""
    if not modules:
        return None
    paths = [f"{layers_path}.{index}" for index in range(4)]
    stem = layers_path.rpartition(".")[0]
    while True:
        paths.append(stem)
        if not stem:
            break
        stem = stem.rpartition(".")[0]
    for path in paths:
        module = modules.get(path)
        family = family_by_class(module.class_name) if module else None
        if family is not None:
            return family, "module class"
    return None


def _from_names(group: LayerList) -> Family | None:
    names = {name for layer in group.layers.values() for name in layer}
    for needed, forbidden, name in _SIGNATURES:
        if all(n in names for n in needed) and not any(n in names for n in forbidden):
            family = family_by_name(name)
            return None if family is None else _as_stored(family, group)
    return None


def _as_stored(family: Family, group: LayerList) -> Family:
    """``family`` with the habits that names cannot vouch for left open, and the kind of q_norm that is stored."""
    family = without_certainty(family)
    if family.qk_norm not in ("per-head", "all-heads"):
        return family
    for layer in group.layers.values():
        norm, q = layer.get(_ATTN + "q_norm.weight"), layer.get(_ATTN + "q_proj.weight")
        if norm is not None and q is not None and norm.shape and q.shape:
            return replace(family, qk_norm="all-heads" if norm.shape[-1] == q.shape[0] else "per-head")
    return family
