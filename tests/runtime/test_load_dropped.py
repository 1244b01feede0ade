"""Layers that lost their attention or their MLP: residual only, in every family, with every cache."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import CASES, CASES_BEYOND, CASES_FURTHER, logits_of, tiny_ids, tiny_model
from tiny_surgery import cut_layers, decoder_layers, mlp_of

import gqacheck
from gqacheck.runtime.configure import CannotRun

ATTENTIONS = ("self_attn", "self_attention", "linear_attn")
OUTPUTS = ("o_proj", "dense", "out_proj")
DOWNS = ("down_proj", "c_proj", "fc2", "dense_4h_to_h")
# Layer 0 has no attention (positions come from the first layer of the cache), layer 1 no MLP, layer 2 neither.
WITHOUT_ATTENTION, WITHOUT_MLP = (0, 2), (1, 2)


def silence(projection: Any) -> None:
    for tensor in (projection.weight, projection.bias):
        if tensor is not None:
            tensor.data.zero_()


def silence_mlp(mlp: Any) -> None:
    if not hasattr(mlp, "experts"):
        silence(next(getattr(mlp, name) for name in DOWNS if hasattr(mlp, name)))
        return
    mlp.experts.down_proj.data.zero_()
    if hasattr(mlp.experts, "down_proj_bias"):
        mlp.experts.down_proj_bias.data.zero_()
    for name in ("shared_expert", "shared_experts"):
        if getattr(mlp, name, None) is not None:
            silence_mlp(getattr(mlp, name))


def silenced(name: str) -> tuple[Any, list[str]]:
    """A stock model whose blocks compute zeros, and the prefixes of what would be gone from its file."""
    model = tiny_model(name)
    if name in CASES:
        cut_layers(model, [3])
    layers = decoder_layers(model)
    path = next(path for path, module in model.named_modules() if module is layers)
    gone = []
    for index in WITHOUT_ATTENTION:
        block = next(each for each in ATTENTIONS if hasattr(layers[index], each))
        attention = getattr(layers[index], block)
        silence(next(getattr(attention, each) for each in OUTPUTS if hasattr(attention, each)))
        gone.append(f"{path}.{index}.{block}.")
    for index in WITHOUT_MLP:
        mlp = mlp_of(layers[index])
        silence_mlp(mlp)
        gone += [f"{path}.{index}.{each}." for each, child in layers[index].named_children() if child is mlp]
    return model, gone


def norms_of_dropped(model: Any, name: str) -> list[str]:
    """The norms before the blocks of layer 0 and 1 that are gone, by name."""
    layers = decoder_layers(model)
    path = next(path for path, module in model.named_modules() if module is layers)
    return [f"{path}.0.input_layernorm.", f"{path}.1.post_attention_layernorm."]


def write(model: Any, gone: list[str], folder: Path) -> Path:
    state = {key: value for key, value in model.state_dict().items() if not key.startswith(tuple(gone))}
    torch.save(state, folder / "pytorch_model.bin")
    values = json.loads(model.config.to_json_string(use_diff=False))
    heads, kv, width = [12] * 4, [3] * 4, [112] * 4
    for index in WITHOUT_ATTENTION:
        heads[index] = kv[index] = 0
    for index in WITHOUT_MLP:
        width[index] = 0
    lists = {"num_attention_heads": heads, "num_key_value_heads": kv, "intermediate_size": width}
    values |= {"gqacheck_layers": lists, "architectures": [type(model).__name__]}
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def load(path: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return gqacheck.load_model(path)[0]


@pytest.mark.parametrize("name", [*CASES, *CASES_BEYOND, *CASES_FURTHER])
def test_load_of_dropped_blocks_computes_the_residual_alone_with_every_cache(name, tmp_path):
    original, gone = silenced(name)
    model = load(write(original, gone, tmp_path))
    three = tiny_ids(batch=3)  # a batch of two would unpack like a pair
    assert torch.equal(logits_of(model, three), logits_of(original, three))
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
    with torch.inference_mode():
        expected = original.generate(tiny_ids(6), **options)
        for cache in ({"use_cache": False}, {}, {"cache_implementation": "static"}):
            assert torch.equal(model.generate(tiny_ids(6), **options, **cache), expected), cache


@pytest.mark.parametrize("name", ["llama", "gemma2", "olmo2", "cohere", "gpt_oss", "qwen3_next", "llama4", "falcon"])
def test_loaded_model_with_dropped_blocks_trains_every_weight_it_has(name, tmp_path):
    original, gone = silenced(name)
    model = load(write(original, gone, tmp_path)).train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model(input_ids=tiny_ids(), labels=tiny_ids()).loss.backward()
    assert [path for path, parameter in model.named_parameters() if parameter.grad is None] == []
    assert not any(path.startswith(tuple(gone)) for path, _ in model.named_parameters())


@pytest.mark.parametrize("name", ["llama", "qwen2_moe", "qwen3_next", "gpt_oss"])
def test_loaded_model_with_dropped_blocks_can_be_copied_and_saved_and_loaded_again(name, tmp_path):
    original, gone = silenced(name)
    (tmp_path / "a").mkdir()
    model = load(write(original, gone, tmp_path / "a"))
    reference = logits_of(original, tiny_ids())
    assert torch.equal(logits_of(copy.deepcopy(model), tiny_ids()), reference)
    with pytest.warns(UserWarning, match="layers differ in size.*gqacheck export"):
        model.save_pretrained(tmp_path / "b")
    assert torch.equal(logits_of(load(tmp_path / "b"), tiny_ids()), reference)
    assert model.config.gqacheck_layers["num_attention_heads"][0] == 0
    assert model.config.gqacheck_layers["intermediate_size"][1:3] == [0, 0]


def test_load_of_a_dropped_block_does_without_its_norm(tmp_path):
    original, gone = silenced("llama")
    model = load(write(original, gone + norms_of_dropped(original, "llama"), tmp_path))
    assert torch.equal(logits_of(model, tiny_ids()), logits_of(original, tiny_ids()))


def test_load_with_a_norm_missing_that_serves_a_block_which_is_there_is_refused(tmp_path):
    original, gone = silenced("llama")
    write(original, [*gone, "model.layers.1.input_layernorm."], tmp_path)
    with pytest.raises(CannotRun, match=r"layers\.1\.input_layernorm\.weight is not in the file"):
        gqacheck.load_model(tmp_path)


def test_load_without_an_mlp_that_nothing_declares_dropped_says_how_to_declare_it(tmp_path):
    model = tiny_model("llama")
    state = {key: value for key, value in model.state_dict().items() if "layers.1.mlp" not in key}
    torch.save(state, tmp_path / "pytorch_model.bin")
    model.config.save_pretrained(tmp_path)
    with pytest.raises(CannotRun, match=r"layer 1: its MLP is not in the file .*intermediate_size.* 0") as caught:
        gqacheck.load_model(tmp_path)
    assert "\n" not in str(caught.value)


def test_load_of_dropped_blocks_takes_lora_on_the_layers_that_are_left(tmp_path):
    from peft import LoraConfig, get_peft_model

    original, gone = silenced("llama")
    adapted = get_peft_model(
        load(write(original, gone, tmp_path)), LoraConfig(r=2, target_modules=["q_proj", "up_proj"])
    )
    found = {
        path.split(".lora_")[0].partition("layers.")[2] for path, _ in adapted.named_parameters() if "lora_" in path
    }
    assert found == {"0.mlp.up_proj", "1.self_attn.q_proj", "3.self_attn.q_proj", "3.mlp.up_proj"}
