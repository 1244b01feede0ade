"""GQA701 to GQA703: what running the model showed."""

from __future__ import annotations

import math
from collections.abc import Iterator

from gqacheck.geometry.facts import Subject
from gqacheck.geometry.outcomes import Perplexity, SegmentLoss
from gqacheck.rules.rule import Quantity, Rule, Severity, Violation
from gqacheck.text import printable


def _no_run(subject: Subject) -> tuple[str, str] | None:
    return None if subject.runtime else ("ppl", "perplexity was not asked for (--ppl)")


def _no_logits(subject: Subject) -> tuple[str, str] | None:
    if subject.runtime and not subject.runtime.logits_seen:
        return "logits", "the model gave no output to look at"
    return _no_run(subject)


def _no_perplexity(subject: Subject) -> tuple[str, str] | None:
    if subject.runtime and not subject.runtime.perplexities:
        return "ppl", "no perplexity was measured"
    return _no_run(subject)


def does_not_run(subject: Subject) -> Iterator[Violation]:
    """The model cannot be rebuilt from its tensors, or its forward pass raises.

    What it checks
        With --ppl the model is rebuilt from the tensors and the config: the stock transformers class, every Linear
        at its measured size, every layer with its own head counts. The rule fires when that is impossible, or when
        the first forward pass raises. A missing tokenizer or a family without a stock class is not this rule's
        business: those are reported as "could not check".

    Why it matters
        This is the friendliest loader there is: it trusts the tensors and repairs stale attributes. What does not
        run here runs nowhere.

    What you would see
        A reshape error (`shape '[1, 4, -1, 8]' is invalid for input of size 176`), `mat1 and mat2 shapes cannot be
        multiplied`, or `index out of range in self`.

    Fix
        Read the static findings first, they name the layer and the tensor. Without any, report it: the file may
        need something that the rebuild does not know.

    Known misses
        Paths that one forward pass over text does not take: generation with a cache, padded batches, other
        attention backends.

    Source
        The error texts are those of transformers 4.40 and 5.23 on deliberately broken checkpoints.
    """
    runtime = subject.runtime
    if runtime is None or runtime.failure is None or runtime.failure_stage == "tokenizer":
        return
    stage = {"rebuild": "the model cannot be rebuilt", "forward": "the forward pass fails"}
    what = stage.get(runtime.failure_stage or "", "the model does not run")
    yield Violation(
        message=f"{what}: {printable(runtime.failure, 600)}",
        source=f"a run on {runtime.device} in {runtime.dtype}",
        consequence="the same error, or a worse one, wherever this checkpoint is loaded",
        fix="mend what the static findings name; if there are none, please report this file's structure",
    )


def non_finite_output(subject: Subject) -> Iterator[Violation]:
    """The logits hold NaN or infinite values.

    What it checks
        Every logit that the perplexity run produced is looked at; the rule fires when one is NaN or infinite.

    Why it matters
        One NaN in the residual stream makes every later token NaN, and a loss of NaN destroys a fine-tuning run at
        its first step.

    What you would see
        Perplexity `nan`, or `RuntimeError: probability tensor contains either inf, nan or element < 0` from generate().

    Fix
        If the run was in float16, repeat it with --dtype float32: overflow is a matter of the dtype, not of the cut.
        If it stays, a weight is NaN or infinite, or a norm was cut to a wrong width.

    Known misses
        Values that overflow only on longer inputs than the corpus has.

    Source
        IEEE 754; the text of the sampling error is that of torch.multinomial.
    """
    runtime = subject.runtime
    if runtime is None or not runtime.non_finite:
        return
    yield Violation(
        message=(
            f"{runtime.non_finite:,} of {runtime.logits_seen:,} logits are NaN or infinite "
            f"(on {printable(runtime.device, 40)} in {printable(runtime.dtype, 40)})"
        ),
        expected=Quantity(0, "non-finite logits"),
        actual=Quantity(runtime.non_finite, "non-finite logits"),
        source=f"a run on {runtime.device} in {runtime.dtype}",
        consequence="perplexity is nan, sampling raises, and training is lost at its first step",
        fix="repeat it with --dtype float32; if it stays, look for NaN or Inf in the weights"
        if runtime.dtype != "float32"
        else "look for NaN or Inf in the weights",
    )


def ppl_broken(subject: Subject) -> Iterator[Violation]:
    """The model predicts text worse than guessing does.

    What it checks
        Two lines that need no experience with the model: guessing uniformly over the vocabulary (perplexity = its
        size), and guessing by token frequency alone (a unigram model of the same text, in which each token is
        predicted from the counts of all others). A corpus of several segments is judged segment by segment, and the
        rule fires only when every one of them is worse than one of the two lines.

    Why it matters
        This is how a cut with right shapes and wrong pairing looks: every query head sits next to some KV head, only
        not next to the one it was trained with. Nothing raises. Fine-tuning hides it (718,107 came down to 160) and
        does not mend it.

    What you would see
        A perplexity in the hundreds of thousands, and generated text that is noise.

    Fix
        Run the same command on the parent: that must be healthy, or the tokenizer or the loading is at fault. Then
        prune again so that a KV head goes together with exactly the query heads that read it.

    Known misses
        A model that is badly hurt and still better than token frequencies. A healthy model on a text of another
        language than it was trained on is worse than uniform there; that is why one healthy segment is enough.

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
        verdicts = [_worse_than(segment) for segment in segments]
        if segments and all(verdicts):
            yield _broken(perplexity, segments, verdicts)


def _worse_than(segment: SegmentLoss) -> tuple[str, float] | None:
    """Which line the segment is worse than, with that line in nats per token; None when it is better than both."""
    for name, bound in (
        ("guessing uniformly over the vocabulary", segment.uniform_nll),
        ("guessing by token frequency", segment.unigram_nll),
    ):
        if math.isfinite(bound) and not segment.nll <= bound:
            return name, bound
    return None


def _broken(perplexity: Perplexity, segments: list[SegmentLoss], verdicts: list[tuple[str, float] | None]) -> Violation:
    reached = [verdict for verdict in verdicts if verdict is not None]
    name, bound = reached[0]
    corpus = printable(perplexity.corpus, 80)
    if len(reached) == 1:
        detail = f"{name} ({perplexity_text(_exp(bound))})"
    else:
        each = (
            f"{printable(segment.name, 40)} {perplexity_text(_exp(segment.nll))} against {perplexity_text(_exp(line))}"
            for segment, (_, line) in zip(segments, reached, strict=True)
        )
        names = list(dict.fromkeys(verdict[0] for verdict in reached))
        detail = f"{' or '.join(names)} on every segment ({', '.join(each)})"
    return Violation(
        message=f"perplexity {perplexity_text(perplexity.value)} on {corpus} is worse than {detail}",
        expected=Quantity(round(_exp(bound), 3), "perplexity at most"),
        actual=Quantity(perplexity.value, "perplexity"),
        source=perplexity.protocol,
        consequence="nothing raises; generated text is noise, and LoRA only covers it up",
        fix="run the same command on the parent: if that is healthy, the cut put query heads beside KV heads that are "
        "not theirs; prune again by whole KV groups, and do not start LoRA on this file",
    )


def _exp(nats: float) -> float:
    return math.exp(nats) if nats < 700 else math.inf


def perplexity_text(value: float) -> str:
    """``12.34``, ``310.2``, ``718,107``, ``3.2e+11``, ``inf``, ``nan``."""
    if not math.isfinite(value):
        return str(value)
    if value >= 1e9:
        return f"{value:.1e}"
    if value >= 1000 or (value >= 100 and abs(value - round(value)) < 1e-6):
        return f"{value:,.0f}"
    return f"{value:.2f}" if value < 100 else f"{value:.1f}"


RUNTIME_RULES: tuple[Rule, ...] = (
    Rule("GQA701", "does-not-run", Severity.ERROR, "runtime", does_not_run, _no_run),
    Rule("GQA702", "non-finite-output", Severity.ERROR, "runtime", non_finite_output, _no_logits),
    Rule("GQA703", "ppl-broken", Severity.ERROR, "runtime", ppl_broken, _no_perplexity),
)
