"""A child beside its parent -> ``Lineage``: which parent layer, head and channel everything in it came from."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from time import perf_counter

from gqacheck.checkpoint import Checkpoint
from gqacheck.geometry.facts import Geometry, Layer
from gqacheck.geometry.origins import NOWHERE, Channels, Heads, LayerOrigin, Lineage
from gqacheck.lineage.attention import trace_heads
from gqacheck.lineage.cause import layer_cause
from gqacheck.lineage.hidden import kept_columns
from gqacheck.lineage.layers import LayerFinder
from gqacheck.lineage.misplaced import find_misplaced
from gqacheck.lineage.mlp import trace_mlps
from gqacheck.lineage.pair import Pair, Progress, Samples, Side
from gqacheck.lineage.reader import LineReader
from gqacheck.lineage.vectors import trace_vectors

UNRELATED = 0.05
"""Share of blocks and channels that are the parent's below which the two have nothing to do with each other."""
_WITHOUT_NUMPY = (
    "nothing in it is the parent's bit by bit: another model, or one that was trained further, which only similarity "
    "tells (pip install 'gqacheck[lineage]')"
)


def trace_lineage(
    child: Checkpoint,
    child_geometry: Geometry,
    parent: Checkpoint,
    parent_geometry: Geometry,
    *,
    child_samples: Samples | None = None,
    parent_samples: Samples | None = None,
    progress: Progress | None = None,
) -> Lineage:
    """Where every layer, head and channel of ``child`` came from in ``parent``.

    Reads a few elements of every line of both, bit by bit first; where bits differ (a fine-tuned child) and numpy is
    installed, more of them by cosine similarity. What cannot be compared is a ``Lineage`` that says why.
    child_samples, parent_samples: how lines of a live model are read; a checkpoint's are read from its files.

    Raises:
        ReadError: a file cannot be read any more.
    """
    started = perf_counter()
    with LineReader() as reader:
        ours = Side(child, child_geometry, child_samples or reader.samples)
        theirs = Side(parent, parent_geometry, parent_samples or reader.samples)
        lineage = _trace(ours, theirs, progress)
        return replace(
            lineage,
            n_parent_layers=parent_geometry.n_layers,
            bytes_read=reader.bytes_read,
            seconds=perf_counter() - started,
        )


def _trace(child: Side, parent: Side, progress: Progress | None) -> Lineage:
    reason = _incomparable(child, parent)
    if reason:
        return Lineage("not-compared", reason)
    ours_wide, theirs_wide = _head_dims(child.geometry), _head_dims(parent.geometry)
    if ours_wide and theirs_wide and not ours_wide & theirs_wide:
        reason = f"one head has {_listed(ours_wide)} rows here and {_listed(theirs_wide)} in the parent: not its child"
        return Lineage("not-compared", reason, stranger=True)
    kept = None
    ours, theirs = child.geometry.hidden_size, parent.geometry.hidden_size
    if ours and theirs and ours.value != theirs.value:
        if ours.value < theirs.value:
            kept = kept_columns(child, parent)
        if kept is None:
            return Lineage(
                "not-compared",
                f"hidden_size is {ours.value} here and {theirs.value} in the parent, and the embedding does not tell "
                "which columns were kept",
                stranger=ours.value > theirs.value,
            )
    from gqacheck.lineage.arrays import have_numpy

    pair = Pair(child, parent, kept, have_numpy())
    layers = tuple(_layers(pair, progress))
    return _judged(pair, layers, kept)


def _incomparable(child: Side, parent: Side) -> str:
    """Why the two cannot be compared at all, "" when they can."""
    if _same_file(child.checkpoint.path, parent.checkpoint.path):
        return "the checkpoint and --base are the same file, which proves nothing; name the model it was cut from"
    for side, name in ((child, "the checkpoint"), (parent, "the parent")):
        if side.checkpoint.quantization is not None:
            return f"the weights of {name} are packed ({side.checkpoint.quantization}): heads cannot be told"
        if not side.geometry.layers:
            return f"no decoder layers were found in {name}"
        if not any(layer.attention.kind == "full" for layer in side.geometry.layers):
            return f"{name} has no softmax attention whose heads could be compared"
    return ""


def _head_dims(geometry: Geometry) -> set[int]:
    return {layer.attention.head_dim.value for layer in geometry.layers if layer.attention.head_dim is not None}


def _listed(sizes: set[int]) -> str:
    return " or ".join(map(str, sorted(sizes)))


def _layers(pair: Pair, progress: Progress | None) -> Iterator[LayerOrigin]:
    finder = LayerFinder(pair)
    parents = {layer.index: layer for layer in pair.parent.geometry.layers}
    total = len(pair.child.geometry.layers)
    offset = 0
    for number, layer in enumerate(pair.child.geometry.layers):
        if progress is not None:
            progress("lineage", number, total)
        found = finder.find(layer, layer.index + offset)
        if found is None and pair.similar:
            found = finder.find_similar(layer, layer.index + offset)
        elif found is None:
            found = _same_place(layer, parents, total)
        if found is None:
            yield LayerOrigin(layer.index, None, layer.attention.n_q_heads, layer.attention.n_kv_heads)
            continue
        offset = found - layer.index
        yield _compare(pair, layer, parents[found])
    if progress is not None:
        progress("lineage", total, total)


def _same_place(layer: Layer, parents: Mapping[int, Layer], total: int) -> int | None:
    """Without similarity a layer that was trained further is taken for the parent's of the same number."""
    parent = parents.get(layer.index) if total == len(parents) else None
    same = parent is not None and (parent.attention.kind, parent.mlp.kind) == (layer.attention.kind, layer.mlp.kind)
    return layer.index if same else None


def _compare(pair: Pair, ours: Layer, theirs: Layer) -> LayerOrigin:
    heads: dict[str, Heads] = {}
    left: list[str] = []
    if ours.attention.kind == "full" and theirs.attention.kind == "full":
        heads, left = trace_heads(pair, ours, theirs)
    elif ours.attention.kind not in ("dropped", "absent"):
        left.append(f"attention: {ours.attention.kind} attention has no heads to compare")
    mlps, reasons = trace_mlps(pair, ours, theirs)
    layer = LayerOrigin(
        ours.index,
        theirs.index,
        ours.attention.n_q_heads,
        ours.attention.n_kv_heads,
        theirs.attention.n_q_heads,
        theirs.attention.n_kv_heads,
        heads.get("q"),
        heads.get("k"),
        heads.get("v"),
        heads.get("o"),
        mlps=mlps,
        vectors=trace_vectors(pair, ours, theirs, heads, mlps),
        not_compared=tuple(left + reasons),
        misplaced=find_misplaced(pair, ours, theirs, heads, mlps),
    )
    return replace(layer, cause=layer_cause(layer))


def _judged(pair: Pair, layers: Sequence[LayerOrigin], kept: Sequence[int] | None) -> Lineage:
    told, exact, total = _counts(layers)
    layers = tuple(layers)
    notes = tuple(pair.notes)
    if not total or told < UNRELATED * total or all(layer.parent is None for layer in layers):
        if pair.similar and not total and any(layer.parent is not None for layer in layers):
            reasons = [reason for layer in layers for reason in layer.not_compared] or [
                "nothing in it could be compared"
            ]
            return Lineage("not-compared", reasons[0], layers, notes=notes)
        if not pair.similar:
            return Lineage("not-compared", _WITHOUT_NUMPY, layers, notes=notes)
        return Lineage("unrelated", _unrelated(told, total), layers, stranger=True, notes=notes)
    if _swapped(pair, layers):
        return Lineage(
            "swapped",
            "it holds everything that the parent holds and more: the checkpoint and --base look swapped",
            layers,
            stranger=True,
            notes=notes,
        )
    same = exact == total and _nothing_moved(pair, layers)
    return Lineage(
        "identical" if same else "child",
        "every head and channel is the parent's, in the parent's place" if same else "",
        layers,
        method="exact" if told == exact else "similarity",
        kept_hidden=kept,
        fine_tuned=(told - exact) / told if told else 0.0,
        notes=notes,
    )


def _unrelated(told: int, total: int) -> str:
    found = f"{told} of {total} heads and channels are" if total else "no layer is"
    return f"{found} the parent's: --base names another model, or this one was trained or rounded beyond recognition"


def _counts(layers: Sequence[LayerOrigin]) -> tuple[int, int, int]:
    """Blocks and channels that are the parent's, those that are bit by bit, and all that were compared."""
    told = exact = total = 0
    for layer in layers:
        for heads in (layer.q, layer.k, layer.v, layer.o):
            if heads is None or heads.state in ("not-compared", "rewritten"):
                continue
            total += len(heads.origins)
            told += sum(origin.how != "unmatched" for origin in heads.origins)
            exact += sum(origin.how in ("exact", "mixed") for origin in heads.origins)
        for channels in _channels(layer):
            found = sum(channel != NOWHERE for channel in channels.parents)
            total += len(channels.parents)
            told += found
            exact += found if channels.state == "exact" else 0
    return told, exact, total


def _channels(layer: LayerOrigin) -> Iterator[Channels]:
    for mlp in layer.mlps:
        for channels in (mlp.gate, mlp.up, mlp.down):
            if channels is not None and channels.state not in ("not-compared", "rewritten"):
                yield channels


def _swapped(pair: Pair, layers: Sequence[LayerOrigin]) -> bool:
    """Whether the checkpoint holds all of the parent's and besides what the parent does not have."""
    foreign = any(layer.parent is None for layer in layers)
    if len({layer.parent for layer in layers} - {None}) < pair.parent.geometry.n_layers:
        return False
    for layer in layers:
        for heads in (layer.q, layer.k):
            if heads is None or not heads.told:
                continue
            if len({origin.heads[0] for origin in heads.origins if origin.heads}) < heads.n_parent:
                return False
            foreign |= any(not origin.heads for origin in heads.origins)
        for channels in _channels(layer):
            if len(set(channels.parents) - {NOWHERE}) < channels.n_parent:
                return False
            foreign |= NOWHERE in channels.parents
    return foreign


def _nothing_moved(pair: Pair, layers: Sequence[LayerOrigin]) -> bool:
    if pair.kept is not None or len(layers) != pair.parent.geometry.n_layers:
        return False
    for layer in layers:
        if layer.not_compared or layer.parent != layer.index:
            return False
        for heads in (layer.q, layer.k, layer.v, layer.o):
            if heads is None or [origin.head for origin in heads.origins] != list(range(heads.n_parent)):
                return False
            if any(origin.order for origin in heads.origins):
                return False
        for mlp in layer.mlps:
            for channels in (mlp.gate, mlp.up, mlp.down):
                if channels is not None and list(channels.parents) != list(range(channels.n_parent)):
                    return False
    return True


def _same_file(child: str, parent: str) -> bool:
    try:
        return os.path.samefile(child, parent)
    except (OSError, ValueError):
        return False
