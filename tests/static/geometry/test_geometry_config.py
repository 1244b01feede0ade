"""Configs say anything; only whole numbers and lists of them are claims."""

from __future__ import annotations

from typing import Any

import pytest
from geometry_goldens import checkpoint, freeze, llama, on_disk
from hypothesis import given, settings
from hypothesis import strategies as st

from gqacheck.geometry.config import (
    config_key,
    config_layer_claim,
    config_layer_value,
    config_number,
    has_layer_list,
    stated_width,
    text_config,
    with_our_spelling,
)
from gqacheck.geometry.families import FAMILIES, GENERIC, family_by_class, family_by_model_type, family_by_name
from gqacheck.geometry.measure import measure


@pytest.mark.parametrize(
    ("value", "number"),
    [(32, 32), (0, 0), (-1, -1), (True, None), ("32", None), (32.0, None), (None, None), (10**30, None), ((1,), None)],
)
def test_config_number_takes_whole_numbers_only(value: Any, number: int | None) -> None:
    assert config_number({"key": value}, "key") == number


def test_config_layer_value_list_wins_over_scalar() -> None:
    config = freeze({"num_attention_heads": 32, "gqacheck_layers": {"num_attention_heads": [32, 24, "x", True]}})
    assert [config_layer_value(config, "num_attention_heads", i) for i in range(6)] == [32, 24, 32, 32, 32, 32]
    claims = [config_layer_claim(config, "num_attention_heads", i, "config.json") for i in (1, 4)]
    assert [claim.source for claim in claims if claim] == [
        "config.json gqacheck_layers.num_attention_heads[1]",
        "config.json num_attention_heads",
    ]
    assert has_layer_list(config, "num_attention_heads")


def test_config_layer_value_list_under_the_key_itself() -> None:
    config = freeze({"num_key_value_heads": [4, 2]})
    assert config_layer_value(config, "num_key_value_heads", 1) == 2
    assert config_layer_value(config, "num_key_value_heads", 2) is None
    assert config_layer_value(config, "num_key_value_heads", -1) is None
    claim = config_layer_claim(config, "num_key_value_heads", 0, "config.json")
    assert claim is not None
    assert claim.source == "config.json num_key_value_heads[0]"


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)
KEYS = [
    "head_dim", "hidden_size", "num_attention_heads", "num_key_value_heads", "intermediate_size", "num_hidden_layers",
    "model_type", "architectures", "text_config", "gqacheck_layers", "layer_types", "tie_word_embeddings",
    "num_kv_heads", "rope_parameters", "partial_rotary_factor", "new_decoder_architecture", "multi_query",
    "moe_intermediate_size",
]  # fmt: skip


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.dictionaries(st.sampled_from(KEYS), anything, max_size=len(KEYS)), st.sampled_from(FAMILIES))
def test_measure_any_config_never_raises(config: dict[str, Any], family: Any) -> None:
    geometry = measure(checkpoint(llama(2), config))
    assert geometry.n_layers == 2
    spelled = with_our_spelling(config, family)
    for part in ("dense", "expert", "shared"):
        stated_width(spelled, part, 1, "config.json")  # type: ignore[arg-type]
    config_key(family, "num_key_value_heads", config)


def test_text_config_of_a_wrapper_is_opened_and_keeps_the_wrappers_ties() -> None:
    config = {"model_type": "llava", "tie_word_embeddings": True, "text_config": {"model_type": "llama", "head_dim": 8}}
    values, source, wrapped = text_config(checkpoint(llama(), config))
    assert values == {"model_type": "llama", "head_dim": 8, "tie_word_embeddings": True}
    assert source == "config.json text_config"
    assert wrapped


def test_text_config_nested_twice_is_opened() -> None:
    config = {"thinker_config": {"text_config": {"model_type": "qwen2", "head_dim": 8}}}
    values, source, _ = text_config(checkpoint(llama(), config))
    assert values["head_dim"] == 8
    assert source == "config.json thinker_config text_config"


def test_text_config_that_is_no_model_stays_closed() -> None:
    values, source, wrapped = text_config(checkpoint(llama(), {"text_config": {"x": 1}, "head_dim": 8}))
    assert values["head_dim"] == 8
    assert source == "config.json"
    assert not wrapped


def test_with_our_spelling_adds_and_never_changes() -> None:
    config = {"n_layer": 3, "num_hidden_layers": 4, "n_head": 12, "num_local_experts": 5}
    spelled = with_our_spelling(config, GENERIC)
    assert spelled["num_hidden_layers"] == 4
    assert spelled["num_attention_heads"] == 12
    assert spelled["num_experts"] == 5
    assert config_key(GENERIC, "num_experts", config) == "num_local_experts"
    assert config_key(GENERIC, "num_hidden_layers", config) == "num_hidden_layers"


def test_stated_width_of_each_part() -> None:
    config = {"intermediate_size": 72, "moe_intermediate_size": 28, "n_shared_experts": 2}
    found = {p: stated_width(config, p, 0, "c") for p in ("dense", "expert", "shared")}  # type: ignore[arg-type]
    assert {part: claim.value for part, claim in found.items() if claim} == {"dense": 72, "expert": 28, "shared": 56}
    mixtral = stated_width({"intermediate_size": 72}, "expert", 0, "c")
    assert mixtral is not None
    assert mixtral.value == 72
    assert stated_width({"intermediate_size": 72}, "shared", 0, "c") is None


@pytest.mark.parametrize("name", ["qwen2_moe", "llama4", "deepseek_v3", "gpt_oss", "qwen3_next", "glm4_moe"])
def test_stated_width_equals_what_is_stored(name: str) -> None:
    geometry = measure(on_disk(name))
    for layer in geometry.layers:
        parts = {"dense": layer.mlp.up}
        for expert in layer.mlp.experts:
            parts["shared" if expert.index == "shared" else "expert"] = expert.up
        for part, up in parts.items():
            claim = stated_width(geometry.config, part, layer.index, "config.json")  # type: ignore[arg-type]
            if up is not None and (part != "shared" or name != "llama4"):
                assert claim is not None
                assert claim.value == up.rows


def test_families_names_and_model_types_are_unique() -> None:
    names = [family.name for family in FAMILIES]
    assert len(set(names)) == len(names)
    types = [model_type for family in FAMILIES for model_type in family.model_types]
    assert len(set(types)) == len(types)


@pytest.mark.parametrize(
    ("class_name", "family"),
    [
        ("LlamaForCausalLM", "llama"),
        ("Llama4TextModel", "llama4"),
        ("Qwen2MoeDecoderLayer", "qwen2_moe"),
        ("Qwen2DecoderLayer", "qwen2"),
        ("transformers.models.gemma3.modeling_gemma3.Gemma3TextConfig", "gemma3"),
        ("LlamaSdpaAttention", "llama"),
        ("LlavaForConditionalGeneration", None),
        ("Llamafied", None),
        ("BertModel", None),
        ("", None),
    ],
)
def test_family_by_class_takes_the_longest_prefix(class_name: str, family: str | None) -> None:
    found = family_by_class(class_name)
    assert (found.name if found else None) == family


def test_family_lookups_agree() -> None:
    for family in FAMILIES:
        assert family_by_name(family.name) is family
        for model_type in family.model_types:
            assert family_by_model_type(model_type) is family
    assert family_by_name("generic") is GENERIC
    assert family_by_model_type("generic") is None
