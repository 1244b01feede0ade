"""GQA105: is a layer's ratio of query heads to KV heads the one that the model was trained with?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from gqacheck.geometry.config import LAYER_LISTS, config_layer_claim
from gqacheck.geometry.facts import Attention, Claim, Geometry, Layer, Subject
from gqacheck.rules.heads import by_source, counted, full_layers, is_guess
from gqacheck.rules.origins import all_read_their_own
from gqacheck.rules.rule import Quantity, Severity, Violation

_STILL_PAIRED = "; compared with the base's weights, every query head still reads the KV head it was trained with"


@dataclass(frozen=True, slots=True)
class _Reference:
    """What the ratio should be, who says so, and whether that is more than the habit of the other layers."""

    n_q: int
    n_kv: int
    source: str
    known: bool = True


def ratio_drift(subject: Subject) -> Iterator[Violation]:
    """A layer has another ratio of query heads to KV heads than the model was trained with.

    What it checks
        Query heads over KV heads of every layer, multiplied out (24 over 6 is 4:1 as 32 over 8 is), against the first
        of these that speaks: --expect-ratio, the --base, the config (its per-layer list before its scalar), and
        without any of them the ratio of most layers, which is worth a warning only. It is a warning as well where the
        weights, compared with the --base, show that every query head of the layer still reads its own KV head.

    Why it matters
        A cut that keeps whole KV groups keeps the ratio. A ratio that moved means that query heads and KV heads were
        chosen apart from each other, and then a query head usually ends up beside a KV head it never read.

    What you would see
        Nothing raises. Perplexity goes from a few to thousands or hundreds of thousands, and the text is garbage.

    Fix
        Prune again in whole KV groups. If query heads were cut inside every group on purpose (4:1 to 3:1 is legal so
        long as every query head keeps its own KV head), say so with --expect-ratio 3:1.

    Known misses
        A cut that keeps the ratio and still moves heads to other groups, as taking the first 24 query heads does;
        only the parent shows that (GQA601). Counts that do not divide are GQA104's.

    Source
        8 KV heads cut to 6 on a small trained 32:8 model, no fine-tuning: perplexity 2.84 before, 3.30 for whole KV
        groups, 22.3 for query heads cut apart from them.
    """
    usual = _usual(subject)
    kept = _kept_apart(subject)
    for layer, attention in full_layers(subject):
        n_q, n_kv = attention.n_q_heads, attention.n_kv_heads
        if not n_q or not n_kv or n_q % n_kv:
            continue
        reference = _reference(subject, layer) or usual
        if reference is None or n_q * reference.n_kv == reference.n_q * n_kv:
            continue
        yield _violation(layer, attention, n_q, n_kv, reference, legal=layer.index in kept)


def _kept_apart(subject: Subject) -> frozenset[int]:
    """The layers of which the parent's weights show that every query head still reads its own KV head."""
    lineage = subject.lineage
    if lineage is None or not lineage.compared:
        return frozenset()
    return frozenset(layer.index for layer in lineage.layers if all_read_their_own(layer))


def _violation(
    layer: Layer, attention: Attention, n_q: int, n_kv: int, reference: _Reference, *, legal: bool
) -> Violation:
    tensors = tuple(dict.fromkeys(p.tensor for p in (attention.q, attention.k) if p is not None))
    wanted = n_kv * reference.n_q // reference.n_kv if n_kv * reference.n_q % reference.n_kv == 0 else None
    keep = f" ({wanted} for {counted(n_kv, 'KV head')})" if wanted else ""
    on_purpose = f"if query heads were cut inside every group on purpose, give --expect-ratio {n_q // n_kv}:1"
    return Violation(
        message=(
            f"{n_q} query heads over {counted(n_kv, 'KV head')} are {n_q // n_kv}:1"
            f"{by_source(attention.head_dim)}, but {reference.source}{_STILL_PAIRED if legal else ''}"
        ),
        layer=layer.index,
        tensors=tensors,
        expected=Quantity(_words(reference.n_q, reference.n_kv), "query heads per KV head"),
        actual=Quantity(_words(n_q, n_kv), "query heads per KV head"),
        source="tensor shapes",
        consequence="none by itself: query heads were cut inside their groups, which is legal"
        if legal
        else "nothing raises: query heads that read a KV head they were not trained with turn the output to noise",
        fix=on_purpose
        if legal
        else f"prune again in whole KV groups, {_words(reference.n_q, reference.n_kv)}{keep}; {on_purpose}",
        severity=None if reference.known and not legal and not is_guess(attention.head_dim) else Severity.WARNING,
    )


def _reference(subject: Subject, layer: Layer) -> _Reference | None:
    if subject.expect.ratio is not None:
        n_q, n_kv = subject.expect.ratio
        return _Reference(n_q, n_kv, f"--expect-ratio says {n_q}:{n_kv}")
    if subject.base is not None:
        found = _in_base(subject.base.geometry, subject.geometry, layer.index)
        if found is not None:
            return found
    return _in_config(subject.geometry, layer.index)


def _in_base(base: Geometry, child: Geometry, index: int) -> _Reference | None:
    """The parent's layer of the same index; where layers were removed, the parent's one ratio if it has only one."""
    counts = {
        layer.index: (layer.attention.n_q_heads, layer.attention.n_kv_heads)
        for layer in base.layers
        if layer.attention.kind == "full"
    }
    ratios = {(n_q, n_kv): n_q / n_kv for n_q, n_kv in counts.values() if n_q and n_kv}
    same_depth = {layer.index for layer in base.layers} == {layer.index for layer in child.layers}
    n_q, n_kv = counts.get(index, (None, None)) if same_depth else (None, None)
    if not same_depth and len(set(ratios.values())) == 1:
        n_q, n_kv = next(iter(ratios))
    if not n_q or not n_kv or n_q % n_kv:
        return None
    return _Reference(n_q, n_kv, f"the base has {n_q} over {n_kv}, {_words(n_q, n_kv)}")


def _in_config(geometry: Geometry, index: int) -> _Reference | None:
    config, source = geometry.config, geometry.config_source or "the config"
    q = config_layer_claim(config, "num_attention_heads", index, source)
    kv = config_layer_claim(config, "num_key_value_heads", index, source)
    if q is not None and kv is None and geometry.family.name == "llama" and "num_key_value_heads" not in config:
        kv = q
    if q is None or kv is None or q.value <= 0 or kv.value <= 0 or q.value % kv.value:
        return None
    lists = f" {LAYER_LISTS}" if LAYER_LISTS in f"{q.source} {kv.source}" else ""
    return _Reference(q.value, kv.value, f"{source}{lists} says {_over(q, kv)}, {_words(q.value, kv.value)}")


def _over(q: Claim, kv: Claim) -> str:
    return f"num_attention_heads={q.value} over num_key_value_heads={kv.value}"


def _usual(subject: Subject) -> _Reference | None:
    """The ratio of most layers; of two as frequent ones the first, since pruners leave the first layers alone."""
    ratios: Counter[int] = Counter()
    for _, attention in full_layers(subject):
        n_q, n_kv = attention.n_q_heads, attention.n_kv_heads
        if n_q and n_kv and n_q % n_kv == 0:
            ratios[n_q // n_kv] += 1
    if not ratios:
        return None
    ratio, count = ratios.most_common(1)[0]
    return _Reference(ratio, 1, f"{count} of {ratios.total()} layers are {ratio}:1", known=False)


def _words(n_q: int, n_kv: int) -> str:
    return f"{n_q // n_kv}:1" if n_q % n_kv == 0 else f"{n_q}:{n_kv}"
