"""What every faulty layer is made of after the repair, planned from hand-made lineages."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from repair_origins import geometry, layer, layer_origin, lineage, pairs_right, projection, result_of

from gqacheck.geometry.origins import NOWHERE, Heads, LayerOrigin, Origin, VectorOrigin
from gqacheck.repair.facts import CannotRepair, LayerPlan, RoleTake
from gqacheck.repair.plan import RepairPlan, plan_repair

GROUPS = {0: range(4), 1: range(4, 8), 2: range(8, 12)}  # of a 12:3 parent


def plan(
    origin: LayerOrigin, *, parent: Any = None, child: Any = None, family: str = "llama", **options: Any
) -> RepairPlan:
    n_q, n_kv = origin.parent_n_q or 0, origin.parent_n_kv or 0
    ours = child or layer(len(origin.q.origins) if origin.q else 0, len(origin.k.origins) if origin.k else 0)
    return plan_repair(
        geometry(ours, family=family),
        geometry(parent or layer(n_q, n_kv), family=family),
        lineage(origin),
        **options,
    )


def take_of(planned: LayerPlan, role: str, kind: str = "weight") -> RoleTake:
    return next(take for take in planned.takes if (take.role, take.kind) == (role, kind))


def only(found: RepairPlan) -> LayerPlan:
    assert found.refused == ()
    (planned,) = found.layers
    return planned


@pytest.mark.parametrize(
    "origin",
    [
        layer_origin([0, 1, 2, 3, 8, 9, 10, 11], [0, 2]),
        layer_origin([3, 2, 0, 1, 9, 8, 11, 10], [0, 2]),  # reordered inside the groups
        layer_origin([8, 9, 10, 11, 0, 1, 2, 3], [2, 0]),  # groups exchanged
        layer_origin([0, 2, 4, 7, 8, 11], [0, 1, 2]),  # 4:1 to 2:1 inside every group
        layer_origin([0, 1, 2, 3, 8, 9, 10, 11], [0, 2], o_state="rewritten"),
        layer_origin([None, 1, 2, 3, 8, 9, 10, 11], [0, 2]),  # a head that matches nothing accuses nobody
        layer_origin([0, 1, 4, 5], [0, 0, 1, 1], parent=(8, 2)),  # KV heads repeated, each with its own query heads
    ],
)
def test_layer_without_fault_has_no_plan(origin: LayerOrigin) -> None:
    assert plan(origin) == RepairPlan()


def test_first_query_heads_give_way_to_those_of_the_kept_kv_heads() -> None:
    planned = only(plan(layer_origin([0, 1, 2, 3, 4, 5, 6, 7], [0, 2])))
    q, o = take_of(planned, "q").take, take_of(planned, "o").take
    assert list(q.parent) == [0, 1, 2, 3, 8, 9, 10, 11]
    assert list(q.child) == list(o.child) == [0, 1, 2, 3, *[NOWHERE] * 4]
    assert {take.role for take in planned.changed} == {"q", "o"}
    assert planned.heads == (8, 2)


def test_query_heads_elsewhere_in_the_child_are_moved_not_replaced() -> None:
    planned = only(plan(layer_origin([8, 9, 10, 11, 0, 1, 2, 3], [0, 2])))
    assert take_of(planned, "q").take.replaced == 0
    assert take_of(planned, "q").take.moved == 8


def test_v_follows_the_k_that_q_and_o_agree_with() -> None:
    planned = only(plan(layer_origin([0, 1, 2, 3, 8, 9, 10, 11], [0, 2], [0, 1])))
    assert list(take_of(planned, "v").take.parent) == [0, 2]
    assert [take.role for take in planned.changed] == ["v"]


def test_query_heads_in_an_order_of_their_own_stay_where_they_are() -> None:
    planned = only(plan(layer_origin([3, 2, 0, 1, 9, 8, 11, 10], [0, 2], [0, 1])))
    assert [take.role for take in planned.changed] == ["v"]


def test_k_follows_where_v_q_and_o_agree_against_it() -> None:
    planned = only(plan(layer_origin([0, 1, 2, 3, 8, 9, 10, 11], [0, 1], [0, 2])))
    assert list(take_of(planned, "k").take.parent) == [0, 2]
    assert [take.role for take in planned.changed] == ["k"]


def test_o_columns_follow_q() -> None:
    q = [0, 1, 2, 3, 8, 9, 10, 11]
    planned = only(plan(layer_origin(q, [0, 2], o=[0, 1, 2, 3, 4, 5, 6, 7])))
    take = take_of(planned, "o").take
    assert (list(take.parent), [t.role for t in planned.changed]) == (q, ["o"])


def test_heads_the_child_still_has_come_before_important_ones() -> None:
    origin = layer_origin([0, 1, 2, 4, 8, 9], [0, 1, 2])  # groups kept 3, 1, 2 at 2:1
    scores = [1.0, 9.0, 5.0, 99.0, 0.0, 3.0, 7.0, 2.0, 1.0, 1.0, 50.0, 50.0]
    planned = only(plan(origin, importance=lambda index: scores))
    assert list(take_of(planned, "q").take.parent) == [1, 2, 4, 6, 8, 9]


def test_importance_is_not_asked_for_where_there_is_no_choice() -> None:
    def never(index: int) -> Any:
        raise AssertionError("there is nothing to choose")

    assert plan(layer_origin([0, 1, 2, 3, 4, 5, 6, 7], [0, 2]), importance=never).layers


def test_rewritten_o_stays_where_nothing_it_reads_changes_and_comes_from_the_parent_where_it_does() -> None:
    right, wrong = [0, 1, 2, 3, 8, 9, 10, 11], [0, 1, 2, 3, 4, 5, 6, 7]
    wrong_bias = VectorOrigin("k", "bias", "exact", wrong=(1,), found=(1,), positions=2)
    child, parent = layer(8, 2, bias=True), layer(12, 3, bias=True)
    only_bias = layer_origin(right, [0, 2], o_state="rewritten", vectors=[wrong_bias])
    kept = only(plan(only_bias, child=child, parent=parent, family="qwen2"))
    assert [(take.role, take.kind) for take in kept.changed if take.role != "o"] == [("k", "bias")]
    moved = only(plan(layer_origin(wrong, [0, 2], o_state="rewritten")))
    assert take_of(moved, "o").take.replaced == 8
    assert "rewritten" in take_of(moved, "o").whole


def test_from_base_takes_every_block_of_a_repaired_layer_and_nothing_of_a_sound_one() -> None:
    broken = layer_origin([0, 1, 2, 3, 4, 5, 6, 7], [0, 2], gate=[0, 3], up=[0, 3], down=[0, 3])
    planned = only(plan(broken, child=layer(8, 2, width=2), from_base=True))
    assert {take.role: take.take.replaced for take in planned.changed} == {"q": 8, "k": 2, "v": 2, "o": 8}
    assert plan(layer_origin([0, 1, 2, 3], [0]), from_base=True) == RepairPlan()


@pytest.mark.parametrize(
    ("q", "k", "counts"),
    [
        (range(12), [0, 2], (8, 2)),  # KV heads cut alone: 12:2
        (range(11), [0, 1, 2], (9, 3)),  # 11:3, and 11 // 3 is 3
        ([0, 1, 2, 3, 4, 5, 8, 9, 10, 11], [0, 2], (8, 2)),  # 5:1 where the parent has 4:1
    ],
)
def test_counts_that_cannot_stay_become_whole_groups_and_it_is_said(
    q: Any, k: list[int], counts: tuple[int, int]
) -> None:
    planned = only(plan(layer_origin(list(q), k)))
    assert planned.heads == counts
    assert f"{len(q)} query heads over" in planned.counts
    assert f"become {counts[0]} over {counts[1]}" in planned.counts
    wanted = take_of(planned, "q").take.parent
    assert pairs_right(wanted, k, 4)


def test_biases_follow_their_heads_and_wrong_ones_come_from_where_they_belong() -> None:
    child, parent = layer(8, 2, bias=True), layer(12, 3, bias=True)
    planned = only(plan(layer_origin([0, 1, 2, 3, 4, 5, 6, 7], [0, 2]), child=child, parent=parent, family="qwen2"))
    assert take_of(planned, "q", "bias").take == take_of(planned, "q").take
    # the bias was cut to its first heads while the weight was not
    wrong = VectorOrigin("q", "bias", "exact", wrong=(4, 5, 6, 7), found=(4, 5, 6, 7), positions=8)
    origin = layer_origin([0, 1, 2, 3, 8, 9, 10, 11], [0, 2], vectors=[wrong])
    planned = only(plan(origin, child=child, parent=parent, family="qwen2"))
    assert list(take_of(planned, "q", "bias").take.child) == [0, 1, 2, 3, *[NOWHERE] * 4]
    assert [(take.role, take.kind) for take in planned.changed] == [("q", "bias")]


def test_bias_that_was_not_cut_is_cut_now_from_the_childs_own_values() -> None:
    child = layer(8, 2, q=projection("q", 64, 96, 96), k=projection("k", 16, 96, 24), v=projection("v", 16, 96, 24))
    origin = layer_origin([0, 1, 2, 3, 8, 9, 10, 11], [0, 2])
    planned = only(plan(origin, child=child, parent=layer(12, 3, bias=True), family="qwen2"))
    assert list(take_of(planned, "q", "bias").take.child) == [0, 1, 2, 3, 8, 9, 10, 11]
    assert list(take_of(planned, "k", "bias").take.child) == [0, 2]


def test_bias_that_the_family_needs_and_the_child_lost_comes_from_the_parent() -> None:
    origin = layer_origin([0, 1, 2, 3, 8, 9, 10, 11], [0, 2])
    planned = only(plan(origin, parent=layer(12, 3, bias=True), family="qwen2"))
    assert {(take.role, take.kind, take.take.replaced) for take in planned.changed} == {
        ("q", "bias", 8), ("k", "bias", 2), ("v", "bias", 2),
    }  # fmt: skip
    assert plan(origin, parent=layer(12, 3, bias=True), family="llama") == RepairPlan()  # no llama needs one


def test_missing_o_comes_from_the_parent() -> None:
    origin = layer_origin([0, 1, 2, 3, 8, 9, 10, 11], [0, 2])
    origin = LayerOrigin(*(getattr(origin, name) if name != "o" else None for name in LayerOrigin.__slots__))
    planned = only(plan(origin, child=layer(8, 2, o=None)))
    assert [(take.role, list(take.take.parent)) for take in planned.changed] == [("o", [0, 1, 2, 3, 8, 9, 10, 11])]


def test_inner_order_of_a_kv_head_is_that_of_its_query_heads_from_the_parent() -> None:
    """A child whose rows inside a head stand in another order (rotary halves) gets parent blocks in that order."""
    order = (0, 4, 1, 5, 2, 6, 3, 7)
    names = [0, 1, 2, 3, 4, 5, 6, 7]
    origin = layer_origin(names, [0, 2])
    turned = {
        role: Heads(role, "exact", n, tuple(Origin("exact", (h,), order=order) for h in found))
        for role, n, found in (("q", 12, names), ("k", 3, [0, 2]))
    }
    origin = LayerOrigin(*(turned.get(name, getattr(origin, name)) for name in LayerOrigin.__slots__))
    planned = only(plan(origin))
    q, o = take_of(planned, "q").take, take_of(planned, "o").take
    assert dict(q.orders) == dict.fromkeys(range(4, 8), order)
    assert dict(o.orders) == {}  # v was not turned


def test_unknown_kv_heads_refuse_the_layer_with_one_sentence() -> None:
    found = plan(layer_origin([0, 1, 2, 3, 4, 5, 6, 7], [0, None], [0, 2], [8, 9, 10, 11, 0, 1, 2, 3]))
    assert not found.refused  # v tells what k does not
    found = plan(layer_origin([4, 5, 6, 7, 0, 1, 2, 3], [0, None], [0, None], [0, 1, 2, 3, 4, 5, 6, 7]))
    (refusal,) = found.refused
    assert refusal.layers == (0,)
    assert "match nothing in the parent" in refusal.sentence


@pytest.mark.parametrize(
    ("relation", "reason", "said"),
    [
        ("unrelated", "3 of 80 heads and channels are the parent's", "was not made from this parent"),
        ("swapped", "", "wrong way round"),
        ("not-compared", "the checkpoint and --base are the same file", "the same file"),
    ],
)
def test_parent_that_is_none_raises(relation: str, reason: str, said: str) -> None:
    with pytest.raises(CannotRepair, match=said):
        plan_repair(geometry(layer(8, 2)), geometry(layer(12, 3)), lineage(relation=relation, reason=reason))


# ---- MLP channels

KEPT = [1, 4, 9, 16, 25, 36]


def mlp_plan(gate: list[int] | None, up: list[int] | None, down: list[int] | None, **options: Any) -> RepairPlan:
    state = options.pop("down_state", "exact")
    origin = layer_origin([0, 1, 2, 3], [0], gate=gate, up=up, down=down, down_state=state)
    sizes = {
        "gate": projection("gate", len(gate or ()), 96),
        "up": projection("up", len(up or ()), 96),
        "down": projection("down", 96, len(down or ())),
    }
    return plan(origin, child=layer(4, 1, **sizes), **options)


FIRST = list(range(6))


@pytest.mark.parametrize("odd", ["gate", "up", "down"])
@pytest.mark.parametrize("wrong", [FIRST, list(reversed(KEPT)), [2, 3, 5, 7, 11, 13], list(range(8))])
def test_two_projections_that_agree_decide_about_the_third(odd: str, wrong: list[int]) -> None:
    names = {"gate": KEPT, "up": KEPT, "down": KEPT, odd: wrong}
    planned = only(mlp_plan(**names))
    assert [take.role for take in planned.changed] == [odd]
    assert result_of(take_of(planned, odd).take, wrong) == KEPT


def test_without_a_majority_the_one_that_is_no_first_cut_decides() -> None:
    other = [2, 3, 5, 7, 11, 13]
    planned = only(mlp_plan(FIRST, KEPT, [*FIRST[1:], 0]))
    assert list(take_of(planned, "gate").take.parent) == KEPT
    planned = only(mlp_plan(KEPT, other, FIRST))
    assert list(take_of(planned, "up").take.parent) == KEPT  # gate before up


def test_rewritten_down_comes_from_the_parent_where_gate_or_up_change_and_stays_where_not() -> None:
    assert mlp_plan(KEPT, KEPT, [NOWHERE] * 6, down_state="rewritten") == RepairPlan()
    planned = only(mlp_plan(KEPT, FIRST, [NOWHERE] * 6, down_state="rewritten"))
    assert (take_of(planned, "down").take.replaced, take_of(planned, "down").whole) == (6, "it is rewritten")


def test_rewritten_down_stays_where_only_a_bias_was_out_of_step() -> None:
    sizes = {
        "gate": projection("gate", 6, 96, 6),
        "up": projection("up", 6, 96),
        "down": projection("down", 96, 6),
    }
    wrong = VectorOrigin("gate", "bias", "exact", wrong=(0, 1), found=(0, 1), positions=6)
    origin = layer_origin(
        [0, 1, 2, 3], [0], gate=KEPT, up=KEPT, down=[NOWHERE] * 6, down_state="rewritten", vectors=[wrong]
    )
    parent = layer(12, 3, gate=projection("gate", 40, 96, 40))
    planned = only(plan(origin, child=layer(4, 1, **sizes), parent=parent))
    assert [(take.role, take.kind) for take in planned.changed] == [("gate", "bias")]


def test_channel_that_matches_nothing_anywhere_stays_where_it_is() -> None:
    odd = [1, 4, NOWHERE, 16, 25, 36]
    planned = only(mlp_plan(odd, odd, FIRST))
    assert list(take_of(planned, "gate").take.child) == FIRST
    assert take_of(planned, "down").take.child[2] == 2


# ---- any plan, any mistake


@st.composite
def mistakes(draw: st.DrawFn) -> tuple[LayerOrigin, int, list[int]]:
    """A layer that was cut right and then spoilt: (origin, the parent's group, the KV heads that were kept)."""
    n_kv = draw(st.integers(2, 6))
    group = draw(st.integers(2, 7).filter(lambda g: g != n_kv))
    kept = draw(st.lists(st.integers(0, n_kv - 1), min_size=1, max_size=n_kv, unique=True))
    size = draw(st.integers(1, group))
    everything = range(n_kv * group)
    right: list[int] = []
    for kv in kept:
        right += draw(
            st.lists(st.sampled_from(range(kv * group, (kv + 1) * group)), min_size=size, max_size=size, unique=True)
        )
    kind = draw(st.sampled_from(["first q", "any q", "first o", "any v", "shuffled q", "none"]))
    q, v, o = list(right), list(kept), None
    if kind == "first q":
        q = list(range(len(right)))
    elif kind == "any q":
        q = draw(st.lists(st.sampled_from(everything), min_size=len(right), max_size=len(right), unique=True))
    elif kind == "shuffled q":
        q = draw(st.permutations(right))
    elif kind == "first o":
        o = list(range(len(right)))
    elif kind == "any v":
        v = draw(st.lists(st.integers(0, n_kv - 1), min_size=len(kept), max_size=len(kept), unique=True))
    return layer_origin(q, kept, v, o, parent=(n_kv * group, n_kv)), group, kept


@settings(derandomize=True, deadline=None, max_examples=400)
@given(mistakes())
def test_any_plan_gives_every_kv_head_its_own_query_heads_and_keeps_what_it_can(
    case: tuple[LayerOrigin, int, list[int]],
) -> None:
    origin, group, _ = case
    found = plan(origin)
    assert found.refused == ()
    if not found.layers:
        assert origin.misread() == ()
        return
    (planned,) = found.layers
    stood = {role: [o.heads[0] for o in getattr(origin, role).origins] for role in "qkvo"}
    takes = {role: take_of(planned, role).take for role in "qkvo"}
    after = {role: result_of(takes[role], stood[role]) for role in "qkvo"}
    assert {role: list(takes[role].parent) for role in "qkvo"} == after
    assert after["k"] == after["v"]
    assert after["q"] == after["o"]
    assert pairs_right(after["q"], after["k"], group)  # type: ignore[arg-type]
    assert len(set(after["q"])) == len(after["q"])
    assert {role: len(after[role]) for role in "qkvo"} == {role: len(stood[role]) for role in "qkvo"}  # same counts
    for role in "qkvo":
        assert takes[role].replaced == len(set(after[role]) - set(stood[role]))  # nothing the child has is replaced


@settings(derandomize=True, deadline=None, max_examples=200)
@given(mistakes())
def test_a_repaired_layer_needs_no_repair(case: tuple[LayerOrigin, int, list[int]]) -> None:
    origin, _, _ = case
    found = plan(origin)
    if found.layers:
        takes = {role: list(take_of(found.layers[0], role).take.parent) for role in "qkvo"}
        parent = (origin.parent_n_q or 0, origin.parent_n_kv or 0)
        again = layer_origin(takes["q"], takes["k"], takes["v"], takes["o"], parent=parent)
        assert plan(again) == RepairPlan()
