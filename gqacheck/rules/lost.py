"""What a missing or unreadable shard took with it: GQA014 tells of the shard, so no other rule accuses its tensors."""

from __future__ import annotations

from gqacheck.geometry.facts import Subject


def lost_tensors(subject: Subject) -> frozenset[str]:
    """Names that the shard index lists and no readable shard holds."""
    stored = subject.checkpoint.tensors
    listed = (defect.tensors for defect in subject.checkpoint.defects if defect.kind == "shard-index")
    return frozenset(name for names in listed for name in names if name not in stored)


def layer_indices(subject: Subject) -> list[int]:
    """Indices of all layers, in order: those stored, and those that lie in a lost shard as a whole."""
    indices = {layer.index for layer in subject.geometry.layers}
    prefix = f"{subject.geometry.layers_path}."
    for name in lost_tensors(subject):
        number = name.removeprefix(prefix).partition(".")[0] if name.startswith(prefix) else ""
        if number.isascii() and number.isdigit() and len(number) <= 6:
            indices.add(int(number))
    return sorted(indices)
