"""Why what was measured does not count, although the model ran: a base that says nothing, a protocol that leaves out
the BOS that the model needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from gqacheck.geometry.facts import Subject
from gqacheck.geometry.outcomes import Perplexity, RuntimeFacts
from gqacheck.rules.perplexity import perplexity_text, read_without_bos
from gqacheck.text import printable


def settled(subject: Subject, facts: RuntimeFacts) -> RuntimeFacts:
    """``facts`` of the subject with the first reason for which they do not count; mostly that is its base."""
    facts = replace(facts, base_problem=facts.base_problem or _no_base(subject))
    return replace(facts, problem=facts.base_problem or facts.problem or _unread(facts.perplexities))


def _no_base(subject: Subject) -> str:
    """Why the base that was given is not run beside the subject, "" when none was given."""
    lineage = subject.lineage
    if subject.base is not None or lineage is None or not lineage.stranger:
        return ""
    if lineage.relation == "swapped":
        return f"not compared with the base: {lineage.reason}"
    return f"the base is another model: {lineage.reason}"


def _unread(measured: Sequence[Perplexity]) -> str:
    for one in measured:
        if read_without_bos(one) and one.bos_value is not None:
            return without_bos(one, "this model")
    return ""


def without_bos(measured: Perplexity, who: str) -> str:
    """That the protocol leaves out the BOS that ``who`` needs, with both numbers and what to do."""
    assert measured.bos_value is not None
    return (
        f"on {printable(measured.corpus, 80)} the protocol {measured.protocol_name} puts BOS only where a text "
        f"begins, and {who} needs it before each window: {perplexity_text(measured.value)} as it is read, "
        f"{perplexity_text(measured.bos_value)} with it on a few windows; use windows-512, which puts it before each"
    )
