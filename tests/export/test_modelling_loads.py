"""Folders with a modelling file, loaded where there is no gqacheck: the same numbers as the cut model in memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from cut_folders import FAMILY, Cut, planned_cut, random_cut, write_folder
from hypothesis import given, settings
from hypothesis import strategies as st
from planned_cuts import LayerPlan
from stranger_process import save_answers
from tiny_models import CASES, CASES_BEYOND, tiny_ids

from gqacheck.export.code import SUPPORTED

PROMISED = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3")
FURTHER = sorted({case for case in (*CASES, *CASES_BEYOND) if FAMILY.get(case, case) in SUPPORTED} - set(PROMISED))
_EAGER_ONLY = ("gemma2",)  # sdpa knows no soft cap: transformers 5 chooses eager by itself, 4 does not


def compare(stranger: Any, cut: Cut, folder: Path) -> None:
    """Write ``folder`` and demand that the stranger's answers are the cut model's, bit for bit."""
    write_folder(cut, folder)
    ids = tiny_ids()
    mask = torch.ones_like(ids)
    mask[0, :7] = 0
    options = {"attn_implementation": "eager"} if cut.family in _EAGER_ONLY else {}
    told = stranger(
        "answers", folder=folder, ids=ids.tolist(), mask=mask.tolist(), out=f"{folder}.theirs.pt", **options
    )
    assert told["class"].startswith("Pruned")
    save_answers(cut.model, ids, mask, f"{folder}.ours.pt")
    theirs, ours = torch.load(f"{folder}.theirs.pt"), torch.load(f"{folder}.ours.pt")
    seen = mask.bool()
    assert torch.equal(theirs["logits"], ours["logits"])
    assert torch.equal(theirs["padded"][seen], ours["padded"][seen])
    for way in ("dynamic", "static", "none", "beams"):
        assert torch.equal(theirs[way], ours[way]), way
    for name in ("dynamic", "static"):
        assert torch.equal(theirs[name], theirs["none"]), name


def test_modelling_every_supported_family_has_a_case() -> None:
    assert {FAMILY.get(case, case) for case in (*PROMISED, *FURTHER)} == SUPPORTED


@pytest.mark.slow
@pytest.mark.parametrize("case", PROMISED)
def test_modelling_any_cut_answers_like_the_cut_model(
    case: str, stranger: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    blocks = st.sets(st.integers(0, 3), max_size=3)

    @settings(max_examples=4, deadline=None, derandomize=True, database=None)
    @given(seed=st.integers(0, 10_000), no_attention=blocks, no_mlp=blocks)
    def run(seed: int, no_attention: set[int], no_mlp: set[int]) -> None:
        cut = random_cut(case, seed, no_attention=no_attention, no_mlp=no_mlp)
        compare(stranger, cut, tmp_path_factory.mktemp(case) / "folder")

    run()


@pytest.mark.slow
@pytest.mark.parametrize("case", FURTHER)
def test_modelling_further_family_answers_like_the_cut_model(case: str, stranger: Any, tmp_path: Path) -> None:
    compare(stranger, random_cut(case, 3), tmp_path / "whole")
    compare(stranger, random_cut(case, 5, no_attention={0, 2}, no_mlp={2, 3}), tmp_path / "dropped")


@pytest.mark.parametrize("case", ["llama", "gemma3"])
def test_modelling_first_attention_dropped_keeps_positions_and_windows(
    case: str, stranger: Any, tmp_path: Path
) -> None:
    # the length of layer 0's cache is where the library takes positions from
    compare(stranger, random_cut(case, 7, no_attention={0}), tmp_path / "first")
    compare(stranger, random_cut(case, 7, no_attention={0, 1, 2, 3}, no_mlp={0, 1, 2, 3}), tmp_path / "all")


@pytest.mark.parametrize(
    ("n_q", "n_kv", "kept"),
    [(12, 3, [0, 2]), (28, 4, [0, 1, 3]), (14, 2, [1])],
)
@pytest.mark.parametrize("case", ["llama", "phi3", "gemma2"])
def test_modelling_other_group_sizes_answer_like_the_cut_model(
    case: str, n_q: int, n_kv: int, kept: list[int], stranger: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = n_q // n_kv
    monkeypatch.setattr("tiny_surgery.GROUP", group)
    monkeypatch.setattr("tiny_surgery.KV", n_kv)
    queries = [head * group + member for head in kept for member in range(group)]
    plan: list[LayerPlan | None] = [LayerPlan(), LayerPlan(queries, kept), LayerPlan(), LayerPlan()]
    cut = planned_cut(case, plan, num_attention_heads=n_q, num_key_value_heads=n_kv, hidden_size=n_q * 4, head_dim=8)
    assert cut.sizes["num_attention_heads"][1] == len(queries)
    compare(stranger, cut, tmp_path / "folder")


@pytest.mark.parametrize("case", ["llama", "gemma2", "gemma3"])
def test_modelling_heads_that_do_not_divide_hidden_load_and_save(case: str, stranger: Any, tmp_path: Path) -> None:
    plan: list[LayerPlan | None] = [
        LayerPlan([0, 1, 2, 4, 5, 6, 8, 9, 10], [0, 1, 2]),
        LayerPlan([0, 1, 2, 3, 8], [0]),  # 5 query heads
        LayerPlan([4, 5, 6, 7, 8], [1]),
        LayerPlan([4, 5, 6, 8, 9, 10], [1, 2]),
    ]
    cut = planned_cut(case, plan)
    assert max(cut.sizes["num_attention_heads"]) == 9  # and 96 % 9 is 6
    compare(stranger, cut, tmp_path / "folder")
    stranger("round_trip", folder=tmp_path / "folder", out=tmp_path / "again")


def test_modelling_longrope_with_every_layer_cut_loads_and_saves(stranger: Any, tmp_path: Path) -> None:
    # Phi-3's config class wants hidden // heads // 2 factors, which is head_dim only before heads are cut
    factors = {"short_factor": [1.0, 1.5, 2.0, 2.5], "long_factor": [4.0, 5.0, 6.0, 7.0]}
    plan: list[LayerPlan | None] = [LayerPlan([0, 1, 4, 5], [0, 1]) for _ in range(4)]
    cut = planned_cut(
        "phi3",
        plan,
        original_max_position_embeddings=16,
        rope_parameters={"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 16}
        | factors,
    )
    compare(stranger, cut, tmp_path / "folder")
    stranger("round_trip", folder=tmp_path / "folder", out=tmp_path / "again")


@pytest.mark.parametrize("case", ["llama", "qwen2_tied", "gemma3", "phi3"])
def test_modelling_round_trip_writes_the_same_folder(case: str, stranger: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    cut = random_cut(case, 11, no_attention={1}, no_mlp={2})
    first, second, third = tmp_path / "first", tmp_path / "second", tmp_path / "third"
    write_folder(cut, first, dtype=torch.bfloat16)
    stranger("round_trip", folder=first, out=second)
    stranger("round_trip", folder=second, out=third)
    code = next(path.name for path in first.glob("*.py"))
    assert (second / code).read_bytes() == (first / code).read_bytes()
    one, two = (load_file(folder / "model.safetensors") for folder in (first, second))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) and one[name].dtype == two[name].dtype for name in one)
    written = json.loads((second / "config.json").read_text(encoding="utf-8"))
    for key in ("gqacheck_layers", "auto_map", "model_type", "architectures"):
        assert written[key] == json.loads((first / "config.json").read_text(encoding="utf-8"))[key], key
    assert sorted(path.name for path in third.iterdir()) == sorted(path.name for path in second.iterdir())
    for path in second.iterdir():
        assert path.read_bytes() == (third / path.name).read_bytes(), path.name
