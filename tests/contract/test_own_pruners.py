"""This project's pruners, held to the contract that everybody's are held to."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
from own_pruners import Guided, LeastSquares, OfAnyPlan

from gqacheck.testing import PruningRequest, broken_properties
from gqacheck.testing.models import FAMILIES
from pruners.dependency import prune_by_graph
from pruners.importance import Importance, magnitude
from pruners.plan import PruningPlan
from pruners.truncate import choose_groups_interleaved

DENSE = tuple(family for family in FAMILIES if family != "mixtral")


class TestMagnitude(Guided):
    def score(self, model: Any, request: PruningRequest) -> Importance:
        return magnitude(model)


class TestRandom(Guided):
    families = DENSE
    ratios = ((2, 3), (4, 3), (7, 2), (1, 3), (4, 1), (8, 1), (4, 6), (7, 4))
    examples = 16


class TestAnyPlan(OfAnyPlan):
    examples = 16
    families = DENSE  # no modelling file can be exported for Mixtral where its layers differ


class TestExperts(Guided):
    """Every expert's channels alike. Layers that differ cannot be exported for Mixtral, so all layers are cut."""

    families = ("mixtral",)
    layer_ranges = False
    examples = 4


class TestThroughTorchPruning(Guided):
    families = ("llama", "qwen2", "qwen3", "gemma2")  # the layouts that its graph traces
    examples = 5

    def carry_out(self, model: Any, plan: PruningPlan) -> Any:
        pytest.importorskip("torch_pruning")
        return prune_by_graph(model, plan)


class TestLeastSquares(LeastSquares):
    examples = 5


class TestInterleavedChoice(Guided):
    """LLM-Pruner's way of ranking KV groups chooses badly and breaks nothing: the contract has no complaint."""

    parts: ClassVar[Any] = ("kv_groups",)
    families = ("llama",)
    examples = 4

    def carry_out(self, model: Any, plan: PruningPlan) -> Any:
        return super().carry_out(model, choose_groups_interleaved(plan, magnitude(model)))


def test_sound_pruner_breaks_no_property() -> None:
    class Short(Guided):
        examples = 1

    assert broken_properties(Short) == {}
