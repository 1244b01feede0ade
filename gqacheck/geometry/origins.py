"""Where every head, channel and layer of a checkpoint came from in its parent, as plain facts.

``gqacheck.lineage`` fills these; the GQA6xx rules, the head map, the counterfactual run and the repair read them.
Nothing here judges. A *block* is what one position of a projection holds: for q, k and v the rows of one head, for o
the columns of one query head. Positions are the child's; heads, channels and layers that are named are the parent's.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

How: TypeAlias = Literal["exact", "similar", "mixed", "unmatched"]
"""``exact``: bit-identical after casting the parent to the child's dtype. ``similar``: told by cosine similarity.
``mixed``: its lines come from several parent heads. ``unmatched``: it matches nothing in the parent's layer."""

State: TypeAlias = Literal["exact", "similar", "rewritten", "unmatched", "not-compared"]
"""Of a whole projection. ``rewritten``: its lines match nothing although the layer's other projections are the parent's
(o_proj or down_proj after least squares), which is no misalignment. ``not-compared``: ``reason`` says why."""

NOWHERE = -1
"""In ``Channels.parents``: the channel matches nothing in the parent's layer."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the block at one position came from.

    heads: the parent's heads that it may be, best first; several only when the parent holds equal heads; empty when
        ``how`` is ``unmatched``. For ``mixed`` every head that gave lines, most lines first.
    similarity: cosine to ``heads[0]``, None when exact. order: for each line of the block the line of the parent's head
        that it came from, None when they stand as in the parent.
    """

    how: How
    heads: tuple[int, ...] = ()
    similarity: float | None = None
    order: tuple[int, ...] | None = None

    @property
    def head(self) -> int | None:
        """The parent's head, None when unmatched or mixed."""
        return self.heads[0] if self.heads and self.how != "mixed" else None


@dataclass(frozen=True, slots=True)
class Heads:
    """One projection's blocks (role ``q k v o``), position by position; ``n_parent`` blocks stand in the parent's.

    tensor: the child's stored name.
    """

    role: str
    state: State
    n_parent: int
    origins: tuple[Origin, ...] = ()
    tensor: str = ""
    reason: str = ""

    @property
    def told(self) -> bool:
        """Whether the origins may be judged."""
        return self.state in ("exact", "similar")

    def may_be_any(self, origin: Origin) -> bool:
        """Whether a block may be every one of the parent's: it is all zeros."""
        return origin.how == "exact" and self.n_parent > 1 and len(origin.heads) == self.n_parent


@dataclass(frozen=True, slots=True)
class Channels:
    """One MLP projection's channels (role ``gate up down``): ``parents[i]`` is the parent's channel at position i.

    ``NOWHERE`` where it matches nothing. similarity: the least cosine of the matched channels, None when exact.
    """

    role: str
    state: State
    n_parent: int
    parents: array[int] = field(default_factory=lambda: array("i"))
    similarity: float | None = None
    tensor: str = ""
    reason: str = ""

    @property
    def told(self) -> bool:
        """Whether the origins may be judged."""
        return self.state in ("exact", "similar")


@dataclass(frozen=True, slots=True)
class MlpOrigin:
    """The channels of one gate/up/down triple: the dense MLP (``expert`` None), one expert by number, or ``shared``.

    parent_expert: the parent's expert, None for a dense MLP or when it matches none.
    """

    gate: Channels | None = None
    up: Channels | None = None
    down: Channels | None = None
    expert: int | str | None = None
    parent_expert: int | str | None = None


@dataclass(frozen=True, slots=True)
class VectorOrigin:
    """A vector that goes with the lines of a projection: a bias, an all-heads norm, sinks.

    role: of the projection it goes with (``q k v gate up``; sinks go with ``q``). kind: ``bias``, ``norm``, ``sinks``;
        ``router`` for the rows of a router, one per expert (role ``router``).
    wrong: positions (heads; channels of an MLP) whose values are not those that belong to the origin of the weight
    there, and are those of another parent position; ``found`` names that one for each of ``wrong``.
    state ``rewritten``: the values are not the parent's anywhere (fine-tuned, compensation).
    """

    role: str
    kind: Literal["bias", "norm", "sinks", "router"]
    state: State
    tensor: str = ""
    wrong: tuple[int, ...] = ()
    found: tuple[int, ...] = ()
    positions: int = 0
    expert: int | str | None = None


@dataclass(frozen=True, slots=True)
class Misread:
    """A query head that reads another KV head than it was trained with. All but ``position`` are the parent's numbers.

    position: where it stands in the child. head: which parent head it is. own: the KV head it was trained with. reads:
    the KV head it reads now (None when that one is unmatched).
    """

    position: int
    head: int
    own: int
    reads: int | None


@dataclass(frozen=True, slots=True)
class Misplaced:
    """Rows of one projection that are, bit by bit, the parent's of another projection or of another layer.

    role: the projection they stand in; found: the one they are of, in the parent's ``layer``. rows: how many, of
    ``total``; the row ``first`` is the parent's row ``parent_row``. tensor: the child's stored name.
    """

    role: str
    found: str
    layer: int
    rows: int
    total: int
    first: int
    parent_row: int
    tensor: str = ""


@dataclass(frozen=True, slots=True)
class LayerOrigin:
    """One layer of the child beside the parent's layer that it came from.

    index: the child's. parent: the parent's layer, None when it matches none. n_q, n_kv: the child's counts (None when
    they do not divide); parent_n_q, parent_n_kv the parent's. cause: the known pattern behind a wrong pairing, in a
    few words ("q_proj was cut to its first 24 heads"), "" when there is none or nothing is wrong.
    not_compared: one sentence per part that was left alone, with the reason.
    """

    index: int
    parent: int | None
    n_q: int | None = None
    n_kv: int | None = None
    parent_n_q: int | None = None
    parent_n_kv: int | None = None
    q: Heads | None = None
    k: Heads | None = None
    v: Heads | None = None
    o: Heads | None = None
    mlps: tuple[MlpOrigin, ...] = ()
    vectors: tuple[VectorOrigin, ...] = ()
    cause: str = ""
    not_compared: tuple[str, ...] = ()
    misplaced: tuple[Misplaced, ...] = ()

    @property
    def parent_group(self) -> int | None:
        """Query heads per KV head in the parent."""
        if not self.parent_n_q or not self.parent_n_kv or self.parent_n_q % self.parent_n_kv:
            return None
        return self.parent_n_q // self.parent_n_kv

    @property
    def group(self) -> int | None:
        """Query heads per KV head in the child, as the model reads them."""
        if not self.n_q or not self.n_kv or self.n_q % self.n_kv:
            return None
        return self.n_q // self.n_kv

    @property
    def paired(self) -> bool:
        """Whether it can be said which KV head every query head was trained with and which one it reads."""
        return bool(self.group and self.parent_group and self.q and self.k and self.q.told and self.k.told)

    def own_kv(self, head: int) -> int:
        """The KV head that the parent's query head ``head`` was trained with.

        Raises:
            ValueError: the parent has no ratio.
        """
        group = self.parent_group
        if group is None:
            raise ValueError("the parent's query heads do not divide over its KV heads")
        return head // group

    def misread(self) -> tuple[Misread, ...]:
        """Query heads beside a KV head that is not theirs, by position; () when nothing can be said.

        Where the parent holds equal heads, one reading of them that fits is enough to be right. A head that is mixed
        or unmatched, or whose KV head is, is not judged.
        """
        if not self.paired:
            return ()
        assert self.q is not None
        assert self.k is not None
        assert self.group is not None
        found = []
        for position, origin in enumerate(self.q.origins):
            reads = self.k.origins[position // self.group]
            if origin.head is None or reads.head is None:
                continue
            owners = {self.own_kv(head) for head in origin.heads}
            if not owners & set(reads.heads):
                found.append(Misread(position, origin.head, self.own_kv(origin.head), reads.head))
        return tuple(found)


Relation: TypeAlias = Literal["child", "identical", "unrelated", "swapped", "not-compared"]
"""How the checkpoint stands to --base. ``unrelated``: next to nothing in it is the parent's. ``swapped``: the parent is
made of the checkpoint's heads, so the two were given the wrong way round. ``not-compared``: ``reason`` says why."""


@dataclass(frozen=True, slots=True)
class Lineage:
    """Where a whole checkpoint came from.

    method: ``exact`` when everything was told bit by bit, ``similarity`` when cosines had to decide somewhere.
    kept_hidden: for a child whose hidden size was cut, the parent's residual columns that it kept, else None.
    stranger: whether --base is no parent of the checkpoint, so that nothing else may be compared with it either.
    fine_tuned: share of the compared blocks and channels that are the parent's but not bit-identical (0 to 1).
    notes: sentences for the reader (what was left alone, what was matched by similarity).
    bytes_read: of both checkpoints' weights; seconds: wall-clock time.
    """

    relation: Relation
    reason: str = ""
    layers: tuple[LayerOrigin, ...] = ()
    n_parent_layers: int = 0
    method: Literal["exact", "similarity"] = "exact"
    stranger: bool = False
    kept_hidden: Sequence[int] | None = None
    fine_tuned: float = 0.0
    notes: tuple[str, ...] = ()
    bytes_read: int = 0
    seconds: float = 0.0

    @property
    def compared(self) -> bool:
        """Whether the weights were compared at all."""
        return self.relation in ("child", "identical")


FitVerdict: TypeAlias = Literal["suspect", "no-sign", "cannot-tell", "not-judged", "failed"]
"""``suspect``: heads fit other v heads than they read, beyond chance. ``no-sign``: nearly all visibly fit what they
read. ``cannot-tell``: neither. ``not-judged``: there is nothing to compare. ``failed``: the weights cannot be read."""


@dataclass(frozen=True, slots=True)
class Stray:
    """A query head whose o_proj columns fit another v head of its layer clearly better than the one it reads.

    All are the checkpoint's own positions. ``fit_read`` and ``fit_found`` are in chance spreads: what unrelated heads
    of this model reach has spread 1.
    """

    layer: int
    query_head: int
    reads: int
    found: int
    fit_read: float
    fit_found: float


@dataclass(frozen=True, slots=True)
class PairingFit:
    """What the weights alone, without a parent, say of the pairing: a statistical sign and never a proof.

    reason: why it was not judged or failed, else "". needed_fit: the fit that a head needs to have a say. judged:
    query heads that were compared; at_home: those that point at the KV head they read. The heads that neither are at
    home nor ``strays`` point nowhere. layers: those that were judged; left_out: one sentence per layer that was not.
    bytes_read: of the weights; seconds: wall-clock time.
    """

    verdict: FitVerdict
    reason: str = ""
    needed_fit: float = 0.0
    judged: int = 0
    at_home: int = 0
    strays: tuple[Stray, ...] = ()
    layers: tuple[int, ...] = ()
    left_out: tuple[str, ...] = ()
    bytes_read: int = 0
    seconds: float = 0.0
