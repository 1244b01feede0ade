"""What the table says of a family's config class is what that class does when nothing is stated."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from gqacheck.geometry.families import FAMILIES, Family, family_by_class  # noqa: E402 - needs transformers
from gqacheck.geometry.measure import measure  # noqa: E402

SIZES = {"num_hidden_layers": 2, "num_attention_heads": 12, "num_key_value_heads": 4, "vocab_size": 160}
CLASSES = {
    "llama": "LlamaConfig", "mistral": "MistralConfig", "ministral3": "Ministral3Config", "mixtral": "MixtralConfig",
    "qwen2": "Qwen2Config", "qwen2_moe": "Qwen2MoeConfig", "qwen3": "Qwen3Config", "qwen3_moe": "Qwen3MoeConfig",
    "qwen3_next": "Qwen3NextConfig", "qwen3_5": "Qwen3_5TextConfig", "qwen3_5_moe": "Qwen3_5MoeTextConfig",
    "gemma": "GemmaConfig", "gemma2": "Gemma2Config", "gemma3": "Gemma3TextConfig", "phi3": "Phi3Config",
    "phimoe": "PhimoeConfig", "phi": "PhiConfig", "granite": "GraniteConfig", "granitemoe": "GraniteMoeConfig",
    "olmo": "OlmoConfig", "olmo2": "Olmo2Config", "olmo3": "Olmo3Config", "olmoe": "OlmoeConfig",
    "cohere": "CohereConfig", "cohere2": "Cohere2Config", "starcoder2": "Starcoder2Config",
    "stablelm": "StableLmConfig", "falcon": "FalconConfig", "nemotron": "NemotronConfig", "glm": "GlmConfig",
    "glm4": "Glm4Config", "glm4_moe": "Glm4MoeConfig", "gpt_oss": "GptOssConfig", "smollm3": "SmolLM3Config",
    "exaone4": "Exaone4Config", "seed_oss": "SeedOssConfig", "ernie4_5": "Ernie4_5Config",
    "hunyuan_v1_dense": "HunYuanDenseV1Config", "helium": "HeliumConfig", "arcee": "ArceeConfig",
    "apertus": "ApertusConfig", "minimax_m2": "MiniMaxM2Config", "mllama": "MllamaTextConfig",
    "llama4": "Llama4TextConfig",
}  # fmt: skip
STOCK = [family for family in FAMILIES if family.stock_class and family.name in CLASSES]
OUT_OF_SCOPE = {"deepseek_v2", "deepseek_v3", "minicpm3", "internlm3"}


def build(family: Family, hidden: int = 96, **more: Any) -> Any:
    return getattr(transformers, CLASSES[family.name])(**{**SIZES, "hidden_size": hidden, **more})


def test_every_stock_family_is_compared() -> None:
    assert {family.name for family in FAMILIES if family.stock_class} - set(CLASSES) == OUT_OF_SCOPE


@pytest.mark.parametrize("family", STOCK, ids=lambda family: family.name)
def test_class_prefix_names_the_config_class(family: Family) -> None:
    found = family_by_class(CLASSES[family.name])
    assert found is not None
    assert found.name == family.name


@pytest.mark.parametrize("family", STOCK, ids=lambda family: family.name)
def test_default_head_dim_is_what_the_config_class_takes(family: Family) -> None:
    taken = getattr(build(family), "head_dim", None)
    expected = family.default_head_dim if family.default_head_dim is not None else 96 // 12
    assert taken in (expected, None)
    assert taken is not None or family.default_head_dim is None


@pytest.mark.parametrize("family", STOCK, ids=lambda family: family.name)
def test_ties_by_default_is_what_the_config_class_says(family: Family) -> None:
    assert bool(build(family).tie_word_embeddings) == family.ties_by_default


@pytest.mark.parametrize("family", STOCK, ids=lambda family: family.name)
def test_rejects_indivisible_hidden_is_what_the_config_class_does(family: Family) -> None:
    stated = {} if family.name == "falcon" else {"head_dim": 8}
    if family.rejects_indivisible_hidden:
        with pytest.raises(Exception, match="multiple"):
            build(family, hidden=100, **stated)
    else:
        assert build(family, hidden=100, **stated).hidden_size == 100


@pytest.mark.parametrize("family", STOCK, ids=lambda family: family.name)
def test_partial_rotary_is_what_the_config_class_takes(family: Family) -> None:
    rope = getattr(build(family), "rope_parameters", None) or {}
    assert rope.get("partial_rotary_factor", 1.0) == family.partial_rotary


def test_measure_is_importable_without_torch_modules() -> None:
    assert measure.__module__ == "gqacheck.geometry.measure"
