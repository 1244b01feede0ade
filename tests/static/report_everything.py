"""A report in which everything is said, and the list of what every format must tell of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from report_samples import (
    CLAIMS,
    HOSTILE,
    broken,
    checkpoint,
    counterfactual,
    finding,
    healthy,
    misaligned,
    perplexity,
    regrouped,
    runtime,
    sound_child,
    unreadable,
)

from gqacheck.geometry.outcomes import (
    BaseRelative,
    Comparison,
    Consistency,
    Generation,
    Induction,
    RuntimeFacts,
    Sample,
)
from gqacheck.result import CheckpointReport, ClaimResult, ClaimState, Report, Verdict
from gqacheck.rules.rule import Severity, Skipped

EVIL = (
    "<script>alert(1)</script><img src=x onerror=alert(2)>&\"'\x00\ufffe\udcff]]>|`@someone #12 GH-3 "
    "https://evil.example www.evil.example **b** [a](b) ![i](j) </details> <!-- $x$ ::error::pwned ##[error]pwned\r\n"
    "::set-output name=a::b\n% %0A::warning::pwned </style></pre></svg>-->" + HOSTILE
)
"""A name that tries every format."""


def generation() -> Generation:
    """One healthy and one looping text beside the base's."""
    loop = Sample("The river", "english", "the the the the", 4, rep_4=0.91, zlib_ratio=9.5, nll=0.3, base_nll=7.25,
                  flags=("repeats", "loops"), loop_period=1)  # fmt: skip
    fine = Sample("Once", "english", "upon a time", 3, nll=2.5)
    return Generation("nucleus 0.95, seed 0", (fine, loop), (replace(fine, text="of the base"),) * 2, ("english",),
                      ("chinese",), 1)  # fmt: skip


def consistency() -> Consistency:
    """Cache disagrees, padding was skipped."""
    return Consistency(
        (
            Comparison("backends", "eager beside sdpa attention", 0.001, 0.01),
            Comparison("padding", "padded beside alone", skipped="no pad token is known"),
        ),
        Induction(7.5, 1.25, (0.125, 0.5), (0.25, 6.25)),
        Induction(7.0, 0.5, (0.25, 0.75), (0.25, 6.5)),
        notes=("a remark on consistency",),
    )


def ran(**changes: object) -> RuntimeFacts:
    """Everything measured beside the base."""
    relative = BaseRelative(14.13, 718107.3, 50821.5, 10.836, 0.125, 8188, 16, kl=9.75, top1_agreement=0.03)
    made = runtime(
        perplexity(718107.3, relative=relative),
        bases=(perplexity(14.13),),
        counterfactuals=(counterfactual(),),
        generation=generation(),
        consistency=consistency(),
        notes=("a remark on the run",),
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def everything(**changes: object) -> CheckpointReport:
    """A child with findings of every severity that was compared and run."""
    findings = (
        regrouped(),
        finding(
            "GQA703", slug="ppl-broken", message="718,107 is worse than guessing", layers=(), tensors=(), fix="stop"
        ),
        finding("GQA013", Severity.WARNING, slug="oversized-storage", message="more than it uses", layers=(2, 3)),
        finding("GQA011", Severity.NOTE, slug="pickled-module", message="tied to transformers 4.40.2", layers=()),
    )
    claims = (CLAIMS[0], ClaimResult("pairing", ClaimState.FAIL, "1 error: GQA601", 8),
              ClaimResult("runtime", ClaimState.FAIL, "1 error: GQA703", 9))  # fmt: skip
    made = misaligned(
        findings=findings,
        claims=claims,
        runtime=ran(),
        notes=("perplexity on c4 was required and not measured",),
        skipped=(
            Skipped("GQA014", "shards", "there is no index"),
            Skipped("GQA501", "values", "weights were not read"),
        ),
        error="the tokenizer of the second corpus was not found",
        exit_code=3,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


FACTS = (
    "broken pairing",  # the verdict in words
    "6.63 B parameters (base 8.03 B, -17.4 %)",
    "counts cannot tell|1 error: GQA601",
    "1 error: GQA703",
    "GQA601",
    "head-regrouped",
    "query head 4 came from parent head 4 (KV group 1) but now reads parent KV head 2",
    "q_proj was cut to its first 24 heads",
    "nothing raises; text is garbage",
    "gqacheck repair ckpt.bin --base parent -o fixed/",
    "model.layers.4.self_attn.q_proj.weight",
    "layers 4-28",
    "718,107 is worse than guessing",
    "more than it uses",
    "layers 2-3",
    "tied to transformers 4.40.2",
    "GQA014",
    "GQA501",
    "weights were not read",
    "perplexity on c4 was required and not measured",
    "the tokenizer of the second corpus was not found",
    "718,107",
    "14.13",
    "26.00",
    "the rest is pairing, not pruning",
    "10.836",
    "KL 9.750",
    "3 %",
    "windows-512: non-overlapping",
    "nucleus 0.95, seed 0",
    "the the the the",
    "repetition",
    "eager = sdpa",
    "no pad token is known",
    "7.50 nats the first time",
    "a remark on consistency",
    "a remark on the run",
    "settings were read from x.toml",
    "24",
    "10752",
)
"""What every format says of ``everything()`` as it is shown; alternatives with ``|`` between them."""


def whole_report(*checkpoints: CheckpointReport) -> Report:
    """A report with a note of its own."""
    return Report(checkpoints, max((c.exit_code for c in checkpoints), default=0), "0.1.0",
                  ("settings were read from x.toml",))  # fmt: skip


def missing_facts(shown: str) -> list[str]:
    """The facts that ``shown`` does not hold."""
    return [fact for fact in FACTS if not any(one in shown for one in fact.split("|"))]


def required() -> CheckpointReport:
    """Nothing wrong, and what was required was not checked: could not check."""
    return healthy(verdict=Verdict.ERROR, exit_code=3, notes=("pairing was required and not checked",))


def hostile(text: str = EVIL) -> CheckpointReport:
    """Everything, with ``text`` wherever a string of the checkpoint or of its texts goes."""
    sample = Sample(text, text, text, 4, flags=("salad",))
    facts = ran(
        generation=Generation(text, (sample,), (sample,), (text,), (text,), 0, note=text),
        perplexities=(perplexity(corpus=text, protocol=text, note=text, corpus_note=text, fingerprint=text),),
        bases=(perplexity(corpus=text),),
        counterfactuals=(counterfactual(corpus=text, note=text, partial=True),),
        notes=(text,),
    )
    found = finding(slug="x", message=text, tensors=(text,), source=text, consequence=text, fix=text, cause=text)
    base = CheckpointReport(text, Verdict.PASS, 0, checkpoint(), broken().geometry)
    claims = tuple(ClaimResult(name, ClaimState.FAIL, text) for name in ("shapes", "pairing", "runtime"))
    return everything(
        path=text,
        base=base,
        findings=(found, replace(found, severity=Severity.WARNING), replace(found, severity=Severity.NOTE)),
        claims=claims,
        runtime=facts,
        notes=(text,),
        error=text,
        skipped=(Skipped("GQA501", text, text),),
        checkpoint=checkpoint(ignored=(text,), quantization=text, unwrapped=(text,), format=text),
    )


def states() -> Iterator[tuple[CheckpointReport, bool]]:
    """Checkpoints of every kind, each with whether it passed."""
    yield healthy(), True
    yield sound_child(), True
    yield broken(), False
    yield misaligned(), False
    yield unreadable(), False
    yield required(), False
    yield everything(), False
    yield broken(exit_code=3, error="could not run"), False
    yield healthy(verdict=Verdict.FAIL, exit_code=1, findings=(finding(severity=Severity.WARNING),)), False
    yield healthy(verdict=Verdict.FAIL, exit_code=1, findings=()), False
    yield replace(unreadable(), error=None), False
