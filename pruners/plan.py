"""What a pruner decides, and nothing else: which KV groups, query heads, channels and layers of a parent stay.

A plan names KV groups, and query heads only by their place inside their own group. A query head beside a KV head that
is not its own cannot be written down, so no pruner that goes through a plan can make one. What follows from a plan
(head counts, parameters, config) is arithmetic on the parent's shape, without a weight in sight.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, TypeAlias

from gqacheck.errors import UsageError
from gqacheck.runtime.kept import KeptLayer
from gqacheck.text import printable

ExpertName: TypeAlias = int | str
"""An expert's number, or ``shared``."""


class PlanError(UsageError):
    """A plan that makes no sense, or not for this model: one sentence says what, where and both numbers."""


@dataclass(frozen=True, slots=True)
class Costs:
    """Parameters of one layer by what they belong to, so that any plan can be priced without touching a weight.

    query: of one query head, with its columns of o_proj. kv: of one KV head (k and v). channel: of one channel of the
    dense MLP. experts: of one channel of each expert. rest: of everything that stays as long as the layer does.
    """

    query: int = 0
    kv: int = 0
    channel: int = 0
    experts: Mapping[ExpertName, int] = field(default_factory=dict)
    rest: int = 0


@dataclass(frozen=True, slots=True)
class LayerShape:
    """Sizes of one parent layer. 0 heads: no softmax attention that could be cut; 0 channels: no dense MLP.

    experts: channels of each expert.
    """

    n_q_heads: int
    n_kv_heads: int
    channels: int
    experts: Mapping[ExpertName, int] = field(default_factory=dict)
    costs: Costs = field(default_factory=Costs)

    @property
    def group_size(self) -> int:
        """Query heads of one KV group; 0 without attention."""
        return self.n_q_heads // self.n_kv_heads if self.n_kv_heads else 0

    @property
    def parameters(self) -> int:
        """Of the whole layer."""
        c = self.costs
        experts = sum(c.experts[name] * width for name, width in self.experts.items())
        return c.query * self.n_q_heads + c.kv * self.n_kv_heads + c.channel * self.channels + experts + c.rest


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of a parent. outside: parameters beside the layers, a tied lm_head counted once."""

    family: str
    hidden_size: int
    head_dim: int
    layers: tuple[LayerShape, ...]
    outside: int = 0

    @property
    def n_layers(self) -> int:
        """Decoder layers."""
        return len(self.layers)

    @property
    def parameters(self) -> int:
        """Of the whole model."""
        return self.outside + sum(layer.parameters for layer in self.layers)


@dataclass(frozen=True, slots=True)
class KvGroup:
    """A KV head that stays, and which of its own query heads stay with it, by their place in the group (0 …)."""

    kv_head: int
    queries: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """What stays of one layer; None where a block is not touched.

    groups: in order of KV head, each with equally many query heads. channels: of the dense MLP. experts: channels of
    each expert that is cut, equally many in all routed ones.
    """

    groups: tuple[KvGroup, ...] | None = None
    channels: tuple[int, ...] | None = None
    experts: Mapping[ExpertName, tuple[int, ...]] = field(default_factory=dict)

    @property
    def whole(self) -> bool:
        """Whether nothing of the layer is named, so that all of it stays."""
        return self.groups is None and self.channels is None and not self.experts

    def kv_heads(self, shape: LayerShape) -> tuple[int, ...]:
        """KV heads that stay."""
        return tuple(range(shape.n_kv_heads)) if self.groups is None else tuple(g.kv_head for g in self.groups)

    def query_heads(self, shape: LayerShape) -> tuple[int, ...]:
        """Query heads that stay, counted over the whole layer of the parent."""
        if self.groups is None:
            return tuple(range(shape.n_q_heads))
        return tuple(g.kv_head * shape.group_size + place for g in self.groups for place in g.queries)


@dataclass(frozen=True, slots=True)
class PruningPlan:
    """What stays of a parent of shape ``parent``: one entry per layer, None for a layer that goes.

        >>> plan = PruningPlan.of(shape, {3: LayerPlan(groups=(KvGroup(0, (0, 1, 2, 3)), KvGroup(2, (0, 1, 2, 3))))})
        ... # doctest: +SKIP

    Raises:
        PlanError: it does not fit ``parent``, or it leaves nothing of a block.
    """

    parent: ModelShape
    layers: tuple[LayerPlan | None, ...]

    def __post_init__(self) -> None:
        if len(self.layers) != self.parent.n_layers:
            raise PlanError(f"the plan is for {len(self.layers)} layers and the model has {self.parent.n_layers}")
        if all(layer is None for layer in self.layers):
            raise PlanError(f"the plan removes all {len(self.layers)} layers: keep at least one")
        for index, (plan, shape) in enumerate(zip(self.layers, self.parent.layers, strict=True)):
            if plan is not None:
                _check_layer(index, plan, shape)

    @classmethod
    def of(cls, parent: ModelShape, cut: Mapping[int, LayerPlan | None]) -> PruningPlan:
        """The plan that touches only the layers of ``cut``.

        Raises:
            PlanError: as above, or a layer that the parent does not have.
        """
        beyond = [index for index in cut if not 0 <= index < parent.n_layers]
        if beyond:
            raise PlanError(f"the plan names layer {beyond[0]} and the model has layers 0-{parent.n_layers - 1}")
        return cls(parent, tuple(cut.get(index, LayerPlan()) for index in range(parent.n_layers)))

    @property
    def whole(self) -> bool:
        """Whether nothing goes."""
        return self.child == self.parent

    @property
    def kept_layers(self) -> tuple[int, ...]:
        """Indices of the parent's layers that stay."""
        return tuple(index for index, layer in enumerate(self.layers) if layer is not None)

    @property
    def child(self) -> ModelShape:
        """The shape of what the plan makes of its parent."""
        layers = tuple(
            _after(plan, shape) for plan, shape in zip(self.layers, self.parent.layers, strict=True) if plan is not None
        )
        attends = any(layer.n_q_heads for layer in layers)
        return replace(self.parent, layers=layers, head_dim=self.parent.head_dim if attends else 0)

    @property
    def parameters(self) -> int:
        """Of the child."""
        return self.child.parameters

    @property
    def share_removed(self) -> float:
        """Of the parent's parameters, from 0 to 1."""
        return 1 - self.parameters / self.parent.parameters

    def config_values(self) -> dict[str, Any]:
        """The sizes for the child's config: a number where all layers agree, a list with one entry per layer where not.

        The keys are transformers' own; a key is absent where no layer has such a block.
        """
        layers = self.child.layers
        sizes = {
            "num_attention_heads": [layer.n_q_heads for layer in layers],
            "num_key_value_heads": [layer.n_kv_heads for layer in layers],
            "intermediate_size": [layer.channels for layer in layers],
        }
        found: dict[str, Any] = {"num_hidden_layers": len(layers), "head_dim": self.parent.head_dim}
        for key, values in sizes.items():
            if any(values):
                found[key] = values[0] if len(set(values)) == 1 else values
        return found

    def kept(self) -> tuple[KeptLayer | None, ...]:
        """The plan in the words of ``gqacheck.runtime.masked``, which makes the reference that the child must equal."""
        return tuple(
            None
            if plan is None
            else KeptLayer(
                None if plan.groups is None else plan.query_heads(shape),
                plan.channels,
                dict(plan.experts),
            )
            for plan, shape in zip(self.layers, self.parent.layers, strict=True)
        )

    def then(self, second: PruningPlan) -> PruningPlan:
        """One plan that does to this plan's parent what this one and then ``second``, made for its child, would do.

        Raises:
            PlanError: ``second`` is not for this plan's child.
        """
        if second.parent != self.child:
            raise PlanError(
                f"the second plan is not for what the first one leaves: {_mismatch(second.parent, self.child)}"
            )
        rest = iter(zip(second.layers, self.child.layers, strict=True))
        joined: list[LayerPlan | None] = []
        for plan in self.layers:
            if plan is None:
                joined.append(None)
            else:
                again, between = next(rest)
                joined.append(None if again is None else _then(plan, again, between))
        return PruningPlan(self.parent, tuple(joined))

    def require_fit(self, shape: ModelShape) -> None:
        """Nothing, when ``shape`` is that of the parent this plan was made for.

        Raises:
            PlanError: it is another one's, with what differs.
        """
        if shape != self.parent:
            raise PlanError(f"the plan was made for another model: {_mismatch(self.parent, shape)}")


def whole_groups(kv_heads: Iterable[int], shape: LayerShape) -> tuple[KvGroup, ...]:
    """These KV heads, each with all of its query heads."""
    return tuple(KvGroup(head, tuple(range(shape.group_size))) for head in sorted(kv_heads))


def _check_layer(index: int, plan: LayerPlan, shape: LayerShape) -> None:
    where = f"layer {index}"
    if plan.groups is not None:
        if not shape.n_kv_heads:
            raise PlanError(f"{where}: the plan names KV groups, and the layer has no attention that can be cut")
        if not plan.groups:
            raise PlanError(f"{where}: no KV group stays: drop the layer instead, or keep one")
        _check_indices(where, "KV head", [g.kv_head for g in plan.groups], shape.n_kv_heads)
        for group in plan.groups:
            _check_indices(f"{where}, KV group {group.kv_head}", "query head", group.queries, shape.group_size)
        sizes = sorted({len(group.queries) for group in plan.groups})
        if len(sizes) > 1:
            raise PlanError(
                f"{where}: KV groups keep {sizes[0]} and {sizes[-1]} query heads, and each KV head must have equally "
                "many, or position no longer tells the group"
            )
    if plan.channels is not None:
        _check_indices(where, "channel", plan.channels, shape.channels)
    for name, channels in plan.experts.items():
        if name not in shape.experts:
            raise PlanError(f"{where}: the plan names expert {name}, and the layer has {len(shape.experts)}")
        _check_indices(f"{where}, expert {name}", "channel", channels, shape.experts[name])
    routed = {len(plan.experts.get(name, range(shape.experts[name]))) for name in shape.experts if name != "shared"}
    if len(routed) > 1:
        raise PlanError(f"{where}: experts keep {min(routed)} to {max(routed)} channels, and all must be equally wide")


def _check_indices(where: str, what: str, indices: Sequence[int], size: int) -> None:
    if not indices:
        raise PlanError(f"{where}: no {what} stays: keep at least one")
    if any(type(index) is not int for index in indices):
        raise PlanError(f"{where}: every {what} must be a whole number")
    if any(a >= b for a, b in pairwise(indices)):
        raise PlanError(f"{where}: {what}s must be in ascending order, each once")
    if indices[0] < 0 or indices[-1] >= size:
        wrong = indices[0] if indices[0] < 0 else indices[-1]
        raise PlanError(f"{where}: the plan keeps {what} {wrong}, and there are {size} (0-{size - 1})")


def _after(plan: LayerPlan, shape: LayerShape) -> LayerShape:
    return replace(
        shape,
        n_q_heads=len(plan.query_heads(shape)),
        n_kv_heads=len(plan.kv_heads(shape)),
        channels=shape.channels if plan.channels is None else len(plan.channels),
        experts={name: len(plan.experts.get(name, range(width))) for name, width in shape.experts.items()},
    )


def _then(first: LayerPlan, second: LayerPlan, between: LayerShape) -> LayerPlan:
    """``between``: the layer after the first plan."""
    groups = first.groups if second.groups is None else second.groups
    if first.groups is not None and second.groups is not None:
        groups = tuple(
            KvGroup(mine.kv_head, tuple(mine.queries[place] for place in again.queries))
            for again in second.groups
            for mine in (first.groups[again.kv_head],)
        )
    experts = {
        name: _through(first.experts.get(name), second.experts.get(name))
        for name in between.experts
        if name in first.experts or name in second.experts
    }
    return LayerPlan(
        groups,
        _through(first.channels, second.channels),
        {name: channels for name, channels in experts.items() if channels is not None},
    )


def _through(first: tuple[int, ...] | None, second: tuple[int, ...] | None) -> tuple[int, ...] | None:
    if first is None or second is None:
        return first if second is None else second
    return tuple(first[index] for index in second)


def _mismatch(wanted: ModelShape, found: ModelShape) -> str:
    """The first thing that sets two shapes apart, with both numbers."""
    for name in ("family", "n_layers", "hidden_size", "head_dim"):
        ours, theirs = getattr(wanted, name), getattr(found, name)
        if ours != theirs:
            return f"{name} {printable(ours, 60)} in the plan, {printable(theirs, 60)} in the model"
    for index, (one, other) in enumerate(zip(wanted.layers, found.layers, strict=True)):
        for name in ("n_q_heads", "n_kv_heads", "channels", "experts", "costs"):
            if getattr(one, name) != getattr(other, name):
                ours, theirs = printable(getattr(one, name)), printable(getattr(other, name))
                return f"layer {index} has {name} {ours} in the plan, {theirs} in the model"
    return f"{wanted.outside:,} parameters beside the layers in the plan, {found.outside:,} in the model"
