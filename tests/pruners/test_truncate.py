"""The negative controls: the right shapes, the wrong model; and both the reference and gqacheck say so."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from gqa_cases import FAMILIES, Case, apart, logits_of, shape_of

from fixtures.zoo.case import FIXTURES, LLAMA, QWEN2, load
from gqacheck import check, check_model
from gqacheck.runtime.masked import mask_parent
from pruners.anatomy import dissect
from pruners.importance import Importance, magnitude, random_importance
from pruners.plan import KvGroup, LayerPlan, ModelShape, PlanError, PruningPlan, whole_groups
from pruners.surgery import prune
from pruners.truncate import choose_groups_interleaved, keep_first_queries, keep_top_queries_blind_to_groups


def blind(model: Any, plan: PruningPlan) -> Any:
    return keep_top_queries_blind_to_groups(model, plan, random_importance(plan.parent, seed=4))


MISTAKES = {"first": keep_first_queries, "blind": blind}
FAR = 0.5
"""Standard deviations of the logits; a correct cut is within 1e-10."""


def case_of(family: str, group_size: int = 4, n_kv_heads: int = 3) -> Case:
    hidden = group_size * n_kv_heads * 8
    return Case(family, group_size, n_kv_heads, 8, hidden, 24, 2, bias=True, tied=False, seed=0)


def without_first_groups(shape: ModelShape, cut: int = 1) -> PruningPlan:
    """Every layer loses its first KV groups, so that the first query heads are those of others."""
    layers = tuple(
        LayerPlan(whole_groups(range(cut, layer.n_kv_heads), layer)) if layer.n_kv_heads else LayerPlan()
        for layer in shape.layers
    )
    return PruningPlan(shape, layers)


def shapes(model: Any) -> dict[str, torch.Size]:
    return {name: parameter.shape for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("family", FAMILIES)
def test_mistake_has_the_plans_shapes_and_is_far_from_the_masked_reference(family: str, mistake: str) -> None:
    case = case_of(family)
    plan = without_first_groups(shape_of(case))
    parent = case.build()
    right, wrong = prune(copy.deepcopy(parent), plan), MISTAKES[mistake](copy.deepcopy(parent), plan)
    assert shapes(wrong) == shapes(right)
    assert wrong.config.to_dict() == right.config.to_dict()
    assert dissect(wrong).shape == plan.child
    mask_parent(parent, plan.kept())
    reference = logits_of(parent)
    assert apart(logits_of(wrong), reference) > FAR
    assert apart(logits_of(right), reference) < 1e-4


@pytest.mark.parametrize("ratio", [(4, 3), (7, 2), (2, 5), (8, 2)], ids=str)
def test_gqacheck_accuses_the_mistakes_and_not_the_cut(ratio: tuple[int, int]) -> None:
    case = case_of("llama", *ratio)
    parent = case.build(torch.float32)
    plan = without_first_groups(shape_of(case))
    assert not [f for f in check_model(prune(copy.deepcopy(parent), plan), base=parent).findings if f.code[3] == "6"]
    for mistake in MISTAKES.values():
        report = check_model(mistake(copy.deepcopy(parent), plan), base=parent)
        codes = {finding.code for finding in report.findings if finding.severity == "error"}
        assert {"GQA601"} <= codes <= {"GQA601", "GQA608"}
        assert report.exit_code == 1


@pytest.mark.parametrize("name", [LLAMA, QWEN2])
def test_saved_mistake_of_a_trained_model_is_accused_and_the_saved_cut_is_not(name: str, tmp_path: Path) -> None:
    parent, _ = load(FIXTURES / name)
    plan = without_first_groups(dissect(parent).shape)
    for label, act in (("cut", prune), *MISTAKES.items()):
        model = act(copy.deepcopy(parent), plan)
        torch.save({"model": model, "tokenizer": None}, tmp_path / f"{label}.bin")
        codes = {f.code for f in check(tmp_path / f"{label}.bin", base=FIXTURES / name).findings}
        lineage = {code for code in codes if code >= "GQA601"}
        assert ("GQA601" in lineage) == (label != "cut"), codes
        assert lineage <= (set() if label == "cut" else {"GQA601", "GQA608"})


def test_first_queries_are_the_first_rows_and_columns_and_kv_heads_the_plans() -> None:
    parent = case_of("qwen2").build()
    plan = without_first_groups(dissect(parent).shape)
    child = keep_first_queries(copy.deepcopy(parent), plan)
    for old, new in zip(parent.model.layers, child.model.layers, strict=True):
        assert torch.equal(new.self_attn.q_proj.weight, old.self_attn.q_proj.weight[:64])
        assert torch.equal(new.self_attn.q_proj.bias, old.self_attn.q_proj.bias[:64])
        assert torch.equal(new.self_attn.o_proj.weight, old.self_attn.o_proj.weight[:, :64])
        assert torch.equal(new.self_attn.k_proj.weight, old.self_attn.k_proj.weight[8:])
        assert torch.equal(new.self_attn.v_proj.bias, old.self_attn.v_proj.bias[8:])


def test_blind_queries_are_those_that_score_most_in_any_group() -> None:
    parent = case_of("llama").build()
    plan = without_first_groups(dissect(parent).shape)
    scores = torch.tensor([9.0, 1, 8, 2, 7, 7, 7, 7, 1, 6, 2, 5])
    importance = Importance((scores,) * 2, (torch.ones(3),) * 2, (torch.ones(24),) * 2, ({}, {}), "told")
    child = keep_top_queries_blind_to_groups(copy.deepcopy(parent), plan, importance)
    kept = [0, 2, 4, 5, 6, 7, 9, 11]
    rows = torch.arange(96).view(12, 8)[kept].flatten()
    attention = parent.model.layers[1].self_attn
    assert torch.equal(child.model.layers[1].self_attn.q_proj.weight, attention.q_proj.weight[rows])
    assert torch.equal(child.model.layers[1].self_attn.o_proj.weight, attention.o_proj.weight[:, rows])


def test_mistakes_leave_untouched_what_the_plan_leaves_and_drop_the_layers_that_it_drops() -> None:
    parent = case_of("phi3").build()
    shape = dissect(parent).shape
    plan = PruningPlan(shape, (None, LayerPlan(channels=tuple(range(8)))))
    right = prune(copy.deepcopy(parent), plan)
    for mistake in MISTAKES.values():
        wrong = mistake(copy.deepcopy(parent), plan)
        assert all(torch.equal(a, b) for a, b in zip(wrong.parameters(), right.parameters(), strict=True))


def test_scores_of_another_model_are_refused() -> None:
    parent = case_of("llama").build()
    plan = without_first_groups(dissect(parent).shape)
    other = random_importance(shape_of(case_of("llama", 7, 2)))
    with pytest.raises(PlanError, match="another model"):
        keep_top_queries_blind_to_groups(parent, plan, other)
    with pytest.raises(PlanError, match="another model"):
        choose_groups_interleaved(plan, other)
    with pytest.raises(PlanError, match="made for another model"):
        keep_first_queries(case_of("llama", 7, 2).build(), plan)


# The interleaved sum


def test_interleaved_sum_chooses_other_groups_and_keeps_them_paired() -> None:
    parent = case_of("llama").build(torch.float32)
    shape = dissect(parent).shape
    queries = torch.zeros(12)
    queries[[0, 3, 6, 9]] = 5.0  # every third head: what an interleaved sum takes for group 0
    queries[4:8] += 6.0  # group 1 matters most
    queries[8:12] += 4.0
    importance = Importance((queries,) * 2, (torch.zeros(3),) * 2, (torch.ones(24),) * 2, ({}, {}), "told")
    plan = without_first_groups(shape)
    wrong = choose_groups_interleaved(plan, importance)
    assert [group.kv_head for group in wrong.layers[0].groups] == [0, 1]
    assert importance.groups(0).argsort(descending=True).tolist()[:2] == [1, 2]
    assert wrong.child == plan.child
    child = prune(copy.deepcopy(parent), wrong)
    assert not [f for f in check_model(child, base=parent).findings if f.severity == "error"]


def test_interleaved_sum_keeps_the_plans_counts_channels_and_layers() -> None:
    parent = case_of("mistral").build()
    shape = dissect(parent).shape
    plan = PruningPlan(shape, (LayerPlan((KvGroup(1, (0, 2)), KvGroup(2, (1, 3))), tuple(range(9))), None))
    other = choose_groups_interleaved(plan, magnitude(parent))
    assert other.child == plan.child
    assert other.layers[0].channels == plan.layers[0].channels
    assert [len(group.queries) for group in other.layers[0].groups] == [2, 2]
