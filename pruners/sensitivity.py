"""How much each layer hurts when a share of it is gone, and ratios that spare the layers where it hurts.

Parts are silenced by zeroing their columns of o_proj and down_proj, which is what removing them comes to (but for
norms over all heads), and put back at once; the weights come back bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from pruners.anatomy import LayerAnatomy, dissect
from pruners.blocks import Blocks, blocks_of, nearest_index
from pruners.calibration import require_batches
from pruners.gradients import next_token_loss
from pruners.plan import LayerPlan, PlanError
from pruners.quiet import in_eval_mode
from pruners.request import Request
from pruners.scores import CannotScore, Importance, scored_lines

_LOWEST = 0.05  # of the mean increase: a layer that hardly hurts, or by chance helps, is not taken for free


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """Increase of the mean loss over ``base`` when ``share`` of one layer's attention or MLP is silenced.

    None where a layer has no such block, or it was not in range.
    """

    base: float
    share: float
    attention: tuple[float | None, ...]
    mlp: tuple[float | None, ...]

    def ratios(self, ratio: float, *, most: float = 0.75) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """(ratio, mlp_ratio) for a ``Request``: for each kind one number per layer whose mean is ``ratio``.

        Raises:
            PlanError: ``ratio`` is above ``most``.
        """
        return layer_ratios(self.attention, ratio, most=most), layer_ratios(self.mlp, ratio, most=most)


def measure_sensitivity(
    model: Any, importance: Importance, batches: torch.Tensor, request: Request | None = None, *, share: float = 0.25
) -> Sensitivity:
    """What silencing the ``share`` that is worth least costs in each layer by itself; two losses per layer.

    request: which layers, and whether groups or query heads go; its ratio is not looked at.

    Raises:
        PlanError: the importance is of another model.
        CalibrationError: the batches are not for this model.
        CannotScore: a loss is not finite.
    """
    anatomy = dissect(model)
    require_batches(model, batches)
    blocks = blocks_of(anatomy.shape, importance, request or Request(), None)
    found: dict[str, list[float | None]] = {kind: [None] * len(anatomy.layers) for kind in ("attention", "mlp")}
    with in_eval_mode(model), torch.no_grad():
        base = _loss(model, batches)
        for kind, increases in found.items():
            for layer in anatomy.layers:
                plan = _least(blocks, layer, share, heads=kind == "attention")
                if plan is not None:
                    with _silenced(model, layer, plan):
                        increases[layer.index] = _loss(model, batches) - base
    return Sensitivity(base, share, tuple(found["attention"]), tuple(found["mlp"]))


def layer_ratios(increases: Sequence[float | None], ratio: float, *, most: float = 0.75) -> tuple[float, ...]:
    """A ratio per layer, none above ``most``, in inverse proportion to the loss increase; their mean is ``ratio``.

    The mean is over the layers that have one; the others get 0.

        >>> [round(each, 3) for each in layer_ratios([0.1, 0.2, None, 0.1], 0.25)]
        [0.3, 0.15, 0.0, 0.3]

    Raises:
        PlanError: ``ratio`` is above ``most``.
    """
    if not 0 <= ratio <= most < 1:
        raise PlanError(f"the mean ratio is {ratio} and the largest of a layer {most}: 0 <= mean <= largest < 1")
    measured = [at for at, increase in enumerate(increases) if increase is not None]
    known = {at: max(0.0, float(increases[at] or 0.0)) for at in measured}
    mean = sum(known.values()) / max(1, len(known))
    weights = {at: 1.0 / max(value / mean, _LOWEST) if mean else 1.0 for at, value in known.items()}
    found = [0.0] * len(increases)
    left, free = ratio * len(measured), set(measured)
    while free:
        scale = left / sum(weights[at] for at in free)
        full = {at for at in free if weights[at] * scale > most}
        if not full:
            for at in free:
                found[at] = weights[at] * scale
            break
        for at in full:
            found[at] = most
        left -= most * len(full)
        free -= full
    return tuple(found)


def _loss(model: Any, batches: torch.Tensor) -> float:
    device = model.get_input_embeddings().weight.device
    found = sum(float(next_token_loss(model, ids[None].to(device))) for ids in batches) / len(batches)
    if not math.isfinite(found):
        raise CannotScore("the model's loss on the calibration text is not finite: look at it with gqacheck")
    return found


def _least(blocks: Blocks, layer: LayerAnatomy, share: float, *, heads: bool) -> LayerPlan | None:
    """What stays of one layer's attention, or of all its MLPs, without the ``share`` worth least (1 cut at least)."""
    plans = []
    for at, chain in enumerate(blocks.chains):
        if chain.layer == layer.index and (chain.kind == "attention") == heads and len(chain):
            plans.append(chain.keep(max(1, nearest_index(blocks.removed[at], share * blocks.whole[at]))))
    if not plans:
        return None
    channels = next((plan.channels for plan in plans if plan.channels is not None), None)
    return LayerPlan(plans[0].groups, channels, {name: kept for plan in plans for name, kept in plan.experts.items()})


@contextmanager
def _silenced(model: Any, layer: LayerAnatomy, plan: LayerPlan) -> Iterator[None]:
    """Within, what ``plan`` does not keep of one layer adds nothing."""
    before: list[tuple[torch.Tensor, torch.Tensor]] = []
    try:
        for _, lines in scored_lines(layer):
            kept = layer.kept(plan, lines)
            weights = lines.view(model)
            if lines.role in ("o", "down") and weights.dim() == 2 and kept is not None:
                gone = sorted(set(range(lines.n_parts)) - set(kept))
                before.append((weights, weights.clone()))
                weights.index_fill_(lines.dim, lines.of(gone).to(weights.device), 0)
        yield
    finally:
        for weights, values in before:
            weights.copy_(values)
