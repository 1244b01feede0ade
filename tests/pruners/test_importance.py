"""Scores against what they are said to be: formulas written out, finite differences, models whose answer is known."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_models import tiny_ids, tiny_model
from torch.nn import functional as F

from pruners.activations import Moments
from pruners.anatomy import dissect
from pruners.calibration import CalibrationError
from pruners.importance import (
    TAYLOR_KINDS,
    CannotScore,
    Importance,
    block_influence,
    fluctuation,
    magnitude,
    random_importance,
    taylor,
    wanda,
)
from pruners.selection import Request, select

HEADS, KV, WIDTH = 12, 3, 8  # of the tiny models
GROUP = HEADS // KV
METHODS = {
    "magnitude": lambda model, ids: magnitude(model),
    "taylor": lambda model, ids: taylor(model, ids, "param_mix"),
    "second": lambda model, ids: taylor(model, ids, "param_second"),
    "wanda": wanda,
    "fluctuation": fluctuation,
}


def assert_same(one: Importance, other: Importance, rtol: float = 1e-9) -> None:
    for mine, theirs in ((one.queries, other.queries), (one.kv, other.kv), (one.channels, other.channels)):
        for a, b in zip(mine, theirs, strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                torch.testing.assert_close(a, b, rtol=rtol, atol=0.0)
    for a, b in zip(one.experts, other.experts, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            torch.testing.assert_close(a[name], b[name], rtol=rtol, atol=0.0)


# Groups


def test_groups_of_contiguous_heads_are_ranked_where_interleaved_sums_mislead():
    model = tiny_model("llama")
    with torch.no_grad():  # the heads of group 1 are worth least, and heads 0, 3, 6, 9 less than other such fours
        for layer in model.model.layers:
            for head, factor in enumerate([0.4, 1.0, 1.0, 0.4, 0.3, 0.3, 0.3, 0.3, 1.0, 0.4, 1.0, 1.0]):
                layer.self_attn.q_proj.weight[head * WIDTH : (head + 1) * WIDTH] *= factor
                layer.self_attn.o_proj.weight[:, head * WIDTH : (head + 1) * WIDTH] *= factor
    found = magnitude(model)
    for layer in range(4):
        interleaved = found.kv[layer] + found.queries[layer].view(GROUP, KV).sum(0)
        assert int(found.groups(layer).argmin()) == 1
        assert int(interleaved.argmin()) != 1, "the model does not tell the two apart"
    plan = select(dissect(model).shape, found, Request(0.3)).plan
    assert all(layer.kv_heads(shape) == (0, 2) for layer, shape in zip(plan.layers, plan.parent.layers, strict=True))


def test_groups_of_a_layer_without_attention_says_so():
    found = random_importance(tiny_model("qwen3_next"))
    with pytest.raises(CannotScore, match="layer 0 has no attention"):
        found.groups(0)


# Magnitude


@pytest.mark.parametrize("p", [1, 2])
def test_magnitude_is_the_sum_over_rows_columns_and_biases(p):
    model = tiny_model("llama_bias")
    found = magnitude(model, p)
    a, m = model.model.layers[2].self_attn, model.model.layers[2].mlp

    def rows(linear, unit):
        both = torch.cat([linear.weight, linear.bias[:, None]], 1).double().abs() ** p
        return both.view(-1, unit, both.shape[1]).sum((1, 2))

    def columns(linear, unit):
        return (linear.weight.double().abs() ** p).T.reshape(-1, unit, linear.out_features).sum((1, 2))

    torch.testing.assert_close(found.queries[2], rows(a.q_proj, WIDTH) + columns(a.o_proj, WIDTH))
    torch.testing.assert_close(found.kv[2], rows(a.k_proj, WIDTH) + rows(a.v_proj, WIDTH))
    torch.testing.assert_close(found.channels[2], rows(m.gate_proj, 1) + rows(m.up_proj, 1) + columns(m.down_proj, 1))


def fused_twins():
    """A llama and a phi3 that compute the same, the second with q, k, v in one matrix and gate, up in another."""
    plain, fused = tiny_model("llama").double(), tiny_model("phi3", rms_norm_eps=1e-6).double()
    values = plain.state_dict()
    with torch.no_grad():
        for name, parameter in fused.named_parameters():
            if "qkv_proj" in name:
                parts = [values[name.replace("qkv_proj", f"{role}_proj")] for role in "qkv"]
            elif "gate_up_proj" in name:
                parts = [values[name.replace("gate_up_proj", f"{role}_proj")] for role in ("gate", "up")]
            else:
                parts = [values[name]]
            parameter.copy_(torch.cat(parts))
    return plain, fused


@pytest.mark.parametrize("method", METHODS)
def test_fused_layout_scores_as_the_plain_one(method):
    plain, fused = fused_twins()
    ids = tiny_ids()
    assert_same(METHODS[method](plain, ids), METHODS[method](fused, ids), rtol=1e-5)


# Taylor


def losses_and_gradients(model, ids):
    """(g of the mean loss, h: mean of each example's squared gradient), by transformers' own loss."""
    model.zero_grad()
    model(ids, labels=ids).loss.backward()
    g = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    h = {name: torch.zeros_like(value) for name, value in g.items()}
    for one in ids:
        model.zero_grad()
        model(one[None], labels=one[None]).loss.backward()
        for name, parameter in model.named_parameters():
            h[name] += parameter.grad**2 / len(ids)
    model.zero_grad()
    return g, h


@pytest.mark.parametrize("kind", TAYLOR_KINDS)
def test_taylor_is_llm_pruners_formula_over_rows_and_columns(kind):
    model, ids = tiny_model("qwen2").double(), tiny_ids(batch=3)
    found = taylor(model, ids, kind)
    g, h = losses_and_gradients(model, ids)
    weights = dict(model.named_parameters())

    def line_scores(name, dim):
        w, first, second = weights[name], g[name], h[name]
        salience = {"param_second": w * second * w, "param_mix": w * first - 0.5 * w * second * w}.get(kind, w * first)
        if w.dim() == 1:
            return salience.abs()
        return salience.sum(dim).abs() if kind == "vectorize" else salience.abs().sum(dim)

    def per_head(name, dim=1):
        return line_scores(name, dim).view(-1, WIDTH).sum(1).detach()

    at = "model.layers.1.self_attn."
    queries = per_head(f"{at}q_proj.weight") + per_head(f"{at}q_proj.bias") + per_head(f"{at}o_proj.weight", 0)
    kv = sum(per_head(f"{at}{role}_proj.{what}") for role in "kv" for what in ("weight", "bias"))
    at = "model.layers.1.mlp."
    channels = sum(line_scores(f"{at}{role}_proj.weight", 1) for role in ("gate", "up"))
    channels = channels + line_scores(f"{at}down_proj.weight", 0)
    torch.testing.assert_close(found.queries[1], queries, rtol=1e-4, atol=0)
    torch.testing.assert_close(found.kv[1], kv, rtol=1e-4, atol=0)
    torch.testing.assert_close(found.channels[1], channels.detach(), rtol=1e-4, atol=0)


def test_taylor_of_stacked_experts_takes_each_ones_own_gradient():
    model, ids = tiny_model("mixtral"), tiny_ids(batch=3)
    found = taylor(model, ids, "param_second").experts[1]
    _, h = losses_and_gradients(model, ids)
    experts, at = model.model.layers[1].mlp.experts, "model.layers.1.mlp.experts."
    for expert in range(5):
        both = (experts.gate_up_proj[expert] ** 2 * h[f"{at}gate_up_proj"][expert]).sum(1).view(2, -1).sum(0)
        down = (experts.down_proj[expert] ** 2 * h[f"{at}down_proj"][expert]).sum(0)
        torch.testing.assert_close(found[expert], (both + down).detach().double(), rtol=1e-3, atol=1e-12)


def test_vectorize_is_how_fast_the_loss_changes_as_lines_fade():
    model, ids = tiny_model("llama").double(), tiny_ids(length=12)
    found = taylor(model, ids, "vectorize")
    mlp, attention = model.model.layers[0].mlp, model.model.layers[0].self_attn

    @torch.no_grad()
    def slope(view, eps=3e-3):
        before, losses = view.clone(), []
        for sign in (1, -1):
            view.copy_(before * (1 + sign * eps))
            logits = model(ids).logits[:, :-1]
            losses.append(float(F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())))
        view.copy_(before)
        return abs(losses[0] - losses[1]) / (2 * eps)

    for c in (0, 57):
        lines = [mlp.gate_proj.weight.data[c], mlp.up_proj.weight.data[c], mlp.down_proj.weight.data[:, c]]
        assert sum(map(slope, lines)) == pytest.approx(float(found.channels[0][c]), rel=2e-3)
    lines = [attention.q_proj.weight.data[row] for row in range(5 * WIDTH, 6 * WIDTH)]
    lines += [attention.o_proj.weight.data[:, column] for column in range(5 * WIDTH, 6 * WIDTH)]
    assert sum(map(slope, lines)) == pytest.approx(float(found.queries[0][5]), rel=2e-3)


def half_model(scale):
    """A float16 model whose gradients are ``scale`` times the usual ones, and the same weights in float32."""
    wide = tiny_model("llama")
    with torch.no_grad():
        for parameter in wide.parameters():
            parameter.mul_(0.3 if parameter.dim() > 1 else 1.0)
        wide.lm_head.weight.mul_(scale)
    half = wide.half()
    return half, copy.deepcopy(half).float()


@pytest.mark.parametrize("kind", TAYLOR_KINDS)
@pytest.mark.parametrize("scale", [2e-6, 300.0])
def test_taylor_of_a_half_precision_model_neither_vanishes_nor_overflows(kind, scale):
    half, wide = half_model(scale)
    ids = tiny_ids()
    found, right = taylor(half, ids, kind), taylor(wide, ids, kind)
    assert all(bool((scores > 0).all()) for scores in (*found.queries, *found.kv, *found.channels))
    rtol = 0.6 if kind == "vectorize" else 0.15
    for mine, theirs in zip(found.channels, right.channels, strict=True):
        apart = ((mine - theirs).abs() / theirs).median()
        assert float(apart) < rtol


def test_plain_squares_would_have_vanished():
    half, _ = half_model(2e-6)
    ids = tiny_ids()
    half(ids, labels=ids).loss.backward()
    assert not bool((half.model.layers[0].mlp.up_proj.weight.grad ** 2).any()), "the test above tests nothing"


def test_bfloat16_scores_are_near_those_of_float32():
    wide, ids = half_model(1.0)[1], tiny_ids()
    half = copy.deepcopy(wide).bfloat16()
    wide = copy.deepcopy(half).float()
    for method in (METHODS["second"], wanda):
        for mine, theirs in zip(method(half, ids).channels, method(wide, ids).channels, strict=True):
            assert torch.corrcoef(torch.stack([mine, theirs]))[0, 1] > 0.98


# Activations


def inputs_of(model, ids, modules):
    found, handles = {}, []
    for name in modules:
        handles.append(
            model.get_submodule(name).register_forward_pre_hook(
                lambda _, args, name=name: found.__setitem__(name, args[0].detach().flatten(0, -2))
            )
        )
    with torch.no_grad():
        model(ids)
    for handle in handles:
        handle.remove()
    return found


def test_wanda_and_fluctuation_are_weights_times_what_the_columns_are_given():
    model, ids = tiny_model("qwen3").double(), tiny_ids(batch=3)
    names = ("model.layers.3.self_attn.o_proj", "model.layers.3.mlp.down_proj")
    seen = inputs_of(model, ids, names)
    o, down = (model.get_submodule(name).weight.detach() for name in names)
    x, y = (seen[name] for name in names)
    by_norm, by_variance = wanda(model, ids), fluctuation(model, ids)
    for found, heads, channels in (
        (by_norm, o.abs().sum(0) * x.square().mean(0).sqrt(), down.abs().sum(0) * y.square().mean(0).sqrt()),
        (by_variance, o.square().sum(0) * x.var(0, correction=0), down.square().sum(0) * y.var(0, correction=0)),
    ):
        torch.testing.assert_close(found.queries[3], heads.view(HEADS, -1).sum(1))
        torch.testing.assert_close(found.channels[3], channels)
        assert not bool(found.kv[3].any())
        torch.testing.assert_close(found.groups(3), heads.view(KV, -1).sum(1))


def test_wanda_of_stacked_experts_sees_what_each_is_given():
    model, ids = tiny_model("mixtral"), tiny_ids()
    experts, seen = model.model.layers[1].mlp.experts, []
    handle = experts.register_forward_pre_hook(lambda _, args: seen.append(args[:2]))
    with torch.no_grad():
        model(ids)
    handle.remove()
    ((hidden, chosen),) = seen
    found = wanda(model, ids).experts[1]
    assert set(found) == set(range(5))
    for expert in range(5):
        tokens = hidden[(chosen == expert).any(-1)]
        gate, up = F.linear(tokens, experts.gate_up_proj[expert]).chunk(2, -1)
        norm = ((F.silu(gate) * up).square().sum(0) / ids.numel()).sqrt()
        right = experts.down_proj[expert].abs().sum(0) * norm
        torch.testing.assert_close(found[expert], right.detach().double(), rtol=1e-4, atol=1e-6)


def test_an_expert_that_no_token_reaches_is_ranked_by_its_weights():
    model, ids = tiny_model("mixtral"), tiny_ids(length=6, batch=1)
    with torch.no_grad():
        model.model.layers[0].mlp.gate.weight[3] = -1e3 * model.model.layers[0].mlp.gate.weight[0]
        model.model.layers[0].mlp.gate.weight[3] *= 0
        reach = model.model.layers[0].mlp
        handle = reach.experts.register_forward_pre_hook(lambda _, args: chosen.append(args[1]))
        chosen = []
        model(ids)
        handle.remove()
    never = next(expert for expert in range(5) if not bool((chosen[0] == expert).any()))
    found = wanda(model, ids).experts[0]
    weights = reach.experts.down_proj[never].abs().sum(0).double()
    assert torch.equal(found[never].argsort(), weights.argsort())
    assert float(found[never].max()) < min(float(s.mean()) for name, s in found.items() if name != never)
    assert bool((taylor(model, ids).experts[0][never] == 0).all())


def test_moments_of_a_small_variance_on_a_large_mean_are_exact():
    rows = 1e6 + torch.randn(1000, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 1e-3
    moments = Moments(0, torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64))
    for part in rows.split(37):
        moments.add(part)
    torch.testing.assert_close(moments.deviations / 1000, rows.var(0, correction=0), rtol=1e-6, atol=0)


def test_block_influence_is_one_minus_the_mean_cosine():
    model, ids = tiny_model("gemma2").double(), tiny_ids(batch=3)
    with torch.no_grad():
        states = model(ids, output_hidden_states=True).hidden_states
    found = block_influence(model, ids)
    for layer in range(3):  # transformers' last one is behind the final norm
        right = 1 - F.cosine_similarity(states[layer], states[layer + 1], dim=-1).mean()
        assert float(found[layer]) == pytest.approx(float(right), abs=1e-6)


# All of them


@pytest.mark.parametrize("name", ["gemma3", "olmo2", "starcoder2", "falcon", "qwen2_moe", "qwen3_next", "gpt_oss"])
def test_every_family_gets_a_positive_score_for_every_part(name):
    model, ids = tiny_model(name), tiny_ids(length=16)
    shape = dissect(model).shape
    for method in METHODS.values():
        found = method(model, ids)
        found.require_fit(shape)
        scores = [*found.queries, *found.channels]
        assert all(bool((each > 0).float().mean() > 0.5) for each in scores if each is not None)


@pytest.mark.parametrize("name", ["llama", "mixtral"])
@pytest.mark.parametrize("method", [*METHODS, "block_influence"])
def test_scoring_leaves_no_trace_on_the_model(name, method):
    run = {**METHODS, "block_influence": block_influence}[method]
    model, ids = tiny_model(name), tiny_ids()
    model.train()
    model.model.layers[1].eval()
    for number, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(number % 3 == 0)
        if number % 2 == 0:
            parameter.grad = torch.full_like(parameter, 0.5)
    model.config.use_cache = True

    def state():
        return (
            {name: value.clone() for name, value in model.state_dict().items()},
            {name: (p.requires_grad, None if p.grad is None else p.grad.unique().tolist()) for name, p in named},
            [module.training for module in model.modules()],
            [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in model.modules()],
            [len(getattr(p, "_post_accumulate_grad_hooks", None) or ()) for _, p in named],
            (model.config.use_cache, getattr(model.config, "_experts_implementation", None), model.config.to_dict()),
            torch.get_rng_state().tolist(),
        )

    named = list(model.named_parameters())
    before = state()
    first = run(model, ids)
    with torch.no_grad():
        second = run(model, ids)
    with torch.inference_mode():
        third = run(model, ids)
    after = state()
    assert all(torch.equal(value, after[0][name]) for name, value in before[0].items())
    assert before[1:] == after[1:]
    for other in (second, third):
        if method == "block_influence":
            assert torch.equal(first, other)
        else:
            assert_same(first, other, rtol=0.0)


@pytest.mark.parametrize("method", METHODS)
def test_dropout_has_no_say(method):
    model, ids = tiny_model("llama", attention_dropout=0.5), tiny_ids(length=8)
    assert_same(METHODS[method](model.eval(), ids), METHODS[method](model.train(), ids), rtol=0.0)
    assert_same(METHODS[method](model, ids), METHODS[method](model, ids), rtol=0.0)


@pytest.mark.parametrize("name", ["cohere_qk_norm", "olmo2", "gpt_oss"])
def test_norms_and_sinks_have_no_say_in_magnitude(name):
    model = tiny_model(name)
    before = magnitude(model)
    with torch.no_grad():
        for part, parameter in model.named_parameters():
            if "norm" in part or part.endswith("sinks"):
                parameter.mul_(7.0)
    assert_same(before, magnitude(model), rtol=0.0)


def test_scoring_that_fails_midway_leaves_no_trace_either():
    model, ids = tiny_model("llama").eval().requires_grad_(False), tiny_ids()
    model.model.layers[2].mlp.down_proj.weight.data[0, 0] = float("nan")
    for run in METHODS.values():
        with pytest.raises(CannotScore, match="finite"):
            run(model, ids)
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


def test_random_importance_depends_on_shape_and_seed_alone():
    model = tiny_model("qwen2_moe")
    one, again = random_importance(model, 3), random_importance(dissect(model).shape, 3)
    assert_same(one, again, rtol=0.0)
    torch.testing.assert_close(one.groups(1), one.kv[1] + one.queries[1].view(KV, GROUP).sum(1))
    assert not torch.equal(one.queries[0], random_importance(model, 4).queries[0])


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        (torch.zeros(0, 8, dtype=torch.long), r"at least 1 example"),
        (torch.zeros(2, 1, dtype=torch.long), r"\[2, 1\]"),
        (torch.full((1, 4), 320), r"token 320 and the model knows 0-319"),
        (torch.full((1, 4), -100), r"token -100"),
    ],
)
def test_batches_that_are_not_for_the_model_are_refused(ids, said):
    model = tiny_model("llama")
    for run in (taylor, wanda, fluctuation, block_influence):
        with pytest.raises(CalibrationError, match=said):
            run(model, ids)


def test_weights_without_values_are_refused():
    model = tiny_model("llama").to("meta")
    with pytest.raises(CannotScore, match="no values yet"):
        magnitude(model)
    with pytest.raises(ValueError, match="param_first"):
        taylor(tiny_model("llama"), tiny_ids(), "first")
