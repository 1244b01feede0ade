"""What stands in a projection after the repair: lines gathered from the checkpoint's and the parent's tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gqacheck.checkpoint import Checkpoint, TensorInfo
from gqacheck.geometry.facts import Geometry, Layer
from gqacheck.geometry.lines import Kind, Slot
from gqacheck.geometry.origins import NOWHERE
from gqacheck.repair.facts import CannotRepair, RoleTake, Take

if TYPE_CHECKING:
    from array import array

    import torch

    from gqacheck.runtime.weights import WeightReader

Key = tuple[str, Kind, int | str | None]
"""Role, kind and expert of a projection or vector."""
_KEPT = 4
"""Stored tensors of one layer that are held: gate_up and down of stacked experts, and their biases."""


@dataclass(frozen=True, slots=True)
class Side:
    """A checkpoint with its geometry."""

    checkpoint: Checkpoint
    geometry: Geometry

    def layer(self, index: int) -> Layer:
        """The layer of that number."""
        return next(layer for layer in self.geometry.layers if layer.index == index)


@dataclass(slots=True)
class Recent:
    """Reads stored tensors and keeps the last few, for one may hold several roles or all experts."""

    reader: WeightReader
    _kept: dict[str, torch.Tensor] = field(default_factory=dict)

    def read(self, info: TensorInfo) -> torch.Tensor:
        """The tensor as stored; not to be changed.

        Raises:
            ReadError: its bytes are not there.
        """
        if info.name not in self._kept:
            if len(self._kept) >= _KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[info.name] = self.reader.read(info)
        return self._kept[info.name]


def parent_key(take: RoleTake) -> Key:
    """The parent's projection that ``take`` draws on."""
    return take.role, take.kind, take.parent_expert


def layer_dtype(layer: Layer) -> str | None:
    """The dtype that most projections of the layer are stored in, None when it has none."""
    a, m = layer.attention, layer.mlp
    counts = Counter(p.dtype for p in (a.q, a.k, a.v, a.o, m.gate, m.up, m.down) if p is not None)
    return counts.most_common(1)[0][0] if counts else None


@dataclass(slots=True)
class Blocks:
    """The lines of one layer after the repair, made of the child's and the parent's blocks."""

    child: Checkpoint
    parent: Checkpoint
    sources: Mapping[Key, Slot]
    takes: Mapping[Key, RoleTake]
    ours: Recent
    others: Recent
    kept_hidden: Sequence[int] | None
    dtype: str

    def lines(
        self,
        key: Key,
        role: RoleTake | None,
        take: Take,
        unit: int,
        own: torch.Tensor | None,
        *,
        dtype: str | None = None,
    ) -> torch.Tensor:
        """The lines [blocks × unit, elements] that ``take`` names; zeros where it names none."""
        import torch

        from gqacheck.runtime.weights import torch_dtype

        places = [p for p, position in enumerate(take.child) if position == NOWHERE and take.parent[p] != NOWHERE]
        parent = self._parent_blocks(role, unit) if places and role is not None else None
        if own is not None:
            elements, kind = own.shape[1], own.dtype
        elif parent is not None and dtype is not None:
            elements, kind = parent.shape[2], torch_dtype(dtype)
        else:
            raise CannotRepair(f"the {key[1]} of {key[0]} is in neither file")
        made = torch.zeros((len(take), unit, elements), dtype=kind)
        stays = [place for place, position in enumerate(take.child) if position != NOWHERE]
        if stays and own is not None:
            blocks = own[: own.shape[0] // unit * unit].reshape(-1, unit, elements)
            made[stays] = blocks[list(_picked(take.child, stays))]
        if parent is not None:
            made[places] = self._cut(parent[list(_picked(take.parent, places))], key, elements).to(kind)
            for place, order in take.orders.items():
                if place in places:
                    made[place] = made[place][list(order)]
        return made.reshape(-1, elements)

    def _parent_blocks(self, role: RoleTake, unit: int) -> torch.Tensor | None:
        """The parent's blocks [blocks, unit, elements]; None when it has no such vector, which then counts as zeros."""
        source = self.sources.get(parent_key(role))
        if source is None:
            if role.kind == "bias":
                return None
            raise CannotRepair(f"the parent stores no {role.kind} of {role.role} whose place is known")
        lines = source.lines(self.others.read(self.parent.tensors[source.tensor]))
        if source.unit != unit:
            raise CannotRepair(f"a head of {role.role} has {unit} lines here and {source.unit} in the parent")
        return lines.reshape(-1, unit, lines.shape[1])

    def _cut(self, blocks: torch.Tensor, key: Key, elements: int) -> torch.Tensor:
        """The residual columns that the child kept."""
        if key[1] != "weight" or self.kept_hidden is None:
            if blocks.shape[2] != elements:
                raise CannotRepair(f"{key[0]} is {elements} wide here and {blocks.shape[2]} in the parent")
            return blocks
        return blocks[:, :, list(self.kept_hidden)]


def _picked(numbers: array[int], places: Sequence[int]) -> Sequence[int]:
    return [numbers[place] for place in places]
