"""Cuts through torch-pruning's graph: bit for bit those of the surgery, on every ratio, or refused in one sentence."""

from __future__ import annotations

import copy
import gc
import os
import random
import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from gqa_cases import DTYPES, Case, planned
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from tiny_models import tiny_model

from fixtures.zoo.case import FIXTURES, LLAMA, QWEN2, load
from gqacheck.errors import MissingDependency
from pruners import dependency, graph
from pruners.anatomy import CannotPrune, dissect
from pruners.dependency import prune_by_graph
from pruners.plan import KvGroup, LayerPlan, ModelShape, PlanError, PruningPlan, whole_groups
from pruners.surgery import prune

pytest.importorskip("torch_pruning")

N = int(os.environ.get("GQACHECK_CASES", "0"))
TRACED = (
    "llama", "llama_bias", "mistral", "mixtral", "qwen2", "qwen2_tied", "qwen2_moe", "qwen3", "qwen3_moe", "gemma",
    "gemma2", "gemma3", "phi3", "granite", "olmo2", "cohere", "starcoder2", "stablelm", "nemotron", "glm4",
)  # fmt: skip
REFUSED = ("falcon", "gpt_oss", "cohere_qk_norm", "qwen3_next")  # fused, sinks, norms per head, gated: do not trace
RATIOS = ((28, 4), (14, 2), (12, 3), (32, 8), (8, 4), (6, 3), (8, 1), (5, 5))


def some_plan(shape: ModelShape, seed: int = 0, *, depth: bool = True) -> PruningPlan:
    """A cut that differs from layer to layer: whole groups, query heads inside groups, channels, a layer."""
    chosen = random.Random(seed)
    layers: list[LayerPlan | None] = []
    for layer in shape.layers:
        groups = channels = None
        if layer.n_kv_heads:
            kv = sorted(chosen.sample(range(layer.n_kv_heads), max(1, layer.n_kv_heads - 1)))
            count = chosen.randint(max(1, layer.group_size - 2), layer.group_size)
            groups = tuple(KvGroup(h, tuple(sorted(chosen.sample(range(layer.group_size), count)))) for h in kv)
        if layer.channels:
            channels = tuple(sorted(chosen.sample(range(layer.channels), chosen.randint(1, layer.channels))))
        layers.append(LayerPlan(groups, channels))
    if depth and len(layers) > 2:
        layers[1] = None
    return PruningPlan(shape, tuple(layers))


def attributes(model: Any) -> dict[str, dict[str, Any]]:
    """The plain values that every module says of itself."""
    return {
        name: {key: value for key, value in vars(module).items() if isinstance(value, int | float | str | bool)}
        for name, module in model.named_modules()
    }


def assert_same_model(one: Any, other: Any) -> None:
    """Weights bit for bit, what modules and config say of them, what is trainable, and no hooks."""
    mine, theirs = one.state_dict(), other.state_dict()
    assert mine.keys() == theirs.keys()
    for name in mine:
        assert mine[name].dtype == theirs[name].dtype
        assert torch.equal(mine[name], theirs[name]), name
    assert [p.requires_grad for p in one.parameters()] == [p.requires_grad for p in other.parameters()]
    assert attributes(one) == attributes(other)
    assert one.config.to_dict() == other.config.to_dict()
    assert one.config._attn_implementation == other.config._attn_implementation
    assert not [name for name, m in one.named_modules() if m._forward_hooks or m._forward_pre_hooks]


def assert_both_ways_alike(parent: Any, plan: PruningPlan) -> None:
    assert_same_model(prune_by_graph(copy.deepcopy(parent), plan), prune(copy.deepcopy(parent), plan))


@settings(
    max_examples=max(20, N // 10),
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(planned(), st.sampled_from(("float32", "bfloat16")))
def test_graph_with_any_plan_makes_what_the_surgery_makes(both: tuple[Case, PruningPlan], dtype: str) -> None:
    case, plan = both
    note(f"{case}")
    layers = tuple(None if layer is None else replace(layer, experts={}) for layer in plan.layers)
    assert_both_ways_alike(case.build(DTYPES[dtype]), PruningPlan(plan.parent, layers))


@pytest.mark.parametrize("heads", RATIOS, ids=lambda heads: f"{heads[0]}-{heads[1]}")
@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_graph_at_every_ratio_makes_what_the_surgery_makes(family: str, heads: tuple[int, int]) -> None:
    n_q, n_kv = heads
    parent = tiny_model(
        family, num_attention_heads=n_q, num_key_value_heads=n_kv, hidden_size=8 * n_q, num_hidden_layers=2
    )
    assert_both_ways_alike(parent, some_plan(dissect(parent).shape))


@pytest.mark.parametrize("name", TRACED)
def test_graph_of_every_traced_family_makes_what_the_surgery_makes(name: str) -> None:
    parent = tiny_model(name)
    assert_both_ways_alike(parent, some_plan(dissect(parent).shape))


@pytest.mark.parametrize("name", REFUSED)
def test_family_that_does_not_trace_is_refused_and_left_alone(name: str) -> None:
    parent = tiny_model(name)
    child = copy.deepcopy(parent)
    with pytest.raises(CannotPrune, match=r"^layer \d: [^\n]*use pruners.surgery$"):
        prune_by_graph(child, some_plan(dissect(parent).shape, depth=False))
    assert_same_model(child, parent)


@pytest.mark.parametrize("name", [LLAMA, QWEN2])
def test_one_kv_head_of_a_trained_model_takes_its_query_heads_with_it(name: str) -> None:
    parent, _ = load(FIXTURES / name)
    shape = dissect(parent).shape
    kept = [head for head in range(shape.layers[0].n_kv_heads) if head != 1]
    plan = PruningPlan.of(shape, {2: LayerPlan(whole_groups(kept, shape.layers[2]))})
    child = prune_by_graph(copy.deepcopy(parent), plan)
    rows = shape.layers[2].group_size * shape.head_dim
    old = parent.model.layers[2].self_attn
    left = torch.cat((torch.arange(rows), torch.arange(2 * rows, old.q_proj.out_features)))
    attention = child.model.layers[2].self_attn
    assert torch.equal(attention.q_proj.weight, old.q_proj.weight[left])
    assert torch.equal(attention.o_proj.weight, old.o_proj.weight[:, left])
    assert_same_model(child, prune(copy.deepcopy(parent), plan))


def test_graph_of_a_model_cut_before_makes_what_one_cut_by_both_plans_makes() -> None:
    parent = tiny_model("qwen2")
    first = some_plan(dissect(parent).shape, depth=False)
    second = some_plan(first.child, seed=1)
    twice = prune_by_graph(prune_by_graph(copy.deepcopy(parent), first), second)
    once = prune(copy.deepcopy(parent), first.then(second))
    assert all(torch.equal(a, b) for a, b in zip(twice.parameters(), once.parameters(), strict=True))


def test_training_frozen_and_sdpa_model_comes_back_as_it_was() -> None:
    parent = tiny_model("llama").train()
    parent.model.layers[0].eval()
    parent.config.use_cache = True
    for number, parameter in enumerate(parent.parameters()):
        parameter.requires_grad_(number % 3 == 0)
    plan = some_plan(dissect(parent).shape, depth=False)
    child = copy.deepcopy(parent)
    with torch.no_grad():
        prune_by_graph(child, plan)
    assert child.config.use_cache
    assert child.config._attn_implementation == parent.config._attn_implementation == "sdpa"
    assert [m.training for m in child.modules()] == [m.training for m in parent.modules()]
    assert_same_model(child, prune(parent, plan))


@pytest.mark.parametrize("calls_before", [0, 1], ids=["in the run", "in torch-pruning's trace"])
def test_forward_that_raises_leaves_no_trace_of_the_attempt(calls_before: int) -> None:
    parent = tiny_model("llama")
    child = copy.deepcopy(parent)
    calls = []

    class Raises(torch.nn.SiLU):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            calls.append(x)
            if len(calls) > calls_before:
                raise RuntimeError("no more")
            return super().forward(x)

    usual, child.model.layers[3].mlp.act_fn = child.model.layers[3].mlp.act_fn, Raises()
    layers = {3: LayerPlan(channels=tuple(range(50)))}
    with pytest.raises(CannotPrune, match=r"no more"):
        prune_by_graph(child, PruningPlan.of(dissect(parent).shape, layers))
    child.model.layers[3].mlp.act_fn = usual
    assert_same_model(child, parent)


def test_graph_that_does_not_know_the_groups_is_found_out_before_anything_is_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parent = tiny_model("llama")
    child = copy.deepcopy(parent)
    monkeypatch.setattr(graph, "_tie_groups", lambda *_: None)
    with pytest.raises(CannotPrune, match=r"removes 0 columns of self_attn\.o_proj with 1 KV heads where 32 go"):
        prune_by_graph(child, some_plan(dissect(parent).shape))
    assert_same_model(child, parent)


def test_weights_that_were_cut_are_freed_without_garbage_collection() -> None:
    model = tiny_model("llama")
    old = weakref.ref(model.model.layers[0].self_attn.q_proj.weight)
    gc.disable()
    try:
        prune_by_graph(model, some_plan(dissect(model).shape))
        assert old() is None
    finally:
        gc.enable()


def test_plan_that_removes_nothing_or_only_layers_needs_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dependency, "trace_layer", None)
    parent = tiny_model("gpt_oss")
    shape = dissect(parent).shape
    assert_same_model(prune_by_graph(copy.deepcopy(parent), PruningPlan.of(shape, {})), parent)
    assert_both_ways_alike(parent, PruningPlan.of(shape, {1: None, 2: None}))


def test_expert_cut_is_refused() -> None:
    model = tiny_model("mixtral")
    experts = {name: tuple(range(56)) for name in range(5)}
    with pytest.raises(CannotPrune, match="layer 1: torch-pruning traces no experts"):
        prune_by_graph(model, PruningPlan.of(dissect(model).shape, {1: LayerPlan(experts=experts)}))


def test_plan_for_another_model_is_refused() -> None:
    with pytest.raises(PlanError, match="made for another model"):
        prune_by_graph(tiny_model("llama"), some_plan(dissect(tiny_model("qwen2")).shape))


def test_missing_torch_pruning_is_said_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    monkeypatch.setattr(dependency, "find_spec", lambda name: None)
    with pytest.raises(MissingDependency, match=r"gqacheck\[prune\]"):
        prune_by_graph(model, some_plan(dissect(model).shape))
