"""Mixtures of experts whose layers differ: one sentence each; a config that alone is stale is no reason to refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from export_cases import assert_equal_answers, exported, save_module
from safetensors.torch import load_file, save_file
from tiny_models import tiny_model
from tiny_surgery import cut_channels, cut_layers, mlp_widths
from torch import nn

from gqacheck import export_model
from gqacheck.export import CannotExport


def test_experts_that_differ_between_layers_are_refused_in_one_sentence(tmp_path: Path) -> None:
    model = tiny_model("mixtral")
    cut_layers(model, (1,), heads=False)
    with pytest.raises(CannotExport) as caught:
        exported(save_module(model, tmp_path / "in"), tmp_path / "out")
    said = "no class can hold it (layers have 56 to 112 expert channels; no modelling file is written for mixtral)"
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_experts_that_differ_within_a_layer_are_refused_in_one_sentence(tmp_path: Path) -> None:
    tiny_model("mixtral").save_pretrained(tmp_path / "in")
    tensors = load_file(tmp_path / "in" / "model.safetensors")
    for part in ("w1", "w2", "w3"):
        name = f"model.layers.1.block_sparse_moe.experts.2.{part}.weight"
        tensors[name] = (tensors[name][:, :56] if part == "w2" else tensors[name][:56]).clone()
    save_file(tensors, tmp_path / "in" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CannotExport, match=r"layers\.1\.\S+experts: the 5 experts differ in shape"):
        exported(tmp_path / "in", tmp_path / "out")


def test_experts_removed_with_their_router_rows_beside_a_stale_config_are_exported(
    stranger: object, tmp_path: Path
) -> None:
    model = tiny_model("mixtral")
    model.save_pretrained(tmp_path / "in")
    tensors = load_file(tmp_path / "in" / "model.safetensors")
    kept = {name: value for name, value in tensors.items() if ".experts.4." not in name}
    kept |= {name: value[:4].clone() for name, value in kept.items() if name.endswith("block_sparse_moe.gate.weight")}
    save_file(kept, tmp_path / "in" / "model.safetensors", metadata={"format": "pt"})
    for layer in model.model.layers:
        layer.mlp.gate.weight = nn.Parameter(layer.mlp.gate.weight[:4])
        for name in ("gate_up_proj", "down_proj"):
            setattr(layer.mlp.experts, name, nn.Parameter(getattr(layer.mlp.experts, name)[:4]))
        layer.mlp.experts.num_experts = 4
    report = exported(tmp_path / "in", tmp_path / "out")
    assert (report.way, report.comparison.difference) == ("stock", 0.0)
    assert any(sentence.startswith("GQA305") for sentence in report.cured)
    assert_equal_answers(stranger, model, tmp_path / "out")


def test_experts_whose_inner_width_does_not_fit_the_grouped_product_are_run_singly(tmp_path: Path) -> None:
    model = tiny_model("gpt_oss")  # down_proj is [experts, width, hidden]: the width is not its last size
    for layer in model.model.layers:
        cut_channels(layer.mlp, {part: list(range(58)) for part in mlp_widths(layer.mlp)})
    model.set_experts_implementation("eager")
    report = export_model(model, tmp_path / "out")
    assert report.comparison.difference == 0.0
    assert json.loads((tmp_path / "out" / "config.json").read_text())["experts_implementation"] == "eager"
