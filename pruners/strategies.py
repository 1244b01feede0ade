"""What is asked of a pruner: a strategy and what the flags change of it, before anything is known of the model.

The three strategies are those that people settled on for a 28-layer, 7:1 model; their layer ranges are shares of the
depth here, so that they mean the same on any other model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gqacheck.errors import UsageError

Range = tuple[int, int]
DEPTH = 28
"""Layers of the model that the strategies' ranges are written for."""
TAYLOR = ("param_first", "param_second", "param_mix", "vectorize")
METHODS = ("l2", "l1", "random", "taylor", "wanda", "fluctuation", "least-squares")
PRUNER_TYPES = METHODS[:4]
HEADS = ("groups", "queries", "both")
CALIBRATED = frozenset(("taylor", "wanda", "fluctuation", "least-squares"))
"""Methods that read text."""
_LLM_PRUNER_RANGE = (3, 31)
_LAYERS_ALONE = (
    "--layer_wise looks at no --pruning_ratio, as in LLM-Pruner: whole layers go (--ratio cuts the others too)"
)


@dataclass(frozen=True, slots=True)
class Strategy:
    """Shares to cut and where. mlp, attention: ranges of ``DEPTH`` layers, the end exclusive; equal ends: none.

    expected: what its authors expect of it on Qwen2.5-7B (7:1, 28 layers), before fine-tuning.
    """

    name: str
    ratio: float
    mlp: Range
    attention: Range
    summary: str
    expected: str = ""


STRATEGIES: Mapping[str, Strategy] = {
    strategy.name: strategy
    for strategy in (
        Strategy(
            "mlp-only",
            0.25,
            (4, 28),
            (28, 28),
            "no head is touched: the safest",
            "15-20 % of the parameters, PPL up to 10 % higher",
        ),
        Strategy(
            "conservative", 0.20, (4, 28), (10, 24), "attention in the middle only", "20-25 %, PPL 10-20 % higher"
        ),
        Strategy(
            "aggressive", 0.25, (4, 28), (4, 28), "everything but the first layers", "25-30 %, PPL 20-50 % higher"
        ),
        Strategy("per-layer", 0.25, (0, 28), (0, 28), "each layer its own share: most where least is lost"),
    )
}


@dataclass(frozen=True, slots=True)
class Ask:
    """Everything that decides a plan, as it was asked for; ``given`` of a command line made whole.

    ratio: one share, or one for each layer. attention, mlp: ranges of the model's own layers; None takes the
    strategy's, scaled. drop_layers: which, or how many of those that do least. keep_first: of ``--layer_wise``.
    sensitivity: the share of each layer is to be found, ``ratio`` on average. block_wise: LLM-Pruner's ranges where
    nothing else says any. parameters: share of all parameters to remove, by which ``ratio`` is found. notes: what was
    said and is not looked at. normalize: of the ranking (see ``Request``); LLM-Pruner compares scores as they are.
    """

    strategy: str | None
    method: str
    taylor: str
    ratio: float | tuple[float, ...]
    attention: tuple[int | None, int | None] = (None, None)
    mlp: tuple[int | None, int | None] = (None, None)
    heads: str = "groups"
    scope: str = "uniform"
    steps: int = 1
    channels_multiple: int = 1
    drop_layers: tuple[int, ...] | int = ()
    keep_first: int | None = None
    sensitivity: bool = False
    block_wise: bool = False
    parameters: float | None = None
    notes: tuple[str, ...] = ()
    normalize: str = "cost"

    @property
    def method_name(self) -> str:
        """``taylor/param_first``, ``wanda``."""
        return f"{self.method}/{self.taylor}" if self.method == "taylor" else self.method

    @property
    def widths(self) -> bool:
        """Whether heads or channels are asked for, not layers alone."""
        return self.ratio != 0 or self.parameters is not None

    def ranges(self, n_layers: int) -> tuple[Range, Range]:
        """Layers whose attention is cut, and whose MLP is cut, of a model of ``n_layers``; ends may lie beyond it.

        Raises:
            UsageError: one is reversed once both its ends are known.
        """
        found = []
        strategy = STRATEGIES[self.strategy] if self.strategy else None
        for block, (start, end) in (("attention", self.attention), ("mlp", self.mlp)):
            usual = _LLM_PRUNER_RANGE if self.block_wise else (0, n_layers)
            if strategy is not None:
                usual = scaled(strategy.attention if block == "attention" else strategy.mlp, n_layers)
            found.append(_checked(block, usual[0] if start is None else start, usual[1] if end is None else end))
        return found[0], found[1]

    def told(self) -> dict[str, Any]:
        """For ``pruning_plan.json``."""
        return {
            "strategy": self.strategy,
            "parameters": self.parameters,
            "method": self.method_name,
            "ratio": list(self.ratio) if isinstance(self.ratio, tuple) else self.ratio,
            "heads": self.heads,
            "scope": self.scope,
            "steps": self.steps,
            "channels_multiple": self.channels_multiple,
        }


def scaled(span: Range, n_layers: int) -> Range:
    """A range of ``DEPTH`` layers on a model of ``n_layers``: each end n/28 of the depth, halves rounded up.

    >>> scaled((10, 24), 28), scaled((10, 24), 32), scaled((10, 24), 6)
    ((10, 24), (11, 27), (2, 5))
    """
    start, end = ((2 * edge * n_layers + DEPTH) // (2 * DEPTH) for edge in span)
    return start, end


def ask_of(given: Mapping[str, Any]) -> Ask:
    """What the options ``given`` ask for, by the names that they have in ``pruners.flags``.

    Raises:
        UsageError: they contradict each other, or say nothing to cut.
    """
    strategy = given.get("strategy")
    _refuse_unsaid(given, strategy)
    known = STRATEGIES[strategy] if strategy else None
    method, taylor = _method(given, strategy)
    ratio = _ratio(given, known)
    attention = (given.get("block_attention_layer_start"), given.get("block_attention_layer_end"))
    mlp = (given.get("block_mlp_layer_start"), given.get("block_mlp_layer_end"))
    for block, (start, end) in (("attention", attention), ("mlp", mlp)):
        if start is not None and end is not None:
            _checked(block, start, end)
    if strategy == "per-layer" and (given.get("global_pruning") or given.get("scope", "uniform") != "uniform"):
        raise UsageError(
            "--strategy per-layer says what each layer loses, which leaves --scope nothing to rank: drop one"
        )
    sensitivity = strategy == "per-layer" and not isinstance(ratio, tuple)
    return Ask(
        strategy,
        method,
        taylor,
        ratio,
        attention,
        mlp,
        given.get("heads", "groups"),
        "global" if given.get("global_pruning") else given.get("scope", "uniform"),
        given.get("iterative_steps", 1),
        given.get("channels_multiple", 1),
        given.get("drop_layers", ()),
        given.get("layer", 12) if given.get("layer_wise") else None,
        sensitivity,
        bool(given.get("block_wise")),
        given.get("parameters"),
        (_LAYERS_ALONE,) if _layers_alone(given, strategy) and given.get("pruning_ratio") else (),
        "raw" if given.get("global_pruning") else "cost",
    )


def _refuse_unsaid(given: Mapping[str, Any], strategy: str | None) -> None:
    """Nothing, when there is something to cut and it is something that is cut here."""
    if given.get("channel_wise"):
        raise UsageError(
            "--channel_wise cuts the hidden size, which every layer, norm and the embedding share; that is not done "
            "here: cut heads and channels with --block_wise, or layers with --layer_wise or --drop-layers"
        )
    grouping = given.get("grouping_strategy", "sum")
    if grouping != "sum":
        raise UsageError(
            f"--grouping_strategy {grouping} is not done here: a KV group's score is the sum of its own query heads' "
            "and its KV head's (sum)"
        )
    if given.get("layer_wise") and given.get("block_wise"):
        raise UsageError("--layer_wise keeps whole layers and --block_wise cuts inside them: choose one")
    if given.get("layer_wise") and given.get("drop_layers"):
        raise UsageError("--layer_wise keeps the first --layer N layers and --drop-layers names others: choose one")
    if given.get("layer") is not None and not given.get("layer_wise"):
        raise UsageError("--layer says how many layers --layer_wise keeps: give both, or --drop-layers")
    if given.get("global_pruning") and given.get("scope", "global") != "global":
        raise UsageError(f"--global_pruning is --scope global, and --scope {given['scope']} was given too")
    shares = [name for name in ("ratio", "pruning_ratio", "parameters") if name in given]
    if "parameters" in shares and len(shares) > 1:
        raise UsageError(f"--parameters finds the ratio by what it removes, and --{shares[0]} says one: leave one out")
    if "parameters" in shares and (given.get("iterative_steps", 1) > 1 or strategy == "per-layer"):
        raise UsageError("--parameters goes with one step and one ratio for all layers")
    wanted = bool(shares)
    ways = ("block_wise", "layer_wise", "drop_layers")
    if strategy is None and not wanted and not any(given.get(key) for key in ways):
        raise UsageError(
            f"nothing says what to cut: --strategy {'|'.join(STRATEGIES)}, --ratio R, --drop-layers N, --plan FILE, or "
            "LLM-Pruner's --block_wise"
        )


def _method(given: Mapping[str, Any], strategy: str | None) -> tuple[str, str]:
    kind, method = given.get("pruner_type"), given.get("method")
    if kind is not None and method is not None and kind != method:
        raise UsageError(f"--method {method} and --pruner_type {kind} contradict each other: give one")
    usual = "l2" if strategy is None and given.get("block_wise") and "taylor" not in given else "taylor"
    chosen = method or kind or usual
    if "taylor" in given and chosen != "taylor":
        raise UsageError(f"--taylor {given['taylor']} says which Taylor score, and the method is {chosen}: give one")
    return chosen, given.get("taylor", TAYLOR[0])


def _layers_alone(given: Mapping[str, Any], strategy: object) -> bool:
    """Whether this is LLM-Pruner's ``--layer_wise``, which looks at no ratio."""
    return bool(given.get("layer_wise")) and strategy is None and "ratio" not in given


def _ratio(given: Mapping[str, Any], strategy: Strategy | None) -> float | tuple[float, ...]:
    one, other = given.get("ratio"), None if _layers_alone(given, strategy) else given.get("pruning_ratio")
    if one is not None and other is not None and one != other:
        raise UsageError("--ratio and --pruning_ratio are the same option, and were given with different values")
    ratio = one if one is not None else other
    if ratio is None:
        if strategy is not None:
            return strategy.ratio
        return 0.5 if given.get("block_wise") else 0.0  # 0.5 is LLM-Pruner's; layers alone are dropped otherwise
    if isinstance(ratio, tuple) and (strategy is None or strategy.name != "per-layer"):
        raise UsageError(f"--ratio with {len(ratio)} values is one for each layer, which is --strategy per-layer")
    found: float | tuple[float, ...] = ratio
    return found


def _checked(block: str, start: int, end: int) -> Range:
    if start > end:
        raise UsageError(
            f"--block_{block}_layer_start {start} lies behind --block_{block}_layer_end {end} (the end is exclusive; "
            "equal ones mean no layer)"
        )
    return start, end
