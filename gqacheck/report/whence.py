"""Where a perplexity comes from: the base, the base with the same heads and channels masked, and this file."""

from __future__ import annotations

from gqacheck.geometry.outcomes import Counterfactual, RuntimeFacts
from gqacheck.report.document import Block, Span, line
from gqacheck.report.words import plural
from gqacheck.rules.perplexity import perplexity_text

NOISE_CODES = ("GQA703", "GQA704")
"""Rules on perplexity: under the first that fired it is said where the damage comes from."""
LABEL = "where it comes from"
CONCLUSIONS = {
    "pairing": "the rest is pairing, not pruning",
    "over-pruned": "over-pruned, for most of the damage is what was removed",
    "loader": "the cut and its pairing are right, so it is an attribute, the config or the loader",
    "base-broken": "the base is as bad on this text, so nothing follows about the cut",
    "fine": "about what this cut costs, and no more",
}
HEADLINES = {
    "over-pruned": "over-pruned: most of the damage is what was removed",
    "loader": "the cut and its pairing are right: look at attributes, config and loader",
    "base-broken": "the base itself is broken on this text, so the cut cannot be judged",
}
"""What replaces "its output is noise"; of broken pairing the lineage rules speak already."""


def whence_words(runtime: RuntimeFacts | None) -> str:
    """The cause of the noise in a sentence for the headline; "" when none is known or another rule names it."""
    found = [c.verdict for c in runtime.counterfactuals] if runtime else []
    worst = next((verdict for verdict in found if verdict != "fine"), "")
    return HEADLINES.get(worst, "")


def whence_blocks(runtime: RuntimeFacts | None) -> list[Block]:
    """One line per corpus, and one that says how it was measured where that is the same for all."""
    if runtime is None or not runtime.counterfactuals:
        return []
    made = runtime.counterfactuals
    said = {perplexity.protocol for perplexity in runtime.perplexities}
    methods = list(dict.fromkeys(_method(one, said) for one in made))
    blocks: list[Block] = []
    for one in made:
        corpus = f"{one.corpus}: " if len(made) > 1 else ""
        method = f" ({_method(one, said)})" if len(methods) > 1 else ""
        blocks.append(line(f"{corpus}{whence(one)}{method}", label=_label(LABEL)))
    if len(methods) == 1:
        blocks.append(line(Span(f"{methods[0]}; the same windows for all three", "dim"), label=_label("")))
    return blocks


def whence(one: Counterfactual) -> str:
    """``14.13 base → 26.00 with the same heads masked → 718,107 this file: the rest is pairing, not pruning``."""
    base, masked, child = map(perplexity_text, (one.base, one.masked, one.child))
    text = f"{base} base → {masked} with the same heads masked → {child} this file: {CONCLUSIONS[one.verdict]}"
    if one.partial or one.note:
        text += (
            f" ({'not all could be masked' if one.partial else ''}{': ' if one.partial and one.note else ''}{one.note})"
        )
    return text


def _method(one: Counterfactual, said: set[str]) -> str:
    """Protocol and counts; the runtime claim names the protocols of ``said``."""
    counts = f"{one.tokens:,} tokens in {plural(one.windows, 'window')}"
    return counts if one.protocol in said else f"{one.protocol}, {counts}"


def _label(name: str) -> tuple[str, Span]:
    return "  ", Span(f"{name:{len(LABEL)}}  ", "dim")
