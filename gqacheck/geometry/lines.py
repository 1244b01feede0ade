"""Where each head and channel of a layer lies inside the stored tensors: rows or columns, fused, transposed or stacked.

The one place that knows the layouts ``[Q|K|V]``, ``[rep Q, K, V]`` per KV head, ``[gate|up]``, interleaved, and stacked
over experts; lineage reads lines by it, repair writes them, pruners cut them.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from gqacheck.geometry.facts import Attention, Geometry, Layer, Mlp, Projection

if TYPE_CHECKING:
    import torch

Kind: TypeAlias = Literal["weight", "bias", "norm", "sinks"]


@dataclass(frozen=True, slots=True)
class Slot:
    """The lines of one projection or vector inside the stored tensor ``tensor``; ``unit`` lines make a block.

    rows: which rows are its own, None for all. turned: its lines are the tensor's columns (o, down). expert: its place
    in a tensor that holds all experts; transposed: that tensor is [experts, inputs, outputs]. shared: the tensor holds
    other roles too. n_lines: how many lines there are.
    """

    role: str
    kind: Kind
    tensor: str
    unit: int
    n_lines: int
    rows: Sequence[int] | None = None
    turned: bool = False
    expert: int | None = None
    transposed: bool = False
    shared: bool = False

    @property
    def n_blocks(self) -> int:
        """Blocks that it holds."""
        return self.n_lines // self.unit

    def lines(self, tensor: torch.Tensor) -> torch.Tensor:
        """Its lines as [n_lines, elements] (a vector's as [n_lines, 1]); a view where it owns the whole tensor."""
        lines = self._all(tensor)
        return lines if self.rows is None else lines[list(self.rows)]

    def put(self, tensor: torch.Tensor, lines: torch.Tensor) -> None:
        """Writes ``lines`` into ``tensor`` in place."""
        if self.rows is None:
            self._all(tensor).copy_(lines)
        else:
            self._all(tensor)[list(self.rows)] = lines

    def _all(self, tensor: torch.Tensor) -> torch.Tensor:
        if self.expert is not None:
            tensor = tensor[self.expert]
        if self.kind != "weight":
            return tensor.reshape(-1, 1)
        tensor = tensor.T if self.transposed else tensor
        return tensor.T if self.turned else tensor


def slots_of(geometry: Geometry, layer: Layer) -> Iterator[tuple[tuple[str, Kind, int | str | None], Slot]]:
    """(role, kind, expert) -> its slot, for every projection and vector of one layer whose place is known."""
    if layer.attention.kind == "full":
        yield from _attention_slots(geometry, layer.attention)
    experts: list[int | str | None] = [None]
    for expert in layer.mlp.experts:
        if expert.index == "stacked":
            experts += range(layer.mlp.n_experts_stored or 0)
        else:
            experts.append(expert.index)
    for number in experts:
        yield from _mlp_slots(geometry, layer, number)


def _attention_slots(
    geometry: Geometry, attention: Attention
) -> Iterator[tuple[tuple[str, Kind, int | str | None], Slot]]:
    width = attention.head_dim.value if attention.head_dim else None
    if not width or not attention.q_unit:
        return
    units = {"q": attention.q_unit, "k": width, "v": width, "o": width}
    for role, projection in (("q", attention.q), ("k", attention.k), ("v", attention.v), ("o", attention.o)):
        if projection is None:
            continue
        rows = fused_rows(geometry, attention, role) if projection.derived is not None else None
        if projection.derived is not None and rows is None:
            continue
        shared, unit = projection.derived is not None, units[role]
        n_lines = projection.columns if role == "o" else projection.rows
        weight = Slot(role, "weight", projection.tensor, unit, n_lines, rows, turned=role == "o", shared=shared)
        yield (role, "weight", None), weight
        if role != "o" and projection.bias is not None and projection.bias_tensor is not None:
            yield (
                (role, "bias", None),
                Slot(role, "bias", projection.bias_tensor, unit, projection.bias, rows, shared=shared),
            )
    if geometry.family.qk_norm in ("all-heads", "per-head-rows"):
        for role, norm in (("q", attention.q_norm), ("k", attention.k_norm)):
            if norm is not None and ".norms." not in norm.tensor:
                count = 1
                for size in norm.shape:
                    count *= size
                yield (role, "norm", None), Slot(role, "norm", norm.tensor, width, count)
    if attention.sinks is not None:
        yield ("q", "sinks", None), Slot("q", "sinks", f"{attention.path}.sinks", 1, attention.sinks)


def _mlp_slots(
    geometry: Geometry, layer: Layer, expert: int | str | None
) -> Iterator[tuple[tuple[str, Kind, int | str | None], Slot]]:
    stacked = any(found.index == "stacked" for found in layer.mlp.experts) and isinstance(expert, int)
    place = expert if stacked and isinstance(expert, int) else None
    transposed = stacked and geometry.family.stacked_transposed
    for role, projection in mlp_projections(layer.mlp, expert).items():
        if projection is None:
            continue
        n_lines = projection.columns if role == "down" else projection.rows
        shared = projection.derived is not None
        rows = _half(projection, layer, stacked=stacked) if shared else None
        yield (
            (role, "weight", expert),
            Slot(role, "weight", projection.tensor, 1, n_lines, rows, role == "down", place, transposed, shared),
        )
        if role != "down" and projection.bias is not None and projection.bias_tensor is not None:
            yield (
                (role, "bias", expert),
                Slot(role, "bias", projection.bias_tensor, 1, projection.bias, rows, expert=place, shared=shared),
            )


def _half(projection: Projection, layer: Layer, *, stacked: bool) -> Sequence[int]:
    """Rows of gate or up in the tensor that holds both."""
    pair = [p for p in (layer.mlp.gate, layer.mlp.up) if p is not None]
    if stacked:
        found = next(expert for expert in layer.mlp.experts if expert.index == "stacked")
        pair = [p for p in (found.gate, found.up) if p is not None]
    return channel_rows(projection, sum(p.rows for p in pair))


def mlp_projections(mlp: Mlp, expert: int | str | None) -> Mapping[str, Projection | None]:
    """gate, up and down of the dense MLP (None), of one expert, or of the stacked tensor that holds it."""
    if expert is None:
        return {"gate": mlp.gate, "up": mlp.up, "down": mlp.down}
    for found in mlp.experts:
        if found.index == expert or (found.index == "stacked" and isinstance(expert, int)):
            return {"gate": found.gate, "up": found.up, "down": found.down}
    return {}


def fused_rows(geometry: Geometry, attention: Attention, role: str) -> Sequence[int] | None:
    """Which rows of the fused tensor are q's, k's or v's; None when they cannot be told."""
    q, k, v = attention.q, attention.k, attention.v
    if q is None or k is None or v is None:
        return None
    if geometry.family.fused_qkv == "per-kv-group":
        return _rows_per_group(attention, role)
    start = {"q": 0, "k": q.rows, "v": q.rows + k.rows}[role]
    return range(start, start + {"q": q, "k": k, "v": v}[role].rows)


def _rows_per_group(attention: Attention, role: str) -> Sequence[int] | None:
    """Rows of ``[rep Q, K, V]`` per KV head (Falcon, InternLM2)."""
    n_q, n_kv, width = attention.n_q_heads, attention.n_kv_heads, attention.q_unit
    if not n_q or not n_kv or not width or n_q % n_kv:
        return None
    rep = n_q // n_kv
    if role == "q":
        heads = [head // rep * (rep + 2) + head % rep for head in range(n_q)]
    else:
        heads = [group * (rep + 2) + rep + (role == "v") for group in range(n_kv)]
    return array("i", (head * width + line for head in heads for line in range(width)))


def channel_rows(projection: Projection, stored: int) -> Sequence[int]:
    """Which rows of the stored tensor (of ``stored`` rows) are this gate's or up's channels."""
    if projection.derived is None:
        return range(stored)
    if projection.derived == "interleaved":
        return range(0 if projection.role == "gate" else 1, stored, 2)
    first = (stored + 1) // 2
    return range(first) if projection.role == "gate" else range(first, stored)
