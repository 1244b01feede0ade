"""Every family that transformers builds, cut alike or not, out of a pickle and into a process without gqacheck."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from export_cases import assert_equal_answers, cut_alike, exported, save_module, save_state
from tiny_models import CASES, CASES_BEYOND, NO_HEAD_DIM_KEY, tiny_model, tiny_tokenizer
from tiny_surgery import cut_attention, cut_channels, cut_layers

from gqacheck.export import CannotExport
from gqacheck.export.code import SUPPORTED

COMPUTES_HEAD_DIM = [name for name in CASES if CASES[name][0] in NO_HEAD_DIM_KEY]
FREE = [name for name in CASES if name not in COMPUTES_HEAD_DIM]
OWN_CODE = [name for name in FREE if name.partition("_")[0] in SUPPORTED and not name.endswith(("moe", "next"))]
MOE = ("mixtral", "qwen2_moe", "qwen3_moe", "qwen3_next", "gpt_oss")


@pytest.mark.parametrize("name", [*CASES, *CASES_BEYOND])
def test_export_of_an_uncut_family_loads_with_its_own_class(name: str, stranger: Any, tmp_path: Path) -> None:
    model = tiny_model(name)
    report = exported(save_module(model, tmp_path / "in", tiny_tokenizer()), tmp_path / "out")
    assert (report.way, report.why, report.architecture) == ("stock", "", type(model).__name__)
    assert report.comparison.ran
    assert report.comparison.difference == 0.0
    assert report.tokenizer == "recovered from the pickle"
    told = assert_equal_answers(stranger, model, tmp_path / "out", family=name)
    assert told["class"] == type(model).__name__


@pytest.mark.parametrize("name", FREE)
def test_export_of_a_family_cut_alike_loads_without_gqacheck(name: str, stranger: Any, tmp_path: Path) -> None:
    """8 query heads over 2 KV heads of 96: every config class accepts them once head_dim is stated."""
    model = cut_alike(tiny_model(name))
    report = exported(save_module(model, tmp_path / "in"), tmp_path / "out")
    assert (report.way, report.architecture) == ("stock", type(model).__name__)
    assert report.comparison.difference == 0.0
    assert_equal_answers(stranger, model, tmp_path / "out", family=name)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["num_attention_heads"], config["num_key_value_heads"], config["num_hidden_layers"]) == (8, 2, 4)
    assert "auto_map" not in config


@pytest.mark.parametrize("name", FREE)
def test_export_of_a_state_dict_is_the_export_of_its_module(name: str, stranger: Any, tmp_path: Path) -> None:
    """A state dict has the names of memory, experts stacked; the folder has those of disk."""
    model = cut_alike(tiny_model(name))
    head_dim = next(module.head_dim for module in model.modules() if hasattr(module, "head_dim"))
    source = save_state(model.state_dict(), model.config, tmp_path / "in")
    report = exported(source, tmp_path / "out", config=tmp_path / "in" / "config", head_dim=head_dim)
    assert report.way == "stock"
    assert_equal_answers(stranger, model, tmp_path / "out", family=name)


@pytest.mark.parametrize("name", MOE)
def test_export_of_experts_writes_the_names_that_transformers_writes(name: str, tmp_path: Path) -> None:
    from safetensors import safe_open

    model = tiny_model(name)
    exported(save_module(model, tmp_path / "in"), tmp_path / "out")
    model.save_pretrained(tmp_path / "theirs")
    exported(tmp_path / "theirs", tmp_path / "again")
    names = []
    for folder in ("out", "theirs", "again"):
        with safe_open(tmp_path / folder / "model.safetensors", "pt") as file:
            names.append({key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118
    assert names[0].keys() == names[1].keys() == names[2].keys()
    assert all(bool((names[0][key] == names[1][key]).all()) for key in names[0])
    assert all(bool((names[2][key] == names[1][key]).all()) for key in names[0])


@pytest.mark.parametrize("name", OWN_CODE)
def test_export_of_differing_layers_brings_its_own_code(name: str, stranger: Any, tmp_path: Path) -> None:
    model = tiny_model(name)
    cut_layers(model, (1, 3))
    report = exported(save_module(model, tmp_path / "in", tiny_tokenizer()), tmp_path / "out")
    assert report.way == "own-code"
    assert "layers have 4 to 12 query heads, 1 to 3 KV heads" in report.why
    assert report.comparison.difference == 0.0
    told = assert_equal_answers(stranger, model, tmp_path / "out", family=name)
    assert told["class"] == report.architecture
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["gqacheck_layers"]["num_attention_heads"] == [12, 8, 12, 4]
    assert config["gqacheck_layers"]["num_key_value_heads"] == [3, 2, 3, 1]
    assert {claim.name: claim.state for claim in report.after.claims}["shapes"] == "pass"


@pytest.mark.parametrize("name", ["llama", "llama_rope3"])
def test_export_of_a_llama_that_its_config_refuses_is_a_mistral(name: str, stranger: Any, tmp_path: Path) -> None:
    model = tiny_model(name)
    for layer in model.model.layers:
        cut_attention(layer.self_attn, (0, 1, 3), (0, 1, 2))  # 9 heads do not divide 96
    source = save_module(model, tmp_path / "in")
    with pytest.raises(CannotExport, match=r"GQA105 9 query heads.*--force"):
        exported(source, tmp_path / "out")
    report = exported(source, tmp_path / "out", force=True)
    assert (report.way, report.architecture) == ("other-class", "MistralForCausalLM")
    assert report.why == "LlamaConfig refuses it: the hidden size (96) is not a multiple of the number of attention " \
        "heads (9)"  # fmt: skip
    assert_equal_answers(stranger, model, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["sliding_window"] is None
    assert not {"attention_bias", "mlp_bias", "pretraining_tp"} & config.keys()


@pytest.mark.parametrize(
    ("roles", "way", "architecture"),
    [
        (("q_proj", "k_proj", "v_proj"), "other-class", "Qwen2ForCausalLM"),
        (("q_proj", "k_proj", "v_proj", "o_proj"), "own-code", "PrunedLlamaForCausalLM"),
    ],
)
def test_export_of_a_refused_llama_with_biases_goes_by_what_is_stored(
    roles: tuple[str, ...], way: str, architecture: str, stranger: Any, tmp_path: Path
) -> None:
    import torch

    model = tiny_model("llama", attention_bias=True)
    for layer in model.model.layers:
        cut_attention(layer.self_attn, (0, 1, 3), (0, 1, 2))
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            if name not in roles:
                getattr(layer.self_attn, name).bias = None
            else:
                torch.nn.init.normal_(getattr(layer.self_attn, name).bias)
    model.config.attention_bias = roles[-1] == "o_proj"
    report = exported(save_module(model, tmp_path / "in"), tmp_path / "out", force=True)
    assert (report.way, report.architecture) == (way, architecture)
    assert_equal_answers(stranger, model, tmp_path / "out")


@pytest.mark.parametrize("name", ["gemma2", "gemma3"])
def test_export_of_a_gemma_that_its_config_refuses_brings_its_own_code(
    name: str, stranger: Any, tmp_path: Path
) -> None:
    model = tiny_model(name)
    for layer in model.model.layers:
        cut_attention(layer.self_attn, (0, 1, 3), (0, 1, 2))
    report = exported(save_module(model, tmp_path / "in"), tmp_path / "out", force=True)
    assert report.way == "own-code"
    assert "refuses it: the hidden size (96)" in report.why
    assert_equal_answers(stranger, model, tmp_path / "out", family=name)


@pytest.mark.parametrize("name", [*COMPUTES_HEAD_DIM, "mixtral", "glm4"])
def test_export_that_no_class_can_hold_says_so_and_leaves_nothing(name: str, tmp_path: Path) -> None:
    model = tiny_model(name)
    cut_layers(model, (1,))
    with pytest.raises(CannotExport, match=r"no class can hold it \(layers have 8 to 12 query heads"):
        exported(save_module(model, tmp_path / "in"), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_export_of_experts_of_an_odd_width_says_how_to_run_them(stranger: Any, tmp_path: Path) -> None:
    """Torch's grouped product wants rows of 16 bytes: 53 float32 numbers are not."""
    model = tiny_model("mixtral")
    for layer in model.model.layers:
        cut_channels(layer.mlp, {expert: list(range(53)) for expert in range(5)})
    model.set_experts_implementation("eager")
    report = exported(save_module(model, tmp_path / "in"), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["experts_implementation"] == "eager"
    assert any("grouped product" in note for note in report.notes)
    assert_equal_answers(stranger, model, tmp_path / "out")
