"""What people do with exported folders, in a process without gqacheck: Trainer, peft, accelerate, pipeline, AutoModel.

``test_modelling_consumers`` does the same and more with folders made by hand; here the folders come out of ``export``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from cut_folders import random_cut, write_folder
from export_cases import assert_equal_answers, cut_alike, save_module
from tiny_models import tiny_ids, tiny_model, tiny_tokenizer
from tiny_surgery import cut_layers

from gqacheck.export import export

IDS = tiny_ids()


@dataclass(frozen=True)
class Case:
    """An exported folder and the model that it was made of."""

    model: Any
    folder: Path
    architecture: str


@pytest.fixture(scope="module", params=["llama-alike", "llama", "gemma3", "phi3", "qwen3-dropped"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Stock and own code, fused projections, layers of two kinds, and blocks that are not there."""
    name, _, kind = request.param.partition("-")
    scratch = tmp_path_factory.mktemp(name)
    if kind == "dropped":
        cut = random_cut(name, 4, no_attention={1}, no_mlp={2})
        model, source = cut.model, write_folder(cut, scratch / "in")
        tiny_tokenizer().save_pretrained(source)
    else:
        model = tiny_model(name)
        cut_alike(model) if kind == "alike" else cut_layers(model, (1, 3))
        source = save_module(model, scratch / "in", tiny_tokenizer())
    folder = scratch / f"exported-{request.param}"  # transformers keeps the code of a folder under its name
    report = export(source, folder)
    assert report.way == ("stock" if kind == "alike" else "own-code")
    return Case(model, folder, report.architecture)


@pytest.mark.parametrize(
    "usual",
    [{"device_map": "auto"}, {"device_map": "cpu"}, {"low_cpu_mem_usage": True}],
    ids=lambda usual: " ".join(f"{key}={value}" for key, value in usual.items()),
)
def test_export_loads_in_every_usual_way(usual: dict[str, Any], case: Case, stranger: Any, tmp_path: Path) -> None:
    told = stranger("logits", folder=case.folder, ids=IDS.tolist(), out=tmp_path / "theirs.pt", **usual)
    assert told == {"class": case.architecture, "cached": True}
    with torch.inference_mode():
        expected = case.model(input_ids=IDS, use_cache=False).logits
    assert torch.equal(torch.load(tmp_path / "theirs.pt"), expected)


def test_export_loaded_and_saved_by_transformers_is_the_same_model(case: Case, stranger: Any, tmp_path: Path) -> None:
    again = tmp_path / f"again-{case.folder.name}"
    stranger("round_trip", folder=case.folder, out=again)
    assert_equal_answers(stranger, case.model, again)


def test_export_trains_with_trainer_and_resumes(case: Case, stranger: Any, tmp_path: Path) -> None:
    told = stranger("train", folder=case.folder, ids=IDS.tolist(), out=tmp_path / case.folder.name)
    assert told["changed"] == told["all"]
    assert told["apart"] == 0.0
    told = stranger("resume", folder=case.folder, ids=IDS.tolist(), out=tmp_path / f"more-{case.folder.name}")
    assert (told["steps"], told["apart"]) == (4, 0.0)


def test_export_takes_a_lora_at_each_layers_own_size(case: Case, stranger: Any, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    told = stranger("lora", folder=case.folder, ids=IDS.tolist(), targets="all-linear", out=tmp_path / "adapter")
    linears = {
        name: [module.in_features, module.out_features]
        for name, module in case.model.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    }
    gone = ("model.layers.1.self_attn.", "model.layers.2.mlp.") if "dropped" in case.folder.name else ()
    assert told["sizes"] == {name: sizes for name, sizes in linears.items() if not name.startswith(gone)}
    assert told["idle"] == []
    assert (told["reloaded"], told["saved"]) == (0.0, 0.0)
    assert told["merged"] < 1e-3


def test_export_backbone_alone_loads_and_saves(case: Case, stranger: Any, tmp_path: Path) -> None:
    out = tmp_path / f"backbone-{case.folder.name}"
    told = stranger("backbone", folder=case.folder, ids=IDS.tolist(), out=out)
    assert told["apart"] == [0.0, 0.0]


def test_export_writes_text_in_a_pipeline(case: Case, stranger: Any) -> None:
    assert stranger("write_text", folder=case.folder, prompt="The head").startswith("The head")
    settings = json.loads((case.folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
