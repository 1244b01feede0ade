"""Random cuts, alike in every layer or not: out of the pickle and into a process without gqacheck, bit for bit.

One cut of each kind and family as a rule, GQACHECK_CASES / 60 of them where that is set.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from cut_folders import FAMILY
from export_cases import assert_equal_answers, exported, save_module, save_state
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from planned_cuts import attention_of, cut_by, layers_of, random_plan
from safetensors.torch import load_file
from tiny_models import CASES, CASES_BEYOND, tiny_model
from tiny_surgery import cut_channels, cut_heads, mlp_widths

from gqacheck.export.code import SUPPORTED

ALIKE = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "mixtral", "qwen2_moe", "olmo2", "gpt_oss")
DIFFERING = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3")
FURTHER = sorted(
    {case for case in (*CASES, *CASES_BEYOND) if FAMILY.get(case, case) in SUPPORTED} - set(DIFFERING)
)  # the other families that a modelling file can be written for
DTYPES = (None, "float32", "bfloat16", "float16")
any_cut = settings(
    max_examples=max(int(os.environ.get("GQACHECK_CASES", "60")) // 60, 1),
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
SEEDS = st.integers(0, 2**32)


@pytest.mark.slow
@pytest.mark.parametrize("case", ALIKE)
def test_export_of_any_cut_that_all_layers_share(
    case: str, stranger: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    @any_cut
    @given(seed=SEEDS)
    def run(seed: int) -> None:
        chosen, folder = Random(f"{case} {seed}"), tmp_path_factory.mktemp(case)
        kv = chosen.sample(range(3), chosen.randint(1, 3))
        members = sorted(chosen.sample(range(4), chosen.randint(1, 4)))
        share, dtype = chosen.uniform(0.2, 1.0), chosen.choice(DTYPES)
        model = tiny_model(case)
        for layer in layers_of(model):
            if attention_of(layer) is not None:
                cut_heads(attention_of(layer), [head * 4 + member for head in kv for member in members], kv)
            widths = mlp_widths(layer.mlp)
            cut_channels(layer.mlp, {part: list(range(max(int(n * share) // 8, 1) * 8)) for part, n in widths.items()})
        head_dim = next(module.head_dim for module in model.modules() if hasattr(module, "head_dim"))
        options: dict[str, Any] = {}
        if chosen.random() < 0.5:
            source = save_module(model, folder / "in")
        else:
            source = save_state(model.state_dict(), model.config, folder / "in")
            options = {"config": folder / "in" / "config", "head_dim": head_dim}
        options["max_shard_size"] = chosen.choice(["5GB", "50KB"])
        report = exported(source, folder / "out", dtype=dtype, force=True, **options)
        assert report.comparison.difference == 0.0
        n_q, n_kv = len(members) * len(kv), len(kv)
        config = json.loads((folder / "out" / "config.json").read_text())
        assert (config["num_attention_heads"], config["num_key_value_heads"]) == (n_q, n_kv)
        assert config["head_dim"] == head_dim
        refused = case in ("llama", "gemma2", "gemma3") and 96 % n_q
        assert report.way == ("stock" if not refused else "other-class" if case == "llama" else "own-code")
        rounded(model, dtype)
        assert_equal_answers(stranger, model, folder / "out", family=case)

    run()


def rounded(model: Any, dtype: str | None) -> None:
    """The model's weights as they come back from ``dtype``."""
    if dtype is not None:
        with torch.no_grad():
            for tensor in model.state_dict().values():
                if tensor.is_floating_point():
                    tensor.copy_(tensor.to(getattr(torch, dtype)).float())


@pytest.mark.slow
@pytest.mark.parametrize("case", DIFFERING)
def test_export_of_any_cut_by_layer(case: str, stranger: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    @any_cut
    @given(seed=SEEDS)
    def run(seed: int) -> None:
        chosen, folder = Random(f"{case} {seed}"), tmp_path_factory.mktemp(case)
        model, dtype = cut_and_exported(case, chosen, folder)
        rounded(model, dtype)
        assert_equal_answers(stranger, model, folder / "out", family=case)
        stranger("round_trip", folder=folder / "out", out=folder / "again")
        one, two = weights_of(folder / "out"), weights_of(folder / "again")
        assert one.keys() == two.keys()
        assert all(torch.equal(one[name], two[name]) and one[name].dtype == two[name].dtype for name in one)
        code = next((folder / "out").glob("*.py"))
        assert (folder / "again" / code.name).read_bytes() == code.read_bytes()

    run()


@pytest.mark.slow
@pytest.mark.parametrize("case", FURTHER)
def test_export_of_any_cut_of_a_further_family_is_verified(case: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    @any_cut
    @given(seed=SEEDS)
    def run(seed: int) -> None:
        cut_and_exported(case, Random(f"{case} {seed}"), tmp_path_factory.mktemp(case))

    run()


def cut_and_exported(case: str, chosen: Random, folder: Path) -> tuple[Any, str | None]:
    """A model whose layers were cut at random, exported to ``folder / "out"``, and the dtype of its export."""
    parent = tiny_model(case)
    model = cut_by(parent, random_plan(parent, chosen.randrange(10_000), depth=False))
    dtype, shard = chosen.choice(DTYPES), chosen.choice(["5GB", "50KB"])
    source = save_module(model, folder / "in")
    report = exported(source, folder / "out", dtype=dtype, max_shard_size=shard, force=True)
    assert report.comparison.difference == 0.0
    assert report.way == "own-code"
    return model, dtype


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for file in folder.glob("*.safetensors"):
        found |= load_file(file)
    return found
