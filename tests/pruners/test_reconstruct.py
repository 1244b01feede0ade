"""Least squares after the cut: what it must mend, and what it must leave alone."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from gqa_cases import Case
from tiny_models import CASES, logits_of, tiny_model

from fixtures.corpus import HELDOUT_FILE
from fixtures.zoo.case import FIXTURES, load
from gqacheck.errors import UsageError
from pruners.anatomy import dissect
from pruners.calibration import CalibrationError, calibration_batches
from pruners.compensate import compensate_biases
from pruners.normal_equations import NormalEquations
from pruners.plan import LayerPlan, PlanError, PruningPlan, whole_groups
from pruners.reconstruction import Reconstruction, reconstruct
from pruners.surgery import prune

# o_proj or down_proj feeds a norm before the stream: the block's own output is the target
SANDWICH = {"gemma2", "gemma3", "olmo2", "glm4"}
UNCUT = {"qwen3_next", "stablelm_qk_norm"}


def cut_of(model: Any, *, groups: bool = True, channels: bool = True, layers: Any = None) -> PruningPlan:
    """Without the second KV group and a quarter of the dense channels of ``layers`` (all)."""
    shape = dissect(model).shape
    cut = {}
    for index, layer in enumerate(shape.layers):
        if layers is not None and index not in layers:
            continue
        kv = [head for head in range(layer.n_kv_heads) if head != 1]
        cut[index] = LayerPlan(
            whole_groups(kv, layer) if groups and len(kv) > 1 else None,
            tuple(range(layer.channels * 3 // 4)) if channels and layer.channels else None,
        )
    return PruningPlan.of(shape, cut)


def cut_and_mend(parent: Any, plan: PruningPlan, ids: torch.Tensor, **how: Any) -> tuple[Any, Any, Reconstruction]:
    """The child as cut, the child as mended, and what was done."""
    plain = prune(copy.deepcopy(parent), plan)
    mended = copy.deepcopy(plain)
    return plain, mended, reconstruct(mended, parent, plan, ids, **how)


def off(child: Any, parent: Any, ids: torch.Tensor) -> float:
    """Mean squared difference of logits."""
    return float((logits_of(child, ids) - logits_of(parent, ids)).double().square().mean())


def nats(model: Any, ids: torch.Tensor) -> float:
    """Mean loss."""
    logits = logits_of(model, ids)[:, :-1].float()
    return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()))


def o_of(model: Any, layer: int = 0) -> torch.Tensor:
    weight: torch.Tensor = model.model.layers[layer].self_attn.o_proj.weight.data
    return weight


@pytest.fixture(scope="module")
def trained() -> tuple[Any, torch.Tensor, torch.Tensor]:
    """The 7:1 fixture, windows to calibrate on, and windows of other documents; it was trained on neither."""
    model, tokenizer = load(FIXTURES / "qwen2-28x4")
    text = HELDOUT_FILE.read_text(encoding="utf-8")
    half = len(text) // 2
    fitted = calibration_batches(tokenizer, text[:half], n_examples=24, seq_len=128, seed=0)
    held = calibration_batches(tokenizer, text[half:], n_examples=8, seq_len=128, seed=0)
    return model, fitted, held


@pytest.fixture(scope="module")
def mended(trained: Any) -> tuple[Any, Any, Reconstruction]:
    """Without the second of four KV groups in every layer: as cut, as mended, and what was done."""
    parent, ids, _ = trained
    return cut_and_mend(parent, cut_of(parent, channels=False), ids)


def test_reconstruct_of_a_trained_model_mends_calibration_and_heldout_text(trained: Any, mended: Any) -> None:
    parent, ids, held = trained
    plain, child, done = mended
    for text in (ids[:8], held):
        base = nats(parent, text)
        assert nats(child, text) - base < 0.6 * (nats(plain, text) - base)
        assert off(child, parent, text) < off(plain, parent, text)
    assert all(each.after <= each.before for each in done.rewrites)
    assert {each.target for each in done.rewrites} == {"residual"}
    assert [each.role for each in done.rewrites] == ["o", "down"] * 6
    assert done.told.startswith(f"{sum(e.ridge is not None for e in done.rewrites)} of 12 o_proj and down_proj")


def test_reconstruct_toward_the_stream_mends_more_than_toward_each_block(trained: Any, mended: Any) -> None:
    parent, ids, held = trained
    _, block, done = cut_and_mend(parent, cut_of(parent, channels=False), ids, target="block", roles=("o",))
    assert {(each.target, each.role) for each in done.rewrites} == {("block", "o")}
    assert off(mended[1], parent, held) < off(block, parent, held)


def llama(dtype: torch.dtype = torch.float64, *, bias: bool = False, layers: int = 2) -> Any:
    return Case("llama", 4, 3, 4, 48, 13, layers, bias, False, 0).build(dtype)


def ids_of(windows: int, length: int = 16, seed: int = 0) -> torch.Tensor:
    """Of six tokens only, so that what a head says can be told from what the others say."""
    return torch.randint(3, 9, (windows, length), generator=torch.Generator().manual_seed(seed))


def inputs_of(module: Any, model: Any, ids: torch.Tensor) -> np.ndarray:
    seen: list[torch.Tensor] = []
    hook = module.register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten(0, 1)))
    logits_of(model, ids)
    hook.remove()
    return np.asarray(torch.cat(seen))


@pytest.mark.parametrize("bias", [False, True])
def test_streamed_solution_equals_direct_least_squares(bias: bool) -> None:
    parent, ids = llama(bias=bias), ids_of(40)
    plan = cut_of(parent, channels=False)
    plain, mended, done = cut_and_mend(parent, plan, ids, ridges=(1e-13,), batch_size=7, target="block", roles=("o",))
    assert done.rewrites[0].ridge == 1e-13
    x = inputs_of(plain.model.layers[0].self_attn.o_proj, plain, ids)
    module = parent.model.layers[0].self_attn.o_proj
    wanted = np.asarray(
        torch.nn.functional.linear(torch.tensor(inputs_of(module, parent, ids)), module.weight, module.bias).detach()
    )
    rows = np.concatenate([x, np.ones((len(x), 1))], 1) if bias else x
    direct = np.linalg.lstsq(rows, wanted, rcond=None)[0]
    found = mended.model.layers[0].self_attn.o_proj
    np.testing.assert_allclose(np.asarray(found.weight.data).T, direct[: x.shape[1]], rtol=1e-6, atol=1e-7)
    if bias:
        np.testing.assert_allclose(np.asarray(found.bias.data), direct[-1], rtol=1e-6, atol=1e-7)


def test_normal_equations_do_not_depend_on_how_rows_arrive() -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(90, 7, generator=generator, dtype=torch.float64)
    missing = torch.randn(90, 5, generator=generator, dtype=torch.float64)
    found = []
    for sizes in ((60, 30), (1,) * 90):
        sums, at = NormalEquations(7, 5, affine=True), 0
        for size in sizes:
            sums.add(x[at : at + size], missing[at : at + size], held_out=at >= 60)
            at += size
        change = sums.change(1e-3)
        assert change is not None
        rows = torch.cat((x[60:], torch.ones(30, 1)), 1)
        assert sums.held_out.error(change) == pytest.approx(float((missing[60:] - rows @ change).square().sum()))
        found.append(change)
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_plan_that_removes_nothing_leaves_the_child_equal(dtype: torch.dtype) -> None:
    parent = llama(dtype)
    plan = PruningPlan.of(dissect(parent).shape, {})
    _, mended, done = cut_and_mend(parent, plan, ids_of(8))
    for (name, one), (_, other) in zip(parent.named_parameters(), mended.named_parameters(), strict=True):
        assert torch.equal(one, other), name
    assert all(each.ridge is None and each.before == 0 for each in done.rewrites)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_fewer_tokens_than_inputs_never_worsens_and_stays_finite(dtype: torch.dtype) -> None:
    parent, ids = llama(dtype), ids_of(4, length=3)  # 9 rows to fit 32 columns
    plain, mended, done = cut_and_mend(parent, cut_of(parent), ids)
    assert all(torch.isfinite(values).all() for values in mended.parameters())
    assert all(each.after <= each.before for each in done.rewrites)
    change = (o_of(mended) - o_of(plain)).float().norm() / o_of(plain).float().norm()
    assert change < 2  # a ridge toward what was there, not a wild solution of too few equations


def test_one_window_over_and_over_is_solved_without_wild_weights() -> None:
    parent = llama()
    ids = ids_of(1, length=5).repeat(8, 1)
    plain, mended, done = cut_and_mend(parent, cut_of(parent), ids)
    assert done.rewrites[0].after < done.rewrites[0].before
    assert (o_of(mended) - o_of(plain)).norm() < 5 * o_of(plain).norm()


def test_what_is_held_out_prefers_no_change_to_noise() -> None:
    """Nothing of what is missing follows from the input: fitting it can only be wrong."""
    generator = torch.Generator().manual_seed(0)
    parent = llama(torch.float32, layers=1)
    module = parent.model.layers[0].mlp.down_proj
    sums = NormalEquations(module.in_features, module.out_features)
    for number in range(4):
        x = torch.randn(10, module.in_features, generator=generator)
        sums.add(x, torch.randn(10, module.out_features, generator=generator), held_out=number == 3)
    from pruners.reconstruction import _settle

    before = module.weight.data.clone()
    ridge, start, end = _settle(module, sums, (1e-6, 1e-5), 1.0)
    assert ridge is None
    assert start == end
    assert torch.equal(module.weight.data, before)


@pytest.mark.parametrize("name", sorted(set(CASES) - UNCUT))
def test_every_family_lacks_less_of_its_parent(name: str) -> None:
    parent = tiny_model(name)
    plan, ids = cut_of(parent), ids_of(48, length=8)
    plain, mended, done = cut_and_mend(parent, plan, ids)
    assert done.rewrites
    assert any(each.ridge is not None for each in done.rewrites)
    assert all(each.after <= each.before for each in done.rewrites)
    assert {each.target for each in done.rewrites} == {"block" if name in SANDWICH else "residual"}
    expected = {"o", "down"} if any(layer.channels for layer in plan.parent.layers) else {"o"}
    assert {each.role for each in done.rewrites} == expected
    changed = {name for name, values in mended.named_parameters() if not torch.equal(values, plain.get_parameter(name))}
    fitted = {each.parameter for each in done.rewrites}
    assert changed <= fitted | {name.replace("weight", "bias") for name in fitted}
    assert [p.shape for p in mended.parameters()] == [p.shape for p in plain.parameters()]
    first = next(each for each in done.rewrites if each.ridge is not None)
    assert first.after < 0.97 * first.before


def test_layer_below_a_dropped_one_takes_over_its_work() -> None:
    parent = llama(layers=3)
    plan = PruningPlan.of(dissect(parent).shape, {1: None})
    ids = ids_of(48)
    plain, mended, done = cut_and_mend(parent, plan, ids)
    assert [(each.layer, each.role) for each in done.rewrites] == [(0, "o"), (0, "down"), (2, "o"), (2, "down")]
    assert done.rewrites[0].ridge is None  # nothing is missing before the layer that is gone
    assert done.rewrites[1].after < done.rewrites[1].before
    assert off(mended, parent, ids) < off(plain, parent, ids)


def test_first_layer_dropped_is_made_up_for_by_the_next() -> None:
    parent = llama(layers=3)
    plan = PruningPlan.of(dissect(parent).shape, {0: None})
    plain, mended, done = cut_and_mend(parent, plan, ids_of(48))
    assert done.rewrites[0].layer == 1
    assert done.rewrites[0].after < done.rewrites[0].before
    assert off(mended, parent, ids_of(48)) < off(plain, parent, ids_of(48))


def test_half_precision_is_rounded_once_and_judged_as_stored() -> None:
    parent = llama(torch.bfloat16)
    _, mended, done = cut_and_mend(parent, cut_of(parent), ids_of(32))
    assert all(values.dtype == torch.bfloat16 for values in mended.parameters())
    assert done.rewrites[0].ridge is not None
    assert done.rewrites[0].after < done.rewrites[0].before


def test_batch_size_changes_nothing() -> None:
    parent, ids = llama(), ids_of(20)
    _, one, _ = cut_and_mend(parent, cut_of(parent), ids, batch_size=1)
    _, other, _ = cut_and_mend(parent, cut_of(parent), ids, batch_size=64)
    torch.testing.assert_close(o_of(one), o_of(other))


def test_parent_and_modes_stay_as_they_were() -> None:
    parent = llama()
    before = copy.deepcopy(parent.state_dict())
    child = prune(copy.deepcopy(parent), cut_of(parent)).train()
    reconstruct(child, parent, cut_of(parent), ids_of(8))
    assert all(torch.equal(values, parent.state_dict()[name]) for name, values in before.items())
    assert child.training
    assert not parent.training
    assert not any(
        module._forward_hooks or module._forward_pre_hooks for m in (child, parent) for module in m.modules()
    )


def test_refusals_are_one_line() -> None:
    parent = llama()
    plan = cut_of(parent)
    child = prune(copy.deepcopy(parent), plan)
    with pytest.raises(CalibrationError, match="needs 2 windows or more"):
        reconstruct(child, parent, plan, ids_of(1))
    with pytest.raises(CalibrationError, match="token"):
        reconstruct(child, parent, plan, ids_of(4) + 1000)
    with pytest.raises(UsageError, match="not what the plan makes"):
        reconstruct(parent, parent, plan, ids_of(4))
    with pytest.raises(PlanError, match="another model"):
        reconstruct(child, child, plan, ids_of(4))
    with pytest.raises(UsageError, match="ridges must be above 0"):
        reconstruct(child, parent, plan, ids_of(4), ridges=(0.0,))


@pytest.mark.parametrize("bias", [False, True])
def test_biases_carry_the_mean_of_what_was_removed(bias: bool) -> None:
    parent, ids = llama(bias=bias, layers=1), ids_of(16)
    plan = cut_of(parent)
    child = prune(copy.deepcopy(parent), plan)
    names = compensate_biases(child, parent, plan, ids)
    assert names == ("model.layers.0.self_attn.o_proj.bias", "model.layers.0.mlp.down_proj.bias")
    o = parent.model.layers[0].self_attn.o_proj
    mean = torch.tensor(inputs_of(o, parent, ids)).mean(0)
    gone = slice(16, 32)  # the second group's four query heads of 4
    expected = o.weight.data[:, gone] @ mean[gone] + (o.bias.data if bias else 0)
    torch.testing.assert_close(child.model.layers[0].self_attn.o_proj.bias.data, expected)


def test_biases_mend_and_a_plan_that_removes_nothing_makes_none(trained: Any, mended: Any) -> None:
    parent, ids, held = trained
    plan = cut_of(parent, channels=False)
    helped = prune(copy.deepcopy(parent), plan)
    assert len(compensate_biases(helped, parent, plan, ids)) == 6
    assert off(helped, parent, held) < off(mended[0], parent, held)
    same = copy.deepcopy(parent)
    assert compensate_biases(same, parent, PruningPlan.of(dissect(parent).shape, {}), ids) == ()
