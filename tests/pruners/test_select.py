"""Plans from scores: legal by construction, exact in number, the same as trying everything, and honest in words."""

from __future__ import annotations

import copy
import os
from itertools import combinations, pairwise

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny_models import tiny_ids, tiny_model

from pruners.anatomy import dissect
from pruners.importance import Importance, magnitude, random_importance, taylor
from pruners.plan import Costs, LayerShape, ModelShape, PlanError
from pruners.plan_file import plan_to_json
from pruners.scores import CannotScore
from pruners.selection import Request, for_parameters, select, select_in_steps
from pruners.sensitivity import layer_ratios, measure_sensitivity
from pruners.surgery import prune

CASES = settings(
    max_examples=max(60, int(os.environ.get("GQACHECK_CASES", "0"))), deadline=None, derandomize=True, database=None
)
RATIOS = st.floats(0, 0.999) | st.sampled_from([0.0, 0.2, 0.25, 0.5, 0.75])


def shape_of(*layers, hidden=64, head_dim=8, outside=1000):
    """Layers as (KV heads, query heads per KV head, channels[, experts])."""
    line = hidden * head_dim
    made = []
    for n_kv, size, channels, *experts in layers:
        widths = experts[0] if experts else {}
        costs = Costs(2 * line, 2 * line, 3 * hidden if channels else 0, dict.fromkeys(widths, 3 * hidden), 2 * hidden)
        made.append(LayerShape(n_kv * size, n_kv, channels, widths, costs))
    return ModelShape("llama", hidden, head_dim if any(each.n_kv_heads for each in made) else 0, tuple(made), outside)


@st.composite
def shapes(draw, max_layers=4):
    layers = []
    for _ in range(draw(st.integers(1, max_layers))):
        n_kv, size = draw(st.sampled_from([(0, 0), (1, 4), (2, 7), (3, 4), (4, 1), (4, 7), (8, 2), (5, 3)]))
        width = draw(st.integers(1, 12))
        experts = draw(st.sampled_from([{}, {}, {0: width, 1: width, "shared": 5}]))
        layers.append((n_kv, size, 0 if experts else draw(st.sampled_from([1, 7, 16, 24])), experts))
    return shape_of(*layers)


requests = st.fixed_dictionaries(
    {
        "heads": st.sampled_from(["groups", "queries", "both"]),
        "scope": st.sampled_from(["uniform", "global", "isomorphic"]),
        "channels_multiple": st.sampled_from([1, 1, 4, 16]),
        "normalize": st.sampled_from(["cost", "raw", "layer"]),
    }
)


def kept_of(plan):
    """Everything that stays, as one set of names."""
    found = set()
    for index, (layer, shape) in enumerate(zip(plan.layers, plan.parent.layers, strict=True)):
        if layer is None:
            continue
        found |= {(index, "q", head) for head in layer.query_heads(shape)}
        found |= {(index, "kv", head) for head in layer.kv_heads(shape)}
        found |= {(index, "c", c) for c in (range(shape.channels) if layer.channels is None else layer.channels)}
        for name, width in shape.experts.items():
            found |= {(index, name, c) for c in layer.experts.get(name, range(width))}
    return found


def told(*layers):
    """An importance from (query scores, KV scores, channel scores) per layer."""
    columns = [
        [None if each is None else torch.tensor(each, dtype=torch.float64) for each in c]
        for c in zip(*layers, strict=True)
    ]
    return Importance(*map(tuple, columns), ({},) * len(layers), "told")


# Properties


@CASES
@given(shape=shapes(), request=requests, seed=st.integers(0, 99), low=RATIOS, high=RATIOS)
def test_any_ratio_is_legal_and_a_higher_one_keeps_a_subset(shape, request, seed, low, high):
    low, high = sorted((low, high))
    scores = random_importance(shape, seed)
    less, more = (select(shape, scores, Request(ratio, **request)) for ratio in (low, high))
    assert kept_of(more.plan) <= kept_of(less.plan)  # the plans themselves cannot say an unpaired cut
    assert more.plan == select(shape, random_importance(shape, seed), Request(high, **request)).plan
    for before, after in zip(shape.layers, more.plan.child.layers, strict=True):
        multiple = request["channels_multiple"]
        assert after.channels == before.channels or (after.channels and after.channels % multiple == 0)
        if request["heads"] == "groups":
            assert after.group_size == before.group_size
        if request["heads"] == "queries":
            assert after.n_kv_heads == before.n_kv_heads
    assert select(shape, scores, Request(0.0, **request)).plan.whole


@CASES
@given(shape=shapes(), seed=st.integers(0, 99), ratio=RATIOS)
def test_uniform_counts_are_the_nearest_that_can_be_had(shape, seed, ratio):
    plan = select(shape, random_importance(shape, seed), Request(ratio)).plan
    for before, after in zip(shape.layers, plan.child.layers, strict=True):
        pairs = [(before.n_kv_heads, after.n_kv_heads), (before.channels, after.channels)]
        pairs += [(before.experts[name], after.experts[name]) for name in before.experts]
        for had, has in pairs:
            if had:
                best = min(abs(kept - had * (1 - ratio)) for kept in range(1, had + 1))
                assert abs(has - had * (1 - ratio)) == pytest.approx(best, abs=1e-6)


@CASES
@given(shape=shapes(max_layers=2), seed=st.integers(0, 99), ratio=RATIOS)
def test_what_goes_is_worth_least_of_all_choices_of_that_number(shape, seed, ratio):
    scores = random_importance(shape, seed)
    plan = select(shape, scores, Request(ratio)).plan
    by_query = select(shape, scores, Request(ratio, heads="queries")).plan
    for index, layer in enumerate(shape.layers):
        if layer.n_kv_heads:
            worth = scores.groups(index).tolist()
            kept = plan.layers[index].kv_heads(layer)
            best = max(combinations(range(layer.n_kv_heads), len(kept)), key=lambda some: sum(worth[g] for g in some))
            assert kept == best
            each = scores.queries[index].view(layer.n_kv_heads, layer.group_size)
            for group in by_query.layers[index].groups or ():
                row = each[group.kv_head].tolist()
                assert min(row[place] for place in group.queries) >= max(
                    (row[place] for place in set(range(layer.group_size)) - set(group.queries)), default=0.0
                )
        if layer.channels and plan.layers[index].channels is not None:
            worth = scores.channels[index].tolist()
            gone = set(range(layer.channels)) - set(plan.layers[index].channels)
            assert max(worth[c] for c in gone) <= min(worth[c] for c in plan.layers[index].channels)


@CASES
@given(shape=shapes(), seed=st.integers(0, 99), ratio=RATIOS, kind=st.sampled_from(["cost", "raw"]))
def test_isomorphic_scope_removes_the_groups_worth_least_of_all_layers(shape, seed, ratio, kind):
    """Against a plain loop: the least group that may still go, until the number nearest to the ratio is gone."""
    scores = random_importance(shape, seed)
    plan = select(shape, scores, Request(ratio, scope="isomorphic", normalize=kind, mlp_layers=(0, 0))).plan
    attending = [index for index, layer in enumerate(shape.layers) if layer.n_kv_heads]
    whole = sum(shape.layers[index].n_kv_heads for index in attending)
    left = {
        index: sorted(range(shape.layers[index].n_kv_heads), key=scores.groups(index).tolist().__getitem__)
        for index in attending
    }

    def price(index):
        layer = shape.layers[index]
        cost = layer.costs.kv + layer.group_size * layer.costs.query
        return float(scores.groups(index)[left[index][0]]) / (cost if kind == "cost" else 1)

    gone = 0
    while abs(gone + 1 - ratio * whole) < abs(gone - ratio * whole) - 1e-9:
        able = [index for index in attending if len(left[index]) > 1]
        if not able:
            break
        left[min(able, key=price)].pop(0)
        gone += 1
    assert {i: set(plan.layers[i].kv_heads(shape.layers[i])) for i in attending} == {i: set(g) for i, g in left.items()}


@CASES
@given(shape=shapes(), seed=st.integers(0, 99), ratio=RATIOS, heads=st.sampled_from(["groups", "queries", "both"]))
def test_global_scope_takes_the_share_of_parameters_to_within_one_cut(shape, seed, ratio, heads):
    selection = select(shape, random_importance(shape, seed), Request(ratio, heads, "global"))
    prunable = shape.parameters - shape.outside - sum(layer.costs.rest for layer in shape.layers)
    largest = max(
        max(
            each.costs.kv + each.group_size * each.costs.query,
            each.n_kv_heads * each.costs.query,
            each.costs.channel,
            400,
        )
        for each in shape.layers
    )
    removed = shape.parameters - selection.plan.parameters
    short = ratio * prunable - removed
    child = selection.plan.child.layers
    bottom = all(each.n_kv_heads <= 1 or heads == "queries" for each in child) and all(
        each.group_size <= 1 or heads == "groups" for each in child
    )
    bottom = bottom and all(each.channels <= 1 and max(each.experts.values(), default=0) <= 1 for each in child)
    assert short >= -largest / 2 - 1
    assert short <= largest / 2 + 1 or bottom


@CASES
@given(shape=shapes(), seed=st.integers(0, 99), share=st.floats(0, 0.6), request=requests)
def test_for_parameters_comes_as_near_as_any_ratio_does(shape, seed, share, request):
    scores = random_importance(shape, seed)
    found = for_parameters(shape, scores, share, Request(**request))
    error = abs(found.plan.share_removed - share)
    for percent in range(0, 100, 7):
        other = select(shape, scores, Request(percent / 100, **request)).plan
        assert error <= abs(other.share_removed - share) + 1e-12
    assert bool(found.notes) == (error >= 0.005)


def test_for_parameters_in_global_scope_passes_over_what_does_not_fit():
    shape = shape_of(*[(4, 7, 50)] * 4)
    for seed in range(5):
        plan = for_parameters(shape, random_importance(shape, seed), 0.174, Request(scope="global")).plan
        assert abs(plan.share_removed - 0.174) <= 3 * 64 / shape.parameters  # one channel


# Scopes and kinds of heads


def test_both_takes_whichever_cut_loses_less_per_parameter_and_layers_stay_alike():
    even = [1.0] * 8
    costly_queries = told((even, [0.1, 0.0], [1.0] * 4), ([0.01, 1, 1, 1, 0.01, 1, 1, 1], [9.0, 9], [1.0] * 4))
    shape = shape_of((2, 4, 4), (2, 4, 4))
    request = Request(0.3, heads="both", mlp_layers=(0, 0))
    plan = select(shape, costly_queries, request).plan
    assert {(each.n_q_heads, each.n_kv_heads) for each in plan.child.layers} in ({(6, 2)}, {(4, 1)}, {(4, 2)})
    alone = select(shape, costly_queries, Request(0.3, heads="both", scope="isomorphic", mlp_layers=(0, 0))).plan
    assert [g.queries for g in alone.layers[1].groups] == [(1, 2, 3), (1, 2, 3)]


def test_global_scope_spares_the_layer_that_matters():
    shape = shape_of((4, 2, 8), (4, 2, 8))
    scores = told(([9.0] * 8, [9.0] * 4, [9.0] * 8), ([1.0] * 8, [1.0] * 4, [1.0] * 8))
    child = select(shape, scores, Request(0.3, scope="global")).plan.child
    assert (child.layers[0].n_kv_heads, child.layers[0].channels) == (4, 8)
    alike = select(shape, scores, Request(0.25, scope="global", normalize="layer")).plan.child
    assert alike.layers[0].n_kv_heads < 4 or alike.layers[0].channels < 8


def test_a_cheap_cut_behind_dear_ones_waits_for_them():
    """In the first layer a cut for 1.95 comes into reach once one for 2.6 is made; the second layer's costs 2.2."""
    shape = shape_of((3, 2, 0), (3, 2, 0))
    scores = told(([0, 100, 4, 4, 4, 4], [0.0] * 3, None), ([3.4] * 6, [0.0] * 3, None))
    child = select(shape, scores, Request(1 / 6, "both", "global")).plan.child
    assert [(layer.n_q_heads, layer.n_kv_heads) for layer in child.layers] == [(6, 3), (4, 2)]


def test_ratio_of_each_layer_is_followed():
    shape = shape_of((4, 2, 8), (4, 2, 8), (4, 2, 8))
    plan = select(shape, random_importance(shape), Request((0.0, 0.25, 0.5), mlp_ratio=[0.5, 0.25, 0])).plan
    assert [layer.n_kv_heads for layer in plan.child.layers] == [4, 3, 2]
    assert [layer.channels for layer in plan.child.layers] == [4, 6, 8]


def test_routed_experts_are_cut_alike_and_can_be_left_alone():
    model = tiny_model("qwen2_moe")
    shape, scores = dissect(model).shape, magnitude(model)
    child = select(shape, scores, Request(0.25)).plan.child
    assert [set(layer.experts.values()) for layer in child.layers] == [{48, 24}, set(), {48, 24}, {48, 24}]
    left = select(shape, scores, Request(0.25, experts=False)).plan.child
    assert [layer.experts for layer in left.layers] == [layer.experts for layer in shape.layers]
    assert left.layers[1].channels == 84


def test_layers_without_attention_are_passed_over():
    model = tiny_model("qwen3_next")
    plan = select(dissect(model).shape, magnitude(model), Request(0.34)).plan
    assert [layer.n_kv_heads for layer in plan.child.layers] == [0, 2, 0, 2]


# Layer ranges, granularity, notes


def test_ranges_beyond_the_model_are_clamped_and_said():
    shape = shape_of(*[(4, 7, 8)] * 28)
    found = select(shape, random_importance(shape), Request(0.25, attention_layers=(3, 30), mlp_layers=(28, 30)))
    assert [i for i, each in enumerate(found.plan.layers) if each.groups is not None] == list(range(3, 28))
    assert all(layer.channels is None for layer in found.plan.layers)
    assert found.notes == (
        "attention_layers 3-30 (the end exclusive) reaches beyond the model's 28 layers: layers 3-27 are cut",
        "mlp_layers 28-30 (the end exclusive) reaches beyond the model's 28 layers: none is cut",
    )


@pytest.mark.parametrize("none", [(4, 4), (0, 0), (99, 99)])
def test_a_range_that_starts_where_it_ends_means_none(none):
    shape = shape_of(*[(4, 2, 8)] * 6)
    found = select(shape, random_importance(shape), Request(0.25, attention_layers=none))
    assert all(layer.groups is None and layer.channels is not None for layer in found.plan.layers)
    assert found.notes == ()


@pytest.mark.parametrize(
    ("ratio", "left", "said"),
    [
        (0.2, 3, "layers 0-2: 20 % of 4 KV groups is 0.8: 1 goes, 25 % (possible: 0, 25, 50, 75 %)"),
        (0.1, 4, "layers 0-2: 10 % of 4 KV groups is 0.4: none goes, 0 % (possible: 0, 25, 50, 75 %)"),
        (0.95, 1, "layers 0-2: 95 % of 4 KV groups is 3.8: 3 go, 75 % (possible: 0, 25, 50, 75 %)"),
        (0.5, 2, None),
    ],
)
def test_a_ratio_that_kv_heads_cannot_follow_says_what_happens_instead(ratio, left, said):
    shape = shape_of(*[(4, 7, 0)] * 3)
    found = select(shape, random_importance(shape), Request(ratio))
    assert {layer.n_kv_heads for layer in found.plan.child.layers} == {left}
    assert found.notes == (() if said is None else (said,))


def test_a_multiple_that_the_ratio_does_not_meet_is_said():
    shape = shape_of((4, 2, 100), (4, 2, 100))
    found = select(shape, random_importance(shape), Request(0.25, channels_multiple=32))
    assert {layer.channels for layer in found.plan.child.layers} == {64}
    assert found.notes == ("layers 0-1: 25 % of 100 channels is 25: 36 go, 36 %, so that a multiple of 32 stays",)


# Depth


def test_named_and_counted_layers_are_dropped():
    shape = shape_of(*[(4, 2, 8)] * 5)
    scores = random_importance(shape)
    assert select(shape, scores, Request(drop_layers=(1, 3))).plan.kept_layers == (0, 2, 4)
    influence = torch.tensor([0.9, 0.1, 0.5, 0.05, 0.8])
    found = select(shape, scores, Request(0.25, drop_layers=2), block_influence=influence).plan
    assert found.kept_layers == (0, 2, 4)
    assert {layer.n_kv_heads for layer in found.child.layers} == {3}
    wide = shape_of(*[(4, 2, 96)] * 5)
    third = for_parameters(wide, random_importance(wide), 0.5, Request(drop_layers=(1,))).plan
    assert third.kept_layers == (0, 2, 3, 4)
    assert third.share_removed == pytest.approx(0.5, abs=0.01)


# Bad requests


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"ratio": 1.0}, "pruning ratio is 1.0: it must be a number of at least 0 and below 1"),
        ({"ratio": -0.1}, "-0.1"),
        ({"ratio": float("nan")}, "nan"),
        ({"ratio": True}, "True"),
        ({"ratio": (0.1, 1.5)}, "1.5"),
        ({"ratio": "0.2"}, "pruning ratio is '0.2'"),
        ({"ratio": None}, "pruning ratio is None"),
        ({"mlp_ratio": 2}, "2"),
        ({"attention_layers": (5, 3)}, "attention_layers is 5 to 3"),
        ({"attention_layers": (3,)}, "two whole numbers"),
        ({"mlp_layers": (1.5, 2)}, "two whole numbers"),
        ({"mlp_layers": 5}, "two whole numbers"),
        ({"mlp_layers": (-1, 3)}, "mlp_layers is -1 to 3"),
        ({"heads": "heads"}, "groups, queries, both"),
        ({"scope": "local"}, "uniform, global, isomorphic"),
        ({"channels_multiple": 0}, "channels_multiple is 0"),
        ({"steps": 0}, "steps is 0"),
        ({"ratio": (0.1, 0.2), "scope": "global"}, "scope uniform, not global"),
    ],
)
def test_requests_that_make_no_sense_are_refused(values, said):
    with pytest.raises(PlanError, match=said):
        Request(**values)


def test_requests_that_are_not_for_this_model_are_refused():
    shape = shape_of(*[(4, 2, 8)] * 3)
    scores = random_importance(shape)
    for request, said in (
        (Request((0.1, 0.2)), "2 ratios were given and the model has 3 layers"),
        (Request(drop_layers=(3,)), "layer 3 is to be dropped, and the model has layers 0-2"),
        (Request(drop_layers=3), "3 layers are to be dropped of 3"),
        (Request(drop_layers=1.0), "how many, or a list"),
        (Request(drop_layers=True), "how many, or a list"),
        (Request(drop_layers=1), "give the block influence of all 3"),
    ):
        with pytest.raises(PlanError, match=said):
            select(shape, scores, request)
    for other, said in (
        (shape_of(*[(4, 2, 8)] * 2), "it has 2 layers, this one 3"),
        (shape_of(*[(4, 2, 9)] * 3), "in layer 0 it scores 9 channels, not 8"),
    ):
        with pytest.raises(PlanError, match=said):
            select(shape, random_importance(other), Request(0.5))
    with pytest.raises(PlanError, match=r"share of parameters to remove is 1\.5"):
        for_parameters(shape, scores, 1.5)


# In steps


def test_steps_end_at_the_sizes_of_one_step_and_the_plan_makes_the_model_that_was_cut():
    parent, ids = tiny_model("llama"), tiny_ids()
    request = Request(0.5, heads="both", attention_layers=(1, 9), steps=3)
    seen = []

    def score(model):
        seen.append(dissect(model).shape.parameters)
        return taylor(model, ids)

    cut = copy.deepcopy(parent)
    found = select_in_steps(cut, score, request)
    assert len(seen) == 3
    assert seen == sorted(seen, reverse=True)
    assert len(set(seen)) == 3
    assert found.plan.parent == dissect(parent).shape
    single = select(dissect(parent).shape, taylor(parent, ids), request).plan
    assert [each.channels for each in found.plan.child.layers] == [each.channels for each in single.child.layers]
    prune(cut, select_in_steps(cut, score, Request(0.0)).plan)
    made = prune(copy.deepcopy(parent), found.plan)
    assert dissect(made).shape == found.plan.child
    assert found.notes[0].startswith("attention_layers 1-9")


def test_one_step_is_the_plain_selection():
    model, ids = tiny_model("qwen2"), tiny_ids()
    request = Request(0.4, scope="isomorphic", drop_layers=(2,))
    plain = select(dissect(model).shape, taylor(model, ids), request)
    assert select_in_steps(model, lambda m: taylor(m, ids), request) == plain
    assert plan_to_json(plain.plan) == plan_to_json(select(dissect(model).shape, taylor(model, ids), request).plan)


@pytest.mark.parametrize("scope", ["uniform", "global", "isomorphic"])
def test_random_scores_in_steps_keep_to_the_ratio_of_the_parent(scope):
    model = tiny_model("mixtral")
    shape = dissect(model).shape
    found = select_in_steps(copy.deepcopy(model), random_importance, Request(0.5, scope=scope, steps=4)).plan
    once = select(shape, random_importance(shape), Request(0.5, scope=scope)).plan
    assert found.share_removed == pytest.approx(once.share_removed, abs=0.02)


# Sensitivity


def test_sensitivity_finds_the_layer_that_hurts_and_spares_it():
    model, ids = tiny_model("llama_bias").double(), tiny_ids()
    with torch.no_grad():
        for layer in (0, 1, 3):
            for linear in (model.model.layers[layer].self_attn.o_proj, model.model.layers[layer].mlp.down_proj):
                linear.weight *= 1e-3
    before = {name: value.clone() for name, value in model.state_dict().items()}
    scores = magnitude(model)
    found = measure_sensitivity(model, scores, ids, share=0.34)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for increases in (found.attention, found.mlp):
        assert max(range(4), key=lambda at: abs(increases[at])) == 2
    child = prune(
        copy.deepcopy(model), select(dissect(model).shape, scores, Request((0, 0, 0.34, 0), mlp_ratio=0.0)).plan
    )
    with torch.no_grad():
        loss = sum(float(child(one[None], labels=one[None]).loss) for one in ids) / len(ids)
    assert loss - found.base == pytest.approx(found.attention[2], abs=1e-5)


def test_sensitivity_of_a_model_whose_loss_is_not_finite_is_refused():
    model = tiny_model("llama")
    scores = magnitude(model)
    model.lm_head.weight.data[:] = torch.inf
    with pytest.raises(CannotScore, match="not finite"):
        measure_sensitivity(model, scores, tiny_ids())


def test_sensitivity_looks_only_at_what_may_be_cut():
    model, ids = tiny_model("qwen3_next"), tiny_ids(length=8)
    found = measure_sensitivity(model, magnitude(model), ids, Request(attention_layers=(0, 3), mlp_layers=(1, 1)))
    assert [each is None for each in found.attention] == [True, False, True, True]
    assert found.mlp == (None,) * 4


@given(
    increases=st.lists(st.none() | st.floats(-1, 10), min_size=1, max_size=12),
    ratio=st.floats(0, 0.75),
)
@example(increases=[2e-311], ratio=0.2)
@example(increases=[0.0, 5e-324], ratio=0.2)
@CASES
def test_layer_ratios_keep_the_mean_and_never_cut_more_where_it_hurts_more(increases, ratio):
    found = layer_ratios(increases, ratio)
    known = [(value, each) for value, each in zip(increases, found, strict=True) if value is not None]
    assert all(each == 0 for value, each in zip(increases, found, strict=True) if value is None)
    assert all(0 <= each <= 0.75 + 1e-12 for each in found)
    if known:
        assert sum(each for _, each in known) / len(known) == pytest.approx(ratio, abs=1e-9)
        ordered = sorted(known, key=lambda pair: pair[0])
        assert all(a[1] >= b[1] - 1e-12 for a, b in pairwise(ordered))
    with pytest.raises(PlanError, match=r"0\.9"):
        layer_ratios(increases, 0.9)
