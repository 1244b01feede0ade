"""A parent with a child's missing parts masked in place: the reference that a correct cut of it equals.

Removing a part and making it contribute nothing are the same function of the input: a query head speaks only through
its columns of o_proj, a channel only through its column of down_proj, a layer only through what those two add to the
residual stream. Two normalisations see more than that, and are put right: an RMS norm over all heads (OLMo-2) or over
a cut residual stream counts zeros in its mean, so with k of n entries left its weight is scaled by sqrt(k / n) and
its epsilon by k / n::

    x / sqrt(sum(x²) / k + eps) * w  =  x / sqrt(sum(x²) / n + eps k / n) * w sqrt(k / n)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch

from gqacheck.geometry.facts import Attention, Expert, Geometry, Layer, Mlp, Projection
from gqacheck.geometry.measure import measure
from gqacheck.runtime.configure import CannotRun
from gqacheck.runtime.kept import SHARED, Kept, KeptLayer, kept_of
from gqacheck.runtime.live import describe_model

__all__ = ["Kept", "KeptLayer", "kept_of", "mask_parent"]

_EPSILONS = ("variance_epsilon", "eps")
_PROBES = 4


def mask_parent(model: Any, kept: Sequence[KeptLayer | None], *, hidden: Sequence[int] | None = None) -> None:
    """Changes ``model`` so that only ``kept`` of it still speaks; its logits are then those of the correct cut.

    kept: one entry per decoder layer, None for a layer that adds nothing any more. hidden: residual columns that stay.
    Measured against the cut itself: equal to 1e-13 of the logits' standard deviation in float64.

    Raises:
        CannotRun: the plan does not fit the model, or its norms are not of a kind whose masked form is known. The model
            may then be masked in part.
    """
    geometry = measure(describe_model(model))
    if len(kept) != geometry.n_layers:
        raise CannotRun(f"the plan is for {len(kept)} layers and the model has {geometry.n_layers}")
    with torch.no_grad():
        for layer, plan in zip(geometry.layers, kept, strict=True):
            if plan is None:
                _silence(model, _writers(model, layer))
            else:
                _mask_layer(model, geometry, layer, plan)
        if hidden is not None:
            _mask_hidden(model, geometry, hidden)


def _mask_layer(model: Any, geometry: Geometry, layer: Layer, plan: KeptLayer) -> None:
    where = f"layer {layer.index}"
    a = layer.attention
    if plan.heads is not None:
        if not plan.heads:
            _silence(model, _attention_writers(model, layer))
        else:
            _mask_heads(model, geometry, a, plan.heads, where)
    transposed = geometry.family.stacked_transposed
    if plan.channels is not None:
        if not plan.channels:
            _silence(model, _mlp_writers(layer.mlp))
        elif layer.mlp.down is None:
            raise CannotRun(f"{where}: the plan names channels of a dense MLP, and the model has none there")
        else:
            _mask_columns(_parameter(model, layer.mlp.down.tensor), plan.channels, 1, where)
    for number, channels in plan.experts.items():
        _mask_expert(model, layer, number, channels, transposed=transposed)


def _mask_heads(model: Any, geometry: Geometry, a: Attention, heads: Sequence[int], where: str) -> None:
    n_q, n_kv = a.n_q_heads, a.n_kv_heads
    if a.o is None or a.q is None or a.k is None or a.head_dim is None or not n_q or not n_kv or n_q % n_kv:
        raise CannotRun(f"{where}: the plan names query heads, and the model has no such attention there")
    head_dim = a.head_dim.value
    _mask_columns(_parameter(model, a.o.tensor), heads, head_dim, where)
    if geometry.family.qk_norm != "all-heads":
        return
    kv = sorted({head // (n_q // n_kv) for head in heads})
    for projection, norm, stay, total in ((a.q, a.q_norm, heads, n_q), (a.k, a.k_norm, kv, n_kv)):
        if norm is None:
            continue
        for name in (projection.tensor, projection.bias_tensor):
            if name is not None:
                _mask_rows(_parameter(model, name), stay, head_dim, where)
        _shrink_norm(model.get_submodule(norm.tensor.rpartition(".")[0]), len(stay) / total, where)


def _mask_expert(model: Any, layer: Layer, number: int | str, channels: Sequence[int], *, transposed: bool) -> None:
    """Of a numbered expert in a stack of all, of one that stands by itself, or of the shared one."""
    where = f"layer {layer.index}, expert {number}"
    stacked = _expert(layer.mlp, "stacked") if number != SHARED else None
    own = _expert(layer.mlp, number)
    if own is not None and own.down is not None:
        _mask_columns(_parameter(model, own.down.tensor), channels, 1, where)
    elif stacked is not None and stacked.down is not None and isinstance(number, int):
        weights = _parameter(model, stacked.down.tensor)  # [experts, hidden, channels], or the last two exchanged
        if not 0 <= number < weights.shape[0]:
            raise CannotRun(f"{where}: the model has {weights.shape[0]} experts there")
        one = weights[number]
        _mask_columns(one.T if transposed else one, channels, 1, where)
    else:
        raise CannotRun(f"{where}: the model has no such expert")


def _expert(mlp: Mlp, number: int | str) -> Expert | None:
    return next((expert for expert in mlp.experts if expert.index == number), None)


def _mask_columns(weight: torch.Tensor, kept: Sequence[int], unit: int, where: str) -> None:
    """Zeroes every column of ``weight`` [rows, columns] outside of the kept blocks of ``unit`` columns."""
    gone = _gone(weight.shape[-1], kept, unit, where)
    weight[:, gone.to(weight.device)] = 0


def _mask_rows(weight: torch.Tensor, kept: Sequence[int], unit: int, where: str) -> None:
    weight[_gone(weight.shape[0], kept, unit, where).to(weight.device)] = 0


def _gone(size: int, kept: Sequence[int], unit: int, where: str) -> torch.Tensor:
    """Indices below ``size`` that are in none of the kept blocks of ``unit``."""
    if kept and not 0 <= min(kept) <= max(kept) < size // unit:
        raise CannotRun(f"{where}: the plan keeps block {max(kept)}, and the model has {size // unit} there")
    stays = torch.zeros(size // unit, dtype=torch.bool)
    stays[list(kept)] = True
    return (~stays.repeat_interleave(unit)).nonzero().flatten()


def _parameter(model: Any, name: str) -> torch.Tensor:
    values: torch.Tensor = model.get_parameter(name).data
    return values


def _silence(model: Any, names: Iterable[str]) -> None:
    for name in names:
        _parameter(model, name).zero_()


def _writers(model: Any, layer: Layer) -> Iterator[str]:
    yield from _attention_writers(model, layer)
    yield from _mlp_writers(layer.mlp)


def _attention_writers(model: Any, layer: Layer) -> Iterator[str]:
    """Names of what the attention of a layer, or what stands in its place, adds to the residual stream."""
    a = layer.attention
    if a.o is not None:
        yield from _names((a.o,))
    elif a.kind == "linear":
        found = [f"{layer.path}.{name}" for name, _ in model.get_submodule(layer.path).named_parameters()]
        written = [name for name in found if name.endswith((".out_proj.weight", ".out_proj.bias"))]
        if not written:
            raise CannotRun(f"layer {layer.index}: what its linear attention writes with is not known")
        yield from written
    elif a.kind not in ("dropped", "absent"):
        raise CannotRun(f"layer {layer.index}: its attention has no output projection to silence")


def _mlp_writers(mlp: Mlp) -> Iterator[str]:
    yield from _names((mlp.down, *(expert.down for expert in mlp.experts)))


def _names(projections: Iterable[Projection | None]) -> Iterator[str]:
    for projection in projections:
        if projection is not None:
            yield projection.tensor
            if projection.bias_tensor is not None:
                yield projection.bias_tensor


def _mask_hidden(model: Any, geometry: Geometry, kept: Sequence[int]) -> None:
    """Nothing is written to the residual columns that are gone, and no norm counts them."""
    if geometry.embedding is None or geometry.hidden_size is None:
        raise CannotRun("the model has no token embedding whose columns could be masked")
    size = geometry.hidden_size.value
    _mask_columns(_parameter(model, geometry.embedding.tensor), kept, 1, "the embedding")
    for layer in geometry.layers:
        for name in _writers(model, layer):
            values = _parameter(model, name)
            stacked = values.dim() == 3
            side = -1 if name.endswith("bias") or (stacked and geometry.family.stacked_transposed) else -2
            values.movedim(side, 0)[_gone(size, kept, 1, f"layer {layer.index}").to(values.device)] = 0
    norms = [norm for layer in geometry.layers for norm in layer.norms if norm.role not in ("q", "k")]
    if geometry.final_norm is None or not all(layer.norms for layer in geometry.layers):
        raise CannotRun("the masked form of norms without weights is not known", supported=False)
    for norm in (*norms, geometry.final_norm):
        _shrink_norm(model.get_submodule(norm.tensor.rpartition(".")[0]), len(kept) / size, norm.name)


def _shrink_norm(norm: Any, share: float, where: str) -> None:
    """Makes an RMS norm over n entries, of which all but ``share`` are zero, that of the others alone."""
    offset = _offset(norm)
    name = next((name for name in _EPSILONS if isinstance(getattr(norm, name, None), float)), None)
    if offset is None or name is None:
        raise CannotRun(f"{where}: {type(norm).__name__} is no RMS norm whose masked form is known", supported=False)
    setattr(norm, name, getattr(norm, name) * share)
    norm.weight.data.add_(offset).mul_(math.sqrt(share)).sub_(offset)


def _offset(norm: Any) -> float | None:
    """What an RMS norm adds to its weight before it multiplies (0, or 1 in Gemma); None when it is another function."""
    weight = norm.weight.data
    x = torch.linspace(-2.0, 3.0, _PROBES * weight.numel(), dtype=torch.float64).view(_PROBES, -1)
    x = (x + torch.sin(7.0 * x)).to(weight.dtype)
    got = norm(x.to(weight.device)).cpu().double()
    x, weight = x.double(), weight.cpu().double()  # not every device knows float64
    unit = x * x.pow(2).mean(-1, keepdim=True).rsqrt()
    offset = min((0.0, 1.0), key=lambda offset: float((got - unit * (weight + offset)).abs().max()))
    return offset if torch.allclose(got, unit * (weight + offset), rtol=2e-2, atol=1e-2) else None
