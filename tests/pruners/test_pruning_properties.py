"""What must hold of every plan of every family: more than the contract can ask of a pruner (``tests/contract``), since
here it is known what was to stay. Round trips, training, determinism and ratio 0 are the contract's.
"""

from __future__ import annotations

import copy
import os

import pytest
import torch
from gqa_cases import DTYPES, FAMILIES, RATIOS, Case, apart, ids_of, logits_of, planned
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from gqacheck import check_model
from gqacheck.runtime.masked import mask_parent
from pruners.anatomy import dissect
from pruners.plan import PruningPlan
from pruners.surgery import prune

N = int(os.environ.get("GQACHECK_CASES", "0"))
QUICK = {
    "derandomize": True,
    "deadline": None,
    "database": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
}
TRUE_NOTES = {"GQA011", "GQA405", "GQA406", "GQA407"}
WITHIN = {"float64": 1e-10, "float32": 1e-3, "bfloat16": 0.2}
OLMO2_WITHIN = {"float64": 1e-5, "float32": 1e-3, "bfloat16": 0.5}
"""Its norm over all heads is computed in float32 whatever the weights are, a cut changes the order of its sums, and the
weight of the reference's norm is scaled, which rounds it once more."""


def examples(few: int) -> settings:
    return settings(max_examples=max(few, N * few // 40), **QUICK)


@pytest.mark.parametrize("ratio", RATIOS, ids=lambda ratio: f"{ratio[0]}to1x{ratio[1]}")
@pytest.mark.parametrize("family", FAMILIES)
def test_cut_of_any_plan_equals_the_masked_parent(family: str, ratio: tuple[int, int]) -> None:
    """In float64 for every family at every ratio, and often in one of the others."""

    @examples(2)
    @given(planned((family,), (ratio,)), st.sampled_from((None, "float32", "bfloat16")))
    def cut_equals_masked(both: tuple[Case, PruningPlan], other: str | None) -> None:
        case, plan = both
        note(f"{case}")
        reference = case.build()
        child = prune(copy.deepcopy(reference), plan)
        mask_parent(reference, plan.kept())
        difference = apart(logits_of(child), logits_of(reference))
        within = OLMO2_WITHIN if family == "olmo2" else WITHIN
        assert difference <= within["float64"]
        if other is None:
            return
        reference = case.build(DTYPES[other])
        child = prune(copy.deepcopy(reference), plan)
        mask_parent(reference, plan.kept())
        assert apart(logits_of(child), logits_of(reference)) <= within[other]

    cut_equals_masked()


@pytest.mark.parametrize("family", FAMILIES)
@examples(5)
@given(data=st.data())
def test_cut_of_any_plan_is_sound_and_paired(family: str, data: st.DataObject) -> None:
    case, plan = data.draw(planned((family,)))
    parent = case.build(torch.float32)
    child = prune(copy.deepcopy(parent), plan)
    report = check_model(child, base=parent)
    assert report.error is None
    assert {finding.code for finding in report.findings} <= TRUE_NOTES | {"GQA105", "GQA401", "GQA607"}, report.findings
    assert not [finding for finding in report.findings if finding.severity == "error"], report.findings
    counts = [(layer.n_q_heads, layer.n_kv_heads, layer.channels) for layer in plan.child.layers]
    assert [(s.n_q_heads, s.n_kv_heads, s.channels) for s in dissect(child).shape.layers] == counts
    assert sum(parameter.numel() for parameter in child.parameters()) == plan.parameters
    assert dissect(child).shape == plan.child


@examples(40)
@given(planned())
def test_cut_leaves_nothing_of_the_parts_that_go_in_memory(both: tuple[Case, PruningPlan]) -> None:
    case, plan = both
    child = prune(case.build(torch.float32), plan)
    for name, parameter in child.named_parameters():
        assert parameter.untyped_storage().nbytes() == parameter.numel() * 4, name
        assert parameter.is_contiguous(), name
        assert parameter.requires_grad, name


@examples(30)
@given(st.data())
def test_cutting_twice_equals_cutting_once_by_both(data: st.DataObject) -> None:
    from gqa_cases import plans

    case, first = data.draw(planned())
    second = data.draw(plans(first.child))
    twice = prune(prune(case.build(), first), second)
    once = prune(case.build(), first.then(second))
    assert torch.equal(logits_of(twice), logits_of(once))
    assert dissect(twice).shape == first.then(second).child
    for (name, mine), (other, theirs) in zip(once.state_dict().items(), twice.state_dict().items(), strict=True):
        assert name == other
        assert torch.equal(mine, theirs), name


@examples(20)
@given(planned())
def test_generation_with_a_cache_equals_without(both: tuple[Case, PruningPlan]) -> None:
    case, plan = both
    child = prune(case.build(torch.float32), plan)
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    ids = ids_of(1)
    with torch.inference_mode():
        cached, full = (child.generate(input_ids=ids, use_cache=use, **options) for use in (True, False))
    logits = logits_of(child, full)
    for at in range(ids.shape[1], full.shape[1]):
        if cached[0, at] != full[0, at]:  # a tie that rounding may break either way, and nothing else
            top = logits[0, at - 1].topk(2).values
            assert float(top[0] - top[1]) < 1e-3 * float(logits.std())
            break


@examples(20)
@given(planned())
def test_padded_rows_give_what_they_give_alone(both: tuple[Case, PruningPlan]) -> None:
    case, plan = both
    child = prune(case.build(torch.float32), plan)
    ids = ids_of(2)
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    padded = logits_of(child, ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0))
    alone = logits_of(child, ids[:1, 4:])
    assert apart(padded[:1, 4:], alone) < 1e-3
