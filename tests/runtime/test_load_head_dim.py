"""How wide a head is where no key of the config says so: rows decide, what is unsure is said, and a word settles it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import logits_of, tiny_ids, tiny_model
from tiny_surgery import cut_attention, cut_mlp, decoder_layers

import gqacheck
from gqacheck.formats import open_checkpoint
from gqacheck.geometry.measure import measure


def cut_falcon(monkeypatch: pytest.MonkeyPatch) -> Any:
    """6 of 12 query heads over 2 KV heads: 48 and 16 rows are as well 3 and 1 heads of 96 // 6 = 16."""
    monkeypatch.setattr("tiny_surgery.GROUP", 6)
    monkeypatch.setattr("tiny_surgery.KV", 2)
    model = tiny_model("falcon", num_kv_heads=2)
    for layer in decoder_layers(model):
        cut_attention(layer.self_attention, (0, 2, 4), (0, 1))
        cut_mlp(layer.mlp, 0.5)
    return model


def loaded(path: Path, **options: Any) -> tuple[Any, list[str]]:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model = gqacheck.load_model(path, **options)[0]
    return model, [str(each.message) for each in said if "head_dim" in str(each.message)]


def test_falcon_saved_by_load_model_is_read_back_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = cut_falcon(monkeypatch)
    torch.save(original, tmp_path / "m.bin")
    model, said = loaded(tmp_path / "m.bin")
    assert said == []
    assert model.config.gqacheck_layers == {"head_dim": [8] * 4}
    with pytest.warns(UserWarning, match=r"where FalconForCausalLM makes it .*gqacheck export"):
        model.save_pretrained(tmp_path / "out")
    again, said = loaded(tmp_path / "out")
    assert said == []
    assert torch.equal(logits_of(again, tiny_ids()), logits_of(original, tiny_ids()))
    found = measure(open_checkpoint(str(tmp_path / "out"))).layers[0].attention.head_dim
    assert found is not None
    assert (found.value, found.source) == (8, "config.json gqacheck_layers.head_dim")


def test_falcon_saved_with_its_counts_goes_by_its_rows_and_says_what_is_unsure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = cut_falcon(monkeypatch)
    original.config.num_attention_heads, original.config.num_kv_heads = 6, 2
    original.save_pretrained(tmp_path / "out")
    model, said = loaded(tmp_path / "out")
    assert torch.equal(logits_of(model, tiny_ids()), logits_of(original, tiny_ids()))
    assert len(said) == 1
    assert "layer 0: head_dim is 8 by q_proj and k_proj rows" in said[0]
    assert "but 16 by hidden_size // num_attention_heads" in said[0]
    assert "head_dim=N" in said[0]
    model, said = loaded(tmp_path / "out", head_dim=8)
    assert said == []
    other, _ = loaded(tmp_path / "out", head_dim=16)
    assert not torch.equal(logits_of(other, tiny_ids()), logits_of(original, tiny_ids()))


def test_a_share_of_rotation_that_the_class_does_not_read_is_no_dispute(tmp_path: Path) -> None:
    """A Llama whose config says partial_rotary_factor turns whole heads all the same, as its buffer shows."""
    original = tiny_model("llama", partial_rotary_factor=0.5)
    torch.save(original, tmp_path / "m.bin")
    found = measure(open_checkpoint(str(tmp_path / "m.bin"))).layers[0].attention.head_dim
    assert found is not None
    assert (found.value, found.disputed) == (8, ())
    model, said = loaded(tmp_path / "m.bin")
    assert said == []
    assert torch.equal(logits_of(model, tiny_ids()), logits_of(original, tiny_ids()))
