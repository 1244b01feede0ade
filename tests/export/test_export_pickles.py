"""Whole-module pickles of transformers 4.33 to 5.x, in LLM-Pruner's layout, all the way into plain transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from export_cases import exported
from safetensors.torch import load_file

from gqacheck.formats import open_checkpoint
from gqacheck.runtime.tokenizer import open_tokenizer

FOLDER = Path(__file__).resolve().parents[2] / "fixtures" / "old_pickles"
PICKLES = sorted(FOLDER.glob("*.bin"))
TEXT = "The model reads this text, and writes  it back."


@pytest.mark.parametrize("path", PICKLES, ids=lambda path: path.stem)
def test_export_of_an_old_pickle_gives_the_logits_of_the_version_that_wrote_it(
    path: Path, stranger: Any, tmp_path: Path
) -> None:
    expected = load_file(path.with_suffix(".logits.safetensors"))
    ids = expected["input_ids"]
    report = exported(path, tmp_path / "out")
    assert report.way == ("own-code" if "pruned" in path.stem else "stock")
    assert report.comparison.difference == 0.0
    stranger(
        "answers",
        folder=tmp_path / "out",
        ids=ids.tolist(),
        mask=torch.ones_like(ids).tolist(),
        out=tmp_path / "answers.pt",
        attn_implementation="eager",
    )
    assert torch.equal(torch.load(tmp_path / "answers.pt")["logits"], expected["logits_eager"])


@pytest.mark.parametrize("path", PICKLES, ids=lambda path: path.stem)
def test_export_of_an_old_pickle_brings_its_tokenizer(path: Path, stranger: Any, tmp_path: Path) -> None:
    report = exported(path, tmp_path / "out")
    checkpoint = open_checkpoint(str(path))
    if checkpoint.tokenizer is None:
        assert report.tokenizer == "none is stored with the checkpoint"
        assert not (tmp_path / "out" / "tokenizer.json").exists()
        return
    assert report.tokenizer == "recovered from the pickle"
    assert not any("tokenizer" in note for note in report.notes)
    told = stranger("encode", folder=tmp_path / "out", text=TEXT)
    source = open_tokenizer(checkpoint)
    assert told["ids"] == list(source.encode(TEXT))
    assert (told["bos"], told["eos"]) == (source.bos_token_id, source.eos_token_id)


@pytest.mark.parametrize("path", PICKLES, ids=lambda path: path.stem)
def test_export_of_an_old_pickle_says_nothing_of_where_it_was_made(path: Path, tmp_path: Path) -> None:
    exported(path, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    stale = {"_name_or_path", "max_length", "temperature", "id2label", "pruned_heads", "torchscript", "return_dict"}
    assert not stale & config.keys()
    assert config["head_dim"] == 4
    half = "half" in path.stem
    assert config["dtype"] == config["torch_dtype"] == ("float16" if half else "float32")
    settings = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert settings.keys() == {"bos_token_id", "eos_token_id", "pad_token_id", "transformers_version"}
