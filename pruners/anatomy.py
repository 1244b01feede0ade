"""Where a live model keeps its heads and channels: which rows or columns of which parameter belong to which part.

Known from gqacheck's measurement of the model, for every family that it knows, with fused and stacked layouts; so a
pruner that goes through here can forget no bias, norm or sink.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch

from gqacheck.errors import GqacheckError
from gqacheck.geometry.facts import Geometry, Layer
from gqacheck.geometry.lines import slots_of
from gqacheck.geometry.measure import measure
from gqacheck.runtime.live import describe_model
from pruners.plan import Costs, ExpertName, LayerPlan, LayerShape, ModelShape

Part: TypeAlias = Literal["query", "kv", "channel"]
_NAMES = {"query": "query heads", "kv": "KV heads", "channel": "channels"}


class CannotPrune(GqacheckError):
    """This model cannot be pruned here; one sentence says which layer and why."""


@dataclass(frozen=True, slots=True)
class Lines:
    """Lines of one parameter that belong to one kind of part: ``unit`` of them to each part, part after part.

    role: ``q k v o gate up down``. parameter: its name in the model. dim: 0 when the lines are rows, 1 when they are
    columns; counted in one expert's matrix where ``expert`` says which of a stack of them it is. indices: which rows
    or columns they are, in order; None when they are all of them.
    owner: the expert that the channels are of, None for the dense MLP and attention.
    """

    role: str
    part: Part
    parameter: str
    dim: int
    unit: int
    n_lines: int
    indices: Sequence[int] | None = None
    expert: int | None = None
    owner: ExpertName | None = None

    @property
    def n_parts(self) -> int:
        """Heads or channels that it holds."""
        return self.n_lines // self.unit

    def of(self, parts: Sequence[int]) -> torch.Tensor:
        """Indices along ``dim`` of these heads or channels [len(parts) * unit]."""
        own = torch.arange(self.n_lines) if self.indices is None else torch.tensor(self.indices)
        return own.view(self.n_parts, self.unit)[list(parts)].flatten()

    def view(self, model: Any) -> torch.Tensor:
        """The parameter's values, one expert's where it is one of a stack."""
        values: torch.Tensor = model.get_parameter(self.parameter).data
        return values if self.expert is None else values[self.expert]

    def blocks(self, values: torch.Tensor) -> torch.Tensor:
        """``values`` of the shape of ``view`` (weights, gradients, scores) by part: [parts, everything else].

        A view where the lines are all of the parameter, else a copy.
        """
        lines = values.movedim(self.dim, 0)
        if self.indices is not None:
            lines = lines[torch.tensor(self.indices, device=values.device)]
        return lines.reshape(self.n_parts, -1)


@dataclass(frozen=True, slots=True)
class LayerAnatomy:
    """One layer. path: of its module. lines: of every parameter that has parts; the rest stays as the layer does."""

    index: int
    path: str
    shape: LayerShape
    layer: Layer
    lines: tuple[Lines, ...] = ()

    def kept(self, plan: LayerPlan, lines: Lines) -> tuple[int, ...] | None:
        """The heads or channels of ``lines`` that stay under ``plan``, None when it does not touch them."""
        if lines.part == "channel":
            return plan.channels if lines.owner is None else plan.experts.get(lines.owner)
        if plan.groups is None:
            return None
        return plan.query_heads(self.shape) if lines.part == "query" else plan.kv_heads(self.shape)


@dataclass(frozen=True, slots=True)
class Anatomy:
    """A live model, layer by layer, with the shape that plans are made for."""

    geometry: Geometry
    shape: ModelShape
    layers: tuple[LayerAnatomy, ...] = field(default_factory=tuple)


def dissect(model: Any) -> Anatomy:
    """The anatomy of a live transformers model. No weight is read or moved; tensors on ``meta`` will do.

    Raises:
        CannotPrune: it is broken already, or of a kind whose parts are not known.
        UsageError: it is not an ``nn.Module``.
    """
    geometry = measure(describe_model(model))
    if geometry.family.generic:
        raise CannotPrune(f"{type(model).__name__} is of no family that gqacheck knows, so its parts are not known")
    if not geometry.layers or geometry.hidden_size is None:
        raise CannotPrune(f"{type(model).__name__} has no decoder layers that gqacheck knows")
    parameters = dict(model.named_parameters())
    layers = tuple(_layer(geometry, layer, parameters) for layer in geometry.layers)
    inside = sum(layer.shape.parameters for layer in layers)
    total = sum(parameter.numel() for parameter in parameters.values())
    dims = {layer.attention.head_dim.value for layer in geometry.layers if layer.attention.head_dim is not None}
    shape = ModelShape(
        geometry.family.name,
        geometry.hidden_size.value,
        max(dims, default=0),
        tuple(layer.shape for layer in layers),
        total - inside,
    )
    return Anatomy(geometry, shape, layers)


def _layer(geometry: Geometry, layer: Layer, parameters: Mapping[str, torch.Tensor]) -> LayerAnatomy:
    a = layer.attention
    n_q, n_kv = (a.n_q_heads or 0, a.n_kv_heads or 0) if a.kind == "full" else (0, 0)
    if a.kind == "full" and (not n_q or not n_kv or n_q % n_kv):
        raise CannotPrune(
            f"layer {layer.index}: {a.q.rows if a.q else 0} q rows and {a.k.rows if a.k else 0} k rows are no whole KV "
            "groups: the model is broken already"
        )
    lines = tuple(_lines(geometry, layer, parameters))
    widths = {each.owner: each.n_parts for each in lines if each.role == "down"}
    counts: dict[tuple[Part, ExpertName | None], int] = {("query", None): n_q, ("kv", None): n_kv}
    counts |= {("channel", owner): width for owner, width in widths.items()}
    prices = dict.fromkeys(counts, 0)
    for each in lines:
        key = (each.part, each.owner)
        if each.n_lines % each.unit or each.n_parts != counts.get(key):
            raise CannotPrune(
                f"layer {layer.index}: {each.parameter} holds {each.n_parts} {_NAMES[each.part]} where "
                f"{counts.get(key, 0)} are expected: the model is broken already"
            )
        prices[key] += _per_part(each, parameters[each.parameter])
    total = sum(value.numel() for name, value in parameters.items() if name.startswith(layer.path + "."))
    costs = Costs(
        prices["query", None],
        prices["kv", None],
        prices.get(("channel", None), 0),
        {owner: prices["channel", owner] for owner in widths if owner is not None},
        total - sum(prices[key] * counts[key] for key in counts),
    )
    experts = {owner: width for owner, width in widths.items() if owner is not None}
    shape = LayerShape(n_q, n_kv, widths.get(None, 0), experts, costs)
    return LayerAnatomy(layer.index, layer.path, shape, layer, lines)


def _lines(geometry: Geometry, layer: Layer, parameters: Mapping[str, torch.Tensor]) -> Iterator[Lines]:
    for norm in (layer.attention.q_norm, layer.attention.k_norm):
        if norm is not None and ".norms." in norm.tensor:
            raise CannotPrune(f"layer {layer.index}: {norm.name} is one module per head, which is not cut here")
    for (role, _, owner), slot in slots_of(geometry, layer):
        if slot.tensor not in parameters:
            raise CannotPrune(
                f"layer {layer.index}: {slot.tensor} is no parameter of this model: unwrap it, merge its adapters"
            )
        part: Part = "channel" if role in ("gate", "up", "down") else "kv" if role in ("k", "v") else "query"
        unit, n_lines = slot.unit, slot.n_lines
        if slot.kind == "norm" and parameters[slot.tensor].shape[0] != n_lines:  # Cohere: [heads, head_dim]
            unit, n_lines = 1, parameters[slot.tensor].shape[0]
        dim = int(slot.turned != slot.transposed) if slot.kind == "weight" else 0
        yield Lines(role, part, slot.tensor, dim, unit, n_lines, slot.rows, slot.expert, owner)


def _per_part(lines: Lines, parameter: torch.Tensor) -> int:
    """Elements of ``parameter`` that one head or channel of ``lines`` owns."""
    shape = parameter.shape if lines.expert is None else parameter.shape[1:]
    return lines.unit * (shape.numel() // shape[lines.dim])
