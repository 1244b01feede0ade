"""Lineage -> what every faulty layer is made of after the repair, or why it cannot be. Pure: no file is read."""

from __future__ import annotations

from dataclasses import dataclass

from gqacheck.geometry.facts import Geometry, Layer
from gqacheck.geometry.lines import mlp_projections
from gqacheck.geometry.origins import LayerOrigin, Lineage
from gqacheck.repair.attention import attention_faults, plan_attention
from gqacheck.repair.channels import channel_faults, plan_channels
from gqacheck.repair.facts import CannotRepair, LayerPlan, Refusal, RoleTake
from gqacheck.repair.queries import Importance


@dataclass(frozen=True, slots=True)
class RepairPlan:
    """The layers that change, what cannot be mended, and what was left alone because it cannot be compared."""

    layers: tuple[LayerPlan, ...] = ()
    refused: tuple[Refusal, ...] = ()
    left_alone: tuple[str, ...] = ()


def plan_repair(
    child: Geometry,
    parent: Geometry,
    lineage: Lineage,
    *,
    importance: Importance | None = None,
    from_base: bool = False,
) -> RepairPlan:
    """The plan for every layer whose heads or channels are not where they belong.

    importance: parent's layer -> a score for each of its query heads, for where a choice exists; without it the first
    heads win. from_base: every block of a repaired attention or MLP comes from the parent.

    Raises:
        CannotRepair: the checkpoint is not made of this parent, or was not compared with it.
    """
    _refuse_relation(lineage)
    ours = {layer.index: layer for layer in child.layers}
    theirs = {layer.index: layer for layer in parent.layers}
    plans, refused, left = [], [], []
    for origin in lineage.layers:
        layer = ours.get(origin.index)
        other = theirs.get(origin.parent) if origin.parent is not None else None
        left += [f"layer {origin.index}: {sentence}" for sentence in origin.not_compared]
        if layer is None or other is None:
            continue
        result = _plan_layer(origin, layer, other, child, importance=importance, from_base=from_base)
        if isinstance(result, Refusal):
            refused.append(result)
        elif result is not None:
            plans.append(result)
    return RepairPlan(tuple(plans), tuple(refused), tuple(dict.fromkeys(left)))


def _refuse_relation(lineage: Lineage) -> None:
    reason = f": {lineage.reason}" if lineage.reason else ""
    if lineage.relation == "unrelated":
        raise CannotRepair(f"the checkpoint was not made from this parent, so nothing can be taken from it{reason}")
    if lineage.relation == "swapped":
        raise CannotRepair(f"the checkpoint and --base were given the wrong way round{reason}")
    if lineage.relation == "not-compared":
        raise CannotRepair(f"the checkpoint's weights could not be compared with the parent's{reason}")


def _plan_layer(
    origin: LayerOrigin,
    layer: Layer,
    other: Layer,
    child: Geometry,
    *,
    importance: Importance | None,
    from_base: bool,
) -> LayerPlan | Refusal | None:
    faults: list[str] = []
    takes: list[RoleTake] = []
    heads: tuple[int, int] | None = None
    counts = ""
    wrong = attention_faults(origin, layer.attention, other.attention, child.family)
    if wrong:
        made = plan_attention(
            origin, layer.attention, other.attention, child.family, importance=importance, from_base=from_base
        )
        if isinstance(made, str):
            return Refusal(f"{'; '.join(wrong)}, and {made}", (origin.index,))
        faults += wrong
        takes += made.takes
        heads, counts = made.heads, made.counts
    for mlp in origin.mlps:
        mine = mlp_projections(layer.mlp, mlp.expert)
        theirs = mlp_projections(other.mlp, mlp.parent_expert)
        wrong = channel_faults(origin, mlp, mine, theirs)
        if wrong:
            channels = plan_channels(origin, mlp, mine, theirs, from_base=from_base)
            if isinstance(channels, str):
                return Refusal(f"{'; '.join(wrong)}, and {channels}", (origin.index,))
            faults += wrong
            takes += channels
    if not faults or origin.parent is None:
        return None
    refusal = _unsupported(layer, child, takes)
    if refusal:
        return Refusal(f"{'; '.join(dict.fromkeys(faults))}, and {refusal}", (origin.index,))
    return LayerPlan(origin.index, origin.parent, tuple(dict.fromkeys(faults)), tuple(takes), heads, counts)


def _unsupported(layer: Layer, child: Geometry, takes: list[RoleTake]) -> str:
    """Why these takes cannot be carried out in this file, "" when they can."""
    norm = layer.attention.q_norm
    if any(take.kind == "norm" and take.changes for take in takes) and norm and len(norm.shape) == 2:
        stored_apart = ".norms." in norm.tensor
        if stored_apart:
            return "its norms are stored one by one, which is not rebuilt"
    numbered = [take for take in takes if isinstance(take.expert, int)]
    widths = {take.before for take in numbered} | {len(take.take) for take in numbered}
    stacked = any(expert.index == "stacked" for expert in layer.mlp.experts)
    if stacked and len(widths) > 1:
        return "its experts lie in one tensor, which holds one width only"
    return ""
