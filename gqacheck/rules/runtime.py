"""GQA701 and GQA702: whether the model runs at all."""

from __future__ import annotations

from collections.abc import Iterator
from math import isnan

from gqacheck.geometry.facts import Subject
from gqacheck.geometry.outcomes import RuntimeFacts
from gqacheck.rules.rule import Quantity, Rule, Severity, Violation
from gqacheck.text import printable


def _no_run(subject: Subject) -> tuple[str, str] | None:
    return None if subject.runtime else ("ppl", "running the model was not asked for (--ppl)")


def _no_logits(subject: Subject) -> tuple[str, str] | None:
    if subject.runtime and not subject.runtime.logits_seen:
        return "logits", "the model gave no output to look at"
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
        Every logit that --ppl produced is looked at, and those of one plain pass with --consistency and of every
        token with --generate; the rule fires when one is NaN or infinite. Where one attention implementation gives
        numbers and the other does not, that is GQA707's to say, and a fault that only --consistency met is said there
        alone.

    Why it matters
        One NaN in the residual stream makes every later token NaN, and a loss of NaN destroys a fine-tuning run at
        its first step.

    What you would see
        Perplexity `nan`, or `RuntimeError: probability tensor contains either inf, nan or element < 0` from generate().

    Fix
        If the run was in float16, repeat it with --dtype float32: overflow is a matter of the dtype, not of the cut.
        If it stays, a weight is NaN or infinite, or a norm was cut to a wrong width. Where GQA707 fires too, the
        weights are not it.

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
            f"(on {printable(runtime.device, 40)} in {printable(runtime.dtype, 40)}{_since(runtime)})"
        ),
        expected=Quantity(0, "non-finite logits"),
        actual=Quantity(runtime.non_finite, "non-finite logits"),
        source=f"a run on {runtime.device} in {runtime.dtype}",
        consequence="perplexity is nan, sampling raises, and training is lost at its first step",
        fix=_where_to_look(runtime),
    )


def _since(runtime: RuntimeFacts) -> str:
    return f", from token {runtime.non_finite_from} of a generated text on" if runtime.non_finite_from else ""


def _where_to_look(runtime: RuntimeFacts) -> str:
    """What to mend: the weights, unless another way of running the same weights gave numbers."""
    compared = runtime.consistency.comparisons if runtime.consistency is not None else ()
    if any(one.check == "backends" and not one.skipped and isnan(one.difference) for one in compared):
        return "mend what GQA707 says: one attention implementation alone does this, so the weights do not"
    place = (
        "look at the KV cache (--consistency), for the tokens before gave numbers"
        if runtime.non_finite_from
        else "look for NaN or Inf in the weights"
    )
    return place if runtime.dtype == "float32" else f"repeat it with --dtype float32; if it stays, {place}"


RUNTIME_RULES: tuple[Rule, ...] = (
    Rule("GQA701", "does-not-run", Severity.ERROR, "runtime", does_not_run, _no_run),
    Rule("GQA702", "non-finite-output", Severity.ERROR, "runtime", non_finite_output, _no_logits),
)
