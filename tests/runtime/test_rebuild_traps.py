"""What goes wrong when a model is made of stored tensors: layers dropped, biases, ties, strides, old configs."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from tiny_models import logits_of, tiny_ids, tiny_model, tiny_tokenizer
from tiny_surgery import cut_attention, cut_layers, drop_layers, take
from torch import nn

from gqacheck.checkpoint import TensorInfo
from gqacheck.errors import ReadError
from gqacheck.runtime.configure import CannotRun


def difference(model, reference):
    return (logits_of(model, tiny_ids()) - reference).abs().max().item()


def save(model, path):
    torch.save({"model": model, "tokenizer": None}, path)
    return path


def rewrite_config(folder, **changes):
    file = folder / "config.json"
    values = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in values.items() if value != "absent"}))


@pytest.mark.parametrize("name", ["llama", "qwen2_sliding", "gemma2", "gemma3", "gpt_oss", "qwen3_next", "qwen2_moe"])
@pytest.mark.parametrize("kept", [[0, 1, 3], [2, 3], [1, 2]])
def test_rebuild_with_layers_dropped_keeps_each_layer_its_type(name, kept, tmp_path, rebuild_file):
    model = tiny_model(name)
    original = copy.deepcopy(model.config)
    drop_layers(model, kept)
    reference = logits_of(model, tiny_ids())
    tensors = {}
    for key, value in model.state_dict().items():  # as pruners leave them: gaps in the names, config untouched
        parts = key.split(".")
        if parts[1] == "layers":
            parts[2] = str(kept[int(parts[2])])
        tensors[".".join(parts)] = value
    torch.save(tensors, tmp_path / "state.bin")
    original.save_pretrained(tmp_path)
    rebuilt = rebuild_file(tmp_path / "state.bin", tmp_path / "config.json").model
    assert difference(rebuilt, reference) == 0.0
    assert rebuilt.config.num_hidden_layers == len(kept)
    if getattr(rebuilt.config, "layer_types", None):
        assert rebuilt.config.layer_types == model.config.layer_types


def test_rebuild_with_stale_layer_idx_renumbers_it_and_reads_the_kept_layers_from_it(tmp_path, rebuild_file):
    model = tiny_model("gemma3")
    types = list(model.config.layer_types)
    drop_layers(model, [1, 2], renumber=False)
    reference = logits_of(model, tiny_ids())
    model.config.layer_types, model.config.num_hidden_layers = types, 4  # the config still speaks of four layers
    rebuilt = rebuild_file(save(model, tmp_path / "m.bin")).model
    assert [layer.self_attn.layer_idx for layer in rebuilt.model.layers] == [0, 1]
    assert rebuilt.config.layer_types == types[1:3]
    assert difference(rebuilt, reference) == 0.0
    assert rebuilt.generate(tiny_ids(6), max_new_tokens=3, do_sample=False).shape == (2, 9)


def test_rebuild_refuses_when_nothing_says_which_layer_types_were_kept(tmp_path, rebuild_file):
    model = tiny_model("gemma3")
    types = list(model.config.layer_types)
    drop_layers(model, [1, 3])
    torch.save(model.state_dict(), tmp_path / "state.bin")
    model.config.layer_types, model.config.num_hidden_layers = types, 4
    model.config.save_pretrained(tmp_path)
    with pytest.raises(CannotRun, match="layer_types has 4 entries for 2 stored layers") as caught:
        rebuild_file(tmp_path / "state.bin", tmp_path / "config.json")
    assert not caught.value.supported


def test_rebuild_keeps_biases_that_the_stock_class_does_not_have(tmp_path, rebuild_file):
    model = tiny_model("llama")
    for layer in model.model.layers[1:]:  # FLAP compensates on o_proj and down_proj
        layer.self_attn.o_proj.bias = nn.Parameter(torch.randn(96))
        layer.mlp.down_proj.bias = nn.Parameter(torch.randn(96))
    rebuilt = rebuild_file(save(model, tmp_path / "m.bin"))
    assert difference(rebuilt.model, logits_of(model, tiny_ids())) == 0.0
    assert rebuilt.notes == ("6 biases that the stock class does not have: kept, as stored",)
    assert rebuilt.model.model.layers[0].self_attn.o_proj.bias is None


def test_rebuild_leaves_out_biases_that_are_not_stored(tmp_path, rebuild_file):
    model = tiny_model("qwen2")
    for layer in model.model.layers:
        for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
            projection.bias = None
    rebuilt = rebuild_file(save(model, tmp_path / "m.bin"))
    assert difference(rebuilt.model, logits_of(model, tiny_ids())) == 0.0
    assert rebuilt.notes == ("12 biases that the stock class has: not stored, so left out",)


def test_rebuild_of_tied_embeddings_ties_them_and_of_untied_ones_does_not(tmp_path, rebuild_file):
    tied = tiny_model("qwen2_tied")
    rebuilt = rebuild_file(save(tied, tmp_path / "tied.bin")).model
    assert rebuilt.lm_head.weight is rebuilt.model.embed_tokens.weight
    assert rebuilt.config.tie_word_embeddings is True
    tied.lm_head.weight = nn.Parameter(tied.lm_head.weight.detach().clone() * 2)  # config still says tied
    rebuilt = rebuild_file(save(tied, tmp_path / "untied.bin")).model
    assert rebuilt.lm_head.weight is not rebuilt.model.embed_tokens.weight
    assert rebuilt.config.tie_word_embeddings is False
    assert difference(rebuilt, logits_of(tied, tiny_ids())) == 0.0


def test_rebuild_honours_transposed_sliced_and_shared_storages(tmp_path, rebuild_file):
    model = tiny_model("llama")
    mlp = model.model.layers[0].mlp
    mlp.gate_proj.weight = nn.Parameter(mlp.gate_proj.weight.detach().t().contiguous().t())
    both = torch.cat([mlp.up_proj.weight.detach(), torch.full((5, 96), float("nan"))])
    mlp.up_proj.weight = nn.Parameter(both[:112])
    down = model.model.layers[1].mlp.down_proj
    wide = torch.full((96, 200), float("nan"))
    wide[:, 40:152] = down.weight.detach()
    down.weight = nn.Parameter(wide[:, 40:152])
    model.model.layers[2].mlp.up_proj.weight = model.model.layers[3].mlp.up_proj.weight
    rebuilt = rebuild_file(save(model, tmp_path / "m.bin")).model
    assert difference(rebuilt, logits_of(model, tiny_ids())) == 0.0
    assert rebuilt.model.layers[0].mlp.gate_proj.weight.stride() == (1, 112)
    assert rebuilt.model.layers[1].mlp.down_proj.weight.is_contiguous()


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_rebuild_of_a_halved_module_computes_buffers_anew_and_tells_the_rounding(name, tmp_path, rebuild_file):
    model = tiny_model(name)
    exact = copy.deepcopy(model).half().float()  # weights rounded …
    for buffer, fresh in zip(exact.buffers(), model.buffers(), strict=True):
        buffer.copy_(fresh)  # … buffers not
    reference = logits_of(exact, tiny_ids())
    rebuilt = rebuild_file(save(copy.deepcopy(model).half(), tmp_path / "m.bin"))
    assert difference(rebuilt.model, reference) == 0.0
    assert any("inv_freq in the file is rounded to float16, by up to" in note for note in rebuilt.notes)
    assert all(buffer.dtype == torch.float32 for buffer in rebuilt.model.buffers() if buffer.is_floating_point())


def test_rebuild_with_rope_settings_lost_from_the_config_tells_the_difference(tmp_path, rebuild_file):
    model = tiny_model("llama_rope3")
    model.config.rope_parameters = {"rope_type": "default", "rope_theta": 10000.0}
    rebuilt = rebuild_file(save(model, tmp_path / "m.bin"))
    assert any("inv_freq in the file differs by up to" in note for note in rebuilt.notes)


@pytest.mark.parametrize("name", ["qwen2_sliding", "gemma2", "gpt_oss"])
def test_rebuild_with_layers_dropped_derives_layer_types_from_the_original_count(name, tmp_path, rebuild_file):
    settings = {"layer_types": None} if name == "gpt_oss" else {}
    model = tiny_model(name, **settings)
    kept = [1, 2, 3]
    model.config.save_pretrained(tmp_path)
    rewrite_config(tmp_path, layer_types="absent")  # written before 4.53: the class derives them
    drop_layers(model, kept)
    state = {}
    for key, value in model.state_dict().items():
        parts = key.split(".")
        if parts[1] == "layers":
            parts[2] = str(kept[int(parts[2])])
        state[".".join(parts)] = value
    torch.save(state, tmp_path / "state.bin")
    rebuilt = rebuild_file(tmp_path / "state.bin", tmp_path / "config.json").model
    assert rebuilt.config.layer_types == model.config.layer_types
    assert difference(rebuilt, logits_of(model, tiny_ids())) == 0.0


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2", "gemma2"])
def test_rebuild_takes_head_dim_from_the_modules_where_the_config_implies_another(name, tmp_path, rebuild_file):
    model = tiny_model(name, head_dim=8)
    for layer in model.model.layers:
        cut_attention(layer.self_attn, (0, 1, 2, 3), (0, 2))
    reference = logits_of(model, tiny_ids())
    vars(model.config).pop("head_dim")
    model.config.num_attention_heads, model.config.num_key_value_heads = 8, 2  # 96 // 8 = 12
    rebuilt = rebuild_file(save(model, tmp_path / "m.bin")).model
    assert rebuilt.model.layers[0].self_attn.head_dim == 8
    assert difference(rebuilt, reference) == 0.0


def test_rebuild_with_a_pad_token_outside_the_vocabulary_gives_the_same_logits(tmp_path, rebuild_file):
    model = tiny_model("llama")
    model.save_pretrained(tmp_path)
    rewrite_config(tmp_path, pad_token_id=32000)
    assert difference(rebuild_file(tmp_path).model, logits_of(model, tiny_ids())) == 0.0


def old_rope(name):
    return {
        "linear": ({"rope_theta": 5000.0, "rope_scaling": {"type": "linear", "factor": 2.0}}, 5000.0),
        "none": ({"rope_theta": 25000.0, "rope_scaling": None}, 25000.0),
        "default": ({}, 10000.0),
    }[name]


@pytest.mark.parametrize("form", ["linear", "none", "default"])
def test_rebuild_with_rope_settings_of_transformers_4_gives_the_same_logits(form, tmp_path, rebuild_file):
    old, theta = old_rope(form)
    new = {"rope_type": "linear" if form == "linear" else "default", "rope_theta": theta}
    if form == "linear":
        new["factor"] = 2.0
    model = tiny_model("llama", rope_parameters=new)
    model.save_pretrained(tmp_path)
    rewrite_config(
        tmp_path,
        rope_parameters="absent",
        dtype="absent",
        head_dim="absent",
        torch_dtype="float16",
        pretraining_tp=2,
        pad_token_id=-1,
        pruned_heads={},
        _attn_implementation_internal="flash_attention_2",
        max_length=20,
        **old,
    )
    assert difference(rebuild_file(tmp_path).model, logits_of(model, tiny_ids())) == 0.0


def test_rebuild_with_a_config_that_its_class_refuses_says_so_in_one_sentence(tmp_path, rebuild_file):
    tiny_model("llama").save_pretrained(tmp_path)
    rewrite_config(tmp_path, rms_norm_eps="small")
    with pytest.raises(CannotRun, match=r"LlamaConfig refuses the checkpoint's config: .*rms_norm_eps") as caught:
        rebuild_file(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma", "gemma2", "stablelm", "falcon", "qwen3_moe", "mixtral"])
def test_rebuild_of_a_smaller_hidden_size_gives_the_same_logits(name, tmp_path, rebuild_file):
    model = tiny_model(name, hidden_size=80, num_attention_heads=10, num_key_value_heads=2, num_kv_heads=2)
    model.config.hidden_size = 96  # the pruner forgot
    rebuilt = rebuild_file(save(model, tmp_path / "m.bin")).model
    model.config.hidden_size = 80
    assert rebuilt.config.hidden_size == 80
    assert difference(rebuilt, logits_of(model, tiny_ids())) == 0.0


def test_rebuild_of_more_heads_than_divide_hidden_gives_the_same_logits(tmp_path, rebuild_file):
    model = tiny_model("mistral", head_dim=8, num_attention_heads=15, num_key_value_heads=5)  # 96 % 15 = 6
    model.config.model_type = "llama"
    model.save_pretrained(tmp_path)
    rewrite_config(tmp_path, model_type="llama", architectures=["LlamaForCausalLM"], sliding_window="absent")
    rebuilt = rebuild_file(tmp_path).model
    assert type(rebuilt).__name__ == "LlamaForCausalLM"
    assert (rebuilt.config.num_attention_heads, rebuilt.config.head_dim) == (15, 8)
    model.config.sliding_window = None
    assert difference(rebuilt, logits_of(model, tiny_ids())) == 0.0


def test_rebuild_finds_a_config_for_head_counts_that_nothing_near_divides(tmp_path, rebuild_file):
    model = tiny_model("mistral", hidden_size=100, head_dim=16)  # 100 % 12 and 100 % (100 // 16) are not 0
    model.save_pretrained(tmp_path)
    rewrite_config(tmp_path, model_type="llama", architectures=["LlamaForCausalLM"], sliding_window="absent")
    model.config.sliding_window = None
    rebuilt = rebuild_file(tmp_path).model
    assert type(rebuilt).__name__ == "LlamaForCausalLM"
    assert difference(rebuilt, logits_of(model, tiny_ids())) == 0.0


@pytest.mark.parametrize("name", ["gemma", "gemma3"])
def test_rebuild_of_a_half_precision_folder_keeps_its_buffers_exact(name, tmp_path, rebuild_file):
    model = tiny_model(name)
    copy.deepcopy(model).half().save_pretrained(tmp_path)  # config.json says dtype float16
    for parameter in model.parameters():
        parameter.data = parameter.data.half().float()
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "float16"
    assert difference(rebuild_file(tmp_path).model, logits_of(model, tiny_ids())) == 0.0


@pytest.mark.parametrize(
    "leftover",
    [
        {"quantization_config": {"quant_method": "gptq", "bits": 4}},
        {"per_layer_config": {"1": {"num_attention_heads": 8}}},
        {"torchscript": True, "output_attentions": True, "output_hidden_states": True, "return_dict": False},
        {"_attn_implementation": "flash_attention_2", "_commit_hash": "x", "_flash_attn_2_enabled": True},
        {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}, "problem_type": "nonsense"},
        {"auto_map": {"AutoModelForCausalLM": "evil.Model"}},
        {"is_decoder": False, "add_cross_attention": True, "gqacheck_layers": {"intermediate_size": [1]}},
    ],
    ids=lambda leftover: next(iter(leftover)),
)
def test_rebuild_does_not_mind_what_is_left_in_the_config(leftover, tmp_path, rebuild_file):
    model = tiny_model("llama")
    model.save_pretrained(tmp_path)
    rewrite_config(tmp_path, **leftover)
    assert difference(rebuild_file(tmp_path).model, logits_of(model, tiny_ids())) == 0.0


@pytest.mark.parametrize(
    ("name", "hostile"),
    [
        ("qwen2_sliding", {"num_hidden_layers": 10**9, "layer_types": "absent"}),
        ("stablelm_qk_norm", {"num_attention_heads": 10**9, "num_key_value_heads": 10**9}),
        ("olmo2", {"num_attention_heads": 10**10, "num_key_value_heads": 1}),
        ("glm4", {"rope_parameters": "absent", "partial_rotary_factor": 1e10}),
        ("qwen3_next", {"linear_num_value_heads": 10**11}),
        ("llama", {"intermediate_size": 10**30}),
        ("llama", {"rope_parameters": {"rope_type": "llama3"}}),
        ("llama", {"rope_parameters": {"rope_type": "nonsense", "rope_theta": 1e4}}),
        (
            "llama",
            {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1], "long_factor": 2}},
        ),
        ("llama", {"hidden_act": "../../etc/passwd"}),
        ("mixtral", {"num_experts_per_tok": 99}),
        ("llama", {"num_attention_heads": 0, "num_key_value_heads": -3}),
        ("llama", {"max_position_embeddings": -1}),
    ],
)
def test_rebuild_with_a_hostile_config_runs_or_says_one_sentence_soon(name, hostile, tmp_path, rebuild_file):
    import time

    model = tiny_model(name)
    model.save_pretrained(tmp_path)
    rewrite_config(tmp_path, **hostile)
    started = time.perf_counter()
    said = ""
    try:
        rebuild_file(tmp_path)
    except (CannotRun, ReadError) as error:
        said = str(error)
    assert "\n" not in said
    assert time.perf_counter() - started < 5


@pytest.mark.parametrize(
    ("name", "hostile"),
    [
        ("glm4", {"rope_parameters": "absent", "partial_rotary_factor": 1e10}),
        ("qwen3_next", {"linear_num_value_heads": 10**10}),
    ],
)
def test_rebuild_with_a_config_that_asks_for_huge_buffers_allocates_none(name, hostile, tmp_path, rebuild_file):
    tiny_model(name).save_pretrained(tmp_path)
    rewrite_config(tmp_path, **hostile)
    with pytest.raises(CannotRun, match="the config asks for"):
        rebuild_file(tmp_path)


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "base_model.model.", "module._orig_mod.", "base_model.model.module."]
)
def test_rebuild_sees_through_prefixes(prefix, tmp_path, rebuild_file):
    model = tiny_model("qwen2")
    cut_layers(model)
    model.config.save_pretrained(tmp_path)
    torch.save({prefix + key: value for key, value in model.state_dict().items()}, tmp_path / "state.bin")
    rebuilt = rebuild_file(tmp_path / "state.bin", tmp_path / "config.json")
    assert difference(rebuilt.model, logits_of(model, tiny_ids())) == 0.0
    assert rebuilt.notes == ()


def test_rebuild_sees_through_a_multimodal_wrapper(tmp_path, rebuild_file):
    model = tiny_model("gemma3")
    state = {key.replace("model.", "model.language_model.", 1): value for key, value in model.state_dict().items()}
    state["model.vision_tower.patch.weight"] = torch.zeros(4, 4)
    torch.save(state, tmp_path / "pytorch_model.bin")
    text = json.loads(model.config.to_json_string(use_diff=False))
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "gemma3", "text_config": text, "vision_config": {}})
    )
    rebuilt = rebuild_file(tmp_path)
    assert difference(rebuilt.model, logits_of(model, tiny_ids())) == 0.0
    assert any("vision_tower" in note for note in rebuilt.notes)


def test_rebuild_tells_stored_tensors_that_it_did_not_use(tmp_path, rebuild_file):
    model = tiny_model("llama")
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict() | {"value_head.weight": torch.zeros(1, 96)}, tmp_path / "state.bin")
    rebuilt = rebuild_file(tmp_path / "state.bin", tmp_path / "config.json")
    assert rebuilt.notes == ("1 stored tensor not used: value_head.weight",)


def test_rebuild_with_unmerged_adapters_says_that_it_runs_the_base(tmp_path, rebuild_file):
    from peft import LoraConfig, get_peft_model

    model = tiny_model("llama")
    reference = logits_of(model, tiny_ids())
    model.config.save_pretrained(tmp_path)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "up_proj"]))
    for form, path in ((adapted, tmp_path / "module.bin"), (adapted.state_dict(), tmp_path / "state.bin")):
        torch.save(form, path)
        rebuilt = rebuild_file(path, tmp_path / "config.json")
        assert difference(rebuilt.model, reference) == 0.0
        assert any("16 adapter tensors are stored unmerged" in note for note in rebuilt.notes)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda s: s.pop("model.layers.2.mlp.up_proj.weight"), "layer 2|up_proj"),
        (lambda s: s.pop("model.norm.weight"), "model.norm.weight is not in the file"),
        (lambda s: s.pop("model.embed_tokens.weight"), "embedding"),
        (lambda s: s.pop("lm_head.weight"), "no lm_head is stored"),
        (lambda s: s.update({"model.layers.1.input_layernorm.weight": torch.ones(48)}), "has shape 48 where"),
        (lambda s: s.update({"model.norm.weight": torch.ones(1)}), "has shape 1 where the model needs 96"),
        (lambda s: s.update({"lm_head.weight": torch.ones(300, 96)}), "the embedding is 320×96 but lm_head is 300×96"),
        (lambda s: s.update({"model.layers.1.self_attn.q_proj.weight": torch.ones(88, 96)}), "layer 1: "),
        (lambda s: s.update({"model.layers.1.self_attn.v_proj.weight": torch.ones(16, 96)}), "layer 1: k has 24 rows"),
        (lambda s: s.update({"model.layers.3.mlp.gate_proj.weight": torch.ones(96, 96)}), "layer 3: gate has 96 rows"),
        (lambda s: s.update({"model.layers.3.mlp.down_proj.weight": torch.ones(96, 64)}), "layer 3: down reads 64"),
        (lambda s: s.update({"model.layers.0.self_attn.o_proj.weight": torch.ones(96, 64)}), "layer 0: o_proj reads"),
        (lambda s: s.update({"model.norm.weight": torch.ones(96, dtype=torch.int8)}), "norm.weight is stored as int8"),
    ],
)
def test_rebuild_of_a_broken_file_says_why_in_one_sentence(spoil, sentence, tmp_path, rebuild_file):
    model = tiny_model("llama")
    model.config.save_pretrained(tmp_path)
    state = dict(model.state_dict())
    spoil(state)
    torch.save(state, tmp_path / "state.bin")
    with pytest.raises(CannotRun, match=sentence) as caught:
        rebuild_file(tmp_path / "state.bin", tmp_path / "config.json")
    assert "\n" not in str(caught.value)


def test_rebuild_of_heads_that_do_not_divide_is_refused(tmp_path, rebuild_file):
    model = tiny_model("llama")
    attention = model.model.layers[2].self_attn
    take(attention.q_proj, rows=list(range(88)))  # 11 query heads for 3 KV heads
    take(attention.o_proj, columns=list(range(88)))
    with pytest.raises(CannotRun, match="layer 2: 11 query heads cannot share 3 KV heads evenly"):
        rebuild_file(save(model, tmp_path / "m.bin"))


def test_rebuild_without_a_config_asks_for_one(tmp_path, rebuild_file):
    torch.save(tiny_model("llama").state_dict(), tmp_path / "state.bin")
    with pytest.raises(CannotRun, match="--config FILE") as caught:
        rebuild_file(tmp_path / "state.bin")
    assert not caught.value.supported


def test_rebuild_of_experts_of_different_width_is_refused(tmp_path, rebuild_file):
    tiny_model("mixtral").save_pretrained(tmp_path, safe_serialization=True)
    from safetensors.torch import load_file, save_file

    state = load_file(tmp_path / "model.safetensors")
    block = "model.layers.1.block_sparse_moe.experts.2"
    for part in ("w1", "w3"):
        state[f"{block}.{part}.weight"] = state[f"{block}.{part}.weight"][:80].clone()
    state[f"{block}.w2.weight"] = state[f"{block}.w2.weight"][:, :80].clone()
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CannotRun, match="the 5 experts differ in shape") as caught:
        rebuild_file(tmp_path)
    assert not caught.value.supported


def test_rebuild_of_layers_with_different_numbers_of_experts_is_refused(tmp_path, rebuild_file):
    tiny_model("mixtral").save_pretrained(tmp_path)
    from safetensors.torch import load_file, save_file

    state = load_file(tmp_path / "model.safetensors")
    state = {key: value for key, value in state.items() if "layers.1.block_sparse_moe.experts.4" not in key}
    state["model.layers.1.block_sparse_moe.gate.weight"] = state["model.layers.1.block_sparse_moe.gate.weight"][:4]
    save_file({key: value.clone() for key, value in state.items()}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CannotRun, match="different numbers of experts") as caught:
        rebuild_file(tmp_path)
    assert not caught.value.supported


def test_rebuild_of_experts_too_odd_for_the_grouped_product_runs_them_one_by_one(tmp_path, rebuild_file):
    model = tiny_model("qwen3_moe", moe_intermediate_size=30)
    model.set_experts_implementation("eager")
    rebuilt = rebuild_file(save(model, tmp_path / "m.bin"))
    assert difference(rebuilt.model, logits_of(model, tiny_ids())) == 0.0
    assert any("one by one" in note for note in rebuilt.notes)


def test_rebuild_of_a_family_without_a_stock_class_says_that_it_is_checked_statically_only(tmp_path, rebuild_file):
    renames = {
        "embed_tokens": "tok_embeddings",
        "self_attn.o_proj": "attention.wo",
        "input_layernorm": "attention_norm",
    }
    renames |= {
        "mlp.gate_proj": "feed_forward.w1",
        "mlp.up_proj": "feed_forward.w3",
        "mlp.down_proj": "feed_forward.w2",
    }
    renames |= {"post_attention_layernorm": "ffn_norm", "lm_head": "output", "self_attn.q_proj": "attention.wqkv"}
    model = tiny_model("llama")
    state = {}
    for key, value in model.state_dict().items():
        if "k_proj" in key or "v_proj" in key:
            continue
        for old, new in renames.items():
            key = key.replace(old, new)
        state[key] = torch.zeros(18 * 8, 96) if "wqkv" in key else value
    torch.save(state, tmp_path / "pytorch_model.bin")
    model.config.save_pretrained(tmp_path)
    rewrite_config(tmp_path, model_type="internlm2", architectures=["InternLM2ForCausalLM"])
    with pytest.raises(CannotRun, match=r"internlm2 has no stock class.*statically only") as caught:
        rebuild_file(tmp_path)
    assert not caught.value.supported


def test_rebuild_of_quantised_weights_is_refused_in_one_sentence(tmp_path, rebuild_file):
    tiny_model("llama").save_pretrained(tmp_path)
    from safetensors.torch import load_file, save_file

    state = load_file(tmp_path / "model.safetensors")
    state["model.layers.0.mlp.up_proj.weight"] = torch.zeros(112, 48, dtype=torch.uint8)
    state["model.layers.0.mlp.up_proj.weight.absmax"] = torch.zeros(7)
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    rewrite_config(tmp_path, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    with pytest.raises(CannotRun, match=r"quantised .bitsandbytes.") as caught:
        rebuild_file(tmp_path)
    assert not caught.value.supported


@pytest.mark.parametrize("name", ["qwen2_moe", "gemma3"])  # a router drawn at random, a buffer of the default dtype
def test_rebuild_leaves_the_random_state_and_default_dtype_as_they_were(name, tmp_path, rebuild_file):
    path = save(tiny_model(name), tmp_path / "m.bin")
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    torch.set_default_dtype(torch.float64)
    try:
        rebuilt = rebuild_file(path).model
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(before, torch.random.get_rng_state())
    assert {parameter.dtype for parameter in rebuilt.parameters()} == {torch.float32}
    assert {buffer.dtype for buffer in rebuilt.buffers()} == {torch.float32}


def test_rebuilt_phi3_can_be_copied_and_pickled_with_its_views(tmp_path, rebuild_file):
    model = tiny_model("phi3")
    cut_layers(model)
    rebuilt = rebuild_file(save(model, tmp_path / "m.bin")).model
    reference = logits_of(rebuilt, tiny_ids())
    twin = copy.deepcopy(rebuilt)
    twin.set_attn_implementation("eager")
    assert twin.model.layers[1].self_attn.config._attn_implementation == "eager"
    assert rebuilt.model.layers[1].self_attn.config._attn_implementation == "sdpa"
    torch.save(rebuilt, tmp_path / "again.bin")
    assert difference(torch.load(tmp_path / "again.bin", weights_only=False), reference) == 0.0


def test_rebuild_of_what_was_rebuilt_and_saved_gives_the_same_logits(tmp_path, rebuild_file):
    model = tiny_model("qwen3")
    cut_layers(model)
    once = rebuild_file(save(model, tmp_path / "m.bin")).model
    twice = rebuild_file(save(once, tmp_path / "again.bin")).model
    assert difference(twice, logits_of(model, tiny_ids())) == 0.0


def test_rebuild_of_a_uniform_cut_with_the_tokenizer_beside_it_ignores_the_tokenizer(tmp_path, rebuild_file):
    model = tiny_model("llama")
    for layer in model.model.layers:
        cut_attention(layer.self_attn, (0, 1, 2, 3), (1, 2))
    torch.save({"model": model, "tokenizer": tiny_tokenizer()}, tmp_path / "m.bin")
    assert difference(rebuild_file(tmp_path / "m.bin").model, logits_of(model, tiny_ids())) == 0.0


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"strides": (0, 1), "shape": (1 << 30, 96)}, "repeats a storage"),
        ({"strides": (-1, 1)}, "negative"),
        ({"storage_offset": 1 << 40}, "needs .* bytes of its storage"),
        ({"dtype": "complex64"}, "complex64 cannot be run"),
        ({"dtype": "float4_e2m1"}, "float4_e2m1 cannot be run"),
        ({"storage": None}, "no bytes"),
        ({"strides": (1,)}, "2 sizes but 1 strides"),
    ],
)
def test_weight_reader_refuses_views_that_cannot_be(changes, sentence, tmp_path):
    from dataclasses import replace

    from gqacheck.checkpoint import StorageInfo
    from gqacheck.runtime.weights import WeightReader

    (tmp_path / "w").write_bytes(bytes(96 * 4 * 4))
    good = TensorInfo("w", (4, 96), "float32", (96, 1), 0, StorageInfo(str(tmp_path / "w"), "0", 0, 1536, 1536))
    with WeightReader() as reader:
        assert reader.read(good).shape == (4, 96)
        with pytest.raises(ReadError, match=sentence):
            reader.read(replace(good, **changes))


def test_weight_reader_refuses_a_file_that_became_shorter(tmp_path):
    from gqacheck.checkpoint import StorageInfo
    from gqacheck.runtime.weights import WeightReader

    (tmp_path / "w").write_bytes(bytes(100))
    info = TensorInfo("w", (4, 96), "float32", (96, 1), 0, StorageInfo(str(tmp_path / "w"), "0", 0, 1536, 1536))
    with WeightReader() as reader, pytest.raises(ReadError, match="past the end of w: the file is truncated"):
        reader.read(info)


@pytest.mark.parametrize(
    "dtype",
    [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2, torch.int64],
)
def test_weight_reader_reads_unaligned_bytes_of_every_dtype(dtype, tmp_path):
    from gqacheck.checkpoint import StorageInfo
    from gqacheck.runtime.weights import WeightReader

    values = torch.arange(-12, 12).to(torch.float32).to(dtype).reshape(4, 6)
    raw = bytes(values.contiguous().view(torch.uint8).flatten().tolist())
    (tmp_path / "w").write_bytes(b"xyz" + raw)
    name = str(dtype).removeprefix("torch.")
    storage = StorageInfo(str(tmp_path / "w"), "0", 3, len(raw), len(raw))
    with WeightReader() as reader:
        read = reader.read(TensorInfo("w", (4, 6), name, (6, 1), 0, storage))
        cut = reader.read(TensorInfo("w", (2, 3), name, (6, 2), 7, storage))
    assert read.dtype == dtype
    assert torch.equal(read.float(), values.float())
    assert torch.equal(cut.float(), values.float().flatten()[[7, 9, 11, 13, 15, 17]].reshape(2, 3))


def test_what_the_weight_reader_gives_outlives_the_file(tmp_path, rebuild_file):
    model = tiny_model("llama")
    path = save(model, tmp_path / "m.bin")
    reference = logits_of(model, tiny_ids())
    rebuilt = rebuild_file(path, dtype=None).model
    path.write_bytes(b"")  # people prune and save over the file that they loaded
    assert difference(rebuilt, reference) == 0.0
