"""Perplexity by a stated protocol: the windows of ``protocols``, scored by ``scoring``, with their error and what it
takes to judge them.

The default protocol ``windows-N``, and why each choice:

* each segment is tokenised by itself and cut into non-overlapping windows of N positions: no token is counted twice
  and windows are (nearly) independent, so the error bar over windows means something;
* the tail is kept: short texts are used whole, and token weighting keeps a short window from weighing too much;
* what the tokenizer itself puts in front (BOS, or nothing) starts *every* window: models trained with it look exploded
  without (Gemma), and windows stay exchangeable, which "first window only" would break;
* a window's first position is context only and every later one is scored, so windows with and without BOS score the
  same number of positions;
* N is lowered to the model's max_position_embeddings, and the protocol string says which N was used.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch

from gqacheck.errors import ReadError
from gqacheck.geometry.outcomes import Perplexity, SegmentLoss
from gqacheck.rules.perplexity import perplexity_of
from gqacheck.runtime.corpus import Corpus
from gqacheck.runtime.early import Running, certainly_broken, spread_order
from gqacheck.runtime.protocols import UNSTATED_POSITIONS, Plan, Window, aggregate, plan_windows
from gqacheck.runtime.scoring import Scorer, Tally
from gqacheck.runtime.tokenizer import TextEncoder
from gqacheck.runtime.unigram import unigram_nll

MIN_TOKENS = 32
_TOKENS_AT_ONCE = 2048  # positions in one forward pass when the batch size is left to us
_FIRST_LOOK = 4  # windows that are run first, spread over the text, before the rest is sorted by length
Observer: TypeAlias = Callable[[int, torch.Tensor], None]


@dataclass(frozen=True, slots=True)
class Losses:
    """What a run over the windows of a plan gave: summed losses (float64 nats) by number of the window, in order."""

    sums: dict[int, float] = field(default_factory=dict)
    stopped_early: bool = False


def plan_corpus(model: Any, encoder: TextEncoder, corpus: Corpus) -> Plan:
    """The windows in which ``model`` reads ``corpus``.

    Raises:
        ReadError: a text is too short, or the tokenizer cannot encode it.
        CannotRun: at stage ``tokenizer``, the tokenizer gives ids that the embedding has no rows for.
    """
    plan = plan_windows(corpus, encoder, max_positions(model))
    n_tokens = sum(map(len, plan.tokens))
    if n_tokens < MIN_TOKENS or not plan.windows:
        raise ReadError(f"{corpus.name} has {n_tokens} tokens; at least {MIN_TOKENS} are needed for a perplexity")
    specials = [window.ids[:1] for window in plan.windows[:1]]
    encoder.check_ids([*plan.tokens, *specials], int(model.get_input_embeddings().weight.shape[0]))
    return plan


def measure_perplexity(
    model: Any,
    encoder: TextEncoder,
    corpus: Corpus,
    *,
    tally: Tally,
    batch_size: int | None = None,
    limit: int | None = None,
    stop_early: bool = False,
    plan: Plan | None = None,
    only: Sequence[int] | None = None,
    observe: Observer | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Perplexity:
    """The perplexity of ``model`` on ``corpus`` with its error over windows; ``tally`` counts the logits.

    limit: at most so many windows, spread evenly over the corpus; the value is then marked incomplete. stop_early: stop
    as soon as it is certain that every segment is worse than guessing. plan: the corpus's windows, where they are known
    already; only: the numbers of those to run. observe: see ``Scorer``.

    Raises:
        ReadError: a text is too short, or the tokenizer cannot encode it.
    """
    started = time.perf_counter()
    plan = plan or plan_corpus(model, encoder, corpus)
    vocab = int(model.get_output_embeddings().weight.shape[0])
    chosen = list(only) if only is not None else chosen_windows(plan, limit)
    lines = _lines(plan, vocab)
    scorer = Scorer(model, plan.windows[chosen[0]].ids[:16], tally, observe)
    losses = _run(scorer, plan, chosen, lines if stop_early else None, batch_size, corpus.name, progress)
    return _facts(corpus, plan, losses, lines, vocab, time.perf_counter() - started)


def _run(
    scorer: Scorer,
    plan: Plan,
    chosen: Sequence[int],
    lines: Sequence[float] | None,
    batch_size: int | None,
    label: str,
    progress: Callable[[str, int, int], None] | None,
) -> Losses:
    """Losses of the chosen windows, or of the first of them when ``lines`` (nats per token and segment) are given and
    it is certain that no segment will come below its own."""
    running = {plan.windows[i].segment: Running(math.inf) for i in chosen}
    for segment, state in running.items():
        state.line = lines[segment] if lines is not None else math.inf
    sums: dict[int, float] = {}
    for batch in _batches(plan.windows, chosen, batch_size, scorer.pads, scorer.chunked):
        windows = [plan.windows[i] for i in batch]
        scored = scorer.score(batch, [(window.ids, window.first) for window in windows])
        for i, window, losses in zip(batch, windows, scored, strict=True):
            sums[i] = float(losses.sum())
            running[window.segment].add(losses.tolist() if lines is not None else [])
        if progress is not None:
            progress(label, len(sums), len(chosen))
        if lines is not None and len(sums) < len(chosen) and certainly_broken(running.values()):
            return Losses({i: sums[i] for i in sorted(sums)}, stopped_early=True)
    return Losses({i: sums[i] for i in sorted(sums)})


def _batches(
    windows: Sequence[Window], chosen: Sequence[int], size: int | None, pads: bool, chunked: bool
) -> Iterator[list[int]]:
    """Windows that share a pass: the first few in their spread order, so that a broken model shows, the rest by length.

    Where nothing may be padded, only windows of equal length share one.
    """
    order = [chosen[i] for i in spread_order([windows[i].segment for i in chosen])]
    order = order[:_FIRST_LOOK] + sorted(order[_FIRST_LOOK:], key=lambda i: -len(windows[i].ids))
    batch: list[int] = []
    for taken, i in enumerate(order):
        longest = max(len(windows[j].ids) for j in (*batch, i))
        most = size or max(1, _TOKENS_AT_ONCE // longest)
        alike = len(windows[i].ids) == longest == min(len(windows[j].ids) for j in (*batch, i))
        if batch and (len(batch) >= (most if chunked else 1) or taken == _FIRST_LOOK or not (alike or pads)):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def max_positions(model: Any) -> int:
    """How many positions the config says that ``model`` reads; ``UNSTATED_POSITIONS`` when it says nothing."""
    stated = getattr(model.config, "max_position_embeddings", None)
    return stated if isinstance(stated, int) and stated >= 16 else UNSTATED_POSITIONS


def chosen_windows(plan: Plan, limit: int | None) -> list[int]:
    """Numbers of the windows that are run: all of them, or ``limit`` that are spread evenly."""
    n = len(plan.windows)
    if limit is None or limit >= n:
        return list(range(n))
    return [(2 * i + 1) * n // (2 * limit) for i in range(limit)]


def _lines(plan: Plan, vocab: int) -> list[float]:
    """Nats per token from which a model is worse than guessing, per segment: uniformly or by token frequency."""
    lines = []
    for number, tokens in enumerate(plan.tokens):
        scored = [i for window in plan.windows if window.segment == number for i in window.ids[window.first :]]
        unigram = unigram_nll(tokens, scored, vocab) if scored else math.inf
        lines.append(min(unigram, math.log(vocab)))
    return lines


def _facts(
    corpus: Corpus, plan: Plan, losses: Losses, lines: Sequence[float], vocab: int, seconds: float
) -> Perplexity:
    numbers = list(losses.sums)
    windows = [plan.windows[i] for i in numbers]
    sums = list(losses.sums.values())
    nll = aggregate(windows, sums)
    value = perplexity_of(nll)
    error = standard_error(windows, sums)
    complete = len(numbers) == len(plan.windows)
    word, byte = (_per(math.fsum(sums), n) if complete else None for n in (plan.words, plan.nbytes))
    return Perplexity(
        corpus=corpus.name,
        protocol=plan.sentence,
        fingerprint=corpus.fingerprint,
        value=value,
        stderr=value * error if error is not None and math.isfinite(value) else None,
        tokens=sum(window.scored for window in windows),
        windows=len(numbers),
        complete=complete,
        vocab_size=vocab,
        segments=_segments(corpus, plan, numbers, sums, vocab),
        seconds=seconds,
        note=_note(len(numbers), len(plan.windows), losses.stopped_early),
        protocol_name=plan.protocol.name,
        windows_in_all=len(plan.windows),
        stopped_early=losses.stopped_early,
        word_perplexity=None if word is None else perplexity_of(word),
        byte_perplexity=None if byte is None else perplexity_of(byte),
        bits_per_byte=None if byte is None else byte / math.log(2),
        text_tokens=sum(map(len, plan.tokens)),
        corpus_note=corpus.note,
        known_corpus=corpus.known if corpus.genuine else "",
    )


def _note(run: int, in_all: int, stopped: bool) -> str:
    if stopped:
        return f"stopped after {run} of {in_all} windows: certainly worse than guessing; the value is not comparable"
    return "" if run == in_all else f"{run} of {in_all} windows: not comparable with a complete run"


def _per(total: float, n: int | None) -> float | None:
    return total / n if n else None


def _segments(
    corpus: Corpus, plan: Plan, numbers: Sequence[int], sums: Sequence[float], vocab: int
) -> tuple[SegmentLoss, ...]:
    found = []
    for number, segment in enumerate(corpus.segments):
        mine = [(i, s) for i, s in zip(numbers, sums, strict=True) if plan.windows[i].segment == number]
        windows = [plan.windows[i] for i, _ in mine]
        scored = [token for window in windows for token in window.ids[window.first :]]
        if not scored:
            continue
        found.append(
            SegmentLoss(
                name=segment.name,
                nll=aggregate(windows, [s for _, s in mine]),
                tokens=len(scored),
                unigram_nll=unigram_nll(plan.tokens[number], scored, vocab),
                uniform_nll=math.log(vocab),
                window_nlls=tuple(s / window.scored for window, (_, s) in zip(windows, mine, strict=True)),
                window_tokens=tuple(window.scored for window in windows),
                window_numbers=tuple(i for i, _ in mine),
            )
        )
    return tuple(found)


def standard_error(windows: Sequence[Window], sums: Sequence[float]) -> float | None:
    """Standard error (nats) of the token-weighted mean, windows as clusters within segments; None from one window.

    Per segment of W windows: W / (W - 1) * sum over windows of (their loss - mean loss * their tokens)^2; the root of
    the sum over segments, over all tokens.
    """
    total = sum(window.scored for window in windows)
    squares, known = 0.0, False
    for number in sorted({window.segment for window in windows}):
        mine = [i for i, window in enumerate(windows) if window.segment == number]
        if len(mine) < 2:
            continue
        known = True
        n_tokens = [windows[i].scored for i in mine]
        mean = math.fsum(sums[i] for i in mine) / sum(n_tokens)
        spread = math.fsum((sums[i] - mean * n) ** 2 for i, n in zip(mine, n_tokens, strict=True))
        squares += spread * len(mine) / (len(mine) - 1)
    error = math.sqrt(squares) / total if known else math.nan
    return error if math.isfinite(error) else None
