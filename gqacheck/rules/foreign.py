"""GQA606 and GQA607: what is not the parent's at all, and which of the parent's layers each layer is."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from gqacheck.geometry.facts import Subject
from gqacheck.geometry.origins import NOWHERE, Channels, Heads, LayerOrigin
from gqacheck.rules.heads import counted
from gqacheck.rules.origins import SOURCE, lineage_of, needs_told, some_of
from gqacheck.rules.predict import ranges
from gqacheck.rules.rule import Quantity, Severity, Violation

_UNITS = {
    "q": "query head",
    "k": "key head",
    "v": "value head",
    "o": "o_proj block",
    "gate": "gate channel",
    "up": "up channel",
    "down": "down channel",
}
_REWRITTEN_IS_MEANT = ("o", "down")
_SHOWN = 6


def needs_layers(subject: Subject) -> tuple[str, str] | None:
    """A layer that was compared, whether or not it matched."""
    return needs_told(subject, "weights", _was_compared)


def needs_parent_layers(subject: Subject) -> tuple[str, str] | None:
    """A layer whose parent layer is known."""
    return needs_told(subject, "origin", lambda layer: layer.parent is not None)


def _was_compared(layer: LayerOrigin) -> bool:
    """Whether anything of the layer was held against the parent; one that matched nothing was, unless it says why."""
    parts: tuple[Heads | Channels | None, ...] = (
        layer.q, layer.k, layer.v, layer.o, *(c for m in layer.mlps for c in (m.gate, m.up, m.down))
    )  # fmt: skip
    compared = any(part is not None and part.state != "not-compared" for part in parts)
    return compared or (layer.parent is None and not layer.not_compared)


@dataclass(slots=True)
class _Foreign:
    """One role over the whole checkpoint: blocks or channels that match nothing, of how many, and where."""

    unmatched: int = 0
    total: int = 0
    layers: dict[int, list[str]] = field(default_factory=dict)


def foreign_rows(subject: Subject) -> Iterator[Violation]:
    """Heads, channels or whole layers match nothing in the parent.

    What it checks
        Every head of q, k and v, every block of o_proj and every MLP channel: whether it is one of the parent's, bit
        by bit or by cosine similarity. What is not is counted role by role over the whole checkpoint, and layers that
        match no layer of the parent are named. A warning: nothing is known to be wrong.

    Why it matters
        Rows that are not the parent's cannot be paired, so for them "every head reads its own KV head" is unknown.
        They were trained on a great deal, averaged, newly initialised, or they are another model's.

    What you would see
        Nothing by itself. from_pretrained with ignore_mismatched_sizes=True re-initialises what does not fit, without
        an error: such rows look exactly like this.

    Fix
        If these rows were trained or merged, nothing need be done. If not, give as --base the checkpoint that this one
        was really cut from, or look for the step that initialised them anew.

    Known misses
        An o_proj or down_proj that was rewritten as a whole is expected after a least-squares reconstruction and is
        not counted. Without numpy only what is bit-identical after a cast is found.

    Source
        `MISMATCH … Reinit due to size mismatch` is the loading report of transformers 5.23, measured.
    """
    found: dict[str, _Foreign] = {}
    layers = [layer for layer in lineage_of(subject).layers if _was_compared(layer)]
    for layer in layers:
        if layer.parent is not None:
            _count(layer, found)
    for role, foreign in found.items():
        if not foreign.unmatched:
            continue
        verb = some_of(foreign.unmatched, foreign.total, _UNITS[role], "matches", "match")
        for index, tensors in foreign.layers.items():
            yield Violation(
                message=f"{verb} nothing in the parent's layer",
                layer=index,
                tensors=tuple(dict.fromkeys(tensors)),
                expected=Quantity(0, f"{_UNITS[role]}s that are not the parent's"),
                actual=Quantity(foreign.unmatched, f"{_UNITS[role]}s that are not the parent's"),
                source=SOURCE,
                consequence="their pairing is unknown: trained anew, averaged, re-initialised, or another model's",
                fix="if they were not trained or merged, give the checkpoint that this one was cut from as --base",
            )
    strangers = [layer.index for layer in layers if layer.parent is None]
    for index in strangers:
        yield Violation(
            message=f"{some_of(len(strangers), len(layers), 'layer', 'matches', 'match')} no layer of the parent",
            layer=index,
            expected=Quantity(0, "layers that are not the parent's"),
            actual=Quantity(len(strangers), "layers that are not the parent's"),
            source=SOURCE,
            consequence="their pairing is unknown: trained anew, re-initialised, or another model's",
            fix="if they were not trained or merged, give the checkpoint that this one was cut from as --base",
        )


def _count(layer: LayerOrigin, found: dict[str, _Foreign]) -> None:
    for role, heads, stored in (
        ("q", layer.q, layer.n_q),
        ("k", layer.k, layer.n_kv),
        ("v", layer.v, layer.n_kv),
        ("o", layer.o, layer.n_q),
    ):
        if heads is not None:
            unmatched = sum(origin.how == "unmatched" for origin in heads.origins)
            _add(found, role, layer.index, heads, unmatched, len(heads.origins) or stored or heads.n_parent)
    for mlp in layer.mlps:
        for channels in (mlp.gate, mlp.up, mlp.down):
            if channels is not None:
                n = channels.parents.count(NOWHERE)
                _add(found, channels.role, layer.index, channels, n, len(channels.parents) or channels.n_parent)


def _add(found: dict[str, _Foreign], role: str, index: int, part: Heads | Channels, unmatched: int, total: int) -> None:
    if part.state == "not-compared" or (part.state == "rewritten" and role in _REWRITTEN_IS_MEANT):
        return
    foreign = found.setdefault(role, _Foreign())
    n = unmatched if part.told else total
    foreign.total += total
    foreign.unmatched += n
    if n:
        foreign.layers.setdefault(index, []).extend([part.tensor] if part.tensor else [])


def layer_origin(subject: Subject) -> Iterator[Violation]:
    """Layers stand in another order than in the parent, or one of its layers stands here twice.

    What it checks
        Which layer of the parent each layer came from. A warning when the order is another one, or when a layer is
        repeated; a note when layers are merely missing and the others follow each other as before, for removing whole
        layers is a legal way to prune.

    Why it matters
        Layers are trained for their place. Files with a layer list written in the wrong order (10 before 2, as names
        are sorted) load without an error and run as another model.

    What you would see
        Nothing raises; perplexity and text show it.

    Fix
        Write the layers in the parent's order. If they were repeated or moved on purpose, as depth up-scaling and
        frankenmerges do, ignore this: --ignore GQA607.

    Known misses
        Layers that match no layer of the parent (GQA606) have no place in the order. Layers that are equal in the
        parent cannot be told apart.

    Source
        The decoder's loop over its layer list, in transformers and everywhere else.
    """
    lineage = lineage_of(subject)
    placed = [(layer.index, layer.parent) for layer in lineage.layers if layer.parent is not None]
    times = Counter(parent for _, parent in placed)
    for parent in sorted(parent for parent, n in times.items() if n > 1):
        here = [index for index, origin in placed if origin == parent]
        for index in here:
            yield Violation(
                message=f"{counted(len(here), 'layer')} came from parent layer {parent}: layers {ranges(here, _SHOWN)}",
                layer=index,
                expected=Quantity(1, "layers from one parent layer"),
                actual=Quantity(len(here), "layers from one parent layer"),
                source=SOURCE,
                consequence="nothing raises; a layer that runs twice was trained to run once",
                fix="keep one of them, unless repeating it was meant",
                severity=Severity.WARNING,
            )
    yield from _out_of_order(placed)
    parents = [parent for _, parent in placed]
    if parents == sorted(set(parents)):
        yield from _missing(subject, set(parents), len(parents))


def _out_of_order(placed: list[tuple[int, int]]) -> Iterator[Violation]:
    strays = _strays([parent for _, parent in placed])
    if not strays:
        return
    each = [f"layer {placed[n][0]} came from parent layer {placed[n][1]}" for n in strays[:_SHOWN]]
    more = f" and {len(strays) - _SHOWN} more" if len(strays) > _SHOWN else ""
    for n in strays:
        yield Violation(
            message=f"the layers stand in another order than in the parent: {', '.join(each)}{more}",
            layer=placed[n][0],
            expected=Quantity(0, "layers out of order"),
            actual=Quantity(len(strays), "layers out of order"),
            source=SOURCE,
            consequence="nothing raises; each layer is handed what it was not trained on",
            fix="write the layers in the parent's order, unless moving them was meant",
            severity=Severity.WARNING,
        )


def _strays(parents: list[int]) -> list[int]:
    """The fewest entries that must go for the rest not to fall: what is outside a longest non-falling part of it."""
    tops: list[int] = []
    lengths = []
    for parent in parents:
        place = bisect_left(tops, parent + 1)
        tops[place : place + 1] = [parent]
        lengths.append(place)
    keep, wanted, ceiling = set(), len(tops) - 1, None
    for n in range(len(parents) - 1, -1, -1):
        if lengths[n] == wanted and (ceiling is None or parents[n] <= ceiling):
            keep.add(n)
            wanted, ceiling = wanted - 1, parents[n]
    return [n for n in range(len(parents)) if n not in keep]


def _missing(subject: Subject, found: set[int], n_placed: int) -> Iterator[Violation]:
    """A note on the parent's layers that are not here, when every layer that is here has been placed."""
    lineage = lineage_of(subject)
    base = subject.base.geometry.layers if subject.base is not None else ()
    stored = [layer.index for layer in base] or list(range(lineage.n_parent_layers))
    gone = [index for index in stored if index not in found]
    if not gone or n_placed < len(lineage.layers) or n_placed >= len(stored):
        return
    noun = "layer" if len(gone) == 1 else "layers"
    yield Violation(
        message=f"{len(gone)} of the parent's {counted(len(stored), 'layer')} are not here: {noun} {ranges(gone, 12)}"
        if len(gone) > 1
        else f"1 of the parent's {counted(len(stored), 'layer')} is not here: layer {gone[0]}",
        expected=Quantity(len(stored), "layers"),
        actual=Quantity(len(stored) - len(gone), "layers"),
        source=SOURCE,
        consequence="none by itself: removing whole layers is a legal way to prune",
        severity=Severity.NOTE,
    )
