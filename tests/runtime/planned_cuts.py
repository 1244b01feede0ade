"""Random cuts of the tiny models as plans that can be carried out two ways: by cutting, and by masking the parent."""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass, field
from typing import Any

import torch
from tiny_models import logits_of, tiny_ids, tiny_model
from tiny_surgery import GROUP, KV, cut_channels, cut_heads, drop_layers, mlp_widths

from gqacheck.runtime.masked import KeptLayer


@dataclass
class LayerPlan:
    """Of one layer: the query heads and KV heads of the child in its order, and the channels of each MLP part."""

    queries: list[int] | None = None
    kv: list[int] | None = None
    channels: dict[Any, list[int]] = field(default_factory=dict)


def layers_of(model: Any) -> Any:
    return model.base_model.layers if hasattr(model.base_model, "layers") else model.base_model.h


def attention_of(layer: Any) -> Any:
    """The softmax attention of a layer, None where a linear one stands."""
    return getattr(layer, "self_attn", None) or getattr(layer, "self_attention", None)


def parent_of(name: str, seed: int = 0) -> Any:
    """A tiny model in float64."""
    model = tiny_model(name, seed=seed).double()
    run_experts_one_by_one(model)
    return model


def run_experts_one_by_one(model: Any) -> None:
    """torch's grouped product knows no float64."""
    if any("experts" in part for part, _ in model.named_parameters()):
        model.set_experts_implementation("eager")


def random_plan(model: Any, seed: int, *, depth: bool = True) -> list[LayerPlan | None]:
    """A correct cut: KV heads with query heads of their own, equally many each, in any order; None drops a layer."""
    chosen = random.Random(seed)
    plan: list[LayerPlan | None] = []
    for layer in layers_of(model):
        mine = LayerPlan()
        if attention_of(layer) is not None and chosen.random() < 0.85:
            mine.kv = chosen.sample(range(KV), chosen.randint(1, KV))
            count = chosen.randint(1, GROUP)
            mine.queries = [kv * GROUP + member for kv in mine.kv for member in chosen.sample(range(GROUP), count)]
        if chosen.random() < 0.85:
            counts: dict[int, int] = {}
            for part, width in mlp_widths(layer.mlp).items():
                count = counts.setdefault(width, 8 * chosen.randint(1, width // 8))
                mine.channels[part] = chosen.sample(range(width), count)
        plan.append(mine)
    if depth and chosen.random() < 0.4:
        plan[chosen.randrange(len(plan))] = None
    return plan


def cut_by(model: Any, plan: list[LayerPlan | None]) -> Any:
    """A copy of ``model`` with the plan carried out on its weights."""
    child = copy.deepcopy(model)
    for layer, mine in zip(layers_of(child), plan, strict=True):
        if mine is not None and mine.queries is not None and mine.kv is not None:
            cut_heads(attention_of(layer), mine.queries, mine.kv)
        if mine is not None and mine.channels:
            cut_channels(layer.mlp, mine.channels)
    if None in plan:
        drop_layers(child, [index for index, mine in enumerate(plan) if mine is not None])
    return child


def kept_by(plan: list[LayerPlan | None]) -> list[KeptLayer | None]:
    """The same plan in the words of ``masked``."""
    return [
        None
        if mine is None
        else KeptLayer(
            None if mine.queries is None else tuple(sorted(mine.queries)),
            tuple(mine.channels[None]) if None in mine.channels else None,
            {part: tuple(channels) for part, channels in mine.channels.items() if part is not None},
        )
        for mine in plan
    ]


def apart(model: Any, other: Any, ids: torch.Tensor | None = None) -> float:
    """The largest difference of two models' logits, in standard deviations of ``other``'s."""
    ids = tiny_ids() if ids is None else ids
    ours, theirs = logits_of(model, ids).double(), logits_of(other, ids).double()
    return float((ours - theirs).abs().max() / theirs.std())
