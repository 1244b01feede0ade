"""What of a model may be cut under a request, how far each block is cut for a ratio, and the plan that comes of it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch

from pruners.chains import Chain, attention_chains, mlp_chains
from pruners.plan import LayerPlan, LayerShape, ModelShape, PlanError, PruningPlan
from pruners.request import WORTH_A_NOTE, Ratio, Request, Selection, clamped, dropped_layers, percent
from pruners.scores import Importance


@dataclass(frozen=True, slots=True)
class _Ranking:
    """Cuts of several chains in one order. chains: which one each cut is of. removed: parts (or parameters) so far."""

    members: tuple[int, ...]
    chains: torch.Tensor
    removed: list[int]
    whole: int
    gone: int


@dataclass(frozen=True, slots=True)
class Blocks:
    """Chains that a request allows. whole: what ratios are of, for each chain; more than it has when cut in steps.

    removed, costs: for each chain the parts and the parameters that are gone after so many cuts.
    """

    shape: ModelShape
    request: Request
    chains: tuple[Chain, ...]
    whole: tuple[int, ...]
    removed: tuple[list[int], ...]
    costs: tuple[list[int], ...]
    rankings: tuple[_Ranking, ...]
    dropped: frozenset[int]
    notes: tuple[str, ...]

    def cuts(self, heads: Ratio, channels: Ratio) -> list[int]:
        """How many cuts each chain takes for these ratios."""
        if self.request.scope == "uniform":
            return [
                self._along(at, _of_layer(self._ratio(at, heads, channels), self.chains[at].layer))
                for at in range(len(self.chains))
            ]
        found = [0] * len(self.chains)
        for ranking in self.rankings:
            ratio = _of_layer(self._ratio(ranking.members[0], heads, channels), 0)
            count = nearest_index(ranking.removed, ratio * ranking.whole - ranking.gone)
            taken = torch.bincount(ranking.chains[:count], minlength=len(self.chains)).tolist()
            for member in ranking.members:
                found[member] = taken[member]
        return found

    def share_removed(self, cuts: Sequence[int]) -> float:
        """Of the model's parameters, with the layers that are dropped."""
        gone = sum(self.shape.layers[layer].parameters for layer in self.dropped)
        gone += sum(costs[count] for costs, count in zip(self.costs, cuts, strict=True))
        return gone / self.shape.parameters

    def filled(self, cuts: Sequence[int], share: float) -> list[int]:
        """Scope ``global``: these cuts and the next ones of the ranking that still fit into ``share``, in its order."""
        found, closed = list(cuts), set[int]()
        left = (share - self.share_removed(cuts)) * self.shape.parameters
        for ranking in self.rankings:
            for at in ranking.chains[sum(cuts) :].tolist():
                if at not in closed:
                    costs = self.costs[at]
                    cost = costs[found[at] + 1] - costs[found[at]]
                    if cost <= left:
                        found[at] += 1
                        left -= cost
                    else:
                        closed.add(at)
        return found

    def selection(
        self, cuts: Sequence[int], asked: tuple[Ratio, Ratio] | None = None, *, drop: bool = True
    ) -> Selection:
        """The plan of these cuts. asked: the ratios, for notes where sizes could not follow them."""
        plans: dict[int, LayerPlan | None] = {}
        for chain, count in zip(self.chains, cuts, strict=True):
            if count:
                plans[chain.layer] = _both(plans.get(chain.layer) or LayerPlan(), chain.keep(count))
        if drop:
            plans |= dict.fromkeys(self.dropped, None)
        plan = PruningPlan.of(self.shape, plans)
        return Selection(plan, (*self.notes, *(self._granularity(cuts, *asked) if asked else ())))

    def _ratio(self, at: int, heads: Ratio, channels: Ratio) -> Ratio:
        return heads if self.chains[at].kind == "attention" else channels

    def _along(self, at: int, ratio: float) -> int:
        gone_before = self.whole[at] - self.chains[at].n_parts
        return nearest_index(self.removed[at], ratio * self.whole[at] - gone_before)

    def _granularity(self, cuts: Sequence[int], heads: Ratio, channels: Ratio) -> list[str]:
        if self.request.scope != "uniform":
            return [*self._ranked_notes(cuts, heads, channels)]
        found: dict[tuple[str, int, int, float], list[int]] = {}
        for at, (chain, count) in enumerate(zip(self.chains, cuts, strict=True)):
            ratio = _of_layer(self._ratio(at, heads, channels), chain.layer)
            left = chain.n_parts - self.removed[at][count]
            if abs(1 - left / self.whole[at] - ratio) >= WORTH_A_NOTE:
                found.setdefault((chain.unit, self.whole[at], left, ratio), []).append(chain.layer)
        return [
            _granularity_note(unit, whole, left, ratio, layers, self.request)
            for (unit, whole, left, ratio), layers in found.items()
        ]

    def _ranked_notes(self, cuts: Sequence[int], heads: Ratio, channels: Ratio) -> list[str]:
        notes = []
        for ranking in self.rankings:
            ratio = _of_layer(self._ratio(ranking.members[0], heads, channels), 0)
            unit = self.chains[ranking.members[0]].unit
            by_cost = self.request.scope == "global"
            gone = ranking.gone + sum((self.costs if by_cost else self.removed)[at][cuts[at]] for at in ranking.members)
            share = gone / ranking.whole
            if abs(share - ratio) >= WORTH_A_NOTE:
                what = "the parameters of heads and channels in range" if by_cost else f"all {unit} in range"
                notes.append(f"{percent(ratio)} of {what} were to go, and the nearest to be had is {percent(share)}")
        return notes


def blocks_of(
    shape: ModelShape,
    importance: Importance,
    request: Request,
    influence: torch.Tensor | None,
    *,
    origin: ModelShape | None = None,
) -> Blocks:
    """What of ``shape`` may be cut. origin: the shape that the ratios are of, when ``shape`` is cut in part already.

    Raises:
        PlanError: the importance is not of a model of this shape, or the request not for one.
    """
    importance.require_fit(shape)
    notes: list[str] = []
    dropped = dropped_layers(shape, request, influence)
    spans = [
        clamped(name, span, shape.n_layers, notes)
        for name, span in (("attention_layers", request.attention_layers), ("mlp_layers", request.mlp_layers))
    ]
    heads, mlps = ({at: shape.layers[at] for at in span if at not in dropped} for span in spans)
    for ratio in (request.ratio, request.mlp_ratio):
        if isinstance(ratio, Sequence) and len(ratio) != shape.n_layers:
            raise PlanError(f"{len(ratio)} ratios were given and the model has {shape.n_layers} layers: give one each")
    chains = (
        *attention_chains(heads, importance, request.heads, alike=request.scope == "uniform"),
        *mlp_chains(mlps, importance, request.channels_multiple, experts=request.experts),
    )
    origin = origin or shape
    wholes = [_whole(chain, origin.layers[chain.layer]) for chain in chains]
    return Blocks(
        shape,
        request,
        chains,
        tuple(parts for parts, _ in wholes),
        tuple([0, *chain.parts.cumsum(0).tolist()] for chain in chains),
        tuple([0, *chain.costs.cumsum(0).tolist()] for chain in chains),
        _rankings(chains, wholes, request),
        dropped,
        tuple(notes),
    )


def nearest_index(rising: Sequence[int], target: float) -> int:
    """Where in ``rising`` the value nearest to ``target`` stands; the first of two equally near ones."""
    at = bisect_left(rising, target)
    if at == 0:
        return 0
    if at == len(rising):
        return bisect_left(rising, rising[-1])
    before, after = target - rising[at - 1], rising[at] - target
    return at if after < before - 1e-9 * max(1.0, abs(target)) else bisect_left(rising, rising[at - 1])


def _rankings(chains: Sequence[Chain], wholes: Sequence[tuple[int, int]], request: Request) -> tuple[_Ranking, ...]:
    if request.scope == "uniform" or not chains:
        return ()
    by_cost = request.scope == "global"
    kinds = [("all" if by_cost else chain.kind, at) for at, chain in enumerate(chains)]
    found = []
    for _, pairs in groupby(sorted(kinds), key=lambda pair: pair[0]):
        members = tuple(at for _, at in pairs)
        prices = [_prices(chains[at], request.normalize) for at in members]
        amounts = [chains[at].costs if by_cost else chains[at].parts for at in members]
        owners = torch.cat([torch.full((len(chains[at]),), at) for at in members])
        order = torch.cat(prices).argsort(stable=True)
        whole = sum(wholes[at][by_cost] for at in members)
        now = sum(chains[at].total if by_cost else chains[at].n_parts for at in members)
        removed = [0, *torch.cat(amounts)[order].cumsum(0).tolist()]
        found.append(_Ranking(members, owners[order], removed, whole, whole - now))
    return tuple(found)


def _prices(chain: Chain, normalize: str) -> torch.Tensor:
    """By what cuts are ranked; never falling along the chain, so that a stable order keeps the chain's own."""
    prices = chain.losses if normalize == "raw" else chain.losses / chain.costs.clamp(min=1)
    if normalize == "layer" and len(prices):
        mean = float(chain.losses.sum() / chain.costs.sum().clamp(min=1))
        prices = prices / mean if mean > 0 else prices
    return prices.cummax(0).values if len(prices) else prices


def _whole(chain: Chain, shape: LayerShape) -> tuple[int, int]:
    """Parts and parameters of the chain's block in a layer of this shape."""
    costs = shape.costs
    if chain.kind == "attention":
        total = shape.n_kv_heads * costs.kv + shape.n_q_heads * costs.query
        return {"KV groups": shape.n_kv_heads, "query heads per KV head": shape.group_size}.get(
            chain.unit, total
        ), total
    per_channel = chain.total // max(1, chain.n_parts)
    width = shape.channels
    if chain.owners != (None,):
        width = min(shape.experts[name] for name in chain.owners if name is not None)
    return width, width * per_channel


def _both(one: LayerPlan, other: LayerPlan) -> LayerPlan:
    return LayerPlan(
        one.groups if other.groups is None else other.groups,
        one.channels if other.channels is None else other.channels,
        {**one.experts, **other.experts},
    )


def _of_layer(ratio: Ratio, layer: int) -> float:
    return ratio[layer] if isinstance(ratio, Sequence) else ratio


def _granularity_note(unit: str, whole: int, left: int, ratio: float, layers: Sequence[int], request: Request) -> str:
    """Such as: layers 0-27: 20 % of 4 KV groups is 0.8: 1 goes, 25 % (possible: 0, 25, 50, 75 %)."""
    gone = whole - left
    where = f"layer{'s' if len(layers) > 1 else ''} {_spans(layers)}"
    if unit == "attention parameters":
        return f"{where}: {percent(ratio)} of the attention cannot be had in equal groups: {percent(gone / whole)} goes"
    steps = f" (possible: {', '.join(f'{100 * at / whole:.4g}' for at in range(whole))} %)" if whole <= 8 else ""
    if unit.startswith("channels") and request.channels_multiple > 1:
        steps = f", so that a multiple of {request.channels_multiple} stays"
    what = f"{gone} go{'es' if gone == 1 else ''}" if gone else "none goes"
    return f"{where}: {percent(ratio)} of {whole} {unit} is {ratio * whole:.4g}: {what}, {percent(gone / whole)}{steps}"


def _spans(layers: Sequence[int]) -> str:
    """3-7, 9."""
    runs = [
        [pair[1] for pair in run] for _, run in groupby(enumerate(sorted(layers)), key=lambda pair: pair[1] - pair[0])
    ]
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
