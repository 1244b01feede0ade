"""A plan carried out: the tensors that change, made of the checkpoint's and the parent's blocks, beside the others."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, BinaryIO

from gqacheck.checkpoint import Checkpoint, StorageInfo, TensorInfo
from gqacheck.geometry.facts import Geometry, Layer
from gqacheck.geometry.origins import NOWHERE
from gqacheck.repair.facts import CannotRepair, Kind, LayerPlan, RoleTake, Take, stay
from gqacheck.repair.slots import Slot, after, slots_of

if TYPE_CHECKING:
    import torch

    from gqacheck.runtime.weights import WeightReader

Key = tuple[str, Kind, int | str | None]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Side:
    """A checkpoint with its geometry."""

    checkpoint: Checkpoint
    geometry: Geometry

    def layer(self, index: int) -> Layer:
        """The layer of that number."""
        return next(layer for layer in self.geometry.layers if layer.index == index)


class Patch:
    """A file that holds the tensors that changed, one after the other; ``entries`` says where each one lies."""

    def __init__(self, stream: BinaryIO, path: str) -> None:
        self._stream = stream
        self._path = path
        self._end = 0
        self.entries: dict[str, TensorInfo] = {}

    def put(self, name: str, values: torch.Tensor, kind: str) -> None:
        """Appends ``values`` under the stored name ``name``."""
        data = tensor_bytes(values)
        self._stream.write(data)
        storage = StorageInfo(self._path, f"patch-{len(self.entries)}", self._end, len(data), len(data))
        shape = tuple(values.shape)
        dtype = str(values.dtype).removeprefix("torch.")
        self.entries[name] = TensorInfo(name, shape, dtype, _strides(shape), 0, storage, kind)  # type: ignore[arg-type]
        self._end += len(data)


def tensor_bytes(values: torch.Tensor) -> memoryview:
    """The elements of ``values``, row after row, as bytes."""
    import torch

    flat = values.detach().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def _strides(shape: Sequence[int]) -> tuple[int, ...]:
    strides: list[int] = []
    step = 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))


def apply_plan(
    child: Side,
    parent: Side,
    plans: Sequence[LayerPlan],
    path: str,
    *,
    kept_hidden: Sequence[int] | None = None,
    progress: Progress | None = None,
) -> Checkpoint:
    """The checkpoint with the tensors of the planned layers replaced; their bytes are in the new file ``path``.

    Every other tensor is the one that is stored. kept_hidden: the parent's residual columns that the child has.

    Raises:
        CannotRepair: a projection is stored in a form that cannot be rebuilt.
        ReadError: the bytes of a tensor are not there.
    """
    with open(path, "xb") as stream:
        patch = Patch(stream, path)
        for done, plan in enumerate(plans):
            if progress is not None:
                progress("repair", done, len(plans))
            _apply_layer(child, parent, plan, patch, kept_hidden)
    if progress is not None:
        progress("repair", len(plans), len(plans))
    return replace(child.checkpoint, tensors=_merged(child.checkpoint.tensors, patch.entries))


def _merged(stored: Mapping[str, TensorInfo], changed: Mapping[str, TensorInfo]) -> Mapping[str, TensorInfo]:
    """``stored`` in its order with ``changed`` in place; what is new stands behind its weight, else at the end."""
    new = {name: info for name, info in changed.items() if name not in stored}
    merged: dict[str, TensorInfo] = {}
    for name, info in stored.items():
        merged[name] = changed.get(name, info)
        stem, _, leaf = name.rpartition(".")
        beside = f"{stem}.bias"
        if leaf == "weight" and beside in new:
            merged[beside] = new.pop(beside)
    return merged | new


def _apply_layer(child: Side, parent: Side, plan: LayerPlan, patch: Patch, kept_hidden: Sequence[int] | None) -> None:
    from gqacheck.runtime.weights import WeightReader

    layer, theirs = child.layer(plan.index), parent.layer(plan.parent)
    old, new = dict(slots_of(child.geometry, layer)), dict(slots_of(child.geometry, after(layer, plan)))
    sources = dict(slots_of(parent.geometry, theirs))
    takes = {(take.role, take.kind, take.expert): take for take in plan.takes}
    changed = [key for key, take in takes.items() if take.changes]
    with WeightReader() as ours, WeightReader() as others:
        dtype = layer_dtype(layer) or parent.checkpoint.tensors[next(iter(sources.values())).tensor].dtype
        maker = _Maker(child.checkpoint, parent.checkpoint, sources, takes, ours, others, kept_hidden, dtype)
        for name in dict.fromkeys(old[key].tensor for key in changed if key in old):
            here = [key for key, slot in old.items() if slot.tensor == name]
            values, kind = maker.rebuild(name, here, old, new)
            patch.put(name, values, kind)
        for key in changed:
            if key not in old:
                name = _name_of_missing(layer, theirs, key, sources.get(_parent_key(takes[key])))
                patch.put(name, maker.make_missing(key), "parameter")


def layer_dtype(layer: Layer) -> str | None:
    """The dtype that most projections of the layer are stored in, None when it has none."""
    a, m = layer.attention, layer.mlp
    counts = Counter(p.dtype for p in (a.q, a.k, a.v, a.o, m.gate, m.up, m.down) if p is not None)
    return counts.most_common(1)[0][0] if counts else None


def _parent_key(take: RoleTake) -> Key:
    return take.role, take.kind, take.parent_expert


def _name_of_missing(layer: Layer, theirs: Layer, key: Key, source: Slot | None) -> str:
    """What the child would call a tensor that only the parent stores."""
    if source is None or not source.tensor.startswith(theirs.path + ".") or source.shared or source.expert is not None:
        raise CannotRepair(f"layer {layer.index}: its {key[1]} of {key[0]} is missing, and cannot be taken over")
    return layer.path + source.tensor[len(theirs.path) :]


@dataclass(slots=True)
class _Maker:
    """Makes tensors of one layer out of the child's and the parent's blocks."""

    child: Checkpoint
    parent: Checkpoint
    sources: Mapping[Key, Slot]
    takes: Mapping[Key, RoleTake]
    ours: WeightReader
    others: WeightReader
    kept_hidden: Sequence[int] | None
    dtype: str

    def rebuild(
        self, name: str, here: Sequence[Key], old: Mapping[Key, Slot], new: Mapping[Key, Slot]
    ) -> tuple[torch.Tensor, str]:
        """The stored tensor ``name`` anew, and whether it is a parameter; ``here`` are the roles that it holds."""
        info = self.child.tensors[name]
        stored = self.ours.read(info)
        lengths = {key: self._length(key, old[key]) for key in here}
        if all(lengths[key] == old[key].n_lines for key in here):
            made = stored.clone()
        else:
            made = stored.new_empty(_shape(stored.shape, [old[key] for key in here], sum(lengths.values())))
        resized = made.shape != stored.shape
        for key in here:
            take = self.takes.get(key)
            if resized or (take is not None and take.changes):
                moved = take.take if take is not None else stay(old[key].n_blocks)
                lines = self._lines(key, take, moved, old[key].unit, old[key].lines(stored))
                place = new.get(key, old[key]) if resized else old[key]
                place.put(made, lines)
        return made, info.kind

    def make_missing(self, key: Key) -> torch.Tensor:
        """A tensor that the child lacks, of the parent's blocks, in the child's dtype."""
        take = self.takes[key]
        source = self.sources[_parent_key(take)]
        lines = self._lines(key, take, take.take, source.unit, None, dtype=self.dtype)
        if key[1] != "weight":
            return lines.reshape(-1)
        return lines.T.contiguous() if source.turned else lines

    def _length(self, key: Key, slot: Slot) -> int:
        take = self.takes.get(key)
        return slot.n_lines if take is None else len(take.take) * slot.unit

    def _lines(
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
        source = self.sources.get(_parent_key(role))
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


def planned_shapes(child: Side, plans: Sequence[LayerPlan]) -> dict[str, tuple[int, ...]]:
    """Stored name -> shape after the repair, for every tensor of the child that changes. No weight is read."""
    found: dict[str, tuple[int, ...]] = {}
    for plan in plans:
        slots = dict(slots_of(child.geometry, child.layer(plan.index)))
        takes = {(take.role, take.kind, take.expert): take for take in plan.takes}
        for name in dict.fromkeys(slots[key].tensor for key, take in takes.items() if take.changes and key in slots):
            here = {key: slot for key, slot in slots.items() if slot.tensor == name}
            lengths = {
                key: len(takes[key].take) * slot.unit if key in takes else slot.n_lines for key, slot in here.items()
            }
            shape = child.checkpoint.tensors[name].shape
            if any(lengths[key] != slot.n_lines for key, slot in here.items()):
                shape = _shape(shape, list(here.values()), sum(lengths.values()))
            found[name] = shape
    return found


def _picked(numbers: array[int], places: Sequence[int]) -> Sequence[int]:
    return [numbers[place] for place in places]


def _shape(stored: Sequence[int], slots: Sequence[Slot], n_lines: int) -> tuple[int, ...]:
    """The shape of a stored tensor that holds ``n_lines`` lines instead."""
    if slots[0].kind != "weight":
        return (n_lines,) if len(stored) == 1 else (n_lines // stored[-1], stored[-1])
    if slots[0].expert is not None or len(stored) != 2:
        raise CannotRepair(f"{slots[0].tensor} holds several experts and cannot change its width")
    return (stored[0], n_lines) if slots[0].turned else (n_lines, stored[1])


def query_importance(parent: Side) -> Callable[[int], Sequence[float]]:
    """Parent's layer -> for each query head the norm of its q rows times that of its o columns, read when asked for."""
    known: dict[int, list[float]] = {}

    def score(index: int) -> Sequence[float]:
        if index not in known:
            known[index] = _importance(parent, parent.layer(index))
        return known[index]

    return score


def _importance(parent: Side, layer: Layer) -> list[float]:
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
