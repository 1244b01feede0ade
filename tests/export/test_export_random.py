"""Random cuts, alike in every layer or not: out of the pickle and into a process without gqacheck, bit for bit."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from export_cases import assert_equal_answers, exported, save_module, save_state
from hypothesis import given, settings
from hypothesis import strategies as st
from planned_cuts import attention_of, cut_by, layers_of, random_plan
from tiny_models import tiny_model
from tiny_surgery import cut_channels, cut_heads, mlp_widths

from gqacheck.export.code import SUPPORTED

ALIKE = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "mixtral", "qwen2_moe", "olmo2", "gpt_oss")
DIFFERING = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3")
HEADS = st.tuples(
    st.sets(st.integers(0, 2), min_size=1), st.sets(st.integers(0, 3), min_size=1), st.floats(0.2, 1.0)
)  # KV heads, query heads in each, share of the MLP
DTYPES = st.sampled_from([None, "float32", "bfloat16", "float16"])


@pytest.mark.slow
@pytest.mark.parametrize("case", ALIKE)
def test_export_of_any_cut_that_all_layers_share(
    case: str, stranger: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    @settings(max_examples=5, deadline=None, derandomize=True, database=None)
    @given(heads=HEADS, dtype=DTYPES, as_module=st.booleans(), shard=st.sampled_from(["5GB", "50KB"]))
    def run(heads: tuple[set[int], set[int], float], dtype: str | None, as_module: bool, shard: str) -> None:
        folder = tmp_path_factory.mktemp(case)
        model = tiny_model(case)
        kv, members, share = sorted(heads[0]), sorted(heads[1]), heads[2]
        for layer in layers_of(model):
            if attention_of(layer) is not None:
                cut_heads(attention_of(layer), [head * 4 + member for head in kv for member in members], kv)
            widths = mlp_widths(layer.mlp)
            cut_channels(layer.mlp, {part: list(range(max(int(n * share) // 8, 1) * 8)) for part, n in widths.items()})
        head_dim = next(module.head_dim for module in model.modules() if hasattr(module, "head_dim"))
        if as_module:
            source, options = save_module(model, folder / "in"), {}
        else:
            source = save_state(model.state_dict(), model.config, folder / "in")
            options = {"config": folder / "in" / "config", "head_dim": head_dim}
        report = exported(source, folder / "out", dtype=dtype, max_shard_size=shard, force=True, **options)
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
    assert case in SUPPORTED

    @settings(max_examples=5, deadline=None, derandomize=True, database=None)
    @given(seed=st.integers(0, 10_000), dtype=DTYPES, shard=st.sampled_from(["5GB", "50KB"]))
    def run(seed: int, dtype: str | None, shard: str) -> None:
        folder = tmp_path_factory.mktemp(case)
        parent = tiny_model(case)
        model = cut_by(parent, random_plan(parent, seed, depth=False))
        source = save_module(model, folder / "in")
        report = exported(source, folder / "out", dtype=dtype, max_shard_size=shard, force=True)
        assert report.comparison.difference == 0.0
        rounded(model, dtype)
        assert_equal_answers(stranger, model, folder / "out", family=case)
        stranger("round_trip", folder=folder / "out", out=folder / "again")
        assert_equal_answers(stranger, model, folder / "again", family=case)

    run()
