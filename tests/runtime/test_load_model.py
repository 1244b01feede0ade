"""``load_model``: a real transformers model out of a pruned file, that generates, trains and says its sizes."""

from __future__ import annotations

import pytest
import torch
from tiny_models import logits_of, tiny_ids, tiny_model, tiny_tokenizer
from tiny_surgery import cut_attention, cut_layers

import gqacheck
from gqacheck.errors import ReadError, UsageError
from gqacheck.runtime.configure import CannotRun


def saved(tmp_path, name="llama"):
    model = tiny_model(name)
    cut_layers(model)
    torch.save({"model": model, "tokenizer": tiny_tokenizer()}, tmp_path / "pytorch_model.bin")
    return model, tmp_path / "pytorch_model.bin"


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma3", "phi3", "qwen3_next"])
def test_loaded_model_generates_what_the_original_generates(name, tmp_path):
    original, path = saved(tmp_path, name)
    model, tokenizer = gqacheck.load_model(path)
    prompt = tokenizer("The model reads", return_tensors="pt")
    options = {"max_new_tokens": 12, "do_sample": False}
    with torch.inference_mode():
        assert torch.equal(model.generate(**prompt, **options), original.generate(**prompt, **options))
        uncached = model.generate(**prompt, **options, use_cache=False)
        assert torch.equal(model.generate(**prompt, **options), uncached)
    assert isinstance(tokenizer.decode(uncached[0]), str)


def test_loaded_model_says_its_sizes_and_takes_a_training_step(tmp_path):
    original = tiny_model("llama")
    for layer in original.model.layers:
        cut_attention(layer.self_attn, (0, 1, 2, 3), (0, 2))
    torch.save(original, tmp_path / "m.bin")
    model, tokenizer = gqacheck.load_model(str(tmp_path / "m.bin"))
    assert tokenizer is None
    assert not model.training
    assert (model.config.num_attention_heads, model.config.num_key_value_heads) == (8, 2)
    projection = model.model.layers[0].self_attn.q_proj
    assert (projection.out_features, projection.in_features) == (64, 96)
    assert all(parameter.requires_grad and not parameter.is_inference() for parameter in model.parameters())
    before = logits_of(model, tiny_ids())
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    model(input_ids=tiny_ids(), labels=tiny_ids()).loss.backward()
    optimiser.step()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert not torch.equal(logits_of(model, tiny_ids()), before)


def test_loaded_uniform_model_survives_save_pretrained_and_from_pretrained(tmp_path):
    from transformers import AutoModelForCausalLM

    original = tiny_model("qwen2")
    for layer in original.model.layers:
        cut_attention(layer.self_attn, (0, 1, 2, 3), (0, 2))
    torch.save(original, tmp_path / "m.bin")
    model, _ = gqacheck.load_model(tmp_path / "m.bin")
    model.save_pretrained(tmp_path / "out")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert torch.equal(logits_of(again, tiny_ids()), logits_of(original, tiny_ids()))


def test_loaded_model_takes_lora_as_any_other(tmp_path):
    from peft import LoraConfig, get_peft_model

    _, path = saved(tmp_path)
    model, _ = gqacheck.load_model(path)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "k_proj", "o_proj", "down_proj"]))
    adapted(input_ids=tiny_ids(), labels=tiny_ids()).loss.backward()
    grads = [p.grad for name, p in adapted.named_parameters() if "lora_B" in name]
    assert grads
    assert all(grad is not None and grad.abs().max() > 0 for grad in grads)


def test_load_model_keeps_or_changes_the_dtype_as_asked(tmp_path):
    torch.save(tiny_model("llama").half(), tmp_path / "m.bin")
    kinds = {
        asked: {p.dtype for p in gqacheck.load_model(tmp_path / "m.bin", dtype=asked)[0].parameters()}
        for asked in (None, "auto", "bfloat16")
    }
    assert kinds == {None: {torch.float32}, "auto": {torch.float16}, "bfloat16": {torch.bfloat16}}


def test_load_model_with_a_device_map_places_every_layer(tmp_path):
    original, path = saved(tmp_path)
    model, _ = gqacheck.load_model(path, device_map={"": "cpu"}, dtype="float32")
    assert torch.equal(logits_of(model, tiny_ids()), logits_of(original, tiny_ids()))


def test_load_model_adopts_the_generation_settings_of_a_folder(tmp_path):
    model = tiny_model("llama")
    model.generation_config.repetition_penalty = 1.3
    model.generation_config.eos_token_id = [2, 5]
    model.save_pretrained(tmp_path)
    loaded, _ = gqacheck.load_model(tmp_path)
    assert loaded.generation_config.repetition_penalty == 1.3
    assert loaded.generation_config.eos_token_id == [2, 5]


def test_load_model_of_what_cannot_be_loaded_raises_one_sentence(tmp_path):
    with pytest.raises(ReadError):
        gqacheck.load_model(tmp_path / "missing.bin")
    torch.save(tiny_model("llama").state_dict(), tmp_path / "state.bin")
    with pytest.raises(CannotRun, match="--config"):
        gqacheck.load_model(tmp_path / "state.bin")
    with pytest.raises(UsageError, match="unknown dtype"):
        gqacheck.load_model(tmp_path / "state.bin", dtype="int4")


def test_load_model_with_a_tokenizer_that_cannot_be_used_warns_and_gives_the_model(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "Nonsense"}}')
    with pytest.warns(UserWarning, match="name one with tokenizer="):
        model, tokenizer = gqacheck.load_model(tmp_path)
    assert tokenizer is None
    assert model.config.num_hidden_layers == 4


def test_load_model_with_a_config_given_reads_a_bare_state_dict(tmp_path):
    model = tiny_model("qwen3")
    cut_layers(model)
    torch.save(model.state_dict(), tmp_path / "state.bin")
    model.config.save_pretrained(tmp_path / "elsewhere")
    loaded, _ = gqacheck.load_model(tmp_path / "state.bin", config=tmp_path / "elsewhere" / "config.json")
    assert torch.equal(logits_of(loaded, tiny_ids()), logits_of(model, tiny_ids()))
