"""GQA705 and GQA706: what the texts that a model writes show."""

from __future__ import annotations

from collections.abc import Iterator
from math import comb

from gqacheck.geometry.facts import Subject
from gqacheck.geometry.outcomes import Flag, Generation, Sample
from gqacheck.rules.needs import not_measured
from gqacheck.rules.rule import Quantity, Rule, Severity, Violation
from gqacheck.text import printable

LOOPING: tuple[Flag, ...] = ("repeats", "compresses", "loops")
GARBLED: tuple[Flag, ...] = ("replacement", "control", "scripts", "salad")

HEALTHY_RATE = 0.015
"""Share of a healthy model's nucleus samples that show such a fault."""

FALSE_ALARM = 1e-4
"""Most that a healthy model may be accused without a base: 4 of 16 samples have 8e-5 at ``HEALTHY_RATE``."""

CLEARLY_WORSE = 0.01
"""One-sided Fisher test: the most by which chance alone makes a child this much worse than its base."""


def least_flagged(judged: int) -> int | None:
    """How many of ``judged`` samples must show a fault: the fewest that a healthy model has with less than 1e-4.

    4 of 16, 4 of 8, 3 of 4; None when all of so few samples prove nothing.
    """
    for wanted in range(1, judged + 1):
        chance = sum(
            comb(judged, k) * HEALTHY_RATE**k * (1 - HEALTHY_RATE) ** (judged - k) for k in range(wanted, judged + 1)
        )
        if chance < FALSE_ALARM:
            return wanted
    return None


def chance_of(flagged: int, judged: int, base_flagged: int, base_judged: int) -> float:
    """One-sided p of Fisher's exact test: that ``flagged`` or more of all faults fall on the child by chance."""
    faults, everything = flagged + base_flagged, judged + base_judged
    ways = sum(
        comb(judged, k) * comb(base_judged, faults - k) for k in range(flagged, min(faults, judged) + 1)
    )  # comb is 0 where there are not so many
    return ways / comb(everything, faults)


def is_worse(generation: Generation, flags: tuple[Flag, ...]) -> bool:
    """Whether so many judged samples have one of ``flags`` that a healthy model, or the base, explains it no longer."""
    judged, flagged = _judged(generation.samples, generation), generation.flagged(*flags)
    least = least_flagged(judged)
    if least is None or flagged < least:
        return False
    if not generation.base_samples:
        return True
    base_judged, base_flagged = _judged(generation.base_samples, generation), generation.flagged(*flags, base=True)
    return chance_of(flagged, judged, base_flagged, base_judged) <= CLEARLY_WORSE


def _judged(samples: tuple[Sample, ...], generation: Generation) -> int:
    return sum(1 for sample in samples if sample.language in generation.judged)


def _no_generation(subject: Subject) -> tuple[str, str] | None:
    if subject.runtime is not None and subject.runtime.generation is not None:
        return None
    return "generate", not_measured(subject, "generation", "generated text was not asked for (--generate)")


def generation_loops(subject: Subject) -> Iterator[Violation]:
    """What the model writes repeats itself far more than healthy text does.

    What it checks
        16 texts of 128 tokens are sampled after short prompts: nucleus 0.95, temperature 1, no repetition penalty, with
        the KV cache. A text counts when more than 0.2 of its 4-grams of tokens occurred before in it (rep-4), when its
        UTF-8 bytes deflate by more than 2.4, or when its end is an exact loop: three turns or more, 32 tokens or more.
        Without --base the rule fires from 4 of 16 texts on: a healthy model, at 1.5 % each, reaches that with 8e-5.
        With --base there must be as many, and more than the base has under the same prompts and random numbers: a
        one-sided Fisher test at 1 % (6 of 16 where the base has none, 10 where it has 2), for a model of documentation
        or of code rightly repeats itself.

    Why it matters
        Perplexity reads text that people wrote, and never the model's own. A model that lost its way back from its own
        mistakes can score well and still write one sentence for ever; so can one whose cache is read wrongly.

    What you would see
        `the the the the`, or a paragraph that comes back word for word, until the token limit.

    Fix
        Look at the text below the finding. If --consistency fails too, the fault is in how the model is run. If not,
        too much was removed: prune less, or fine-tune, and compare with --base. A repetition penalty only hides it.

    Known misses
        Repetition by meaning with other words, and loops that begin after 128 tokens. Greedy text is not judged: that
        of healthy models loops.

    Source
        rep-n: Welleck et al. 2019; nucleus sampling and its repetition beside people's (rep-4 0.010 and 0.008, greedy
        0.59): Holtzman et al. 2019. Reference documentation trips rep-4 or deflation in 7 % of windows of 128 tokens.
    """
    generation = subject.runtime.generation if subject.runtime else None
    if generation is None or not is_worse(generation, LOOPING):
        return
    yield _violation(
        generation,
        LOOPING,
        what="repeat themselves",
        consequence="chat and completion end in a loop, whatever the perplexity says",
        fix="check with --consistency that it is not the cache; else prune less or fine-tune, and compare with --base",
    )


def generation_garbled(subject: Subject) -> Iterator[Violation]:
    """What the model writes is broken characters, scripts that do not mix, or words without sense.

    What it checks
        The same 16 texts as generation-loops. A text counts when it holds U+FFFD anywhere but at its cut-off end (bytes
        that are no character, or ids that the tokenizer does not know), control characters, three or more writing
        systems that do not belong together (Han, kana and Latin do), or when it is word salad. That is told by a loss:
        with --base, the base finds the text more than 5 times as perplexing as its own texts; without, the text is as
        random as dice (above 0.8 ln V), or the model reads known text of no shipped language better than guessing.
        How many texts it takes is as for generation-loops. Languages that the base (without one: the model) does not
        read are not judged.

    Why it matters
        Query heads beside foreign KV heads raise no error and change no shape: the text is where a person sees it.
        Word salad passes every counting of characters.

    What you would see
        `nowN-,s Ob sy, the isusa3H modules open toce`, or text full of replacement characters.

    Fix
        Run with --base: the lineage rules name the heads that stand in the wrong place, and `gqacheck repair` puts them
        back. If they find nothing, check that the tokenizer is this model's.

    Known misses
        Without a base, salad from a model that still reads better than guessing: give --base. Fluent text that is not
        true.

    Source
        Measured on trained 32:8 and 28:4 models: the base's loss on texts of a truncated child is 3.1 to 5.8 nats per
        token above that on its own, on those of soundly cut children 0.0 to 0.9; deflation does not see it.
    """
    generation = subject.runtime.generation if subject.runtime else None
    if generation is None or not is_worse(generation, GARBLED):
        return
    yield _violation(
        generation,
        GARBLED,
        what="are garbled",
        consequence="nothing raises; whoever reads the output sees noise, and LoRA only covers it up",
        fix="mend what the lineage rules name beside its parent (--base); check that the tokenizer is this model's",
    )


def _violation(generation: Generation, flags: tuple[Flag, ...], *, what: str, consequence: str, fix: str) -> Violation:
    judged, flagged = _judged(generation.samples, generation), generation.flagged(*flags)
    beside = ""
    if generation.base_samples:
        base = generation.flagged(*flags, base=True)
        beside = f" (of the base's {base} of {_judged(generation.base_samples, generation)})"
    sample = _worst(generation, flags)
    return Violation(
        message=f"{flagged} of {judged} generated texts {what}{beside}; the worst {_measured(sample, flags)}: "
        f'"{printable(sample.text, 160)}"',
        expected=Quantity((least_flagged(judged) or judged) - 1, "such texts at most"),
        actual=Quantity(flagged, "such texts"),
        source=generation.settings,
        consequence=consequence,
        fix=fix,
    )


def _worst(generation: Generation, flags: tuple[Flag, ...]) -> Sample:
    """The worst sample of all when it has one of ``flags``, else the one with most of them."""
    if generation.worst is not None and set(flags) & set(generation.samples[generation.worst].flags):
        return generation.samples[generation.worst]
    judged = [sample for sample in generation.samples if sample.language in generation.judged]
    return max(judged, key=lambda sample: len(set(flags) & set(sample.flags)))


def _measured(sample: Sample, flags: tuple[Flag, ...]) -> str:
    """What is wrong with ``sample``, with numbers: ``repeats 0.91 of its 4-grams and ends in a loop of 3 tokens``."""
    salad = (
        f"costs {sample.nll:.2f} nats per token"
        if sample.base_nll is None
        else f"costs the base {sample.base_nll:.2f} nats per token"
    )
    said = {
        "repeats": f"repeats {sample.rep_4:.2f} of its 4-grams",
        "compresses": f"deflates by {sample.zlib_ratio:.1f}",
        "loops": f"ends in a loop of {sample.loop_period} token{'' if sample.loop_period == 1 else 's'}",
        "replacement": f"holds {sample.replacements} U+FFFD",
        "control": f"holds {sample.controls} control characters",
        "scripts": f"mixes {', '.join(sample.scripts)}",
        "salad": f"is word salad ({salad})",
    }
    parts = [said[flag] for flag in sample.flags if flag in flags]
    return " and ".join((", ".join(parts[:-1]), parts[-1]) if len(parts) > 1 else parts)


GENERATION_RULES: tuple[Rule, ...] = (
    Rule("GQA705", "generation-loops", Severity.ERROR, "runtime", generation_loops, _no_generation),
    Rule("GQA706", "generation-garbled", Severity.ERROR, "runtime", generation_garbled, _no_generation),
)
