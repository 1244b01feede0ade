"""Whether a model is broken only because nothing stands before its text.

Models trained with BOS in front (Gemma) look exploded without it. A tokenizer that was saved wrongly forgets it, and
most protocols put it before a text, not before each window.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from gqacheck.geometry.outcomes import Perplexity
from gqacheck.rules.perplexity import broken_by_band, line_of_band, worse_than_guessing
from gqacheck.runtime.protocols import Plan, Window

if TYPE_CHECKING:
    from gqacheck.runtime.corpus import Corpus
    from gqacheck.runtime.running import Running

WINDOWS = 4
"""So many, spread over the text: the verdict is wanted, not the value."""
HELPS = math.log(1.5)
"""Nats per token that BOS must save on a segment: less is no cause, also where it just crosses a line."""


def with_bos(running: Running, corpus: Corpus, plan: Plan, found: Perplexity) -> Perplexity:
    """``found`` with what a few of its windows measure with BOS in front, when that alone changes the verdict on it.

    Each window's first position, which is never scored, becomes BOS; the scored tokens stay the same. Nothing is tried
    on a model that is not judged broken, whose every window began with BOS, or whose BOS is not known.
    """
    from gqacheck.runtime.perplexity import measure_perplexity
    from gqacheck.runtime.scoring import Tally

    encoder = running.encoder
    if encoder is None or not (worse_than_guessing(found) or broken_by_band(found)):
        return found
    front = encoder.prefix or _bos_of(running)
    losses = {i: nll for s in found.segments for i, nll in zip(s.window_numbers, s.window_nlls, strict=True)}
    without = [i for i in sorted(losses) if plan.windows[i].ids[:1] != front[:1]]
    if not front or not without:
        return found
    step = max(1.0, len(without) / WINDOWS)
    chosen = [without[int(step * (i + 0.5))] for i in range(min(WINDOWS, len(without)))]
    again = measure_perplexity(
        running.model,
        encoder,
        corpus,
        tally=Tally(),
        plan=replace(plan, windows=tuple(_behind(front, window) for window in plan.windows)),
        only=chosen,
    )
    if not _heals(again, found, losses):
        return found
    given = bool(encoder.prefix) or any(window.ids[:1] == front[:1] for window in plan.windows)
    return replace(found, bos_value=again.value, bos_left_out_by="protocol" if given else "tokenizer")


def _bos_of(running: Running) -> tuple[int, ...]:
    """The id of BOS where the model has a row for it, else ()."""
    assert running.encoder is not None
    bos = running.encoder.special("bos")
    if bos is None:
        stated = getattr(running.model.config, "bos_token_id", None)
        bos = stated if type(stated) is int else None
    rows = int(running.model.get_input_embeddings().weight.shape[0])
    return (bos,) if bos is not None and 0 <= bos < rows else ()


def _behind(front: tuple[int, ...], window: Window) -> Window:
    return replace(window, ids=(*front, *window.ids[len(front) :]), first=max(window.first, len(front)))


def _heals(again: Perplexity, found: Perplexity, losses: dict[int, float]) -> bool:
    """Whether the model is no longer judged broken, and BOS made the difference where it is not."""
    line = line_of_band(found) if not worse_than_guessing(found) else math.inf
    return again.value <= line and any(
        not worse_than_guessing(again, segment) and _saved(segment.window_numbers, segment.window_nlls, losses) >= HELPS
        for segment in again.segments
    )


def _saved(numbers: tuple[int, ...], nlls: tuple[float, ...], losses: dict[int, float]) -> float:
    """Nats per token, the mean over the windows ``numbers``."""
    return math.fsum(losses[i] - nll for i, nll in zip(numbers, nlls, strict=True)) / len(numbers)
