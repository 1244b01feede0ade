"""Importance from gradients: what the loss is expected to lose with a weight, added up over the lines of a part.

The formulas are those of LLM-Pruner (horseee/LLM-Pruner, ``TaylorImportance`` in LLMPruner/pruner/hf_llama_pruner.py
and the loop in hf_prune.py), with g the gradient of the mean loss over all examples and h the mean over the examples
of the squared gradient of each one's own loss (there ``acc_grad``), a diagonal of the Fisher information:

    param_first   sum over a line of |w g|            param_second  sum over a line of |w² h|
    param_mix     sum over a line of |w g - w² h / 2| vectorize     |sum over a line of w g|

A line is a row of q, k, v, gate and up and a column of o and down; the lines of a head and the roles of a group are
added (``grouping_strategy sum``). Biases, which LLM-Pruner leaves out, count as lines of one element.

Memory: a gradient is used and freed the moment the backward pass has made it, one example at a time. ``param_second``
adds up scores and keeps no gradient at all; ``param_first`` and ``vectorize`` keep one sum in float32, as ``.grad``
would; ``param_mix`` keeps two. A float16 model's loss is scaled so that small gradients survive the backward pass,
and the scale is lowered where it overflows; squares are taken in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, get_args

import torch

from pruners.anatomy import Anatomy, LayerAnatomy, Lines, dissect
from pruners.calibration import require_batches
from pruners.quiet import in_eval_mode
from pruners.scores import CannotScore, Importance, by_part, gather, require_weights, scored_lines

TaylorKind: TypeAlias = Literal["param_first", "param_second", "param_mix", "vectorize"]
TAYLOR_KINDS: tuple[TaylorKind, ...] = get_args(TaylorKind)
_HALF_SCALES = tuple(2.0**power for power in (20, 16, 12, 8, 4, 0, -4, -8))
_SQUARE_SCALE = 2.0**32
"""Gradients are multiplied by this before they are squared into float32, which holds no square below 1e-45."""


def taylor(model: Any, batches: torch.Tensor, kind: TaylorKind = "param_first") -> Importance:
    """The Taylor importance of every part on ``batches`` [examples, positions] of token ids.

    The model comes back as it was: gradients, frozen parameters, training mode and hooks of its own included.

    Raises:
        CannotPrune: the model is broken already, or of a kind whose parts are not known.
        CannotScore: a weight has no values or is quantised, or the loss or a gradient is not finite.
        CalibrationError: the batches are empty, too short, or hold ids that the model does not know.
        ValueError: another ``kind``.
    """
    if kind not in TAYLOR_KINDS:
        raise ValueError(f"kind must be one of {', '.join(TAYLOR_KINDS)}, not {kind!r}")
    anatomy = dissect(model)
    require_weights(model, anatomy)
    require_batches(model, batches)
    half = any(parameter.dtype == torch.float16 for parameter in model.parameters())
    for scale in _HALF_SCALES if half else (1.0,):
        tally = _Tally(model, anatomy, kind, len(batches), scale)
        if _run(model, batches, tally):
            break
    else:
        raise CannotScore(
            f"the gradients of this {'float16 ' if half else ''}model are not finite on the calibration text"
            + (", even with the loss scaled down: score it in bfloat16 or float32" if half else "")
        )

    def score(layer: LayerAnatomy, number: int, lines: Lines) -> torch.Tensor | None:
        return tally.score(layer, number, lines)

    return gather(anatomy, score, f"taylor/{kind}")


@dataclass(slots=True)
class _Tally:
    """Takes gradients, scaled by ``scale``, parameter by parameter and example by example."""

    model: Any
    anatomy: Anatomy
    kind: TaylorKind
    n_examples: int
    scale: float
    sums: dict[str, torch.Tensor] = field(default_factory=dict)
    squares: dict[str, torch.Tensor] = field(default_factory=dict)
    scores: dict[tuple[int, int], torch.Tensor] = field(default_factory=dict)
    users: dict[str, list[tuple[int, int, Lines]]] = field(default_factory=dict)
    finite: bool = True

    def __post_init__(self) -> None:
        for layer in self.anatomy.layers:
            for number, lines in scored_lines(layer):
                self.users.setdefault(lines.parameter, []).append((layer.index, number, lines))

    def take(self, name: str, gradient: torch.Tensor) -> None:
        """One example's gradient of one parameter."""
        if not self.finite or not bool(torch.isfinite(gradient).all()):
            self.finite = False
            return
        if self.kind == "param_second":
            for layer, number, lines in self.users[name]:
                mine = gradient if lines.expert is None else gradient[lines.expert]
                found = by_part(lines, _second, lines.view(self.model), mine)
                found /= self.scale**2 * self.n_examples
                before = self.scores.get((layer, number))
                self.scores[layer, number] = found if before is None else before + found
            return
        wide = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
        _add(self.sums, name, wide / (self.scale * self.n_examples))
        if self.kind == "param_mix":
            wide = wide * (_SQUARE_SCALE / self.scale)
            _add(self.squares, name, wide.square_() / self.n_examples)

    def score(self, layer: LayerAnatomy, number: int, lines: Lines) -> torch.Tensor | None:
        """Of these lines, by part; None where no gradient came, as for an expert that no token reached."""
        if self.kind == "param_second":
            return self.scores.get((layer.index, number))
        if lines.parameter not in self.sums:
            return None
        values = [lines.view(self.model)]
        for gathered in (self.sums, self.squares) if self.kind == "param_mix" else (self.sums,):
            whole = gathered[lines.parameter]
            values.append(whole if lines.expert is None else whole[lines.expert])
        return by_part(lines, _FORMULAS[self.kind], *values)


def _add(sums: dict[str, torch.Tensor], name: str, values: torch.Tensor) -> None:
    if name in sums:
        sums[name] += values
    else:
        sums[name] = values


def _first(w: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    return (w * g).abs_().sum((1, 2))


def _second(w: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    return (w * g).square_().sum((1, 2))


def _mix(w: torch.Tensor, g: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    return (w * g - w * w * h / (2 * _SQUARE_SCALE**2)).abs_().sum((1, 2))


def _vectorize(w: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    return (w * g).sum(2).abs_().sum(1)


_FORMULAS: Mapping[TaylorKind, Callable[..., torch.Tensor]] = {
    "param_first": _first,
    "param_mix": _mix,
    "vectorize": _vectorize,
}


def _run(model: Any, batches: torch.Tensor, tally: _Tally) -> bool:
    """Hands ``tally`` every example's gradients; False when some were not finite."""
    device = model.get_input_embeddings().weight.device
    with in_eval_mode(model), _handing_gradients(model, tally), torch.inference_mode(False), torch.enable_grad():
        for ids in batches:
            loss = next_token_loss(model, ids[None].to(device).clone())
            if not bool(torch.isfinite(loss)):
                raise CannotScore("the model's loss on the calibration text is not finite: look at it with gqacheck")
            (loss * tally.scale).backward()  # type: ignore[no-untyped-call]
            if not tally.finite:
                return False
    return True


def next_token_loss(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy of the next token over ``ids`` [examples, positions], in float32 or wider."""
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return torch.nn.functional.cross_entropy(wide.flatten(0, 1), ids[:, 1:].to(wide.device).flatten())


@contextmanager
def _handing_gradients(model: Any, tally: _Tally) -> Iterator[None]:
    """Within, a backward pass makes the gradients of scored parameters only, and none of them stays."""
    parameters = dict(model.named_parameters())
    before = {name: (parameter.requires_grad, parameter.grad) for name, parameter in parameters.items()}
    hooks = []

    def hand(name: str) -> Callable[[torch.Tensor], None]:
        def take(parameter: torch.Tensor) -> None:
            gradient, parameter.grad = parameter.grad, None
            if gradient is not None:
                with torch.no_grad():
                    tally.take(name, gradient)

        return take

    try:
        for name, parameter in parameters.items():
            parameter.grad = None
            parameter.requires_grad_(name in tally.users)
            if name in tally.users:
                hooks.append(parameter.register_post_accumulate_grad_hook(hand(name)))
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for name, parameter in parameters.items():
            needed, gradient = before[name]
            parameter.requires_grad_(needed)
            parameter.grad = gradient
