"""Perplexity by a stated protocol: token-weighted, reduced in float32, and never the whole [B, T, V] logits at once.

The protocol ``windows-N``, and why each choice:

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
from dataclasses import dataclass
from typing import Any

import torch

from gqacheck.errors import ReadError
from gqacheck.geometry.outcomes import Perplexity, SegmentLoss
from gqacheck.runtime.corpus import Corpus
from gqacheck.runtime.tokenizer import TextEncoder
from gqacheck.runtime.unigram import unigram_nll

MIN_TOKENS = 32
_LOGITS_AT_ONCE = 1 << 25  # elements of one float32 chunk of logits: 128 MiB
_TOKENS_AT_ONCE = 2048  # positions in one forward pass when the batch size is left to us


@dataclass(frozen=True, slots=True)
class Window:
    """One window of one segment: input ids, context included; ids[1:] are scored."""

    segment: int
    ids: tuple[int, ...]


@dataclass(slots=True)
class Tally:
    """Logits seen, and how many of them were NaN or infinite."""

    logits: int = 0
    non_finite: int = 0


def protocol_text(positions: int, encoder: TextEncoder) -> str:
    """The protocol as printed beside every value."""
    start = f"{encoder.prefix_name} starts every window" if encoder.prefix else "no BOS"
    return (
        f"windows-{positions}: non-overlapping windows of {positions} positions per segment, tail kept, {start}, "
        "every position after a window's first scored"
    )


def measure_perplexity(
    model: Any,
    encoder: TextEncoder,
    corpus: Corpus,
    *,
    tally: Tally,
    batch_size: int | None = None,
    limit: int | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Perplexity:
    """The perplexity of ``model`` on ``corpus`` with its error over windows; ``tally`` counts the logits.

    limit: at most so many windows, spread evenly over the corpus; the value is then marked incomplete.

    Raises:
        ReadError: a text is too short, or the tokenizer cannot encode it.
    """
    started = time.perf_counter()
    vocab = int(model.get_output_embeddings().weight.shape[0])
    positions = min(corpus.window, _max_positions(model))
    if positions - len(encoder.prefix) < 2:
        raise ReadError(
            f"the tokenizer puts {len(encoder.prefix)} ids before every text, and a window has {positions} positions: "
            "name another tokenizer with --tokenizer"
        )
    tokens = [encoder.encode(segment.text) for segment in corpus.segments]
    if sum(map(len, tokens)) < MIN_TOKENS:
        raise ReadError(
            f"{corpus.name} has {sum(map(len, tokens))} tokens; at least {MIN_TOKENS} are needed for a perplexity"
        )
    encoder.check_ids(tokens, int(model.get_input_embeddings().weight.shape[0]))
    windows = [
        Window(number, ids) for number, ids_of in enumerate(tokens) for ids in cut(ids_of, encoder.prefix, positions)
    ]
    chosen = _spread(windows, limit)
    first = scored_from(encoder.prefix)
    batch = batch_size or max(1, _TOKENS_AT_ONCE // positions)
    sums = _window_sums(model, chosen, batch, tally, first, corpus.name, progress)
    segments = _segments(corpus, tokens, chosen, sums, first, vocab)
    n_tokens = sum(segment.tokens for segment in segments)
    nll = math.fsum(segment.nll * segment.tokens for segment in segments) / n_tokens
    value = math.exp(nll) if nll < 700 else math.inf if nll == nll else math.nan
    error = _standard_error(chosen, sums, first)
    complete = len(chosen) == len(windows)
    return Perplexity(
        corpus=corpus.name,
        protocol=protocol_text(positions, encoder),
        fingerprint=corpus.fingerprint,
        value=value,
        stderr=value * error if error is not None and math.isfinite(value) else None,
        tokens=n_tokens,
        windows=len(chosen),
        complete=complete,
        vocab_size=vocab,
        segments=segments,
        seconds=time.perf_counter() - started,
        note="" if complete else f"{len(chosen)} of {len(windows)} windows: not comparable with a complete run",
    )


def cut(tokens: Sequence[int], prefix: tuple[int, ...], positions: int) -> list[tuple[int, ...]]:
    """Windows of at most ``positions`` ids, ``prefix`` included; a tail that would score nothing is left out."""
    step = positions - len(prefix)
    windows = [(*prefix, *tokens[start : start + step]) for start in range(0, len(tokens), step)]
    return [window for window in windows if len(window) > max(1, len(prefix))]


def scored_from(prefix: tuple[int, ...]) -> int:
    """Index of the first scored position: the first token after the prefix, or the second of a bare window."""
    return max(1, len(prefix))


def token_nlls(model: Any, ids: torch.Tensor, *, first: int = 1, tally: Tally | None = None) -> torch.Tensor:
    """Negative log-likelihoods [B, T - first] in float32 nats of ``ids`` [B, T], from position ``first`` on."""
    hidden = _backbone(model, ids)[:, first - 1 : -1]
    targets = ids[:, first:]
    rows = chunk_rows(int(model.get_output_embeddings().weight.shape[0]))
    flat_hidden, flat_targets = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)
    losses = [
        _losses(_logits(model, flat_hidden[start : start + rows]), flat_targets[start : start + rows], tally)
        for start in range(0, flat_hidden.shape[0], rows)
    ]
    return torch.cat(losses).view(targets.shape)


def chunk_rows(vocab: int) -> int:
    """Positions whose logits are in memory at once: 256 to 1024."""
    return max(256, min(1024, _LOGITS_AT_ONCE // vocab))


def _losses(logits: torch.Tensor, targets: torch.Tensor, tally: Tally | None) -> torch.Tensor:
    """log-sum-exp minus the target's logit, in float32 and in place: ``logits`` [N, V] is used up.

    torch's own logsumexp is twice as slow here: it writes a second [N, V].
    """
    logits = logits.float()
    wanted = logits.gather(-1, targets[:, None]).squeeze(-1)
    highest, lowest = logits.amax(-1), logits.amin(-1)  # NaN goes through both
    if tally is not None:
        tally.logits += logits.numel()
        for row in (~(torch.isfinite(highest) & torch.isfinite(lowest))).nonzero().flatten().tolist():
            tally.non_finite += int((~torch.isfinite(logits[row])).sum())
    sums: torch.Tensor = logits.sub_(highest[:, None]).exp_().sum(-1)
    return sums.log() + highest - wanted


def _backbone(model: Any, ids: torch.Tensor) -> torch.Tensor:
    return model.base_model(input_ids=ids, use_cache=False, return_dict=True).last_hidden_state  # type: ignore[no-any-return]


def _logits(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    """What the model's own forward makes of the backbone's output (see ``head_matches_forward``)."""
    logits: torch.Tensor = model.get_output_embeddings()(hidden)
    config = model.config
    scale, divisor = getattr(config, "logit_scale", None), getattr(config, "logits_scaling", None)
    cap = getattr(config, "final_logit_softcapping", None)
    if scale is not None:  # Cohere
        logits = logits * scale
    if divisor is not None:  # Granite
        logits = logits / divisor
    if cap is not None:  # Gemma-2, Gemma-3
        logits = torch.tanh(logits / cap) * cap
    return logits


def head_matches_forward(model: Any, ids: torch.Tensor) -> bool:
    """Whether scoring in chunks gives the logits of the model's own forward on ``ids`` [1, T]: asked once per run."""
    if model.base_model is model:  # Llama-4: the backbone is not where base_model_prefix says
        return False
    own = model(input_ids=ids, use_cache=False).logits.float()
    ours = _logits(model, _backbone(model, ids)).float()
    return own.shape == ours.shape and torch.allclose(own, ours, rtol=1e-3, atol=1e-3, equal_nan=True)


def _max_positions(model: Any) -> int:
    stated = getattr(model.config, "max_position_embeddings", None)
    return stated if isinstance(stated, int) and stated >= 16 else 1 << 20


def _spread(windows: list[Window], limit: int | None) -> list[Window]:
    if limit is None or limit >= len(windows):
        return windows
    return [windows[(2 * i + 1) * len(windows) // (2 * limit)] for i in range(limit)]


def _window_sums(
    model: Any,
    windows: Sequence[Window],
    batch_size: int,
    tally: Tally,
    first: int,
    label: str,
    progress: Callable[[str, int, int], None] | None,
) -> list[float]:
    """Summed NLL (nats) of each window, in float64. Windows of equal length share a pass, so nothing is padded."""
    device = model.get_input_embeddings().weight.device
    sums = [math.nan] * len(windows)
    done = 0
    with torch.inference_mode():
        probe = torch.tensor([windows[0].ids[:16]], device=device)
        score = token_nlls if head_matches_forward(model, probe) else _whole_nlls
        for batch in _batches(windows, batch_size if score is token_nlls else 1):
            ids = torch.tensor([windows[i].ids for i in batch], device=device)
            for i, total in zip(
                batch, score(model, ids, first=first, tally=tally).double().sum(1).tolist(), strict=True
            ):
                sums[i] = total
            done += len(batch)
            if progress is not None:
                progress(label, done, len(windows))
    return sums


def _whole_nlls(model: Any, ids: torch.Tensor, *, first: int = 1, tally: Tally | None = None) -> torch.Tensor:
    """``token_nlls`` through the model's own head, for a class whose logits are more than we know of."""
    logits = model(input_ids=ids, use_cache=False).logits[:, first - 1 : -1]
    targets = ids[:, first:]
    return _losses(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1), tally).view(targets.shape)


def _batches(windows: Sequence[Window], size: int) -> Iterator[list[int]]:
    batch: list[int] = []
    for i, window in enumerate(windows):
        if batch and (len(batch) == size or len(window.ids) != len(windows[batch[0]].ids)):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _segments(
    corpus: Corpus,
    tokens: Sequence[Sequence[int]],
    windows: Sequence[Window],
    sums: Sequence[float],
    first: int,
    vocab: int,
) -> tuple[SegmentLoss, ...]:
    found = []
    for number, segment in enumerate(corpus.segments):
        mine = [i for i, window in enumerate(windows) if window.segment == number]
        scored = [token for i in mine for token in windows[i].ids[first:]]
        if not scored:
            continue
        found.append(
            SegmentLoss(
                name=segment.name,
                nll=math.fsum(sums[i] for i in mine) / len(scored),
                tokens=len(scored),
                unigram_nll=unigram_nll(tokens[number], scored, vocab),
                uniform_nll=math.log(vocab),
                window_nlls=tuple(sums[i] / (len(windows[i].ids) - first) for i in mine),
            )
        )
    return tuple(found)


def _standard_error(windows: Sequence[Window], sums: Sequence[float], first: int) -> float | None:
    """Standard error (nats) of the token-weighted mean, windows as clusters within segments; None from one window.

    Per segment of W windows: W / (W - 1) * sum over windows of (their loss - mean loss * their tokens)^2; the root of
    the sum over segments, over all tokens.
    """
    total = sum(len(window.ids) - first for window in windows)
    squares, known = 0.0, False
    for number in sorted({window.segment for window in windows}):
        mine = [i for i, window in enumerate(windows) if window.segment == number]
        if len(mine) < 2:
            continue
        known = True
        n_tokens = [len(windows[i].ids) - first for i in mine]
        mean = math.fsum(sums[i] for i in mine) / sum(n_tokens)
        spread = math.fsum((sums[i] - mean * n) ** 2 for i, n in zip(mine, n_tokens, strict=True))
        squares += spread * len(mine) / (len(mine) - 1)
    error = math.sqrt(squares) / total if known else math.nan
    return error if math.isfinite(error) else None
