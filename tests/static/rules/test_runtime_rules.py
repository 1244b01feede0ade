"""GQA701 to GQA704 on runs that went wrong and on runs that nearly did. The facts are made by hand: no torch here."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from harness import Case, Cases, Make, cases, fires, silent, skips

from gqacheck.geometry.facts import Expectations, Subject
from gqacheck.geometry.outcomes import BaseRelative, Counterfactual, Damage, Perplexity, RuntimeFacts, SegmentLoss
from gqacheck.rules.perplexity import band_of, perplexity_text, unsettled
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


def known(value: float, corpus: str = "wikitext2", protocol: str = "llm-pruner-128", **changes: object) -> Perplexity:
    """A value of a corpus and a protocol that people know bands of; its unigram line is far above."""
    made = perplexity(segment("text", math.log(value), unigram=11.0), corpus=corpus)
    told = {"protocol_name": protocol, "known_corpus": corpus.partition("=")[0], **changes}
    return replace(made, **told)  # type: ignore[arg-type]


def beside(ratio: float, error: float | None = 0.01, **changes: object) -> Perplexity:
    """A perplexity of ``ratio`` times a base's 20."""
    relative = BaseRelative(20.0, 20.0 * ratio, ratio, math.log(ratio), error, 1000, 4)
    return replace(
        perplexity(segment("text", math.log(20.0 * ratio))),
        relative=replace(relative, **changes),  # type: ignore[arg-type]
    )


def noise(corpus: str = "smoke", **changes: object) -> Perplexity:
    """Worse than guessing."""
    return replace(perplexity(segment("text", 9.0), corpus=corpus), **changes)  # type: ignore[arg-type]


def explained(verdict: Damage) -> Subject:
    """Noise beside a base, and where it comes from."""
    found = replace(noise(), relative=BaseRelative(50.0, 8103.0, 162.0, 5.1, 0.1, 1000, 4))
    return ran(found, counterfactuals=(Counterfactual("smoke", found.protocol, 50.0, 372.1, 8103.0, 9, 4, verdict),))


def allowing(ratio: float, subject: Subject) -> Subject:
    return replace(subject, expect=Expectations(ppl_ratio=ratio))


FIRES: Cases = {
    "GQA701": [
        ("forward", lambda: Case(failed("forward"), says=["the forward pass fails", "size 176"], severity="error")),
        ("rebuild", lambda: Case(failed("rebuild"), says=["cannot be rebuilt", "size 176"])),
    ],
    "GQA702": [
        ("one NaN", lambda: Case(ran(non_finite=1), says=["1 of 1,000,000 logits"], severity="error")),
        ("half precision", lambda: Case(ran(non_finite=9, dtype="float16"), fixes=["--dtype float32"])),
        (
            "in decoding alone",
            lambda: Case(
                ran(non_finite=9, non_finite_from=3),
                says=["from token 3 of a generated text on"],
                fixes=["--consistency"],
            ),
        ),
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
        (
            "above the band of its corpus and protocol",
            lambda: Case(ran(known(100.1)), says=["is broken: above 100", "8 to 15"], severity="error"),
        ),
        ("far above it", lambda: Case(ran(known(1000.5)), says=["is exploded: above 1,000"])),
        (
            "a file in place of the data set",
            lambda: Case(ran(known(159.85, "wikitext2=wiki.test.raw")), says=["159.9"]),
        ),
        (
            "healthy with BOS",
            lambda: Case(
                ran(replace(perplexity(segment("text", 9.0)), bos_value=21.0)),
                says=["with BOS in front of each window it is 21.00"],
                fixes=["add_bos_token"],
            ),
        ),
        (
            "above the band without BOS",
            lambda: Case(
                ran(known(650.0, bos_value=21.0, bos_left_out_by="tokenizer")),
                says=["is broken: above 100", "with BOS in front of each window it is 21.00"],
                fixes=["add_bos_token"],
            ),
        ),
        (
            "worse than guessing on PTB alone",
            lambda: Case(ran(noise("ptb=ptb.valid.txt")), severity="warning", says=["on ptb=ptb.valid.txt"]),
        ),
        ("damage by the pairing", lambda: Case(explained("pairing"), fixes=["GQA6xx", "whole KV groups"])),
        ("damage by the amount", lambda: Case(explained("over-pruned"), fixes=["too much was removed"])),
        ("no more damage than the cut costs", lambda: Case(explained("fine"), fixes=["too much was removed"])),
        ("damage by neither", lambda: Case(explained("loader"), fixes=["the cut and its pairing are right"])),
        ("no base", lambda: Case(ran(noise()), fixes=["--base PARENT", "pairing is wrong or too much was removed"])),
        (
            "the built-in text",
            lambda: Case(ran(noise(known_corpus="smoke")), fixes=["smoke says nothing of a model that was trained on"]),
        ),
        ("a loss that overflows", lambda: Case(ran(perplexity(segment("text", 1e6))), says=["perplexity inf"])),
        (
            "a loss that is NaN with finite logits",
            lambda: Case(ran(perplexity(segment("text", math.nan))), says=["nan"]),
        ),
    ],
    "GQA704": [
        (
            "six times the base's",
            lambda: Case(ran(beside(6.0)), says=["6.00 times", "20.00", "5 times"], severity="error"),
        ),
        (
            "six times the base's on PTB alone",
            lambda: Case(ran(replace(beside(6.0), corpus="ptb=x.txt")), says=["more than 5 times"], severity="warning"),
        ),
        ("twice the base's", lambda: Case(ran(beside(2.0)), says=["more than 1.5 times"], severity="warning")),
        ("above what the caller allows", lambda: Case(allowing(1.1, ran(beside(1.2))), severity="error", says=["1.1"])),
        ("one window", lambda: Case(ran(beside(2.0, None)), severity="warning")),
        (
            "worse on what the base reads",
            lambda: Case(ran(beside(2.0, left_out=("chinese",))), says=["without chinese"], severity="warning"),
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
        ("just inside the band's line", lambda: Case(ran(known(99.9)))),
        ("a value above the band by another protocol", lambda: Case(ran(known(150.0, protocol="gptq-2048")))),
        ("a value above the band on another text", lambda: Case(ran(known(150.0, corpus="held-out.txt")))),
        ("another text under the name of a known one", lambda: Case(ran(known(150.0, known_corpus="")))),
        ("PTB, which proves nothing", lambda: Case(ran(known(354.0, corpus="ptb")))),
        ("a part of the windows", lambda: Case(ran(known(150.0, complete=False)))),
        (
            "a base that is as bad",
            lambda: Case(ran(known(150.0, relative=BaseRelative(149.0, 150.0, 1.007, 0.007, 0.01, 9, 3)))),
        ),
        (
            "a protocol that leaves out the BOS that the model needs",
            lambda: Case(ran(noise(bos_value=21.0, bos_left_out_by="protocol"))),
        ),
        (
            "the same above a band",
            lambda: Case(ran(known(650.0, bos_value=21.0, bos_left_out_by="protocol"))),
        ),
        ("NaN logits, which GQA702 reports", lambda: Case(ran(perplexity(segment("text", math.nan)), non_finite=5))),
    ],
    "GQA704": [
        ("just below one and a half times", lambda: Case(ran(beside(1.49)))),
        ("better than the base", lambda: Case(ran(beside(0.8)))),
        ("a difference that chance makes", lambda: Case(ran(beside(2.0, 0.3)))),
        ("a base that is broken", lambda: Case(ran(beside(1.0), beside(9.0, base_broken=True)))),
        ("noise, which GQA703 reports", lambda: Case(ran(replace(beside(9.0), segments=(segment("t", 9.0),))))),
        ("a difference that is no number", lambda: Case(ran(beside(2.0, difference=math.nan)))),
        ("within what the caller allows", lambda: Case(allowing(1.3, ran(beside(1.29))))),
    ],
}


@pytest.mark.parametrize(("code", "make"), cases(FIRES))
def test_rule_on_its_fault_fires(code: str, make: Make) -> None:
    make().fires(code)


@pytest.mark.parametrize(("code", "make"), cases(NEARLY))
def test_rule_on_what_is_nearly_its_fault_is_silent(code: str, make: Make) -> None:
    make().silent(code)


@pytest.mark.parametrize("code", ["GQA701", "GQA702", "GQA703", "GQA704"])
def test_rule_without_a_run_is_skipped(code: str) -> None:
    skips(replace(ran(), runtime=None), code, needs="ppl")


def test_gqa702_without_logits_is_skipped() -> None:
    skips(ran(logits_seen=0), "GQA702", needs="logits")


def test_gqa703_without_a_perplexity_is_skipped() -> None:
    skips(failed("forward"), "GQA703", needs="ppl")


def test_gqa704_without_a_base_or_beside_a_broken_one_is_skipped() -> None:
    skips(ran(perplexity(segment("text", 3.0))), "GQA704", needs="base")
    skips(ran(beside(9.0, base_broken=True)), "GQA704", needs="base")
    skipped = skips(ran(perplexity(segment("text", 3.0)), base_problem="another model"), "GQA704", needs="base")
    assert skipped.reason == "another model"


@pytest.mark.parametrize("verdict", ["over-pruned", "fine"])
def test_gqa703_of_what_the_cut_costs_blames_neither_pairing_nor_lora(verdict: Damage) -> None:
    found = fires(explained(verdict), "GQA703")
    assert "pairing" not in found.fix
    assert "GQA6" not in found.fix
    assert "LoRA" not in found.consequence


def test_band_belongs_to_its_corpus_protocol_and_complete_runs() -> None:
    band = band_of(known(12.0))
    assert band is not None
    assert (band.healthy, band.broken, band.exploded) == ((8, 15), 100, 1000)
    ptb = band_of(known(12.0, corpus="ptb=ptb.valid.txt"))
    assert ptb is not None
    assert ptb.broken is None
    assert band_of(known(12.0, protocol="llm-pruner-256")) is None
    assert band_of(known(12.0, complete=False)) is None


def test_gqa703_with_an_empty_segment_beside_a_broken_one_fires() -> None:
    found = fires(ran(perplexity(segment("text", 9.0), segment("empty", math.nan, tokens=0))), "GQA703", says=["8,103"])
    assert "empty" not in found.message


def in_part(*nlls: float, **changes: object) -> Perplexity:
    """Windows of 100 tokens that --limit left of 90."""
    part = replace(segment("text", sum(nlls) / len(nlls), tokens=100 * len(nlls)), window_nlls=nlls)
    found = replace(perplexity(part), windows=len(nlls), windows_in_all=90, complete=False)
    return replace(found, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("nlls", [(14.0,), (14.0, 13.0, 14.0), (15.0, 4.0, 5.0, 14.0), (30.0, 3.0, 3.1, 3.2, 2.9, 3.0)])
def test_gqa703_of_few_windows_or_of_one_bad_passage_is_silent_and_unsettled(nlls: tuple[float, ...]) -> None:
    assert sum(nlls) / len(nlls) > UNIGRAM
    silent(ran(in_part(*nlls)), "GQA703")
    assert unsettled(in_part(*nlls))
    fires(ran(in_part(*nlls, complete=True)), "GQA703")
    assert not unsettled(in_part(*nlls, complete=True))
    assert not unsettled(in_part(*nlls, stopped_early=True))


def test_gqa703_of_four_windows_that_agree_fires_on_a_part() -> None:
    fires(ran(in_part(13.0, 14.0, 13.5, 12.0)), "GQA703")
    assert not unsettled(in_part(13.0, 14.0, 13.5, 12.0))
    assert not unsettled(in_part(5.0))


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
