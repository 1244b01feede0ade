"""From scores and a wish to a plan: how much goes where, in sizes that a GQA model can have.

Every block is cut along its chain (``pruners.chains``); a scope says how far. Where the wish falls between two legal
sizes the nearer one is taken (of two equally near ones the one that keeps more), and a note says both numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from pruners.anatomy import dissect
from pruners.blocks import blocks_of
from pruners.plan import ModelShape, PlanError, PruningPlan
from pruners.request import WORTH_A_NOTE, Ratio, Request, Scope, Selection, percent
from pruners.scores import Importance
from pruners.surgery import prune

__all__ = ["Request", "Scope", "Selection", "for_parameters", "select", "select_in_steps"]

_HALVINGS = 48


def select(
    shape: ModelShape, importance: Importance, request: Request, *, block_influence: torch.Tensor | None = None
) -> Selection:
    """The plan that removes what ``importance`` says is worth least, as ``request`` asks; the same one every time.

    block_influence: [n_layers], for a request to drop a number of layers.

        >>> select(shape, magnitude(model), Request(0.25, attention_layers=(4, 28), mlp_layers=(4, 28)))
        ... # doctest: +SKIP

    Raises:
        PlanError: the importance is not of a model of this shape, or the request not for one.
    """
    blocks = blocks_of(shape, importance, request, block_influence)
    asked = _asked(request)
    return blocks.selection(blocks.cuts(*asked), asked)


def for_parameters(
    shape: ModelShape,
    importance: Importance,
    target_share: float,
    request: Request | None = None,
    *,
    block_influence: torch.Tensor | None = None,
) -> Selection:
    """The plan that removes as nearly as possible ``target_share`` of all the model's parameters.

    The ratios of ``request`` are not looked at but for their proportion: one ratio is found for heads and channels,
    and then, since heads go in large steps, the channels' alone is adjusted (in scope ``global``: what does not fit any
    more is passed over). A note says so when it is not met to half a percentage point.

    Raises:
        PlanError: as ``select``, or a share outside [0, 1).
    """
    request = request or Request()
    if isinstance(target_share, bool) or not 0 <= target_share < 1:
        raise PlanError(f"the share of parameters to remove is {target_share}: it must be at least 0 and below 1")
    if not isinstance(request.ratio, Sequence):
        request = replace(request, ratio=0.5, mlp_ratio=None if request.mlp_ratio is None else 0.5)
    blocks = blocks_of(shape, importance, request, block_influence)
    heads, channels = _asked(request)

    def joint(factor: float) -> list[int]:
        return blocks.cuts(_times(heads, factor), _times(channels, factor))

    def error(candidate: tuple[list[int], float]) -> float:
        return abs(blocks.share_removed(candidate[0]) - target_share)

    below, above = _around(joint, blocks.share_removed, target_share, _most(heads, channels))
    best, factor = min((below, above), key=error)
    if request.scope == "global":
        others = [(blocks.filled(below[0], target_share), 0.0)]
    else:

        def channels_only(other: float) -> list[int]:
            return blocks.cuts(_times(heads, factor), _times(channels, other))

        others = list(_around(channels_only, blocks.share_removed, target_share, _most(channels)))
    best, _ = min(((best, factor), *others), key=error)
    found = blocks.selection(best)
    share = found.plan.share_removed
    if abs(share - target_share) >= WORTH_A_NOTE:
        note = (
            f"{percent(target_share)} of the parameters were to go, and the nearest that these layers allow is "
            f"{percent(share)}"
        )
        return replace(found, notes=(*found.notes, note))
    return found


def select_in_steps(
    model: Any,
    score: Callable[[Any], Importance],
    request: Request,
    *,
    block_influence: torch.Tensor | None = None,
) -> Selection:
    """One plan made in ``request.steps`` steps: a part of the ratio goes, what is left is scored anew, and so on.

    ``model`` is cut on the way: hand over a copy, and carry the plan out on the parent. After step k of n, k/n of the
    ratio is gone, of the parent's sizes, as in LLM-Pruner. Layers that are to be dropped go at the end.

    Raises:
        PlanError: as ``select``.
    """
    origin = dissect(model).shape
    plan = PruningPlan.of(origin, {})
    notes: tuple[str, ...] = ()
    for step in range(1, request.steps + 1):
        blocks = blocks_of(plan.child, score(model), request, block_influence, origin=origin)
        heads, channels = (_times(ratio, step / request.steps) for ratio in _asked(request))
        made = blocks.selection(blocks.cuts(heads, channels), (heads, channels), drop=step == request.steps)
        notes = made.notes
        plan = plan.then(made.plan)
        if step < request.steps:
            prune(model, made.plan)
    return Selection(plan, notes)


def _asked(request: Request) -> tuple[Ratio, Ratio]:
    """The ratios of heads and of channels."""
    return request.ratio, request.ratio if request.mlp_ratio is None else request.mlp_ratio


def _times(ratio: Ratio, factor: float) -> Ratio:
    return [each * factor for each in ratio] if isinstance(ratio, Sequence) else ratio * factor


def _most(*ratios: Ratio) -> float:
    """The factor that brings the largest of them to just below 1."""
    largest = max(
        (each for ratio in ratios for each in (ratio if isinstance(ratio, Sequence) else (ratio,))), default=0
    )
    return (1 - 1e-9) / largest if largest else 0.0


def _around(
    cuts: Callable[[float], list[int]], share: Callable[[list[int]], float], target: float, most: float
) -> tuple[tuple[list[int], float], tuple[list[int], float]]:
    """The cuts just below ``target`` and just above it, each with a factor up to ``most`` that makes them."""
    low, high = 0.0, most
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if share(cuts(middle)) <= target else (low, middle)
    return (cuts(low), low), (cuts(high), high)
