"""How much each of the parent's query heads matters, for where a choice exists."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gqacheck.geometry.facts import Layer
from gqacheck.geometry.lines import slots_of
from gqacheck.repair.blocks import Side
from gqacheck.repair.facts import CannotRepair


def query_importance(parent: Side) -> Callable[[int], Sequence[float]]:
    """Parent's layer -> for each query head the norm of its q rows times that of its o columns, read when asked for."""
    known: dict[int, list[float]] = {}

    def score(index: int) -> Sequence[float]:
        if index not in known:
            known[index] = _importance(parent, parent.layer(index))
        return known[index]

    return score


def _importance(parent: Side, layer: Layer) -> list[float]:
    from gqacheck.runtime.running import require_run_extra

    require_run_extra("choosing between query heads by their weights")
    from gqacheck.runtime.weights import WeightReader

    slots = dict(slots_of(parent.geometry, layer))
    norms = []
    with WeightReader() as reader:
        for role in ("q", "o"):
            slot = slots.get((role, "weight", None))
            if slot is None:
                raise CannotRepair(f"the parent's layer {layer.index} stores no {role} whose place is known")
            lines = slot.lines(reader.read(parent.checkpoint.tensors[slot.tensor])).float()
            norms.append(lines.reshape(slot.n_blocks, -1).norm(dim=1))
    return [float(value) for value in norms[0] * norms[1]]
