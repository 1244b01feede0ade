"""The error after rewriting, known without rewriting: against least squares done by hand, and on models with twins."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gqa_cases import Case
from tiny_models import tiny_model

from pruners.anatomy import dissect
from pruners.scores import CannotScore
from pruners.select_by_error import _RIDGE, costs_in_turn, least_squares_error
from pruners.selection import Request, select


def rows_of(n_rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    """Correlated rows."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    return torch.randn(n_rows, columns, generator=generator, dtype=torch.float64) @ mix


def error_without(x: torch.Tensor, weight: torch.Tensor, gone: list[int]) -> float:
    """Per row, by least squares on the columns that stay, with the ridge that the scores have."""
    gram = x.T @ x / len(x)
    gram += _RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    left = [column for column in range(x.shape[1]) if column not in gone]
    inner = gram[gone][:, gone] - gram[gone][:, left] @ torch.linalg.solve(gram[left][:, left], gram[left][:, gone])
    return float((weight[:, gone] @ inner @ weight[:, gone].T).trace())


@pytest.mark.parametrize("unit", [1, 3])
def test_costs_are_those_of_least_squares_on_what_stays(unit: int) -> None:
    n_parts = 5
    x, weight = rows_of(400, n_parts * unit), rows_of(4, n_parts * unit, seed=1)
    scores = costs_in_turn(x.T @ x / len(x), weight, n_parts)
    order = scores.argsort().tolist()
    for count in range(1, n_parts):
        gone = [part * unit + at for part in order[:count] for at in range(unit)]
        assert float(scores[order[count - 1]]) == pytest.approx(error_without(x, weight, sorted(gone)), rel=1e-6)
        alone = [
            error_without(x, weight, sorted({*gone, *range(part * unit, (part + 1) * unit)})) for part in order[count:]
        ]
        assert min(alone) == pytest.approx(alone[0])  # the next one is the cheapest of those that are left


def test_one_of_two_twins_goes_first_and_the_other_then_is_dear() -> None:
    x = rows_of(300, 4)
    x[:, 3] = x[:, 1]
    scores = costs_in_turn(x.T @ x / len(x), torch.eye(4, dtype=torch.float64) * 10, 4)
    first, *_, last = scores.argsort().tolist()
    assert first in (1, 3)
    assert float(scores[first]) < 1e-2 * float(scores[last])
    assert int(scores.argsort()[1]) not in (1, 3) or float(scores.sort().values[1]) > 100 * float(scores[first])


def test_a_group_that_says_what_another_says_is_the_one_to_go() -> None:
    model = Case("llama", 4, 3, 4, 48, 13, 1, False, False, 0).build()
    attention = model.model.layers[0].self_attn
    with torch.no_grad():
        for name, unit in (("q_proj", 16), ("k_proj", 4), ("v_proj", 4)):
            weight = getattr(attention, name).weight
            weight[2 * unit :] = weight[:unit]  # the third group computes what the first does
    ids = torch.randint(3, 60, (16, 12), generator=torch.Generator().manual_seed(0))
    scores = least_squares_error(model, ids).groups(0)
    assert int(scores.argmin()) in (0, 2)
    assert float(scores.min()) < 0.05 * float(scores[1])


@pytest.mark.parametrize(
    "name", ["llama_bias", "gemma2", "olmo2", "phi3", "falcon", "mixtral", "qwen2_moe", "qwen3_next"]
)
def test_scores_fit_every_kind_of_model_and_leave_no_trace(name: str) -> None:
    model = tiny_model(name)
    model.train()
    next(model.parameters()).requires_grad_(False)
    before = [(values.requires_grad, values.clone()) for values in model.parameters()]
    ids = torch.randint(3, 60, (4, 12), generator=torch.Generator().manual_seed(0))
    importance = least_squares_error(model, ids)
    shape = dissect(model).shape
    importance.require_fit(shape)
    select(shape, importance, Request(0.3))
    for values, (wanted, was) in zip(model.parameters(), before, strict=True):
        assert values.requires_grad == wanted
        assert values.grad is None
        assert torch.equal(values, was)
    assert model.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_half_precision_scores_are_finite_and_rank_alike() -> None:
    case = Case("llama", 4, 3, 4, 48, 13, 1, False, False, 0)
    ids = torch.randint(3, 60, (16, 12), generator=torch.Generator().manual_seed(0))
    found = [least_squares_error(case.build(dtype), ids) for dtype in (torch.float32, torch.bfloat16, torch.float16)]
    orders: list[Any] = [each.groups(0).argsort().tolist() for each in found]
    assert orders[0] == orders[1] == orders[2]
    assert int(found[0].groups(0).argmax()) == orders[0][-1]


def test_a_model_that_computes_nothing_finite_is_refused() -> None:
    model = Case("llama", 4, 3, 4, 48, 13, 1, False, False, 0).build(torch.float32)
    model.model.layers[0].self_attn.v_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(CannotScore, match="not finite"):
        least_squares_error(model, torch.full((2, 8), 5))
