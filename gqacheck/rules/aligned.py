"""GQA602, GQA603 and GQA605: do o_proj, v and the biases hold at each position what belongs to the head there?"""

from __future__ import annotations

from collections.abc import Iterator

from gqacheck.geometry.facts import Subject
from gqacheck.geometry.origins import NOWHERE, Heads, LayerOrigin, VectorOrigin
from gqacheck.rules.heads import counted
from gqacheck.rules.origins import (
    REPAIR,
    SOURCE,
    at,
    cause_of,
    expert_words,
    has_misplaced,
    layers_with,
    lines_differ,
    misplaced,
    moved,
    needs_told,
    numbers,
    some_of,
    tensors_of,
    told,
)
from gqacheck.rules.rule import Quantity, Severity, Violation
from gqacheck.text import printable

_NAMES = {"q": "query", "k": "key", "v": "value"}


def needs_outputs(subject: Subject) -> tuple[str, str] | None:
    """A layer whose o_proj columns are known."""
    if has_misplaced(subject, "q"):
        return None
    if _all_rewritten(subject):
        return "lineage", "o_proj was rewritten in every layer (as least squares does), so its columns name no head"
    return needs_told(subject, "o_proj columns", lambda layer: told(layer.o) is not None)


def _all_rewritten(subject: Subject) -> bool:
    lineage = subject.lineage
    states = [layer.o.state for layer in lineage.layers if layer.o] if lineage is not None and lineage.compared else []
    return bool(states) and set(states) == {"rewritten"}


def needs_values(subject: Subject) -> tuple[str, str] | None:
    """A layer whose k or v heads are known."""
    if has_misplaced(subject, "k", "v"):
        return None
    return needs_told(subject, "k and v heads", lambda layer: bool(told(layer.k) or told(layer.v)))


def needs_vectors(subject: Subject) -> tuple[str, str] | None:
    """A bias, or another vector that goes with the rows of a projection, that could be compared."""
    missing = needs_told(subject, "biases", lambda layer: True)
    if missing is not None:
        return missing
    assert subject.lineage is not None
    vectors = [vector for layer in subject.lineage.layers for vector in layer.vectors]
    if not vectors and subject.lineage.relation != "identical":
        return "biases", "no projection has a bias or another vector that goes with its rows"
    if vectors and all(vector.state == "not-compared" for vector in vectors):
        return "lineage", "no bias could be compared with the parent's"
    return None


def q_o_misaligned(subject: Subject) -> Iterator[Violation]:
    """A head's q rows and its o_proj columns come from different parent heads.

    What it checks
        For every query head which parent head its o_proj columns came from; that must be the one its q rows came
        from. The rule also fires for a block of columns taken from several heads, and for columns that stand in
        another order inside the head than the rows of the v head whose values they take.

    Why it matters
        A head's columns of o_proj read the values that this head has gathered. Another head's columns read them as if
        they were that head's: the output is noise although every shape is right.

    What you would see
        Nothing raises. It is what a pruner leaves that reorders query heads (by importance, or group by group) and
        cuts o_proj by its first columns or in index order.

    Fix
        `gqacheck repair CKPT --base PARENT -o OUT`. In the pruner, index o_proj's columns with the very list of rows
        that q_proj was indexed with.

    Known misses
        An o_proj that was rewritten as a whole, as a least-squares reconstruction does, matches no parent head
        anywhere; it is not judged and not accused, and the report says so. Single rewritten columns are GQA606's.

    Source
        The block for query head h is columns h * head_dim up to (h + 1) * head_dim of o_proj, in the order in which
        attention hands the heads over: transformers' reshape before o_proj.
    """
    for layer, severity in layers_with(subject):
        yield from misplaced(layer, "q")
        o = told(layer.o)
        if o is None:
            continue
        wrong = []
        for position in range(len(o.origins)):
            head, columns = at(layer.q, position), at(o, position)
            if head is not None and columns is not None and not set(head.heads) & set(columns.heads):
                wrong.append((position, head.head, columns.head))
        if wrong:
            position, rows_of, columns_of = wrong[0]
            verb = some_of(len(wrong), len(o.origins), "query head", "has", "have")
            yield _output(
                layer,
                o,
                f"{verb} the o_proj columns of another head: query head {position} has the q rows of parent head "
                f"{rows_of} and the o_proj columns of parent head {columns_of}",
                len(wrong),
                severity,
            )
        mixed = [position for position, origin in enumerate(o.origins) if origin.how == "mixed"]
        if mixed:
            verb = some_of(len(mixed), len(o.origins), "query head", "has", "have")
            yield _output(
                layer,
                o,
                f"{verb} o_proj columns of several parent heads: query head {mixed[0]} has columns of parent heads "
                f"{numbers(o.origins[mixed[0]].heads)}",
                len(mixed),
                severity,
            )
        yield from _columns_reordered(layer, o, severity)


def _columns_reordered(layer: LayerOrigin, o: Heads, severity: Severity | None) -> Iterator[Violation]:
    """Columns against the rows of the v head they take their values from, where that is the head's own."""
    if layer.group is None or layer.parent_group is None:
        return
    found = []
    for position in range(len(o.origins)):
        columns, value = at(o, position), at(layer.v, position // layer.group)
        if columns is None or value is None or not lines_differ(columns, value):
            continue
        if {layer.own_kv(head) for head in columns.heads} & set(value.heads):
            found.append((position, columns.head, value.head))
    if found:
        position, head, kv = found[0]
        verb = some_of(len(found), len(o.origins), "query head", "has", "have")
        yield _output(
            layer,
            o,
            f"{verb} o_proj columns in another order than the rows of the v head beside them: query head {position} "
            f"is parent head {head} and takes parent v head {kv}, permuted differently inside the head",
            len(found),
            severity,
        )


def _output(layer: LayerOrigin, o: Heads, message: str, n: int, severity: Severity | None) -> Violation:
    return Violation(
        message=message + moved(layer),
        layer=layer.index,
        tensors=tensors_of(layer.q, o),
        expected=Quantity(0, "query heads with other o_proj columns"),
        actual=Quantity(n, "query heads with other o_proj columns"),
        source=SOURCE,
        consequence="nothing raises; what the heads gather is read out as if other heads had gathered it",
        fix=REPAIR,
        severity=severity,
        cause=cause_of(layer, "o_proj"),
    )


def k_v_misaligned(subject: Subject) -> Iterator[Violation]:
    """The k head and the v head at one position come from different parent heads.

    What it checks
        For every KV head which parent head its k rows and its v rows came from; they must be one and the same. The
        rule also fires for a k or v head made of rows of several parent heads, and for rows that are, bit by bit,
        another projection's or another layer's (k and v exchanged).

    Why it matters
        k decides where a head looks, v what it takes from there. Beside another v head the query heads of the group
        look in the right place and bring back something that their o_proj columns were never trained on.

    What you would see
        Nothing raises and the counts agree (GQA103 is silent). It is what a pruner leaves that chooses KV heads on
        k_proj and cuts v_proj by its first rows.

    Fix
        `gqacheck repair CKPT --base PARENT -o OUT`. In the pruner, index k_proj and v_proj with one list of heads.

    Known misses
        KV heads that match nothing in the parent are GQA606's. Averaged KV heads (as when a model is converted to
        fewer groups by mean pooling) match nothing and are not judged.

    Source
        Attention takes k and v of one position together: repeat_kv of transformers repeats both alike.
    """
    for layer, severity in layers_with(subject):
        yield from misplaced(layer, "k", "v")
        k, v = told(layer.k), told(layer.v)
        if k is not None and v is not None:
            yield from _pairs_apart(layer, k, v, severity)
        for heads in (k, v):
            mixed = [p for p, origin in enumerate(heads.origins) if origin.how == "mixed"] if heads else []
            if heads is not None and mixed:
                verb = some_of(len(mixed), len(heads.origins), f"{_NAMES[heads.role]} head", "is", "are")
                yield _key_value(
                    layer,
                    (heads,),
                    f"{verb} made of rows of several parent heads: {heads.role} at position {mixed[0]} holds rows of "
                    f"parent KV heads {numbers(heads.origins[mixed[0]].heads)}",
                    len(mixed),
                    severity,
                )


def _pairs_apart(layer: LayerOrigin, k: Heads, v: Heads, severity: Severity | None) -> Iterator[Violation]:
    wrong = []
    for position in range(min(len(k.origins), len(v.origins))):
        key, value = at(k, position), at(v, position)
        if key is not None and value is not None and not set(key.heads) & set(value.heads):
            wrong.append((position, key.head, value.head))
    if wrong:
        position, key_head, value_head = wrong[0]
        verb = some_of(len(wrong), len(k.origins), "KV head", "joins", "join")
        yield _key_value(
            layer,
            (k, v),
            f"{verb} k and v of different parent heads: position {position} has the k rows of parent KV head "
            f"{key_head} and the v rows of parent KV head {value_head}",
            len(wrong),
            severity,
        )


def _key_value(
    layer: LayerOrigin, parts: tuple[Heads, ...], message: str, n: int, severity: Severity | None
) -> Violation:
    return Violation(
        message=message + moved(layer),
        layer=layer.index,
        tensors=tensors_of(*parts),
        expected=Quantity(0, "KV heads of different parent heads"),
        actual=Quantity(n, "KV heads of different parent heads"),
        source=SOURCE,
        consequence="nothing raises; the query heads look in the right place and bring back another head's values",
        fix=REPAIR,
        severity=severity,
        cause=cause_of(layer, "k_proj", "v_proj"),
    )


def bias_misaligned(subject: Subject) -> Iterator[Violation]:
    """A bias comes from other rows than the weight that it is added to.

    What it checks
        For the biases of q, k and v (Qwen2 has them), for MLP biases, for norms over all heads (OLMo-2), for
        attention sinks (gpt-oss) and for the rows of a router beside its experts: whether the
        values at each head or channel are those that belong to the parent rows
        that the weight there came from. The rule fires when they are another position's.

    Why it matters
        A bias is part of its head, learnt with the rows that it is added to. Added to another head's, it shifts every
        score or value by a constant that means nothing there.

    What you would see
        Nothing raises: the length is right (GQA108 is silent). It is what a pruner leaves that indexes the weight by a
        list of heads and cuts the bias by its first values.

    Fix
        `gqacheck repair CKPT --base PARENT -o OUT`. In the pruner, index the bias with the rows of its weight.

    Known misses
        A bias that matches the parent's nowhere, fine-tuned or added as compensation, is not judged. Equal biases in
        the parent cannot be told apart and are not accused.

    Source
        nn.Linear adds bias[i] to the product with weight row i.
    """
    for layer, severity in layers_with(subject):
        for vector in layer.vectors:
            if vector.wrong and vector.state in ("exact", "similar"):
                yield _vector(layer, vector, severity)


def _vector(layer: LayerOrigin, vector: VectorOrigin, severity: Severity | None) -> Violation:
    if vector.kind == "router":
        return _router(layer, vector)
    noun = "head" if vector.role in _NAMES else "channel"
    role = _NAMES.get(vector.role, printable(vector.role, 40))
    name = "attention sinks" if vector.kind == "sinks" else f"{role} {vector.kind}"
    position = vector.wrong[0]
    weight = _weight_at(layer, vector, position)
    has = f"the weight of parent {noun} {weight} but " if weight is not None else ""
    n = len(vector.wrong)
    total = f"{n} of {counted(vector.positions, noun)}" if vector.positions else counted(n, noun)
    return Violation(
        message=(
            f"{expert_words(vector.expert)}the {name} {'hold' if vector.kind == 'sinks' else 'holds'} another {noun}'s "
            f"values at {total}: position {position} has {has}the {vector.kind} of parent {noun} "
            f"{vector.found[0] if vector.found else 'elsewhere'}{moved(layer)}"
        ),
        layer=layer.index,
        tensors=(vector.tensor,) if vector.tensor else (),
        expected=Quantity(0, f"{noun}s with another {noun}'s {vector.kind}"),
        actual=Quantity(n, f"{noun}s with another {noun}'s {vector.kind}"),
        source=SOURCE,
        consequence="nothing raises; every score or value of those rows is shifted by another head's constant"
        if noun == "head"
        else "nothing raises; those channels are shifted by another channel's constant",
        fix=REPAIR,
        severity=severity if noun == "head" else None,
        cause=cause_of(layer, "bias", "norm", "sinks"),
    )


def _router(layer: LayerOrigin, vector: VectorOrigin) -> Violation:
    """The router's row at an expert's place is another expert's."""
    position, n = vector.wrong[0], len(vector.wrong)
    expert = next((mlp.parent_expert for mlp in layer.mlps if mlp.expert == position), None)
    has = f"expert {expert} of the parent" if expert is not None else "an expert"
    return Violation(
        message=(
            f"the router's rows did not follow the experts at {n} of {counted(vector.positions, 'expert')}: position "
            f"{position} holds {has} and the router row of parent expert {vector.found[0]}{moved(layer)}"
        ),
        layer=layer.index,
        tensors=(vector.tensor,) if vector.tensor else (),
        expected=Quantity(0, "experts with another expert's router row"),
        actual=Quantity(n, "experts with another expert's router row"),
        source=SOURCE,
        consequence="nothing raises; tokens are sent to experts that were not trained for them",
        fix="index the router's rows with the list of experts that were kept",
    )


def _weight_at(layer: LayerOrigin, vector: VectorOrigin, position: int) -> int | None:
    """The parent head or channel whose weight stands at ``position``."""
    heads = {"q": layer.q, "k": layer.k, "v": layer.v}.get(vector.role)
    if vector.role in _NAMES:
        origin = at(heads, position)
        return origin.head if origin is not None else None
    for mlp in layer.mlps:
        channels = {"gate": mlp.gate, "up": mlp.up}.get(vector.role) if mlp.expert == vector.expert else None
        if channels is not None and channels.told and position < len(channels.parents):
            parent = channels.parents[position]
            return None if parent == NOWHERE else parent
    return None
