"""GQA601 and GQA608: does every query head still read the KV head that it was trained with?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from gqacheck.geometry.facts import Subject
from gqacheck.geometry.origins import Heads, LayerOrigin, Misread
from gqacheck.rules.heads import counted
from gqacheck.rules.origins import (
    REPAIR,
    SOURCE,
    at,
    cause_of,
    layers_with,
    lines_differ,
    misread,
    moved,
    needs_told,
    numbers,
    some_of,
    tensors_of,
    told,
)
from gqacheck.rules.rule import Quantity, Severity, Violation

_NOISE = "nothing raises; the text is garbage, and fine-tuning (LoRA) only patches over it"
_WORDS = ("q_proj", "k_proj", "query heads", "KV heads")
_GROUPS_SHOWN = 8


def needs_queries(subject: Subject) -> tuple[str, str] | None:
    """A layer whose query heads are known."""
    return needs_told(subject, "query heads", lambda layer: told(layer.q) is not None)


def needs_pairs(subject: Subject) -> tuple[str, str] | None:
    """A layer whose query heads and KV heads are known."""
    return needs_told(subject, "query and KV heads", lambda layer: bool(told(layer.q) and told(layer.k)))


def head_regrouped(subject: Subject) -> Iterator[Violation]:
    """A query head reads another KV head than the one it was trained with.

    What it checks
        For every position of q_proj and k_proj which head of the parent stands there, told from the weights. The query
        head at position i reads the KV head at position i // group_size; in the parent it read one certain KV head,
        and that must be the same. The rule also fires for a query head made of rows of several parent heads, and for
        a pair whose q rows stand in another order inside the head than the k rows they are multiplied with.

    Why it matters
        Attention scores are products of q rows with the rows of one k head, learnt together. Beside another KV head
        they are noise. Counts cannot show it: 24 query heads over 6 KV heads are 4:1 whichever heads they are.

    What you would see
        Nothing raises, every shape check passes, and perplexity is anything from several times the right cut's to
        hundreds of thousands. Fine-tuning lowers it and does not mend it.

    Fix
        `gqacheck repair CKPT --base PARENT -o OUT` puts each kept KV head together with its own query heads. In the
        pruner, cut query heads by whole KV groups, or cut inside every group by the same number, and cut o_proj's
        columns in the same order.

    Known misses
        Heads that match nothing in the parent (GQA606) are not judged, and the claim is then not "pass". Where the
        parent holds equal heads, one reading of them that fits is enough. q and k rows that were reordered inside the
        head in the same way are not accused: a conversion between rotary layouts does that. The parent is taken to be
        right: a parent that is itself wrongly paired passes its fault on unseen.

    Source
        A public write-up: Llama-3-8B cut to 24 query and 6 KV heads by [:3072], wikitext2 perplexity 718,107, and
        159.85 after LoRA. Measured on a small trained 32:8 model, 8 KV heads cut to 6, no fine-tuning: perplexity 2.84
        before, 3.30 for whole KV groups, 16.9 for query heads chosen without regard to groups, 22.3 for the first 24.
    """
    for layer, severity in layers_with(subject):
        q = told(layer.q)
        if q is None:
            continue
        wrong = misread(layer)
        if wrong:
            yield _regrouped(layer, q, wrong, severity)
        mixed = [position for position, origin in enumerate(q.origins) if origin.how == "mixed"]
        if mixed:
            yield _mixed_queries(layer, q, mixed, severity)
        yield from _rows_reordered(layer, q, {head.position for head in wrong}, severity)


def _regrouped(layer: LayerOrigin, q: Heads, wrong: tuple[Misread, ...], severity: Severity | None) -> Violation:
    example = next((head for head in wrong if len(q.origins[head.position].heads) == 1), wrong[0])
    n = len(wrong)
    judged = sum(origin.head is not None for origin in q.origins)
    rest = f"; {counted(len(q.origins) - judged, 'query head')} could not be told" if judged < len(q.origins) else ""
    tail = "a KV head it was not trained with" if n == 1 else "a KV head they were not trained with"
    return Violation(
        message=(
            f"{some_of(n, len(q.origins), 'query head', 'reads', 'read')} {tail}: query head {example.position} came "
            f"from parent head {example.head} (KV group {example.own}) but now reads parent KV head {example.reads}"
            f"{rest}{moved(layer)}"
        ),
        layer=layer.index,
        tensors=tensors_of(q, layer.k),
        expected=Quantity(0, "query heads beside another KV head"),
        actual=Quantity(n, "query heads beside another KV head"),
        source=SOURCE,
        consequence=_NOISE,
        fix=REPAIR,
        severity=severity,
        cause=cause_of(layer, *_WORDS),
    )


def _mixed_queries(layer: LayerOrigin, q: Heads, mixed: list[int], severity: Severity | None) -> Violation:
    first = q.origins[mixed[0]]
    verb = some_of(len(mixed), len(q.origins), "query head", "is", "are")
    return Violation(
        message=(
            f"{verb} made of rows of several parent heads: query head {mixed[0]} holds rows of parent heads "
            f"{numbers(first.heads)}{moved(layer)}"
        ),
        layer=layer.index,
        tensors=tensors_of(q),
        expected=Quantity(0, "query heads of mixed rows"),
        actual=Quantity(len(mixed), "query heads of mixed rows"),
        source=SOURCE,
        consequence=_NOISE,
        fix=REPAIR,
        severity=severity,
        cause=cause_of(layer, *_WORDS),
    )


def _rows_reordered(layer: LayerOrigin, q: Heads, wrong: set[int], severity: Severity | None) -> Iterator[Violation]:
    if layer.group is None:
        return
    found = []
    for position in range(len(q.origins)):
        ours, read = at(q, position), at(layer.k, position // layer.group)
        if position not in wrong and ours is not None and read is not None and lines_differ(ours, read):
            found.append((position, ours.head, read.head))
    if not found:
        return
    position, head, kv = found[0]
    verb = some_of(len(found), len(q.origins), "query head", "has", "have")
    its = "its" if len(found) == 1 else "their"
    yield Violation(
        message=(
            f"{verb} {its} rows in another order than the KV head beside {'it' if len(found) == 1 else 'them'}: query "
            f"head {position} is parent head {head} and reads parent KV head {kv}, with the rows inside the two "
            f"heads permuted differently{moved(layer)}"
        ),
        layer=layer.index,
        tensors=tensors_of(q, layer.k),
        expected=Quantity(0, "query heads with rows in another order than k"),
        actual=Quantity(len(found), "query heads with rows in another order than k"),
        source=SOURCE,
        consequence=_NOISE,
        fix=REPAIR,
        severity=severity,
        cause=cause_of(layer, *_WORDS),
    )


def uneven_groups(subject: Subject) -> Iterator[Violation]:
    """KV groups kept different numbers of their query heads, so that position no longer implies the group.

    What it checks
        How many query heads each KV group of the parent still has in this layer. A model hands every KV head the same
        number of query heads in a row; when the groups kept different numbers, some query heads slip to a neighbour.
        An error when heads are misread because of it; a warning when the counts do not even divide, which GQA104
        reports as the error.

    Why it matters
        It is what choosing query heads one by one leaves behind, however good the importance scores are: GQA601 says
        which heads are misread, this rule says why no order of them can be right.

    What you would see
        Nothing raises as long as the totals divide: 24 query heads over 6 KV heads, of which the first kept 5 and the
        second 3.

    Fix
        `gqacheck repair CKPT --base PARENT -o OUT` keeps the same number of query heads for every kept KV head. In the
        pruner, choose the same number inside every group.

    Known misses
        Layers with query heads that match nothing in the parent, or with equal heads that belong to several groups,
        are left to GQA601. A KV head that stands there twice may serve twice as many query heads: that is even.

    Source
        The reading by position is repeat_kv of transformers: KV head g serves query heads g * group_size up to
        (g + 1) * group_size. Measured on a small trained 32:8 model cut to 24 over 6, no fine-tuning: perplexity 16.9
        for the most important query heads whatever their group, 3.30 for whole KV groups.
    """
    for layer, severity in layers_with(subject):
        counts = _kept(layer)
        if counts is None or layer.q is None or layer.n_q is None or layer.n_kv is None:
            continue
        divides = layer.group is not None
        if (divides and not misread(layer)) or _even(layer, counts):
            continue
        n = layer.n_q // layer.n_kv
        by_position = (
            f"the model gives every KV head {n} in a row" if divides else f"{layer.n_q} do not divide by {layer.n_kv}"
        )
        yield Violation(
            message=f"KV groups kept different numbers of their query heads: {_words(counts)}; {by_position}"
            f"{moved(layer)}",
            layer=layer.index,
            tensors=tensors_of(layer.q, layer.k),
            expected=Quantity(n if divides else f"{layer.n_q}/{layer.n_kv}", "query heads of every KV group"),
            actual=Quantity(f"{min(counts.values())} to {max(counts.values())}", "query heads of one KV group"),
            source=SOURCE,
            consequence=_NOISE if divides else "no order of these heads can be right",
            fix=REPAIR,
            severity=severity if divides else Severity.WARNING,
            cause=cause_of(layer, *_WORDS),
        )


def _kept(layer: LayerOrigin) -> Counter[int] | None:
    """Parent KV head -> query heads of its group in this layer; None when a head's group cannot be told."""
    if layer.q is None or not layer.q.told or told(layer.k) is None or layer.parent_group is None:
        return None
    counts: Counter[int] = Counter()
    for origin in layer.q.origins:
        owners = {layer.own_kv(head) for head in origin.heads} if origin.head is not None else set()
        if len(owners) != 1:
            return None
        counts.update(owners)
    return counts


def _even(layer: LayerOrigin, counts: Counter[int]) -> bool:
    """Whether every group kept the same number for each time that its KV head stands there."""
    assert layer.k is not None
    times = Counter(origin.head for origin in layer.k.origins if origin.head is not None)
    return len({n / max(1, times[kv]) for kv, n in counts.items()}) <= 1


def _words(counts: Counter[int]) -> str:
    shown = [f"{n} of group {kv}" for kv, n in sorted(counts.items())]
    more = f" and {len(shown) - _GROUPS_SHOWN} groups more" if len(shown) > _GROUPS_SHOWN else ""
    return ", ".join(shown[:_GROUPS_SHOWN]) + more
