"""Model families as data: which stored name plays which role, and what each family insists on.

The table is `FAMILIES`; names and defaults follow the classes of transformers 5.23 and what they write to disk
(``tests/data/families`` holds both, made by ``make.py`` there). Families without a stock class follow the code that
their authors publish beside the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from gqacheck.geometry.family import BiasPolicy, Family

__all__ = ["FAMILIES", "GENERIC", "BiasPolicy", "Family", "family_by_class", "family_by_model_type", "family_by_name"]

OWN_TYPE = "gqacheck_"
"""How the ``model_type`` begins where ``gqacheck export`` wrote a modelling file; the family's name follows."""
_Names = Mapping[str, tuple[str, ...]]


def _attention(path: str, q: str = "q_proj", k: str = "k_proj", v: str = "v_proj", o: str = "o_proj") -> _Names:
    return {role: (f"{path}.{name}",) for role, name in (("q", q), ("k", k), ("v", v), ("o", o))}


def _mlp(path: str, gate: str = "gate_proj", up: str = "up_proj", down: str = "down_proj") -> _Names:
    return {role: (f"{path}.{name}",) for role, name in (("gate", gate), ("up", up), ("down", down)) if name}


_ATTENTION = _attention("self_attn")
_DENSE = {**_ATTENTION, **_mlp("mlp")}

# On disk experts are numbered modules; in memory transformers 5 stacks them, and 4.x had other module names.
_EXPERTS: _Names = {
    "router": (
        "mlp.gate",
        "block_sparse_moe.gate",
        "mlp.router",
        "block_sparse_moe.router.layer",
        "block_sparse_moe.router",
    ),
    "experts": ("mlp.experts.{e}", "block_sparse_moe.experts.{e}"),
    "expert_gate": ("gate_proj", "w1"),
    "expert_up": ("up_proj", "w3"),
    "expert_down": ("down_proj", "w2"),
    "stacked": ("mlp.experts", "block_sparse_moe.experts", "block_sparse_moe"),
    "stacked_gate_up": ("gate_up_proj", "input_linear"),
    "stacked_down": ("down_proj", "output_linear"),
    "shared": ("mlp.shared_expert", "mlp.shared_experts"),
}
_MOE = {**_DENSE, **_EXPERTS}
_FUSED_GATE_UP = {"gate_up": ("mlp.gate_up_proj",), "down": ("mlp.down_proj",)}

_NORMS: _Names = {"input": ("input_layernorm",), "post_attention": ("post_attention_layernorm",)}
_QK_NORMS: _Names = {**_NORMS, "q": ("self_attn.q_norm",), "k": ("self_attn.k_norm",)}
_FOUR_NORMS: _Names = {
    **_NORMS,
    "pre_feedforward": ("pre_feedforward_layernorm",),
    "post_feedforward": ("post_feedforward_layernorm",),
}
_FOUR_QK_NORMS: _Names = {**_FOUR_NORMS, **_QK_NORMS}
_FOUR = ("input", "post_attention", "pre_feedforward", "post_feedforward")
_OLMO2_NORMS: _Names = {
    "post_attention": ("post_attention_layernorm",),
    "post_feedforward": ("post_feedforward_layernorm",),
    "q": ("self_attn.q_norm",),
    "k": ("self_attn.k_norm",),
}

_ALL = ("q", "k", "v", "o", "qkv", "gate", "up", "down", "gate_up")
_Biases = Mapping[str, BiasPolicy]


def _bias(required: str = "", optional: str = "") -> _Biases:
    """Every role's policy: ``never`` unless it is named in one of the two lists."""
    words = {**dict.fromkeys(optional.split(), "optional"), **dict.fromkeys(required.split(), "required")}
    return {role: words.get(role, "never") for role in _ALL}  # type: ignore[misc]


def _switch(**keys: str) -> Mapping[str, str]:
    """``_switch(attention_bias="q k v o")`` -> role -> config key."""
    return {role: key for key, roles in keys.items() for role in roles.split()}


_NO_BIAS = _bias()
_OPTIONAL_BIAS = _bias(optional=" ".join(_ALL))
_ATTENTION_SWITCH = _switch(attention_bias="q k v o")
_LLAMA_SWITCH = _switch(attention_bias="q k v o", mlp_bias="gate up down")

_DELTA_NET = ("linear_attn",)
_SHARED_GATE = ("mlp.shared_expert_gate",)

_LLAMA = Family(
    name="llama",
    model_types=("llama", "code_llama", "yi", "Yi", "aquila"),
    class_prefixes=("Llama", "Aquila", "Yi"),
    roles=_DENSE,
    norms=_NORMS,
    bias=_NO_BIAS,
    bias_switch=_LLAMA_SWITCH,
    rejects_indivisible_hidden=True,
)
_MISTRAL = replace(
    _LLAMA,
    name="mistral",
    model_types=("mistral", "ministral"),
    class_prefixes=("Mistral", "Ministral", "Mistral3"),
    bias_switch={},
    rejects_indivisible_hidden=False,
)
_QWEN2 = replace(
    _MISTRAL,
    name="qwen2",
    model_types=("qwen2", "qwen2_vl", "qwen2_vl_text", "qwen2_5_vl", "qwen2_5_vl_text", "qwen2_audio"),
    class_prefixes=("Qwen2", "Qwen2VL", "Qwen2_5_VL"),
    bias=_bias(required="q k v"),
)
_QWEN3 = replace(
    _MISTRAL,
    name="qwen3",
    model_types=("qwen3", "qwen3_vl", "qwen3_vl_text"),
    class_prefixes=("Qwen3", "Qwen3VL"),
    norms=_QK_NORMS,
    qk_norm="per-head",
    bias_switch=_ATTENTION_SWITCH,
    default_head_dim=128,
)
_QWEN3_NEXT = replace(
    _QWEN3,
    name="qwen3_next",
    model_types=("qwen3_next",),
    class_prefixes=("Qwen3Next",),
    roles=_MOE,
    gated_q=True,
    linear=_DELTA_NET,
    explained=_SHARED_GATE,
    default_head_dim=256,
    partial_rotary=0.25,
)
_GEMMA2 = replace(
    _LLAMA,
    name="gemma2",
    model_types=("gemma2",),
    class_prefixes=("Gemma2",),
    norms=_FOUR_NORMS,
    required_norms=_FOUR,
    bias_switch=_ATTENTION_SWITCH,
    default_head_dim=256,
    ties_by_default=True,
)
_OLMO2 = replace(
    _MISTRAL,
    name="olmo2",
    model_types=("olmo2",),
    class_prefixes=("Olmo2",),
    norms=_OLMO2_NORMS,
    required_norms=("post_attention", "post_feedforward"),
    qk_norm="all-heads",
    bias_switch=_ATTENTION_SWITCH,
)
_COHERE2 = replace(
    _MISTRAL,
    name="cohere2",
    model_types=("cohere2",),
    class_prefixes=("Cohere2",),
    norms={"input": ("input_layernorm",)},
    required_norms=("input",),
    bias_switch=_ATTENTION_SWITCH,
    ties_by_default=True,
)
_GLM = replace(
    _MISTRAL,
    name="glm",
    model_types=("glm",),
    class_prefixes=("Glm",),
    roles={**_ATTENTION, **_FUSED_GATE_UP},
    bias=_bias(required="q k v"),
    bias_switch=_switch(attention_bias="q k v"),
    default_head_dim=128,
    partial_rotary=0.5,
)
_MLA_MOE = replace(
    _MISTRAL,
    name="deepseek_v3",
    model_types=("deepseek_v3", "deepseek_v32", "kimi_k2", "glm_moe_dsa", "glm4_moe_lite"),
    class_prefixes=("DeepseekV3", "DeepseekV32", "GlmMoeDsa", "Glm4MoeLite"),
    roles={**{k: v for k, v in _MOE.items() if k not in ("q", "k", "v")}},
    explained=("self_attn",),
    bias_switch=_switch(attention_bias="o"),
    attention="mla",
)

FAMILIES: tuple[Family, ...] = (
    _LLAMA,
    _MISTRAL,
    replace(_MISTRAL, name="ministral3", model_types=("ministral3",), class_prefixes=("Ministral3",),
            default_head_dim=128),
    replace(_MISTRAL, name="mixtral", model_types=("mixtral",), class_prefixes=("Mixtral",),
            roles={**_ATTENTION, **_EXPERTS}),
    _QWEN2,
    replace(_QWEN2, name="qwen2_moe", model_types=("qwen2_moe",), class_prefixes=("Qwen2Moe",), roles=_MOE,
            bias_switch=_switch(qkv_bias="q k v"), explained=_SHARED_GATE),
    _QWEN3,
    replace(_QWEN3, name="qwen3_moe", model_types=("qwen3_moe", "qwen3_vl_moe", "qwen3_vl_moe_text"),
            class_prefixes=("Qwen3Moe", "Qwen3VLMoe"), roles=_MOE, default_head_dim=None),
    _QWEN3_NEXT,
    replace(_QWEN3_NEXT, name="qwen3_5", model_types=("qwen3_5", "qwen3_5_text"), class_prefixes=("Qwen3_5",),
            roles=_DENSE, explained=()),
    replace(_QWEN3_NEXT, name="qwen3_5_moe", model_types=("qwen3_5_moe", "qwen3_5_moe_text"),
            class_prefixes=("Qwen3_5Moe",)),
    replace(_LLAMA, name="gemma", model_types=("gemma",), class_prefixes=("Gemma",), bias_switch=_ATTENTION_SWITCH,
            rejects_indivisible_hidden=False, default_head_dim=256, ties_by_default=True),
    _GEMMA2,
    replace(_GEMMA2, name="gemma3", model_types=("gemma3_text", "gemma3"), class_prefixes=("Gemma3",),
            norms=_FOUR_QK_NORMS, qk_norm="per-head"),
    replace(_MISTRAL, name="phi3", model_types=("phi3",), class_prefixes=("Phi3",),
            roles={"qkv": ("self_attn.qkv_proj",), "o": ("self_attn.o_proj",), **_FUSED_GATE_UP},
            fused_qkv="blocks"),
    replace(_MISTRAL, name="phimoe", model_types=("phimoe",), class_prefixes=("Phimoe", "PhiMoE"),
            roles={**_ATTENTION, **_EXPERTS}, bias_switch=_ATTENTION_SWITCH),
    replace(_MISTRAL, name="phi", model_types=("phi",), class_prefixes=("Phi",),
            roles={**_attention("self_attn", o="dense"), "up": ("mlp.fc1",), "down": ("mlp.fc2",)},
            norms={"input": ("input_layernorm",), "q": ("self_attn.q_layernorm",), "k": ("self_attn.k_layernorm",)},
            required_norms=("input",), qk_norm="per-head", norm_switch={"q": "qk_layernorm", "k": "qk_layernorm"},
            final_norm="model.final_layernorm", bias=_bias(required="q k v o up down"), mlp="plain",
            partial_rotary=0.5),
    replace(_LLAMA, name="granite", model_types=("granite",), class_prefixes=("Granite",),
            rejects_indivisible_hidden=False),
    replace(_MISTRAL, name="granitemoe", model_types=("granitemoe",), class_prefixes=("GraniteMoe",),
            roles={**_ATTENTION, **_EXPERTS}, bias_switch=_ATTENTION_SWITCH),
    replace(_MISTRAL, name="olmo", model_types=("olmo",), class_prefixes=("Olmo",), norms={}, required_norms=(),
            final_norm="", bias_switch=_ATTENTION_SWITCH),
    _OLMO2,
    replace(_OLMO2, name="olmo3", model_types=("olmo3",), class_prefixes=("Olmo3",)),
    replace(_MISTRAL, name="olmoe", model_types=("olmoe",), class_prefixes=("Olmoe",), norms=_QK_NORMS,
            qk_norm="all-heads", roles=_MOE, bias_switch=_ATTENTION_SWITCH),
    replace(_COHERE2, name="cohere", model_types=("cohere",), class_prefixes=("Cohere",),
            norms={"input": ("input_layernorm",), "q": ("self_attn.q_norm",), "k": ("self_attn.k_norm",)},
            qk_norm="per-head-rows", norm_switch={"q": "use_qk_norm", "k": "use_qk_norm"}),
    _COHERE2,
    replace(_MISTRAL, name="starcoder2", model_types=("starcoder2",), class_prefixes=("Starcoder2",),
            roles={**_ATTENTION, "up": ("mlp.c_fc",), "down": ("mlp.c_proj",)},
            bias=_bias(required="q k v o up down"), bias_switch=_switch(use_bias="q k v o up down"), mlp="plain",
            ties_by_default=True),
    replace(_MISTRAL, name="stablelm", model_types=("stablelm", "stablelm_epoch"), class_prefixes=("StableLm",),
            norms={**_NORMS, "q": ("self_attn.q_layernorm",), "k": ("self_attn.k_layernorm",)},
            qk_norm="per-head-rows", bias_switch=_switch(use_qkv_bias="q k v"), partial_rotary=0.25,
            norm_switch={"q": "qk_layernorm", "k": "qk_layernorm", "post_attention": "!use_parallel_residual"}),
    replace(_MISTRAL, name="internlm2", model_types=("internlm2",), class_prefixes=("InternLM2",),
            roles={"qkv": ("attention.wqkv",), "o": ("attention.wo",), **_mlp("feed_forward", "w1", "w3", "w2")},
            norms={"input": ("attention_norm",), "post_attention": ("ffn_norm",)}, embedding="model.tok_embeddings",
            lm_head="output", fused_qkv="per-kv-group", bias=_bias(optional="qkv o"), stock_class=False),
    replace(_LLAMA, name="internlm3", model_types=("internlm3",), class_prefixes=("InternLM3",),
            bias_switch=_switch(qkv_bias="q k v", bias="o gate up down"), default_head_dim=128),
    replace(_MISTRAL, name="baichuan", model_types=("baichuan",), class_prefixes=("Baichuan", "BaiChuan"),
            roles={"qkv": ("self_attn.W_pack",), "o": ("self_attn.o_proj",), **_mlp("mlp")}, fused_qkv="blocks",
            stock_class=False),
    replace(_MISTRAL, name="falcon", model_types=("falcon", "RefinedWeb", "RefinedWebModel"),
            class_prefixes=("Falcon", "RW"),
            roles={"qkv": ("self_attention.query_key_value",), "o": ("self_attention.dense",),
                   "up": ("mlp.dense_h_to_4h",), "down": ("mlp.dense_4h_to_h",)},
            norms={"input": ("ln_attn", "input_layernorm"), "mlp": ("ln_mlp",),
                   "post_attention": ("post_attention_layernorm",)},
            required_norms=("input",), layers="transformer.h", embedding="transformer.word_embeddings",
            final_norm="transformer.ln_f", fused_qkv="per-kv-group", mlp="plain", bias=_NO_BIAS,
            bias_switch=_switch(bias="qkv o up down"), ties_by_default=True,
            config_keys={"num_key_value_heads": "num_kv_heads", "intermediate_size": "ffn_hidden_size",
                         "num_attention_heads": "n_head", "num_hidden_layers": "n_layer"}),
    replace(_LLAMA, name="nemotron", model_types=("nemotron",), class_prefixes=("Nemotron",),
            roles={**_ATTENTION, **_mlp("mlp", gate="")}, mlp="plain", rejects_indivisible_hidden=False,
            partial_rotary=0.5),
    _GLM,
    replace(_GLM, name="glm4", model_types=("glm4",), class_prefixes=("Glm4",),
            norms={**_NORMS, "post_self_attn": ("post_self_attn_layernorm",), "post_mlp": ("post_mlp_layernorm",)},
            required_norms=("input", "post_attention", "post_self_attn", "post_mlp")),
    replace(_GLM, name="glm4_moe", model_types=("glm4_moe",), class_prefixes=("Glm4Moe",), roles=_MOE,
            norms=_QK_NORMS, qk_norm="per-head", norm_switch={"q": "use_qk_norm", "k": "use_qk_norm"}, bias=_NO_BIAS,
            default_head_dim=None),
    replace(_MISTRAL, name="chatglm", model_types=("chatglm",), class_prefixes=("ChatGLM",),
            roles={"qkv": ("self_attention.query_key_value",), "o": ("self_attention.dense",),
                   "gate_up": ("mlp.dense_h_to_4h",), "down": ("mlp.dense_4h_to_h",)},
            layers="transformer.encoder.layers", embedding="transformer.embedding.word_embeddings",
            final_norm="transformer.encoder.final_layernorm", lm_head="transformer.output_layer", fused_qkv="blocks",
            bias=_bias(optional="qkv o"), partial_rotary=0.5, stock_class=False,
            config_keys={"num_key_value_heads": "multi_query_group_num", "intermediate_size": "ffn_hidden_size",
                         "num_hidden_layers": "num_layers", "vocab_size": "padded_vocab_size",
                         "head_dim": "kv_channels"}),
    replace(_MISTRAL, name="gpt_oss", model_types=("gpt_oss",), class_prefixes=("GptOss",),
            roles={**_ATTENTION, **_EXPERTS, "router": ("mlp.router",), "sinks": ("self_attn.sinks",)},
            bias=_bias(required="q k v o"), bias_switch=_ATTENTION_SWITCH, gate_up="interleaved",
            stacked_transposed=True, default_head_dim=64),
    _MLA_MOE,
    replace(_MLA_MOE, name="deepseek_v2", model_types=("deepseek_v2",), class_prefixes=("DeepseekV2",)),
    replace(_MLA_MOE, name="minicpm3", model_types=("minicpm3",), class_prefixes=("MiniCPM3",), roles={
            **{k: v for k, v in _DENSE.items() if k not in ("q", "k", "v")}}),
    replace(_LLAMA, name="minicpm", model_types=("minicpm",), class_prefixes=("MiniCPM",), bias_switch={},
            rejects_indivisible_hidden=False, stock_class=False),
    replace(_LLAMA, name="smollm3", model_types=("smollm3",), class_prefixes=("SmolLM3",), ties_by_default=True,
            rejects_indivisible_hidden=False),
    replace(_OLMO2, name="exaone4", model_types=("exaone4",), class_prefixes=("Exaone4",), qk_norm="per-head",
            bias_switch={}),
    replace(_LLAMA, name="seed_oss", model_types=("seed_oss",), class_prefixes=("SeedOss",),
            bias=_bias(required="q k v"),
            bias_switch=_switch(attention_bias="q k v", attention_out_bias="o", mlp_bias="gate up down"),
            rejects_indivisible_hidden=False, default_head_dim=128),
    replace(_LLAMA, name="ernie4_5", model_types=("ernie4_5",), class_prefixes=("Ernie4_5",),
            bias_switch=_switch(use_bias="q k v o gate up down"), rejects_indivisible_hidden=False,
            default_head_dim=128, ties_by_default=True),
    replace(_LLAMA, name="hunyuan_v1_dense", model_types=("hunyuan_v1_dense",), class_prefixes=("HunYuanDenseV1",),
            norms={**_NORMS, "q": ("self_attn.query_layernorm",), "k": ("self_attn.key_layernorm",)},
            qk_norm="per-head", bias_switch=_ATTENTION_SWITCH, rejects_indivisible_hidden=False),
    replace(_LLAMA, name="helium", model_types=("helium",), class_prefixes=("Helium",),
            bias_switch=_switch(attention_bias="q k v", mlp_bias="gate up down"), rejects_indivisible_hidden=False,
            default_head_dim=128),
    replace(_LLAMA, name="arcee", model_types=("arcee",), class_prefixes=("Arcee",),
            roles={**_ATTENTION, **_mlp("mlp", gate="")}, mlp="plain"),
    replace(_LLAMA, name="apertus", model_types=("apertus",), class_prefixes=("Apertus",),
            roles={**_ATTENTION, **_mlp("mlp", gate="")}, mlp="plain", qk_norm="per-head",
            norms={"input": ("attention_layernorm",), "post_attention": ("feedforward_layernorm",),
                   "q": ("self_attn.q_norm",), "k": ("self_attn.k_norm",)},
            explained=("mlp.act_fn",), bias_switch=_ATTENTION_SWITCH, rejects_indivisible_hidden=False),
    replace(_MISTRAL, name="minimax_m2", model_types=("minimax_m2",), class_prefixes=("MiniMaxM2",),
            roles={**_ATTENTION, **_EXPERTS}, norms=_QK_NORMS, qk_norm="all-heads", default_head_dim=128),
    replace(_LLAMA, name="mllama", model_types=("mllama", "mllama_text_model"), class_prefixes=("Mllama",),
            roles={**_mlp("mlp"),
                   **{r: (f"self_attn.{r}_proj", f"cross_attn.{r}_proj") for r in ("q", "k", "v", "o")}},
            norms={**_NORMS, "q": ("cross_attn.q_norm",), "k": ("cross_attn.k_norm",)},
            qk_norm="per-head", norm_switch={"q": "use_qk_norm", "k": "use_qk_norm"},
            explained=("cross_attn_attn_gate", "cross_attn_mlp_gate"), bias_switch={},
            rejects_indivisible_hidden=False),
    replace(_MISTRAL, name="llama4", model_types=("llama4_text", "llama4"), class_prefixes=("Llama4",),
            roles={**_ATTENTION, **_mlp("feed_forward"), "router": ("feed_forward.router",),
                   "stacked": ("feed_forward.experts",), "stacked_gate_up": ("gate_up_proj",),
                   "stacked_down": ("down_proj",), "shared": ("feed_forward.shared_expert",),
                   "expert_gate": ("gate_proj",), "expert_up": ("up_proj",), "expert_down": ("down_proj",)},
            stacked_transposed=True, bias_switch=_ATTENTION_SWITCH, default_head_dim=128),
)  # fmt: skip
"""Every family that has names of its own. Order matters only where two would claim the same ``model_type``."""

_PATHS = ("self_attn", "attention", "attn", "self_attention", "cross_attn")


def _anywhere(*names: str, paths: tuple[str, ...] = _PATHS) -> tuple[str, ...]:
    return tuple(f"{path}.{name}" for path in paths for name in names)


_MLP_PATHS = ("mlp", "feed_forward", "ffn")

GENERIC = Family(
    name="generic",
    model_types=(),
    class_prefixes=(),
    roles={
        "q": _anywhere("q_proj", "wq", "query", "q", "query_proj"),
        "k": _anywhere("k_proj", "wk", "key", "k", "key_proj"),
        "v": _anywhere("v_proj", "wv", "value", "v", "value_proj"),
        "o": _anywhere("o_proj", "wo", "out_proj", "dense", "c_proj", "o", "output_proj"),
        "qkv": _anywhere("qkv_proj", "wqkv", "query_key_value", "W_pack", "c_attn", "qkv", "Wqkv"),
        "sinks": _anywhere("sinks"),
        **_EXPERTS,
        "gate": _anywhere("gate_proj", "w1", paths=_MLP_PATHS),
        "up": _anywhere("up_proj", "w3", "c_fc", "fc1", "dense_h_to_4h", "fc_in", paths=_MLP_PATHS),
        "down": _anywhere("down_proj", "w2", "c_proj", "fc2", "dense_4h_to_h", "fc_out", paths=_MLP_PATHS),
        "gate_up": _anywhere("gate_up_proj", "w13", paths=_MLP_PATHS),
        "experts": (*_EXPERTS["experts"], "feed_forward.experts.{e}"),
        "stacked": (*_EXPERTS["stacked"], "feed_forward.experts"),
        "shared": (*_EXPERTS["shared"], "feed_forward.shared_expert"),
    },
    norms={
        "input": ("input_layernorm", "attention_norm", "attn_norm", "ln_1", "ln_attn", "norm1", "attention_layernorm"),
        "post_attention": (
            "post_attention_layernorm",
            "ffn_norm",
            "ln_2",
            "norm2",
            "mlp_norm",
            "feedforward_layernorm",
        ),
        "pre_feedforward": ("pre_feedforward_layernorm", "pre_mlp_layernorm"),
        "post_feedforward": ("post_feedforward_layernorm", "post_mlp_layernorm"),
        "post_self_attn": ("post_self_attn_layernorm",),
        "mlp": ("ln_mlp",),
        "q": _anywhere("q_norm", "q_layernorm", "query_layernorm"),
        "k": _anywhere("k_norm", "k_layernorm", "key_layernorm"),
    },
    required_norms=(),
    linear=("linear_attn", "mamba", "mixer", "temporal_block"),
    explained=_SHARED_GATE,
    bias=_OPTIONAL_BIAS,
    stock_class=False,
    generic=True,
)
"""The fallback: any model whose names are among the usual ones."""

_BY_NAME: Mapping[str, Family] = MappingProxyType({family.name: family for family in (*FAMILIES, GENERIC)})
_BY_MODEL_TYPE: Mapping[str, Family] = MappingProxyType(
    {model_type: family for family in reversed(FAMILIES) for model_type in family.model_types}
)
_BY_CLASS = sorted(
    ((prefix, family) for family in FAMILIES for prefix in family.class_prefixes), key=lambda pair: -len(pair[0])
)
_CLASS_ENDINGS = ("For", "Model", "Decoder", "Attention", "MLP", "Text", "PreTrained", "Config", "Sdpa", "Flash", "LM")


def family_by_name(name: str) -> Family | None:
    """The family called ``name``, or the one whose config says ``model_type: name``."""
    return _BY_NAME.get(name) or _BY_MODEL_TYPE.get(name)


def family_by_model_type(model_type: str) -> Family | None:
    """The family whose config says ``model_type``, None when it is unknown."""
    return _BY_MODEL_TYPE.get(model_type) or (
        family_by_name(model_type.removeprefix(OWN_TYPE)) if model_type.startswith(OWN_TYPE) else None
    )


def family_by_class(class_name: str) -> Family | None:
    """The family of a model, layer or config class, by its short or full name; None when it is unknown.

    >>> family_by_class("transformers.models.qwen2_moe.modeling_qwen2_moe.Qwen2MoeDecoderLayer").name
    'qwen2_moe'
    """
    short = class_name.rpartition(".")[2]
    for prefix, family in _BY_CLASS:
        if short.startswith(prefix) and short[len(prefix) :].startswith(_CLASS_ENDINGS):
            return family
    return None


def without_certainty(family: Family) -> Family:
    """``family`` as far as tensor names alone can vouch for it: its bias habits and its ties are not known."""
    return replace(family, bias=_OPTIONAL_BIAS, bias_switch={}, rejects_indivisible_hidden=False)
