"""What is known of a base before it says anything of a child: whether it is whole, and whether both read alike."""

from __future__ import annotations

from collections.abc import Sequence

from gqacheck.geometry.config import config_number
from gqacheck.geometry.facts import Subject
from gqacheck.geometry.outcomes import Perplexity
from gqacheck.rules.perplexity import perplexity_text, unsettled, worse_than_guessing
from gqacheck.runtime.base_tokenizer import OwnTokenizer
from gqacheck.runtime.doubts import without_bos
from gqacheck.text import printable

LOST = frozenset(("GQA108", "GQA304", "GQA402", "GQA410"))
"""Rules whose errors mean that biases, layers or other tensors are lost: it runs, and is another model than it was.

What is only written down wrongly (GQA2xx, the rest of GQA4xx) is not here: the rebuild goes by the tensors.
"""
MEND = "mend it, or name the right base"


def refusal(base: Subject) -> str:
    """Why the base is not run at all, "" when nothing is known against it."""
    lost = errors_of(base, LOST) or _fewer_layers(base)
    if not lost:
        return ""
    return f"the base itself is broken: its own check finds {lost}, so it cannot judge this file: {MEND}"


def _fewer_layers(base: Subject) -> str:
    """GQA401 where the config states more layers than are stored; fewer are a config that is behind."""
    stated = config_number(base.checkpoint.config.values, "num_hidden_layers") if base.checkpoint.config else None
    return errors_of(base, frozenset(("GQA401",))) if stated and stated > len(base.geometry.layers) else ""


def broken(base: Subject, measured: Sequence[Perplexity], own: OwnTokenizer | None) -> str:
    """Why nothing can be said of the child by its base: it is itself worse than guessing on every corpus. Else ""."""
    if not measured or not all(worse_than_guessing(perplexity) for perplexity in measured):
        return ""
    for one in measured:
        if needs_bos(one):
            return bos_words(one, own)
    first = measured[0]
    if all(one.is_ptb for one in measured):
        return (
            f"the base reads {printable(first.corpus, 80)} no better than guessing either (perplexity "
            f"{perplexity_text(first.value)}), and PTB alone proves nothing: measure wikitext2 or a text of your own"
        )
    corpus, value = printable(first.corpus, 80), perplexity_text(first.value)
    said = (
        f"the base itself is broken: its perplexity on {corpus} is {value}, worse than guessing, so it cannot judge "
        "this file"
    )
    errors = errors_of(base)
    if errors:
        return f"{said}; its own check finds {errors}: {MEND}"
    for one in measured:
        if unsettled(one):
            return (
                f"on {one.windows} of the {one.windows_in_all} windows of {printable(one.corpus, 80)} the base is "
                "worse than guessing, which so few do not settle: read more of them (--limit), or all"
            )
    return f"{said}; is it the right folder, with its own tokenizer, class and biases?"


def needs_bos(perplexity: Perplexity) -> bool:
    """Whether the base was only worse than guessing because nothing stood before the text."""
    return perplexity.bos_value is not None and worse_than_guessing(perplexity)


def bos_words(perplexity: Perplexity, own: OwnTokenizer | None) -> str:
    """Whose fault it is that the base was read without the BOS that it needs."""
    assert perplexity.bos_value is not None
    if perplexity.bos_left_out_by == "protocol":
        return without_bos(perplexity, "the base")
    numbers = (
        f"on {printable(perplexity.corpus, 80)} the base measures {perplexity_text(perplexity.value)} without BOS and "
        f"{perplexity_text(perplexity.bos_value)} with it"
    )
    if own is not None and own.puts_bos:
        return (
            f"this file was read with a tokenizer that puts no BOS before a text; the base's own puts one: {numbers}; "
            "nothing is said by the base then: name the base's tokenizer with --tokenizer"
        )
    if own is not None:
        return f"the base itself is broken: its tokenizer puts no BOS before a text, and it needs it: {numbers}; {MEND}"
    return f"the tokenizer puts no BOS before a text, and the base needs it: {numbers}; name the right --tokenizer"


def errors_of(base: Subject, only: frozenset[str] | None = None) -> str:
    """The errors that the base's own check finds, by code and name; of the rules in ``only``, where given."""
    from gqacheck.rules import RULES
    from gqacheck.rules.rule import Severity
    from gqacheck.rules.run import run_rules

    rules = [rule for rule in RULES if rule.claim != "runtime" and (only is None or rule.code in only)]
    findings, _ = run_rules(base, rules, tolerant=True)
    codes = dict.fromkeys(f"{f.code} {f.slug}" for f in findings if f.severity is Severity.ERROR)
    return ", ".join(list(codes)[:4])
