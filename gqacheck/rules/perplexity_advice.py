"""What GQA703 advises: the tokenizer, the pairing or the amount, as far as a run beside the base tells them apart."""

from __future__ import annotations

from gqacheck.geometry.facts import Subject
from gqacheck.geometry.outcomes import Damage, Perplexity, RuntimeFacts

PTB_ALONE = "PTB alone proves nothing: measure wikitext2 or a text of your own, too"
READ_WRONGLY = "nothing raises; whatever is read with this tokenizer looks broken"
FORGOTTEN = "the tokenizer does not put BOS in front: set add_bos_token (or its post-processor) as the parent has it"


def consequence_of(runtime: RuntimeFacts, perplexity: Perplexity) -> str:
    """What follows for who uses a model that reads worse than guessing."""
    if perplexity.is_ptb:
        return PTB_ALONE
    if perplexity.bos_value is not None:
        return READ_WRONGLY
    if _on_smoke_alone(perplexity):
        return "nothing raises; if it was trained on such text, its output is noise, and LoRA only covers that up"
    if _damage(runtime, perplexity) in ("over-pruned", "fine"):
        return "nothing raises; generated text is noise before any training"
    return "nothing raises; generated text is noise, and LoRA only covers it up"


def fix_of(subject: Subject, runtime: RuntimeFacts, perplexity: Perplexity) -> str:
    """What to do about it, as far as it is known where it comes from."""
    if perplexity.bos_value is not None:
        return FORGOTTEN
    if perplexity.is_ptb:
        return "measure wikitext2 or a text of your own, too"
    if perplexity.relative is None:
        return fix_alone(runtime, perplexity)
    if perplexity.relative.base_broken:
        return "the base is broken on this text, too: look at the tokenizer, the class and the biases of both first"
    damage = _damage(runtime, perplexity)
    if damage in ("over-pruned", "fine"):
        lineage = subject.lineage
        also = lineage is not None and any(layer.misread() for layer in lineage.layers)
        return (
            "too much was removed, for the base without the same parts is about as bad: remove less, or choose what "
            f"goes by importance{', and prune by whole KV groups (GQA6xx)' if also else ''}"
        )
    if damage == "loader":
        return "the cut and its pairing are right: look at the attributes, the config, the biases and the loader"
    if damage == "pairing":
        return (
            "read the findings on the pairing (GQA6xx); prune again by whole KV groups, and do not start LoRA on this "
            "file"
        )
    return (
        "where the pairing has findings (GQA6xx), prune again by whole KV groups; where it has none, too much was "
        "removed; do not start LoRA on this file before you know which"
    )


def fix_alone(runtime: RuntimeFacts, perplexity: Perplexity) -> str:
    """What to do about a model that no base stands beside."""
    tells = "tells whether the pairing is wrong or too much was removed; do not start LoRA on this file before you know"
    if runtime.base_problem:
        return f"a base that can be compared {tells}"
    beside = f"run it beside its parent: --base PARENT {tells}"
    if _on_smoke_alone(perplexity):
        return (
            "smoke says nothing of a model that was trained on none of its English, Chinese and code: then measure a "
            f"text that it should read (--ppl FILE); otherwise {beside}"
        )
    return beside


def _on_smoke_alone(perplexity: Perplexity) -> bool:
    return perplexity.known_corpus == "smoke" and perplexity.relative is None


def _damage(runtime: RuntimeFacts, perplexity: Perplexity) -> Damage | None:
    """Where the perplexity comes from, as far as it is known."""
    measured = (perplexity.corpus, perplexity.protocol)
    found = (one.verdict for one in runtime.counterfactuals if (one.corpus, one.protocol) == measured)
    return next(found, None)
