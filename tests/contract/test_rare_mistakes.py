"""Pruners that are wrong for one kind of model and right for all others: found at the default settings, not by luck."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from own_pruners import Guided
from torch import nn

from gqacheck.testing import GqaConfig, PruningRequest
from gqacheck.testing.cover import covering_cases
from gqacheck.testing.declared import declared_by
from gqacheck.testing.models import BIASES
from gqacheck.testing.strategies import SHARES
from pruners.importance import Importance, magnitude


@pytest.fixture(autouse=True)
def default_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GQACHECK_CASES", raising=False)


class AsDeclaredByDefault(Guided):
    """A sound pruner with the parts, families and number of cases of ``PrunerContract`` itself."""

    parts = ("kv_groups", "mlp")

    def score(self, model: Any, request: PruningRequest) -> Importance:
        return magnitude(model)


def cut_attention(child: Any) -> Iterator[Any]:
    return (each.self_attn for each in child.model.layers if each.self_attn.k_proj.out_features < n_kv_rows(child))


def n_kv_rows(child: Any) -> int:
    """Of a layer of the given model: no mistake here changes k's norm or the config's head_dim."""
    return int(child.given_kv_rows)


def cut_mlps(child: Any) -> Iterator[Any]:
    return (each.mlp for each in child.model.layers if each.mlp.gate_proj.out_features < child.given_channels)


def zero_the_bias_of_o(child: Any) -> None:
    for attention in cut_attention(child):
        if attention.o_proj.bias is not None:
            attention.o_proj.bias.data.zero_()


def reset_the_norms_of_heads(child: Any) -> None:
    for attention in cut_attention(child):
        if hasattr(attention, "q_norm"):
            attention.q_norm.weight.data.fill_(1)
            attention.k_norm.weight.data.fill_(1)


def compensate_where_seven_share(child: Any) -> None:
    for attention in cut_attention(child):
        if attention.num_key_value_groups == 7:
            attention.o_proj.weight.data *= 1.25


def spoil_the_third_layer(child: Any) -> None:
    for attention in cut_attention(child):
        if attention.layer_idx == 2:
            attention.o_proj.weight.data *= 1.2


def zero_the_bias_of_down(child: Any) -> None:
    for mlp in cut_mlps(child):
        if mlp.down_proj.bias is not None:
            mlp.down_proj.bias.data.zero_()


def lose_the_bias_of_down(child: Any) -> None:
    for mlp in cut_mlps(child):
        mlp.down_proj.bias = None


def all_but_the_third_layer(child: Any) -> None:
    zero_the_bias_of_o(child)
    reset_the_norms_of_heads(child)
    compensate_where_seven_share(child)
    lose_the_bias_of_down(child)


def untie(child: Any) -> None:
    if child.config.tie_word_embeddings and (any(cut_attention(child)) or any(cut_mlps(child))):
        child.lm_head.weight = nn.Parameter(child.lm_head.weight.data.clone())
        child.config.tie_word_embeddings = False


MASKED, AMOUNTS = "pruned_model_equals_the_masked_parent", "what_was_asked_for_goes_and_nothing_else"


@pytest.mark.parametrize(
    ("mistake", "name", "smallest"),
    [
        (zero_the_bias_of_o, MASKED, "llama, 1 layer, 6 query heads on 3 KV heads, head_dim 4, 8 channels"),
        (reset_the_norms_of_heads, MASKED, "qwen3, 1 layer, 6 query heads on 3 KV heads, head_dim 4, 8 channels"),
        (compensate_where_seven_share, MASKED, "llama, 1 layer, 14 query heads on 2 KV heads, head_dim 4, 8 channels"),
        (zero_the_bias_of_down, MASKED, "llama, 1 layer, 6 query heads on 3 KV heads, head_dim 4, 8 channels"),
        (spoil_the_third_layer, MASKED, "llama, 3 layers, 6 query heads on 3 KV heads, head_dim 4, 8 channels"),
        (untie, AMOUNTS, "llama, 1 layer, 6 query heads on 3 KV heads, head_dim 4, 8 channels"),
        (lose_the_bias_of_down, MASKED, "llama, 1 layer, 6 query heads on 3 KV heads, head_dim 4, 8 channels"),
        (all_but_the_third_layer, MASKED, "1 layer"),
    ],
)
def test_mistake_with_one_kind_of_model_is_found_and_shrunk(
    mistake: Callable[[Any], None], name: str, smallest: str
) -> None:
    class Mistaken(AsDeclaredByDefault):
        def prune(self, model: Any, request: PruningRequest) -> Any:
            rows, channels = model.model.layers[0].self_attn.k_proj.out_features, model.config.intermediate_size
            child = super().prune(model, request)
            child.given_kv_rows, child.given_channels = rows, channels
            mistake(child)
            del child.given_kv_rows, child.given_channels
            return child

    with pytest.raises(pytest.fail.Exception) as caught:
        getattr(Mistaken(), f"test_{name}")()
    assert smallest in str(caught.value)
    assert f"\nconfig = {GqaConfig.__name__}(family=" in str(caught.value)
    assert "\nrequest = PruningRequest(ratio=" in str(caught.value)


@pytest.mark.parametrize("parts", [("kv_groups", "mlp"), ("kv_groups", "queries", "mlp"), ("queries",), ("mlp",)])
@pytest.mark.parametrize("layer_ranges", [True, False])
def test_fixed_cases_let_every_part_meet_every_kind_of_model(parts: Any, layer_ranges: bool) -> None:
    declared = type("Declared", (Guided,), {"parts": parts, "layer_ranges": layer_ranges})
    cases = covering_cases(declared_by(declared), SHARES)
    assert len(set(cases)) == len(cases) <= Guided.examples
    for part in parts:
        met = [case for case in cases if part in case.request.parts]
        assert {case.config.family for case in met} == set(Guided.families)
        assert {case.config.family for case in met if case.config.bias} == set(Guided.families) & set(BIASES)
        assert {(case.config.group_size, case.config.n_kv_heads) for case in met} == set(Guided.ratios)
        assert {case.config.tied for case in met} == {True, False}
        cut = [case.request.layer_range(case.config.n_layers) for case in met if case.config.n_layers > 1]
        assert any(2 in layers for layers in cut)
        assert any(case.request.layers is not None for case in met) is layer_ranges
    if len(parts) > 1:
        assert {(part,) for part in parts} <= {case.request.parts for case in cases}


def test_fixed_cases_cut_something_of_every_part_however_a_pruner_rounds() -> None:
    for case in covering_cases(declared_by(Guided), SHARES):
        counts = {"kv_groups": case.config.n_kv_heads, "queries": case.config.group_size}
        for part in case.request.parts:
            size = counts.get(part, case.config.intermediate_size)
            assert 1 <= case.request.ratio * size < size - 0.5


class DrawsFromTheSystem(AsDeclaredByDefault):
    def prune(self, model: Any, request: PruningRequest) -> Any:
        child = super().prune(model, request)
        child.lm_head.weight.data *= 1 + secrets.randbelow(10**6)
        return child


class WrongEverySeventhTime(AsDeclaredByDefault):
    calls = 0

    def prune(self, model: Any, request: PruningRequest) -> Any:
        type(self).calls += 1
        child = super().prune(model, request)
        if not self.calls % 7:
            child.model.embed_tokens.weight.data *= 2
        return child


class RaisesOnce(AsDeclaredByDefault):
    calls = 0

    def prune(self, model: Any, request: PruningRequest) -> Any:
        type(self).calls += 1
        if self.calls == 3:
            raise KeyError("once")
        return super().prune(model, request)


def test_state_that_stays_between_calls_is_told_as_such() -> None:
    with pytest.raises(pytest.fail.Exception) as caught:
        WrongEverySeventhTime().test_pruned_model_equals_the_masked_parent()
    told = str(caught.value)
    assert told.startswith("the same case gave two results, so the pruner is not deterministic")
    assert "\none of the two: the pruned model is not the given model with the missing parts masked" in told
    assert "\n  model  " in told
    assert "ypothesis" not in told


def test_exception_that_comes_once_is_the_pruners_and_told_as_such() -> None:
    with pytest.raises(KeyError, match="once") as caught:
        RaisesOnce().test_pruned_model_trains()
    assert any("the same case gave two results" in note for note in caught.value.__notes__)


def test_pruner_that_draws_from_the_system_is_told_in_the_contracts_words() -> None:
    with pytest.raises(pytest.fail.Exception, match=r"the same request gave two models: .*weight differs") as caught:
        DrawsFromTheSystem().test_same_request_gives_the_same_model()
    assert "ypothesis" not in str(caught.value)


def test_exception_of_a_pruner_tells_the_smallest_case_that_raises_it() -> None:
    class Raising(AsDeclaredByDefault):
        def prune(self, model: Any, request: PruningRequest) -> Any:
            if model.config.num_key_value_heads == 5:
                raise KeyError("my own")
            return super().prune(model, request)

    with pytest.raises(KeyError, match="my own") as caught:
        Raising().test_pruned_model_trains()
    (note,) = caught.value.__notes__
    assert "llama, 1 layer, 10 query heads on 5 KV heads, head_dim 4, 8 channels" in note
    assert "\nconfig = GqaConfig(family='llama', group_size=2, n_kv_heads=5" in note
    assert caught.traceback[-1].name == "prune"


def test_pruner_that_refuses_every_case_has_not_passed() -> None:
    class Refusing(AsDeclaredByDefault):
        parts = ("kv_groups",)
        ratios = ((8, 1),)

        def prune(self, model: Any, request: PruningRequest) -> Any:
            raise ValueError("one KV head is all there is")

    with pytest.raises(pytest.fail.Exception, match="nothing was pruned: each of the 24 cases was refused"):
        Refusing().test_shapes_attributes_and_config_agree()
