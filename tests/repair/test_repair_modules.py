"""Whole-module pickles: of older transformers, of classes that read their config, and under other names."""

from __future__ import annotations

import json
import pickletools
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import logits_of, tiny_ids, tiny_model, tiny_tokenizer
from tiny_surgery import GROUP, cut_heads

from gqacheck.repair import repair
from gqacheck.runtime.load import load_model

OLD = sorted((Path(__file__).parents[2] / "fixtures" / "old_pickles").glob("*pruned*.bin"))


@pytest.mark.parametrize("path", OLD, ids=lambda path: path.stem)
def test_old_pickle_is_built_anew_and_computes_what_its_own_version_did(path: Path, tmp_path: Path) -> None:
    report = repair(path, out=tmp_path / "fixed")
    assert report.refused == ()
    assert {"GQA205", "GQA206"} & {finding.code for finding in report.before.findings}
    assert report.after is not None
    assert not [finding for finding in report.after.findings if finding.severity != "note"]
    model, _ = load_model(report.out or "", tokenizer=None)
    model.set_attn_implementation("eager")
    known = load_file(path.with_suffix(".logits.safetensors"))
    logits = logits_of(model, known["input_ids"])
    assert torch.equal(logits, known["logits_eager"].float())


def test_tokenizer_that_cannot_be_pickled_again_is_said_and_not_replaced_by_another(tmp_path: Path) -> None:
    path = next(path for path in OLD if "legacy" in path.stem)
    report = repair(path, out=tmp_path / "fixed")
    assert any("tokenizer is not pickled" in sentence for sentence in report.left_alone)
    assert any("zip format" in sentence for sentence in report.left_alone)
    assert [file.name for file in (tmp_path / "fixed").iterdir()] == [path.name]
    assert set(torch.load(tmp_path / "fixed" / path.name, weights_only=False)) == {"model"}


def test_class_that_reads_its_config_is_pickled_without_a_class_of_ours(tmp_path: Path) -> None:
    """Phi-3 reads head counts from the config in forward, so every attention has its own."""
    parent = tiny_model("phi3")
    right = [head * GROUP + member for head in (0, 2) for member in range(GROUP)]
    for name, queries in (("parent", None), ("broken", range(8)), ("right", right)):
        model = tiny_model("phi3")
        if queries is not None:
            for layer in list(model.model.layers)[1:]:
                cut_heads(layer.self_attn, list(queries), (0, 2))
        torch.save(model, tmp_path / f"{name}.bin")
        wanted = logits_of(model, tiny_ids())
    report = repair(tmp_path / "broken.bin", base=tmp_path / "parent.bin", out=tmp_path / "fixed.bin")
    assert report.refused == ()
    with zipfile.ZipFile(report.out or "") as archive:
        name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        words = {str(argument) for _, argument, _ in pickletools.genops(archive.read(name)) if argument is not None}
    assert {word for word in words if "gqacheck" in word} <= {"gqacheck_layers"}  # a key of the config, no class
    loaded = torch.load(report.out or "", weights_only=False)  # our own file of a moment ago
    assert float((logits_of(loaded, tiny_ids()) - wanted).abs().max() / wanted.std()) < 1e-5
    assert parent is not None


@pytest.mark.parametrize("around", ["model", "state", None])
def test_module_keeps_the_key_it_was_saved_under(around: str | None, tmp_path: Path) -> None:
    model = tiny_model("llama")
    model.model.layers[1].mlp.up_proj.out_features = 7
    torch.save({around: model} if around else model, tmp_path / "stale.bin")
    report = repair(tmp_path / "stale.bin", out=tmp_path / "fixed.bin")
    assert report.refused == ()
    loaded = torch.load(report.out or "", weights_only=False)
    assert (loaded[around] if around else loaded).model.layers[1].mlp.up_proj.out_features == 112


def test_module_in_a_folder_keeps_its_tokenizer_files_and_gets_a_config_in_step(tmp_path: Path) -> None:
    model = tiny_model("qwen2")
    for layer in model.model.layers:
        cut_heads(layer.self_attn, [head * GROUP + member for head in (0, 2) for member in range(GROUP)], (0, 2))
    folder = tmp_path / "child"
    model.config.save_pretrained(folder)  # says 12:3
    tiny_tokenizer().save_pretrained(folder)
    torch.save(model, folder / "pytorch_model.bin")
    (folder / "notes.txt").write_text("mine")
    report = repair(folder, out=tmp_path / "fixed")
    assert report.refused == ()
    names = {path.name for path in (tmp_path / "fixed").iterdir()}
    assert names == {path.name for path in folder.iterdir()} - {"notes.txt"}
    assert any("notes.txt" in sentence for sentence in report.left_alone)
    values = json.loads((tmp_path / "fixed" / "config.json").read_text())
    assert (values["num_attention_heads"], values["num_key_value_heads"]) == (8, 2)


def test_settings_of_generation_are_carried_over(tmp_path: Path) -> None:
    model = tiny_model("llama")
    model.generation_config.temperature = 0.3
    model.generation_config.do_sample = True
    model.model.layers[1].mlp.up_proj.out_features = 7
    torch.save(model, tmp_path / "stale.bin")
    report = repair(tmp_path / "stale.bin", out=tmp_path / "fixed.bin")
    loaded = torch.load(report.out or "", weights_only=False)
    assert (loaded.generation_config.temperature, loaded.generation_config.do_sample) == (0.3, True)
    assert loaded.generate(tiny_ids(4, 1), max_new_tokens=3, do_sample=False).shape == (1, 7)
