"""This project's pruners as answers to requests of the contract: each a class to subclass, none of them a test."""

from __future__ import annotations

import copy
import random
from typing import Any

from gqacheck.testing import PrunerContract, PruningRequest
from pruners.anatomy import dissect
from pruners.importance import Importance, magnitude, random_importance
from pruners.plan import KvGroup, LayerPlan, ModelShape, PruningPlan
from pruners.reconstruction import reconstruct
from pruners.request import Request
from pruners.selection import select
from pruners.surgery import prune

__all__ = ["Guided", "LeastSquares", "OfAnyPlan", "plan_for"]


def ask(request: PruningRequest, shape: ModelShape) -> Request:
    """The same wish in the words of our own pruners."""
    chosen = request.layer_range(shape.n_layers)
    ratio = [request.ratio if index in chosen else 0.0 for index in range(shape.n_layers)]
    nothing = [0.0] * shape.n_layers
    heads = "queries" if "queries" in request.parts else "groups"
    mlp = ratio if "mlp" in request.parts else nothing
    return Request(nothing if request.parts == ("mlp",) else ratio, heads, mlp_ratio=mlp)


def plan_for(model: Any, importance: Importance, request: PruningRequest) -> PruningPlan:
    """What our selection makes of a request."""
    shape = dissect(model).shape
    return select(shape, importance, ask(request, shape)).plan


class Guided(PrunerContract):
    """Selection by scores, then surgery in place."""

    parts = ("kv_groups", "queries", "mlp")
    in_place = True
    restores_rng = True

    def score(self, model: Any, request: PruningRequest) -> Importance:
        """Of every head and channel."""
        return random_importance(model, request.seed)

    def carry_out(self, model: Any, plan: PruningPlan) -> Any:
        """The pruned model."""
        return prune(model, plan)

    def prune(self, model: Any, request: PruningRequest) -> Any:
        """As asked."""
        return self.carry_out(model, plan_for(model, self.score(model, request), request))


class LeastSquares(Guided):
    """What stays is refitted to what the parent computes: o_proj and down_proj are rewritten."""

    in_place = False
    rewrites_weights = True

    def score(self, model: Any, request: PruningRequest) -> Importance:
        """By size."""
        return magnitude(model)

    def prune(self, model: Any, request: PruningRequest) -> Any:
        """As asked, on a copy."""
        import torch

        plan = plan_for(model, self.score(model, request), request)
        generator = torch.Generator().manual_seed(request.seed)
        child = prune(copy.deepcopy(model), plan)
        if not plan.whole:
            reconstruct(child, model, plan, torch.randint(3, 61, (24, 16), generator=generator))
        return child


class OfAnyPlan(Guided):
    """No strategy: whatever a plan can say of a block, drawn by the request's seed; the ratio is not looked at."""

    uniform = False

    def prune(self, model: Any, request: PruningRequest) -> Any:
        """Cuts what is asked for by amounts of its own."""
        shape, drawn = dissect(model).shape, random.Random(repr(request))
        if not request.ratio:
            return model
        chosen = request.layer_range(shape.n_layers)
        cut: dict[int, LayerPlan | None] = {}
        for index in chosen:
            layer = shape.layers[index]
            kv = _some(drawn, layer.n_kv_heads) if "kv_groups" in request.parts else tuple(range(layer.n_kv_heads))
            size = layer.group_size
            count = drawn.randint(1, max(1, size - 1)) if "queries" in request.parts else size
            groups = tuple(KvGroup(head, tuple(sorted(drawn.sample(range(size), count)))) for head in kv)
            channels = _some(drawn, layer.channels) if "mlp" in request.parts and layer.channels else None
            cut[index] = LayerPlan(None if request.parts == ("mlp",) else groups, channels)
        return prune(model, PruningPlan.of(shape, cut))


def _some(drawn: random.Random, size: int) -> tuple[int, ...]:
    """Some of them and, where there are several, not all."""
    return tuple(sorted(drawn.sample(range(size), drawn.randint(1, max(1, size - 1)))))
