"""Importance by what is lost *after* o_proj and down_proj were rewritten, for cuts that ``reconstruct`` follows.

Of two heads that say the same, either can go; a score of each by itself ranks both high. With the Gram matrix G of
what a projection W is given, the error that is left when the columns R go and all others are fitted anew is known
without fitting: ``tr(W_R (G⁻¹_RR)⁻¹ W_Rᵀ)``. Parts go one after the other, the cheapest of those that are left first,
and G⁻¹ and W are brought up to date each time: the step of the optimal brain surgeon (Hassibi & Stork 1993), on whole
heads and channels. An error counts by what it does to the loss: in directions of the residual stream in which the
loss's gradient is large it counts more (W becomes F½ W, F the mean of g gᵀ over positions, g the gradient by the
projection's output).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from pruners.activations import wanda
from pruners.anatomy import Anatomy, dissect
from pruners.calibration import require_batches
from pruners.layerwise import Stream, watching
from pruners.normal_equations import NormalEquations
from pruners.plan import ExpertName
from pruners.quiet import in_eval_mode
from pruners.reconstruction import Role, projections
from pruners.scores import CannotScore, Importance, require_weights

__all__ = ["least_squares_error"]

_RIDGE = 1e-3
"""Relative to the mean of G's diagonal: what few rows seem to tell about many columns is not believed."""
_HALF_SCALE = 1024.0
"""A float16 model's loss is multiplied by it, so that its gradients do not vanish; only proportions matter."""


def least_squares_error(model: Any, batches: torch.Tensor, *, batch_size: int = 8) -> Importance:
    """For each KV group and channel the error per position once it and every cheaper one of its layer are gone.

    Scores rise in the order of removal, so taking the lowest takes the parts in that order. A group's score is shared
    out among its query heads by what each alone would cost. Experts have ``wanda``'s scores: they are not rewritten.

    Memory beside the model: a backward pass of one window without gradients of weights, 4 * H² bytes for each o_proj
    and down_proj of H rows, one residual stream (windows x positions x hidden_size) and about 40 * K² bytes for the
    largest projection of K columns. Time: two forward passes, a backward one, and K³ per projection.

    Raises:
        CannotPrune, CannotScore, CalibrationError: as ``pruners.gradients.taylor``.
    """
    anatomy = dissect(model)
    require_weights(model, anatomy)
    require_batches(model, batches)
    queries: list[torch.Tensor | None] = []
    channels: list[torch.Tensor | None] = []
    with in_eval_mode(model):
        bends = _curvature(model, anatomy, batches)
    with in_eval_mode(model), torch.no_grad():
        stream = Stream(model, anatomy, torch.split(batches, batch_size))
        for layer in anatomy.layers:
            linears = projections(model, layer)
            grams = _advance(stream, layer.index, {role: linear.module for role, linear in linears.items()})
            n_q, n_kv = layer.shape.n_q_heads, layer.shape.n_kv_heads
            weights = {
                role: _root(bends[layer.index, role]) @ linear.module.weight.data.to("cpu", torch.float64)
                for role, linear in linears.items()
            }
            queries.append(_heads(grams["o"], weights["o"], n_q, n_kv) if n_q and "o" in grams else _zeros(n_q))
            found = costs_in_turn(grams["down"], weights["down"], layer.shape.channels) if "down" in grams else None
            channels.append(found if found is not None else _zeros(layer.shape.channels))
    experts: tuple[Mapping[ExpertName, torch.Tensor], ...] = tuple({} for _ in anatomy.layers)
    if any(layer.shape.experts for layer in anatomy.layers):
        experts = wanda(model, batches).experts
    kv = tuple(_zeros(layer.shape.n_kv_heads) for layer in anatomy.layers)
    return Importance(tuple(queries), kv, tuple(channels), experts, "error/least-squares")


def costs_in_turn(gram: torch.Tensor, weight: torch.Tensor, n_parts: int) -> torch.Tensor:
    """The error once a part and all that went before it are gone, for parts of consecutive columns [n_parts].

    gram [K, K] of the columns' inputs, weight [H, K]; the rest is fitted anew after each removal.
    """
    unit = len(gram) // n_parts
    inverse = _inverse(gram)
    weight = weight.clone()
    left = list(range(n_parts))
    scores = torch.zeros(n_parts, dtype=torch.float64)
    lost = 0.0
    while left:
        costs = _costs(inverse, weight, n_parts, unit)[left]
        chosen = left.pop(int(costs.argmin()))
        lost += max(float(costs.min()), 0.0)
        scores[chosen] = lost
        own = slice(chosen * unit, (chosen + 1) * unit)
        pull = torch.linalg.solve(inverse[own, own], inverse[own])
        weight -= weight[:, own] @ pull
        inverse -= inverse[:, own] @ pull
        inverse[own, own] += torch.eye(unit, dtype=torch.float64)  # never looked at again, and must stay solvable
    return scores


def _costs(inverse: torch.Tensor, weight: torch.Tensor, n_parts: int, unit: int) -> torch.Tensor:
    """What the removal of each part alone would add to the error [n_parts]."""
    if unit == 1:
        single: torch.Tensor = weight.square().sum(0) / inverse.diagonal()
        return single
    blocks = torch.stack([inverse[at : at + unit, at : at + unit] for at in range(0, n_parts * unit, unit)])
    columns = weight.T.reshape(n_parts, unit, -1)
    costs: torch.Tensor = (columns * torch.linalg.solve(blocks, columns)).sum((1, 2))
    return costs


def _inverse(gram: torch.Tensor) -> torch.Tensor:
    """Of the Gram matrix with its ridge; a projection that is given nothing but zeros costs nothing."""
    mean = float(gram.diagonal().mean()) or 1.0
    inverse: torch.Tensor = torch.linalg.inv(gram + _RIDGE * mean * torch.eye(len(gram), dtype=gram.dtype))
    return inverse


def _heads(gram: torch.Tensor, weight: torch.Tensor, n_q: int, n_kv: int) -> torch.Tensor:
    """Each group's score, shared out among its query heads [n_q]."""
    groups = costs_in_turn(gram, weight, n_kv)
    alone = _costs(_inverse(gram), weight, n_q, len(gram) // n_q).clamp(min=0).view(n_kv, -1)
    total = alone.sum(1, keepdim=True)
    shares = torch.where(total > 0, alone / total, torch.full_like(alone, 1 / alone.shape[1]))
    return (groups[:, None] * shares).flatten()


def _advance(stream: Stream, index: int, modules: Mapping[Role, Any]) -> dict[Role, torch.Tensor]:
    """Moves the stream past a layer; per role the Gram matrix of what the projection was given, per position."""
    sums = {role: NormalEquations(module.in_features, 0) for role, module in modules.items()}
    rows = 0
    for number, state in enumerate(stream.states):
        with watching(modules.items()) as seen:
            after = stream.through(index, number)
        for role, (x, _) in seen.items():
            sums[role].add(x, x[..., :0], held_out=False)  # type: ignore[index]
        rows += state.shape[0] * state.shape[1]
        stream.states[number] = after
    return {role: each.fitted.gram / rows for role, each in sums.items()}


def _curvature(model: Any, anatomy: Anatomy, batches: torch.Tensor) -> dict[tuple[int, Role], torch.Tensor]:
    """(layer, role) -> sum over positions of g gᵀ [H, H], g the gradient of the loss by the projection's output."""
    found: dict[tuple[int, Role], torch.Tensor] = {}
    half = any(parameter.dtype == torch.float16 for parameter in model.parameters())

    def take(key: tuple[int, Role]) -> Callable[[Any, Any, torch.Tensor], None]:
        def gradient(values: torch.Tensor) -> None:
            rows = values.detach().flatten(0, -2).float()
            scale = len(rows)  # the loss is a mean over positions: a gradient per position
            total = (rows * scale).T @ (rows * scale)
            found[key] = found[key] + total if key in found else total

        def seen(_: Any, __: Any, output: torch.Tensor) -> None:
            output.register_hook(gradient)  # type: ignore[no-untyped-call]

        return seen

    with _gradients_of_activations(model), ExitStack() as stack:
        for layer in anatomy.layers:
            for role, linear in projections(model, layer).items():
                stack.callback(linear.module.register_forward_hook(take((layer.index, role))).remove)
        device = model.get_input_embeddings().weight.device
        for ids in batches:
            row = ids[None].to(device)
            loss = model(input_ids=row, labels=row, use_cache=False).loss
            (loss * _HALF_SCALE if half else loss).backward()
    for (index, role), values in found.items():
        if not bool(torch.isfinite(values).all()):
            raise CannotScore(
                f"layer {index}: the gradients at {role}_proj are not finite on the calibration text: score the model "
                "in bfloat16 or float32, or look at it with gqacheck first"
            )
    return found


@contextmanager
def _gradients_of_activations(model: Any) -> Iterator[None]:
    """Within, a backward pass reaches every activation and no weight."""
    wanted = {parameter: parameter.requires_grad for parameter in model.parameters()}
    hook = model.get_input_embeddings().register_forward_hook(lambda _, __, output: output.requires_grad_())
    try:
        for parameter in wanted:
            parameter.requires_grad_(False)
        with torch.enable_grad():
            yield
    finally:
        hook.remove()
        for parameter, was in wanted.items():
            parameter.requires_grad_(was)


def _root(values: torch.Tensor) -> torch.Tensor:
    """R with RᵀR = ``values``, which is symmetric and not negative."""
    sizes, directions = torch.linalg.eigh(values.to("cpu", torch.float64))
    root: torch.Tensor = sizes.clamp(min=0).sqrt()[:, None] * directions.T
    return root


def _zeros(size: int) -> torch.Tensor | None:
    return torch.zeros(size, dtype=torch.float64) if size else None
