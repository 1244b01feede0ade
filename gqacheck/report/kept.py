"""What a checkpoint kept of its parent, a sentence per shape, and what the comparison itself has to say."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gqacheck.geometry.origins import NOWHERE, LayerOrigin, Lineage, MlpOrigin
from gqacheck.report.seats import Seat, runs, seats, tally
from gqacheck.report.words import layer_ranges, layers_words, plural
from gqacheck.result import CheckpointReport

MAX_LINES = 4
"""Shapes, or reasons why something was left alone, that are told one by one."""
LONGEST_LIST = 40
"""Characters of a list of heads; a longer one stands in the JSON."""


def kept_words(lineage: Lineage) -> list[str]:
    """A sentence on dropped layers and one per way in which layers were cut; [] when the weights were not compared."""
    if not lineage.compared:
        return []
    if lineage.relation == "identical":
        return [f"everything: {lineage.reason or 'these are the weights of the base'}"]
    shapes: dict[tuple[str, ...], list[LayerOrigin]] = {}
    for layer in lineage.layers:
        words = _head_words(layer, seats(layer))
        rest = _other_words(layer)
        if words or rest:
            shapes.setdefault((", ".join(words), *rest), []).append(layer)
    told = []
    for (heads, *rest), alike in shapes.items():
        words = [f"{heads}{_which(alike)}", *rest] if heads else rest
        told.append(f"{layers_words([one.index for one in alike])}: {'; '.join(words)}")
    if len(told) > MAX_LINES:
        left = sorted(one.index for alike in list(shapes.values())[MAX_LINES:] for one in alike)
        told = [*told[:MAX_LINES], f"{layers_words(left)}: cut in other ways (--format json)"]
    return [*_depth_words(lineage), *told]


def _other_words(layer: LayerOrigin) -> list[str]:
    rewritten = layer.o is not None and layer.o.state == "rewritten"
    return [*_zero_words(layer), *(["o_proj rewritten"] if rewritten else []), *_channel_words(layer.mlps)]


def _zero_words(layer: LayerOrigin) -> list[str]:
    """Heads of zeros, masked or padded, which may be any of the parent's; [] where there are none."""
    q, kv = (0 if heads is None else sum(map(heads.may_be_any, heads.origins)) for heads in (layer.q, layer.k))
    if q and layer.n_q is not None:
        return [f"{layer.n_q - q} of {layer.parent_n_q} query heads, beside {q} of zeros"]
    return [f"{plural(kv, 'KV head')} of zeros"] if kv else []


def _head_words(layer: LayerOrigin, made: Sequence[Seat]) -> list[str]:
    """What was cut from the heads of one layer, without naming them; [] when nothing was, or nothing can be said."""
    group, parent_group = layer.group, layer.parent_group
    if not made or not group or not parent_group:
        return []
    words = []
    counts = tally(made)
    if not counts.wrong and _zero_words(layer):
        return []
    if (layer.n_q, layer.n_kv) != (layer.parent_n_q, layer.parent_n_kv):
        each = f"{group} of {parent_group}" if group != parent_group else f"all {group}" if group > 1 else "the"
        words.append(f"{layer.n_kv} of {layer.parent_n_kv} KV heads with {each} query heads of each")
    elif not _in_order(made):
        words.append("all heads, in another order")
    if counts.wrong:
        words = [f"{layer.n_kv} of {layer.parent_n_kv} KV heads, {layer.n_q} of {layer.parent_n_q} query heads",
                 f"{counts.wrong} of {counts.heads} query heads misread"]  # fmt: skip
    if counts.unknown:
        words.append(f"{plural(counts.unknown, 'query head')} not told")
    return words


def _in_order(made: Sequence[Seat]) -> bool:
    for numbers in (
        [seat.kv for seat in made if seat.kv is not None],
        [reader.head for seat in made for reader in seat.readers if reader.head is not None],
    ):
        if numbers != sorted(numbers):
            return False
    return True


def _channel_words(mlps: Sequence[MlpOrigin]) -> list[str]:
    words: list[str] = []
    cuts: dict[tuple[int, int], int] = {}
    for mlp in mlps:
        part = mlp.up or mlp.gate
        if part is not None and part.told:
            kept = len(part.parents) - part.parents.count(NOWHERE)
            if kept != part.n_parent:
                cuts[kept, part.n_parent] = cuts.get((kept, part.n_parent), 0) + 1
    for (kept, whole), n in sorted(cuts.items()):
        where = f" in {plural(n, 'expert')}" if len(mlps) > 1 else ""
        words.append(f"{kept} of {whole} MLP channels{where}")
    if any(mlp.down is not None and mlp.down.state == "rewritten" for mlp in mlps):
        words.append("down_proj rewritten")
    return words


def _which(alike: Sequence[LayerOrigin]) -> str:
    """The kept KV heads of layers cut alike, when they are the same in each and short enough to read."""
    maps = [seats(layer) for layer in alike]
    kept = {tuple(seat.kv for seat in made) for made in maps}
    if len(kept) > 1:
        return " (which ones differs by layer)"
    heads = next(iter(kept), ())
    if not heads or None in heads or len(heads) == alike[0].parent_n_kv:
        return ""
    text = runs(head for head in heads if head is not None).replace(",", ", ")
    return f" (KV heads {text})" if len(text) <= LONGEST_LIST else ""


def _depth_words(lineage: Lineage) -> list[str]:
    words = []
    parents = [layer.parent for layer in lineage.layers if layer.parent is not None]
    if any(layer.parent is not None and layer.parent != layer.index for layer in lineage.layers) or (
        lineage.n_parent_layers and len(lineage.layers) != lineage.n_parent_layers
    ):
        which = runs(parents).replace(",", ", ")
        named = f", the parent's {which}" if which and len(which) <= 2 * LONGEST_LIST else ""
        words.append(f"{len(lineage.layers)} of {plural(lineage.n_parent_layers, 'layer')}{named}")
    if lineage.kept_hidden is not None:
        words.append(f"{len(lineage.kept_hidden):,} of the parent's residual columns")
    return words


def lineage_remarks(report: CheckpointReport) -> list[str]:
    """Why nothing or not everything was compared, and how; what another line says already is left out."""
    lineage = report.lineage
    if lineage is None:
        return []
    said = [claim.reason for claim in report.claims] + [finding.message for finding in report.findings]
    remarks = [lineage.reason] if not lineage.compared and lineage.reason else []
    remarks += lineage.notes
    if lineage.fine_tuned > 0:
        changed = f"{lineage.fine_tuned:.1%}" if lineage.fine_tuned >= 0.001 else "less than 0.1%"
        remarks.append(f"{changed} of the compared heads and channels are the base's, but not bit by bit")
    remarks += _left_alone(lineage.layers)
    return [remark for remark in dict.fromkeys(remarks) if not any(remark in text for text in said)]


def _left_alone(layers: Iterable[LayerOrigin]) -> list[str]:
    reasons: dict[str, list[int]] = {}
    for layer in layers:
        for reason in dict.fromkeys(layer.not_compared):
            reasons.setdefault(reason, []).append(layer.index)
    made = [f"not compared: {layers_words(where)}: {reason}" for reason, where in reasons.items()]
    if len(made) <= MAX_LINES:
        return made
    left = {index for where in list(reasons.values())[MAX_LINES:] for index in where}
    more = f"not compared: {len(made) - MAX_LINES:,} more reasons in layers {layer_ranges(left)} (--format json)"
    return [*made[:MAX_LINES], more]
