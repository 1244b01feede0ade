"""Ways to tell which heads and channels of a model matter: everything that a pruner here may rank by.

From weights alone (``magnitude``), from nothing (``random_importance``), from gradients (``taylor``), from what
reaches o_proj and down_proj (``wanda``, ``fluctuation``), and for whole layers (``block_influence``).
"""

from __future__ import annotations

from typing import Any

import torch

from pruners.activations import block_influence, fluctuation, wanda
from pruners.anatomy import LayerAnatomy, Lines, dissect
from pruners.gradients import TAYLOR_KINDS, taylor
from pruners.plan import ModelShape
from pruners.scores import CannotScore, Importance, by_part, gather, require_weights

__all__ = [
    "TAYLOR_KINDS",
    "CannotScore",
    "Importance",
    "block_influence",
    "fluctuation",
    "magnitude",
    "random_importance",
    "taylor",
    "wanda",
]


def magnitude(model: Any, p: int = 2) -> Importance:
    """The sum of ``|w|`` (p=1) or ``w²`` (p=2) over everything that goes with a part: LLM-Pruner's ``l1`` and ``l2``.

    No root is taken, as there, so that the roles of a group add up.

    Raises:
        CannotPrune: the model is broken already, or of a kind whose parts are not known.
        CannotScore: a weight has no values, is quantised or not finite.
        ValueError: another ``p``.
    """
    if p not in (1, 2):
        raise ValueError(f"p must be 1 or 2, not {p}")
    anatomy = dissect(model)
    require_weights(model, anatomy)

    def total(w: torch.Tensor) -> torch.Tensor:
        return (w.abs() if p == 1 else w.square()).sum((1, 2))

    def score(_: LayerAnatomy, __: int, lines: Lines) -> torch.Tensor:
        return by_part(lines, total, lines.view(model))

    return gather(anatomy, score, f"magnitude/l{p}")


def random_importance(model_or_shape: Any, seed: int = 0) -> Importance:
    """Scores drawn from [0, 1), the same ones for the same shape and seed: what a method must beat.

    model_or_shape: a live model, or the ``ModelShape`` of one.
    """
    shape = model_or_shape if isinstance(model_or_shape, ModelShape) else dissect(model_or_shape).shape
    generator = torch.Generator().manual_seed(seed)

    def draw(size: int) -> torch.Tensor | None:
        return torch.rand(size, generator=generator, dtype=torch.float64) if size else None

    queries, kv, channels, experts = [], [], [], []
    for layer in shape.layers:
        queries.append(draw(layer.n_q_heads))
        kv.append(draw(layer.n_kv_heads))
        channels.append(draw(layer.channels))
        drawn = {name: draw(layer.experts[name]) for name in layer.experts}
        experts.append({name: scores for name, scores in drawn.items() if scores is not None})
    return Importance(tuple(queries), tuple(kv), tuple(channels), tuple(experts), f"random/{seed}")
