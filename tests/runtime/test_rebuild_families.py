"""Every family that transformers can build: what is rebuilt computes exactly what the original computed."""

from __future__ import annotations

import pytest
import torch
from tiny_models import CASES, CASES_BEYOND, logits_of, tiny_ids, tiny_model
from tiny_surgery import cut_attention, cut_layers, cut_mlp


def difference(model, reference):
    return (logits_of(model, tiny_ids()) - reference).abs().max().item()


def attentions(model):
    return [module for module in model.modules() if hasattr(module, "head_dim") and hasattr(module, "config")]


@pytest.mark.parametrize("name", CASES)
def test_rebuild_of_a_whole_module_gives_the_same_logits(name, tmp_path, rebuild_file):
    model = tiny_model(name)
    reference = logits_of(model, tiny_ids())
    torch.save({"model": model, "tokenizer": None}, tmp_path / "pytorch_model.bin")
    rebuilt = rebuild_file(tmp_path / "pytorch_model.bin")
    assert type(rebuilt.model) is type(model)
    assert difference(rebuilt.model, reference) == 0.0
    assert rebuilt.notes == ()


@pytest.mark.parametrize("name", CASES_BEYOND)
def test_rebuild_of_a_family_beyond_gives_the_same_logits(name, tmp_path, rebuild_file):
    model = tiny_model(name)
    reference = logits_of(model, tiny_ids())
    torch.save({"model": model, "tokenizer": None}, tmp_path / "pytorch_model.bin")
    model.save_pretrained(tmp_path / "folder")
    assert difference(rebuild_file(tmp_path / "pytorch_model.bin").model, reference) == 0.0
    assert difference(rebuild_file(tmp_path / "folder").model, reference) == 0.0


@pytest.mark.parametrize("name", CASES)
def test_rebuild_of_a_folder_gives_the_same_logits(name, tmp_path, rebuild_file):
    model = tiny_model(name)
    reference = logits_of(model, tiny_ids())
    model.save_pretrained(tmp_path)  # experts are unstacked and renamed on the way to disk
    rebuilt = rebuild_file(tmp_path)
    assert difference(rebuilt.model, reference) == 0.0
    assert rebuilt.notes == ()


@pytest.mark.parametrize("name", CASES)
def test_rebuild_of_a_non_uniform_cut_gives_the_same_logits(name, tmp_path, rebuild_file):
    model = tiny_model(name)
    model.config.save_pretrained(tmp_path)
    whole = logits_of(model, tiny_ids())
    cut_layers(model)
    reference = logits_of(model, tiny_ids())
    assert (reference - whole).abs().max() > 0.1  # the cut is real
    torch.save(model, tmp_path / "module.bin")
    torch.save(model.state_dict(), tmp_path / "state.bin")
    assert difference(rebuild_file(tmp_path / "module.bin").model, reference) == 0.0
    assert difference(rebuild_file(tmp_path / "state.bin", tmp_path / "config.json").model, reference) == 0.0


@pytest.mark.parametrize("name", CASES)
def test_rebuilt_cut_model_with_a_cache_equals_without(name, tmp_path, rebuild_file):
    model = tiny_model(name)
    cut_layers(model)
    torch.save(model, tmp_path / "module.bin")
    rebuilt = rebuild_file(tmp_path / "module.bin").model
    ids = tiny_ids(14)
    with torch.inference_mode():
        full = logits_of(rebuilt, ids)
        first = rebuilt(input_ids=ids[:, :9], use_cache=True)
        rest = [first.logits]
        cache = first.past_key_values
        for at in range(9, ids.shape[1]):
            step = rebuilt(input_ids=ids[:, at : at + 1], past_key_values=cache, use_cache=True)
            cache = step.past_key_values
            rest.append(step.logits)
    assert (torch.cat(rest, dim=1) - full).abs().max() < 2e-4 * full.std() + 2e-4


FIXED_ATTENTION = ("gemma2", "gpt_oss", "falcon")  # refuse sdpa, or a change of implementation on a built model


@pytest.mark.parametrize("name", [name for name in CASES if name not in FIXED_ATTENTION])
def test_rebuilt_cut_model_reaches_the_attention_that_is_set(name, tmp_path, rebuild_file):
    model = tiny_model(name)
    cut_layers(model)
    torch.save(model, tmp_path / "module.bin")
    rebuilt = rebuild_file(tmp_path / "module.bin").model
    assert {module.config._attn_implementation for module in attentions(rebuilt)} == {"sdpa"}
    rebuilt.set_attn_implementation("eager")
    assert {module.config._attn_implementation for module in attentions(rebuilt)} == {"eager"}
    model.set_attn_implementation("eager")
    for module in attentions(model):
        module.config._attn_implementation = "eager"  # Phi-3 cut by hand has config copies, which are not reached
    assert difference(rebuilt, logits_of(model, tiny_ids())) == 0.0


@pytest.mark.parametrize("name", ["llama", "qwen2", "phi3", "gemma3", "mixtral", "stablelm"])
def test_rebuild_of_a_uniform_cut_has_a_config_that_says_so(name, tmp_path, rebuild_file):
    model = tiny_model(name)
    for layer in model.model.layers:
        cut_attention(layer.self_attn, (0, 1, 3), (0, 2))
        cut_mlp(layer.mlp, 0.5)
    torch.save(model, tmp_path / "module.bin")
    rebuilt = rebuild_file(tmp_path / "module.bin").model
    assert difference(rebuilt, logits_of(model, tiny_ids())) == 0.0
    assert (rebuilt.config.num_attention_heads, rebuilt.config.num_key_value_heads) == (6, 2)
    if name != "mixtral":
        assert rebuilt.config.intermediate_size == 56
