"""The HTML report on what was measured: perplexities, where they come from, generated texts."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gqacheck.geometry.outcomes import Counterfactual, Generation, Perplexity, RuntimeFacts, Sample
from gqacheck.report.html_elements import Element, Node, e
from gqacheck.report.html_figures import Measured, perplexities
from gqacheck.report.runtime_words import about_sample, consistency_words, generation_words, perplexity_words
from gqacheck.report.whence import whence
from gqacheck.report.words import plural
from gqacheck.result import CheckpointReport
from gqacheck.rules.perplexity import band_of, perplexity_text, worse_than_guessing
from gqacheck.text import printable

SAMPLE = 1200
"""Characters of a generated text."""
FAR = 5.0
"""Times the base's perplexity from which on a value is drawn as an error."""


def measured(report: CheckpointReport) -> Node:
    """Perplexities with error bars, where they come from, and what else running it showed."""
    runtime = report.runtime
    if runtime is None:
        return None
    parts: list[Node] = []
    for number, perplexity in enumerate(runtime.perplexities):
        base = runtime.bases[number] if number < len(runtime.bases) else None
        parts.append(_perplexity(perplexity, base))
    parts += [_cause(one) for one in runtime.counterfactuals]
    said = consistency_words(runtime.consistency) if runtime.consistency else []
    if said:
        parts.append(e("ul", *(e("li", words) for words in said), class_="said"))
    return e("section", e("h3", "Measured"), *parts, _ran(runtime)) if parts else None


def _perplexity(one: Perplexity, base: Perplexity | None) -> Element:
    rows, part = _beside(one, base)
    guess = float(one.vocab_size) if one.vocab_size > 1 else None
    band = None if part else band_of(one)
    legend = [e("span", f"guessing blindly: {guess:,.0f}", class_="key guess")] if guess else []
    if band is not None:
        legend.append(e("span", f"healthy 7B models: {band.healthy[0]:g} to {band.healthy[1]:g}", class_="key healthy"))
    return e(
        "figure",
        e("figcaption", e("b", f"perplexity on {printable(one.corpus)}"), e("span", "lower is better", class_="dim")),
        e("p", part) if part else None,
        perplexities(rows, guess, band.healthy if band else None),
        e("p", *legend, class_="legend"),
        e("p", perplexity_words(one), class_="dim"),
        class_="ppl",
    )


def _beside(one: Perplexity, base: Perplexity | None) -> tuple[list[Measured], str]:
    """The perplexities that may stand on one axis, and in words of which part of the text they are, "" for all of it.

    The value of a run that ended early, or of segments that the base does not read, never stands beside another's.
    """
    whole = one.complete and not one.stopped_early
    kind = "bad" if _bad(one) else "now"
    relative = one.relative
    related = relative is not None and not relative.base_broken and math.isfinite(relative.ratio)
    if relative is not None and related and (relative.left_out or not whole):
        rows = [
            Measured("the base", relative.base, perplexity_text(relative.base), kind="before", partial=not whole),
            Measured("this checkpoint", relative.value, f"{perplexity_text(relative.value)} ({relative.ratio:.2f} x)",
                     kind=kind, partial=not whole),
        ]  # fmt: skip
        return rows, _part(one, relative.windows, relative.left_out)
    mine = Measured("this checkpoint", one.value, _value(one), one.stderr, kind, partial=not whole)
    if not whole:
        return [mine], _part(one, one.windows, ())
    if base is None:
        return [mine], ""
    return [Measured("the base", base.value, _value(base), base.stderr, "before"), mine], ""


def _part(one: Perplexity, windows: int, left_out: Sequence[str]) -> str:
    """``on 2 of 86 windows, without chinese, which the base does not read: not comparable with …``."""
    of_all = f" of {one.windows_in_all:,}" if one.windows_in_all > windows else ""
    which = f"on {windows:,}{of_all} windows" if of_all or windows != 1 else "on 1 window"
    without = f", without {printable(', '.join(left_out), 200)}, which the base does not read" if left_out else ""
    return f"{which}{without}: not comparable with values of the whole text"


def _bad(one: Perplexity) -> bool:
    """Whether it is drawn in the colour of errors: worse than guessing on every segment, or far above its base."""
    relative = one.relative
    far = relative is not None and not relative.base_broken and relative.ratio >= FAR
    return not math.isfinite(one.value) or worse_than_guessing(one) or far


def _value(one: Perplexity) -> str:
    error = f" ± {perplexity_text(one.stderr)}" if one.stderr is not None else ""
    return perplexity_text(one.value) + error


def _cause(one: Counterfactual) -> Element:
    """The base, the base with the same heads masked, and this file, on the same windows."""
    wrong = one.verdict in ("pairing", "loader")
    rows = [
        Measured("the base", one.base, perplexity_text(one.base), kind="before"),
        Measured("the base, same heads masked", one.masked, perplexity_text(one.masked), kind="masked"),
        Measured("this checkpoint", one.child, perplexity_text(one.child), kind="bad" if wrong else "now"),
    ]
    title = e("b", f"where it comes from, on {printable(one.corpus)}")
    method = f"the same {one.tokens:,} tokens in {plural(one.windows, 'window')} for all three; {one.protocol}"
    return e(
        "figure",
        e("figcaption", title, e("span", "lower is better", class_="dim")),
        perplexities(rows, None),
        e("p", whence(one)),
        e("p", method, class_="dim"),
        class_="ppl",
    )


def _ran(runtime: RuntimeFacts) -> Node:
    return e("p", f"on {runtime.device} in {runtime.dtype}", class_="dim")


def texts(report: CheckpointReport) -> Node:
    """What it wrote, the worst first, beside what the base wrote after the same words."""
    made = report.runtime.generation if report.runtime else None
    if made is None:
        return None
    order = sorted(range(len(made.samples)), key=lambda n: (n != made.worst, not made.samples[n].flags))
    shown = [_pair(made, n) for n in order]
    rest = e("details", e("summary", f"{len(shown) - 1} more"), *shown[1:]) if len(shown) > 1 else None
    counted = plural(len(made.samples), "text")
    return e(
        "section",
        e("h3", "What it writes", e("span", counted, class_="dim")),
        e("p", generation_words(made), class_="dim"),
        *shown[:1],
        rest,
    )


def _pair(made: Generation, n: int) -> Element:
    sample = made.samples[n]
    columns_: list[Node] = [_text("this checkpoint", sample)]
    if n < len(made.base_samples):
        columns_.append(_text("the base", made.base_samples[n]))
    prompt = e("p", e("span", "after ", class_="dim"), e("q", printable(sample.prompt, 300), dir="auto"))
    return e("div", prompt, e("div", *columns_, class_="pair"), class_="sample")


def _text(who: str, sample: Sample) -> Element:
    kind = "bad" if sample.flags else "good"
    said = e("blockquote", printable(sample.text, SAMPLE) or "(nothing)", dir="auto")
    return e("div", e("h4", who), said, e("p", about_sample(sample), class_="dim facts"), class_=f"text {kind}")
