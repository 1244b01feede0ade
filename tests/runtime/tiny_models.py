"""Tiny random models of every family that the installed transformers can build: 12 query and 3 KV heads, 4 layers."""

from __future__ import annotations

from typing import Any

import torch

VOCAB = 320
_COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 12,
    "num_key_value_heads": 3,
    "head_dim": 8,
    "intermediate_size": 112,
    "max_position_embeddings": 512,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_MOE = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 64}

# (name, model_type, settings beside the common ones). Heads never equal head_dim, group_size never equals n_kv_heads.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama_rope3": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "llama_bias": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "mistral": ("mistral", {"head_dim": 16}),
    "mixtral": ("mixtral", {"num_local_experts": 5, "num_experts_per_tok": 2, "sliding_window": None}),
    "qwen2": ("qwen2", {}),
    "qwen2_tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2_sliding": ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}),
    "qwen2_moe": (
        "qwen2_moe",
        {**_MOE, "shared_expert_intermediate_size": 32, "mlp_only_layers": [1], "decoder_sparse_step": 1},
    ),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "qwen3_moe": ("qwen3_moe", {**_MOE, "mlp_only_layers": [0]}),
    "qwen3_next": (
        "qwen3_next",
        {
            **_MOE,
            "shared_expert_intermediate_size": 32,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "layer_types": ["linear_attention", "full_attention", "linear_attention", "full_attention"],
            "head_dim": 16,
        },
    ),
    "gemma": ("gemma", {"head_dim": 16}),
    "gemma2": ("gemma2", {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8}),
    "gemma3": (
        "gemma3_text",
        {
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
            "final_logit_softcapping": 5.0,
        },
    ),
    "phi3": ("phi3", {}),
    "granite": (
        "granite",
        {"logits_scaling": 4.0, "embedding_multiplier": 3.0, "residual_multiplier": 0.3, "attention_multiplier": 0.2},
    ),
    "olmo2": ("olmo2", {}),
    "cohere": ("cohere", {"logit_scale": 0.25}),
    "cohere_qk_norm": ("cohere", {"logit_scale": 0.25, "use_qk_norm": True}),
    "starcoder2": ("starcoder2", {}),
    "stablelm": ("stablelm", {}),
    "stablelm_qk_norm": ("stablelm", {"qk_layernorm": True, "use_qkv_bias": True}),
    "falcon": (
        "falcon",
        {"new_decoder_architecture": True, "num_kv_heads": 3, "alibi": False, "ffn_hidden_size": 112, "bias": False},
    ),
    "nemotron": ("nemotron", {}),
    "glm": ("glm", {}),
    "glm4": ("glm4", {}),
    "gpt_oss": (
        "gpt_oss",
        {
            "num_local_experts": 5,
            "num_experts_per_tok": 2,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
        },
    ),
}
# Families beyond those that are promised: whole models only, no cuts by hand.
CASES_BEYOND: dict[str, tuple[str, dict[str, Any]]] = {
    "cohere2": ("cohere2", {"sliding_window": 8}),
    "olmo": ("olmo", {}),
    "olmo3": ("olmo3", {"sliding_window": 8}),
    "olmoe": ("olmoe", {**_MOE, "intermediate_size": 64}),
    "smollm3": ("smollm3", {}),
    "phi": ("phi", {"qk_layernorm": True}),
    "phimoe": ("phimoe", {"num_local_experts": 5, "num_experts_per_tok": 2, "intermediate_size": 64}),
    "granitemoe": ("granitemoe", {"num_local_experts": 5, "num_experts_per_tok": 2, "intermediate_size": 64}),
    "exaone4": ("exaone4", {}),
    "seed_oss": ("seed_oss", {}),
    "ernie4_5": ("ernie4_5", {}),
    "hunyuan": ("hunyuan_v1_dense", {}),
    "helium": ("helium", {}),
    "arcee": ("arcee", {}),
    "apertus": ("apertus", {}),
    "glm4_moe": (
        "glm4_moe",
        {**_MOE, "n_routed_experts": 5, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1},
    ),
    "minimax_m2": ("minimax_m2", {"num_local_experts": 5, "num_experts_per_tok": 2, "intermediate_size": 64}),
    "llama4": ("llama4_text", {"num_local_experts": 5, "intermediate_size_mlp": 112}),
}
_LATENT = {
    "q_lora_rank": 32,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 12,
}
_LATENT_MOE = {**_MOE, "n_routed_experts": 8, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1, **_LATENT}
_DELTA_NET = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention", "linear_attention", "full_attention"],
    "head_dim": 16,
}
# The other families of the table that transformers can build; those with latent attention have no heads to cut.
CASES_FURTHER: dict[str, tuple[str, dict[str, Any]]] = {
    "ministral3": ("ministral3", {}),
    "internlm3": ("internlm3", {}),
    "qwen3_5": ("qwen3_5_text", _DELTA_NET),
    "qwen3_5_moe": ("qwen3_5_moe_text", {**_MOE, "shared_expert_intermediate_size": 32, **_DELTA_NET}),
    "deepseek_v2": ("deepseek_v2", {**_LATENT_MOE, "head_dim": 8}),
    "deepseek_v3": ("deepseek_v3", _LATENT_MOE),
    "glm4_moe_lite": ("glm4_moe_lite", _LATENT_MOE),
    "minicpm3": ("minicpm3", _LATENT),
}
NO_HEAD_DIM_KEY = ("falcon", "stablelm")


def tiny_config(name: str, **changes: Any) -> Any:
    """The config of one case, with ``changes`` on top."""
    from transformers import AutoConfig

    model_type, settings = {**CASES, **CASES_BEYOND, **CASES_FURTHER}[name]
    values = {**_COMMON, **settings, **changes}
    if model_type in NO_HEAD_DIM_KEY:
        values.pop("head_dim")
    if model_type == "falcon":
        values.pop("num_key_value_heads")
        values.pop("intermediate_size")
    return AutoConfig.for_model(model_type, **values)


def tiny_model(name: str, *, seed: int = 0, **changes: Any) -> Any:
    """A random model of one case in eval mode; norms, biases and sinks are random too, so that losing one shows."""
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(tiny_config(name, **changes))
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                scale = 0.3 if parameter.dim() > 1 else 0.1
                if parameter.dim() > 1 or parameter_name.endswith(("bias", "sinks")):
                    parameter.normal_(0.0, scale)
                elif not parameter_name.endswith("A_log"):
                    parameter.add_(torch.randn_like(parameter) * scale)
    return model.eval()


def tiny_ids(length: int = 24, batch: int = 2, seed: int = 1) -> torch.Tensor:
    """Random ids [batch, length], special ones left out."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCAB, (batch, length), generator=generator)


@torch.inference_mode()
def logits_of(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """The model's logits without a cache."""
    return model(input_ids=ids, use_cache=False).logits


def tiny_tokenizer(*, bos: bool = True, vocab: int = 300) -> Any:
    """A byte-level tokenizer of ``vocab`` entries; with ``bos`` it puts ``<s>`` in front by itself."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    entries = ["<unk>", "<s>", "</s>", *alphabet]
    merges = [(a, b) for a in "etaoin" for b in "thersnd"][: vocab - len(entries)]
    entries += [a + b for a, b in merges]
    made = Tokenizer(models.BPE(vocab={entry: i for i, entry in enumerate(entries)}, merges=merges, unk_token="<unk>"))
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    if bos:
        made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
