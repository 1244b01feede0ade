"""Texts drawn from a model: prompts, random numbers, batches, and the losses that are looked at beside them.

Every prompt is cut to its last 24 tokens, so that all of them run in one batch without padding: a text is then a test
of the model and of its cache alone, and 16 texts cost one pass over the weights per token. A text's random numbers
depend on the seed, its prompt and its number, so it is the same in any company.

Prompts are of the languages that the model reads: one that never saw Chinese writes broken bytes there, and must not be
accused of it. A model that reads none is asked in all of them. Of a base and its child, draw the second ``like`` the
first: prompts and random numbers are then the same.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch

from gqacheck.runtime import degenerate
from gqacheck.runtime.configure import CannotRun
from gqacheck.runtime.decode import decode, positions_of, stop_ids, text_of
from gqacheck.runtime.running import device_of
from gqacheck.runtime.tokenizer import TextEncoder, make_encoder
from gqacheck.runtime.unigram import unigram_nll

Progress: TypeAlias = Callable[[str, int, int], None]

LANGUAGES = ("english", "chinese")
PROMPT_TOKENS = 24
TOP_P, TEMPERATURE = 0.95, 1.0
KNOWN_TOKENS, KNOWN_WINDOW = 1024, 128
UNUSED = 0.5
"""Nats per token by which known text must cost more than by token frequency alone before a model counts as not reading
it. Small models on text unlike their training come close to that line from the good side (5.95 of 6.08 measured)."""

_DATA = Path(__file__).resolve().parent.parent / "data"


@dataclass(frozen=True, slots=True)
class Text:
    """One drawn text: the ids it started from, the ids that were drawn (EOS not among them), mean loss in nats."""

    language: str
    prompt: str
    start: tuple[int, ...]
    ids: tuple[int, ...]
    text: str
    ended: bool
    nll: float


@dataclass(frozen=True, slots=True)
class Reading:
    """What known text of one language costs a model (nats per token), beside the two lines that need no model."""

    language: str
    nll: float
    uniform: float
    unigram: float

    @property
    def better_than_dice(self) -> bool:
        """Whether the model reads the language at all; NaN does not."""
        return self.nll < self.uniform

    @property
    def lost(self) -> bool:
        """Whether the model is no reader of it for certain: worse than dice, or clearly worse than token frequency."""
        return not (self.better_than_dice and self.nll < self.unigram + UNUSED)


@dataclass(frozen=True, slots=True)
class Drawn:
    """What a model wrote. languages: those it was asked in; readings: what known text of each language costs it.

    vocab: how many tokens it predicts; steps: the most tokens that a text may have; known: how many its tokenizer
    knows, 0 when it does not say.
    """

    texts: tuple[Text, ...]
    readings: tuple[Reading, ...]
    languages: tuple[str, ...]
    vocab: int
    seed: int
    steps: int
    seconds: float
    note: str = ""
    known: int = 0


def languages_read(readings: Sequence[Reading]) -> tuple[str, ...]:
    """The languages on whose known text a model is better than dice."""
    return tuple(reading.language for reading in readings if reading.better_than_dice)


def prompts_of(language: str) -> tuple[str, ...]:
    """The shipped prompts of one language."""
    text = (_DATA / "prompts" / f"{language}.txt").read_text(encoding="utf-8")
    return tuple(line for line in text.splitlines() if line)


@torch.inference_mode()
def draw(
    model: Any,
    tokenizer: Any,
    *,
    seed: int = 0,
    n_samples: int = 16,
    max_new_tokens: int = 128,
    like: Drawn | None = None,
    progress: Progress | None = None,
) -> Drawn:
    """What ``model`` (in eval mode) writes. like: what its base or child wrote, whose languages and prompts are taken.

    A text ends at the checkpoint's own EOS, or when its tail loops exactly.

    Raises:
        MissingTokenizer: the tokenizer cannot encode.
        CannotRun: ids beyond the embedding, or no position left to write in.
        NotFinite: logits that are NaN or infinite.
    """
    started = time.perf_counter()
    encoder = make_encoder(tokenizer)
    prompts = {language: prompts_of(language) for language in LANGUAGES}
    ids_of = {language: [encoder.encode(prompt) for prompt in prompts[language]] for language in LANGUAGES}
    encoder.check_ids([ids for of in ids_of.values() for ids in of], model.get_input_embeddings().weight.shape[0])
    steps, note = _room(model, encoder, max_new_tokens)
    readings = tuple(_reading(model, encoder, language) for language in LANGUAGES)
    languages = like.languages if like else languages_read(readings) or LANGUAGES
    plan = [(language, number) for number in range(len(prompts[LANGUAGES[0]])) for language in languages]
    wanted = [(*plan[i % len(plan)], i // len(plan)) for i in range(n_samples)]
    starts = [_start(encoder, ids_of[language][number], positions_of(model)) for language, number, _ in wanted]
    texts: dict[int, Text] = {}
    for batch in _equal_lengths(starts):
        uniforms = torch.stack([_uniforms(seed, *wanted[i], steps) for i in batch])
        written = _write(model, tokenizer, [starts[i] for i in batch], uniforms, steps, progress)
        for i, (ids, nll, ended) in zip(batch, written, strict=True):
            language, number, _ = wanted[i]
            text = _continuation(tokenizer, starts[i], ids)
            texts[i] = Text(language, prompts[language][number], starts[i], ids, text, ended, nll)
    vocab = int(model.get_output_embeddings().weight.shape[0])
    ordered = tuple(texts[i] for i in sorted(texts))
    known = len(tokenizer) if hasattr(tokenizer, "__len__") else 0
    return Drawn(ordered, readings, languages, vocab, seed, steps, time.perf_counter() - started, note, known)


def _room(model: Any, encoder: TextEncoder, wanted: int) -> tuple[int, str]:
    positions = positions_of(model)
    room = positions - min(PROMPT_TOKENS + len(encoder.prefix), positions // 2)
    if room < degenerate.LEAST_TOKENS:
        raise CannotRun(
            f"the model has {positions} positions, too few to write {degenerate.LEAST_TOKENS} tokens after a prompt",
            stage="generation",
            supported=False,
        )
    return (wanted, "") if room >= wanted else (room, f"{room} tokens each: the model has {positions} positions")


def _start(encoder: TextEncoder, ids: Sequence[int], positions: int) -> tuple[int, ...]:
    kept = min(PROMPT_TOKENS, positions // 2 - len(encoder.prefix))
    return (*encoder.prefix, *ids[-max(1, kept) :])


def _equal_lengths(starts: Sequence[tuple[int, ...]]) -> list[list[int]]:
    """Numbers of the starts in batches of equal length: nothing is padded."""
    batches: dict[int, list[int]] = {}
    for i, start in enumerate(starts):
        batches.setdefault(len(start), []).append(i)
    return list(batches.values())


def _uniforms(seed: int, language: str, number: int, copy: int, steps: int) -> torch.Tensor:
    """The random numbers of one sample: they depend on nothing else, so a sample is the same in any company."""
    digest = hashlib.sha256(f"{seed}/{language}/{number}/{copy}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    return torch.rand(steps, generator=generator, dtype=torch.float64)


def _write(
    model: Any,
    tokenizer: Any,
    starts: Sequence[tuple[int, ...]],
    uniforms: torch.Tensor,
    steps: int,
    progress: Progress | None,
) -> list[tuple[tuple[int, ...], float, bool]]:
    """(ids, mean loss, whether EOS ended it) of each text of a batch."""
    stops = stop_ids(model, tokenizer)
    device = device_of(model)
    ids: list[list[int]] = [[] for _ in starts]
    losses: list[list[float]] = [[] for _ in starts]
    ended, done = [False] * len(starts), [False] * len(starts)
    tokens = torch.tensor(starts, device=device)
    for number, step in enumerate(decode(model, tokens, uniforms, steps=steps, temperature=TEMPERATURE, top_p=TOP_P)):
        for row, (token, loss) in enumerate(zip(step.ids, step.nlls, strict=True)):
            if done[row]:
                continue
            losses[row].append(loss)
            if token in stops:
                ended[row] = done[row] = True
                continue
            ids[row].append(token)
            done[row] = number % 8 == 7 and degenerate.loop_period(ids[row]) > 0
        if progress is not None:
            progress("generation", number + 1, steps)
        if all(done):
            break
    return [(tuple(row), math.fsum(of) / len(of), end) for row, of, end in zip(ids, losses, ended, strict=True)]


def _continuation(tokenizer: Any, start: Sequence[int], ids: Sequence[int]) -> str:
    """The text of ``ids`` behind ``start``: decoded with it, for a leading space depends on what stands before."""
    before, whole = text_of(tokenizer, start), text_of(tokenizer, [*start, *ids])
    return whole[len(before) :] if whole.startswith(before) else text_of(tokenizer, ids)


def _reading(model: Any, encoder: TextEncoder, language: str) -> Reading:
    """What the first tokens of the smoke text of ``language`` cost, each window read alone."""
    text = (_DATA / "smoke" / f"{language}.txt").read_text(encoding="utf-8")
    ids = encoder.encode(text[: 8 * KNOWN_TOKENS])[:KNOWN_TOKENS]
    encoder.check_ids([ids], model.get_input_embeddings().weight.shape[0])
    window = min(KNOWN_WINDOW, positions_of(model) - len(encoder.prefix))
    first = max(1, len(encoder.prefix))
    losses: list[float] = []
    scored: list[int] = []
    for begin in range(0, len(ids), window):
        part = [*encoder.prefix, *ids[begin : begin + window]]
        if len(part) > first:
            losses += _losses(model, part, first)
            scored += part[first:]
    vocab = int(model.get_output_embeddings().weight.shape[0])
    return Reading(
        language,
        math.fsum(losses) / len(losses) if losses else math.inf,
        math.log(vocab),
        unigram_nll(ids, scored, vocab),
    )


def _losses(model: Any, ids: Sequence[int], first: int) -> list[float]:
    """Loss (nats) of each of ``ids`` from position ``first`` on, by one pass without a cache."""
    tokens = torch.tensor([list(ids)], device=device_of(model))
    logits = model(input_ids=tokens, use_cache=False, return_dict=True).logits[0, first - 1 : -1].float()
    picked = logits.gather(-1, tokens[0, first:, None].to(logits.device)).squeeze(-1)
    found: list[float] = (logits.logsumexp(-1) - picked).tolist()
    return found


@torch.inference_mode()
def score(model: Any, drawn: Drawn) -> tuple[float, ...]:
    """Mean loss (nats per token) of every drawn text under ``model``; NaN for an empty text, or ids that it lacks."""
    rows = min(model.get_input_embeddings().weight.shape[0], model.get_output_embeddings().weight.shape[0])
    found = []
    for text in drawn.texts:
        ids = [*text.start, *text.ids]
        if not text.ids or max(ids) >= rows or len(ids) > positions_of(model):
            found.append(math.nan)
            continue
        losses = _losses(model, ids, len(text.start))
        found.append(math.fsum(losses) / len(losses))
    return tuple(found)
