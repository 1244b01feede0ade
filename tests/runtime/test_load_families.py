"""``load_model`` over the whole table of families: logits, generation with every cache, dtypes, the config."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from tiny_models import CASES, CASES_BEYOND, CASES_FURTHER, logits_of, tiny_ids, tiny_model
from tiny_surgery import cut_layers, cut_mlp, decoder_layers, mlp_of

import gqacheck
from gqacheck.geometry.families import FAMILIES

ALL = [*CASES, *CASES_BEYOND, *CASES_FURTHER]
LATENT = ("deepseek_v2", "deepseek_v3", "glm4_moe_lite", "minicpm3")
EXPERTS = ("mixtral", "qwen2_moe", "qwen3_moe", "qwen3_next", "gpt_oss", "olmoe", "phimoe", "granitemoe", "glm4_moe")
# No causal class of their own, or a part of another model.
NOT_BUILT = {"internlm2", "baichuan", "chatglm", "minicpm", "mllama"}


def load(path: Any, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return gqacheck.load_model(path, **options)[0]


def cut(name: str) -> Any:
    model = tiny_model(name)
    if name in LATENT:
        for index, share in ((1, 0.5), (2, 0.75)):
            cut_mlp(mlp_of(decoder_layers(model)[index]), share)
    else:
        cut_layers(model)
    return model


def generated(model: Any, **options: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model.generate(tiny_ids(6), max_new_tokens=12, do_sample=False, eos_token_id=None, **options)


def test_every_family_of_the_table_is_tried():
    from gqacheck.geometry.families import family_by_model_type

    tables = {**CASES, **CASES_BEYOND, **CASES_FURTHER}
    tried = {family_by_model_type(model_type).name for model_type, _ in tables.values()}
    assert {family.name for family in FAMILIES} - NOT_BUILT == tried


@pytest.mark.parametrize("name", ALL)
def test_load_of_a_non_uniform_cut_gives_its_logits_and_generates_alike_with_every_cache(name, tmp_path):
    original = cut(name)
    torch.save(original, tmp_path / "m.bin")
    model = load(tmp_path / "m.bin")
    assert torch.equal(logits_of(model, tiny_ids()), logits_of(original, tiny_ids()))
    expected = generated(original)
    assert torch.equal(generated(model, use_cache=False), expected)
    assert torch.equal(generated(model), expected)
    assert torch.equal(generated(model, cache_implementation="static"), expected)


@pytest.mark.parametrize("name", CASES_FURTHER)
def test_load_of_a_further_family_gives_the_logits_of_folder_and_pickle(name, tmp_path):
    original = tiny_model(name)
    torch.save({"model": original, "tokenizer": None}, tmp_path / "pytorch_model.bin")
    original.save_pretrained(tmp_path / "folder")
    for path in (tmp_path / "pytorch_model.bin", tmp_path / "folder"):
        assert torch.equal(logits_of(load(path), tiny_ids()), logits_of(original, tiny_ids()))


@pytest.mark.parametrize("name", ALL)
def test_load_in_float64_gives_what_the_original_gives_in_float64(name, tmp_path):
    original = cut(name)
    torch.save(original, tmp_path / "m.bin")
    model = load(tmp_path / "m.bin", dtype="float64")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}
    if any("experts" in path for path, _ in original.named_modules()):
        original.set_experts_implementation("eager")
    assert torch.equal(logits_of(model, tiny_ids()), logits_of(original.double(), tiny_ids()))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["llama", "gemma3", "phi3", *EXPERTS])
def test_load_in_half_precision_gives_what_the_halved_original_gives(name, dtype, tmp_path):
    original = cut(name)
    torch.save(original, tmp_path / "m.bin")
    model = load(tmp_path / "m.bin", dtype=dtype)
    buffers = {path: buffer.clone() for path, buffer in original.named_buffers()}
    original.to(getattr(torch, dtype))
    for path, buffer in original.named_buffers():
        buffer.data = buffers[path]  # weights are rounded, buffers are not
    if name in EXPERTS:  # their product by groups does not take every width; the loop does
        original.set_experts_implementation("eager")
        model.set_experts_implementation("eager")
    ours = logits_of(model, tiny_ids())
    assert ours.dtype == getattr(torch, dtype)
    assert torch.equal(ours, logits_of(original, tiny_ids()))


@pytest.mark.parametrize("name", EXPERTS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_load_of_experts_runs_in_every_dtype(name, dtype, tmp_path):
    torch.save(cut(name), tmp_path / "m.bin")
    assert logits_of(load(tmp_path / "m.bin", dtype=dtype), tiny_ids()).isfinite().all()


def test_load_of_differing_layers_has_a_config_with_lists_and_the_largest_sizes(tmp_path):
    torch.save(cut("qwen3"), tmp_path / "m.bin")
    config = load(tmp_path / "m.bin").config
    assert config.gqacheck_layers == {
        "num_attention_heads": [12, 8, 9, 4],
        "num_key_value_heads": [3, 2, 3, 1],
        "intermediate_size": [112, 56, 84, 112],
    }
    assert (config.num_attention_heads, config.num_key_value_heads, config.intermediate_size) == (12, 3, 112)
    assert config.architectures == ["Qwen3ForCausalLM"]
    assert config.name_or_path == str(tmp_path / "m.bin")


@pytest.mark.parametrize("name", ["llama", "mixtral", "qwen3_moe", "falcon", "granitemoe", "llama4"])
def test_load_of_layers_alike_has_a_config_without_lists_and_with_true_numbers(name, tmp_path):
    model = tiny_model(name)
    for layer in decoder_layers(model):
        cut_mlp(mlp_of(layer), 0.5)
    torch.save(model, tmp_path / "m.bin")
    config = load(tmp_path / "m.bin").config
    assert getattr(config, "gqacheck_layers", None) is None
    told = {
        "llama": {"intermediate_size": 56},
        "mixtral": {"intermediate_size": 56},
        "qwen3_moe": {"intermediate_size": 56, "moe_intermediate_size": 32},
        "falcon": {"ffn_hidden_size": 56},
        "granitemoe": {"intermediate_size": 32},
        "llama4": {"intermediate_size": 56},
    }[name]
    assert {key: getattr(config, key) for key in told} == told


@pytest.mark.parametrize("name", ["qwen2_moe", "qwen3_moe", "qwen3_next"])
def test_load_of_differing_experts_lists_their_widths_under_their_own_key(name, tmp_path):
    original = cut(name)
    torch.save(original, tmp_path / "m.bin")
    lists = load(tmp_path / "m.bin").config.gqacheck_layers
    widths = [getattr(getattr(mlp_of(layer), "experts", None), "intermediate_dim", 64)
              for layer in decoder_layers(original)]  # fmt: skip
    assert lists["moe_intermediate_size"] == widths


def test_load_reports_a_bias_switch_as_stored(tmp_path):
    torch.save(tiny_model("llama_bias"), tmp_path / "m.bin")
    model = tiny_model("llama_bias")
    model.config.attention_bias = model.config.mlp_bias = False  # the config has forgotten them
    torch.save(model, tmp_path / "m.bin")
    config = load(tmp_path / "m.bin").config
    assert (config.attention_bias, config.mlp_bias) == (True, True)


def test_load_of_quantised_weights_is_refused_in_one_line(tmp_path):
    import json

    from safetensors.torch import load_file, save_file

    from gqacheck.runtime.configure import CannotRun

    tiny_model("llama").save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    packed = "model.layers.0.mlp.up_proj"
    del state[f"{packed}.weight"]
    state |= {f"{packed}.qweight": torch.zeros(12, 112, dtype=torch.int32), f"{packed}.scales": torch.zeros(1, 112)}
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    values = json.loads((tmp_path / "config.json").read_text())
    values["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(CannotRun, match=r"quantised .gptq.*dequantise") as caught:
        gqacheck.load_model(tmp_path)
    assert "\n" not in str(caught.value)


def test_load_with_device_map_auto_where_there_is_no_gpu_runs_in_float32_on_the_cpu(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    original = cut("llama")
    torch.save(original.half(), tmp_path / "m.bin")
    model = load(tmp_path / "m.bin", device_map="auto")
    assert {(parameter.dtype, parameter.device.type) for parameter in model.parameters()} == {(torch.float32, "cpu")}
    assert torch.equal(logits_of(model, tiny_ids()), logits_of(load(tmp_path / "m.bin"), tiny_ids()))


def test_loaded_model_takes_lora_with_the_features_that_each_layer_has(tmp_path):
    from peft import LoraConfig, get_peft_model

    torch.save(cut("llama"), tmp_path / "m.bin")
    adapted = get_peft_model(load(tmp_path / "m.bin"), LoraConfig(r=2, target_modules=["q_proj", "o_proj", "up_proj"]))
    layers = adapted.base_model.model.model.layers
    found = [
        (layer.self_attn.q_proj.lora_B["default"].out_features, layer.self_attn.o_proj.lora_A["default"].in_features,
         layer.mlp.up_proj.lora_B["default"].out_features)
        for layer in layers
    ]  # fmt: skip
    assert found == [(96, 96, 112), (64, 64, 56), (72, 72, 84), (32, 32, 112)]
    assert adapted.peft_config["default"].base_model_name_or_path == str(tmp_path / "m.bin")
