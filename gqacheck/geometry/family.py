"""What a model family is: which stored name plays which role, and what the family insists on. The table is in
``families``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, TypeAlias

BiasPolicy: TypeAlias = Literal["required", "never", "optional"]


def _empty() -> Mapping[str, str]:
    return MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Family:
    """One family of decoder models.

    name: one word, as printed (``qwen2_moe``). model_types: ``model_type`` values in configs (aliases included).
    class_prefixes: module class names start with one of these (``Qwen2Moe``), longest match wins.
    layers / embedding / final_norm / lm_head: module paths without wrapper prefixes; final_norm "" where the norm
        has no weight (OLMo 1).
    roles: role -> module names relative to one layer (first present wins). Attention roles ``q k v o qkv sinks``, MLP
        roles ``gate up down gate_up``, MoE roles ``router``, ``experts`` (path templates with ``{e}``) whose parts are
        ``expert_gate expert_up expert_down``, ``stacked`` (modules that hold all experts in one tensor) whose parts are
        ``stacked_gate_up stacked_down`` (``.`` = named beside the module), ``shared``; norms are in ``norms``:
        role -> names (``input``, ``post_attention``, ``pre_feedforward``, ``post_feedforward``, ``q``, ``k``).
    required_norms: norm roles every layer must have. norm_switch: norm role -> config key that says whether
        the family has it (``!key``: has it unless the key is true).
    fused_qkv: ``blocks`` = [Q|K|V] rows (Phi-3), ``per-kv-group`` = [rep Q, K, V] per KV head (Falcon,
        InternLM2; with one KV head the two are the same), None = separate.
    gate_up: how a fused gate_up is cut: ``halves``, or ``interleaved`` (gpt-oss).
    stacked_transposed: stacked experts are [experts, inputs, outputs].
    gated_q: q rows are 2 x head_dim per head (Qwen3-Next).
    qk_norm: ``per-head`` width head_dim (Qwen3, Gemma-3), ``all-heads`` width of the whole projection (OLMo-2),
        ``per-head-rows`` shape [heads, head_dim] (Cohere, StableLM), None = has none.
    linear: modules of one layer that stand where attention would (``linear_attn``).
    explained: names below one layer that are known and play no role here (a whole module, or one tensor).
    bias: role -> policy under this family's defaults; ``bias_switch``: config key that overrides (``attention_bias``,
        ``use_bias``), role -> key.
    mlp: ``gated`` or ``plain``.
    rejects_indivisible_hidden: the config class refuses hidden_size % num_attention_heads != 0.
    default_head_dim: value the config class takes when head_dim is not stated: a number, or None for hidden // heads.
    partial_rotary: share of head_dim that is rotated when the config does not say.
    config_keys: our key -> the family's own spelling (Falcon: ``num_kv_heads``).
    ties_by_default: tie_word_embeddings when the config does not say.
    stock_class: transformers has a class of its own for it (False: checked statically only).
    attention: ``full`` or ``mla``. generic: the fallback by naming; an unknown model_type caps severities at W.
    leftovers: regexes of tensors that may be present or absent without a word (``rotary_emb.inv_freq``).
    """

    name: str
    model_types: tuple[str, ...]
    class_prefixes: tuple[str, ...]
    roles: Mapping[str, tuple[str, ...]]
    norms: Mapping[str, tuple[str, ...]]
    required_norms: tuple[str, ...] = ("input", "post_attention")
    norm_switch: Mapping[str, str] = field(default_factory=_empty)
    layers: str = "model.layers"
    embedding: str = "model.embed_tokens"
    final_norm: str = "model.norm"
    lm_head: str = "lm_head"
    fused_qkv: Literal["blocks", "per-kv-group"] | None = None
    gate_up: Literal["halves", "interleaved"] = "halves"
    stacked_transposed: bool = False
    gated_q: bool = False
    qk_norm: Literal["per-head", "all-heads", "per-head-rows"] | None = None
    linear: tuple[str, ...] = ()
    explained: tuple[str, ...] = ()
    bias: Mapping[str, BiasPolicy] = field(default_factory=lambda: MappingProxyType({}))
    bias_switch: Mapping[str, str] = field(default_factory=_empty)
    mlp: Literal["gated", "plain"] = "gated"
    rejects_indivisible_hidden: bool = False
    default_head_dim: int | None = None
    partial_rotary: float = 1.0
    config_keys: Mapping[str, str] = field(default_factory=_empty)
    ties_by_default: bool = False
    stock_class: bool = True
    attention: Literal["full", "mla"] = "full"
    generic: bool = False
    leftovers: tuple[str, ...] = (
        r"rotary(_pos)?(_emb)?(_local)?\.\w+$",
        r"\.(masked_bias|causal_mask|future_mask|alibi|embed_scale)$",
        r"\.attention\.bias$",
    )
