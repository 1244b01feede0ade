"""Protocols of perplexity by name: which windows are cut from a text, which of their positions are scored, what counts.

One number means nothing without its protocol, so each of these reproduces one tool's windows, BOS and aggregation:

============== ============================================================================================
windows-512    ours: windows per segment, tail kept, what the tokenizer puts in front starts every window
gptq-2048      Wanda, SparseGPT, GPTQ: the text as one, windows of 2048 side by side, tail dropped, BOS once
llm-pruner-128 LLM-Pruner: the same with 128
hf-stride      the documentation of transformers: the model's length, moved by 512, each token scored once
lm-eval        loglikelihood_rolling of lm-evaluation-harness: every token of every document, disjoint windows
llama.cpp-512  its perplexity tool: chunks of 512, BOS on the first token of each, the second half scored
============== ============================================================================================
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from gqacheck.errors import ReadError, UsageError

if TYPE_CHECKING:
    from gqacheck.runtime.corpus import Corpus, Segment
    from gqacheck.runtime.tokenizer import TextEncoder

Kind: TypeAlias = Literal["windows", "gptq", "llm-pruner", "hf-stride", "lm-eval", "llama.cpp"]

_POSITIONS: dict[Kind, int | None] = {
    "windows": 512, "gptq": 2048, "llm-pruner": 128, "hf-stride": None, "lm-eval": None, "llama.cpp": 512,
}  # fmt: skip
"""Positions of a window where the name does not say; None is as many as the model reads."""
_STRIDE = 512
_LEAST, _MOST = 16, 131072
_NAME = re.compile(r"(windows|gptq|llm-pruner|hf-stride|lm-eval|llama\.cpp)(?:-(\d{1,6}))?(?:-(\d{1,6}))?")
EXAMPLES = "windows-512, gptq-2048, llm-pruner-128, hf-stride, lm-eval, llama.cpp-512"
UNSTATED_POSITIONS = 1 << 20
"""Positions of a model whose config states none."""
_LM_EVAL_UNSTATED = 2048
_C4_WINDOWS = 256


@dataclass(frozen=True, slots=True)
class Protocol:
    """A way to measure perplexity. positions: of one window, None for as many as the model reads; stride: by how many
    a window moves, where they overlap."""

    name: str
    kind: Kind
    positions: int | None = None
    stride: int | None = None


DEFAULT_PROTOCOL = Protocol("windows-512", "windows", 512)


@dataclass(frozen=True, slots=True)
class Window:
    """One window of one segment: input ids, context included. ``ids[first:]`` are scored.

    counted: tokens by which its mean loss is weighted, where that is not how many are scored.
    """

    segment: int
    ids: tuple[int, ...]
    first: int = 1
    counted: int | None = None

    @property
    def scored(self) -> int:
        """Positions that are scored."""
        return len(self.ids) - self.first

    @property
    def weight(self) -> int:
        """Tokens by which its mean loss counts."""
        return self.scored if self.counted is None else self.counted


@dataclass(frozen=True, slots=True)
class Plan:
    """Every window of a corpus under a protocol. sentence: the protocol in words, with the numbers that were used.

    tokens: the ids of each segment, for its unigram line. words, nbytes: of the original text, where they count.
    """

    protocol: Protocol
    sentence: str
    windows: tuple[Window, ...]
    tokens: tuple[tuple[int, ...], ...]
    words: int | None = None
    nbytes: int | None = None


def parse_protocol(text: str) -> Protocol:
    """The protocol that a name stands for.

    Raises:
        UsageError: there is no such protocol, or its numbers make no sense.
    """
    match = _NAME.fullmatch(text)
    if match is None:
        raise UsageError(f"unknown protocol {text[:60]!r}: use one of {EXAMPLES} (other lengths: gptq-1024)")
    kind: Kind = match[1]  # type: ignore[assignment]
    numbers = [int(number) for number in match.groups()[1:] if number is not None]
    if kind == "hf-stride":
        if len(numbers) == 1:
            raise UsageError(f"{text!r}: give the length and the stride, as in hf-stride-1024-512, or neither")
        length, stride = numbers or (None, _STRIDE)
        if length is not None and not _LEAST <= stride <= length <= _MOST:
            raise UsageError(f"{text!r}: the stride is from {_LEAST} to the length, the length at most {_MOST}")
        return Protocol(text, kind, length, stride)
    if len(numbers) > 1:
        raise UsageError(f"unknown protocol {text[:60]!r}: {kind} takes one number, as in {kind}-512")
    positions = numbers[0] if numbers else _POSITIONS[kind]
    if positions is not None and not _LEAST <= positions <= _MOST:
        raise UsageError(f"{text!r}: windows have from {_LEAST} to {_MOST} positions")
    if kind == "llama.cpp" and positions is not None and positions % 2:
        raise UsageError(f"{text!r}: half of a window is scored, so its length must be even")
    name = f"{kind}-{positions}" if positions is not None else kind
    return Protocol(name, kind, positions)


def plan_windows(corpus: Corpus, encoder: TextEncoder, max_positions: int) -> Plan:
    """The windows of ``corpus`` under its protocol, for a model that reads ``max_positions`` positions.

    Raises:
        ReadError: a text is too short for one window, the model reads fewer positions than the protocol asks for, or
            the tokenizer has no token that the protocol needs.
    """
    protocol = corpus.protocol
    if protocol.kind == "windows":
        return _plan_windows(corpus, encoder, max_positions)
    length = protocol.positions or _length_of_the_model(protocol, max_positions)
    if length > max_positions:
        raise ReadError(
            f"{protocol.name} needs {length} positions and this model reads {max_positions}: use "
            f"{protocol.kind}-{max_positions - max_positions % 2}, which is another protocol with values of its own"
        )
    if protocol.kind == "lm-eval":
        return _plan_lm_eval(corpus, encoder, length)
    if protocol.kind == "llama.cpp":
        return _plan_llama_cpp(corpus, encoder, length)
    if protocol.kind == "hf-stride":
        return _plan_stride(corpus, encoder, length)
    return _plan_joined(corpus, encoder, length)


def _length_of_the_model(protocol: Protocol, max_positions: int) -> int:
    if max_positions < UNSTATED_POSITIONS:
        return max_positions
    if protocol.kind == "lm-eval":
        return _LM_EVAL_UNSTATED
    raise ReadError(
        f"{protocol.name} uses windows of the model's length, and its config states none: say one, as in "
        "hf-stride-2048-512"
    )


def _plan_windows(corpus: Corpus, encoder: TextEncoder, max_positions: int) -> Plan:
    positions = min(corpus.protocol.positions or 512, max_positions)
    if positions - len(encoder.prefix) < 2:
        raise ReadError(
            f"the tokenizer puts {len(encoder.prefix)} ids before every text, and a window has {positions} positions: "
            "name another tokenizer with --tokenizer"
        )
    tokens = tuple(tuple(encoder.encode(segment.text)) for segment in corpus.segments)
    first = max(1, len(encoder.prefix))
    windows = [
        Window(number, window, first)
        for number, ids in enumerate(tokens)
        for window in cut(ids, encoder.prefix, positions)
    ]
    start = f"{encoder.prefix_name} starts every window" if encoder.prefix else "no BOS"
    sentence = (
        f"windows-{positions}: non-overlapping windows of {positions} positions per segment, tail kept, {start}, "
        "every position after a window's first scored"
    )
    name = f"windows-{positions}"
    return Plan(Protocol(name, "windows", positions), sentence, tuple(windows), tokens)


def cut(tokens: Sequence[int], prefix: tuple[int, ...], positions: int) -> list[tuple[int, ...]]:
    """Windows of at most ``positions`` ids, ``prefix`` included; a tail that would score nothing is left out."""
    step = positions - len(prefix)
    windows = [(*prefix, *tokens[start : start + step]) for start in range(0, len(tokens), step)]
    return [window for window in windows if len(window) > max(1, len(prefix))]


def _plan_joined(corpus: Corpus, encoder: TextEncoder, length: int) -> Plan:
    """GPTQ and its descendants: side by side, tail dropped, what the tokenizer adds only where the text begins."""
    tokens = tuple(tuple(encoder.encode_whole(segment.text)) for segment in corpus.segments)
    if corpus.known == "c4" and corpus.protocol.kind == "gptq":
        tokens = tuple(ids[: _C4_WINDOWS * length] for ids in tokens)
    windows = [
        Window(number, ids[start : start + length])
        for number, ids in enumerate(tokens)
        for start in _starts(corpus, ids, length)
    ]
    sentence = (
        f"{corpus.protocol.name}: the text as one, non-overlapping windows of {length} positions, tail dropped, "
        f"{length - 1} scored in each, {_once(encoder)}"
    )
    return Plan(corpus.protocol, sentence, tuple(windows), tokens)


def _plan_llama_cpp(corpus: Corpus, encoder: TextEncoder, length: int) -> Plan:
    """Chunks, of which the second half is scored; where the tokenizer adds BOS, it replaces each chunk's first token.

    As the tool does, one newline at the very end is not read.
    """
    tokens = tuple(tuple(encoder.encode_whole(segment.text.removesuffix("\n"))) for segment in corpus.segments)
    bos = encoder.prefix[:1]
    windows = [
        Window(number, (*bos, *ids[start + len(bos) : start + length]), length // 2 + 1)
        for number, ids in enumerate(tokens)
        for start in _starts(corpus, ids, length)
    ]
    start = "BOS replaces the first token of each" if bos else "no BOS"
    sentence = (
        f"{corpus.protocol.name}: non-overlapping chunks of {length} positions, tail dropped, {start}, "
        f"the last {length - length // 2 - 1} positions of each scored"
    )
    return Plan(corpus.protocol, sentence, tuple(windows), tokens)


def _starts(corpus: Corpus, ids: Sequence[int], length: int) -> range:
    if len(ids) < length:
        raise ReadError(
            f"{corpus.name} has {len(ids)} tokens, fewer than one window of {corpus.protocol.name} ({length}): use a "
            "longer text or a shorter window"
        )
    return range(0, len(ids) - length + 1, length)


def _plan_stride(corpus: Corpus, encoder: TextEncoder, length: int) -> Plan:
    """Overlapping windows, each token scored once, in the window that shows it most context.

    A window's mean loss is weighted with one token less than it scores: the documentation subtracts one for the shift
    of the labels, which only the first window really loses.
    """
    stride = corpus.protocol.stride or _STRIDE
    if stride > length:
        raise ReadError(
            f"{corpus.protocol.name} moves by {stride} positions and this model reads {length}, so tokens would be "
            f"left out: use hf-stride-{length}-{max(_LEAST, length // 2)}"
        )
    tokens = tuple(tuple(encoder.encode_whole(segment.text)) for segment in corpus.segments)
    windows = []
    for number, ids in enumerate(tokens):
        scored_to = 0
        for begin in range(0, len(ids), stride):
            end = min(begin + length, len(ids))
            fresh = end - scored_to
            if fresh > 1:
                first = max(1, end - begin - fresh)
                windows.append(Window(number, ids[begin:end], first, counted=fresh - 1))
            scored_to = end
            if end == len(ids):
                break
    sentence = (
        f"hf-stride: the text as one, windows of {length} positions moved by {stride}, every token scored once, "
        f"{_once(encoder)}"
    )
    return Plan(corpus.protocol, sentence, tuple(windows), tokens)


def _plan_lm_eval(corpus: Corpus, encoder: TextEncoder, length: int) -> Plan:
    """Every document by itself, all tokens scored; the last window of a long one gets as much context as fits."""
    prefix = encoder.rolling_prefix()
    tokens: list[tuple[int, ...]] = []
    windows: list[Window] = []
    words = nbytes = 0
    for number, segment in enumerate(corpus.segments):
        of_segment: list[int] = []
        for text, original in _documents(segment):
            ids = encoder.encode_document(text)
            of_segment += ids
            windows += [Window(number, *pair) for pair in rolling(ids, prefix, length)]
            words += len(re.split(r"\s+", original))
            nbytes += len(original.encode("utf-8"))
        tokens.append(tuple(of_segment))
    sentence = (
        f"{corpus.protocol.name}: rolling log-likelihood of whole documents in disjoint windows of {length} positions, "
        f"every token scored, {encoder.name_of(prefix)} before each document"
    )
    return Plan(corpus.protocol, sentence, tuple(windows), tuple(tokens), words, nbytes)


def _documents(segment: Segment) -> list[tuple[str, str]]:
    originals = segment.originals or segment.rows
    return [(text, original) for text, original in zip(segment.rows, originals, strict=True) if text]


def rolling(ids: Sequence[int], prefix: int, length: int) -> list[tuple[tuple[int, ...], int]]:
    """(input ids, index of the first scored one) of each window of a document, as lm-evaluation-harness cuts them.

    Each window predicts up to ``length`` tokens from the one before them; the last, shorter one is filled up in front
    with what came before, so its context is longer.
    """
    windows: list[tuple[tuple[int, ...], int]] = []
    predicted = 0
    while predicted < len(ids):
        new = min(len(ids) - predicted, length)
        end = predicted + new
        if predicted == 0:
            windows.append(((prefix, *ids[:end]), 1))
        else:
            start = end - length - 1
            windows.append((tuple(ids[start:end]), end - new - start))
        predicted = end
    return windows


def _once(encoder: TextEncoder) -> str:
    return f"{encoder.prefix_name} in the first window only" if encoder.prefix else "no BOS"


def aggregate(windows: Sequence[Window], sums: Sequence[float]) -> float:
    """Nats per token over windows: their mean losses weighted by the tokens that the protocol counts."""
    total = sum(window.weight for window in windows)
    if not total:
        return math.nan
    return math.fsum(s / window.scored * window.weight for window, s in zip(windows, sums, strict=True)) / total
