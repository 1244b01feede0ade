"""Children whose numbers are not the parent's any more: told by similarity, and never accused when they are right."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from lineage_plans import CASES, LayerPlan, Plan, cut, plans, trace

from gqacheck.geometry.origins import Lineage, Misread
from gqacheck.lineage.cast import cast
from gqacheck.testing.sketch import Sketch
from gqacheck.testing.writers import tensor

QUICK = settings(max_examples=CASES, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def changed(sketch: Sketch, how: str, seed: int) -> Sketch:
    """The sketch after a little training: every projection and bias moved, cosine to what it was above 0.99."""
    made, rng = sketch.copy(), np.random.default_rng(seed)
    for name, old in sketch.tensors.items():
        if "layers" not in name:
            continue
        values = np.frombuffer(cast(old.dense(), old.storage.dtype, "float64"), dtype="<f8").reshape(old.shape)
        scale = np.sqrt(np.mean(values**2)) or 1.0
        if how == "noise" or values.ndim < 2:
            values = values + 0.1 * scale * rng.standard_normal(values.shape)
        elif how == "lora":
            down, up = rng.standard_normal((values.shape[0], 2)), rng.standard_normal((2, values.shape[1]))
            values = values + 0.1 * scale * (down @ up) / np.sqrt(2)
        elif how == "rounded":
            values = values.astype(np.float16).astype(np.float64) * (1 + 2**-9 * rng.integers(-1, 2, values.shape))
        else:
            values = values * 1.25
        data = cast(values.astype("<f8").tobytes(), "float64", old.storage.dtype)
        made.tensors[name] = tensor(old.shape, old.storage.dtype, data, parameter=old.parameter)
    return made


def traced(child: Sketch, parent: Sketch) -> Lineage:
    with tempfile.TemporaryDirectory(prefix="gqacheck-") as folder:
        return trace(child, parent, Path(folder))


def accusations(lineage: Lineage) -> list[str]:
    """Everything that the lineage rules would call an error."""
    found = []
    for layer in lineage.layers:
        found += [f"layer {layer.index}: {misread}" for misread in layer.misread()]
        pairs = ((layer.q, layer.o), (layer.k, layer.v))
        for a, b in pairs:
            if a is None or b is None or not a.told or not b.told:
                continue
            for position, (x, y) in enumerate(zip(a.origins, b.origins, strict=True)):
                if x.heads and y.heads and not set(x.heads) & set(y.heads):
                    found.append(f"layer {layer.index}: {a.role} {x} beside {b.role} {y} at {position}")
        for mlp in layer.mlps:
            told = [c for c in (mlp.gate, mlp.up, mlp.down) if c is not None and c.told]
            for position in range(min((len(c.parents) for c in told), default=0)):
                if len({c.parents[position] for c in told} - {-1}) > 1:
                    found.append(f"layer {layer.index}: channels {[(c.role, c.parents[position]) for c in told]}")
        found += [f"layer {layer.index}: {v}" for v in layer.vectors if v.wrong]
    return found


@QUICK
@given(plans(), st.sampled_from(["noise", "lora", "rounded", "scaled"]), st.integers(0, 1 << 20))
def test_lineage_of_a_trained_paired_cut_accuses_nothing(plan: Plan, how: str, seed: int) -> None:
    parent = plan.parent.sketch()
    lineage = traced(changed(cut(parent, plan), how, seed), parent)
    assert accusations(lineage) == []


@QUICK
@given(plans(), st.sampled_from(["noise", "lora"]), st.randoms(use_true_random=False))
def test_lineage_of_trained_shuffled_heads_accuses_only_planted_ones(plan: Plan, how: str, random: object) -> None:
    group, first = plan.parent.group, plan.layers[0]
    q = list(first.q)
    random.shuffle(q)  # type: ignore[attr-defined]
    reads = [first.kv[position // (len(q) // len(first.kv))] for position in range(len(q))]
    planted = {
        Misread(position, head, head // group, kv)
        for position, (head, kv) in enumerate(zip(q, reads, strict=True))
        if head // group != kv
    }
    assume(planted)
    parent = plan.parent.sketch()
    shuffled = LayerPlan(first.parent, tuple(q), first.kv, first.channels)
    child = changed(cut(parent, Plan(plan.parent, (shuffled, *plan.layers[1:]), plan.dtype)), how, 7)
    lineage = traced(child, parent)
    assert set(lineage.layers[0].misread()) <= planted
    assert all(not layer.misread() for layer in lineage.layers[1:])


@pytest.mark.parametrize("how", ["noise", "lora", "scaled"])
def test_lineage_of_a_trained_regrouped_child_finds_every_misread_head(how: str) -> None:
    from gqacheck.testing.cuts import take_heads
    from gqacheck.testing.sketch import sketch_llama

    parent = sketch_llama(n_layers=3, hidden_size=128, n_q_heads=28, n_kv_heads=4, head_dim=8, seed=4)
    child = parent.copy()
    for index in range(3):
        take_heads(child, index, q=range(21), kv=[0, 2, 3])
    lineage = traced(changed(child, how, 1), parent)
    assert lineage.method == "similarity"
    assert [len(layer.misread()) for layer in lineage.layers] == [14, 14, 14]
