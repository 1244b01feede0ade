"""Writes one JSON per family: what transformers' own classes store on disk, hold live, and configure.

Run in the development environment: ``python tests/data/families/make.py [family …]``. Every model is tiny, its
sizes chosen so that a confusion shows: 12 query heads on 3 KV heads (4:1, not a power of two), head_dim that is
not hidden_size / heads where the family's config can say so, three layers.
"""

# ruff: noqa: C408 - dict(name=…) reads like the config call that it becomes
from __future__ import annotations

import json
import os
import sys
import tempfile
import warnings
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
warnings.filterwarnings("ignore")

HERE = Path(__file__).parent

BASE = dict(
    vocab_size=160,
    hidden_size=96,
    intermediate_size=72,
    num_hidden_layers=3,
    num_attention_heads=12,
    num_key_value_heads=3,
    max_position_embeddings=64,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)
ODD = dict(head_dim=10)
MOE = dict(num_experts=5, num_experts_per_tok=2, moe_intermediate_size=28)
LINEAR = dict(
    linear_num_value_heads=4, linear_num_key_heads=2, linear_key_head_dim=6, linear_value_head_dim=6,
    linear_conv_kernel_dim=4,
)  # fmt: skip
VISION = dict(
    hidden_size=24, intermediate_size=20, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
)

ROPE = dict(rope_type="default", rope_theta=1e4)
MROPE = ROPE | dict(mrope_section=[2, 1, 1])

MODELS: dict[str, tuple[str, str, dict]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", BASE | ODD),
    "llama_biased": ("LlamaConfig", "LlamaForCausalLM", BASE | dict(attention_bias=True, mlp_bias=True)),
    "llama_tied": ("LlamaConfig", "LlamaForCausalLM", BASE | ODD | dict(tie_word_embeddings=True)),
    "llama_backbone": ("LlamaConfig", "LlamaModel", BASE | ODD),
    "mistral": ("MistralConfig", "MistralForCausalLM", BASE | ODD),
    "ministral": ("MinistralConfig", "MinistralForCausalLM", BASE | ODD),
    "mixtral": ("MixtralConfig", "MixtralForCausalLM", BASE | ODD | dict(num_local_experts=5)),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", BASE),
    "qwen2_moe": (
        "Qwen2MoeConfig", "Qwen2MoeForCausalLM",
        BASE | MOE | dict(shared_expert_intermediate_size=44, mlp_only_layers=[1]),
    ),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", BASE | ODD),
    "qwen3_moe": ("Qwen3MoeConfig", "Qwen3MoeForCausalLM", BASE | ODD | MOE | dict(mlp_only_layers=[0])),
    "qwen3_next": (
        "Qwen3NextConfig", "Qwen3NextForCausalLM",
        BASE | ODD | MOE | LINEAR
        | dict(
            shared_expert_intermediate_size=44, mlp_only_layers=[0],
            layer_types=["linear_attention", "full_attention", "linear_attention"],
        ),
    ),
    "gemma": ("GemmaConfig", "GemmaForCausalLM", BASE | ODD),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM", BASE | ODD),
    "gemma3_text": ("Gemma3TextConfig", "Gemma3ForCausalLM", BASE | ODD),
    "gemma3": (
        "Gemma3Config", "Gemma3ForConditionalGeneration",
        dict(text_config=BASE | ODD, vision_config=VISION | dict(model_type="siglip_vision_model"),
             mm_tokens_per_image=4, image_token_index=150),
    ),
    "phi3": ("Phi3Config", "Phi3ForCausalLM", BASE),
    "phimoe": (
        "PhimoeConfig", "PhimoeForCausalLM", BASE | dict(num_local_experts=5, attention_bias=True, lm_head_bias=True)
    ),
    "granite": ("GraniteConfig", "GraniteForCausalLM", BASE),
    "granitemoe": ("GraniteMoeConfig", "GraniteMoeForCausalLM", BASE | dict(num_local_experts=5)),
    "olmo": ("OlmoConfig", "OlmoForCausalLM", BASE),
    "olmo2": ("Olmo2Config", "Olmo2ForCausalLM", BASE),
    "olmo3": ("Olmo3Config", "Olmo3ForCausalLM", BASE),
    "olmoe": ("OlmoeConfig", "OlmoeForCausalLM", BASE | dict(num_experts=5, num_experts_per_tok=2)),
    "cohere": ("CohereConfig", "CohereForCausalLM", BASE | dict(use_qk_norm=True)),
    "cohere_plain": ("CohereConfig", "CohereForCausalLM", BASE),
    "cohere2": ("Cohere2Config", "Cohere2ForCausalLM", BASE),
    "starcoder2": ("Starcoder2Config", "Starcoder2ForCausalLM", BASE),
    "stablelm": ("StableLmConfig", "StableLmForCausalLM", BASE),
    "stablelm_norms": (
        "StableLmConfig", "StableLmForCausalLM", BASE | dict(qk_layernorm=True, use_qkv_bias=True)
    ),
    "stablelm_parallel": ("StableLmConfig", "StableLmForCausalLM", BASE | dict(use_parallel_residual=True)),
    "falcon": (
        "FalconConfig", "FalconForCausalLM",
        {k: v for k, v in BASE.items() if k != "num_key_value_heads"}
        | dict(num_kv_heads=3, new_decoder_architecture=True, alibi=False, ffn_hidden_size=72),
    ),
    "falcon_multi_query": (
        "FalconConfig", "FalconForCausalLM",
        {k: v for k, v in BASE.items() if k != "num_key_value_heads"} | dict(multi_query=True, ffn_hidden_size=72),
    ),
    "nemotron": ("NemotronConfig", "NemotronForCausalLM", BASE | ODD),
    "glm": ("GlmConfig", "GlmForCausalLM", BASE | ODD),
    "glm4": ("Glm4Config", "Glm4ForCausalLM", BASE | ODD),
    "glm4_moe": (
        "Glm4MoeConfig", "Glm4MoeForCausalLM",
        BASE | ODD | dict(n_routed_experts=5, num_experts_per_tok=2, moe_intermediate_size=28, n_group=1,
                          topk_group=1, first_k_dense_replace=1, use_qk_norm=True),
    ),
    "gpt_oss": ("GptOssConfig", "GptOssForCausalLM", BASE | ODD | dict(num_local_experts=5, num_experts_per_tok=2)),
    "deepseek_v2": (
        "DeepseekV2Config", "DeepseekV2ForCausalLM",
        BASE | dict(kv_lora_rank=12, q_lora_rank=18, qk_rope_head_dim=4, v_head_dim=10, qk_nope_head_dim=6,
                    n_routed_experts=5, num_experts_per_tok=2, moe_intermediate_size=28, n_shared_experts=1,
                    first_k_dense_replace=1, num_key_value_heads=12, n_group=1, topk_group=1),
    ),
    "deepseek_v3": (
        "DeepseekV3Config", "DeepseekV3ForCausalLM",
        BASE | dict(kv_lora_rank=12, q_lora_rank=18, qk_rope_head_dim=4, v_head_dim=10, qk_nope_head_dim=6,
                    n_routed_experts=5, num_experts_per_tok=2, moe_intermediate_size=28, n_shared_experts=1,
                    first_k_dense_replace=1, num_key_value_heads=12, n_group=1, topk_group=1),
    ),
    "smollm3": ("SmolLM3Config", "SmolLM3ForCausalLM", BASE),
    "exaone4": ("Exaone4Config", "Exaone4ForCausalLM", BASE | dict(sliding_window=8)),
    "seed_oss": ("SeedOssConfig", "SeedOssForCausalLM", BASE | ODD),
    "ernie4_5": ("Ernie4_5Config", "Ernie4_5ForCausalLM", BASE | ODD),
    "hunyuan_v1_dense": ("HunYuanDenseV1Config", "HunYuanDenseV1ForCausalLM", BASE | ODD),
    "helium": ("HeliumConfig", "HeliumForCausalLM", BASE | dict(head_dim=8)),
    "arcee": ("ArceeConfig", "ArceeForCausalLM", BASE | ODD),
    "apertus": ("ApertusConfig", "ApertusForCausalLM", BASE),
    "minimax_m2": (
        "MiniMaxM2Config", "MiniMaxM2ForCausalLM", BASE | ODD | dict(num_local_experts=5, num_experts_per_tok=2)
    ),
    "qwen2_vl": (
        "Qwen2VLConfig", "Qwen2VLForConditionalGeneration",
        dict(text_config=BASE | dict(rope_parameters=MROPE),
             vision_config=dict(depth=1, embed_dim=24, num_heads=2, hidden_size=96)),
    ),
    "qwen2_5_vl": (
        "Qwen2_5_VLConfig", "Qwen2_5_VLForConditionalGeneration",
        dict(text_config=BASE | dict(rope_parameters=MROPE),
             vision_config=dict(depth=1, num_heads=2, hidden_size=24, intermediate_size=20, out_hidden_size=96)),
    ),
    "qwen3_vl": (
        "Qwen3VLConfig", "Qwen3VLForConditionalGeneration",
        dict(text_config=BASE | ODD | dict(rope_parameters=MROPE | dict(mrope_section=[2, 2, 1])),
             vision_config=dict(depth=1, num_heads=2, hidden_size=24, intermediate_size=20, out_hidden_size=96,
                                deepstack_visual_indexes=[0])),
    ),
    "llava": (
        "LlavaConfig", "LlavaForConditionalGeneration",
        dict(text_config=BASE | ODD | dict(model_type="llama"),
             vision_config=VISION | dict(model_type="clip_vision_model", projection_dim=24), image_token_index=150),
    ),
    "mistral3": (
        "Mistral3Config", "Mistral3ForConditionalGeneration",
        dict(text_config=BASE | ODD | dict(model_type="mistral"),
             vision_config=VISION | dict(model_type="pixtral", head_dim=12), image_token_index=150),
    ),
    "mllama": (
        "MllamaConfig", "MllamaForConditionalGeneration",
        dict(text_config=BASE | dict(cross_attention_layers=[1], rope_parameters=ROPE),
             vision_config=dict(hidden_size=24, intermediate_size=20, num_hidden_layers=1, attention_heads=2,
                                num_global_layers=1, image_size=28, patch_size=14, intermediate_layers_indices=[0],
                                vision_output_dim=48, max_num_tiles=1, supported_aspect_ratios=[[1, 1]]),
             image_token_index=150),
    ),
    "llama4": (
        "Llama4Config", "Llama4ForConditionalGeneration",
        dict(text_config=BASE | ODD | dict(intermediate_size_mlp=44, num_local_experts=5, interleave_moe_layer_step=2),
             vision_config=VISION | dict(intermediate_size=96, vision_output_dim=24, projector_input_dim=24,
                                         projector_output_dim=24, hidden_size=24)),
    ),
    "qwen3_5_text": (
        "Qwen3_5TextConfig", "Qwen3_5ForCausalLM",
        BASE | ODD | LINEAR | dict(layer_types=["linear_attention", "full_attention", "linear_attention"]),
    ),
}  # fmt: skip


def plain(value: object) -> bool:
    """Whether the readers would keep this attribute."""
    if isinstance(value, (list, tuple)):
        return len(value) <= 8 and all(plain(item) for item in value)
    return value is None or type(value) in (bool, int, float, str)


def tensors_on_disk(model) -> tuple[dict, dict]:
    from safetensors import safe_open

    names = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "I64": "int64"}
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, safe_serialization=True)
        found = {}
        for file in sorted(Path(folder).glob("*.safetensors")):
            with safe_open(str(file), "pt") as reader:
                for name in reader.keys():  # noqa: SIM118 - not a mapping
                    view = reader.get_slice(name)
                    found[name] = [names[view.get_dtype()], list(view.get_shape())]
        config = json.loads((Path(folder) / "config.json").read_text())
    return found, config


def live(model) -> tuple[dict, dict, dict]:
    tensors, modules, storages = {}, {}, {}
    for kind, named in (
        ("parameter", model.named_parameters(remove_duplicate=False)),
        ("buffer", model.named_buffers(remove_duplicate=False)),
    ):
        for name, value in named:
            tensors[name] = [str(value.dtype).removeprefix("torch."), list(value.shape), kind]
            storages.setdefault(id(value), []).append(name)
    for path, module in model.named_modules():
        kept = {
            key: value
            for key, value in vars(module).items()
            if not key.startswith("_") and key not in ("training", "name_or_path", "warnings_issued") and plain(value)
        }
        cls = type(module)
        modules[path] = [f"{cls.__module__}.{cls.__qualname__}", kept]
    shared = [names for names in storages.values() if len(names) > 1]
    return tensors, modules, {"shared": shared}


def build(name: str):
    """The tiny model called ``name``, always the same."""
    import torch
    import transformers

    torch.manual_seed(0)
    config_class, model_class, settings = MODELS[name]
    config = getattr(transformers, config_class)(**settings)
    return getattr(transformers, model_class)(config)


def record(name: str, model) -> dict:
    """Everything that the golden of ``name`` holds."""
    import transformers

    disk, written = tensors_on_disk(model)
    tensors, modules, extra = live(model)
    config_class = MODELS[name][0]
    return {
        "family": name,
        "made_with": f"transformers {transformers.__version__}",
        "config_class": f"{type(model.config).__module__}.{config_class}",
        "config": {key: value for key, value in written.items() if key not in ("vision_config", "audio_config")},
        "disk": few_of_the_tower(disk),
        "live": few_of_the_tower(tensors),
        "modules": {path: entry for path, entry in modules.items() if not vision(path)},
        **extra,
    }


def vision(name: str) -> bool:
    """Names inside an image or audio tower: three tensors of each are enough."""
    return any(part in name.split(".") for part in ("vision_tower", "visual", "vision_model"))


def few_of_the_tower(tensors: dict) -> dict:
    tower = [item for item in tensors.items() if vision(item[0])]
    return {name: entry for name, entry in tensors.items() if not vision(name)} | dict(tower[:3])


def as_json(golden: dict) -> str:
    """JSON with one tensor or module per line."""
    lines = []
    for key, value in golden.items():
        if isinstance(value, dict) and key in ("disk", "live", "modules"):
            inner = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in value.items())
            lines.append(f" {json.dumps(key)}: {{\n{inner}\n }}")
        else:
            lines.append(f" {json.dumps(key)}: {json.dumps(value, default=str)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def main(names: list[str]) -> int:
    import traceback

    failed = 0
    for name in names or MODELS:
        try:
            (HERE / f"{name}.json").write_text(as_json(record(name, build(name))))
            print("wrote", name)
        except Exception:
            failed += 1
            print("FAILED", name, traceback.format_exc(limit=-2))
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
