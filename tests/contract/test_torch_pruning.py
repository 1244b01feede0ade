"""What of the contract torch-pruning 1.6.1 breaks as it ships, without ``pruners.dependency``: recorded, so that a mend
shows. ``tests/pruners/test_torch_pruning_alone.py`` says the same of single calls.

It is asked as its own example for language models asks it: heads by ``head_pruning_ratio``, everything else by
``pruning_ratio``, and the attributes and the config written afterwards. Only models on which its traversal ends.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import pytest

from gqacheck.testing import PrunerContract, PruningRequest, broken_properties, token_ids

tp = pytest.importorskip("torch_pruning")
DISAGREE = "shapes, module attributes and config of the pruned model disagree"
pytestmark = pytest.mark.filterwarnings("ignore")


class AsShipped(PrunerContract):
    families = ("llama",)
    layer_ranges = False
    in_place = True
    examples = 4
    attention = "eager"

    def prune(self, model: Any, request: PruningRequest) -> Any:
        model.set_attn_implementation(self.attention)
        model.config.use_cache = False  # or its tracing does not end
        config = model.config
        num_heads = {}
        for layer in model.model.layers:
            a = layer.self_attn
            num_heads[a.q_proj] = config.num_attention_heads
            num_heads |= {a.k_proj: config.num_key_value_heads, a.v_proj: config.num_key_value_heads}
        tp.pruner.BasePruner(
            model,
            token_ids(1),
            tp.importance.GroupMagnitudeImportance(p=2, group_reduction="mean"),
            ignored_layers=[model.lm_head],
            num_heads=num_heads,
            prune_num_heads=True,
            prune_head_dims=False,
            output_transform=lambda out: out.logits,
            pruning_ratio=request.ratio,
            head_pruning_ratio=request.ratio,
        ).step()
        config.hidden_size = model.lm_head.in_features
        for layer in model.model.layers:
            a = layer.self_attn
            config.num_attention_heads = a.q_proj.out_features // a.head_dim
            a.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
            config.intermediate_size = layer.mlp.gate_proj.out_features
        config.use_cache = True
        return model


@pytest.fixture(autouse=True)
def few_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GQACHECK_CASES", raising=False)


def shipped(attention: str, group_size: int, n_kv_heads: int, part: str) -> type[AsShipped]:
    declared = {"attention": attention, "ratios": ((group_size, n_kv_heads),), "parts": (part,)}
    return type("Declared", (AsShipped,), declared)


def test_facts_here_are_of_the_installed_version() -> None:
    assert version("torch-pruning") == "1.6.1"


def test_asked_for_kv_groups_it_cuts_everything_else_and_keeps_what_it_cuts_in_pairs() -> None:
    """No KV head goes. The heads and channels that are left are the right ones, and compute what they should."""
    assert broken_properties(shipped("eager", 4, 3, "kv_groups")) == {
        "what_was_asked_for_goes_and_nothing_else": "layer 0: 0 of 3 KV groups went where 1.5 were asked for",
        "shapes_attributes_and_config_agree": DISAGREE + " (GQA206)",  # mlp.intermediate_size is stale
        "extreme_ratio_leaves_something_or_is_refused": DISAGREE + " (GQA412)",  # tied embeddings come apart
    }


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_asked_for_query_heads_it_cuts_them_and_the_hidden_state_with_them(attention: str) -> None:
    with pytest.raises(pytest.fail.Exception, match="24 of 48 columns of the hidden state went where 0 were asked for"):
        shipped(attention, 4, 3, "queries")().test_what_was_asked_for_goes_and_nothing_else()


def test_under_sdpa_it_raises_where_seven_share_a_kv_head() -> None:
    broken = broken_properties(shipped("sdpa", 7, 2, "queries"))
    assert set(broken.values()) == {"RuntimeError: shape '[14, -1]' is invalid for input of size 8"}
    assert len(broken) == 10  # all but the two that are skipped: it takes no layer range and prunes in place
