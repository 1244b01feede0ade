"""What a pruner gives back: layers apart, in the dtype that was given, and the transformers model itself."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from own_pruners import Guided
from torch import nn

from gqacheck.errors import UsageError
from gqacheck.testing import GqaConfig, PruningRequest, broken_properties

PROPERTIES = {name.removeprefix("test_") for name in dir(Guided) if name.startswith("test_")}


@pytest.fixture(autouse=True)
def few_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GQACHECK_CASES", raising=False)


class QueriesApart(Guided):
    """Cuts query heads in a range of layers; the config goes on with the one number of the layers that are whole."""

    parts = ("queries",)
    families = ("llama",)
    examples = 6

    def number(self, given: int, child: Any) -> int:
        """What the config says of all layers, where they are not alike."""
        return given

    def prune(self, model: Any, request: PruningRequest) -> Any:
        given = model.config.num_attention_heads
        child = super().prune(model, request)
        if getattr(child.config, "gqacheck_layers", None):
            del child.config.gqacheck_layers
            child.config.num_attention_heads = self.number(given, child)
        return child


@pytest.mark.parametrize(
    "name",
    [
        "shapes_attributes_and_config_agree",
        "extreme_ratio_leaves_something_or_is_refused",
        "saved_model_reloads_as_it_was",
    ],
)
def test_query_heads_cut_in_some_layers_need_no_list_in_the_config(name: str) -> None:
    asked: list[PruningRequest] = []

    class Asked(QueriesApart):
        def prune(self, model: Any, request: PruningRequest) -> Any:
            asked.append(request)
            return super().prune(model, request)

    getattr(Asked(), f"test_{name}")()
    assert any(request.layers for request in asked)


def test_ratio_that_drifts_outside_the_range_is_told() -> None:
    class Swapped(QueriesApart):
        def number(self, given: int, child: Any) -> int:
            sizes = {each.self_attn.q_proj.out_features // each.self_attn.head_dim for each in child.model.layers}
            return min(sizes)

    with pytest.raises(pytest.fail.Exception, match=r"model disagree \([^)]*GQA105"):
        Swapped().test_shapes_attributes_and_config_agree()


class FloatFirst(Guided):
    def prune(self, model: Any, request: PruningRequest) -> Any:
        return super().prune(model.float(), request)


class InHalf(Guided):
    rewrites_weights = True

    def prune(self, model: Any, request: PruningRequest) -> Any:
        return super().prune(model, request).to(torch.bfloat16)


@pytest.mark.parametrize(
    ("pruner", "name", "given", "returned"),
    [
        (FloatFirst, "pruned_model_equals_the_masked_parent", "float64", "float32"),
        (InHalf, "ratio_zero_changes_nothing", "float32", "bfloat16"),
        (InHalf, "same_request_gives_the_same_model", "float32", "bfloat16"),
    ],
)
def test_changed_dtype_is_told_before_anything_else(pruner: type[Guided], name: str, given: str, returned: str) -> None:
    with pytest.raises(pytest.fail.Exception) as caught:
        getattr(pruner(), f"test_{name}")()
    told = str(caught.value)
    assert re.match(
        rf"\S+weight was given as {given} and returned as {returned}: prune\(\) must keep the dtype\n", told
    )
    assert "rewrites_weights" not in told


def test_lines_to_be_pasted_build_the_model_that_failed() -> None:
    with pytest.raises(pytest.fail.Exception) as caught:
        FloatFirst().test_pruned_model_equals_the_masked_parent()
    lines = str(caught.value).splitlines()[-3:]
    names: dict[str, Any] = {"GqaConfig": GqaConfig, "PruningRequest": PruningRequest}
    exec("\n".join(lines), names)  # noqa: S102 - the message's own lines
    assert names["model"].dtype == torch.float64
    assert FloatFirst().prune(names["model"], names["request"]).dtype == torch.float32


class Wrapped(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.config = model, model.config

    def forward(self, *given: Any, **options: Any) -> Any:
        return self.model(*given, **options)


class Unwrapped(nn.Module):
    """The parameters have the names of the given model's, and nothing else is as in transformers."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.lm_head, self.config = model.model, model.lm_head, model.config


@pytest.mark.parametrize(
    ("wrap", "told"),
    [
        (Wrapped, "prune() returned a Wrapped, whose parameters have other names than the given model's; "),
        (Unwrapped, "prune() returned a Unwrapped, which is no model of transformers; "),
        (lambda model: model.model, "prune() returned a LlamaModel, whose parameters have other names than the given"),
    ],
    ids=["wrapped", "names of its own", "inner"],
)
def test_another_model_than_the_transformers_model_is_told_in_every_property(
    wrap: Callable[[Any], Any], told: str
) -> None:
    class Wrapping(Guided):
        examples = 1

        def prune(self, model: Any, request: PruningRequest) -> Any:
            return wrap(super().prune(model, request))

    found = broken_properties(Wrapping)
    skipped = {"given_model_is_left_alone"}  # it prunes in place
    assert set(found) == PROPERTIES - skipped
    assert all(each.startswith(told) for each in found.values())
    assert all(each.endswith("; return the transformers model itself") for each in found.values())


@pytest.mark.parametrize(("parts", "cases"), [(("heads",), ""), (("mlp",), "many")])
def test_declaration_that_is_refused_shows_none_of_our_frames(
    parts: Any, cases: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GQACHECK_CASES", cases)
    pruner = type("Wrong", (Guided,), {"parts": parts})
    with pytest.raises(UsageError) as caught:
        pruner().test_pruned_model_trains()
    ours = [each for each in caught.traceback if "gqacheck" in each.path.parts and "testing" in each.path.parts]
    assert ours
    assert all(each.ishidden(caught) for each in ours)
