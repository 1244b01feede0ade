"""Every family, however it stores its heads: a truncated tiny model comes out as the cut done right."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import CASES, logits_of, tiny_ids, tiny_model
from tiny_surgery import GROUP, cut_channels, cut_heads, mlp_widths

from gqacheck.repair import repair
from gqacheck.runtime.load import load_model

KV = (0, 2)
RIGHT = [head * GROUP + member for head in KV for member in range(GROUP)]
WRONG = list(range(len(RIGHT)))
STORED_APART = "stablelm_qk_norm"
"""Keeps one norm per head in a tensor of its own, which is not rebuilt."""


def layers_of(model: Any) -> Any:
    return model.base_model.layers if hasattr(model.base_model, "layers") else model.base_model.h


def attention_of(layer: Any) -> Any:
    return getattr(layer, "self_attn", None) or getattr(layer, "self_attention", None)


def cut(parent: Any, queries: list[int]) -> Any:
    """Two KV heads and these query heads in layers 1 to 3, in place of three and twelve."""
    model = copy.deepcopy(parent)
    for layer in list(layers_of(model))[1:]:
        if attention_of(layer) is not None:
            cut_heads(attention_of(layer), queries, KV)
    return model


def save(model: Any, folder: Path) -> Path:
    folder.mkdir(parents=True)
    torch.save(model, folder / "model.bin")
    return folder / "model.bin"


@pytest.mark.parametrize("name", [name for name in CASES if name != STORED_APART])
def test_truncated_query_heads_of_a_family_are_put_right(name: str, tmp_path: Path) -> None:
    parent = tiny_model(name)
    base = save(parent, tmp_path / "parent")
    broken = save(cut(parent, WRONG), tmp_path / "broken")
    report = repair(broken, base=base, out=tmp_path / "fixed.bin")
    assert report.refused == (), report.refused
    assert report.reference is not None
    assert report.reference.equal, report.reference
    repaired, _ = load_model(report.out or "")
    ids = tiny_ids()
    wanted, got = logits_of(cut(parent, RIGHT), ids), logits_of(repaired, ids)
    assert float((wanted - got).abs().max() / wanted.std()) < 1e-5


def down_of(mlp: Any) -> list[tuple[torch.Tensor, int]]:
    """Every down projection of an MLP with the side that counts its channels."""
    experts = getattr(mlp, "experts", None)
    if experts is None:
        names = ("down_proj", "c_proj", "dense_4h_to_h")
        return [(next(getattr(mlp, name) for name in names if hasattr(mlp, name)).weight.data, 1)]
    side = 1 if hasattr(experts, "gate_up_proj_bias") else 2
    shared = getattr(mlp, "shared_expert", None)
    return [(experts.down_proj.data, side), *(down_of(shared) if shared is not None else [])]


@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe", "qwen3_moe", "phi3", "gpt_oss", "gemma2", "falcon", "glm"])
def test_down_channels_out_of_step_are_put_right(name: str, tmp_path: Path) -> None:
    """Channels were chosen for gate and up, and down_proj kept others."""
    parent = tiny_model(name)
    right, wrong = copy.deepcopy(parent), copy.deepcopy(parent)
    for down, side in down_of(layers_of(wrong)[2].mlp):
        down.copy_(down.roll(3, side))
    for model in (right, wrong):
        mlp = layers_of(model)[2].mlp
        cut_channels(mlp, {part: list(range(1, width, 2)) for part, width in mlp_widths(mlp).items()})
    base = save(parent, tmp_path / "parent")
    broken = save(wrong, tmp_path / "broken")
    assert logits_differ(right, wrong)
    report = repair(broken, base=base, out=tmp_path / "fixed.bin")
    assert report.refused == (), report.refused
    assert report.reference is not None
    assert report.reference.equal, report.reference
    repaired, _ = load_model(report.out or "")
    ids = tiny_ids()
    wanted, got = logits_of(right, ids), logits_of(repaired, ids)
    assert float((wanted - got).abs().max() / wanted.std()) < 1e-5


def test_up_channels_of_stacked_experts_take_their_biases_with_them(tmp_path: Path) -> None:
    parent = tiny_model("gpt_oss")
    wrong = copy.deepcopy(parent)
    experts = layers_of(wrong)[2].mlp.experts
    for values in (experts.gate_up_proj.data, experts.gate_up_proj_bias.data):
        values[..., 1::2] = values[..., 1::2].roll(3, -1)
    report = repair(
        save(wrong, tmp_path / "broken"), base=save(parent, tmp_path / "parent"), out=tmp_path / "fixed.bin"
    )
    assert report.refused == (), report.refused
    repaired, _ = load_model(report.out or "")
    assert logits_differ(parent, wrong)
    assert torch.equal(logits_of(repaired, tiny_ids()), logits_of(parent, tiny_ids()))


def logits_differ(one: Any, other: Any) -> bool:
    ids = tiny_ids()
    return bool((logits_of(one, ids) - logits_of(other, ids)).abs().max() > 0.01)


def test_trained_family_whose_reference_is_not_known_is_written_and_it_is_said(tmp_path: Path) -> None:
    """OLMo-2 normalises over all heads: spread out into the parent's shape it would count what is not there."""
    parent = tiny_model("olmo2")
    wrong = cut(parent, WRONG)
    with torch.no_grad():
        for parameter in wrong.parameters():
            parameter.add_(0.01 * parameter.std() * torch.randn_like(parameter))
    report = repair(
        save(wrong, tmp_path / "broken"), base=save(parent, tmp_path / "parent"), out=tmp_path / "fixed.bin"
    )
    assert report.refused == (), report.refused
    assert report.reference is not None
    assert not report.reference.ran
    assert "norms over all heads" in report.reference.reason


def test_norms_that_are_stored_one_by_one_are_refused_in_a_sentence(tmp_path: Path) -> None:
    parent = tiny_model(STORED_APART)
    base = save(parent, tmp_path / "parent")
    report = repair(save(cut(parent, WRONG), tmp_path / "broken"), base=base, out=tmp_path / "fixed.bin")
    assert report.exit_code == 3
    assert "stored one by one" in report.refused[0].sentence
    assert not (tmp_path / "fixed.bin").exists()
