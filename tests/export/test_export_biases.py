"""Biases that a class has no switch for, as FLAP leaves them on o_proj and down_proj: own code keeps them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from export_cases import assert_equal_answers, exported, save_module
from planned_cuts import layers_of
from safetensors.torch import load_file
from tiny_models import logits_of, tiny_ids, tiny_model
from tiny_surgery import cut_layers

import gqacheck


def compensated(name: str, *, cut: bool) -> tuple[Any, list[list[str]]]:
    """A model with such biases, on o_proj in every layer but the first and on down_proj in every other one."""
    model = tiny_model(name)
    if cut:
        cut_layers(model, (1, 3))
    given, made = [[], ["mlp.down_proj", "self_attn.o_proj"], ["self_attn.o_proj"], ["mlp.down_proj"]], []
    generator = torch.Generator().manual_seed(0)
    for layer, names in zip(layers_of(model), given, strict=True):
        for part in names:
            projection = layer.get_submodule(part)
            projection.bias = torch.nn.Parameter(torch.randn(projection.out_features, generator=generator))
        made.append([part for part, _ in layer.named_modules() if part in names])
    return model, made


@pytest.mark.parametrize(
    ("name", "cut"),
    [("mistral", True), ("qwen2", False), ("phi3", False), ("gemma2", True), ("gemma", False), ("llama", True)],
)
def test_biases_without_a_switch_are_kept_by_own_code(name: str, cut: bool, stranger: Any, tmp_path: Path) -> None:
    model, names = compensated(name, cut=cut)
    report = exported(save_module(model, tmp_path / "in"), tmp_path / "out")
    assert (report.way, report.comparison.difference) == ("own-code", 0.0)
    assert report.notes == ("4 biases that the stock class does not have: kept, as stored",)
    assert ("has no place for model.layers.1.self_attn.o_proj.bias" in report.why) == (not cut and name != "gemma")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["gqacheck_layers"]["added_biases"] == names
    stored = [
        key
        for key in load_file(tmp_path / "out" / "model.safetensors")
        if key.endswith(("o_proj.bias", "down_proj.bias"))
    ]
    assert len(stored) == 4
    assert_equal_answers(stranger, model, tmp_path / "out", family=name)
    assert torch.equal(logits_of(gqacheck.load_model(tmp_path / "out")[0], tiny_ids()), logits_of(model, tiny_ids()))
    exported(tmp_path / "out", tmp_path / "again")
    for file in (tmp_path / "out").iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes(), file.name


def test_biases_with_a_switch_stay_with_the_stock_class(stranger: Any, tmp_path: Path) -> None:
    """Llama has a switch for each block, which gives every projection one: zeros stand where none is stored."""
    model, _ = compensated("llama", cut=False)
    report = exported(save_module(model, tmp_path / "in"), tmp_path / "out")
    assert (report.way, report.comparison.difference) == ("stock", 0.0)
    assert report.notes[0].startswith("24 biases of zeros written")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["attention_bias"], config["mlp_bias"]) == (True, True)
    assert_equal_answers(stranger, model, tmp_path / "out")
