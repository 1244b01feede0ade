"""What ``gqaprune`` decides: the text it reads, the scores, and the plan that follows from what is asked."""

from __future__ import annotations

import copy
import hashlib
import os
from dataclasses import dataclass, replace
from typing import Any

import torch

from gqacheck.errors import UsageError
from gqacheck.text import printable
from pruners.anatomy import CannotPrune, dissect
from pruners.calibration import calibration_batches, calibration_text
from pruners.importance import Importance, block_influence, fluctuation, magnitude, random_importance, taylor, wanda
from pruners.order import Order
from pruners.plan import ModelShape, PruningPlan
from pruners.request import Request
from pruners.save import Progress
from pruners.select_by_error import least_squares_error
from pruners.selection import for_parameters, select, select_in_steps
from pruners.sensitivity import measure_sensitivity
from pruners.strategies import CALIBRATED, Ask

_REFIT_WINDOWS, _ERROR_WINDOWS = 128, 64
"""Windows to refit on and to choose by what refitting leaves, where the text has as many; few are learnt by heart."""


@dataclass(frozen=True, slots=True)
class Found:
    """A plan, and how it was found."""

    plan: PruningPlan
    scored: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Text:
    """Token ids [windows, positions] to score on and to refit on (None: not needed), and the text's SHA-256."""

    score: torch.Tensor | None = None
    refit: torch.Tensor | None = None
    fingerprint: str = ""


def calibrate(order: Order, tokenizer: Any) -> Text:
    """What is read of the calibration text; nothing where nothing reads it."""
    ask = order.ask
    scores = ask is not None and (
        (ask.widths and ask.method in CALIBRATED)
        or ask.sensitivity
        or (type(ask.drop_layers) is int and ask.drop_layers > 0)
    )
    if not scores and not order.reconstruct:
        return Text()
    from gqacheck.runtime.quiet import quiet_and_offline

    if tokenizer is None:
        raise CannotPrune(
            f"{printable(order.base)} has no tokenizer to read the calibration text with: --method l2 needs none"
        )
    text = calibration_text(order.calibration)
    with quiet_and_offline():  # a tokenizer remarks on the length of every text
        solves = ask is not None and ask.method == "least-squares"
        room = 0
        if order.reconstruct or solves:
            room = len(tokenizer(text, add_special_tokens=False)["input_ids"]) // order.seq_len

        def windows(wanted: int) -> torch.Tensor:
            n = max(order.n_examples, min(wanted, room))
            return calibration_batches(tokenizer, text, n_examples=n, seq_len=order.seq_len, seed=order.seed)

        score = windows(_ERROR_WINDOWS if solves else 0) if scores else None
        refit = windows(_REFIT_WINDOWS) if order.reconstruct else None
    return Text(score, refit, hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest())


def text_words(order: Order, text: Text) -> str:
    """What was read to score, for the end of a sentence."""
    if text.score is None:
        return ""
    name = printable(os.path.basename(order.calibration) or order.calibration, 60)
    return f", {len(text.score)} × {order.seq_len} tokens of {name} (sha256 {text.fingerprint[:12]}), seed {order.seed}"


def same_text(order: Order) -> list[str]:
    """A sentence where perplexity is measured on the text that the cut was chosen or refitted by."""
    reads = order.reconstruct or (order.ask is not None and order.ask.method in CALIBRATED)
    for name in dict.fromkeys((*order.before, *order.after)):
        if reads and name.partition("@")[0] == order.calibration:
            return [
                f"perplexity is measured on {printable(name, 80)}, which the cut was chosen by: a text of its own "
                "(--ppl FILE, or --calibration FILE) tells more"
            ]
    return []


def choose(order: Order, model: Any, batches: torch.Tensor | None, progress: Progress | None) -> Found:
    """The plan that is asked for; cut in steps, each on a model scored anew."""
    ask = order.ask
    assert ask is not None
    shape = dissect(model).shape
    ranges = ask.ranges(shape.n_layers)
    if isinstance(ask.ratio, tuple) and len(ask.ratio) != shape.n_layers:
        raise UsageError(f"--ratio has {len(ask.ratio)} shares and the model has {shape.n_layers} layers")
    drop = _layers_to_drop(ask, shape, model, batches)
    if not ask.widths:
        kept = PruningPlan.of(shape, dict.fromkeys(drop))
        return Found(kept, "whole layers" if drop else "nothing", ask.notes)
    request = _request(ask, ranges, drop)
    if ask.parameters is None and ask.steps > 1:
        selection = select_in_steps(copy.deepcopy(model), _Scorer(order, batches, progress), request)
        return Found(selection.plan, _scored_words(ask), selection.notes)
    importance = _Scorer(order, batches, progress)(model)
    if ask.sensitivity:
        assert batches is not None
        assert isinstance(ask.ratio, float)
        found = measure_sensitivity(model, importance, batches, replace(request, ratio=0.0))
        ratio, mlp_ratio = found.ratios(ask.ratio)
        request = replace(request, ratio=ratio, mlp_ratio=mlp_ratio)
    if ask.parameters is not None:
        selection = for_parameters(shape, importance, ask.parameters, request)
    else:
        selection = select(shape, importance, request)
    return Found(selection.plan, _scored_words(ask), selection.notes)


def _scored_words(ask: Ask) -> str:
    steps = f" in {ask.steps} steps" if ask.steps > 1 else ""
    return f"by {ask.method_name}{steps}"


def _layers_to_drop(ask: Ask, shape: ModelShape, model: Any, batches: torch.Tensor | None) -> tuple[int, ...]:
    """The layers that go."""
    if ask.keep_first is not None:
        return tuple(range(min(ask.keep_first, shape.n_layers), shape.n_layers))
    if isinstance(ask.drop_layers, tuple):
        beyond = [layer for layer in ask.drop_layers if layer >= shape.n_layers]
        if beyond:
            raise UsageError(f"--drop-layers names layer {beyond[0]} and the model has layers 0-{shape.n_layers - 1}")
        return ask.drop_layers
    if ask.drop_layers >= shape.n_layers:
        raise UsageError(
            f"--drop-layers {ask.drop_layers} would drop all of {shape.n_layers} layers: keep at least one"
        )
    if not ask.drop_layers:
        return ()
    assert batches is not None
    order = block_influence(model, batches).argsort(stable=True).tolist()
    return tuple(sorted(order[: ask.drop_layers]))


class _Scorer:
    """Scores a model by the method that is asked for, and says how often it did."""

    def __init__(self, order: Order, batches: torch.Tensor | None, progress: Progress | None) -> None:
        self._order, self._batches, self._progress, self._done = order, batches, progress, 0

    def __call__(self, model: Any) -> Importance:
        self._tell()
        made = self._score(model)
        self._done += 1
        self._tell()
        return made

    def _tell(self) -> None:
        if self._progress is not None and self._order.ask is not None:
            self._progress("score", self._done, self._order.ask.steps)

    def _score(self, model: Any) -> Importance:
        ask, batches = self._order.ask, self._batches
        assert ask is not None
        if ask.method in ("l1", "l2"):
            return magnitude(model, p=int(ask.method[1]))
        if ask.method == "random":
            return random_importance(model, self._order.seed)
        assert batches is not None
        if ask.method == "least-squares":
            return least_squares_error(model, batches)
        if ask.method == "taylor":
            kind: Any = ask.taylor
            return taylor(model, batches, kind=kind)
        return (wanda if ask.method == "wanda" else fluctuation)(model, batches)


def _request(ask: Ask, ranges: tuple[tuple[int, int], tuple[int, int]], drop: tuple[int, ...]) -> Request:
    heads: Any = ask.heads
    scope: Any = ask.scope
    normalize: Any = ask.normalize
    return Request(
        ratio=0.0 if ask.sensitivity else ask.ratio,
        heads=heads,
        scope=scope,
        normalize=normalize,
        attention_layers=ranges[0],
        mlp_layers=ranges[1],
        channels_multiple=ask.channels_multiple,
        steps=ask.steps,
        drop_layers=drop,
    )
