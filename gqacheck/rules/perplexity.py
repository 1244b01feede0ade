"""GQA703 and GQA704: what a perplexity says by itself, and what it says beside the base's."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gqacheck.geometry.facts import Subject
from gqacheck.geometry.outcomes import BaseRelative, Perplexity, RuntimeFacts, SegmentLoss
from gqacheck.rules.perplexity_advice import FORGOTTEN, PTB_ALONE, READ_WRONGLY, consequence_of, fix_alone, fix_of
from gqacheck.rules.rule import Quantity, Rule, Severity, Violation
from gqacheck.text import printable

ALLOWED_RATIO = 5.0
"""A perplexity above this multiple of the base's is an error, unless the caller allows another."""
WORTH_A_LOOK = 1.5
"""From this multiple on it is a warning: what careful pruning of a quarter costs before any training stays below."""
CHANCE = 3.0
"""Standard errors of the paired difference that chance may make."""
TOKEN_SPREAD = 2.3
"""Standard deviation (nats) of one token's loss: bounds the error of the difference where there is one window only."""

LEAST_WINDOWS = 4
"""Of a part of a text, before anything is certain: all tokens of one may belong to a passage in another language."""
APART = 4.0
"""Standard errors, of windows taken as independent, by which their mean must lie above a line: a few that differ this
much from the rest are a passage, not a broken model."""


@dataclass(frozen=True, slots=True)
class Band:
    """Perplexities that people know from one corpus under one protocol. broken: from here on an error, None never."""

    healthy: tuple[float, float]
    broken: float | None = None
    exploded: float | None = None


BANDS: dict[tuple[str, str], Band] = {
    ("wikitext2", "llm-pruner-128"): Band((8, 15), 100, 1000),
    ("ptb", "llm-pruner-128"): Band((15, 30)),
}
"""Bands of 7B to 8B models. PTB never fails a checkpoint: a healthy quantised Mixtral measures 354 on it."""


def band_of(perplexity: Perplexity) -> Band | None:
    """The band that a value may be held against: of its whole corpus, its protocol, and of complete runs only."""
    if not perplexity.complete:
        return None
    return BANDS.get((perplexity.known_corpus, perplexity.protocol_name))


def line_of_band(perplexity: Perplexity) -> float:
    """The perplexity from which its band calls it broken; infinity where no band applies."""
    band = band_of(perplexity)
    return math.inf if band is None or band.broken is None else band.broken


def broken_by_band(perplexity: Perplexity) -> bool:
    """Whether a value without a base beside it lies above its band's line."""
    return perplexity.relative is None and perplexity.value > line_of_band(perplexity)


def read_without_bos(perplexity: Perplexity) -> bool:
    """Whether a value that looks broken is the protocol's doing, which leaves out the BOS that the model needs."""
    looks_broken = worse_than_guessing(perplexity) or broken_by_band(perplexity)
    return looks_broken and perplexity.bos_value is not None and perplexity.bos_left_out_by == "protocol"


def worse_than_guessing(perplexity: Perplexity, segment: SegmentLoss | None = None) -> bool:
    """Whether the model is worse than guessing on every segment (or on this one): uniformly, or by token frequency."""
    segments = [one for one in perplexity.segments if one.tokens] if segment is None else [segment]
    return bool(segments) and all(_worse_than(one) for one in segments)


def clearly_above(differences: Sequence[float]) -> bool:
    """Whether the mean of the windows' distances (nats) from a line is positive beyond ``APART`` of its errors."""
    if len(differences) < 2:
        return all(one > 0 for one in differences)
    mean = math.fsum(differences) / len(differences)
    spread = math.fsum((one - mean) ** 2 for one in differences) / (len(differences) - 1)
    return mean > APART * math.sqrt(spread / len(differences))


def unsettled(perplexity: Perplexity) -> bool:
    """Whether the windows that ``--limit`` left are worse than guessing, and too few or too unlike to say it of all."""
    if perplexity.complete or perplexity.stopped_early or not worse_than_guessing(perplexity):
        return False
    lines = [(s, min(s.uniform_nll, s.unigram_nll)) for s in perplexity.segments if s.tokens]
    apart = [nll - line for segment, line in lines for nll in segment.window_nlls]
    if not all(map(math.isfinite, apart)):
        return False
    return len(apart) < LEAST_WINDOWS or not clearly_above(apart)


def _no_perplexity(subject: Subject) -> tuple[str, str] | None:
    runtime = subject.runtime
    if runtime is None or not (runtime.perplexities or "ppl" in runtime.asked or not runtime.asked):
        return "ppl", "perplexity was not asked for (--ppl)"
    return None if runtime.perplexities else ("ppl", "no perplexity was measured")


def _no_relative(subject: Subject) -> tuple[str, str] | None:
    missing = _no_perplexity(subject)
    if missing or subject.runtime is None:
        return missing
    if subject.runtime.base_problem:
        return "base", subject.runtime.base_problem
    related = [p.relative for p in subject.runtime.perplexities if p.relative is not None]
    if not related:
        return "base", "there is no perplexity of a base to compare with (--base)"
    return ("base", "the base itself is broken on this text") if all(r.base_broken for r in related) else None


def ppl_broken(subject: Subject) -> Iterator[Violation]:
    """The model predicts text worse than guessing does.

    What it checks
        Two lines that need no experience with the model: guessing uniformly over the vocabulary (perplexity = its
        size), and guessing by token frequency alone (a unigram model of the same text, in which each token is
        predicted from the counts of all others). A corpus of several segments is judged segment by segment, and the
        rule fires only when every one of them is worse than one of the two lines. Without a base, a complete run of
        wikitext2 under llm-pruner-128 is also held against the band that people know of it: above 100 is broken,
        above 1000 exploded. Of the part of a text that --limit leaves, nothing is said from fewer than four windows,
        nor where windows differ so much that the rest of the text may be fine: that is "not checked", exit 3. So is a
        model that needs BOS under a protocol that puts it before the first window alone, when BOS in front of each
        window makes it healthy. On PTB it is a warning: PTB alone fails nothing.

    Why it matters
        This is how a cut with right shapes and wrong pairing looks: every query head sits next to some KV head, only
        not next to the one it was trained with. Nothing raises. Fine-tuning hides it (718,107 came down to 160) and
        does not mend it.

    What you would see
        A perplexity in the hundreds of thousands, and generated text that is noise.

    Fix
        Run it beside its parent (--base): that must be healthy, or the tokenizer or the loading is at fault, and it is
        said where the damage comes from. Where it is the pairing, prune again so that a KV head goes together with
        exactly the query heads that read it; where the same heads masked in the parent cost as much, remove less. Where
        BOS in front of the text makes it healthy, the finding says so: the tokenizer forgets it.

    Known misses
        A model that is badly hurt and still better than token frequencies. A healthy model on a text of another
        language than it was trained on is worse than uniform there; that is why one healthy segment is enough. The
        built-in text says nothing of a model that was trained on none of its languages.

    Source
        Uniform and unigram entropies are exact for the text at hand; the observed values are from public write-ups of
        a Llama-3-8B pruned to 24 query and 6 KV heads.
    """
    runtime = subject.runtime
    if runtime is None:
        return
    for perplexity in runtime.perplexities:
        segments = [segment for segment in perplexity.segments if segment.tokens]
        if runtime.non_finite and not all(math.isfinite(s.nll) for s in segments):
            continue  # GQA702 says it
        if unsettled(perplexity):
            continue  # the run says why it proves nothing
        if read_without_bos(perplexity):
            continue  # likewise
        band = band_of(perplexity)
        if worse_than_guessing(perplexity):
            yield _broken(subject, runtime, perplexity, [_worse_than(segment) for segment in segments])
        elif band is not None and broken_by_band(perplexity):
            yield _outside(runtime, perplexity, band)


def _worse_than(segment: SegmentLoss) -> tuple[str, float] | None:
    """Which line the segment is worse than, with that line in nats per token; None when it is better than both."""
    for name, bound in (
        ("guessing uniformly over the vocabulary", segment.uniform_nll),
        ("guessing by token frequency", segment.unigram_nll),
    ):
        if math.isfinite(bound) and not segment.nll <= bound:
            return name, bound
    return None


def _broken(
    subject: Subject, runtime: RuntimeFacts, perplexity: Perplexity, verdicts: list[tuple[str, float] | None]
) -> Violation:
    segments = [segment for segment in perplexity.segments if segment.tokens]
    reached = [verdict for verdict in verdicts if verdict is not None]
    name, bound = reached[0]
    corpus = printable(perplexity.corpus, 80)
    if len(reached) == 1:
        detail = f"{name} ({perplexity_text(perplexity_of(bound))})"
    else:
        each = (
            f"{printable(segment.name, 40)} {perplexity_text(perplexity_of(segment.nll))} against "
            f"{perplexity_text(perplexity_of(line))}"
            for segment, (_, line) in zip(segments, reached, strict=True)
        )
        names = list(dict.fromkeys(verdict[0] for verdict in reached))
        detail = f"{' or '.join(names)} on every segment ({', '.join(each)})"
    return Violation(
        message=(
            f"perplexity {perplexity_text(perplexity.value)} on {corpus} is worse than {detail}{_with_bos(perplexity)}"
        ),
        expected=Quantity(round(perplexity_of(bound), 3), "perplexity at most"),
        actual=Quantity(perplexity.value, "perplexity"),
        source=perplexity.protocol,
        consequence=consequence_of(runtime, perplexity),
        fix=fix_of(subject, runtime, perplexity),
        severity=_severity(perplexity),
    )


def _severity(perplexity: Perplexity) -> Severity | None:
    """The rule's own, but for PTB."""
    return Severity.WARNING if perplexity.is_ptb else None


def _with_bos(perplexity: Perplexity) -> str:
    if perplexity.bos_value is None:
        return ""
    return f"; with BOS in front of each window it is {perplexity_text(perplexity.bos_value)} on a few of them"


def _outside(runtime: RuntimeFacts, perplexity: Perplexity, band: Band) -> Violation:
    low, high = band.healthy
    word, line = ("broken", line_of_band(perplexity))
    if band.exploded is not None and perplexity.value > band.exploded:
        word, line = "exploded", band.exploded
    return Violation(
        message=(
            f"perplexity {perplexity_text(perplexity.value)} on {printable(perplexity.corpus, 80)} is {word}: above "
            f"{perplexity_text(line)}, where healthy 7B models measure {low:g} to {high:g} by this protocol"
            f"{_with_bos(perplexity)}"
        ),
        expected=Quantity(line_of_band(perplexity), "perplexity at most"),
        actual=Quantity(perplexity.value, "perplexity"),
        source=perplexity.protocol,
        consequence="too much was removed, or the wrong parts stand together; a short LoRA run will not bring it back"
        if perplexity.bos_value is None
        else READ_WRONGLY,
        fix=fix_alone(runtime, perplexity) if perplexity.bos_value is None else FORGOTTEN,
    )


def ppl_regressed(subject: Subject) -> Iterator[Violation]:
    """The model predicts text clearly worse than its base does.

    What it checks
        The perplexity beside the base's: same protocol, same windows, same tokens, on the segments that the base reads
        better than guessing. More than 5 times the base's is an error (--max-ppl-ratio says another multiple), from
        1.5 times on a warning, when the difference is larger than chance: three standard errors of the paired
        difference over windows. On PTB it is a warning however large: PTB alone fails nothing.

    Why it matters
        Absolute numbers depend on text, protocol and tokenizer; the base read the same tokens, so what is left is what
        was done to the model. A cut that keeps the pairing costs some tens of per cent before any training.

    What you would see
        Text that is worse than the base's, up to noise. LoRA closes part of the gap and hides the rest.

    Fix
        Look at the findings on the pairing and at "where it comes from" first. If all is paired and too much was
        removed, remove less, choose by importance, or rewrite o_proj and down_proj by least squares.

    Known misses
        A base of another family or tokenizer, or one that is itself broken: it is not compared, and that is "not
        checked", exit 3. Damage that this text does not show.

    Source
        Paired differences over windows as clusters. The seeds' bands (MLP only < +10 %, joint +10 to 20 %, aggressive
        +20 to 50 %) all stay below the warning.
    """
    runtime = subject.runtime
    if runtime is None:
        return
    allowed = subject.expect.ppl_ratio or ALLOWED_RATIO
    for perplexity in runtime.perplexities:
        relative = perplexity.relative
        if relative is None or relative.base_broken or worse_than_guessing(perplexity):
            continue  # of the last GQA703 speaks
        line = min(WORTH_A_LOOK, allowed)
        if not relative.difference >= math.log(line) or not _beyond_chance(relative):
            continue
        too_far = relative.ratio > allowed
        severity = Severity.ERROR if too_far and not perplexity.is_ptb else Severity.WARNING
        yield _regressed(perplexity, relative, allowed if too_far else line, severity)


def _beyond_chance(relative: BaseRelative) -> bool:
    error = relative.difference_stderr
    if error is None:
        error = TOKEN_SPREAD / math.sqrt(max(1, relative.tokens))
    return relative.difference > CHANCE * error


def _regressed(perplexity: Perplexity, relative: BaseRelative, line: float, severity: Severity) -> Violation:
    error = relative.difference_stderr
    spread = f" ± {error:.3f}" if error is not None else ""
    left_out = f", without {printable(', '.join(relative.left_out), 80)}" if relative.left_out else ""
    return Violation(
        message=(
            f"perplexity {perplexity_text(relative.value)} on {printable(perplexity.corpus, 80)}{left_out} is "
            f"{relative.ratio:.2f} times the base's {perplexity_text(relative.base)}, more than {line:g} times "
            f"({relative.difference:+.3f}{spread} nats per token on the same {relative.windows} "
            f"window{'s' if relative.windows != 1 else ''})"
        ),
        expected=Quantity(round(relative.base * line, 3), "perplexity at most"),
        actual=Quantity(relative.value, "perplexity"),
        source=perplexity.protocol,
        consequence=PTB_ALONE
        if perplexity.is_ptb
        else "the model is worse than its base by more than a careful cut costs",
        fix="see where it comes from; remove less or choose by importance, and compare again before you train",
        severity=severity,
    )


def perplexity_of(nats: float) -> float:
    """e to the ``nats`` per token, infinity where that overflows."""
    return math.exp(nats) if nats < 700 else math.inf if nats == nats else math.nan


def perplexity_text(value: float) -> str:
    """``12.34``, ``310.2``, ``718,107``, ``3.2e+11``, ``inf``, ``nan``."""
    if not math.isfinite(value):
        return str(value)
    if value >= 1e9:
        return f"{value:.1e}"
    if value >= 1000 or (value >= 100 and abs(value - round(value)) < 1e-6):
        return f"{value:,.0f}"
    return f"{value:.2f}" if value < 100 else f"{value:.1f}"


PERPLEXITY_RULES: tuple[Rule, ...] = (
    Rule("GQA703", "ppl-broken", Severity.ERROR, "runtime", ppl_broken, _no_perplexity),
    Rule("GQA704", "ppl-regressed", Severity.ERROR, "runtime", ppl_regressed, _no_relative),
)
