"""Every planted cut is told head by head, and no correct one is ever accused."""

from __future__ import annotations

import tempfile
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from lineage_plans import CASES, Plan, cut, in_dtype, plans, trace

from gqacheck import check
from gqacheck.geometry.origins import Heads, Lineage, Misread
from gqacheck.testing.cuts import take_channels, take_heads, take_layers
from gqacheck.testing.sketch import Sketch, sketch_llama, sketch_qwen2

QUICK = settings(max_examples=CASES, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def traced(child: Sketch, parent: Sketch, **options: str) -> Lineage:
    with tempfile.TemporaryDirectory(prefix="gqacheck-") as folder:
        return trace(child, parent, Path(folder), **options)


def heads_of(heads: Heads | None) -> list[int | None]:
    assert heads is not None
    return [origin.head for origin in heads.origins]


@QUICK
@given(plans())
def test_lineage_of_a_paired_cut_is_the_plan(plan: Plan) -> None:
    parent = plan.parent.sketch()
    lineage = traced(cut(parent, plan), parent)
    assert lineage.relation in ("child", "identical"), lineage.reason
    assert lineage.method == "exact"
    assert [layer.parent for layer in lineage.layers] == [layer.parent for layer in plan.layers]
    for layer, planned in zip(lineage.layers, plan.layers, strict=True):
        assert heads_of(layer.q) == heads_of(layer.o) == list(planned.q)
        assert heads_of(layer.k) == heads_of(layer.v) == list(planned.kv)
        for channels in (layer.mlps[0].gate, layer.mlps[0].up, layer.mlps[0].down):
            assert channels is not None
            assert list(channels.parents) == list(planned.channels)
        assert layer.misread() == ()
        assert not any(vector.wrong for vector in layer.vectors)
        assert len(layer.vectors) == (3 if plan.parent.bias else 0)
        assert layer.not_compared == ()


@QUICK
@given(plans(), st.randoms(use_true_random=False))
def test_lineage_of_shuffled_query_heads_misreads_exactly_those_that_left_their_group(
    plan: Plan, random: object
) -> None:
    group = plan.parent.group
    layers = list(plan.layers)
    layer = layers[0]
    q = list(layer.q)
    random.shuffle(q)  # type: ignore[attr-defined]
    read = [layer.kv[position // (len(q) // len(layer.kv))] for position in range(len(q))]
    planted = tuple(
        Misread(position, head, head // group, reads)
        for position, (head, reads) in enumerate(zip(q, read, strict=True))
        if head // group != reads
    )
    layers[0] = type(layer)(layer.parent, tuple(q), layer.kv, layer.channels)
    parent = plan.parent.sketch()
    lineage = traced(cut(parent, Plan(plan.parent, tuple(layers), plan.dtype)), parent)
    assert lineage.layers[0].misread() == planted
    assert all(not other.misread() for other in lineage.layers[1:])


@QUICK
@given(plans(bias=True), st.randoms(use_true_random=False))
def test_lineage_of_biases_that_did_not_follow_names_each_position(plan: Plan, random: object) -> None:
    first = plan.layers[0]
    shuffled = list(first.q)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assume(len(plan.layers) == 1)
    parent = plan.parent.sketch()
    lineage = traced(cut(parent, plan, q_bias=shuffled), parent)
    (vector,) = (vector for vector in lineage.layers[0].vectors if vector.role == "q")
    wrong = [position for position, (a, b) in enumerate(zip(first.q, shuffled, strict=True)) if a != b]
    assert list(vector.wrong) == wrong
    assert list(vector.found) == [shuffled[position] for position in wrong]


def twelve_by_three(**options: object) -> Sketch:
    return sketch_llama(n_layers=3, n_q_heads=12, n_kv_heads=3, seed=5, **options)  # type: ignore[arg-type]


def test_lineage_of_o_columns_that_were_not_reordered_keeps_their_own_origin() -> None:
    parent = twelve_by_three()
    child = parent.copy()
    take_heads(child, 1, q=range(4, 12), kv=[1, 2], o=range(8))
    layer = traced(child, parent).layers[1]
    assert heads_of(layer.q) == list(range(4, 12))
    assert heads_of(layer.o) == list(range(8))
    assert layer.misread() == ()


@pytest.mark.parametrize("container", ["module", "legacy", "folder"])
def test_lineage_is_the_same_from_every_container(container: str) -> None:
    parent = twelve_by_three()
    child = parent.copy()
    take_heads(child, 2, q=[8, 9, 10, 11, 0, 1, 2, 3], kv=[2, 0])
    layer = traced(child, parent, container=container).layers[2]
    assert heads_of(layer.q) == [8, 9, 10, 11, 0, 1, 2, 3]
    assert heads_of(layer.k) == [2, 0]


def test_lineage_of_layers_that_moved_or_stand_twice_names_each_parent() -> None:
    parent = twelve_by_three()
    child = parent.copy()
    take_layers(child, [2, 0, 0, 1])
    assert [layer.parent for layer in traced(child, parent).layers] == [2, 0, 0, 1]


def test_lineage_of_the_wrong_way_round_is_swapped() -> None:
    parent = twelve_by_three()
    child = parent.copy()
    for index in range(3):
        take_heads(child, index, q=range(8), kv=[0, 1])
    lineage = traced(parent, child)
    assert lineage.relation == "swapped"
    assert lineage.layers


def test_lineage_of_another_model_is_unrelated_where_likeness_can_be_measured() -> None:
    lineage = traced(twelve_by_three(), sketch_llama(n_layers=3, seed=6))
    if find_spec("numpy"):
        assert lineage.relation == "unrelated"
    else:  # no bit in common may as well be a fine-tuned child: that needs cosines
        assert lineage.relation == "not-compared"
        assert "gqacheck[lineage]" in lineage.reason


def test_lineage_of_an_untouched_copy_is_identical() -> None:
    parent = twelve_by_three()
    lineage = traced(parent.copy(), parent)
    assert lineage.relation == "identical"


def test_lineage_of_a_file_beside_itself_is_not_compared(tmp_path: Path) -> None:
    path = twelve_by_three().write_module(tmp_path / "model.bin")
    report = check(path, base=path)
    assert report.lineage is not None
    assert report.lineage.relation == "not-compared"
    assert "same file" in report.lineage.reason


def test_lineage_of_another_head_dim_is_not_compared() -> None:
    other = sketch_llama(n_layers=3, n_q_heads=24, n_kv_heads=3, head_dim=4, seed=5)
    with tempfile.TemporaryDirectory(prefix="gqacheck-") as folder:
        paths = twelve_by_three().write_folder(Path(folder) / "a"), other.write_folder(Path(folder) / "b")
        lineage = check(paths[0], base=paths[1]).lineage
    assert lineage is not None
    assert lineage.relation == "not-compared"
    assert "8 rows here and 4 in the parent" in lineage.reason


def test_lineage_of_a_child_of_fewer_residual_columns_is_told_by_the_embedding() -> None:
    from gqacheck.testing.cuts import picked

    parent = twelve_by_three()
    child = parent.copy()
    take_heads(child, 0, q=[4, 5, 6, 7], kv=[1])
    kept = [n for n in range(96) if n % 3]
    for name, value in child.tensors.items():
        if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight", "gate_proj.weight", "up_proj.weight")):
            child.tensors[name] = picked(value, columns=kept)
        elif name.endswith(("o_proj.weight", "down_proj.weight", "norm.weight")):
            child.tensors[name] = picked(value, rows=kept)
        elif "embed" in name or "lm_head" in name:
            child.tensors[name] = picked(value, columns=kept)
    child.config |= {"hidden_size": len(kept), "head_dim": 8}
    lineage = traced(child, parent)
    assert lineage.relation == "child"
    assert list(lineage.kept_hidden or ()) == kept
    assert heads_of(lineage.layers[0].q) == [4, 5, 6, 7]
    assert heads_of(lineage.layers[0].o) == [4, 5, 6, 7]


def test_lineage_of_equal_parent_heads_accuses_nobody() -> None:
    parent = twelve_by_three()
    take_heads(parent, 0, q=[0, 1, 2, 3] * 3, kv=[0, 1, 2])
    child = parent.copy()
    take_heads(child, 0, q=[4, 5, 6, 7, 8, 9, 10, 11], kv=[1, 2])
    layer = traced(child, parent).layers[0]
    assert layer.q is not None
    assert all(len(origin.heads) == 3 for origin in layer.q.origins)
    assert layer.misread() == ()


def test_lineage_of_rows_of_two_heads_in_one_is_mixed() -> None:
    from gqacheck.testing.cuts import picked

    parent = twelve_by_three()
    child = parent.copy()
    name = "model.layers.1.self_attn.q_proj.weight"
    child.tensors[name] = picked(parent.tensors[name], rows=[4, 5, 6, 7, 8, 9, 10, 11, *range(16, 96), *range(8)])
    layer = traced(child, parent).layers[1]
    assert layer.q is not None
    assert layer.q.origins[0].how == "mixed"
    assert set(layer.q.origins[0].heads) == {0, 1}


def test_lineage_of_rows_reordered_inside_a_head_says_the_order() -> None:
    from gqacheck.testing.cuts import picked

    parent = twelve_by_three()
    child = parent.copy()
    interleaved = [0, 4, 1, 5, 2, 6, 3, 7]
    for name, n in (("q_proj", 12), ("k_proj", 3)):
        full = f"model.layers.0.self_attn.{name}.weight"
        rows = [head * 8 + line for head in range(n) for line in interleaved]
        child.tensors[full] = picked(parent.tensors[full], rows=rows)
    layer = traced(child, parent).layers[0]
    assert layer.q is not None
    assert layer.k is not None
    assert {origin.order for origin in (*layer.q.origins, *layer.k.origins)} == {tuple(interleaved)}


def test_lineage_of_channels_that_did_not_follow_keeps_each_projection_s_own() -> None:
    parent = twelve_by_three()
    child = parent.copy()
    take_channels(child, 1, gate=range(10, 50), up=range(40))
    mlp = traced(child, parent).layers[1].mlps[0]
    assert mlp.gate is not None
    assert mlp.up is not None
    assert mlp.down is not None
    assert list(mlp.gate.parents) == list(mlp.down.parents) == list(range(10, 50))
    assert list(mlp.up.parents) == list(range(40))


def test_lineage_reads_a_few_per_cent_of_a_wide_model() -> None:
    parent = sketch_llama(n_layers=1, hidden_size=2048, n_q_heads=12, n_kv_heads=3, intermediate_size=300, seed=1)
    child = parent.copy()
    take_heads(child, 0, q=[4, 5, 6, 7], kv=[1])
    lineage = traced(child, parent)
    weights = sum(len(t.dense()) for s in (parent, child) for t in s.tensors.values())
    assert lineage.relation == "child"
    assert lineage.bytes_read < 0.06 * weights


def test_lineage_of_a_qwen2_child_in_another_dtype_follows_its_biases() -> None:
    parent = sketch_qwen2(n_layers=2, seed=9, dtype="float32")
    child = parent.copy()
    take_heads(child, 1, q=[*range(7, 14), *range(21, 28)], kv=[1, 3], k_bias=[0, 1])
    layer = traced(in_dtype(child, "bfloat16"), parent).layers[1]
    wrong = {vector.role: vector for vector in layer.vectors}
    assert wrong["k"].wrong == (0, 1)
    assert wrong["k"].found == (0, 1)
    assert wrong["q"].wrong == wrong["v"].wrong == ()
