"""Plans that a stranger wrote: read as they are meant, or refused in one short sentence."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from gqa_cases import Case, shape_of
from hypothesis import given, settings
from hypothesis import strategies as st

from pruners.plan import LayerPlan, PlanError, PruningPlan, whole_groups
from pruners.plan_file import plan_from_json, plan_to_json, read_plan

SHAPE = shape_of(Case("llama", 4, 3, 8, 96, 24, 3, False, False, 0))
PLAN = PruningPlan.of(SHAPE, {0: LayerPlan(whole_groups((0, 2), SHAPE.layers[0]), tuple(range(9))), 1: None})
TEXT = plan_to_json(PLAN)


def changed(change: Callable[[dict[str, Any]], object]) -> str:
    found = copy.deepcopy(json.loads(TEXT))
    change(found)
    return json.dumps(found)


def with_layer(index: int, **entries: Any) -> str:
    return changed(lambda plan: plan["layers"][index].update(entries))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (with_layer(1, dropped=1), "true or false"),
        (with_layer(1, dropped="yes"), "true or false"),
        (with_layer(1, channels=[1]), "says nothing else"),
        (with_layer(2, chanels=[1]), "chanels"),
        (with_layer(1, layer=True), "'True'"),
        (with_layer(1, layer=1.0), "'1.0'"),
        (with_layer(0, layer=1), "entry 0 is for layer 1"),
        (with_layer(0, channels=[False, True]), "whole number"),
        (with_layer(0, channels=[float("nan")]), "whole number"),
        (with_layer(0, channels="0123"), "whole number"),
        (with_layer(0, channels=[10**4000]), "4,001 digits"),
        (with_layer(0, channels=[-(10**4000)]), "4,002 digits"),
        (with_layer(0, groups={" 0": [0], "2": [0]}), "not a number"),
        (with_layer(0, groups={"0_0": [0], "2": [0]}), "not a number"),
        (with_layer(0, groups={"\u0660": [0], "2": [0]}), "not a number"),
        (with_layer(0, groups={"9" * 4000: [0]}), "4,000 digits"),
        (with_layer(0, groups=[[0, 1]]), "malformed"),
        (with_layer(0, experts={"shared": [1]}), "expert shared"),
        (TEXT.replace('"groups": {', '"groups": {"0": [0], '), "0 is written twice"),
        (TEXT.rstrip().removesuffix("}") + ', "layers": []}', "layers is written twice"),
        (changed(lambda plan: plan["parent"].update(hidden_size=-1)), "not a size"),
        (changed(lambda plan: plan["parent"].update(hidden_size=float("inf"))), "not a size"),
        (changed(lambda plan: plan.update(schema="x\n\x1b[31m" * 50)), "schema"),
        (changed(lambda plan: plan.update(layers=None)), "malformed"),
        ("[" * 100_000, "JSON"),
        ('{"a":' * 100_000, "JSON"),
        ("NaN", "schema"),
        ("", "JSON"),
    ],
)
def test_plan_that_is_none_is_refused_in_one_short_line(text: str, said: str) -> None:
    with pytest.raises(PlanError) as caught:
        plan_from_json(text)
    message = str(caught.value)
    assert said in message
    assert len(message) < 250
    assert message.isprintable()


def test_plan_of_a_family_with_a_hostile_name_is_told_apart_in_one_short_line() -> None:
    plan = plan_from_json(changed(lambda found: found["parent"].update(family="a\x1b[31m\nb" * 100)))
    with pytest.raises(PlanError, match="family") as caught:
        plan.require_fit(SHAPE)
    assert len(str(caught.value)) < 250
    assert str(caught.value).isprintable()


@settings(max_examples=60, derandomize=True, database=None, deadline=None)
@given(st.data())
def test_plan_with_anything_put_anywhere_is_read_or_refused(data: st.DataObject) -> None:
    found = json.loads(TEXT)
    place: Any = found
    for _ in range(data.draw(st.integers(0, 3))):
        keys = list(place) if isinstance(place, dict) else range(len(place)) if isinstance(place, list) else []
        key = data.draw(st.sampled_from(list(keys) or [None]))
        if key is None or not isinstance(place[key], dict | list):
            break
        place = place[key]
    values = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.just([]) | st.just({})
    if isinstance(place, dict):
        place[data.draw(st.sampled_from(sorted(place)) if place else st.just("layer"))] = data.draw(values)
    elif place:
        place[data.draw(st.integers(0, len(place) - 1))] = data.draw(values)
    with suppress(PlanError):  # and nothing else
        plan_from_json(json.dumps(found))


def test_plan_read_from_a_file_is_the_one_that_was_written(tmp_path: Any) -> None:
    (tmp_path / "plan.json").write_text(TEXT)
    assert read_plan(tmp_path / "plan.json") == PLAN
