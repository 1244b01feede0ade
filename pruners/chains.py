"""The cuts of one block in the order in which they are made.

What to remove is decided once, from the scores; how much, only says how far along its chain each block is cut. So a
higher ratio always keeps a subset of what a lower one keeps, and no ratio can split a pair.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch

from pruners.plan import ExpertName, KvGroup, LayerPlan, LayerShape
from pruners.scores import CannotScore, Importance

Heads: TypeAlias = Literal["groups", "queries", "both"]
Kind: TypeAlias = Literal["attention", "mlp", "experts"]
Move: TypeAlias = Literal["group", "query"]


@dataclass(frozen=True, slots=True)
class Chain:
    """Cuts of one block of ``layer``, the first one first; never so many that nothing is left.

    losses: what each cut costs in score. costs: its parameters. parts: how many of ``n_parts`` it removes, in ``unit``.
    total: parameters of the whole block's parts. keep: what stays after so many cuts. owners: the MLPs that it is of.
    """

    kind: Kind
    layer: int
    unit: str
    losses: torch.Tensor
    costs: torch.Tensor
    parts: torch.Tensor
    n_parts: int
    total: int
    keep: Callable[[int], LayerPlan]
    owners: tuple[ExpertName | None, ...] = (None,)

    def __len__(self) -> int:
        return len(self.losses)


def attention_chains(
    shapes: Mapping[int, LayerShape], importance: Importance, heads: Heads, *, alike: bool
) -> list[Chain]:
    """One chain for each of these layers that has attention.

    heads: ``groups`` removes the KV group worth least; ``queries`` the query head worth least of every group at once;
    ``both`` whichever of the two loses less score per parameter. alike: layers of the same shape then make the same
    sequence of moves, so that they end in the same shape; each still chooses its own heads.
    """
    blocks = [_Heads.of(layer, shape, importance) for layer, shape in shapes.items() if shape.n_kv_heads]
    together: dict[tuple[int, int], list[_Heads]] = {}
    for block in blocks:
        key = (block.shape.n_kv_heads, block.shape.group_size) if alike else (block.layer, -1)
        together.setdefault(key, []).append(block)
    chains = [chain for peers in together.values() for chain in _attention(peers, heads)]
    return sorted(chains, key=lambda chain: chain.layer)


def mlp_chains(
    shapes: Mapping[int, LayerShape], importance: Importance, multiple: int, *, experts: bool
) -> list[Chain]:
    """Chains of the dense MLPs, and with ``experts`` of routed experts (all alike) and shared ones, of these layers.

    multiple: channels that stay are a multiple of it, unless all stay.
    """
    chains = []
    for layer, shape in shapes.items():
        dense = importance.channels[layer]
        if shape.channels and dense is not None:
            chains.append(_channels(layer, "mlp", [None], [dense], [shape.costs.channel], multiple))
        routed: list[ExpertName | None] = [name for name in shape.experts if name != "shared"]
        for kind, names in (("experts", routed), ("mlp", [name for name in shape.experts if name == "shared"])):
            if names and experts:
                scores = [importance.experts[layer][name] for name in names if name is not None]
                costs = [shape.costs.experts[name] for name in names if name is not None]
                chains.append(
                    _channels(layer, "experts" if kind == "experts" else "mlp", names, scores, costs, multiple)
                )
    return chains


@dataclass(slots=True)
class _Heads:
    """The attention of one layer while its chain is made. scores: [n_kv, group_size], the least of each group first."""

    layer: int
    shape: LayerShape
    scores: list[list[float]]
    places: list[list[int]]
    kv: list[float]
    alive: list[int]
    gone: int = 0

    @classmethod
    def of(cls, layer: int, shape: LayerShape, importance: Importance) -> _Heads:
        queries, kv = importance.queries[layer], importance.kv[layer]
        if queries is None or kv is None:  # Importance.require_fit says it better, and before
            raise CannotScore(f"layer {layer} has attention and no scores for it")
        scores, places = queries.view(shape.n_kv_heads, shape.group_size).sort(dim=1, stable=True)
        return cls(layer, shape, scores.tolist(), places.tolist(), kv.tolist(), list(range(shape.n_kv_heads)))

    def worth(self, group: int) -> float:
        return self.kv[group] + sum(self.scores[group][self.gone :])

    def least(self) -> int:
        return min(self.alive, key=self.worth)

    def loss(self, move: Move) -> float:
        if move == "group":
            return self.worth(self.least())
        return sum(self.scores[group][self.gone] for group in self.alive)

    def cost(self, move: Move) -> int:
        costs = self.shape.costs
        left = self.shape.group_size - self.gone
        return costs.kv + left * costs.query if move == "group" else len(self.alive) * costs.query

    def can(self, move: Move) -> bool:
        return len(self.alive) > 1 if move == "group" else self.shape.group_size - self.gone > 1

    def make(self, move: Move) -> None:
        if move == "group":
            self.alive.remove(self.least())
        else:
            self.gone += 1

    @property
    def scale(self) -> float:
        """By which layers are made to vote alike."""
        return (sum(self.kv) + sum(map(sum, self.scores))) or 1.0


def _attention(peers: Sequence[_Heads], heads: Heads) -> list[Chain]:
    """Chains of layers that make the same moves."""
    allowed: tuple[Move, ...] = {"groups": ("group",), "queries": ("query",), "both": ("group", "query")}[heads]  # type: ignore[assignment]
    losses: list[list[float]] = [[] for _ in peers]
    costs: list[list[int]] = [[] for _ in peers]
    states: list[list[tuple[tuple[int, ...], int]]] = [[(tuple(peer.alive), 0)] for peer in peers]
    scales = [peer.scale for peer in peers]

    def price(move: Move) -> float:
        lost = sum(peer.loss(move) / scale for peer, scale in zip(peers, scales, strict=True))
        return lost / max(1, sum(peer.cost(move) for peer in peers))

    while moves := [move for move in allowed if peers[0].can(move)]:
        move = min(moves, key=price)
        for at, peer in enumerate(peers):
            losses[at].append(peer.loss(move))
            costs[at].append(peer.cost(move))
            peer.make(move)
            states[at].append((tuple(peer.alive), peer.gone))
    return [_attention_chain(peer, heads, losses[at], costs[at], states[at]) for at, peer in enumerate(peers)]


def _attention_chain(
    peer: _Heads, heads: Heads, losses: list[float], costs: list[int], states: list[tuple[tuple[int, ...], int]]
) -> Chain:
    shape = peer.shape
    total = shape.n_kv_heads * shape.costs.kv + shape.n_q_heads * shape.costs.query

    def keep(cuts: int) -> LayerPlan:
        alive, gone = states[cuts]
        return LayerPlan(groups=tuple(KvGroup(group, tuple(sorted(peer.places[group][gone:]))) for group in alive))

    unit, n_parts, parts = {
        "groups": ("KV groups", shape.n_kv_heads, [1] * len(costs)),
        "queries": ("query heads per KV head", shape.group_size, [1] * len(costs)),
        "both": ("attention parameters", total, costs),
    }[heads]
    return Chain(
        "attention",
        peer.layer,
        unit,
        torch.tensor(losses, dtype=torch.float64),
        torch.tensor(costs, dtype=torch.int64),
        torch.tensor(parts, dtype=torch.int64),
        n_parts,
        total,
        keep,
    )


def _channels(
    layer: int,
    kind: Kind,
    owners: Sequence[ExpertName | None],
    scores: Sequence[torch.Tensor],
    costs: Sequence[int],
    multiple: int,
) -> Chain:
    """The chain of MLPs that are cut alike: each loses its own least channels, equally many."""
    width = min(map(len, scores))
    order = torch.stack([each[:width].argsort(stable=True) for each in scores])
    ascending = torch.stack([each[:width] for each in scores]).gather(1, order).sum(0)
    first = width % multiple or multiple
    sizes = torch.tensor([first] + [multiple] * ((width - first) // multiple) if width else [])[:-1].long()
    ends = sizes.cumsum(0)
    sums = torch.cat([torch.zeros(1, dtype=torch.float64), ascending.cumsum(0)])

    def keep(cuts: int) -> LayerPlan:
        gone = int(ends[cuts - 1]) if cuts else 0
        kept = {owner: tuple(sorted(row[gone:].tolist())) for owner, row in zip(owners, order, strict=True)}
        return LayerPlan(
            channels=kept.get(None), experts={name: found for name, found in kept.items() if name is not None}
        )

    unit = "channels of each expert" if kind == "experts" else "channels"
    return Chain(
        kind,
        layer,
        unit,
        sums[ends] - sums[ends - sizes],
        sizes * sum(costs),
        sizes,
        width,
        width * sum(costs),
        keep,
        tuple(owners),
    )
