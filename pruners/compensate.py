"""The mean of what was removed, put into biases: the cheapest way to mend a cut (FLAP's)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pruners.activations import observe_inputs
from pruners.anatomy import dissect
from pruners.calibration import require_batches
from pruners.plan import LayerPlan, PruningPlan
from pruners.reconstruction import projections, require_child


@torch.no_grad()
def compensate_biases(child: Any, parent: Any, plan: PruningPlan, batches: torch.Tensor) -> tuple[str, ...]:
    """Adds the mean of what was removed to the biases of o_proj and down_proj, as FLAP does; their names.

    Only means are measured, in one pass over ``batches`` through the parent: far cheaper than ``reconstruct``, and
    mending less. A bias is made where there is none. Then the model no longer is what its config describes: a stock
    class loads it without the biases unless the config can speak of them, and gqacheck has a note on a pickle with them
    (GQA108). Where a layer normalises a block's output before adding it, the mean is that of the output before.

    Raises:
        CalibrationError, PlanError, UsageError, CannotPrune: as ``reconstruct``.
    """
    theirs, mine = dissect(parent), dissect(child)
    require_child(plan, theirs, mine)
    require_batches(parent, batches)
    means = observe_inputs(parent, theirs, batches)
    changed: list[str] = []
    for at, own in enumerate(plan.kept_layers):
        layer, linears = theirs.layers[own], projections(child, mine.layers[at])
        for number, lines in enumerate(layer.lines):
            kept = layer.kept(plan.layers[own] or LayerPlan(), lines)
            role = lines.role
            if role not in linears or lines.owner is not None or kept is None or lines.dim != 1:
                continue
            gone = lines.of(sorted(set(range(lines.n_parts)) - set(kept)))
            weight = lines.view(parent)[:, gone].to("cpu", torch.float64)
            _add_bias(linears[role].module, weight @ means[own, number].mean[gone])
            changed.append(linears[role].name.removesuffix("weight") + "bias")
    return tuple(changed)


def _add_bias(module: nn.Linear, values: torch.Tensor) -> None:
    like = module.weight
    if module.bias is None:
        module.bias = nn.Parameter(values.to(like), requires_grad=like.requires_grad)
    else:
        module.bias.data = (module.bias.data.to("cpu", torch.float64) + values).to(module.bias)
