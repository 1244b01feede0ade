"""Any plan, any mistake: what comes out of the repair is the cut done right, bit by bit."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from repair_cuts import (
    HIDDEN,
    WIDTH,
    Cut,
    Tensors,
    config,
    cut_tensors,
    parent_tensors,
    read_folder,
    same,
    write_folder,
)

from gqacheck.repair import repair

EXAMPLES = int(os.environ.get("GQACHECK_CASES", "15"))
LAYERS = 2
COUNTS = [(12, 3), (28, 4), (6, 2)]  # of the parents; n_kv never equals the group
PARENTS: dict[tuple[int, int], Tensors] = {}
ONLY_LAYER = 1


def parent_of(counts: tuple[int, int]) -> Tensors:
    if counts not in PARENTS:
        PARENTS[counts] = parent_tensors(*counts, LAYERS, seed=counts[0], bias=True)
    return PARENTS[counts]


@st.composite
def spoilt_cuts(draw: st.DrawFn) -> tuple[tuple[int, int], dict[int, Cut]]:
    """(the parent's counts, one cut per layer that is cut): whole KV groups and some channels, then a mistake."""
    n_q, n_kv = draw(st.sampled_from(COUNTS))
    group = n_q // n_kv
    n_kept, width = draw(st.integers(1, n_kv)), draw(st.integers(2, WIDTH))
    kind = draw(
        st.sampled_from(
            ["first q", "any q", "o", "v", "up", "gate", "down", "q bias", "q and up", "reversed o", "interleaved"]
        )
    )
    cuts: dict[int, Cut] = {}
    for index in draw(st.sampled_from([(0, 1), (1,)])):
        kv = sorted(draw(st.permutations(range(n_kv)))[:n_kept])
        q = [head for kept in kv for head in range(kept * group, (kept + 1) * group)]
        channels = sorted(draw(st.permutations(range(WIDTH)))[:width])
        first_q, first_c = list(range(len(q))), list(range(width))
        any_q = draw(st.permutations(range(n_q)))[: len(q)]
        mistakes: dict[str, dict[str, Any]] = {
            "first q": {"q": first_q, "o": first_q},
            "any q": {"q": any_q, "o": any_q},
            "o": {"o": first_q},
            "v": {"v": list(range(n_kept))},
            "up": {"up": first_c},
            "gate": {"gate": first_c},
            "down": {"down": first_c},
            "q bias": {"q bias": first_q},
            "q and up": {"q": first_q, "o": first_q, "up": first_c},
            "reversed o": {"o": q[::-1]},
            "interleaved": {role: [h for i in range(group) for h in q[i::group]] for role in ("q", "o")},
        }
        cuts[index] = Cut(kv, q, channels, mistakes[kind])
    return (n_q, n_kv), cuts


def folders(tmp_path: Path, case: tuple[tuple[int, int], dict[int, Cut]]) -> tuple[Path, Path, Tensors]:
    """(parent, spoilt child) on disk, and the child as it should be."""
    counts, cuts = case
    shutil.rmtree(tmp_path, ignore_errors=True)
    parent = parent_of(counts)
    base = write_folder(tmp_path / "parent", parent, config("qwen2", *counts, LAYERS))
    return base, tmp_path / "child", cut_tensors(parent, cuts)


def write_child(folder: Path, tensors: Tensors, counts: tuple[int, int], cuts: dict[int, Cut]) -> Path:
    """A pickled state dict when layers differ in shape, which no folder may, and a folder when they do not."""
    values = config("qwen2", *counts, LAYERS)
    if len(cuts) == LAYERS:
        one = cuts[0]
        values |= {
            "num_attention_heads": len(one.q),
            "num_key_value_heads": len(one.kv),
            "intermediate_size": len(one.channels),
        }
        return write_folder(folder, tensors, values)
    write_folder(folder, {}, values)
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "weights.pt")
    return folder / "weights.pt"


def read_any(path: str) -> Tensors:
    if (Path(path) / "weights.pt").exists():
        found: Tensors = torch.load(Path(path) / "weights.pt", weights_only=True)
        return found
    return read_folder(path)


@settings(
    derandomize=True, deadline=None, max_examples=EXAMPLES, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(spoilt_cuts())
def test_any_spoilt_cut_comes_out_as_the_correct_one(
    tmp_path: Path, case: tuple[tuple[int, int], dict[int, Cut]]
) -> None:
    counts, cuts = case
    base, folder, correct = folders(tmp_path / "case", case)
    child = cut_tensors(parent_of(counts), cuts, right=False)
    path = write_child(folder, child, counts, cuts)
    report = repair(path, base=base, out=tmp_path / "case" / "fixed")
    assert report.refused == ()
    if report.out is None:  # the mistake happened to change nothing
        assert same(child, correct) == [] or _equivalent(cuts)
        return
    assert report.reference is not None
    assert report.reference.equal
    assert same(read_any(report.out), correct) == []


def _equivalent(cuts: dict[int, Cut]) -> bool:
    """Whether the mistake only reordered query heads inside their groups or exchanged nothing at all."""
    for cut in cuts.values():
        group = len(cut.q) // len(cut.kv)
        q, o = (cut.of(role, right=False) for role in ("q", "o"))
        if list(q) != list(o) or any(
            set(q[i : i + group]) != set(cut.q[i : i + group]) for i in range(0, len(q), group)
        ):
            return False
    return True


FAMILIES = ["llama", "qwen2"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_child_in_half_precision_gets_the_parents_blocks_in_its_own(tmp_path: Path, dtype: torch.dtype) -> None:
    parent = parent_tensors(12, 3, LAYERS)
    right = Cut([0, 2], [0, 1, 2, 3, 8, 9, 10, 11], range(WIDTH))
    wrong = Cut([0, 2], right.q, range(WIDTH), {"q": range(8), "o": range(8)})
    base = write_folder(tmp_path / "parent", parent, config("llama", 12, 3, LAYERS))
    child = {n: t.to(dtype) for n, t in cut_tensors(parent, {0: wrong, 1: wrong}, right=False).items()}
    write_folder(tmp_path / "child", child, config("mistral", 8, 2, LAYERS, sliding_window=None))
    report = repair(tmp_path / "child", base=base, out=tmp_path / "fixed")
    correct = {n: t.to(dtype) for n, t in cut_tensors(parent, {0: right, 1: right}).items()}
    assert same(read_folder(report.out or ""), correct) == []


def trained(tensors: Tensors, scale: float = 0.02, seed: int = 5) -> Tensors:
    """Every weight moved a little, as fine-tuning does."""
    made = torch.Generator().manual_seed(seed)
    return {n: t + scale * t.std() * torch.randn(t.shape, generator=made) for n, t in tensors.items()}


def broken_and_trained(tmp_path: Path) -> tuple[Path, Path, Tensors, Tensors]:
    """(parent, fine-tuned child cut to its first query heads) on disk; the parent's and the child's tensors."""
    parent = parent_tensors(12, 3, LAYERS)
    cut = Cut([0, 2], [0, 1, 2, 3, 8, 9, 10, 11], range(0, WIDTH, 2), {"q": range(8), "o": range(8)})
    child = trained(cut_tensors(parent, {0: cut, 1: cut}, right=False))
    base = write_folder(tmp_path / "parent", parent, config("llama", 12, 3, LAYERS))
    path = write_folder(tmp_path / "child", child, config("mistral", 8, 2, LAYERS, WIDTH // 2, sliding_window=None))
    return base, path, parent, child


def test_fine_tuned_blocks_are_moved_and_only_missing_ones_replaced(tmp_path: Path) -> None:
    base, path, parent, child = broken_and_trained(tmp_path)
    report = repair(path, base=base, out=tmp_path / "fixed")
    assert report.refused == ()
    assert report.reference is not None
    assert (report.reference.equal, report.reference.expanded) == (True, True)
    fixed = read_folder(report.out or "")
    q, old, new = "model.layers.0.self_attn.q_proj.weight", 4 * 8, 8 * 8
    assert torch.equal(fixed[q][:old], child[q][:old])
    assert torch.equal(fixed[q][old:], parent[q][new:])  # heads 8-11, which the child does not have
    untouched = {n for n in child if "q_proj" not in n and "o_proj" not in n}
    assert same({n: fixed[n] for n in untouched}, {n: child[n] for n in untouched}) == []


def test_from_base_takes_the_whole_attention_of_repaired_layers_from_the_parent(tmp_path: Path) -> None:
    base, path, parent, child = broken_and_trained(tmp_path)
    report = repair(path, base=base, out=tmp_path / "fixed", from_base=True)
    assert report.refused == ()
    fixed = read_folder(report.out or "")
    rows = [row for head in (0, 1, 2, 3, 8, 9, 10, 11) for row in range(head * 8, head * 8 + 8)]
    for index in range(LAYERS):
        stem = f"model.layers.{index}"
        assert torch.equal(fixed[f"{stem}.self_attn.q_proj.weight"], parent[f"{stem}.self_attn.q_proj.weight"][rows])
        assert torch.equal(fixed[f"{stem}.mlp.up_proj.weight"], child[f"{stem}.mlp.up_proj.weight"])


def test_rewritten_o_of_a_repaired_layer_comes_from_the_parent_and_is_said(tmp_path: Path) -> None:
    parent = parent_tensors(12, 3, LAYERS)
    cut = Cut([0, 2], [0, 1, 2, 3, 8, 9, 10, 11], range(WIDTH), {"q": range(8), "o": range(8)})
    child = cut_tensors(parent, {0: cut, 1: cut}, right=False)
    made = torch.Generator().manual_seed(3)
    for index in range(LAYERS):
        name = f"model.layers.{index}.self_attn.o_proj.weight"
        child[name] = torch.randn(child[name].shape, generator=made) * 0.3
    base = write_folder(tmp_path / "parent", parent, config("llama", 12, 3, LAYERS))
    path = write_folder(tmp_path / "child", child, config("mistral", 8, 2, LAYERS, sliding_window=None))
    report = repair(path, base=base, out=tmp_path / "fixed")
    assert report.refused == ()
    assert any("o_proj: all 8 query heads from the parent" in change.what for change in report.changes)
    correct = cut_tensors(parent, {0: cut, 1: cut})
    assert same(read_folder(report.out or ""), correct) == []


def test_rewritten_o_of_a_sound_layer_stays_as_it_is(tmp_path: Path) -> None:
    parent = parent_tensors(12, 3, LAYERS)
    right = Cut([0, 2], [0, 1, 2, 3, 8, 9, 10, 11], range(WIDTH))
    wrong = Cut(right.kv, right.q, right.channels, {"q": range(8), "o": range(8)})
    child = cut_tensors(parent, {0: right, 1: wrong}, right=False)
    rewritten = "model.layers.0.self_attn.o_proj.weight"
    child[rewritten] = torch.randn(child[rewritten].shape, generator=torch.Generator().manual_seed(3)) * 0.3
    base = write_folder(tmp_path / "parent", parent, config("llama", 12, 3, LAYERS))
    path = write_folder(tmp_path / "child", child, config("mistral", 8, 2, LAYERS, sliding_window=None))
    report = repair(path, base=base, out=tmp_path / "fixed")
    assert report.refused == ()
    assert [plan.index for plan in report.plans] == [1]
    assert report.reference is not None
    assert (report.reference.equal, report.reference.expanded) == (True, True)
    correct = cut_tensors(parent, {0: right, 1: right}) | {rewritten: child[rewritten]}
    assert same(read_folder(report.out or ""), correct) == []


def test_child_with_fewer_hidden_columns_gets_the_parents_blocks_cut_alike(tmp_path: Path) -> None:
    parent = parent_tensors(12, 3, LAYERS)
    kept = list(range(0, HIDDEN, 3))
    cut = Cut([0, 2], [0, 1, 2, 3, 8, 9, 10, 11], range(WIDTH), {"q": range(8), "o": range(8)})

    def narrow(tensors: Tensors) -> Tensors:
        writers = ("o_proj.weight", "down_proj.weight")
        return {
            n: (t[kept] if t.dim() == 1 or n.endswith(writers) else t[:, kept]).contiguous() for n, t in tensors.items()
        }

    child = narrow(cut_tensors(parent, {0: cut, 1: cut}, right=False))
    base = write_folder(tmp_path / "parent", parent, config("llama", 12, 3, LAYERS))
    values = config("mistral", 8, 2, LAYERS, sliding_window=None, hidden_size=len(kept))
    report = repair(write_folder(tmp_path / "child", child, values), base=base, out=tmp_path / "fixed")
    assert report.refused == ()
    assert same(read_folder(report.out or ""), narrow(cut_tensors(parent, {0: cut, 1: cut}))) == []


def test_layers_are_repaired_from_the_parent_layer_that_they_came_from(tmp_path: Path) -> None:
    """The parent's second layer was dropped, and the heads of what is left were truncated."""
    parent = parent_tensors(12, 3, 3)
    cut = Cut([0, 2], [0, 1, 2, 3, 8, 9, 10, 11], range(WIDTH), {"q": range(8), "o": range(8)})

    def without_layer_1(tensors: Tensors) -> Tensors:
        return {n.replace("layers.2.", "layers.1."): t for n, t in tensors.items() if "layers.1." not in n}

    base = write_folder(tmp_path / "parent", parent, config("llama", 12, 3, 3))
    child = without_layer_1(cut_tensors(parent, {0: cut, 2: cut}, right=False))
    path = write_folder(tmp_path / "child", child, config("mistral", 8, 2, 2, sliding_window=None))
    report = repair(path, base=base, out=tmp_path / "fixed")
    assert report.refused == ()
    assert [(plan.index, plan.parent) for plan in report.plans] == [(0, 0), (1, 2)]
    assert report.reference is not None
    assert report.reference.equal
    assert same(read_folder(report.out or ""), without_layer_1(cut_tensors(parent, {0: cut, 2: cut}))) == []


def test_most_important_query_heads_fill_a_group_that_lost_its_own(tmp_path: Path) -> None:
    parent = parent_tensors(12, 3, 1)
    name = "model.layers.0.self_attn.q_proj.weight"
    for head in (6, 10):
        parent[name][head * 8 : head * 8 + 8] *= 5
    q = [0, 1, 2, 3, 4, 8]  # groups kept 4, 1, 1 at 2:1
    cut = Cut([0, 1, 2], q, range(WIDTH))
    base = write_folder(tmp_path / "parent", parent, config("llama", 12, 3, 1))
    path = write_folder(tmp_path / "child", cut_tensors(parent, {0: cut}), config("llama", 6, 3, 1))
    report = repair(path, base=base, out=tmp_path / "fixed")
    assert report.refused == ()
    rows = read_folder(report.out or "")[name].reshape(6, 8, -1)
    heads = parent[name].reshape(12, 8, -1)
    stands = [next(h for h in range(12) if torch.equal(heads[h], row)) for row in rows]
    assert stands[2:] == [4, 6, 8, 10]
    assert set(stands[:2]) <= {0, 1, 2, 3}
