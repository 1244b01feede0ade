"""GQA701 to GQA703 on runs that went wrong and on runs that nearly did. The facts are made by hand: no torch here."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from harness import Case, Cases, Make, cases, fires, silent, skips

from gqacheck.geometry.facts import Subject
from gqacheck.geometry.outcomes import Perplexity, RuntimeFacts, SegmentLoss
from gqacheck.rules.runtime import perplexity_text
from gqacheck.testing.sketch import sketch_llama

VOCAB = 128_256
UNIFORM = math.log(VOCAB)
UNIGRAM = 7.0


def segment(
    name: str, nll: float, *, unigram: float = UNIGRAM, uniform: float = UNIFORM, tokens: int = 1000
) -> SegmentLoss:
    return SegmentLoss(name, nll, tokens, unigram, uniform, (nll,))


def perplexity(*segments: SegmentLoss, corpus: str = "smoke") -> Perplexity:
    n = sum(s.tokens for s in segments)
    nll = sum(s.nll * s.tokens for s in segments if s.tokens) / n
    value = math.inf if nll >= 700 else math.exp(nll)
    return Perplexity(corpus, "windows-512: non-overlapping", "f", value, None, n, 4, True, VOCAB, segments)


def ran(*perplexities: Perplexity, **facts: object) -> Subject:
    """A healthy checkpoint with what its run is said to have shown."""
    made = RuntimeFacts(perplexities, logits_seen=1_000_000)
    healthy = Case(sketch_llama(n_layers=1)).subject()
    return replace(healthy, runtime=replace(made, **facts))  # type: ignore[arg-type]


def failed(stage: str) -> Subject:
    return ran(failure="RuntimeError: shape '[1, 4, -1, 8]' is invalid for input of size 176", failure_stage=stage)


FIRES: Cases = {
    "GQA701": [
        ("forward", lambda: Case(failed("forward"), says=["the forward pass fails", "size 176"], severity="error")),
        ("rebuild", lambda: Case(failed("rebuild"), says=["cannot be rebuilt", "size 176"])),
    ],
    "GQA702": [
        ("one NaN", lambda: Case(ran(non_finite=1), says=["1 of 1,000,000 logits"], severity="error")),
        ("half precision", lambda: Case(ran(non_finite=9, dtype="float16"), fixes=["--dtype float32"])),
        ("every logit", lambda: Case(ran(non_finite=1_000_000), says=["1,000,000 of 1,000,000"])),
    ],
    "GQA703": [
        (
            "worse than uniform",
            lambda: Case(
                ran(perplexity(segment("text", math.log(718_107)))),
                says=["718,107", "uniformly", "128,256"],
                severity="error",
            ),
        ),
        (
            "worse than the unigram",
            lambda: Case(ran(perplexity(segment("text", 7.01))), says=["1,108", "token frequency", "1,097"]),
        ),
        (
            "every segment, each by another line",
            lambda: Case(
                ran(perplexity(segment("english", 7.5), segment("chinese", 13.0))),
                says=["every segment", "english 1,808 against 1,097", "chinese 442,413 against 128,256"],
            ),
        ),
        (
            "one corpus of two",
            lambda: Case(
                ran(perplexity(segment("a", 3.0)), perplexity(segment("b", 9.0), corpus="held-out.txt")),
                says=["on held-out.txt"],
                count=1,
            ),
        ),
        ("a loss that overflows", lambda: Case(ran(perplexity(segment("text", 1e6))), says=["perplexity inf"])),
        (
            "a loss that is NaN with finite logits",
            lambda: Case(ran(perplexity(segment("text", math.nan))), says=["nan"]),
        ),
    ],
}
NEARLY: Cases = {
    "GQA701": [
        ("a healthy run", lambda: Case(ran(perplexity(segment("text", 3.0))))),
        ("a missing tokenizer", lambda: Case(failed("tokenizer"))),
    ],
    "GQA702": [("finite logits, however large the loss", lambda: Case(ran(perplexity(segment("text", 500.0)))))],
    "GQA703": [
        ("just better than the unigram", lambda: Case(ran(perplexity(segment("text", 6.99))))),
        ("exactly the unigram", lambda: Case(ran(perplexity(segment("text", UNIGRAM))))),
        (
            "one healthy segment among broken ones",
            lambda: Case(ran(perplexity(segment("english", 2.8), segment("chinese", 15.4), segment("code", 9.0)))),
        ),
        (
            "a large perplexity that still knows more than word counts",
            lambda: Case(ran(perplexity(segment("text", 9.0, unigram=9.5)))),
        ),
        (
            "no unigram to compare with",
            lambda: Case(ran(perplexity(segment("text", 9.0, unigram=math.nan)))),
        ),
        (
            "a segment without a scored token",
            lambda: Case(ran(perplexity(segment("text", 3.0), segment("empty", math.nan, tokens=0)))),
        ),
        ("NaN logits, which GQA702 reports", lambda: Case(ran(perplexity(segment("text", math.nan)), non_finite=5))),
    ],
}


@pytest.mark.parametrize(("code", "make"), cases(FIRES))
def test_rule_on_its_fault_fires(code: str, make: Make) -> None:
    make().fires(code)


@pytest.mark.parametrize(("code", "make"), cases(NEARLY))
def test_rule_on_what_is_nearly_its_fault_is_silent(code: str, make: Make) -> None:
    make().silent(code)


@pytest.mark.parametrize("code", ["GQA701", "GQA702", "GQA703"])
def test_rule_without_a_run_is_skipped(code: str) -> None:
    skips(replace(ran(), runtime=None), code, needs="ppl")


def test_gqa702_without_logits_is_skipped() -> None:
    skips(ran(logits_seen=0), "GQA702", needs="logits")


def test_gqa703_without_a_perplexity_is_skipped() -> None:
    skips(failed("forward"), "GQA703", needs="ppl")


def test_gqa703_with_an_empty_segment_beside_a_broken_one_fires() -> None:
    found = fires(ran(perplexity(segment("text", 9.0), segment("empty", math.nan, tokens=0))), "GQA703", says=["8,103"])
    assert "empty" not in found.message


def test_gqa703_counts_are_the_perplexities_themselves() -> None:
    found = fires(ran(perplexity(segment("text", math.log(718_107)))), "GQA703")
    assert found.actual is not None
    assert found.expected is not None
    assert found.actual.value == pytest.approx(718_107)
    assert found.expected.value == pytest.approx(VOCAB)


def test_gqa701_on_hostile_text_in_the_error_escapes_it() -> None:
    found = fires(ran(failure="bad \x1b[31mname\n", failure_stage="forward"), "GQA701")
    assert found.message.isprintable()


def test_gqa702_in_float32_does_not_advise_float32() -> None:
    assert "float32" not in fires(ran(non_finite=1), "GQA702").fix
    silent(ran(), "GQA702")


@pytest.mark.parametrize(
    ("value", "text"),
    [(12.346, "12.35"), (310.24, "310.2"), (272.0000000001, "272"), (718107.3, "718,107"), (3.2e11, "3.2e+11")],
)
def test_perplexity_text_keeps_what_can_be_compared(value: float, text: str) -> None:
    assert perplexity_text(value) == text
