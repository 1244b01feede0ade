"""What was written, line by line against what it was made of: nothing else changed, and nothing was lost on the way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from gqacheck.checkpoint import Container, TensorInfo
from gqacheck.geometry.facts import Layer
from gqacheck.geometry.lines import Slot, slots_of
from gqacheck.repair.apply import tensor_bytes
from gqacheck.repair.blocks import Blocks, Key, Recent, Side, layer_dtype
from gqacheck.repair.facts import LayerPlan, stay
from gqacheck.repair.predict import new_names
from gqacheck.text import printable_list

if TYPE_CHECKING:
    import torch

_SHOWN = 3


def compare_bytes(
    source: Side,
    written: Side,
    parent: Side | None,
    plans: Sequence[LayerPlan],
    *,
    kept_hidden: Sequence[int] | None = None,
) -> tuple[str, ...]:
    """One sentence when a tensor of ``written`` is not bit by bit what the plans make of ``source``; () when all are.

    Every block is compared with the one that it was taken from, every other tensor with the stored one. Buffers of a
    whole module are computed anew, and not compared.

    Raises:
        ReadError: the bytes of a tensor are not there.
    """
    wrong = [*_projections(source, written, parent, plans, kept_hidden), *_others(source, written)]
    if not wrong:
        return ()
    return (
        f"what was written differs from what it was made of in {len(wrong)} tensors: {printable_list(wrong, _SHOWN)}",
    )


def _projections(
    source: Side,
    written: Side,
    parent: Side | None,
    plans: Sequence[LayerPlan],
    kept_hidden: Sequence[int] | None,
) -> Iterator[str]:
    planned = {plan.index: plan for plan in plans}
    if len(source.geometry.layers) != len(written.geometry.layers):
        yield f"{written.geometry.layers_path} ({written.geometry.n_layers} layers)"
        return
    for ours, theirs in zip(source.geometry.layers, written.geometry.layers, strict=True):
        plan = planned.get(ours.index)
        base = parent.layer(plan.parent) if plan is not None and parent is not None else None
        yield from _layer(source, written, parent, ours, theirs, base, plan, kept_hidden)


def _layer(
    source: Side,
    written: Side,
    parent: Side | None,
    ours: Layer,
    made: Layer,
    base: Layer | None,
    plan: LayerPlan | None,
    kept_hidden: Sequence[int] | None,
) -> Iterator[str]:
    """Names of the tensors of one layer that hold something else than they should."""
    from gqacheck.runtime.weights import WeightReader

    old, new = dict(slots_of(source.geometry, ours)), dict(slots_of(written.geometry, made))
    takes = {(take.role, take.kind, take.expert): take for take in plan.takes} if plan is not None else {}
    sources = dict(slots_of(parent.geometry, base)) if parent is not None and base is not None else {}
    with WeightReader() as reader, WeightReader() as others, WeightReader() as result:
        blocks = Blocks(
            source.checkpoint,
            (parent or source).checkpoint,
            sources,
            takes,
            Recent(reader),
            Recent(others),
            kept_hidden,
            layer_dtype(ours) or "float32",
        )
        recent = Recent(result)
        for key in dict.fromkeys((*old, *takes)):
            slot = new.get(key)
            if slot is None:
                yield old[key].tensor if key in old else f"{ours.path} {key[0]} {key[1]}"
                continue
            expected = _expected(blocks, key, old.get(key), slot, source)
            found = slot.lines(recent.read(written.checkpoint.tensors[slot.tensor]))
            if expected.dtype != found.dtype or tensor_bytes(expected) != tensor_bytes(found):
                yield slot.tensor


def _expected(blocks: Blocks, key: Key, old: Slot | None, new: Slot, source: Side) -> torch.Tensor:
    """The lines that should stand there."""
    take = blocks.takes.get(key)
    own = old.lines(blocks.ours.read(source.checkpoint.tensors[old.tensor])) if old is not None else None
    if own is not None and (take is None or not take.changes):
        return own
    return blocks.lines(key, take, take.take if take is not None else stay(0), new.unit, own, dtype=blocks.dtype)


def _others(source: Side, written: Side) -> Iterator[str]:
    """Names of tensors that are no projection and are not there any more, or not the same."""
    from gqacheck.runtime.weights import WeightReader

    module = source.checkpoint.container is Container.MODULE or written.checkpoint.container is Container.MODULE
    names = new_names(source.checkpoint.tensors, source.geometry)
    known = {slot.tensor for layer in source.geometry.layers for _, slot in slots_of(source.geometry, layer)}
    with WeightReader() as reader, WeightReader() as result:
        for name, info in source.checkpoint.tensors.items():
            if name in known or (module and _computed(info)):
                continue
            found = written.checkpoint.tensors.get(names[name])
            if found is None:
                if not module:  # the class of a module may call it otherwise, or not have it, which the rebuild says
                    yield names[name]
                continue
            one, other = reader.read(info), result.read(found)
            if one.shape != other.shape or one.dtype != other.dtype or tensor_bytes(one) != tensor_bytes(other):
                yield names[name]


def _computed(info: TensorInfo) -> bool:
    return info.kind == "buffer" or "rotary_emb." in info.name
