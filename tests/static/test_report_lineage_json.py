"""Lineage in the JSON report: the whole map of every layer, counterfactuals, and the schema of both."""

from __future__ import annotations

import json
import math
from array import array
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from report_samples import (
    HOSTILE,
    KEPT_KV,
    channels,
    counterfactual,
    gated,
    healthy,
    kept_groups,
    layer_origin,
    lineage,
    misaligned,
    own_heads,
    regrouped,
    report,
    runtime,
    sound_child,
    truncated,
)
from test_report_json import data, strict_schema

from gqacheck.geometry.origins import NOWHERE, Channels, Heads, LayerOrigin, MlpOrigin, Origin, VectorOrigin
from gqacheck.report.json import render_json, schema
from gqacheck.report.lineage_json import channel_runs
from gqacheck.report.lineage_json import misaligned as misaligned_channels
from gqacheck.report.text import render_text
from gqacheck.result import CheckpointReport

jsonschema = pytest.importorskip("jsonschema")

SIMILAR = (Origin("similar", (0,), 0.99871234567), Origin("exact", (1, 5)), Origin("unmatched"))
ODD = LayerOrigin(
    3,
    None,
    n_q=3,
    q=Heads("q", "similar", 8, (*SIMILAR, Origin("mixed", (2, 3)), Origin("exact", (6,), order=(1, 0)))),
    k=Heads("k", "not-compared", 0, reason="packed"),
    o=Heads("o", "rewritten", 8),
    mlps=(MlpOrigin(gate=channels("gate", (1, 2), 8), expert=0, parent_expert=2), MlpOrigin(expert="shared")),
    vectors=(VectorOrigin("q", "bias", "exact", "b", (4,), (7,), positions=8), VectorOrigin("up", "bias", "rewritten")),
    not_compared=("sinks: no counterpart",),
)
EVERYTHING = (
    misaligned(),
    sound_child(),
    misaligned(lineage=lineage([ODD, kept_groups(4, mlps=(gated(range(100)),))], kept_hidden=(0, 1, 5))),
    sound_child(lineage=lineage((), relation="unrelated", reason="nothing is the parent's")),
    misaligned(runtime=runtime(counterfactuals=(counterfactual(), counterfactual(child=math.inf, verdict="loader")))),
)


def layer_of(made: LayerOrigin) -> dict[str, Any]:
    """One layer as the document shows it."""
    found: dict[str, Any] = data(misaligned(lineage=lineage([made])))["checkpoints"][0]["lineage"]["layers"][0]
    return found


@pytest.mark.parametrize("made", EVERYTHING)
def test_json_with_a_lineage_is_valid_and_has_no_undescribed_key(made: CheckpointReport) -> None:
    jsonschema.Draft202012Validator(strict_schema()).validate(data(made))


def test_json_without_a_base_has_a_null_lineage_and_no_counterfactual() -> None:
    one = data(healthy())["checkpoints"][0]
    assert one["lineage"] is None
    assert one["metrics"]["counterfactual"] == []


def test_json_schema_still_takes_a_document_of_before_lineage() -> None:
    made = data(misaligned())
    del made["checkpoints"][0]["lineage"]
    del made["checkpoints"][0]["metrics"]["counterfactual"]
    del made["checkpoints"][0]["findings"][0]["cause"]
    jsonschema.Draft202012Validator(schema()).validate(made)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("relation",), "cousin"),
        (("fine_tuned",), 2),
        (("layers", 0, "q", "state"), "fine"),
        (("layers", 0, "q", "origins", 0), "q0"),
        (("layers", 0, "q", "origins", 0), [1]),
        (("layers", 0, "misread", 0, "own_kv"), None),
        (("layers", 0, "mlps", 0, "gate", "parents"), "0-9,x"),
        (("layers", 0, "mlps", 0, "up", "same_as"), "down"),
    ],
)
def test_json_schema_on_a_wrong_lineage_refuses_it(path: tuple[Any, ...], value: object) -> None:
    made = data(misaligned(lineage=lineage([truncated(0, mlps=(gated(range(9)),))])))
    node: Any = made["checkpoints"][0]["lineage"]
    for step in path[:-1]:
        node = node[step]
    node[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(schema()).validate(made)


def test_json_lineage_holds_what_was_found_and_how() -> None:
    made = lineage(method="similarity", fine_tuned=0.25, notes=("n",), kept_hidden=(0, 1, 2, 9))
    one = data(misaligned(lineage=made))["checkpoints"][0]["lineage"]
    layers = one.pop("layers")
    assert one == {
        "relation": "child", "reason": "", "method": "similarity", "fine_tuned": 0.25, "n_parent_layers": 32,
        "kept_hidden": "0-2,9", "notes": ["n"], "bytes_read": 812_000_000,
    }  # fmt: skip
    assert [layer["index"] for layer in layers] == list(range(32))


def test_json_layer_holds_counts_every_origin_and_every_misread_head() -> None:
    one = layer_of(truncated(4))
    assert {key: value for key, value in one.items() if isinstance(value, int)} == {
        "index": 4, "parent": 4, "n_q_heads": 24, "n_kv_heads": 6, "group_size": 4,
        "parent_n_q_heads": 32, "parent_n_kv_heads": 8, "parent_group_size": 4, "paired": True,
    }  # fmt: skip
    assert one["q"]["origins"] == list(range(24))
    assert one["k"]["origins"] == list(KEPT_KV)
    assert one["cause"] == "q_proj was cut to its first 24 heads"
    assert len(one["misread"]) == 20
    assert one["misread"][0] == {"position": 4, "head": 4, "own_kv": 1, "reads_kv": 2}


def test_json_heads_tell_unmatched_several_mixed_similar_and_reordered_apart() -> None:
    q = layer_of(ODD)["q"]
    assert q["origins"] == [0, [1, 5], None, [2, 3], 6]
    assert q["mixed"] == [3]
    assert q["similarity"] == [0.998712, None, None, None, None]
    assert q["orders"] == [{"positions": [4], "order": [1, 0]}]


def test_json_heads_with_one_order_everywhere_write_it_once() -> None:
    order = tuple(range(127, -1, -1))
    q = Heads("q", "exact", 32, tuple(Origin("exact", (n,), order=order) for n in range(32)))
    made = layer_of(replace(layer_origin(0, range(32), range(8)), q=q))["q"]
    assert made["orders"] == [{"positions": list(range(32)), "order": list(order)}]
    assert made["similarity"] is None


def test_json_parts_that_were_not_compared_say_why_and_absent_ones_are_null() -> None:
    one = layer_of(ODD)
    assert (one["k"]["state"], one["k"]["reason"], one["v"]) == ("not-compared", "packed", None)
    assert (one["parent"], one["group_size"], one["paired"], one["misread"]) == (None, None, False, [])
    assert one["not_compared"] == ["sinks: no counterpart"]


def test_json_mlp_writes_channels_as_runs_and_those_of_its_neighbours_once() -> None:
    mlp = layer_of(kept_groups(0, mlps=(gated([*range(100), 104]),)))["mlps"][0]
    assert mlp["gate"]["parents"] == "0-99,104"
    assert (mlp["gate"]["kept"], mlp["gate"]["n_parent"], mlp["gate"]["unmatched"]) == (101, 14336, 0)
    assert [(mlp[role]["parents"], mlp[role]["same_as"]) for role in ("up", "down")] == [(None, "gate"), (None, "gate")]
    assert (mlp["misaligned"], mlp["expert"]) == (0, None)


def test_json_mlp_counts_positions_of_several_channels() -> None:
    mlp = layer_of(kept_groups(0, mlps=(gated([0, 2, 4], up=[0, 1, 2], down=[0, 2, NOWHERE]),)))["mlps"][0]
    assert mlp["misaligned"] == 2
    assert (mlp["up"]["parents"], mlp["down"]["parents"], mlp["down"]["unmatched"]) == ("0-2", "0,2,?", 1)


def test_json_mlp_whose_projections_cannot_be_compared_has_no_count() -> None:
    gate = channels("gate", (1, 2))
    rewritten = Channels("down", "rewritten", 8)
    mlps = (MlpOrigin(gate=gate, down=rewritten, expert=7, parent_expert=9), MlpOrigin(expert="shared"))
    one = layer_of(kept_groups(0, mlps=mlps))["mlps"]
    assert [(m["expert"], m["parent_expert"], m["misaligned"]) for m in one] == [(7, 9, None), ("shared", None, None)]
    assert (one[0]["down"]["state"], one[0]["down"]["parents"]) == ("rewritten", "")


def test_json_vectors_name_what_is_wrong_and_whose_it_is() -> None:
    assert layer_of(ODD)["vectors"][0] == {
        "role": "q", "kind": "bias", "state": "exact", "tensor": "b", "expert": None, "positions": 8, "wrong": [4],
        "found": [7],
    }  # fmt: skip


@settings(derandomize=True, deadline=None)
@given(st.lists(st.integers(NOWHERE, 30)))
@example([NOWHERE, 0, 1, NOWHERE])
def test_channel_runs_on_any_channels_say_exactly_these_in_order(parents: list[int]) -> None:
    said: list[int] = []
    for part in filter(None, channel_runs(parents).split(",")):
        first, _, last = part.partition("-")
        said += [NOWHERE] if part == "?" else range(int(first), int(last or first) + 1)
    assert said == parents
    assert channel_runs(array("i", parents)) == channel_runs(parents)


def test_misaligned_counts_no_position_of_which_one_part_is_unknown() -> None:
    parts = [channels("gate", (0, 1, 2, NOWHERE)), channels("up", (0, 2, NOWHERE, NOWHERE))]
    assert misaligned_channels(parts) == 1


def test_json_of_a_counterfactual_holds_the_three_numbers_and_the_verdict() -> None:
    made = runtime(counterfactuals=(counterfactual(child=math.inf, partial=True, note="why"),))
    assert data(misaligned(runtime=made))["checkpoints"][0]["metrics"]["counterfactual"] == [
        {
            "corpus": "smoke", "protocol": "windows-512: non-overlapping", "base": 14.13, "masked": 26.0,
            "child": None, "child_text": "inf", "tokens": 8188, "windows": 16, "verdict": "pairing", "partial": True,
            "note": "why",
        }
    ]  # fmt: skip


def test_json_finding_holds_its_cause() -> None:
    one = data(misaligned(findings=(regrouped(),)))["checkpoints"][0]["findings"][0]
    assert one["cause"] == "q_proj was cut to its first 24 heads"


def test_json_of_the_same_lineage_in_another_time_is_the_same_bytes() -> None:
    slow, fast = (misaligned(lineage=lineage([truncated(0)], seconds=seconds)) for seconds in (99.0, 0.1))
    assert render_json(report(slow)) == render_json(report(fast))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_json_of_a_similarity_that_is_no_number_is_null(value: float) -> None:
    q = Heads("q", "similar", 8, (Origin("similar", (0,), value),))
    part = replace(channels("up", (1,)), similarity=value)
    one = layer_of(LayerOrigin(0, 0, q=q, mlps=(MlpOrigin(up=part),)))
    assert one["q"]["similarity"] == [None]
    assert one["mlps"][0]["up"]["similarity"] is None


def test_json_of_a_large_pair_is_not_enormous() -> None:
    kept = [n for n in range(14336) if n % 4]
    layers = [replace(layer_origin(i, own_heads(KEPT_KV), KEPT_KV), mlps=(gated(kept),)) for i in range(32)]
    assert len(render_json(report(misaligned(lineage=lineage(layers))))) < 3_000_000


def test_json_with_hostile_strings_stays_ascii_and_keeps_them() -> None:
    made = misaligned(lineage=lineage([truncated(0, cause=HOSTILE, not_compared=(HOSTILE,))], notes=("\udcff",)))
    assert render_json(report(made)).isascii()
    assert data(made)["checkpoints"][0]["lineage"]["layers"][0]["cause"] == HOSTILE


def test_json_and_text_hold_the_same_facts_of_a_lineage() -> None:
    made = misaligned(
        lineage=lineage([truncated(4, not_compared=("sinks: none",))], notes=("by similarity",), fine_tuned=0.5),
        findings=(regrouped([4]),),
        runtime=runtime(counterfactuals=(counterfactual(note="layer 3 left out"),)),
    )
    text, one = render_text(report(made)), data(made)["checkpoints"][0]
    told = one["metrics"]["counterfactual"][0]
    layer = one["lineage"]["layers"][0]
    said = [
        *one["lineage"]["notes"],
        *layer["not_compared"],
        one["findings"][0]["cause"],
        told["protocol"],
        told["note"],
    ]
    said += [f"{told['tokens']:,} tokens", f"{told['base']} base"]
    for fact in said:
        assert fact in text
    assert f"{one['lineage']['fine_tuned']:.1%}" in text
    assert all(f"k{head}" in text for head in layer["k"]["origins"])


def test_json_is_read_back_by_json_alone() -> None:
    assert json.loads(render_json(report(*EVERYTHING)))["checkpoints"][0]["lineage"]["relation"] == "child"
