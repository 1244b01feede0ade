"""What a pruner under test is asked for: one small value, so plain that most pruners can answer it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from gqacheck.errors import UsageError

Part: TypeAlias = Literal["kv_groups", "queries", "mlp"]
"""``kv_groups``: KV heads, each with all of its query heads. ``queries``: equally many query heads of every KV head,
which all stay. ``mlp``: channels of the MLP, of every expert alike where there are experts."""
_WORDS = {"kv_groups": "KV groups", "queries": "query heads of every KV group", "mlp": "MLP channels"}


@dataclass(frozen=True, slots=True)
class PruningRequest:
    """A wish: this share of these parts of these layers goes, which of them being the pruner's own choice.

    ratio: of each layer's parts, from 0 to below 1. parts: what to cut; never ``kv_groups`` together with ``queries``.
    layers: (start, end), the end exclusive; None for all. seed: of whatever the pruner draws.

        >>> PruningRequest(0.25, ("kv_groups", "mlp"), layers=(4, 28))

    Raises:
        UsageError: a value that makes no sense.
    """

    ratio: float
    parts: tuple[Part, ...] = ("kv_groups", "mlp")
    layers: tuple[int, int] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.ratio < 1:
            raise UsageError(f"the ratio is {self.ratio!r}: it must be at least 0 and below 1")
        unknown = [part for part in self.parts if part not in get_args(Part)]
        if unknown or not self.parts:
            raise UsageError(f"parts is {self.parts!r}: it must name some of {', '.join(get_args(Part))}")
        if "kv_groups" in self.parts and "queries" in self.parts:
            raise UsageError("a request names kv_groups or queries, not both: then the ratio of neither would be clear")
        if self.layers is not None and not 0 <= self.layers[0] <= self.layers[1]:
            raise UsageError(f"layers is {self.layers!r}: it must be (start, end), start at least 0 and not above end")

    def __str__(self) -> str:
        where = "of all layers" if self.layers is None else f"of layers {self.layers[0]} up to {self.layers[1]}"
        parts = " and ".join(_WORDS[part] for part in self.parts)
        return f"remove {self.ratio:.3g} of the {parts} {where}, seed {self.seed}"

    def layer_range(self, n_layers: int) -> range:
        """The layers of a model with ``n_layers`` that the request is about; it may reach beyond them."""
        start, end = self.layers or (0, n_layers)
        return range(min(start, n_layers), min(end, n_layers))

    def removes(self, part: Part, size: float) -> float:
        """How many of ``size`` parts of one layer go, before rounding: at least one stays."""
        return max(0.0, min(self.ratio * size, size - 1)) if part in self.parts else 0.0
