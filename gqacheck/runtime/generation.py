"""Sampled texts of a model, and what is wrong with them: alone, or beside the base's with the same random numbers.

Three steps, because a base and its child are seldom in memory together: ``draw`` each, ``score`` the child's texts
under the base, ``judge``. ``measure_generation`` does all three where both models are at hand.

The design: 16 samples of 128 tokens, nucleus 0.95, temperature 1, no repetition penalty. Not greedy: greedy text of
healthy models loops.

Word salad is fluent to every counting of characters, so a loss tells it. With a base: the base's own loss on the text,
beside its loss on what it writes itself. Without: the writer's, near that of dice; and where the writer reads known
text of no language better than guessing does, all it writes is salad, however sure of itself it is.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from gqacheck.geometry.outcomes import Flag, Generation, Sample
from gqacheck.runtime import degenerate
from gqacheck.runtime.drawing import LANGUAGES, TEMPERATURE, TOP_P, Drawn, Progress, Text, draw, languages_read, score

__all__ = ["Drawn", "draw", "judge", "measure_generation", "score"]

FARTHER = math.log(5)
"""Nats per token by which a text must surprise the base more than the base's own texts do: the factor 5 between
perplexities from which a child counts as broken. Measured on the trained fixtures: soundly cut children 0.0 to 0.9,
truncated heads 3.1 to 5.8."""

NEAR_DICE = 0.8
"""Share of ln(vocabulary) from which a text's own loss is that of dice; healthy fixtures have 0.4 to 0.6."""

_WORST_FIRST: tuple[Flag, ...] = ("salad", "loops", "replacement", "control", "scripts", "repeats", "compresses")


def measure_generation(
    model: Any,
    tokenizer: Any,
    *,
    seed: int = 0,
    n_samples: int = 16,
    max_new_tokens: int = 128,
    base: Drawn | None = None,
    base_model: Any = None,
    progress: Progress | None = None,
) -> Generation:
    """What ``model`` writes, judged; beside ``base`` (its drawn texts) when given. ``base_model`` scores the texts.

    Raises:
        MissingTokenizer, CannotRun: as ``draw``.
    """
    if base is None and base_model is not None:
        base = draw(
            base_model, tokenizer, seed=seed, n_samples=n_samples, max_new_tokens=max_new_tokens, progress=progress
        )
    drawn = draw(
        model, tokenizer, seed=seed, n_samples=n_samples, max_new_tokens=max_new_tokens, like=base, progress=progress
    )
    return judge(drawn, base, None if base_model is None else score(base_model, drawn))


def judge(child: Drawn, base: Drawn | None = None, child_under_base: Sequence[float] | None = None) -> Generation:
    """The child's texts with what is wrong with each; the base's likewise, judged by the same lines.

    Only languages that the base reads count. child_under_base: ``score`` of the base on the child's texts; None when it
    was not measured (salad is then judged by the child's own loss).
    """
    judged = _judged(child, base)
    line = _salad_line(base, judged) if base is not None else math.nan
    lost = base is None and all(reading.lost for reading in child.readings)
    under = child_under_base if base is not None and child_under_base is not None else [None] * len(child.texts)
    samples = tuple(_sample(text, child.vocab, loss, line, lost) for text, loss in zip(child.texts, under, strict=True))
    ours = () if base is None else tuple(_sample(text, base.vocab, text.nll, line, False) for text in base.texts)
    return Generation(
        settings=_settings(child),
        samples=samples,
        base_samples=ours,
        judged=judged,
        left_out=tuple(language for language in LANGUAGES if language not in judged),
        worst=_worst(samples, judged),
        seed=child.seed,
        seconds=child.seconds + (base.seconds if base is not None else 0.0),
        note="; ".join(_notes(child, base, samples, lost)),
    )


def _judged(child: Drawn, base: Drawn | None) -> tuple[str, ...]:
    """Languages in which the child was asked and that the base reads; all of the child's when there are none."""
    reads = child.languages if base is None else languages_read(base.readings)
    return tuple(language for language in child.languages if language in reads) or child.languages


def _salad_line(base: Drawn, judged: Sequence[str]) -> float:
    """Loss (nats per token, under the base) from which a text is salad."""
    dice = math.log(base.vocab)
    own = [x.nll for x in base.texts if x.language in judged and len(x.ids) >= degenerate.LEAST_TOKENS]
    return min(statistics.median(own) + FARTHER, dice) if own else dice


def _sample(text: Text, vocab: int, base_nll: float | None, line: float, lost: bool) -> Sample:
    found = Sample(
        prompt=text.prompt,
        language=text.language,
        text=text.text,
        tokens=len(text.ids),
        ended=text.ended,
        rep_4=degenerate.repeated_ngrams(text.ids),
        zlib_ratio=degenerate.zlib_ratio(text.text),
        loop_period=degenerate.loop_period(text.ids),
        replacements=degenerate.replacements(text.text),
        controls=degenerate.control_characters(text.text),
        scripts=degenerate.mixed_scripts(text.text),
        nll=text.nll,
        base_nll=base_nll if base_nll is not None and math.isfinite(base_nll) else None,
    )
    return replace(found, flags=_flags(found, vocab, line, lost))


def _flags(sample: Sample, vocab: int, line: float, lost: bool) -> tuple[Flag, ...]:
    long = sample.tokens >= degenerate.LEAST_TOKENS
    strange = (
        sample.base_nll > line if sample.base_nll is not None else lost or sample.nll > NEAR_DICE * math.log(vocab)
    )
    found: dict[Flag, bool] = {
        "repeats": long and sample.rep_4 > degenerate.REP_4,
        "compresses": long and sample.zlib_ratio > degenerate.ZLIB_RATIO,
        "loops": sample.loop_period > 0,
        "replacement": sample.replacements > 0,
        "control": sample.controls > 0,
        "scripts": bool(sample.scripts),
        "salad": long and strange,
    }
    return tuple(flag for flag, there in found.items() if there)


def _worst(samples: Sequence[Sample], judged: Sequence[str]) -> int | None:
    """The judged sample with most flags; of equal ones that with the gravest, then the most surprising one."""

    def badness(i: int) -> tuple[int, int, float]:
        sample = samples[i]
        gravest = min((_WORST_FIRST.index(flag) for flag in sample.flags), default=len(_WORST_FIRST))
        strange = sample.nll if sample.base_nll is None else sample.base_nll
        return len(sample.flags), -gravest, strange if sample.tokens >= degenerate.LEAST_TOKENS else 0.0

    return max((i for i, sample in enumerate(samples) if sample.language in judged), key=badness, default=None)


def _settings(drawn: Drawn) -> str:
    prompts = len({text.prompt for text in drawn.texts})
    return (
        f"{len(drawn.texts)} texts of {drawn.steps} tokens after {prompts} prompts ({', '.join(drawn.languages)}), "
        f"nucleus {TOP_P}, temperature {TEMPERATURE:g}, no repetition penalty, seed {drawn.seed}"
    )


def _notes(child: Drawn, base: Drawn | None, samples: Sequence[Sample], lost: bool) -> list[str]:
    notes = [child.note] if child.note else []
    if lost:
        costs = ", ".join(f"{reading.language} {reading.nll:.2f}" for reading in child.readings)
        notes.append(f"the model reads known text of no language better than guessing ({costs} nats per token)")
    if base is not None and base.readings and all(reading.lost for reading in base.readings):
        notes.append("the base itself reads known text of no language better than guessing")
    short = sum(1 for sample in samples if sample.tokens < degenerate.LEAST_TOKENS)
    if 4 * short >= len(samples):
        notes.append(f"{short} of {len(samples)} texts have fewer than {degenerate.LEAST_TOKENS} tokens")
    beyond = sum(1 for text in child.texts for i in text.ids if i >= child.known)
    if child.known and beyond:
        notes.append(
            f"{beyond} of the generated ids have no token ({child.known} are known, {child.vocab} have rows): they "
            "show as U+FFFD"
        )
    if base is not None and base.vocab != child.vocab:
        notes.append(f"the base predicts {base.vocab} tokens, this file {child.vocab}")
    return notes
