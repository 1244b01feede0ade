"""What a pruner is asked for, and what it answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch

from pruners.chains import Heads
from pruners.plan import ModelShape, PlanError, PruningPlan

Scope: TypeAlias = Literal["uniform", "global", "isomorphic"]
Normalize: TypeAlias = Literal["cost", "raw", "layer"]
Ratio: TypeAlias = float | Sequence[float]
Range: TypeAlias = tuple[int, int]
WORTH_A_NOTE = 0.005
"""Of the parts: a smaller difference is rounding that nobody planned with."""


@dataclass(frozen=True, slots=True)
class Request:
    """What is wished for.

    ratio: share of the parts that goes, from 0 to below 1; of every layer's KV groups (query heads, for ``queries``)
        and channels alike, or one number per layer of the model. mlp_ratio: the same for MLPs alone, where it differs.
    heads: whole KV ``groups``, the same number of ``queries`` per group, or ``both``, by what costs less score.
    scope: ``uniform`` cuts every layer in range by the ratio. ``global`` ranks all parts of all layers in range
        against each other and takes the ratio of their parameters away. ``isomorphic`` ranks attention against
        attention and channels against channels, and takes the ratio of each kind.
    normalize: how parts are made comparable across layers and kinds. ``cost``: score per parameter that goes. ``raw``:
        the score itself. ``layer``: score per parameter over the block's mean, so that every block is cut in its turn.
    attention_layers, mlp_layers: (start, end), the end exclusive, None for all; start == end means none.
    channels_multiple: channels that stay are a multiple of it. experts: whether experts are cut with the MLPs.
    steps: of ``select_in_steps``. drop_layers: which layers go whole, or how many (by block influence).

    Raises:
        PlanError: a value that makes no sense.
    """

    ratio: Ratio = 0.0
    heads: Heads = "groups"
    scope: Scope = "uniform"
    attention_layers: Range | None = None
    mlp_layers: Range | None = None
    channels_multiple: int = 1
    steps: int = 1
    drop_layers: Sequence[int] | int = ()
    mlp_ratio: Ratio | None = None
    normalize: Normalize = "cost"
    experts: bool = True

    def __post_init__(self) -> None:
        for ratio in (self.ratio,) if self.mlp_ratio is None else (self.ratio, self.mlp_ratio):
            for each in ratio if isinstance(ratio, Sequence) and not isinstance(ratio, str) else (ratio,):
                if isinstance(each, bool) or not isinstance(each, int | float) or not 0 <= each < 1:
                    raise PlanError(f"the pruning ratio is {each!r}: it must be a number of at least 0 and below 1")
        if self.scope != "uniform" and any(isinstance(each, Sequence) for each in (self.ratio, self.mlp_ratio)):
            raise PlanError(
                f"a ratio for each layer leaves nothing to rank: it goes with scope uniform, not {self.scope}"
            )
        if self.scope == "global" and self.mlp_ratio is not None:
            raise PlanError(
                "scope global ranks heads and channels together: it takes one ratio, and mlp_ratio is a second"
            )
        for name, value, known in (
            ("heads", self.heads, get_args(Heads)),
            ("scope", self.scope, get_args(Scope)),
            ("normalize", self.normalize, get_args(Normalize)),
        ):
            if value not in known:
                raise PlanError(f"{name} is {value!r}: it must be one of {', '.join(known)}")
        for name, count in (("channels_multiple", self.channels_multiple), ("steps", self.steps)):
            if type(count) is not int or count < 1:
                raise PlanError(f"{name} is {count}: it must be a whole number of at least 1")
        for name, span in (("attention_layers", self.attention_layers), ("mlp_layers", self.mlp_layers)):
            if span is None:
                continue
            if not isinstance(span, Sequence) or len(span) != 2 or any(type(edge) is not int for edge in span):
                raise PlanError(f"{name} is {span!r}: it must be (start, end), two whole numbers, or None")
            if min(span) < 0 or span[0] > span[1]:
                raise PlanError(
                    f"{name} is {span[0]} to {span[1]}: it must start at 0 or later and not end before it starts "
                    "(the end is exclusive; start == end means none)"
                )


@dataclass(frozen=True, slots=True)
class Selection:
    """A plan, and in sentences where it is not to the letter what was asked for."""

    plan: PruningPlan
    notes: tuple[str, ...] = ()


def percent(share: float) -> str:
    """0.174 as ``17.4 %``."""
    return f"{100 * share:.3g} %"


def clamped(name: str, span: tuple[int, int] | None, n_layers: int, notes: list[str]) -> range:
    """The layers of a span, and a note where the model has fewer."""
    if span is None:
        return range(n_layers)
    start, end = span
    if start < end and end > n_layers:
        left = f"layers {start}-{n_layers - 1} are cut" if start < n_layers else "none is cut"
        notes.append(f"{name} {start}-{end} (the end exclusive) reaches beyond the model's {n_layers} layers: {left}")
    return range(min(start, n_layers), min(end, n_layers))


def dropped_layers(shape: ModelShape, request: Request, influence: torch.Tensor | None) -> frozenset[int]:
    """The layers that go whole.

    Raises:
        PlanError: there are no such layers, or a number is asked for and no block influence given.
    """
    asked = request.drop_layers
    if not isinstance(asked, Sequence) and type(asked) is not int:
        raise PlanError(f"drop_layers is {asked!r}: it must be how many, or a list of which")
    if isinstance(asked, int):
        if not 0 <= asked < shape.n_layers:
            raise PlanError(
                f"{asked} layers are to be dropped of {shape.n_layers}: it must be 0 to {shape.n_layers - 1}"
            )
        if not asked:
            return frozenset()
        if influence is None or len(influence) != shape.n_layers:
            raise PlanError(f"to drop {asked} layers, say which, or give the block influence of all {shape.n_layers}")
        return frozenset(influence.argsort(stable=True)[:asked].tolist())
    for layer in asked:
        if type(layer) is not int or not 0 <= layer < shape.n_layers:
            raise PlanError(f"layer {layer} is to be dropped, and the model has layers 0-{shape.n_layers - 1}")
    return frozenset(asked)
