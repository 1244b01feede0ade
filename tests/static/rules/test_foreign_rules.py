"""GQA606 and GQA607 on lineages made by hand: what is not the parent's, and layers in another place."""

from __future__ import annotations

import pytest
from harness import Case, Cases, Make, cases
from hypothesis import given, settings
from hypothesis import strategies as st
from lineages import beside, layer_of, lineage_of, mlp_of

from gqacheck.geometry.origins import LayerOrigin, Lineage
from gqacheck.rules.foreign import _strays
from gqacheck.testing.sketch import sketch_llama


def stack(*parents: int | None, n_parent: int = 6) -> Lineage:
    """Layers that came from these layers of the parent."""
    return lineage_of(*(layer_of(index=n, parent=parent) for n, parent in enumerate(parents)), n_parent=n_parent)


def from_layers(*parents: int | None, **options: object) -> Case:
    return beside(lineage=stack(*parents), **options)


def unmatched(role: str, index: int = 0) -> LayerOrigin:
    """A layer with one block of ``role`` that matches nothing."""
    return layer_of(index=index, **{role: [None, 0]})  # type: ignore[arg-type]


FIRES: Cases = {
    "GQA606": [
        (
            "two heads in two layers of three",
            lambda: beside(
                layer_of(index=0),
                layer_of([None, 4], [1], index=1),
                layer_of([0, None], [0], index=2),
                severity="warning",
                layers=[1, 2],
                says=["2 of 16 query heads match nothing in the parent's layer"],
            ),
        ),
        ("one of k", lambda: beside(unmatched("k"), says=["1 of 2 key heads matches nothing"])),
        ("one of v", lambda: beside(layer_of([0], [0, 1], v=[0, None]), says=["1 of 2 value heads"], count=1)),
        ("single columns of o", lambda: beside(layer_of([4, 5], [1], o=[4, None]), says=["1 of 2 o_proj blocks"])),
        ("a whole projection", lambda: beside(layer_of([0, 1], [0], v="unmatched"), says=["1 of 1 value head"])),
        ("k that was rewritten", lambda: beside(layer_of([0, 1], "rewritten", v=[0]), says=["3 of 3 key heads"])),
        ("channels", lambda: beside(layer_of(mlps=[mlp_of([1, -1, 3], [1, 2, 3])]), says=["1 of 3 gate channels"])),
        ("a whole gate", lambda: beside(layer_of(mlps=[mlp_of("unmatched", [1, 2])]), says=["96 of 96 gate"])),
        (
            "layers of another model",
            lambda: from_layers(0, None, 2, None, layers=[1, 3], says=["2 of 4 layers match no layer of the parent"]),
        ),
        (
            "whose heads are not counted again",
            lambda: beside(layer_of(), layer_of([None, None], [None], parent=None), count=1, says=["1 of 2 layers"]),
        ),
        ("one of them", lambda: from_layers(None, 1, says=["1 of 2 layers matches no layer"], count=1)),
    ],
    "GQA607": [
        (
            "two changed places",
            lambda: from_layers(
                0,
                2,
                1,
                3,
                severity="warning",
                layers=[1],
                count=1,
                says=["another order than in the parent: layer 1 came from parent layer 2"],
            ),
        ),
        (
            "the last one first",
            lambda: from_layers(5, 0, 1, 2, 3, 4, layers=[0], says=["layer 0 came from parent layer 5"]),
        ),
        ("sorted as names are", lambda: from_layers(0, 1, 3, 4, 2, 5, layers=[4], count=1)),
        (
            "repeated",
            lambda: from_layers(
                0, 1, 1, 2, severity="warning", layers=[1, 2], says=["2 layers came from parent layer 1: layers 1-2"]
            ),
        ),
        (
            "removed in order",
            lambda: from_layers(
                0, 1, 4, 5, severity="note", layers=[], says=["2 of the parent's 6 layers are not here: layers 2-3"]
            ),
        ),
        ("one removed", lambda: from_layers(0, 1, 2, 3, 5, severity="note", says=["1 of the parent's 6", "layer 4"])),
        (
            "the parent's own indices",
            lambda: Case(
                sketch_llama(n_layers=1),
                base=sketch_llama(n_layers=3),
                lineage=stack(1),
                says=["2 of the parent's 3 layers are not here: layers 0, 2"],
            ),
        ),
    ],
}
NEARLY: Cases = {
    "GQA606": [
        ("all of it the parent's", lambda: beside(layer_of([4, 6], [1]), layer_of())),
        ("o and down rewritten", lambda: beside(layer_of(o="rewritten", mlps=[mlp_of([1, 2], down="rewritten")]))),
        ("what was not compared", lambda: beside(layer_of(v="not-compared", mlps=[mlp_of("not-compared")]))),
        (
            "a layer that was left alone",
            lambda: beside(
                layer_of(index=0),
                layer_of(None, None, None, None, index=1, parent=None, mlps=[], not_compared=["linear attention"]),
            ),
        ),
    ],
    "GQA607": [
        ("every layer in its place", lambda: from_layers(0, 1, 2, 3, 4, 5)),
        ("one that matches nothing", lambda: from_layers(0, None, 2, 3, 4, 5)),
        ("one that matches nothing, and fewer", lambda: from_layers(0, None, 2)),
    ],
}


@pytest.mark.parametrize(("code", "make"), cases(FIRES))
def test_rule_on_its_fault_fires(code: str, make: Make) -> None:
    make().fires(code)


@pytest.mark.parametrize(("code", "make"), cases(NEARLY))
def test_rule_on_what_is_nearly_its_fault_is_silent(code: str, make: Make) -> None:
    make().silent(code)


def test_foreign_rows_are_counted_role_by_role_over_the_whole_checkpoint() -> None:
    found, _ = beside(*(layer_of([None, 4], [None], index=n, mlps=[mlp_of([0, -1])]) for n in range(3))).run("GQA606")
    messages = [finding.message for finding in found]
    assert len(messages) == 7
    assert "3 of 6 query heads match nothing in the parent's layer" in messages
    assert "3 of 3 key heads match nothing in the parent's layer" in messages
    assert "3 of 6 down channels match nothing in the parent's layer" in messages
    assert all(finding.layers == (0, 1, 2) for finding in found)


@settings(derandomize=True, deadline=None, max_examples=300)
@given(st.lists(st.integers(0, 7), max_size=7))
def test_layers_named_as_out_of_order_are_as_few_as_can_be(parents: list[int]) -> None:
    strays = _strays(parents)
    rest = [parent for n, parent in enumerate(parents) if n not in strays]
    assert rest == sorted(rest)
    longest = [0]
    for n, parent in enumerate(parents):
        longest.append(1 + max(longest[1 + m] if parents[m] <= parent else 0 for m in range(-1, n)) if n else 1)
    assert len(rest) == max(longest)
