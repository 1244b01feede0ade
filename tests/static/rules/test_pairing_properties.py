"""No paired cut is ever accused, and every planted fault is found where it was planted: random lineages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from harness import all_rules, find_rule, make_subject
from hypothesis import given, settings
from hypothesis import strategies as st
from lineages import layer_of, lineage_of, mlp_of

from gqacheck.claims import pairing_claim
from gqacheck.geometry.facts import Subject
from gqacheck.geometry.origins import LayerOrigin, Origin
from gqacheck.lineage.cause import layer_cause
from gqacheck.result import ClaimState
from gqacheck.rules.origins import all_read_their_own, misread
from gqacheck.rules.rule import Finding, Quantity
from gqacheck.rules.run import run_rules
from gqacheck.testing.sketch import sketch_llama

RATIOS = ((12, 3), (28, 4), (32, 8), (10, 2), (5, 5), (6, 1))
PAIRING = tuple(rule for rule in all_rules() if rule.claim == "pairing")
ACCUSING = ("GQA601", "GQA602", "GQA603", "GQA604", "GQA605", "GQA608")
SUBJECTS = [make_subject(sketch_llama(n_layers=n)) for n in range(1, 4)]
many = settings(derandomize=True, deadline=None, max_examples=100)


def with_layers(*layers: LayerOrigin) -> Subject:
    """A checkpoint of as many layers, with this lineage."""
    return replace(SUBJECTS[len(layers) - 1], lineage=lineage_of(*layers))


def judged(subject: Subject) -> tuple[Finding, ...]:
    return run_rules(subject, PAIRING)[0]


def accused(subject: Subject) -> list[str]:
    return [finding.code for finding in judged(subject) if finding.code in ACCUSING]


@st.composite
def paired(draw: st.DrawFn, *, ratio: tuple[int, int] | None = None, index: int = 0) -> LayerOrigin:
    """A layer cut as it should be: some KV heads in any order, of each as many of its query heads, in any order."""
    n_q, n_kv = ratio or draw(st.sampled_from(RATIOS))
    group = n_q // n_kv
    kept = draw(st.lists(st.integers(0, n_kv - 1), min_size=1, max_size=n_kv, unique=True))
    n = draw(st.integers(1, group))
    q = [kv * group + head for kv in kept for head in draw(st.permutations(range(group)))[:n]]
    channels = draw(st.lists(st.integers(0, 11), min_size=1, max_size=6, unique=True))
    return layer_of(q, kept, index=index, ratio=(n_q, n_kv), mlps=[mlp_of(channels, n_parent=12)])


@st.composite
def models(draw: st.DrawFn) -> tuple[LayerOrigin, ...]:
    ratio = draw(st.sampled_from(RATIOS))
    return tuple(draw(paired(ratio=ratio, index=index)) for index in range(draw(st.integers(1, 3))))


def blurred(layer: LayerOrigin, choose: Callable[[st.SearchStrategy[Any]], Any]) -> LayerOrigin:
    """The same with more candidates beside the true one, which need not stand first: heads equal in the parent."""

    def blur(origin: Origin, n_parent: int) -> Origin:
        others = choose(st.lists(st.integers(0, n_parent - 1), max_size=3))
        return replace(origin, heads=tuple(choose(st.permutations(sorted({*origin.heads, *others})))))

    parts = {}
    for role in ("q", "k", "v", "o"):
        heads = getattr(layer, role)
        parts[role] = replace(heads, origins=tuple(blur(origin, heads.n_parent) for origin in heads.origins))
    return replace(layer, **parts)


@many
@given(models())
def test_paired_cut_is_never_accused_and_passes(layers: tuple[LayerOrigin, ...]) -> None:
    subject = with_layers(*layers)
    findings, skipped = run_rules(subject, PAIRING)
    assert [finding.code for finding in findings] == []
    assert all(all_read_their_own(layer) for layer in layers)
    assert all(layer_cause(layer) == "" for layer in layers)
    assert pairing_claim(subject, findings, skipped).state is ClaimState.PASS


@many
@given(models(), st.data())
def test_paired_cut_of_a_parent_with_equal_heads_is_never_accused(
    layers: tuple[LayerOrigin, ...], data: st.DataObject
) -> None:
    assert accused(with_layers(*(blurred(layer, data.draw) for layer in layers))) == []


@many
@given(models(), st.data())
def test_paired_cut_with_parts_that_are_not_told_is_never_accused(
    layers: tuple[LayerOrigin, ...], data: st.DataObject
) -> None:
    index = data.draw(st.integers(0, len(layers) - 1))
    role = data.draw(st.sampled_from(["q", "k", "v", "o"]))
    heads = getattr(layers[index], role)
    if data.draw(st.booleans()):
        state = data.draw(st.sampled_from(["rewritten", "unmatched", "not-compared"]))
        changed = replace(heads, state=state)
    else:
        lost = data.draw(st.sets(st.integers(0, len(heads.origins) - 1), min_size=1))
        origins = [Origin("unmatched") if n in lost else origin for n, origin in enumerate(heads.origins)]
        changed = replace(heads, origins=tuple(origins))
    layers = tuple(replace(layer, **{role: changed}) if layer.index == index else layer for layer in layers)
    subject = with_layers(*layers)
    assert accused(subject) == []
    passed = pairing_claim(subject, *run_rules(subject, PAIRING)).state is ClaimState.PASS
    assert passed == (role == "o" and changed.state == "rewritten")


@st.composite
def planted(draw: st.DrawFn, role: str) -> tuple[tuple[LayerOrigin, ...], int, set[int]]:
    """A right model with other heads at some positions of one role in one layer: the layers, which one, where."""
    layers = draw(models())
    index = draw(st.integers(0, len(layers) - 1))
    layer = layers[index]
    heads = getattr(layer, role)
    where = draw(st.sets(st.integers(0, len(heads.origins) - 1), min_size=1))
    origins = list(heads.origins)
    for position in where:
        right = origins[position].head
        assert right is not None
        wrong = [n for n in range(heads.n_parent) if n != right]
        if role == "q":
            wrong = [n for n in wrong if layer.own_kv(n) != layer.own_kv(right)]
        if not wrong:
            return layers, index, set()
        origins[position] = Origin("exact", (draw(st.sampled_from(wrong)),))
    parts = {role: replace(heads, origins=tuple(origins))}
    if role == "q":  # o goes with q, so that only the reading of KV heads is wrong
        assert layer.o is not None
        parts["o"] = replace(layer.o, origins=tuple(origins))
    changed = replace(layer, **parts)
    return tuple(changed if n == index else layer for n, layer in enumerate(layers)), index, where


@many
@given(planted("q"))
def test_regrouped_query_heads_are_found_exactly_where_they_were_planted(
    case: tuple[Sequence[LayerOrigin], int, set[int]],
) -> None:
    layers, index, where = case
    findings = [finding for finding in judged(with_layers(*layers)) if finding.code in ACCUSING]
    assert {head.position for head in misread(layers[index])} == where
    assert [finding.layers for finding in findings if finding.code == "GQA601"] == ([(index,)] if where else [])
    assert {finding.code for finding in findings} <= {"GQA601", "GQA608"}
    for finding in findings[:1] if where else ():
        assert finding.actual == Quantity(len(where), "query heads beside another KV head")
        named = int(finding.message.split(": query head ")[1].split()[0])
        assert named in where


@pytest.mark.parametrize(("role", "code"), [("o", "GQA602"), ("v", "GQA603")])
@many
@given(data=st.data())
def test_misplaced_o_and_v_are_found_exactly_where_they_were_planted(role: str, code: str, data: st.DataObject) -> None:
    layers, index, where = data.draw(planted(role))
    findings = [finding for finding in judged(with_layers(*layers)) if finding.code in ACCUSING]
    assert [finding.code for finding in findings] == ([code] if where else [])
    for finding in findings:
        assert finding.layers == (index,)
        assert finding.actual is not None
        assert finding.actual.value == len(where)


@many
@given(models(), st.data())
def test_misplaced_channels_are_found_exactly_where_they_were_planted(
    layers: tuple[LayerOrigin, ...], data: st.DataObject
) -> None:
    index = data.draw(st.integers(0, len(layers) - 1))
    (mlp,) = layers[index].mlps
    role = data.draw(st.sampled_from(["gate", "up", "down"]))
    channels = getattr(mlp, role)
    where = data.draw(st.sets(st.integers(0, len(channels.parents) - 1), min_size=1))
    parents = channels.parents[:]
    for position in where:
        parents[position] = (parents[position] + data.draw(st.integers(1, 11))) % 12
    changed = replace(layers[index], mlps=(replace(mlp, **{role: replace(channels, parents=parents)}),))
    findings = judged(with_layers(*(changed if n == index else layer for n, layer in enumerate(layers))))
    assert [(finding.code, finding.layers) for finding in findings] == [("GQA604", (index,))]
    assert findings[0].actual == Quantity(len(where), "channels of different origin")


@settings(derandomize=True, deadline=None, max_examples=500)
@given(
    st.sets(st.integers(0, 5), min_size=1, max_size=3),
    st.sets(st.integers(0, 5), min_size=1, max_size=3),
    st.sets(st.integers(0, 2), min_size=1, max_size=2),
    st.sets(st.integers(0, 2), min_size=1, max_size=2),
)
def test_one_head_with_equal_heads_is_accused_exactly_when_no_reading_fits(
    q: set[int], o: set[int], k: set[int], v: set[int]
) -> None:
    layer = layer_of([tuple(q)], [tuple(k)], v=[tuple(v)], o=[tuple(o)], ratio=(6, 3))
    fits = any(head // 2 in k & v for head in q & o)
    assert bool(set(accused(with_layers(layer))) & {"GQA601", "GQA602", "GQA603"}) == (not fits)


def test_the_properties_are_about_the_rules_that_accuse() -> None:
    assert {rule.code for rule in PAIRING} - set(ACCUSING) == {"GQA504", "GQA606", "GQA607"}
    assert find_rule("GQA606").severity == find_rule("GQA607").severity == "warning"
