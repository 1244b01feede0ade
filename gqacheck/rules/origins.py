"""What the GQA6xx rules share: what they need, what a layer's origins say of its pairs, and words for it.

A pair is a query head with what it stands beside: the k and v head it reads by position and its own o_proj columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from gqacheck.geometry.facts import Subject
from gqacheck.geometry.origins import NOWHERE, Channels, Heads, LayerOrigin, Lineage, Misread, MlpOrigin, Origin
from gqacheck.rules.heads import counted, full_layers, is_guess
from gqacheck.rules.rule import Quantity, Severity, Violation
from gqacheck.text import printable, printable_list

REPAIR = "run gqacheck repair CKPT --base PARENT -o OUT, which puts it right from the parent's weights"
SOURCE = "weights of the checkpoint and of --base"
UNTOLD = 0.005
"""Share of a projection's channels that similarity may leave open: training moves single channels beyond telling."""
_PARTS = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "o_proj"}


def needs_lineage(subject: Subject) -> tuple[str, str] | None:
    """Weights that were compared with the parent's, and a parent that is one."""
    lineage = subject.lineage
    if lineage is None:
        if subject.base is None:
            return "base", "only the parent's weights show where each head came from; give --base PARENT"
        return "lineage", "the weights were not compared with the parent's"
    if lineage.compared:
        return None
    reason = printable(lineage.reason, 300)
    if lineage.relation == "unrelated":
        return "base", reason or "next to nothing in this checkpoint is the parent's, so --base is not its parent"
    if lineage.relation == "swapped":
        return "base", reason or "the parent is made of this checkpoint's heads: the two are the wrong way round"
    return "lineage", reason or "the weights could not be compared with the parent's"


def needs_told(subject: Subject, what: str, judged: Callable[[LayerOrigin], bool]) -> tuple[str, str] | None:
    """What `needs_lineage` wants, and a layer of which ``judged`` holds; ``what`` names the parts for the reason."""
    missing = needs_lineage(subject)
    if missing is not None:
        return missing
    layers = lineage_of(subject).layers
    if any(judged(layer) for layer in layers) or lineage_of(subject).relation == "identical":
        return None
    why = next((text for layer in layers for text in layer.not_compared), "")
    return "lineage", f"no layer's {what} could be compared with the parent's{_because(why)}"


def lineage_of(subject: Subject) -> Lineage:
    """The lineage that `needs_lineage` has made sure of. Raises ValueError where there is none."""
    if subject.lineage is None:
        raise ValueError("the rule ran without a lineage")
    return subject.lineage


def layers_with(subject: Subject) -> Iterator[tuple[LayerOrigin, Severity | None]]:
    """Each layer's origin, with the severity that a guessed head_dim allows (None: the rule's own)."""
    guessed = {layer.index for layer, attention in full_layers(subject) if is_guess(attention.head_dim)}
    for layer in lineage_of(subject).layers:
        yield layer, Severity.WARNING if layer.index in guessed else None


def told(heads: Heads | None) -> Heads | None:
    """``heads`` where its origins may be judged, else None."""
    return heads if heads is not None and heads.told else None


def at(heads: Heads | None, position: int) -> Origin | None:
    """The origin at one position; None when it cannot be judged, or is not one parent head."""
    if heads is None or not heads.told or not 0 <= position < len(heads.origins):
        return None
    origin = heads.origins[position]
    return origin if origin.head is not None else None


def misread(layer: LayerOrigin) -> tuple[Misread, ...]:
    """Query heads beside a KV head that is not theirs, by position.

    More than ``LayerOrigin.misread`` says only where the parent holds equal heads: q, o, k and v must then fit one and
    the same reading of them.
    """
    found = {head.position: head for head in layer.misread()}
    if not layer.paired or layer.group is None or layer.q is None:
        return ()
    for position in range(len(layer.q.origins)):
        if position not in found:
            other = _misread_together(layer, position, position // layer.group)
            if other is not None:
                found[position] = other
    return tuple(found[position] for position in sorted(found))


def _misread_together(layer: LayerOrigin, position: int, kv: int) -> Misread | None:
    q, k = at(layer.q, position), at(layer.k, kv)
    if q is None or k is None or len(q.heads) == len(k.heads) == 1:
        return None
    o, v = at(layer.o, position), at(layer.v, kv)
    heads = [head for head in q.heads if o is None or head in o.heads]
    read = [head for head in k.heads if v is None or head in v.heads]
    if not heads or not read or any(layer.own_kv(head) in read for head in heads):
        return None
    return Misread(position, heads[0], layer.own_kv(heads[0]), read[0])


def all_read_their_own(layer: LayerOrigin) -> bool:
    """Whether every query head of the layer is known to read the KV head that it was trained with."""
    if not layer.paired or layer.q is None or layer.k is None:
        return False
    known = all(origin.head is not None for origin in (*layer.q.origins, *layer.k.origins))
    return known and bool(layer.q.origins) and not misread(layer)


def lines_differ(one: Origin, other: Origin) -> bool:
    """Whether the lines of two blocks stand in different order inside their heads.

    A block that is longer than the other (a gated q_proj keeps its gate behind the query rows) is compared as far as
    the shorter one goes.
    """
    if one.order is None and other.order is None:
        return False
    n = min(len(order) for order in (one.order, other.order) if order is not None)
    first, second = (tuple(order[:n]) if order is not None else tuple(range(n)) for order in (one.order, other.order))
    return first != second


def triples(layer: LayerOrigin) -> Iterator[tuple[MlpOrigin, tuple[Channels, ...]]]:
    """Each MLP of the layer with those of its projections whose origins may be judged."""
    for mlp in layer.mlps:
        yield mlp, tuple(c for c in (mlp.gate, mlp.up, mlp.down) if c is not None and c.told)


def has_misplaced(subject: Subject, *roles: str) -> bool:
    """Whether rows of one of the projections are the parent's of another place."""
    lineage = subject.lineage
    layers = lineage.layers if lineage is not None and lineage.compared else ()
    return any(one.role in roles for layer in layers for one in layer.misplaced)


def misplaced(layer: LayerOrigin, *roles: str) -> Iterator[Violation]:
    """One violation for each of the projections some rows of which are the parent's of another place."""
    for one in layer.misplaced:
        if one.role not in roles:
            continue
        elsewhere = "" if one.layer == layer.parent else f" of layer {one.layer}"
        yield Violation(
            message=(
                f"{one.rows} of {one.total} rows of {one.role}_proj are the parent's {one.found}_proj{elsewhere}, "
                f"bit by bit: row {one.first} is its row {one.parent_row}"
            ),
            layer=layer.index,
            tensors=(one.tensor,) if one.tensor else (),
            expected=Quantity(0, f"rows of {one.role}_proj that are another projection's"),
            actual=Quantity(one.rows, f"rows of {one.role}_proj that are another projection's"),
            source=SOURCE,
            consequence="nothing raises; those rows compute what another projection was trained for",
            fix="take the tensor from the parent anew: it was stored under the wrong name, or rows were exchanged",
        )


def undecided(layer: LayerOrigin) -> str:
    """Why not all of the layer's pairs could be judged, "" when they were. A rewritten o_proj or down_proj counts,
    and so does a head of mixed rows, which is an error of its own."""
    if layer.parent is None:
        return "it matches no layer of the parent"
    for role, heads in (("q", layer.q), ("k", layer.k), ("v", layer.v), ("o", layer.o)):
        why = _undecided_heads(layer, role, heads)
        if why:
            return why
    if layer.parent_group is None:
        return "the parent's query heads do not divide over its KV heads"
    if not layer.paired:
        return "its query heads do not divide over its KV heads"
    return undecided_mlp(layer) or (printable(layer.not_compared[0], 300) if layer.not_compared else "")


def undecided_mlp(layer: LayerOrigin) -> str:
    """The same for what is not a head: the MLP's channels, biases and the like."""
    for mlp in layer.mlps:
        for role, channels in (("gate", mlp.gate), ("up", mlp.up), ("down", mlp.down)):
            why = _undecided_channels(role, channels)
            if why:
                return f"{expert_words(mlp.expert)}{why}"
    for vector in layer.vectors:
        if vector.state == "not-compared":
            return f"the {vector.kind} of {_PARTS.get(vector.role, printable(vector.role, 40))} was not compared"
    return ""


def _undecided_heads(layer: LayerOrigin, role: str, heads: Heads | None) -> str:
    name = _PARTS[role]
    if heads is None or heads.state == "not-compared":
        reason = heads.reason if heads is not None else next(iter(layer.not_compared), "")
        return f"{name} was not compared{_because(reason)}"
    if heads.state == "rewritten" and role == "o":
        return ""
    if not heads.told:
        return f"{name} matches nothing in the parent's layer"
    unknown = sum(origin.head is None and origin.how != "mixed" for origin in heads.origins)
    noun = "block" if role == "o" else "head"
    return f"{counted(unknown, noun)} of {name} could not be told" if unknown else ""


def _undecided_channels(role: str, channels: Channels | None) -> str:
    if channels is None or (channels.state == "rewritten" and role == "down"):
        return ""
    if channels.state == "not-compared":
        return f"{role}_proj was not compared{_because(channels.reason)}"
    if not channels.told:
        return f"{role}_proj matches nothing in the parent's layer"
    unknown = channels.parents.count(NOWHERE)
    if unknown <= UNTOLD * len(channels.parents) and channels.state == "similar":
        return ""
    return f"{counted(unknown, 'channel')} of {role}_proj could not be told" if unknown else ""


def _because(reason: str) -> str:
    return f": {printable(reason, 300)}" if reason else ""


def expert_words(expert: int | str | None) -> str:
    """``expert 3: ``, ``shared expert: ``, "" for a dense MLP."""
    if expert is None:
        return ""
    return f"expert {expert}: " if isinstance(expert, int) else f"{printable(expert, 40)} expert: "


def moved(layer: LayerOrigin) -> str:
    """What a message about a layer that stands elsewhere than in the parent ends with, "" for the others."""
    if layer.parent is None or layer.parent == layer.index:
        return ""
    return f"; this layer came from parent layer {layer.parent}"


def cause_of(layer: LayerOrigin, *words: str) -> str:
    """The parts of the layer's cause that speak of one of ``words``: a rule names only what did its own damage."""
    parts = [part for part in layer.cause.split("; ") if any(word in part for word in words)]
    return "; ".join(dict.fromkeys(parts))


def tensors_of(*parts: Heads | Channels | None) -> tuple[str, ...]:
    """The stored names, each once."""
    return tuple(dict.fromkeys(part.tensor for part in parts if part is not None and part.tensor))


def some_of(n: int, total: int, noun: str, one: str, many: str) -> str:
    """``1 of 24 query heads reads``, ``20 of 24 query heads read``: the verb follows the first number."""
    return f"{n} of {counted(total, noun)} {one if n == 1 else many}"


def numbers(heads: Sequence[int], shown: int = 6) -> str:
    """``8, 9 and 10``; ``0, 1, 2, 3, 4, 5 and 2 more`` when there are many."""
    if len(heads) > shown or len(heads) < 2:
        return printable_list(heads, shown)
    return f"{', '.join(map(str, heads[:-1]))} and {heads[-1]}"
