"""Every property of the contract can fail: pruners that are wrong in one way each, and what they are told."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from own_pruners import Guided, plan_for
from torch import nn

from gqacheck.testing import PruningRequest, broken_properties
from pruners.anatomy import dissect
from pruners.importance import random_importance
from pruners.plan import PruningPlan
from pruners.truncate import keep_first_queries, keep_top_queries_blind_to_groups

PAIRING = {"pruned_model_equals_the_masked_parent", "query_heads_keep_their_own_kv_heads"}


@pytest.fixture(autouse=True)
def few_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GQACHECK_CASES", raising=False)


class FirstQueries(Guided):
    parts = ("kv_groups",)
    examples = 4

    def carry_out(self, model: Any, plan: PruningPlan) -> Any:
        return keep_first_queries(model, plan)


class BlindToGroups(Guided):
    parts = ("kv_groups",)
    examples = 4

    def carry_out(self, model: Any, plan: PruningPlan) -> Any:
        return keep_top_queries_blind_to_groups(model, plan, random_importance(plan.parent, seed=4))


@pytest.mark.parametrize("control", [FirstQueries, BlindToGroups])
def test_negative_control_breaks_the_two_properties_of_pairing_and_no_other(control: type[Guided]) -> None:
    """Its shapes, attributes, config, round trip and training are all right: only the parent gives it away."""
    assert set(broken_properties(control)) == PAIRING


@pytest.mark.parametrize("control", [FirstQueries, BlindToGroups])
def test_negative_control_shrinks_to_a_small_model_and_names_layer_and_heads(control: type[Guided]) -> None:
    for name in PAIRING:
        with pytest.raises(pytest.fail.Exception) as caught:
            getattr(control(), f"test_{name}")()
        told = str(caught.value)
        assert "llama, 1 layer, 6 query heads on 3 KV heads, head_dim 4, 8 channels" in told
        assert "remove 0.5 of the KV groups of all layers" in told
        assert told.startswith(
            ("the pruned model is not the given", "the pruned model's heads or channels are not pai")
        )
        assert "GQA601 head-regrouped" in told
        assert "layer 0" in told
        assert "KV group" in told
        assert "GqaConfig(family='llama'" in told
        assert "Traceback" not in told
        assert "rewrites_weights" not in told


Change = Callable[[Any, PruningRequest], Any]


def first_layer(model: Any) -> Any:
    return model.model.layers[0]


def stale_features(child: Any, request: PruningRequest) -> Any:
    first_layer(child).self_attn.q_proj.out_features += 4
    return child


def stale_config(child: Any, request: PruningRequest) -> Any:
    child.config.num_attention_heads += 1
    return child


def exchange_query_heads(child: Any, request: PruningRequest) -> Any:
    """Of q alone: o_proj's columns stay where they are."""
    q = first_layer(child).self_attn.q_proj
    q.weight.data = q.weight.data.roll(first_layer(child).self_attn.head_dim, 0)
    return child


def exchange_gate_rows(child: Any, request: PruningRequest) -> Any:
    gate = first_layer(child).mlp.gate_proj
    gate.weight.data = gate.weight.data.flip(0)
    return child


def rewrite_down(child: Any, request: PruningRequest) -> Any:
    down = first_layer(child).mlp.down_proj.weight
    down.data = torch.randn(down.shape, generator=torch.Generator().manual_seed(1)).to(down.dtype)
    return child


def begin_anew(child: Any, request: PruningRequest) -> Any:
    generator = torch.Generator().manual_seed(1)
    for parameter in child.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator).to(parameter.dtype) * 0.3
    return child


def make_up_a_head(child: Any, request: PruningRequest) -> Any:
    """In q, k, v and o: rows that no head of the parent has."""
    generator = torch.Generator().manual_seed(1)
    a = first_layer(child).self_attn
    for lines in (a.q_proj.weight.data[: a.head_dim], a.o_proj.weight.data[:, : a.head_dim]):
        lines.copy_(torch.randn(lines.shape, generator=generator))
    return child


def round_weights(child: Any, request: PruningRequest) -> Any:
    return child.bfloat16().float()


def widen_vocabulary(child: Any, request: PruningRequest) -> Any:
    child.config.max_position_embeddings *= 2
    return child


def infinite(child: Any, request: PruningRequest) -> Any:
    child.lm_head.weight.data[3, 3] = float("inf")
    return child


def empty_mlp(child: Any, request: PruningRequest) -> Any:
    if request.ratio < 0.9:
        return child
    for name in ("gate_proj", "up_proj"):
        getattr(first_layer(child).mlp, name).weight = nn.Parameter(torch.empty(0, child.config.hidden_size))
    first_layer(child).mlp.down_proj.weight = nn.Parameter(torch.empty(child.config.hidden_size, 0))
    return child


def refuse_without_a_word(child: Any, request: PruningRequest) -> Any:
    if request.ratio >= 0.9 or (request.layers and request.layers[1] > len(child.model.layers)):
        raise ValueError
    return child


def drop_a_layer(child: Any, request: PruningRequest) -> Any:
    child.model.layers = child.model.layers[:-1]
    child.config.num_hidden_layers -= 1
    return child


def draw_from_the_global_generator(child: Any, request: PruningRequest) -> Any:
    child.lm_head.weight.data += torch.randn(1)
    return child


def draw_from_pythons_generator(child: Any, request: PruningRequest) -> Any:
    child.lm_head.weight.data += random.random()
    return child


def draw_from_numpys_generator(child: Any, request: PruningRequest) -> Any:
    child.lm_head.weight.data += numpy.random.rand()
    return child


def untie(child: Any, request: PruningRequest) -> Any:
    """Whole again, with a config that says so: nothing of it is stale."""
    if request.ratio and child.config.tie_word_embeddings:
        child.lm_head.weight = nn.Parameter(child.lm_head.weight.data.clone())
        child.config.tie_word_embeddings = False
    return child


def seed_the_global_generator(child: Any, request: PruningRequest) -> Any:
    torch.manual_seed(request.seed)
    return child


def freeze(child: Any, request: PruningRequest) -> Any:
    first_layer(child).self_attn.k_proj.weight.requires_grad_(False)
    return child


def cut_off(child: Any, request: PruningRequest) -> Any:
    """The layer's output without a graph behind it."""
    first_layer(child).mlp.register_forward_hook(detached)
    return child


def detached(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    return output.detach()


def mask_by_a_closure(child: Any, request: PruningRequest) -> Any:
    first_layer(child).mlp.register_forward_hook(lambda module, inputs, output: output * 1.0)
    return child


def mask_by_a_hook(child: Any, request: PruningRequest) -> Any:
    first_layer(child).mlp.register_forward_hook(halved)
    return child


def halved(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    return output / 2


def another_way_for_one_token(child: Any, request: PruningRequest) -> Any:
    first_layer(child).mlp.register_forward_hook(halved_for_one_token)
    return child


def halved_for_one_token(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    return output / 2 if output.shape[1] == 1 else output


def raise_in_forward(child: Any, request: PruningRequest) -> Any:
    first_layer(child).mlp.register_forward_hook(broken)
    return child


def broken(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("of its own")


def nothing(child: Any, request: PruningRequest) -> Any:
    return None


MISTAKES: list[tuple[Change, str, str]] = [
    (stale_features, "shapes_attributes_and_config_agree", r"disagree \(GQA201\)\n[\s\S]*E GQA201 out-features-stale"),
    (drop_a_layer, "shapes_attributes_and_config_agree", "cannot be measured: no decoder layers"),
    (stale_config, "shapes_attributes_and_config_agree", r"disagree \(GQA403\)\n[\s\S]*GQA403 config-heads"),
    (infinite, "shapes_attributes_and_config_agree", "logits are not all finite"),
    (raise_in_forward, "shapes_attributes_and_config_agree", "does not run: RuntimeError: of its own"),
    (exchange_query_heads, "pruned_model_equals_the_masked_parent", "missing parts masked: its logits are"),
    (exchange_query_heads, "query_heads_keep_their_own_kv_heads", "GQA60[12]"),
    (exchange_gate_rows, "pruned_model_equals_the_masked_parent", "missing parts masked: its logits are"),
    (exchange_gate_rows, "query_heads_keep_their_own_kv_heads", "GQA604"),
    (rewrite_down, "pruned_model_equals_the_masked_parent", r"allows 1e-10 \(.*rewrites_weights = True\)"),
    (begin_anew, "pruned_model_equals_the_masked_parent", "cannot be told to be the given model's"),
    (begin_anew, "query_heads_keep_their_own_kv_heads", "cannot be told"),
    (make_up_a_head, "pruned_model_equals_the_masked_parent", r"allows 1e-10 \(.*rewrites_weights = True\)"),
    (mask_by_a_hook, "pruned_model_equals_the_masked_parent", "missing parts masked: its logits are"),
    (drop_a_layer, "what_was_asked_for_goes_and_nothing_else", "cannot be measured: no decoder layers"),
    (round_weights, "ratio_zero_changes_nothing", "ratio 0 changed the model .*differs"),
    (widen_vocabulary, "ratio_zero_changes_nothing", "config.max_position_embeddings is 64 in one and 128"),
    (stale_features, "ratio_zero_changes_nothing", r"q_proj.out_features is \d+ in one and \d+"),
    (empty_mlp, "extreme_ratio_leaves_something_or_is_refused", "disagree|is left with 0"),
    (refuse_without_a_word, "extreme_ratio_leaves_something_or_is_refused", "ValueError was raised and does not say"),
    (refuse_without_a_word, "layers_beyond_the_model_are_left_out_or_refused", "ValueError was raised and does not"),
    (mask_by_a_closure, "saved_model_reloads_as_it_was", "saved with torch.save it does not come back"),
    (mask_by_a_hook, "saved_model_reloads_as_it_was", "it comes back as another model: logits differ by"),
    (untie, "what_was_asked_for_goes_and_nothing_else", "lm_head.weight and .*embed_tokens.weight were one tensor and"),
    (draw_from_pythons_generator, "same_request_gives_the_same_model", "two models: lm_head.weight differs"),
    (draw_from_numpys_generator, "same_request_gives_the_same_model", "two models: lm_head.weight differs"),
    (draw_from_the_global_generator, "same_request_gives_the_same_model", "two models: lm_head.weight differs"),
    (seed_the_global_generator, "same_request_gives_the_same_model", "state of a global random generator"),
    (freeze, "pruned_model_trains", "1 parameters do not require a gradient .*k_proj.weight"),
    (cut_off, "pruned_model_trains", r"no gradient reaches model.layers.0.mlp"),
    (raise_in_forward, "pruned_model_trains", "cannot be trained: RuntimeError: of its own"),
    (another_way_for_one_token, "every_way_of_running_it_agrees", "GQA708"),
    (raise_in_forward, "every_way_of_running_it_agrees", "the way it is run|could not be run"),
    (nothing, "pruned_model_trains", "returned NoneType and not a model"),
]


@pytest.mark.parametrize(("mistake", "name", "told"), MISTAKES, ids=lambda value: getattr(value, "__name__", None))
def test_mistake_breaks_the_property_that_is_there_for_it(mistake: Change, name: str, told: str) -> None:
    class Mistaken(Guided):
        families = ("llama",)
        ratios = ((2, 3), (4, 3))
        examples = 6

        def prune(self, model: Any, request: PruningRequest) -> Any:
            return mistake(super().prune(model, request), request)

    with pytest.raises(pytest.fail.Exception, match=told) as caught:
        getattr(Mistaken(), f"test_{name}")()
    assert "llama, 1 layer, 6 query heads on 3 KV heads" in str(caught.value)


class InPlaceWithoutSayingSo(Guided):
    in_place = False


class SharesMemory(Guided):
    in_place = False

    def prune(self, model: Any, request: PruningRequest) -> Any:
        child = super().prune(copy.deepcopy(model), request)
        child.model.embed_tokens.weight = nn.Parameter(model.model.embed_tokens.weight.data)
        return child


class GivesBackTheGivenModel(Guided):
    in_place = False

    def prune(self, model: Any, request: PruningRequest) -> Any:
        return model


@pytest.mark.parametrize(
    ("pruner", "told"),
    [
        (InPlaceWithoutSayingSo, "the given model was changed"),
        (SharesMemory, "shares the memory of .*embed_tokens.weight"),
        (GivesBackTheGivenModel, "what came back is the given one"),
    ],
)
def test_given_model_that_is_not_left_alone_is_told(pruner: type[Guided], told: str) -> None:
    with pytest.raises(pytest.fail.Exception, match=told):
        pruner().test_given_model_is_left_alone()


class DoesNothing(Guided):
    def prune(self, model: Any, request: PruningRequest) -> Any:
        return model


class CutsMlpsToo(Guided):
    parts = ("kv_groups", "queries")

    def prune(self, model: Any, request: PruningRequest) -> Any:
        if not request.ratio:
            return model
        asked = PruningRequest(request.ratio, (*request.parts, "mlp"), request.layers, request.seed)
        return super().prune(model, asked)


class CutsEveryLayer(Guided):
    def prune(self, model: Any, request: PruningRequest) -> Any:
        return super().prune(model, PruningRequest(request.ratio, request.parts, None, request.seed))


class CutsFarTooMuch(Guided):
    parts = ("mlp",)

    def prune(self, model: Any, request: PruningRequest) -> Any:
        more = min(0.9, 2 * request.ratio)
        return super().prune(model, PruningRequest(more, request.parts, request.layers, request.seed))


class RanksGloballyAndDoesNothing(DoesNothing):
    uniform = False


@pytest.mark.parametrize(
    ("pruner", "told"),
    [
        (DoesNothing, r"layer 0: 0 of \d+ \w+ \w+.* went where"),
        (CutsMlpsToo, r"layer 0: \d+ of \d+ MLP channels went where 0 were asked for"),
        (CutsEveryLayer, r"layer \d: .* went where 0 were asked for"),
        (CutsFarTooMuch, r"MLP channels went where"),
        (RanksGloballyAndDoesNothing, r"no .* went where"),
    ],
)
def test_other_amounts_than_were_asked_for_are_told(pruner: type[Guided], told: str) -> None:
    with pytest.raises(pytest.fail.Exception, match=told):
        pruner().test_what_was_asked_for_goes_and_nothing_else()


def test_index_beyond_the_last_layer_is_the_pruners_own_error() -> None:
    class Beyond(Guided):
        examples = 2

        def prune(self, model: Any, request: PruningRequest) -> Any:
            for index in range(*(request.layers or (0, 0))):
                model.model.layers[index].requires_grad_(True)
            return super().prune(model, request)

    assert "IndexError" in broken_properties(Beyond)["layers_beyond_the_model_are_left_out_or_refused"]


@pytest.mark.parametrize(("family", "told"), [("llama", "float32 allows 1e-03"), ("olmo2", "float32 allows 1e-03")])
def test_rounding_in_float32_alone_is_told(family: str, told: str) -> None:
    class Rounding(Guided):
        families = (family,)
        examples = 4

        def prune(self, model: Any, request: PruningRequest) -> Any:
            child = super().prune(model, request)
            return round_weights(child, request) if child.dtype == torch.float32 else child

    with pytest.raises(pytest.fail.Exception, match=told):
        Rounding().test_pruned_model_equals_the_masked_parent()


def test_range_beyond_the_model_that_is_taken_for_none_is_told() -> None:
    class Ignoring(Guided):
        examples = 4

        def prune(self, model: Any, request: PruningRequest) -> Any:
            if request.layers and request.layers[1] > len(model.model.layers):
                return model
            return super().prune(model, request)

    with pytest.raises(pytest.fail.Exception, match=r"layer 0: 0 of .* went where") as caught:
        Ignoring().test_layers_beyond_the_model_are_left_out_or_refused()
    assert "of layers 0 up to 3" in str(caught.value)
    assert "layers=(0, 3)" in str(caught.value)


def test_pruner_that_refuses_what_is_in_the_middle_is_not_let_off() -> None:
    class Timid(Guided):
        ratios = ((4, 6),)

        def prune(self, model: Any, request: PruningRequest) -> Any:
            if request.ratio:
                raise ValueError("I would rather not")
            return model

    with pytest.raises(ValueError, match="rather not"):
        Timid().test_what_was_asked_for_goes_and_nothing_else()


def test_plan_of_a_request_leaves_layers_out_of_range_whole() -> None:
    from gqacheck.testing import GqaConfig

    model = GqaConfig("llama", 4, 3, 4, 48, 13, 3).build("float32")
    request = PruningRequest(0.5, ("kv_groups", "mlp"), (1, 9))
    plan = plan_for(model, random_importance(model), request)
    assert [layer.n_kv_heads for layer in plan.child.layers] == [3, 2, 2]
    assert [layer.channels < 13 for layer in plan.child.layers] == [False, True, True]
    assert dissect(model).shape == plan.parent


def test_layer_that_is_missing_is_counted() -> None:
    class Dropping(Guided):
        parts = ("mlp",)
        families = ("llama",)

        def prune(self, model: Any, request: PruningRequest) -> Any:
            child = super().prune(model, request)
            return child if len(child.model.layers) == 1 else drop_a_layer(child, request)

    with pytest.raises(pytest.fail.Exception, match="2 layers were given and 1 came back: none was to go"):
        Dropping().test_what_was_asked_for_goes_and_nothing_else()
