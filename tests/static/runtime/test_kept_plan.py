"""From a lineage to the plan of what stays in the parent: what is missing, what is not known, what is said of it."""

from __future__ import annotations

from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gqacheck.formats import open_checkpoint
from gqacheck.geometry.facts import Geometry
from gqacheck.geometry.measure import measure
from gqacheck.geometry.origins import NOWHERE, Channels, Heads, LayerOrigin, Lineage, MlpOrigin, Origin
from gqacheck.runtime.kept import KeptLayer, kept_of
from gqacheck.testing.sketch import sketch_llama

N_Q, N_KV, WIDTH = 12, 3, 112


@pytest.fixture(scope="module")
def geometry(tmp_path_factory: pytest.TempPathFactory) -> Geometry:
    """A parent of four layers, 12:3."""
    sketch = sketch_llama(n_layers=4, n_q_heads=N_Q, n_kv_heads=N_KV, intermediate_size=WIDTH)
    return measure(open_checkpoint(str(sketch.write_module(tmp_path_factory.mktemp("kept") / "parent.bin"))))


def heads(role: str, entries: list[int | tuple[int, ...] | None], state: str = "exact") -> Heads:
    """One projection, head by head: a number, several for equal heads, None for one that matches nothing."""
    origins = tuple(
        Origin("unmatched") if entry is None else Origin("exact", entry if isinstance(entry, tuple) else (entry,))
        for entry in entries
    )
    return Heads(role, state, N_Q if role in "qo" else N_KV, origins)  # type: ignore[arg-type]


def channels(role: str, entries: list[int], state: str = "exact") -> Channels:
    return Channels(role, state, WIDTH, array("i", entries))  # type: ignore[arg-type]


def layer(
    index: int,
    parent: int | None,
    q: Heads | None = None,
    o: Heads | None = None,
    mlps: tuple[MlpOrigin, ...] = (),
    n_q: int | None = None,
) -> LayerOrigin:
    count = n_q or (len(q.origins) if q is not None and q.origins else N_Q)
    return LayerOrigin(index, parent, count, N_KV, N_Q, N_KV, q=q, o=o, mlps=mlps)


def whole(index: int, parent: int | None = None) -> LayerOrigin:
    every = list(range(WIDTH))
    mlp = MlpOrigin(channels("gate", every), channels("up", every), channels("down", every))
    return layer(index, index if parent is None else parent, heads("q", list(range(N_Q))), mlps=(mlp,))


def plan(geometry: Geometry, *origins: LayerOrigin, kept_hidden: list[int] | None = None):
    return kept_of(Lineage("child", layers=origins, n_parent_layers=4, kept_hidden=kept_hidden), geometry, geometry)


def test_plan_of_an_identical_pair_is_whole(geometry: Geometry) -> None:
    kept = plan(geometry, *(whole(index) for index in range(4)))
    assert kept.whole
    assert kept.layers == (KeptLayer(),) * 4
    assert (kept.notes, kept.lacking, kept.hidden) == ((), False, None)


def test_missing_heads_are_those_that_are_no_q_origin(geometry: Geometry) -> None:
    q = heads("q", [8, 9, 1, 0])
    kept = plan(geometry, layer(0, 0, q, heads("o", [0, 1, 2, 3])), *(whole(index) for index in (1, 2, 3)))
    assert kept.layers[0] == KeptLayer(heads=(0, 1, 8, 9))
    assert not kept.whole
    assert not kept.notes


def test_heads_are_told_by_o_where_q_was_rewritten(geometry: Geometry) -> None:
    q = heads("q", [None] * 4, "rewritten")
    kept = plan(geometry, layer(0, 0, q, heads("o", [0, 1, 4, 5])), *map(whole, (1, 2, 3)))
    assert kept.layers[0] == KeptLayer(heads=(0, 1, 4, 5))
    assert not kept.notes


def test_head_that_q_does_not_tell_is_told_by_its_o_columns(geometry: Geometry) -> None:
    q, o = heads("q", [0, None, 4, 5]), heads("o", [0, 1, 4, 5])
    assert plan(geometry, layer(0, 0, q, o), *map(whole, (1, 2, 3))).layers[0] == KeptLayer(heads=(0, 1, 4, 5))


def test_equal_heads_are_told_apart_by_o_and_never_counted_twice(geometry: Geometry) -> None:
    q, o = heads("q", [(2, 3), (2, 3), 5, (0, 1)]), heads("o", [3, 2, 5, 1])
    kept = plan(geometry, layer(0, 0, q, o), *map(whole, (1, 2, 3)))
    assert kept.layers[0] == KeptLayer(heads=(1, 2, 3, 5))
    without = plan(geometry, layer(0, 0, q), *map(whole, (1, 2, 3)))
    assert without.layers[0] == KeptLayer(heads=(0, 2, 3, 5))
    assert not without.notes


def test_equal_head_goes_to_the_place_that_has_no_other_choice(geometry: Geometry) -> None:
    q, o = heads("q", [(2, 3), (2, 3)]), heads("o", [None, 2])
    kept = plan(geometry, layer(0, 0, q, o), *map(whole, (1, 2, 3)))
    assert (kept.layers[0], kept.notes) == (KeptLayer(heads=(2, 3)), ())


def test_head_that_stands_twice_is_a_note(geometry: Geometry) -> None:
    kept = plan(geometry, layer(0, 0, heads("q", [0, 1, 1, 4])), *map(whole, (1, 2, 3)))
    assert kept.layers[0] == KeptLayer(heads=(0, 1, 4))
    assert kept.notes == ("layer 0: parent query heads 1 stand more than once in the child",)
    assert kept.lacking


def test_unmatched_heads_of_a_child_with_as_many_heads_mask_nothing(geometry: Geometry) -> None:
    q = heads("q", [*range(10), None, None])
    assert plan(geometry, layer(0, 0, q), *map(whole, (1, 2, 3))).whole


def test_unmatched_heads_of_a_cut_child_mask_all_that_were_not_found_and_say_so(geometry: Geometry) -> None:
    q = heads("q", [0, 1, None, 5])
    kept = plan(geometry, layer(0, 0, q), layer(1, 1, q), *map(whole, (2, 3)))
    assert kept.layers[0] == kept.layers[1] == KeptLayer(heads=(0, 1, 5))
    assert kept.notes == (
        "layers 0-1: 1 of 4 query heads match none of the parent's, so all 9 that were not found are masked",
    )
    assert not kept.lacking


@pytest.mark.parametrize("state", ["unmatched", "not-compared", "exact"])
def test_heads_that_nothing_tells_are_left_alone_and_it_is_said(geometry: Geometry, state: str) -> None:
    q = heads("q", [None] * 4, state)
    kept = plan(geometry, layer(0, 0, q), *map(whole, (1, 2, 3)))
    assert kept.layers[0] == KeptLayer()
    assert kept.lacking
    assert kept.notes[0].startswith("layer 0: its query heads")


def test_heads_that_nothing_tells_are_no_note_where_none_is_missing(geometry: Geometry) -> None:
    kept = plan(geometry, layer(0, 0, heads("q", [None] * 12, "unmatched")), *map(whole, (1, 2, 3)))
    assert (kept.layers[0], kept.notes) == (KeptLayer(), ())


def test_channels_are_told_by_down_then_up_then_gate(geometry: Geometry) -> None:
    every = list(range(WIDTH))
    down, up, gate = every[:100], every[10:110], every[12:112]

    def kept_with(**states: str) -> tuple[int, ...] | None:
        parts = {"down": down, "up": up, "gate": gate}
        mlp = MlpOrigin(**{role: channels(role, part, states.get(role, "exact")) for role, part in parts.items()})
        found = plan(geometry, layer(0, 0, heads("q", list(range(12))), mlps=(mlp,)), *map(whole, (1, 2, 3)))
        return found.layers[0].channels if found.layers[0] else None

    assert kept_with() == tuple(down)
    assert kept_with(down="rewritten") == tuple(up)
    assert kept_with(down="rewritten", up="unmatched") == tuple(gate)


def test_channels_are_told_by_up_where_down_was_rewritten_in_part(geometry: Geometry) -> None:
    up = list(range(50))
    mlp = MlpOrigin(up=channels("up", up), down=channels("down", [0, 1, *[NOWHERE] * 48]))
    kept = plan(geometry, layer(0, 0, heads("q", list(range(12))), mlps=(mlp,)), *map(whole, (1, 2, 3)))
    assert kept.layers[0] == KeptLayer(channels=tuple(up))
    assert not kept.notes


def test_channels_that_nothing_tells_are_a_note_where_some_are_missing(geometry: Geometry) -> None:
    mlp = MlpOrigin(
        up=channels("up", [NOWHERE] * 100, "unmatched"), down=channels("down", [NOWHERE] * 100, "unmatched")
    )
    kept = plan(geometry, layer(0, 0, heads("q", list(range(12))), mlps=(mlp,)), *map(whole, (1, 2, 3)))
    assert kept.layers[0] == KeptLayer()
    assert kept.lacking
    assert kept.notes == ("layer 0: the channels of its MLP match none of the parent's, so none were masked",)


def test_expert_channels_go_to_the_parents_expert(geometry: Geometry) -> None:
    part = channels("down", list(range(60)))
    mlps = (
        MlpOrigin(down=part, expert=0, parent_expert=2),
        MlpOrigin(down=part, expert="shared", parent_expert="shared"),
    )
    kept = plan(geometry, layer(0, 0, heads("q", list(range(12))), mlps=mlps), *map(whole, (1, 2, 3)))
    assert kept.layers[0] == KeptLayer(experts={2: tuple(range(60)), "shared": tuple(range(60))})


def test_layer_that_is_nobodys_parent_is_gone(geometry: Geometry) -> None:
    kept = plan(geometry, whole(0), whole(1, 2), whole(2, 3))
    assert kept.layers == (KeptLayer(), None, KeptLayer(), KeptLayer())
    assert not kept.notes


def test_layer_that_stands_twice_keeps_what_either_copy_has_and_is_a_note(geometry: Geometry) -> None:
    first, second = layer(1, 1, heads("q", [0, 1, 4, 5])), layer(2, 1, heads("q", [0, 1, 8, 9]))
    kept = plan(geometry, whole(0), first, second, whole(3))
    assert kept.layers == (KeptLayer(), KeptLayer(heads=(0, 1, 4, 5, 8, 9)), None, KeptLayer())
    assert kept.lacking
    assert kept.notes == ("parent layers 1 stand more than once in the child, and once in the reference",)


def test_layers_in_another_order_are_a_note(geometry: Geometry) -> None:
    kept = plan(geometry, whole(0), whole(1, 2), whole(2, 1), whole(3))
    assert kept.layers == (KeptLayer(),) * 4
    assert kept.lacking
    assert "another order" in kept.notes[0]


def test_foreign_layer_stands_for_the_one_that_is_missing(geometry: Geometry) -> None:
    kept = plan(geometry, whole(0), layer(1, None), whole(2), whole(3))
    assert kept.layers == (KeptLayer(),) * 4
    assert kept.lacking
    shorter = plan(geometry, whole(0), layer(1, None), whole(2, 3))
    assert shorter.layers == (KeptLayer(), None, None, KeptLayer())


def test_hidden_columns_are_passed_on(geometry: Geometry) -> None:
    kept = plan(geometry, *map(whole, range(4)), kept_hidden=[0, 2, 3])
    assert kept.hidden == (0, 2, 3)
    assert not kept.whole


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(st.data())
def test_kept_heads_of_any_cut_are_what_was_cut_to(geometry: Geometry, data: st.DataObject) -> None:
    stay = data.draw(st.lists(st.integers(0, N_Q - 1), min_size=1, max_size=N_Q, unique=True))
    o = data.draw(st.sampled_from([None, heads("o", list(stay)), heads("o", [None] * len(stay), "rewritten")]))
    kept = plan(geometry, layer(0, 0, heads("q", list(stay)), o), *map(whole, (1, 2, 3)))
    assert kept.layers[0] == KeptLayer(heads=None if len(stay) == N_Q else tuple(sorted(stay)))
    assert not kept.notes
