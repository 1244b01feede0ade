"""A plan carried out: the tensors that change, made of the checkpoint's and the parent's blocks, beside the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, BinaryIO

from gqacheck.checkpoint import Checkpoint, StorageInfo, TensorInfo
from gqacheck.geometry.facts import Layer
from gqacheck.geometry.lines import Slot, slots_of
from gqacheck.repair.after import after
from gqacheck.repair.blocks import Blocks, Key, Recent, Side, layer_dtype, parent_key
from gqacheck.repair.facts import CannotRepair, LayerPlan, stay

if TYPE_CHECKING:
    import torch


Progress = Callable[[str, int, int], None]


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
        dtype = layer_dtype(layer) or "float32"
        blocks = Blocks(
            child.checkpoint, parent.checkpoint, sources, takes, Recent(ours), Recent(others), kept_hidden, dtype
        )
        for name in dict.fromkeys(old[key].tensor for key in changed if key in old):
            here = [key for key, slot in old.items() if slot.tensor == name]
            values, kind = _rebuild(blocks, name, here, old, new)
            patch.put(name, values, kind)
        for key in changed:
            if key not in old:
                name = _name_of_missing(layer, theirs, key, sources.get(parent_key(takes[key])))
                patch.put(name, _make_missing(blocks, key), "parameter")


def _name_of_missing(layer: Layer, theirs: Layer, key: Key, source: Slot | None) -> str:
    """What the child would call a tensor that only the parent stores."""
    if source is None or not source.tensor.startswith(theirs.path + ".") or source.shared or source.expert is not None:
        raise CannotRepair(f"layer {layer.index}: its {key[1]} of {key[0]} is missing, and cannot be taken over")
    return layer.path + source.tensor[len(theirs.path) :]


def _rebuild(
    blocks: Blocks, name: str, here: Sequence[Key], old: Mapping[Key, Slot], new: Mapping[Key, Slot]
) -> tuple[torch.Tensor, str]:
    """The stored tensor ``name`` anew, and whether it is a parameter; ``here`` are the roles that it holds."""
    info = blocks.child.tensors[name]
    stored = blocks.ours.read(info)
    lengths = {key: _length(blocks, key, old[key]) for key in here}
    resized = any(lengths[key] != old[key].n_lines for key in here)
    if resized:
        made = stored.new_empty(_shape(stored.shape, [old[key] for key in here], sum(lengths.values())))
    else:
        made = stored.clone()
    for key in here:
        take = blocks.takes.get(key)
        if resized or (take is not None and take.changes):
            moved = take.take if take is not None else stay(old[key].n_blocks)
            lines = blocks.lines(key, take, moved, old[key].unit, old[key].lines(stored))
            place = new.get(key, old[key]) if resized else old[key]
            place.put(made, lines)
    return made, info.kind


def _make_missing(blocks: Blocks, key: Key) -> torch.Tensor:
    """A tensor that the child lacks, of the parent's blocks, in the child's dtype."""
    take = blocks.takes[key]
    source = blocks.sources[parent_key(take)]
    lines = blocks.lines(key, take, take.take, source.unit, None, dtype=blocks.dtype)
    if key[1] != "weight":
        return lines.reshape(-1)
    return lines.T.contiguous() if source.turned else lines


def _length(blocks: Blocks, key: Key, slot: Slot) -> int:
    take = blocks.takes.get(key)
    return slot.n_lines if take is None else len(take.take) * slot.unit


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


def _shape(stored: Sequence[int], slots: Sequence[Slot], n_lines: int) -> tuple[int, ...]:
    """The shape of a stored tensor that holds ``n_lines`` lines instead."""
    if slots[0].kind != "weight":
        return (n_lines,) if len(stored) == 1 else (n_lines // stored[-1], stored[-1])
    if slots[0].expert is not None or len(stored) != 2:
        raise CannotRepair(f"{slots[0].tensor} holds several experts and cannot change its width")
    return (stored[0], n_lines) if slots[0].turned else (n_lines, stored[1])
