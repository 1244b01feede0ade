"""After the cut: o_proj and down_proj rewritten so that what is left does the work of what is gone.

Layer by layer from below, each projection's weights change by the least squares solution of what its output lacks on
calibration text, given what the cut layers below it now make of that text. What it lacks is by default what the
*residual stream* after it lacks of the parent's, so every layer also mends what the layers below could not. Where a
layer normalises a block's output before it is added (Gemma-2 and 3, OLMo-2, GLM-4), the stream is no linear function of
that output; the block's output is then fitted to the parent's. Experts are left alone.

A quarter of the windows is held out of the fit. They choose between several ridges and leaving a projection as it is,
on weights as they will be stored; so no projection gets worse on text that it was not fitted to. The choice made, all
windows are fitted.

Memory beside the two models: four residual streams, each windows x positions x hidden_size, two in the models' dtype
and two in float32; and for the projection in hand about 40 * K * (K + H) bytes on the CPU, of K inputs and H outputs.
Activations are summed up batch by batch, and never kept. Time: a layer runs once in the parent and at most three times
in the child, and each ridge costs a K³ factorisation; linear in the number of layers and of windows.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch
from torch import nn

from gqacheck.errors import UsageError
from pruners.anatomy import Anatomy, LayerAnatomy, dissect
from pruners.calibration import CalibrationError, require_batches
from pruners.layerwise import Stream, no_further_than, watching
from pruners.normal_equations import NormalEquations
from pruners.plan import PruningPlan
from pruners.quiet import in_eval_mode

__all__ = ["RIDGES", "Reconstruction", "Rewrite", "reconstruct"]

Target: TypeAlias = Literal["residual", "block"]
Role: TypeAlias = Literal["o", "down"]
RIDGES = (1e-5, 1e-4, 1e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
_ROLES: tuple[Role, ...] = ("o", "down")
_SAME = 0.1
"""The stream is made as thought when the rest is below this share of what a layer adds: half precision rounds it."""
HELD_OUT = 4
"""One window in so many is held out of the fit."""
_WORTH = 1e-6
"""A held-out error must fall by this share of what the projection is to give: below it is rounding."""


@dataclass(frozen=True, slots=True)
class Rewrite:
    """What became of one projection. layer: the parent's number. target: what it was fitted to.

    ridge: None where it was left as it was. before, after: squared error on the held-out windows, as a share of the
    squared output of the parent's block.
    """

    layer: int
    role: Role
    parameter: str
    target: Target
    ridge: float | None
    before: float
    after: float


@dataclass(frozen=True, slots=True)
class Reconstruction:
    """What was rewritten, from below, and on how many windows [windows, positions] of which ``held_out`` judged."""

    rewrites: tuple[Rewrite, ...]
    windows: int
    positions: int
    held_out: int

    @property
    def told(self) -> str:
        """One line for a user."""
        done = sum(each.ridge is not None for each in self.rewrites)
        return (
            f"{done} of {len(self.rewrites)} o_proj and down_proj rewritten by least squares on {self.windows} windows "
            f"of {self.positions} positions, {self.held_out} of them held out to judge"
        )


@torch.no_grad()
def reconstruct(
    child: Any,
    parent: Any,
    plan: PruningPlan,
    batches: torch.Tensor,
    *,
    target: Target = "residual",
    roles: Sequence[Role] = ("o", "down"),
    ridges: Sequence[float] = RIDGES,
    batch_size: int = 8,
) -> Reconstruction:
    """Rewrites ``child``, which ``plan`` made of ``parent``, in place. ``parent`` stays as it is.

    batches: token ids [windows, positions] of calibration text, best 64 windows or more; held-out text must not be
    among it. Also an MLP or attention that was not cut is rewritten, where that mends the stream. Where layers were
    dropped, the layer below them is fitted to what the parent has above them.

        >>> child = prune(copy.deepcopy(parent), plan)
        ... reconstruct(child, parent, plan, batches).told  # doctest: +SKIP

    Raises:
        CalibrationError: the batches are fewer than 2 windows, or hold ids that the model does not know.
        PlanError: the plan was made for another parent.
        UsageError: the child is not of the shape that the plan leaves, or a ridge is not above 0.
        CannotPrune: a model is broken already, or of a kind whose parts are not known.
    """
    theirs, mine = dissect(parent), dissect(child)
    require_child(plan, theirs, mine)
    if not ridges or min(ridges) <= 0:
        raise UsageError(f"ridges must be above 0, not {tuple(ridges)}")
    require_batches(parent, batches)
    if len(batches) < 2:
        raise CalibrationError(f"reconstruction needs 2 windows or more, to hold one out, and there is {len(batches)}")
    fitted, judges = _split(batches)
    lots = [lot for part in (fitted, judges) for lot in torch.split(part, batch_size)]
    job = _Job(parent, child, target, tuple(roles), tuple(ridges), -(-len(fitted) // batch_size))
    rewrites: list[Rewrite] = []
    with in_eval_mode(parent), in_eval_mode(child):
        above, below = Stream(parent, theirs, lots), Stream(child, mine, lots)
        for span in _spans(plan):
            rewrites += job.layer(span, above, below, theirs.layers[span.own], mine.layers[span.child])
    return Reconstruction(tuple(rewrites), len(batches), batches.shape[1], len(judges))


def _split(batches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The windows to fit and those that are held out: the last one of every four, and at least one."""
    judges = torch.arange(len(batches)) % HELD_OUT == HELD_OUT - 1
    judges[-1] |= not bool(judges.any())
    return batches[~judges], batches[judges]


@dataclass(frozen=True, slots=True)
class _Span:
    """A layer that stays (``own`` in the parent, ``child`` in the child) and the dropped ones before and after it."""

    before: range
    own: int
    child: int
    after: range


def _spans(plan: PruningPlan) -> Iterator[_Span]:
    kept = plan.kept_layers
    for child, own in enumerate(kept):
        until = kept[child + 1] if child + 1 < len(kept) else len(plan.layers)
        yield _Span(range(own if child == 0 else 0), own, child, range(own + 1, until))


@dataclass(slots=True)
class _Wanted:
    """What the child's layer is to give, from the parent's, per batch.

    scale: of a block's output where it is added to the stream; None: it is not just added. after: per role the stream
    after that block, or the block's own output where ``scale`` is None. sizes: of the block's output on held-out text.
    """

    scale: float | None = None
    after: dict[Role, list[torch.Tensor]] = field(default_factory=lambda: {"o": [], "down": []})
    sizes: dict[Role, float] = field(default_factory=lambda: {"o": 0.0, "down": 0.0})


@dataclass(frozen=True, slots=True)
class _Job:
    """What is the same for all layers. first_judge: the first batch that is held out."""

    parent: Any
    child: Any
    target: Target
    roles: tuple[Role, ...]
    ridges: tuple[float, ...]
    first_judge: int

    def layer(
        self, span: _Span, above: Stream, below: Stream, theirs: LayerAnatomy, mine: LayerAnatomy
    ) -> Iterator[Rewrite]:
        """Rewrites one layer, and moves both streams past it."""
        for index in span.before:
            above.advance(index)
        wanted = self._look_up(span, above, theirs)
        linears = projections(self.child, mine)
        for role in _ROLES:
            if role in self.roles and role in linears and wanted.after[role]:
                yield self._rewrite(role, span, below, linears, wanted)
        below.advance(span.child)

    def _look_up(self, span: _Span, above: Stream, theirs: LayerAnatomy) -> _Wanted:
        """Moves the parent's stream past the layer, and past the dropped ones after it."""
        linears = projections(self.parent, theirs)
        modules = {role: linear.module for role, linear in linears.items()}
        norms = {norm.tensor: self.parent.get_submodule(norm.tensor.rpartition(".")[0]) for norm in theirs.layer.norms}
        wanted = _Wanted()
        for number, before in enumerate(above.states):
            with watching([*modules.items(), *norms.items()]) as seen:
                after = above.through(span.own, number)
            outputs = {role: seen[role][1] for role in modules}
            if number == 0 and self.target == "residual":
                wanted.scale = scale_of(
                    self.parent, before, after, outputs, [seen[name][0] for name in norms if name in seen]
                )
            for role, output in outputs.items():
                made = [outputs[each] for each in _up_to(role, outputs)]
                wanted.after[role].append(_stream(before, made, wanted.scale) if wanted.scale else output)
                if number >= self.first_judge:
                    wanted.sizes[role] += float(output.float().square().sum())
            above.states[number] = after
        for index in span.after:
            above.advance(index)
        if wanted.scale and "down" in modules and span.after:
            wanted.after["down"] = [state.to(_wide(state)) for state in above.states]
        return wanted

    def _rewrite(
        self, role: Role, span: _Span, below: Stream, linears: Mapping[Role, ReadOut], wanted: _Wanted
    ) -> Rewrite:
        linear = linears[role]
        sums = NormalEquations(linear.module.in_features, linear.module.out_features, linear.module.bias is not None)
        modules = {each: linears[each].module for each in _up_to(role, linears)}
        for number, before in enumerate(below.states):
            with watching(modules.items()) as seen, no_further_than(linear.module):
                below.through(span.child, number)
            x, output = seen[role]
            target = wanted.after[role][number].to(output.device)
            if wanted.scale:
                missing = (target - _stream(before, [out for _, out in seen.values()], wanted.scale)) / wanted.scale
            else:
                missing = target - output
            sums.add(x, missing, held_out=number >= self.first_judge)
        ridge, before_, after = _settle(linear.module, sums, self.ridges, wanted.sizes[role])
        return Rewrite(span.own, role, linear.name, "residual" if wanted.scale else "block", ridge, before_, after)


@dataclass(frozen=True, slots=True)
class ReadOut:
    """A Linear that writes to the residual stream. name: of its weight."""

    name: str
    module: nn.Linear


def projections(model: Any, layer: LayerAnatomy) -> dict[Role, ReadOut]:
    """o_proj and the dense MLP's down_proj of one layer, where it has them as plain Linears."""
    found: dict[Role, ReadOut] = {}
    for lines in layer.lines:
        if lines.role in _ROLES and lines.owner is None and lines.parameter.endswith(".weight"):
            module = model.get_submodule(lines.parameter.rpartition(".")[0])
            if isinstance(module, nn.Linear):
                found["o" if lines.role == "o" else "down"] = ReadOut(lines.parameter, module)
    return found


def _up_to(role: Role, present: Container[str]) -> list[Role]:
    """The roles that are in the stream after ``role`` was added; of parallel blocks, o counts as the first."""
    return [each for each in (_ROLES if role == "down" else _ROLES[:1]) if each in present]


def scale_of(
    model: Any,
    before: torch.Tensor,
    after: torch.Tensor,
    outputs: Mapping[Role, torch.Tensor],
    normed: Sequence[torch.Tensor],
) -> float | None:
    """What a block's output is multiplied by when it is added to the stream; None when something else is done to it.

    Measured, not believed: the layer's output, or what one of its norms is given, must be the stream so made.
    normed: what the layer's norms are given.
    """
    if not outputs or any(
        each.shape == output.shape and torch.equal(each, output) for each in normed for output in outputs.values()
    ):
        return None
    stated = getattr(model.config, "residual_multiplier", None)
    scale = float(stated) if isinstance(stated, int | float) and stated else 1.0
    made = _stream(before, [outputs[role] for role in _up_to("down", outputs)], scale)
    change = (made - before).norm()
    candidates = [after, *(each for each in normed if each.shape == before.shape)]
    nearest = min(float((each.to(made.dtype) - made).norm() / change) for each in candidates)
    return scale if nearest < _SAME else None


def _stream(before: torch.Tensor, outputs: Iterable[torch.Tensor], scale: float) -> torch.Tensor:
    made = before.to(_wide(before))
    for output in outputs:
        made = made + scale * output.to(made.dtype)
    return made


def _wide(values: torch.Tensor) -> torch.dtype:
    return torch.float64 if values.dtype == torch.float64 else torch.float32


def _settle(
    module: nn.Linear, sums: NormalEquations, ridges: Sequence[float], size: float
) -> tuple[float | None, float, float]:
    """Rewrites ``module`` with the ridge that held-out rows choose, or not: the ridge, the error before and after."""
    start = sums.held_out.missing
    best: tuple[float, float | None] = (start - _WORTH * size, None)
    for ridge in ridges if start > 0 else ():
        change = sums.change(ridge)
        if change is not None:
            weight, bias = _changed(module, change)
            best = min(
                best, (sums.held_out.error(_difference(module, weight, bias)), ridge), key=lambda found: found[0]
            )
    size = size or 1.0
    chosen = best[1]
    change = None if chosen is None else sums.change(chosen, everything=True)
    if change is None:
        return None, start / size, start / size
    weight, bias = _changed(module, change)
    module.weight.data = weight
    if bias is not None:
        module.bias.data = bias
    return chosen, start / size, best[0] / size


def _changed(module: nn.Linear, change: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The weight and bias with ``change`` [K, H] added, rounded to their dtype once."""
    columns = module.in_features
    weight = (module.weight.data.to("cpu", torch.float64) + change[:columns].T).to(module.weight)
    if module.bias is None:
        return weight, None
    return weight, (module.bias.data.to("cpu", torch.float64) + change[columns]).to(module.bias)


def _difference(module: nn.Linear, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """What a rounded change really is [K, H]."""
    change = (weight.to("cpu", torch.float64) - module.weight.data.to("cpu", torch.float64)).T
    if bias is None:
        return change
    return torch.cat((change, (bias.to("cpu", torch.float64) - module.bias.data.to("cpu", torch.float64))[None]))


def require_child(plan: PruningPlan, theirs: Anatomy, mine: Anatomy) -> None:
    """Nothing, when ``plan`` makes of the parent what the child is.

    Raises:
        PlanError: the plan was made for another parent.
        UsageError: the child is not of the shape that the plan leaves.
    """
    plan.require_fit(theirs.shape)
    if mine.shape.layers != plan.child.layers:
        raise UsageError("the child is not what the plan makes of its parent: cut it with the same plan first")
