"""``save_pretrained`` of a loaded model: a folder that plain transformers loads, or one sentence that it cannot."""

from __future__ import annotations

import copy
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import CASES, CASES_BEYOND, CASES_FURTHER, logits_of, tiny_ids, tiny_model
from tiny_surgery import cut_attention, cut_layers, cut_mlp, decoder_layers, mlp_of
from torch import nn
from transformers import AutoModelForCausalLM

import gqacheck

LATENT = ("deepseek_v2", "deepseek_v3", "glm4_moe_lite", "minicpm3")
# Their stock classes derive a size from hidden_size and the number of heads.
STUBBORN = {"stablelm", "stablelm_qk_norm", "falcon", "olmoe", "helium", "phi"}
OLD = sorted((Path(__file__).resolve().parents[2] / "fixtures" / "old_pickles").glob("*.bin"))


def load(path: Any, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return gqacheck.load_model(path, **options)[0]


def cut_alike(name: str) -> Any:
    """Every layer with 6 of 12 query heads, 2 of 3 KV heads, half of its channels."""
    model = tiny_model(name)
    for layer in decoder_layers(model):
        attention = getattr(layer, "self_attn", None) or getattr(layer, "self_attention", None)
        if attention is not None and name not in LATENT:
            cut_attention(attention, (0, 1, 3), (0, 2))
        cut_mlp(mlp_of(layer), 0.5)
    return model


@pytest.mark.parametrize("name", [*CASES, *CASES_BEYOND, *CASES_FURTHER])
@pytest.mark.filterwarnings("error:save_pretrained")
def test_save_of_a_whole_model_writes_what_plain_transformers_loads(name, tmp_path):
    original = tiny_model(name)
    torch.save(original, tmp_path / "m.bin")
    model = load(tmp_path / "m.bin")
    assert type(model) is type(original)
    model.save_pretrained(tmp_path / "out")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert torch.equal(logits_of(again, tiny_ids()), logits_of(original, tiny_ids()))


@pytest.mark.parametrize("name", [n for n in (*CASES, *CASES_BEYOND, *CASES_FURTHER) if n not in STUBBORN])
@pytest.mark.filterwarnings("error:save_pretrained")
def test_save_of_a_uniform_cut_writes_what_plain_transformers_loads(name, tmp_path):
    original = cut_alike(name)
    torch.save(original, tmp_path / "m.bin")
    load(tmp_path / "m.bin").save_pretrained(tmp_path / "out")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert torch.equal(logits_of(again, tiny_ids()), logits_of(original, tiny_ids()))


@pytest.mark.parametrize("name", sorted(STUBBORN))
def test_save_of_a_uniform_cut_that_the_stock_class_cannot_hold_warns_and_says_what(name, tmp_path):
    original = cut_alike(name)
    torch.save(original, tmp_path / "m.bin")
    model = load(tmp_path / "m.bin")
    with pytest.warns(UserWarning, match=r"where \w+ForCausalLM makes it .*gqacheck export"):
        model.save_pretrained(tmp_path / "out")
    assert torch.equal(logits_of(load(tmp_path / "out"), tiny_ids()), logits_of(original, tiny_ids()))


@pytest.mark.parametrize("name", ["llama", "phi3", "gemma3", "mixtral", "qwen3_next"])
def test_save_of_differing_layers_warns_once_and_load_model_reads_the_folder(name, tmp_path):
    original = tiny_model(name)
    cut_layers(original)
    torch.save(original, tmp_path / "m.bin")
    model = load(tmp_path / "m.bin")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model.save_pretrained(tmp_path / "out")
    sentences = [str(each.message) for each in said if "save_pretrained" in str(each.message)]
    assert len(sentences) == 1
    assert "`gqacheck export CKPT OUT`" in sentences[0]
    assert "\n" not in sentences[0]
    assert said[0].filename == __file__
    assert torch.equal(logits_of(load(tmp_path / "out"), tiny_ids()), logits_of(original, tiny_ids()))


def test_save_of_head_counts_that_the_config_class_refuses_warns(tmp_path):
    original = tiny_model("llama")
    for layer in decoder_layers(original):  # 96 % 9 is not 0: LlamaConfig refuses
        cut_attention(layer.self_attn, (0, 1, 2), (0, 1, 2))
    torch.save(original, tmp_path / "m.bin")
    model = load(tmp_path / "m.bin")
    assert torch.equal(logits_of(model, tiny_ids()), logits_of(original, tiny_ids()))
    assert model.config.num_attention_heads == 9
    with pytest.warns(UserWarning, match="LlamaConfig refuses .*gqacheck export"):
        model.save_pretrained(tmp_path / "out")
    assert (model.config.num_attention_heads, getattr(model.config, "gqacheck_layers", None)) == (9, None)
    again = load(tmp_path / "out")
    assert again.config.num_attention_heads == 9
    assert torch.equal(logits_of(again, tiny_ids()), logits_of(original, tiny_ids()))


@pytest.mark.parametrize("spoil", ["bias", "scaling", "buffer"])
def test_save_of_what_a_config_cannot_say_warns(spoil, tmp_path):
    original = tiny_model("llama")
    attention = original.model.layers[1].self_attn
    if spoil == "bias":
        attention.o_proj.bias = nn.Parameter(torch.randn(96))
    elif spoil == "scaling":
        attention.scaling = 0.5
    else:
        original.model.rotary_emb.inv_freq.mul_(1.5)
    torch.save(original, tmp_path / "m.bin")
    model = load(tmp_path / "m.bin")
    words = {"bias": "o_proj.bias is 96", "scaling": "scaling of model.layers.1", "buffer": "inv_freq is not the one"}
    with pytest.warns(UserWarning, match=words[spoil]):
        model.save_pretrained(tmp_path / "out")


def test_a_model_that_warns_is_pickled_and_copied_as_its_stock_class(tmp_path):
    original = tiny_model("llama")
    cut_layers(original)
    torch.save(original, tmp_path / "m.bin")
    model = load(tmp_path / "m.bin")
    assert isinstance(model, type(original))
    assert model.__class__ is type(original)
    torch.save(model, tmp_path / "again.bin")
    assert b"gqacheck.runtime" not in (tmp_path / "again.bin").read_bytes()
    again = torch.load(tmp_path / "again.bin", weights_only=False)
    for made in (again, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(made) is type(original)
        assert torch.equal(logits_of(made, tiny_ids()), logits_of(original, tiny_ids()))
    assert [each.code for each in gqacheck.check(str(tmp_path / "again.bin")).findings if each.code == "GQA010"] == []


def test_a_model_that_warns_still_changes_its_attention_dtype_and_device(tmp_path):
    original = tiny_model("llama")
    cut_layers(original)
    torch.save(original, tmp_path / "m.bin")
    model = load(tmp_path / "m.bin")
    model.set_attn_implementation("eager")
    assert model.model.layers[0].self_attn.config._attn_implementation == "eager"
    assert model.to("cpu", torch.bfloat16).dtype == torch.bfloat16
    with pytest.warns(UserWarning, match="gqacheck export"):
        model.to(torch.float32).save_pretrained(tmp_path / "out")


@pytest.mark.parametrize("path", OLD, ids=lambda path: path.stem)
def test_load_of_an_old_pickle_generates_alike_with_every_cache_and_saves_or_warns(path, tmp_path):
    model = load(path)
    ids, options = tiny_ids(6) % model.config.vocab_size, {"max_new_tokens": 8, "do_sample": False}
    with torch.inference_mode():
        expected = model.generate(ids, use_cache=False, **options)
        assert torch.equal(model.generate(ids, **options), expected)
        assert torch.equal(model.generate(ids, cache_implementation="static", **options), expected)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model.save_pretrained(tmp_path)
    if any("gqacheck export" in str(each.message) for each in said):
        assert getattr(model.config, "gqacheck_layers", None) or "pruned" in path.stem
        again = load(tmp_path)
    else:
        again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(logits_of(again, ids), logits_of(model, ids))


def test_generation_settings_survive_loading_and_saving(tmp_path):
    original = tiny_model("llama")
    original.generation_config.eos_token_id = [2, 5]
    original.generation_config.repetition_penalty = 1.3
    torch.save(original, tmp_path / "m.bin")
    load(tmp_path / "m.bin").save_pretrained(tmp_path / "out")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert (again.generation_config.eos_token_id, again.generation_config.repetition_penalty) == ([2, 5], 1.3)
