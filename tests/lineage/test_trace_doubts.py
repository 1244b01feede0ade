"""Weights that mislead: sparse, masked, pooled, half foreign, exchanged. None accused wrongly, none passed unseen."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gqacheck import check
from gqacheck.lineage.cast import cast
from gqacheck.result import CheckpointReport
from gqacheck.testing.cuts import take_channels, take_heads
from gqacheck.testing.sketch import Sketch, sketch_llama
from gqacheck.testing.writers import tensor

Edit = Callable[[Any], Any]


def parent_sketch(**options: Any) -> Sketch:
    return sketch_llama(n_layers=2, n_q_heads=12, n_kv_heads=3, hidden_size=96, head_dim=8, seed=11, **options)


def edited(sketch: Sketch, name: str, edit: Edit) -> None:
    """Change one tensor in place, as float64 values."""
    old = sketch.tensors[name]
    values = np.frombuffer(cast(old.dense(), old.storage.dtype, "float64"), dtype="<f8").reshape(old.shape).copy()
    data = cast(np.ascontiguousarray(edit(values)).astype("<f8").tobytes(), "float64", old.storage.dtype)
    sketch.tensors[name] = tensor(old.shape, old.storage.dtype, data, parameter=old.parameter)


def projections(sketch: Sketch) -> list[str]:
    return [name for name in sketch.tensors if "_proj.weight" in name]


def judged(child: Sketch, parent: Sketch) -> CheckpointReport:
    with tempfile.TemporaryDirectory(prefix="gqacheck-") as folder:
        path = child.write_folder(Path(folder) / "child")
        return check(path, base=parent.write_folder(Path(folder) / "parent"))


def errors(report: CheckpointReport) -> set[str]:
    return {finding.code for finding in report.findings if finding.severity == "error"}


def pairing(report: CheckpointReport) -> str:
    return next(claim.state.value for claim in report.claims if claim.name == "pairing")


def sparse(share: float) -> Edit:
    def edit(values: Any) -> Any:
        line = np.quantile(np.abs(values), share)
        return np.where(np.abs(values) < line, 0.0, values)

    return edit


@pytest.mark.parametrize(("before", "after"), [(0.5, 0.55), (0.7, 0.75), (0.8, 0.85)])
def test_lineage_of_a_sparser_child_of_a_sparse_parent_accuses_nothing(before: float, after: float) -> None:
    parent = parent_sketch()
    child = parent.copy()
    for name in projections(parent):
        edited(parent, name, sparse(before))
        edited(child, name, sparse(after))
    assert errors(judged(child, parent)) == set()


def zero_rows(rows: slice) -> Edit:
    def edit(values: Any) -> Any:
        values[rows] = 0.0
        return values

    return edit


def zero_columns(columns: slice) -> Edit:
    def edit(values: Any) -> Any:
        values[:, columns] = 0.0
        return values

    return edit


ATTENTION, MLP = "model.layers.1.self_attn", "model.layers.1.mlp"


def test_lineage_of_a_channel_masked_beside_dead_ones_accuses_nothing() -> None:
    parent = parent_sketch()
    for channel in (3, 9):
        edited(parent, f"{MLP}.down_proj.weight", zero_columns(slice(channel, channel + 1)))
    child = parent.copy()
    edited(child, f"{MLP}.down_proj.weight", zero_columns(slice(50, 51)))
    assert errors(judged(child, parent)) == set()


@pytest.mark.parametrize("parts", [("q",), ("o",), ("q", "o")])
def test_lineage_of_a_second_masked_head_accuses_nothing(parts: tuple[str, ...]) -> None:
    parent = parent_sketch()

    def mask(sketch: Sketch, head: int) -> None:
        if "q" in parts:
            edited(sketch, f"{ATTENTION}.q_proj.weight", zero_rows(slice(8 * head, 8 * head + 8)))
        if "o" in parts:
            edited(sketch, f"{ATTENTION}.o_proj.weight", zero_columns(slice(8 * head, 8 * head + 8)))

    mask(parent, 3)
    child = parent.copy()
    mask(child, 7)
    assert errors(judged(child, parent)) == set()


def test_lineage_of_a_masked_head_among_permuted_groups_accuses_nothing() -> None:
    parent = parent_sketch()
    child = parent.copy()
    take_heads(child, 1, q=[4, 5, 6, 7, 0, 1, 2, 3, 8, 9, 10, 11], kv=[1, 0, 2])
    edited(child, f"{ATTENTION}.q_proj.weight", zero_rows(slice(16, 24)))
    edited(child, f"{ATTENTION}.o_proj.weight", zero_columns(slice(16, 24)))
    report = judged(child, parent)
    assert errors(report) == set()
    assert pairing(report) == "pass"


def test_lineage_of_pooled_kv_heads_accuses_nothing() -> None:
    parent = sketch_llama(n_layers=2, n_q_heads=8, n_kv_heads=8, hidden_size=96, head_dim=8, seed=12)
    child = parent.copy()
    for index in range(2):
        path = f"model.layers.{index}.self_attn"
        for name in ("k_proj", "v_proj"):
            values = np.frombuffer(parent.tensors[f"{path}.{name}.weight"].dense(), dtype="<f2").astype("<f8")
            heads = values.reshape(8, 8, 96) * np.array([1.0, 1.8] * 4)[:, None, None]
            scaled = heads.reshape(64, 96).astype("<f2")
            parent.tensors[f"{path}.{name}.weight"] = tensor((64, 96), "float16", scaled.tobytes(), parameter=True)
            pooled = heads.reshape(4, 2, 8, 96).mean(1).reshape(32, 96).astype("<f2")
            child.tensors[f"{path}.{name}.weight"] = tensor((32, 96), "float16", pooled.tobytes(), parameter=True)
    child.config["num_key_value_heads"] = 4
    report = judged(child, parent)
    assert not errors(report) & {"GQA601", "GQA602", "GQA603", "GQA608"}


def test_lineage_of_half_a_foreign_head_does_not_pass() -> None:
    parent = parent_sketch()
    child = parent.copy()

    def half(values: Any) -> Any:
        values[4:8] = np.random.default_rng(0).standard_normal((4, 96)) * 0.05
        return values

    edited(child, f"{ATTENTION}.k_proj.weight", half)
    report = judged(child, parent)
    assert pairing(report) == "not-checked"
    assert "GQA606" in {finding.code for finding in report.findings}


def test_lineage_of_key_rows_exchanged_inside_a_trained_head_is_found() -> None:
    parent = parent_sketch()
    child = parent.copy()
    rng = np.random.default_rng(1)
    for name in projections(child):
        edited(child, name, lambda values: values + 0.0005 * rng.standard_normal(values.shape))
    edited(child, f"{ATTENTION}.k_proj.weight", lambda values: values[[1, 0, *range(2, 24)]])
    report = judged(child, parent)
    assert errors(report) == {"GQA601"}
    assert report.lineage is not None
    assert report.lineage.method == "similarity"


@pytest.mark.parametrize(
    ("one", "other", "code"),
    [
        (f"{ATTENTION}.k_proj", f"{ATTENTION}.v_proj", "GQA603"),
        (f"{MLP}.gate_proj", f"{MLP}.up_proj", "GQA604"),
        (f"{ATTENTION}.k_proj", "model.layers.0.self_attn.k_proj", "GQA603"),
    ],
)
def test_lineage_of_exchanged_tensors_is_an_error_that_names_both(one: str, other: str, code: str) -> None:
    parent = parent_sketch()
    child = parent.copy()
    a, b = f"{one}.weight", f"{other}.weight"
    child.tensors[a], child.tensors[b] = parent.tensors[b], parent.tensors[a]
    report = judged(child, parent)
    assert code in errors(report)
    assert any(f"the parent's {other.rpartition('.')[2]}" in finding.message for finding in report.findings)


def test_lineage_of_two_exchanged_gate_and_up_rows_is_an_error() -> None:
    parent = parent_sketch()
    child = parent.copy()
    gate, up = f"{MLP}.gate_proj.weight", f"{MLP}.up_proj.weight"
    stored: dict[str, Any] = {}
    for name in (gate, up):
        edited(child, name, lambda values, name=name: stored.setdefault(name, values.copy()))
    edited(child, gate, lambda values: np.concatenate([stored[up][:2], values[2:]]))
    edited(child, up, lambda values: np.concatenate([stored[gate][:2], values[2:]]))
    assert "GQA604" in errors(judged(child, parent))


@pytest.mark.parametrize("wrong", ["another model", "swapped", "another head_dim"])
def test_a_base_that_is_no_parent_makes_no_shape_an_error(wrong: str) -> None:
    child = parent_sketch()
    parent = sketch_llama(n_layers=2, n_q_heads=24, n_kv_heads=3, hidden_size=96, head_dim=8, seed=99)
    if wrong == "swapped":
        parent = child.copy()
        for index in range(2):
            take_heads(parent, index, q=[0, 1, 4, 5], kv=[0, 1])
            take_channels(parent, index, gate=range(60))
        parent.config |= {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 60}
    if wrong == "another head_dim":
        parent = sketch_llama(n_layers=2, n_q_heads=24, n_kv_heads=3, hidden_size=96, head_dim=4, seed=99)
    report = judged(child, parent)
    assert errors(report) == set()
    assert pairing(report) == "not-checked"
