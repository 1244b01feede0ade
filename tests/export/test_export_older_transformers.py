"""The last transformers before 5 loads what is exported: every family that a modelling file can be written for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from export_cases import EAGER_ONLY, cut_alike, save_module
from tiny_models import CASES, CASES_BEYOND, tiny_ids, tiny_model, tiny_tokenizer
from tiny_surgery import cut_layers

from gqacheck.export import export
from gqacheck.export.code import SUPPORTED

CASE = {"hunyuan_v1_dense": "hunyuan"}
IDS = tiny_ids()
TEXT = "The model reads this text, and writes  it back."


def test_older_transformers_is_what_it_is_called(older_stranger: Any, stranger: Any) -> None:
    old, new = older_stranger("versions"), stranger("versions")
    assert old["transformers"].startswith("4.57.")
    assert ".consumer-transformers-4.57" in old["from"]
    assert old["torch"] == new["torch"]
    assert not new["transformers"].startswith("4.")
    assert "No module named 'gqacheck'" in older_stranger.ask("import_gqacheck")["error"]


@pytest.mark.parametrize("alike", [True, False], ids=["alike", "differing"])
@pytest.mark.parametrize("family", sorted(SUPPORTED))
def test_older_transformers_computes_the_same_of_an_export(
    family: str, alike: bool, older_stranger: Any, tmp_path: Path
) -> None:
    name = CASE.get(family, family)
    assert name in CASES | CASES_BEYOND
    model = tiny_model(name)
    cut_alike(model) if alike else cut_layers(model, (1, 3))
    folder = tmp_path / f"{family}-{alike}"  # code that was loaded is known by the folder's name
    report = export(save_module(model, tmp_path / "in", tiny_tokenizer()), folder)
    assert report.way == ("stock" if alike else "own-code")
    options = {"attn_implementation": "eager"} if family in EAGER_ONLY else {}
    told = older_stranger("logits", folder=folder, ids=IDS.tolist(), out=tmp_path / "theirs.pt", **options)
    assert told == {"class": report.architecture, "cached": True}
    with torch.inference_mode():
        expected = model(input_ids=IDS, use_cache=False).logits
    assert torch.equal(torch.load(tmp_path / "theirs.pt"), expected)
    assert older_stranger("encode", folder=folder, text=TEXT)["ids"] == tiny_tokenizer().encode(TEXT)


def test_older_transformers_reads_a_tokenizer_that_5_saved(older_stranger: Any, stranger: Any, tmp_path: Path) -> None:
    """Its class and its added special tokens have names that 4.57 does not know, or stumbles over."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    model = tiny_model("llama")
    model.save_pretrained(tmp_path / "in")
    tokenizer.save_pretrained(tmp_path / "in")
    saved = (tmp_path / "in" / "tokenizer_config.json").read_bytes()
    assert b"TokenizersBackend" in saved
    reply = older_stranger.ask("encode", folder=tmp_path / "in", text=TEXT)
    assert "error" in reply  # or there is nothing to show here
    report = export(tmp_path / "in", tmp_path / "out")
    assert not any("tokenizer" in note for note in report.notes)
    assert (tmp_path / "in" / "tokenizer_config.json").read_bytes() == saved
    pickled = export(save_module(model, tmp_path / "pickle", tokenizer), tmp_path / "of-pickle")
    assert pickled.tokenizer == "recovered from the pickle"
    text = f"{TEXT}<|im_end|> and on"
    for folder in (tmp_path / "out", tmp_path / "of-pickle"):
        for reader in (older_stranger, stranger):
            told = reader("encode", folder=folder, text=text)
            assert told["ids"] == tokenizer.encode(text)
            if folder.name == "out":
                assert told["special"] == sorted(tokenizer.all_special_tokens)
