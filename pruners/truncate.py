"""Negative controls: the known mistakes of GQA pruning, kept so that tests and benchmarks can show what they cost.

DO NOT SHIP what these make. Every shape is right and the model runs, but query heads stand beside KV heads that they
were not trained with; on Llama-3-8B the first one took the perplexity on wikitext2 to 718,107. A plan cannot express
them, so they write the wrong heads over a correct cut.

``choose_groups_interleaved`` is the third mistake, a milder one: its heads stay paired, only the choice is a wrong one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch

from pruners.anatomy import LayerAnatomy, dissect
from pruners.plan import KvGroup, LayerPlan, LayerShape, PruningPlan
from pruners.scores import CannotScore, Importance
from pruners.surgery import prune

Choice: TypeAlias = Callable[[LayerAnatomy, int], Sequence[int]]
"""(layer, how many) -> the query heads that a mistake keeps."""


def keep_first_queries(model: Any, plan: PruningPlan) -> Any:
    """NEGATIVE CONTROL, in place: the KV heads of ``plan``, and beside them simply the first query heads.

    q and o_proj are cut to their first rows and columns until the ratio fits, whatever the groups were.

    Raises:
        PlanError: the plan was made for another model.
        CannotPrune: the model is broken already, or of a kind whose parts are not known.
    """
    return _with_queries(model, plan, lambda _, count: range(count))


def keep_top_queries_blind_to_groups(model: Any, plan: PruningPlan, importance: Importance) -> Any:
    """NEGATIVE CONTROL, in place: the KV heads of ``plan``, and beside them the query heads that score most anywhere.

    However good the scores are, the heads are not those of the KV heads that stay.

    Raises:
        PlanError: the plan was made for another model, or the scores were.
        CannotPrune: the model is broken already, or of a kind whose parts are not known.
    """
    importance.require_fit(plan.parent)

    def top(layer: LayerAnatomy, count: int) -> Sequence[int]:
        scores = _told(importance.queries[layer.index], layer.index)
        return sorted(scores.argsort(descending=True, stable=True)[:count].tolist())

    return _with_queries(model, plan, top)


def choose_groups_interleaved(plan: PruningPlan, importance: Importance) -> PruningPlan:
    """A plan of the same shapes whose KV groups are ranked as LLM-Pruner ranks them, which is not by their own heads.

    With n KV heads it adds the scores of the query heads {g, g + n, g + 2n, …} to KV head g, and then removes
    *consecutive* query heads. Within a group as many query heads stay as in ``plan``, those that score most.

    Raises:
        PlanError: the scores are of another model.
    """
    importance.require_fit(plan.parent)
    layers: list[LayerPlan | None] = []
    for index, (mine, shape) in enumerate(zip(plan.layers, plan.parent.layers, strict=True)):
        if mine is None or mine.groups is None:
            layers.append(mine)
            continue
        groups = _interleaved(mine.groups, shape, importance, index)
        layers.append(LayerPlan(groups, mine.channels, mine.experts))
    return PruningPlan(plan.parent, tuple(layers))


def _interleaved(
    groups: Sequence[KvGroup], shape: LayerShape, importance: Importance, index: int
) -> tuple[KvGroup, ...]:
    queries = _told(importance.queries[index], index)
    kv = _told(importance.kv[index], index)
    mixed = kv + queries.view(shape.group_size, shape.n_kv_heads).sum(0)
    chosen = sorted(mixed.argsort(descending=True, stable=True)[: len(groups)].tolist())
    ranked = queries.view(shape.n_kv_heads, shape.group_size).argsort(dim=1, descending=True, stable=True)
    count = len(groups[0].queries)
    return tuple(KvGroup(head, tuple(sorted(ranked[head, :count].tolist()))) for head in chosen)


def _told(scores: torch.Tensor | None, index: int) -> torch.Tensor:
    if scores is None:
        raise CannotScore(f"layer {index} has no attention that can be cut, so there are no scores to choose heads by")
    return scores


def _with_queries(model: Any, plan: PruningPlan, choose: Choice) -> Any:
    """The cut of ``plan`` with other query heads of the parent in the places of those that it keeps."""
    anatomy = dissect(model)
    plan.require_fit(anatomy.shape)
    wrong: list[list[torch.Tensor]] = []
    with torch.no_grad():
        for layer, mine in zip(anatomy.layers, plan.layers, strict=True):
            if mine is None:
                continue
            count = len(mine.query_heads(layer.shape))
            heads = choose(layer, count) if mine.groups is not None else ()
            wrong.append(
                [
                    each.view(model).index_select(each.dim, each.of(heads).to(each.view(model).device))
                    for each in layer.lines
                    if each.part == "query" and mine.groups is not None
                ]
            )
        prune(model, plan)
        for layer, theirs in zip(dissect(model).layers, wrong, strict=True):
            places = [each for each in layer.lines if each.part == "query"] if theirs else []
            for each, values in zip(places, theirs, strict=True):
                view = each.view(model)
                view.index_copy_(each.dim, each.of(range(each.n_parts)).to(view.device), values)
    return model
