"""Whatever the tensors lie in and however they lie there, the folder holds them once, whole and row after row."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cut_folders import random_cut, write_folder
from export_cases import assert_equal_answers, cut_alike, exported, save_module, save_state
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_models import logits_of, tiny_ids, tiny_model
from tiny_surgery import cut_layers

State = dict[str, torch.Tensor]


def options_for(folder: Path) -> dict[str, Any]:
    return {"config": folder / "config", "head_dim": 8}


@pytest.mark.parametrize("under", [None, "state_dict", "model_state_dict"])
@pytest.mark.parametrize(
    "prefix", ["", "module.", "_orig_mod.", "base_model.model.", "module._orig_mod.", "_orig_mod.module."]
)
def test_export_strips_what_wrappers_put_in_front(
    prefix: str, under: str | None, stranger: Any, tmp_path: Path
) -> None:
    model = cut_alike(tiny_model("llama"))
    tensors = {prefix + name: tensor for name, tensor in model.state_dict().items()}
    source = save_state(tensors, model.config, tmp_path / "in", under)
    exported(source, tmp_path / "out", **options_for(tmp_path / "in"))
    assert load_file(tmp_path / "out" / "model.safetensors").keys() == model.state_dict().keys()
    if under is None:
        assert_equal_answers(stranger, model, tmp_path / "out")


def one_storage(tensors: State) -> None:
    """gate and up are views of one storage, q is a slice of a larger one."""
    gate, up = "model.layers.3.mlp.gate_proj.weight", "model.layers.3.mlp.up_proj.weight"
    both = torch.cat([tensors[gate], tensors[up]])
    tensors[gate], tensors[up] = both[: len(both) // 2], both[len(both) // 2 :]
    name = "model.layers.0.self_attn.q_proj.weight"
    large = torch.full((400, 96), 7.0)
    large[100:196] = tensors[name]
    tensors[name] = large[100:196]


def turned(tensors: State) -> None:
    """Column after column."""
    for name in ("model.layers.1.self_attn.q_proj.weight", "lm_head.weight"):
        tensors[name] = tensors[name].t().contiguous().t()


def every_other(tensors: State) -> None:
    """With gaps between the numbers."""
    name = "model.layers.2.mlp.down_proj.weight"
    wide = torch.zeros(96, 2 * tensors[name].shape[1])
    wide[:, ::2] = tensors[name]
    tensors[name] = wide[:, ::2]


def shared(tensors: State) -> None:
    """Two layers that are one."""
    for name in [name for name in tensors if ".layers.1." in name]:
        tensors[name.replace(".layers.1.", ".layers.2.")] = tensors[name]


@pytest.mark.parametrize("change", [one_storage, turned, every_other, shared], ids=lambda change: change.__name__)
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_export_of_views_writes_what_they_show(
    change: Callable[[State], None], dtype: str | None, tmp_path: Path
) -> None:
    model = tiny_model("llama")
    tensors = dict(model.state_dict())
    change(tensors)
    source = save_state(tensors, model.config, tmp_path / "in")
    exported(source, tmp_path / "out", dtype=dtype, **options_for(tmp_path / "in"))
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert written.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(written[name], tensor if dtype is None else tensor.to(torch.bfloat16)), name


def test_export_of_a_repeated_number_writes_it_out(tmp_path: Path) -> None:
    model = tiny_model("llama")
    tensors = dict(model.state_dict())
    name = "model.layers.2.input_layernorm.weight"
    tensors[name] = torch.tensor(0.5).expand(96)
    exported(save_state(tensors, model.config, tmp_path / "in"), tmp_path / "out", **options_for(tmp_path / "in"))
    assert torch.equal(load_file(tmp_path / "out" / "model.safetensors")[name], torch.full((96,), 0.5))


def test_export_in_small_blocks_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that are longer than a block are cut again: 96 numbers of 4 bytes in blocks of 64."""
    from gqacheck.export import content

    model = tiny_model("mixtral")
    tensors = dict(model.state_dict())
    turned(tensors)
    source = save_state(tensors, model.config, tmp_path / "in")
    exported(source, tmp_path / "whole", dtype="float16", **options_for(tmp_path / "in"))
    monkeypatch.setattr(content, "BLOCK", 64)
    exported(source, tmp_path / "cut", dtype="float16", **options_for(tmp_path / "in"))
    one, other = (tmp_path / name / "model.safetensors" for name in ("whole", "cut"))
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("stored", ["once", "twice", "as one storage"])
def test_export_of_tied_embeddings_stores_them_once(stored: str, stranger: Any, tmp_path: Path) -> None:
    model = tiny_model("qwen2_tied")
    tensors = dict(model.state_dict())
    if stored == "once":
        del tensors["lm_head.weight"]
    elif stored == "twice":
        tensors["lm_head.weight"] = tensors["lm_head.weight"].clone()
    source = save_state(tensors, model.config, tmp_path / "in")
    exported(source, tmp_path / "out", **options_for(tmp_path / "in"))
    assert "lm_head.weight" not in load_file(tmp_path / "out" / "model.safetensors")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is True
    assert_equal_answers(stranger, model, tmp_path / "out")


def test_export_of_an_lm_head_that_is_only_said_to_be_tied_keeps_both(stranger: Any, tmp_path: Path) -> None:
    model = tiny_model("qwen2_tied")
    tensors = dict(model.state_dict())
    tensors["lm_head.weight"] = tensors["lm_head.weight"].clone()
    tensors["lm_head.weight"][5, 7] += 0.25
    source = save_state(tensors, model.config, tmp_path / "in")
    report = exported(source, tmp_path / "out", **options_for(tmp_path / "in"))
    assert any("stored apart from the embedding" in note for note in report.notes)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False
    model.lm_head.weight = torch.nn.Parameter(tensors["lm_head.weight"])
    assert_equal_answers(stranger, model, tmp_path / "out")


def test_export_of_equal_embeddings_that_nothing_ties_keeps_both(tmp_path: Path) -> None:
    model = tiny_model("llama")
    model.lm_head.weight = torch.nn.Parameter(model.model.embed_tokens.weight.detach().clone())
    exported(save_module(model, tmp_path / "in"), tmp_path / "out")
    assert "lm_head.weight" in load_file(tmp_path / "out" / "model.safetensors")


def test_export_leaves_out_what_older_versions_saved(tmp_path: Path) -> None:
    model = tiny_model("llama")
    tensors = dict(model.state_dict())
    for index in range(4):
        tensors[f"model.layers.{index}.self_attn.rotary_emb.inv_freq"] = torch.zeros(4)
    source = save_state(tensors, model.config, tmp_path / "in")
    report = exported(source, tmp_path / "out", **options_for(tmp_path / "in"))
    assert report.notes == ()
    assert load_file(tmp_path / "out" / "model.safetensors").keys() == model.state_dict().keys()


def test_export_says_which_tensors_no_model_has(tmp_path: Path) -> None:
    model = tiny_model("llama")
    tensors = {**model.state_dict(), "model.layers.1.self_attn.mask_score": torch.zeros(4)}
    source = save_state(tensors, model.config, tmp_path / "in")
    report = exported(source, tmp_path / "out", **options_for(tmp_path / "in"))
    assert report.notes == (
        "1 stored tensor that the model does not have left out: model.layers.1.self_attn.mask_score",
    )


@pytest.mark.parametrize("size", ["60KB", 60_000, "1KB"])
def test_export_in_shards_has_an_index_that_is_right(size: str | int, stranger: Any, tmp_path: Path) -> None:
    model = tiny_model("llama")
    cut_layers(model, (1, 3))
    report = exported(save_module(model, tmp_path / "in"), tmp_path / "out", max_shard_size=size)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    shards = sorted((tmp_path / "out").glob("model-*.safetensors"))
    assert report.shards == len(shards) > 3
    assert {path.name for path in shards} == set(index["weight_map"].values())
    total = 0
    for path in shards:
        with safe_open(path, "pt") as file:
            names = set(file.keys())
            sizes = [file.get_tensor(name).nbytes for name in names]
            assert file.metadata() == {"format": "pt"}
        assert names == {name for name, home in index["weight_map"].items() if home == path.name}
        assert sum(sizes) <= 60_000 or len(sizes) == 1
        total += sum(sizes)
    assert index["metadata"]["total_size"] == total == sum(p.nbytes for p in model.state_dict().values())
    assert_equal_answers(stranger, model, tmp_path / "out")


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float16", "float64"])
@pytest.mark.parametrize("asked", [None, "auto", "float32", "bfloat16", "float16"])
def test_export_in_another_dtype_rounds_once(stored: str, asked: str | None, tmp_path: Path) -> None:
    model = tiny_model("qwen2").to(getattr(torch, stored))
    report = exported(save_module(model, tmp_path / "in"), tmp_path / "out", dtype=asked)
    wanted = stored if asked in (None, "auto") else asked
    assert report.dtype == wanted
    assert report.comparison.difference == 0.0
    written = load_file(tmp_path / "out" / "model.safetensors")
    for name, tensor in model.state_dict().items():
        assert torch.equal(written[name], tensor.to(getattr(torch, wanted))), name
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == wanted


@pytest.mark.parametrize("case", ["llama", "gemma3", "phi3", "qwen2_tied"])
def test_export_of_an_export_is_the_same(case: str, tmp_path: Path) -> None:
    model = tiny_model(case)
    cut_layers(model, (1, 3))
    exported(save_module(model, tmp_path / "in"), tmp_path / "one")
    exported(tmp_path / "one", tmp_path / "two")
    for name in ("config.json", "model.safetensors", "generation_config.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


@pytest.mark.parametrize("case", ["llama", "gemma3", "phi3", "cohere"])
def test_export_of_dropped_blocks_keeps_them_dropped(case: str, stranger: Any, tmp_path: Path) -> None:
    cut = random_cut(case, 3, no_attention=(1,), no_mlp=(2,))
    report = exported(write_folder(cut, tmp_path / "in"), tmp_path / "out")
    assert report.way == "own-code"
    assert report.why == "layer 1 without attention and layer 2 without MLP"
    assert report.comparison.difference == 0.0
    assert_equal_answers(stranger, cut.model, tmp_path / "out", family=cut.family)


def test_export_of_layers_that_were_filtered_out_numbers_the_rest_anew(stranger: Any, tmp_path: Path) -> None:
    """Gemma-3's layers alternate: which of them are kept decides which window each has."""
    whole = tiny_model("gemma3")
    tensors = {name: tensor for name, tensor in whole.state_dict().items() if ".layers.1." not in name}
    source = save_state(tensors, whole.config, tmp_path / "in")
    report = exported(source, tmp_path / "out", config=tmp_path / "in" / "config")
    assert "layers 0, 2-3 are numbered 0-2 now" in report.notes
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["num_hidden_layers"] == 3
    assert config["layer_types"] == ["sliding_attention", "sliding_attention", "full_attention"]
    expected = tiny_model("gemma3", num_hidden_layers=3, layer_types=config["layer_types"])
    names = {
        old: old.replace(f".layers.{i}.", f".layers.{i - 1}.") for i in (2, 3) for old in tensors if f".{i}." in old
    }
    expected.load_state_dict({names.get(name, name): tensor for name, tensor in tensors.items()})
    assert_equal_answers(stranger, expected, tmp_path / "out")


def test_export_of_a_multimodal_model_is_its_language_model(stranger: Any, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForImageTextToText

    text = tiny_model("gemma3")
    config = AutoConfig.for_model(
        "gemma3",
        text_config=text.config.to_dict(),
        vision_config={
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
            "image_size": 28, "patch_size": 14,
        },
    )  # fmt: skip
    torch.manual_seed(0)
    whole = AutoModelForImageTextToText.from_config(config).eval()
    whole.model.language_model.load_state_dict(text.model.state_dict())
    whole.lm_head.load_state_dict(text.lm_head.state_dict())
    whole.save_pretrained(tmp_path / "in")
    report = exported(tmp_path / "in", tmp_path / "out")
    assert report.architecture == "Gemma3ForCausalLM"
    assert any("vision_tower" in note for note in report.notes)
    assert_equal_answers(stranger, text, tmp_path / "out")


def test_export_of_a_family_without_a_class_writes_its_tensors_and_says_so(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = {
        "attention.wqkv": (72, 48), "attention.wo": (48, 48), "feed_forward.w1": (80, 48),
        "feed_forward.w3": (80, 48), "feed_forward.w2": (48, 80), "attention_norm": (48,), "ffn_norm": (48,),
    }  # fmt: skip
    shapes = {f"model.layers.{i}.{name}.weight": size for i in range(2) for name, size in sizes.items()}
    shapes |= {"model.tok_embeddings.weight": (64, 48), "output.weight": (64, 48), "model.norm.weight": (48,)}
    tensors = {name: torch.randn(size, generator=generator) for name, size in shapes.items()}
    config = {
        "model_type": "internlm2", "architectures": ["InternLM2ForCausalLM"], "hidden_size": 48,
        "num_attention_heads": 12, "num_key_value_heads": 3, "num_hidden_layers": 2, "vocab_size": 64,
        "intermediate_size": 96, "_name_or_path": "/home/somebody/checkpoint",
        "auto_map": {"AutoModelForCausalLM": "modeling_internlm2.InternLM2ForCausalLM"},
    }  # fmt: skip
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "config.json").write_text(json.dumps(config))
    (tmp_path / "in" / "modeling_internlm2.py").write_text("raise RuntimeError('this must not run')\n")
    torch.save({f"module.{name}": tensor for name, tensor in tensors.items()}, tmp_path / "in" / "pytorch_model.bin")
    report = exported(tmp_path / "in", tmp_path / "out")
    assert report.way == "as-stored"
    assert "no class of its own for internlm2" in report.why
    assert not report.comparison.ran
    assert report.comparison.reason == report.why
    assert (tmp_path / "out" / "modeling_internlm2.py").is_file()
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["intermediate_size"] == 80
    assert "_name_or_path" not in written
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_export_of_an_uncut_model_is_what_save_pretrained_writes(tmp_path: Path) -> None:
    model = tiny_model("qwen2_moe")
    model.save_pretrained(tmp_path / "theirs")
    exported(save_module(copy.deepcopy(model), tmp_path / "in"), tmp_path / "ours")
    from transformers import AutoModelForCausalLM

    ids = tiny_ids()
    theirs, ours = (AutoModelForCausalLM.from_pretrained(tmp_path / name).eval() for name in ("theirs", "ours"))
    assert torch.equal(logits_of(theirs, ids), logits_of(ours, ids))
    left_out = {"transformers_version", "_name_or_path"}
    mine, other = ({k: v for k, v in m.config.to_dict().items() if k not in left_out} for m in (ours, theirs))
    assert {key: value for key, value in mine.items() if other.get(key) != value} == {}
