"""The heads of one layer beside those of its parent layer: bit by bit, and by similarity where bits differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from gqacheck.errors import ReadError
from gqacheck.geometry.facts import Attention, Layer
from gqacheck.geometry.origins import Heads, Origin
from gqacheck.lineage.doubts import doubted
from gqacheck.lineage.exact import ZERO, Candidates, find_blocks, tells
from gqacheck.lineage.matrix import Matrix, attention_matrices
from gqacheck.lineage.pair import Pair


@dataclass(frozen=True, slots=True)
class _Role:
    """One projection of both layers: its lines, how many lines a head has, and how many heads there are."""

    name: str
    ours: Matrix
    theirs: Matrix
    width: int
    n_child: int
    n_parent: int
    tensor: str


def trace_heads(pair: Pair, ours: Layer, theirs: Layer) -> tuple[dict[str, Heads], list[str]]:
    """Role -> where its blocks came from, and a sentence for each role that was left alone."""
    found: dict[str, Heads] = {}
    left: list[str] = []
    roles, reasons = _roles(pair, ours.attention, theirs.attention)
    left += reasons
    for role in roles:
        try:
            found[role.name] = _trace(pair, role, found)
        except ReadError as error:
            found[role.name] = Heads(role.name, "not-compared", role.n_parent, tensor=role.tensor, reason=str(error))
            left.append(f"{role.name}: {error}")
    return found, left


def _roles(pair: Pair, ours: Attention, theirs: Attention) -> tuple[list[_Role], list[str]]:
    mine = attention_matrices(pair.child.geometry, ours, pair.child.checkpoint.tensors)
    parents = attention_matrices(pair.parent.geometry, theirs, pair.parent.checkpoint.tensors)
    roles, left = [], []
    for name in ("q", "k", "v", "o"):
        if name not in mine or name not in parents:
            left.append(f"{name}: its weight is not stored as a plain matrix in both files")
            continue
        width, parent_width = _width(ours, name), _width(theirs, name)
        if not width or mine[name].n_lines % width:
            left.append(f"{name}: its {mine[name].n_lines} {_lines(name)} do not divide into heads")
        elif width != parent_width:
            left.append(f"{name}: one head has {width} {_lines(name)}, {parent_width} in the parent")
        elif parents[name].n_lines % width or _elements_differ(pair, mine[name], parents[name]):
            left.append(f"{name}: its {_lines(name)} are of another width than the parent's")
        else:
            counts = mine[name].n_lines // width, parents[name].n_lines // width
            roles.append(_Role(name, mine[name], parents[name], width, *counts, mine[name].info.name))
    return roles, left


def _width(attention: Attention, role: str) -> int | None:
    """Lines of one head."""
    if role == "q":
        return attention.q_unit
    if role == "k":
        return attention.head_dim.value if attention.head_dim else None
    n = attention.n_kv_heads if role == "v" else attention.n_q_heads
    projection = attention.v if role == "v" else attention.o
    if projection is None:
        return None
    if role == "v" and attention.head_dim and projection.rows % attention.head_dim.value == 0:
        return attention.head_dim.value
    lines = projection.rows if role == "v" else projection.columns
    if n and lines % n == 0 and (role == "v" or attention.head_dim is None):
        return lines // n
    if attention.head_dim and lines % attention.head_dim.value == 0:
        return attention.head_dim.value
    return None


def _lines(role: str) -> str:
    return "columns" if role == "o" else "rows"


def _elements_differ(pair: Pair, ours: Matrix, theirs: Matrix) -> bool:
    return ours.n_elements != (len(pair.kept) if pair.kept is not None else theirs.n_elements)


def _trace(pair: Pair, role: _Role, before: dict[str, Heads]) -> Heads:
    lines = pair.lines(role.ours, role.theirs, turned=role.name == "o")
    origins = find_blocks(lines, role.width)
    origins = [_or_masked(origin, lines, position, role) for position, origin in enumerate(origins)]
    heads = Heads(role.name, "exact", role.n_parent, tuple(origins), role.tensor)
    if all(origin.how == "exact" for origin in origins):
        return heads
    unmatched = sum(origin.how == "unmatched" for origin in origins)
    if not unmatched:
        return heads
    if not pair.similar:
        if unmatched == len(origins):
            reason = "its numbers are not the parent's bit by bit, and similarity needs the [lineage] extra (numpy)"
            return replace(heads, state="not-compared", origins=(), reason=reason)
        pair.notes["some heads are not the parent's bit by bit; pip install 'gqacheck[lineage]' compares them"] = None
        return heads
    partly = [
        any(line and tells(line) for line in lines[start : start + role.width])
        for start in range(0, len(lines), role.width)
    ]
    return _similar(pair, role, heads, before, partly)


def _or_masked(origin: Origin, lines: Sequence[Candidates], position: int, role: _Role) -> Origin:
    """A head of zeros reads nothing and adds nothing: it may be any of the parent's, the one of its place first."""
    block = lines[position * role.width : (position + 1) * role.width]
    if origin.how != "unmatched" or any(line != ZERO for line in block):
        return origin
    return Origin("exact", tuple(sorted(range(role.n_parent), key=lambda head: (head != position, head))))


def _similar(pair: Pair, role: _Role, exact: Heads, before: dict[str, Heads], partly: Sequence[bool]) -> Heads:
    """The same with the unmatched blocks told by cosine similarity; ``partly``: which have lines that are exact."""
    from gqacheck.lineage.arrays import COLUMN_ELEMENTS, ROW_ELEMENTS, both
    from gqacheck.lineage.similar import decide_projection, match_blocks

    turned = role.name == "o"
    ours, theirs = both(pair, role.ours, role.theirs, COLUMN_ELEMENTS if turned else ROW_ELEMENTS, spread=turned)
    child = ours.reshape(role.n_child, role.width, -1)
    parent = theirs.reshape(role.n_parent, role.width, -1)
    expected = _expected(role, before)
    matches = match_blocks(child, parent, expected=expected)
    origins: list[Origin] = []
    for position, (known, match) in enumerate(zip(exact.origins, matches, strict=True)):
        if known.how != "unmatched":
            origins.append(known)
        elif match.candidates:
            told_now = Origin("similar", match.candidates, match.similarity, match.order)
            origins.append(doubted(told_now, child[position], parent, partly=partly[position]))
        else:
            origins.append(Origin("unmatched", (), match.similarity))
    how = {origin.how for origin in origins}
    state = "similar" if "similar" in how else "exact" if how & {"exact", "mixed"} else "unmatched"
    if turned and any(head is not None for head in expected):
        found = [origin.head for origin in origins]
        told = decide_projection(child, parent, found, expected)
        if told != "similar" and not any(origin.how == "exact" for origin in origins):
            return replace(exact, state=told, origins=tuple(origins))
    return replace(exact, state=state, origins=tuple(origins))  # type: ignore[arg-type]


def _expected(role: _Role, before: dict[str, Heads]) -> Sequence[int | None]:
    """What stands at each position by the layer's other projections: o follows q, v follows k, others themselves."""
    leader = before.get({"o": "q", "v": "k"}.get(role.name, ""))
    if leader is not None and leader.told and len(leader.origins) == role.n_child:
        return [origin.head for origin in leader.origins]
    if role.n_child == role.n_parent and role.name in ("q", "k"):
        return list(range(role.n_child))
    return [None] * role.n_child
