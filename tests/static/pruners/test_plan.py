"""Plans without a model: what they can say, what they refuse, and the arithmetic that follows."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pruners.plan import Costs, KvGroup, LayerPlan, LayerShape, ModelShape, PlanError, PruningPlan, whole_groups
from pruners.plan_file import SCHEMA, plan_from_json, plan_to_json, read_plan

LAYER = LayerShape(28, 4, 24, costs=Costs(query=112, kv=56, channel=36, rest=24))
SHAPE = ModelShape("qwen2", 12, 2, (LAYER, LAYER, LAYER), outside=500)
EXPERTS = LayerShape(0, 0, 0, {0: 6, 1: 6, "shared": 3}, Costs(experts={0: 9, 1: 9, "shared": 9}, rest=5))
QUICK = settings(max_examples=80, derandomize=True, deadline=None, database=None)


def cut(**parts: Any) -> PruningPlan:
    return PruningPlan.of(SHAPE, {1: LayerPlan(**parts)})


def subsets(size: int) -> st.SearchStrategy[tuple[int, ...]]:
    return st.sets(st.integers(0, size - 1), min_size=1).map(lambda chosen: tuple(sorted(chosen)))


@st.composite
def plans(draw: Any, shape: ModelShape = SHAPE) -> PruningPlan:
    cuts: dict[int, LayerPlan | None] = {}
    for index, layer in enumerate(shape.layers):
        if index and draw(st.integers(0, 4)) == 0:
            cuts[index] = None
            continue
        count = draw(st.integers(1, layer.group_size))
        members = st.permutations(range(layer.group_size)).map(lambda order, count=count: tuple(sorted(order[:count])))
        groups = tuple(KvGroup(head, draw(members)) for head in draw(subsets(layer.n_kv_heads)))
        channels = draw(st.none() | subsets(layer.channels))
        cuts[index] = LayerPlan(draw(st.sampled_from((None, groups))), channels)
    return PruningPlan.of(shape, cuts)


@QUICK
@given(plans())
def test_plan_written_as_json_is_read_back_equal(plan: PruningPlan) -> None:
    text = plan_to_json(plan)
    assert plan_from_json(text) == plan
    assert len(text.split('"layers": [\n')[-1].splitlines()) == len(plan.layers) + 2  # a line each, for diffs


@QUICK
@given(plans())
def test_query_heads_of_any_plan_read_their_own_kv_head(plan: PruningPlan) -> None:
    for layer, shape in zip(plan.layers, plan.parent.layers, strict=True):
        if layer is None:
            continue
        queries, kv = layer.query_heads(shape), layer.kv_heads(shape)
        size = len(queries) // len(kv)
        assert [query // shape.group_size for query in queries] == [head for head in kv for _ in range(size)]


@QUICK
@given(plans())
def test_parameters_are_the_parents_without_what_goes(plan: PruningPlan) -> None:
    gone = 0
    for layer, shape in zip(plan.layers, plan.parent.layers, strict=True):
        if layer is None:
            gone += shape.parameters
        else:
            gone += (28 - len(layer.query_heads(shape))) * 112 + (4 - len(layer.kv_heads(shape))) * 56
            gone += 0 if layer.channels is None else (24 - len(layer.channels)) * 36
    assert plan.parameters == SHAPE.parameters - gone
    assert plan.share_removed == pytest.approx(gone / SHAPE.parameters)
    assert plan.whole == (gone == 0)


@QUICK
@given(st.data())
def test_two_plans_joined_have_the_child_of_the_second(data: st.DataObject) -> None:
    first = data.draw(plans())
    second = data.draw(plans(first.child))
    both = first.then(second)
    assert both.child == second.child
    assert both.parent == first.parent


def test_groups_of_a_second_plan_are_named_by_the_parents_heads() -> None:
    first = cut(groups=(KvGroup(1, (0, 2, 4, 6)), KvGroup(3, (1, 3, 5, 6))), channels=(2, 4, 8))
    second = PruningPlan.of(first.child, {1: LayerPlan(groups=(KvGroup(1, (1, 3)),), channels=(0, 2))})
    assert first.then(second).layers[1] == LayerPlan((KvGroup(3, (3, 6)),), (2, 8))


def test_second_plan_for_another_child_is_refused() -> None:
    first = cut(channels=(0, 1, 2))
    with pytest.raises(PlanError, match=r"layer 1 has channels 24 in the plan, 3 in the model"):
        first.then(PruningPlan.of(SHAPE, {}))


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"groups": ()}, "layer 1: no KV group stays"),
        ({"groups": (KvGroup(4, (0,)),)}, r"layer 1: the plan keeps KV head 4, and there are 4 \(0-3\)"),
        ({"groups": (KvGroup(0, (7,)),)}, r"KV group 0: the plan keeps query head 7, and there are 7"),
        ({"groups": (KvGroup(0, (0, 1)), KvGroup(1, (0,)))}, "KV groups keep 1 and 2 query heads"),
        ({"groups": (KvGroup(0, ()),)}, "KV group 0: no query head stays"),
        ({"groups": (KvGroup(2, (0,)), KvGroup(1, (0,)))}, "KV heads must be in ascending order"),
        ({"groups": (KvGroup(-1, (0,)),)}, "keeps KV head -1"),
        ({"channels": ()}, "no channel stays"),
        ({"channels": (3, 3)}, "each once"),
        ({"channels": (3, 24)}, "keeps channel 24, and there are 24"),
        ({"channels": (True, 2)}, "whole number"),
        ({"experts": {0: (1,)}}, "names expert 0, and the layer has 0"),
    ],
)
def test_plan_that_makes_no_sense_is_refused(parts: dict[str, Any], said: str) -> None:
    with pytest.raises(PlanError, match=said):
        cut(**parts)


def test_plan_for_other_layers_is_refused() -> None:
    with pytest.raises(PlanError, match=r"layer 28 and the model has layers 0-2"):
        PruningPlan.of(SHAPE, {28: LayerPlan()})
    with pytest.raises(PlanError, match="for 2 layers and the model has 3"):
        PruningPlan(SHAPE, (LayerPlan(), LayerPlan()))
    with pytest.raises(PlanError, match="all 3 layers"):
        PruningPlan.of(SHAPE, dict.fromkeys(range(3)))


def test_attention_of_a_layer_that_has_none_cannot_be_cut() -> None:
    shape = replace(SHAPE, layers=(LAYER, EXPERTS))
    with pytest.raises(PlanError, match="no attention that can be cut"):
        PruningPlan.of(shape, {1: LayerPlan(groups=(KvGroup(0, (0,)),))})


def test_experts_of_different_widths_are_refused() -> None:
    shape = replace(SHAPE, layers=(EXPERTS,))
    assert PruningPlan.of(shape, {0: LayerPlan(experts={0: (1, 2), 1: (3, 4)})}).parameters == 500 + 5 + 9 * 7
    with pytest.raises(PlanError, match="experts keep 2 to 6 channels"):
        PruningPlan.of(shape, {0: LayerPlan(experts={0: (1, 2)})})


def test_config_values_are_numbers_where_layers_agree_and_lists_where_not() -> None:
    groups = whole_groups((2, 0), LAYER)
    plan = PruningPlan.of(SHAPE, {0: LayerPlan(groups), 1: LayerPlan(groups, (1, 2)), 2: LayerPlan(groups)})
    assert plan.config_values() == {
        "num_hidden_layers": 3,
        "head_dim": 2,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "intermediate_size": [24, 2, 24],
    }


def test_plan_says_what_the_masked_parent_keeps() -> None:
    plan = PruningPlan.of(SHAPE, {0: None, 1: LayerPlan((KvGroup(2, (1, 6)),), (3,))})
    gone, cut_layer, whole = plan.kept()
    assert gone is None
    assert cut_layer is not None
    assert (cut_layer.heads, cut_layer.channels) == ((15, 20), (3,))
    assert whole is not None
    assert whole.whole


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda found: found.update(schema="gqacheck/pruning-plan/9"), "schema is gqacheck/pruning-plan/9"),
        (lambda found: found.pop("layers"), "KeyError"),
        (lambda found: found["layers"][1].update(layer=2), "entry 1 is for layer 2"),
        (lambda found: found["layers"][1].update(channels=[0, 99]), "keeps channel 99"),
        (lambda found: found["layers"][1].update(channels="0-9"), "whole number"),
        (lambda found: found["layers"][1].update(groups={"x": [0]}), "ValueError"),
        (lambda found: found["layers"].pop(), "for 2 layers and the model has 3"),
        (lambda found: found["parent"].update(hidden_size=-1), "'-1' is not a size"),
    ],
)
def test_broken_json_is_refused_in_one_sentence(change: Any, said: str) -> None:
    found = json.loads(plan_to_json(cut(channels=(0, 1))))
    change(found)
    with pytest.raises(PlanError, match=said) as raised:
        plan_from_json(json.dumps(found))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, '{"schema": NaN}'])
def test_text_that_is_no_plan_is_refused(text: str) -> None:
    with pytest.raises(PlanError):
        plan_from_json(text)


def test_plan_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"plan\.json cannot be read as a plan"):
        read_plan(tmp_path / "plan.json")
    (tmp_path / "plan.json").write_text(plan_to_json(cut(channels=(0,))))
    assert read_plan(tmp_path / "plan.json") == cut(channels=(0,))
    assert SCHEMA in (tmp_path / "plan.json").read_text()
