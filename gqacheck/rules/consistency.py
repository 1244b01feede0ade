"""GQA707 to GQA709 and GQA712: every way of running the model gives the same logits, and it still copies."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from gqacheck.geometry.facts import Subject
from gqacheck.geometry.outcomes import Check, Comparison, Consistency, Induction
from gqacheck.rules.needs import not_measured
from gqacheck.rules.rule import Quantity, Rule, Severity, Violation
from gqacheck.text import printable

_COPIES = 1.0
_KEPT = 0.5
_NOT_ASKED = "consistency was not asked for (--consistency)"


def _consistency(subject: Subject) -> Consistency | None:
    return subject.runtime.consistency if subject.runtime else None


def _compared(*checks: Check) -> Callable[[Subject], tuple[str, str] | None]:
    """Why a rule on these checks cannot run: none of them was made."""

    def skip(subject: Subject) -> tuple[str, str] | None:
        consistency = _consistency(subject)
        if consistency is None:
            return "consistency", not_measured(subject, "consistency", _NOT_ASKED)
        mine = [comparison for comparison in consistency.comparisons if comparison.check in checks]
        if not all(comparison.skipped for comparison in mine):
            return None
        reasons = dict.fromkeys(comparison.skipped for comparison in mine)
        return checks[0], printable("; ".join(reasons), 400) or "it was not compared"

    return skip


def _no_induction(subject: Subject) -> tuple[str, str] | None:
    consistency = _consistency(subject)
    if consistency is None:
        return "consistency", not_measured(subject, "consistency", _NOT_ASKED)
    if consistency.induction is None:
        return "induction", (
            "the logits are NaN or infinite (GQA702)"
            if subject.runtime is not None and subject.runtime.non_finite
            else "the repeated random sequences could not be run"
        )
    base = consistency.base_induction
    if subject.runtime is not None and subject.runtime.base_problem:
        return "base", subject.runtime.base_problem
    if base is None:
        return "base", "a model that was never trained to copy cannot have lost it: give the parent with --base"
    if not base.drop >= _COPIES:
        return "induction", f"the base does not copy either: seeing a sequence before saves it {base.drop:.2f} nats"
    return None


def backends_disagree(subject: Subject) -> Iterator[Violation]:
    """Eager and sdpa attention give different logits.

    What it checks
        With --consistency the same ids are run under `attn_implementation="eager"` and `"sdpa"`. The rule fires when
        the largest difference of the logits, by their standard deviation, is above 0.005 (float32, float64), 0.3
        (float16) or 1.5 (bfloat16), or when one of the two raises and the other does not. Every attention module is
        watched while it runs: a comparison in which some layer did not change over is skipped, and so is a class that
        refuses sdpa (Gemma-2, gpt-oss). Where routers choose experts, the median position is judged, because a near
        tie that falls the other way makes one position another sum.

    Why it matters
        sdpa broadcasts heads by itself where it can and so hides what eager, other versions and other engines stumble
        over. A model that was evaluated under one and is served under the other is another model.

    What you would see
        `The size of tensor a (8) must match the size of tensor b (4) at non-singleton dimension 1` under eager with a
        stale num_key_value_groups; nothing at all where scale or mask differ.

    Fix
        Set num_key_value_groups of every attention module to its query heads / KV heads; take out patches that reach
        one attention function only. Repeat with --dtype float32: half precision hides small differences.

    Known misses
        Flash attention and flex attention are not run. Differences that show only beyond 50 tokens. In bfloat16 a
        scale that is 20 % off in one layer drowns in rounding; in float32 it does not.

    Source
        Tolerances measured on trained and random models of 50 families, see `TOLERANCES` in the source of
        gqacheck.runtime.consistency; transformers 5.23.
    """
    yield from _disagreements(
        subject,
        ("backends",),
        consequence="the model answers otherwise, or not at all, under another attention implementation",
        fix="set num_key_value_groups of every attention module to its query heads / KV heads, and take out patches "
        "that reach one attention function only",
        no_numbers="look for what reaches one attention function only: a patch, a scale, a mask row that leaves no "
        "position open",
    )


def cache_disagrees(subject: Subject) -> Iterator[Violation]:
    """Decoding with the KV cache gives other logits than one full forward pass, or later tokens change earlier logits.

    What it checks
        With --consistency 50 ids are run once as a whole, and once in pieces that hand their cache on: two thirds,
        a chunk, and single tokens. Then the first half is run before another ending: its logits must stay. The rule
        fires when the largest difference, by the standard deviation of the logits, is above 0.005 (float32, float64),
        0.15 (float16) or 0.5 (bfloat16), for another ending 0.02 and 0.1 in half precision, or when the pass with a
        cache raises.

    Why it matters
        Perplexity never uses the cache; every generated token does. A model whose layers share a cache slot scores
        as well as before and writes nonsense.

    What you would see
        `The size of tensor a (74) must match the size of tensor b (41)` or an `IndexError` from generate(), or text
        that falls apart after its first token.

    Fix
        Number the layers anew: layer.self_attn.layer_idx = i for i, layer in enumerate(model.model.layers). Where an
        ending changes what came before it, the attention is not causal: look at is_causal and at patched masks.

    Known misses
        Sliding windows longer than 50 tokens never slide here. Static and quantised caches are not run.

    Source
        As for GQA707. The cache indices of a whole-module pickle are those of its modules, which it runs from.
    """
    yield from _disagreements(
        subject,
        ("cache", "prefix"),
        consequence="perplexity is as before, and generated text is not what the model would have said",
        fix="number the layers anew: layer.self_attn.layer_idx = i for i, layer in enumerate(model.model.layers); if "
        "an ending changes what came before it, look at is_causal and at patched masks",
    )


def padding_disagrees(subject: Subject) -> Iterator[Violation]:
    """A text in a padded batch gets other logits than the same text alone.

    What it checks
        With --consistency a text is run alone and in a batch with a longer one, padded on the left and on the right,
        with the attention mask and the position ids that generate() makes. The logits of its real tokens, and those of
        the longer text, are compared. The rule fires above 0.005 standard deviations of the logits (float32, float64),
        0.15 (float16) or 0.5 (bfloat16), or when the batch raises and the text alone does not.

    Why it matters
        Evaluation harnesses and servers run batches. A model that looks at padding scores otherwise at batch size 8
        than at batch size 1.

    What you would see
        With a stale num_key_value_groups the batch raises although single texts run: a mask keeps sdpa from
        broadcasting the heads itself. Otherwise nothing but other numbers.

    Fix
        Set num_key_value_groups of every attention module to its query heads / KV heads; hand the attention mask on to
        every layer.

    Known misses
        Packed sequences. Classes that derive positions from the length alone fail with right and left padding mixed.

    Source
        As for GQA707.
    """
    yield from _disagreements(
        subject,
        ("padding",),
        consequence="results depend on the batch size, and on what else is in the batch",
        fix="set num_key_value_groups of every attention module to its query heads / KV heads, and hand the attention "
        "mask on to every layer",
    )


def _disagreements(
    subject: Subject, checks: tuple[Check, ...], *, consequence: str, fix: str, no_numbers: str = ""
) -> Iterator[Violation]:
    """no_numbers: the fix where the logits of one way are NaN; ``fix`` without one."""
    runtime, consistency = subject.runtime, _consistency(subject)
    if runtime is None or consistency is None:
        return
    for comparison in consistency.comparisons:
        if comparison.check not in checks or comparison.skipped or comparison.agrees:
            continue
        do = no_numbers if no_numbers and math.isnan(comparison.difference) else fix
        yield Violation(
            message=_message(comparison, consistency.dtype),
            expected=Quantity(comparison.tolerance, "standard deviations of the logits at most"),
            actual=Quantity(comparison.difference, "standard deviations of the logits"),
            source=f"a run on {runtime.device} in {consistency.dtype}",
            consequence=consequence,
            fix=do if consistency.dtype in ("float32", "float64") else f"repeat it with --dtype float32; then {do}",
        )


def _message(comparison: Comparison, dtype: str) -> str:
    where = printable(comparison.where, 320)
    if math.isinf(comparison.difference) or math.isnan(comparison.difference):
        return f"{comparison.what}: {where}" if "raises" in where else f"{comparison.what}: logits are {where}"
    return (
        f"{comparison.what}: logits differ by {comparison.difference:.3g} of their standard deviations, where "
        f"{dtype} explains {comparison.tolerance:g} (largest at {where})"
    )


def induction_lost(subject: Subject) -> Iterator[Violation]:
    """The model no longer copies a random sequence that it has just seen, and its base does.

    What it checks
        With --consistency and --base random ids are read twice in a row. A model whose heads are wired right predicts
        the second copy far better than the first. The rule fires when the base saves at least 1 nat per token there
        and the checkpoint keeps less than half of that. What it saves is counted from its own loss on the first copy
        or the base's, whichever is lower: being worse on the first is no merit.

    Why it matters
        Copying takes two heads in different layers that fit each other, so it is the first thing that wrong pairing
        breaks, and no word statistics can stand in for it: retrieval, code and few-shot prompts live on it.

    What you would see
        Nothing raises; names, numbers and identifiers from the prompt come back wrong.

    Fix
        Run with --base and read GQA601: if query heads were regrouped, prune again by whole KV groups. If lineage is
        clean, the heads that copy were cut: keep them, or fine-tune.

    Known misses
        Models that never learned to copy: without a base that does, nothing is said. A cut that leaves one copying
        head whole may lose other things.

    Source
        Olsson et al. 2022, "In-context Learning and Induction Heads". Line measured on a 12:3 model trained to copy
        (saves 5.6 nats): cuts from 3 to 2 whole KV groups keep 77 to 98 %, the same cuts with truncated query heads
        0 to 25 %; one whole group of 3 keeps 0 to 65 %.
    """
    consistency = _consistency(subject)
    if consistency is None or consistency.induction is None or consistency.base_induction is None:
        return
    child, base = consistency.induction, consistency.base_induction
    kept = share_kept(child, base)
    if kept >= _KEPT or (math.isnan(child.drop) and subject.runtime and subject.runtime.non_finite):
        return
    yield Violation(
        message=(
            f"a sequence seen before costs {child.second:.2f} nats per token the second time ({child.first:.2f} the "
            f"first), in the base {base.second:.2f} ({base.first:.2f}): {_percent(kept)} of what copying saves is left"
        ),
        expected=Quantity(round(_KEPT * base.drop, 3), "nats per token saved at least"),
        actual=Quantity(round(child.drop, 3), "nats per token saved"),
        source="repeated random sequences, the same for both",
        consequence="names, numbers and identifiers from the prompt come back wrong",
        fix="read the lineage findings: if query heads were regrouped, prune again by whole KV groups; if not, the "
        "heads that copy were cut",
    )


def share_kept(child: Induction, base: Induction) -> float:
    """How much of what copying saves the base the child still saves: 1 all, 0 or less nothing, NaN counts as nothing.

    >>> share_kept(Induction(6.0, 3.0), Induction(5.0, 1.0))
    0.5
    """
    kept = (min(child.first, base.first) - child.second) / base.drop
    return kept if kept == kept else 0.0


def _percent(share: float) -> str:
    return f"{max(share, 0.0):.0%}".replace("%", " %")


CONSISTENCY_RULES: tuple[Rule, ...] = (
    Rule("GQA707", "backends-disagree", Severity.ERROR, "runtime", backends_disagree, _compared("backends")),
    Rule("GQA708", "cache-disagrees", Severity.ERROR, "runtime", cache_disagrees, _compared("cache", "prefix")),
    Rule("GQA709", "padding-disagrees", Severity.ERROR, "runtime", padding_disagrees, _compared("padding")),
    Rule("GQA712", "induction-lost", Severity.WARNING, "runtime", induction_lost, _no_induction),
)
