"""Names for what went wrong in a layer, where the pattern of what was kept is a known one.

Each part of a cause names the projections that it speaks of (``q_proj``, ``o_proj``, ``bias``…): by those words a rule
picks the parts that explain its own finding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from gqacheck.geometry.origins import NOWHERE, Channels, Heads, LayerOrigin, MlpOrigin, VectorOrigin
from gqacheck.rules.heads import counted

BLIND = "query heads were chosen one by one, without regard to KV groups"
INTERLEAVED = "query heads were taken as interleaved, head h with KV head h % {n} instead of h // {group}"

_TELLING = 4
"""Query heads that must fit a pattern place by place before it is named: fewer do so by chance."""


def layer_cause(layer: LayerOrigin) -> str:
    """The known patterns behind the layer's wrong pairs, joined by ``"; "``; "" when nothing is wrong or known."""
    parts = [_queries(layer), _values(layer), _outputs(layer)]
    parts += [_channels(mlp) for mlp in layer.mlps]
    parts += [_vector(layer, vector) for vector in layer.vectors]
    said = dict.fromkeys(part for part in parts if part)
    return "; ".join(part for part in said if not any(other.startswith(f"{part} ") for other in said))


def _queries(layer: LayerOrigin) -> str:
    """How q and k came apart."""
    q, k = _known(layer.q), _known(layer.k)
    group, n_kv = layer.parent_group, layer.parent_n_kv
    if q is None or k is None or group is None or n_kv is None or (layer.group is not None and not layer.misread()):
        return ""
    assert layer.q is not None
    assert layer.k is not None
    if _first(layer.q):
        return f"q_proj was cut to its first {counted(len(q), 'head')} (as [:{len(q)} * head_dim] does)"
    if q == list(range(layer.q.n_parent)) and len(k) < layer.k.n_parent:
        return f"q_proj kept all {len(q)} query heads while k_proj was cut to {len(k)} of {layer.k.n_parent} KV heads"
    if _interleaved(layer, q, k):
        return INTERLEAVED.format(n=n_kv, group=group)
    owners = [head // group for head in q]
    even = len(set(Counter(owners).values())) == 1
    if even and len(set(owners)) == len(k) and len(set(k)) == len(k):
        return _even_groups(layer.k, owners, k)
    return BLIND if _rising(q) and not even else ""


def _interleaved(layer: LayerOrigin, q: Sequence[int], k: Sequence[int]) -> bool:
    """Whether q fits k once query head h is read as belonging to KV head h % n_kv: as a set, or place by place."""
    n_q, n_kv = layer.parent_n_q, layer.parent_n_kv
    if not n_q or not n_kv or layer.group is None:
        return False
    if len(set(k)) < n_kv and set(q) == {head for head in range(n_q) if head % n_kv in set(k)}:
        return True
    return len(q) >= _TELLING and all(head % n_kv == k[position // layer.group] for position, head in enumerate(q))


def _even_groups(heads: Heads, owners: Sequence[int], k: Sequence[int]) -> str:
    """Whole groups of query heads, as many as there are KV heads: those of others, or the same in another order."""
    if set(owners) != set(k):
        return f"k_proj was cut to its first {counted(len(k), 'KV head')}" if _first(heads) else ""
    sorted_q = all(one <= other for one, other in pairwise(owners))
    if sorted_q:
        return "k_proj was put in another order and q_proj was not"
    if _rising(k):
        return "q_proj was put in another order and k_proj was not"
    return ""


def _values(layer: LayerOrigin) -> str:
    """How k and v came apart."""
    if layer.k is None or layer.v is None or not _apart(layer.k, layer.v):
        return ""
    return _behind(layer.k, "k_proj", layer.v, "v_proj")


def _outputs(layer: LayerOrigin) -> str:
    """How q's rows and o's columns came apart."""
    if layer.q is None or layer.o is None or not _apart(layer.q, layer.o):
        return ""
    return _behind(layer.q, "q_proj", layer.o, "o_proj")


def _behind(one: Heads, name: str, other: Heads, other_name: str) -> str:
    """Which of two projections was not indexed with the other: cut to its first lines, or left in index order."""
    first, second = _known(one), _known(other)
    if first is None or second is None:
        return ""
    for heads, itself, fellow, its_name, fellows in (
        (other, second, first, other_name, name),
        (one, first, second, name, other_name),
    ):
        if _first(heads):
            return f"{its_name} was cut to its first {counted(len(itself), 'head')}"
        if itself == sorted(fellow):
            return f"{its_name} was not reordered with {fellows}"
    return ""


def _channels(mlp: MlpOrigin) -> str:
    """How gate, up and down of one MLP came apart."""
    parts = [part for part in (mlp.gate, mlp.up, mlp.down) if part is not None and part.told]
    if len(parts) < 2 or not any(_channels_apart(part, parts[0]) for part in parts[1:]):
        return ""
    first = [part for part in parts if _first_channels(part)]
    if first:
        return f"{_names(first)} cut to the first {counted(len(first[0].parents), 'channel')}"
    rising = [part for part in parts if _rising(part.parents)]
    others = [part for part in parts if part not in rising]
    if rising and others and all(sorted(part.parents) == list(rising[0].parents) for part in others):
        return f"{_names(rising)} not reordered with {' and '.join(f'{part.role}_proj' for part in others)}"
    return ""


def _names(parts: Sequence[Channels]) -> str:
    return f"{' and '.join(f'{part.role}_proj' for part in parts)} {'was' if len(parts) == 1 else 'were'}"


def _vector(layer: LayerOrigin, vector: VectorOrigin) -> str:
    """A bias (or norm, or sinks) that stayed where it was while the rows of its weight were cut or reordered."""
    if not vector.wrong or vector.wrong != vector.found:
        return ""
    heads = {"q": layer.q, "k": layer.k, "v": layer.v}.get(vector.role)
    name = f"the {vector.kind} of {vector.role}_proj" if vector.role in ("q", "k", "v", "gate", "up") else "a bias"
    if heads is not None and 0 < vector.positions < heads.n_parent:
        return f"{name} was cut to its first {counted(vector.positions, 'head')}"
    return f"{name} was not cut and reordered with its rows"


def _known(heads: Heads | None) -> list[int] | None:
    """The parent's head at every position; None where one is not known, or could be several that differ in group."""
    if heads is None or not heads.told or not heads.origins:
        return None
    found = [origin.head for origin in heads.origins]
    known = [head for head in found if head is not None]
    return known if len(known) == len(found) else None


def _first(heads: Heads) -> bool:
    """Whether the parent's first heads stand there in their order, and not all of them."""
    at_home = all(position in origin.heads for position, origin in enumerate(heads.origins))
    return 0 < len(heads.origins) < heads.n_parent and at_home


def _first_channels(channels: Channels) -> bool:
    n = len(channels.parents)
    return 0 < n < channels.n_parent and all(parent == at for at, parent in enumerate(channels.parents))


def _apart(one: Heads, other: Heads) -> bool:
    """Whether two projections hold different parent heads at some position."""
    return (
        one.told
        and other.told
        and any(
            a.head is not None and b.head is not None and not set(a.heads) & set(b.heads)
            for a, b in zip(one.origins, other.origins, strict=False)
        )
    )


def _channels_apart(one: Channels, other: Channels) -> bool:
    return one.parents != other.parents and any(
        a != b and NOWHERE not in (a, b) for a, b in zip(one.parents, other.parents, strict=False)
    )


def _rising(numbers: Sequence[int]) -> bool:
    return all(one < other for one, other in pairwise(numbers))
