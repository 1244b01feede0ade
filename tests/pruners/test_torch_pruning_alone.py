"""What torch-pruning 1.6.1 does to GQA attention without ``pruners.dependency``: measured, so that a change shows.

Where one of these fails after an upgrade, read the tricks in ``pruners/graph.py`` again: they may be needed no more.
"""

from __future__ import annotations

from collections import Counter
from importlib.metadata import version
from typing import Any

import pytest
import torch
from tiny_models import tiny_model

tp = pytest.importorskip("torch_pruning")

WIDTH = 8  # of a head
HEADS = {"prune_num_heads": True, "prune_head_dims": False, "head_pruning_ratio": 0.5}
pytestmark = pytest.mark.filterwarnings("ignore")


def pruned(n_q: int, n_kv: int, attention: str, **options: Any) -> Any:
    """A tiny Llama after half of torch-pruning's own pruning, used as its example for language models uses it."""
    sizes = {"num_attention_heads": n_q, "num_key_value_heads": n_kv, "hidden_size": WIDTH * n_q}
    model = tiny_model("llama_bias", num_hidden_layers=1, intermediate_size=16, vocab_size=64, **sizes)
    model.set_attn_implementation(attention)
    model.config.use_cache = False  # or its tracing does not end
    num_heads = {}
    for layer in model.model.layers:
        a = layer.self_attn
        num_heads |= {a.q_proj: n_q, a.k_proj: n_kv, a.v_proj: n_kv}
        a.q_proj.bias.data = torch.arange(n_q).repeat_interleave(WIDTH).float()  # each head bears its number
    tp.pruner.BasePruner(
        model,
        torch.arange(8)[None],
        tp.importance.GroupMagnitudeImportance(p=2, group_reduction="mean"),
        pruning_ratio=0.5,
        ignored_layers=[model.lm_head],
        num_heads=num_heads,
        output_transform=lambda out: out.logits,
        **options,
    ).step()
    return model


def counts(model: Any) -> list[tuple[float, float]]:
    """(query heads, KV heads) that each layer is left with."""
    rows = [(layer.self_attn.q_proj, layer.self_attn.k_proj) for layer in model.model.layers]
    return [(q.out_features / WIDTH, k.out_features / WIDTH) for q, k in rows]


def test_facts_here_are_of_the_installed_version() -> None:
    assert version("torch-pruning") == "1.6.1"


@pytest.mark.parametrize("heads", [(14, 2), (28, 4)], ids=str)
def test_alone_under_sdpa_it_raises_where_seven_share_a_kv_head(heads: tuple[int, int]) -> None:
    with pytest.raises(RuntimeError, match=rf"shape '\[{heads[0]}, -1\]' is invalid for input of size"):
        pruned(*heads, "sdpa", **HEADS)


@pytest.mark.parametrize("heads", [(14, 2), (28, 4), (12, 3), (8, 2)], ids=str)
def test_alone_under_eager_attention_it_prunes_no_head_unless_told_and_then_no_kv_head(heads: tuple[int, int]) -> None:
    n_q, n_kv = heads
    assert counts(pruned(*heads, "eager")) == [heads]
    left = n_q // n_kv // 2 * n_kv
    model = pruned(*heads, "eager", **HEADS)
    assert counts(model) == [(left, n_kv)]
    for layer in model.model.layers:
        groups = layer.self_attn.q_proj.bias[::WIDTH].long() // (n_q // n_kv)
        assert set(Counter(groups.tolist()).values()) == {left // n_kv}  # these stay with their own


@pytest.mark.parametrize(("heads", "attention"), [((12, 3), "eager"), ((8, 2), "sdpa")], ids=str)
def test_alone_with_global_pruning_it_prunes_no_head(heads: tuple[int, int], attention: str) -> None:
    assert counts(pruned(*heads, attention, **HEADS, global_pruning=True)) == [heads]


def test_alone_where_two_share_a_kv_head_its_traversal_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    add = tp.dependency.Group.add_dep
    steps = Counter()

    class Endless(Exception):
        pass

    def counted(group: Any, dep: Any, idxs: Any) -> None:
        steps[id(group)] += 1
        if steps[id(group)] > 2_000:  # 12:3 stays below
            raise Endless
        add(group, dep, idxs)

    monkeypatch.setattr(tp.dependency.Group, "add_dep", counted)
    with pytest.raises(Endless):
        pruned(10, 5, "eager", **HEADS)
    steps.clear()
    pruned(12, 3, "eager", **HEADS)
