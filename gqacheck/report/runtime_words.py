"""What running a model showed, in the words of the text report."""

from __future__ import annotations

from math import exp, inf, isfinite

from gqacheck.geometry.outcomes import Consistency, Flag, Generation, Perplexity, RuntimeFacts, Sample
from gqacheck.report.document import Block, Span, line
from gqacheck.report.words import plural
from gqacheck.rules.perplexity import band_of, perplexity_text
from gqacheck.text import printable

FLAG_WORDS: dict[Flag, str] = {
    "repeats": "repetition",
    "compresses": "text that compresses far too well",
    "loops": "a loop at the end",
    "replacement": "broken characters",
    "control": "control characters",
    "scripts": "mixed writing systems",
    "salad": "word salad",
}
CHECK_WORDS = {
    "backends": "eager = sdpa",
    "cache": "cached = full",
    "prefix": "causal",
    "padding": "padded = alone",
}
SHOWN_OF_A_SAMPLE = 240


def runtime_words(runtime: RuntimeFacts) -> list[str]:
    """One entry per perplexity, then generation and consistency; what was asked and not measured says so."""
    parts = [perplexity_words(p) for p in runtime.perplexities]
    if runtime.generation is not None:
        parts.append(generation_words(runtime.generation))
    if runtime.consistency is not None:
        parts += consistency_words(runtime.consistency)
    return parts


def perplexity_words(p: Perplexity) -> str:
    """``perplexity 12.34 ± 0.41 on smoke (english 8.10, …; protocol, 8,188 tokens in 4 windows)``."""
    error = f" ± {perplexity_text(p.stderr)}" if p.stderr is not None else ""
    inside = [p.protocol, f"{p.tokens:,} tokens in {plural(p.windows, 'window')}", f"text {p.fingerprint[:12]}"]
    if len(p.segments) > 1:
        each = ", ".join(f"{s.name} {perplexity_text(inf if s.nll >= 700 else exp(s.nll))}" for s in p.segments)
        inside.insert(0, each)
    if p.word_perplexity is not None and p.byte_perplexity is not None and p.bits_per_byte is not None:
        inside.append(
            f"per word {perplexity_text(p.word_perplexity)}, per byte {perplexity_text(p.byte_perplexity)}, "
            f"{p.bits_per_byte:.4f} bits per byte"
        )
    band = band_of(p)
    if band is not None:
        inside.append(f"healthy 7B models measure {band.healthy[0]:g} to {band.healthy[1]:g} by this protocol")
    if p.corpus_note:
        inside.append(p.corpus_note)
    if p.bos_value is not None:
        inside.append(f"with BOS in front of each window {perplexity_text(p.bos_value)} on a few of them")
    if p.note or not p.complete:
        inside.append(p.note or "partial: not comparable")
    return f"perplexity {perplexity_text(p.value)}{error} on {p.corpus}{relative_words(p)} ({'; '.join(inside)})"


def relative_words(p: Perplexity) -> str:
    """``, 1.21 times the base's 10.20 (+0.190 ± 0.012 nats per token, KL 0.150, same top token 84 %)``."""
    relative = p.relative
    if relative is None or relative.base_broken or not isfinite(relative.ratio):
        return ""
    error = f" ± {relative.difference_stderr:.3f}" if relative.difference_stderr is not None else ""
    parts = [f"{relative.difference:+.3f}{error} nats per token"]
    if relative.kl is not None and relative.top1_agreement is not None:
        parts.append(f"KL {relative.kl:.3f}, same top token {100 * relative.top1_agreement:.0f} %")
    if relative.left_out:
        parts.append(f"without {', '.join(relative.left_out)}, which the base does not read")
    return f", {relative.ratio:.2f} times the base's {perplexity_text(relative.base)} ({'; '.join(parts)})"


def base_words(runtime: RuntimeFacts | None) -> str:
    """The base's own perplexities, for the line that names it; "" when it was not run."""
    if runtime is None or not runtime.bases:
        return ""
    each = [
        f"{perplexity_text(base.value)} on {base.corpus}{' (the base itself is broken)' if broken else ''}"
        for base, broken in zip(runtime.bases, _broken(runtime), strict=True)
    ]
    return f"perplexity {', '.join(each)}"


def _broken(runtime: RuntimeFacts) -> list[bool]:
    return [p.relative is not None and p.relative.base_broken for p in runtime.perplexities]


def generation_words(made: Generation) -> str:
    """``16 texts generated and judged (…): word salad in 8 (base 0)``."""
    judged = [sample for sample in made.samples if sample.language in made.judged]
    flags = list(dict.fromkeys(flag for sample in judged for flag in sample.flags))
    counts = []
    for flag in flags:
        base = f" (base {made.flagged(flag, base=True)})" if made.base_samples else ""
        counts.append(f"{FLAG_WORDS[flag]} in {made.flagged(flag)}{base}")
    left_out = f"; not judged: {', '.join(made.left_out)}, which it does not read" if made.left_out else ""
    said = ", ".join(counts) or "nothing wrong with any"
    return f"{plural(len(judged), 'text')} generated and judged ({made.settings}): {said}{left_out}{_note(made.note)}"


def consistency_words(found: Consistency) -> list[str]:
    """What agreed, with the largest difference; what was skipped, with the reason; the copies of random tokens."""
    compared = [one for one in found.comparisons if not one.skipped]
    agreed = list(dict.fromkeys(CHECK_WORDS[one.check] for one in compared if one.agrees))
    parts = []
    if agreed:
        largest = max(one.difference for one in compared if one.agrees)
        parts.append(f"consistent: {', '.join(agreed)} (logits within {largest:.1g} of their spread)")
    for reason in dict.fromkeys(one.skipped for one in found.comparisons if one.skipped):
        same = [one for one in found.comparisons if one.skipped == reason]
        several = ", ".join(dict.fromkeys(CHECK_WORDS[one.check] for one in same))
        parts.append(f"not compared: {same[0].what if len(same) == 1 else several}: {reason}")
    if found.induction is not None:
        base = found.base_induction
        beside = f" (base {base.first:.2f} to {base.second:.2f})" if base is not None else ""
        parts.append(
            f"repeated random tokens: {found.induction.first:.2f} nats the first time, "
            f"{found.induction.second:.2f} the second{beside}"
        )
    return parts + list(found.notes)


def sample_blocks(runtime: RuntimeFacts | None) -> list[Block]:
    """The worst generated text, as data, cut to a glance."""
    made = runtime.generation if runtime is not None else None
    if made is None or made.worst is None or not 0 <= made.worst < len(made.samples):
        return []
    sample = made.samples[made.worst]
    text = printable(sample.text, SHOWN_OF_A_SAMPLE)
    told = f"{printable(sample.prompt, 80)} → {text} ({about_sample(sample)})"
    return [line(told, label=Span("worst text  ", "dim"))]


def about_sample(sample: Sample) -> str:
    """What was measured on one text: ``128 tokens, rep-4 0.91, zlib 9.50, …: repetition``."""
    parts = [f"{sample.tokens} tokens", f"rep-4 {sample.rep_4:.2f}", f"zlib {sample.zlib_ratio:.2f}"]
    parts.append(f"{sample.nll:.2f} nats per token of its own")
    if sample.base_nll is not None:
        parts.append(f"{sample.base_nll:.2f} under the base")
    if sample.loop_period:
        parts.append(f"loops every {plural(sample.loop_period, 'token')}")
    flags = ", ".join(FLAG_WORDS[flag] for flag in sample.flags)
    return ", ".join(parts) + (f": {flags}" if flags else "")


def _note(note: str) -> str:
    return f"; {note}" if note else ""
