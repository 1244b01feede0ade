"""GQA705 and GQA706 on texts made by hand: how many it takes, alone and beside a base's, and what is said."""

from __future__ import annotations

from dataclasses import replace
from math import comb
from typing import Any

import pytest
from harness import Case, Cases, Make, cases, fires, silent, skips
from hypothesis import given
from hypothesis import strategies as st

from gqacheck.geometry.facts import Subject
from gqacheck.geometry.outcomes import Flag, Generation, RuntimeFacts, Sample
from gqacheck.rules.generation import CLEARLY_WORSE, FALSE_ALARM, chance_of, least_flagged
from gqacheck.testing.sketch import sketch_llama

FLAGS: tuple[Flag, ...] = ("repeats", "compresses", "loops", "replacement", "control", "scripts", "salad")


def texts(flagged: int, *flags: Flag, of: int = 16, language: str = "english", **facts: Any) -> tuple[Sample, ...]:
    """``of`` samples, the first ``flagged`` of them with ``flags``."""
    healthy = Sample("The river", language, "runs to the sea", 128)
    return (*(replace(healthy, flags=flags, **facts),) * flagged, *(healthy,) * (of - flagged))


def wrote(
    samples: tuple[Sample, ...], base: tuple[Sample, ...] = (), judged: tuple[str, ...] = ("english",), **facts: Any
) -> Subject:
    made = Generation("16 texts, seed 0", samples, base, judged, **facts)
    healthy = Case(sketch_llama(n_layers=1)).subject()
    return replace(healthy, runtime=RuntimeFacts(generation=made))


FIRES: Cases = {
    "GQA705": [
        ("4 of 16", lambda: Case(wrote(texts(4, "loops", loop_period=3)), says=["4 of 16"], severity="error")),
        ("4 of 8", lambda: Case(wrote(texts(4, "repeats", of=8, rep_4=0.91)), says=["4 of 8", "0.91 of its 4-grams"])),
        ("3 of 4", lambda: Case(wrote(texts(3, "compresses", of=4, zlib_ratio=9.25)), says=["deflates by 9.2"])),
        ("6 of 16 beside 0", lambda: Case(wrote(texts(6, "loops"), texts(0)), says=["6 of 16", "base's 0 of 16"])),
        ("10 of 16 beside 2", lambda: Case(wrote(texts(10, "loops"), texts(2, "repeats")), says=["2 of 16"])),
    ],
    "GQA706": [
        ("4 of 16", lambda: Case(wrote(texts(4, "replacement", replacements=7)), says=["7 U+FFFD"], severity="error")),
        ("controls", lambda: Case(wrote(texts(9, "control", controls=2)), says=["2 control characters"])),
        ("scripts", lambda: Case(wrote(texts(9, "scripts", scripts=("Latin", "Thai", "Han"))), says=["Latin, Thai"])),
        (
            "salad under the base",
            lambda: Case(
                wrote(texts(16, "salad", base_nll=9.05), texts(0)), says=["16 of 16", "costs the base 9.05 nats"]
            ),
        ),
        (
            "several faults share the count",
            lambda: Case(wrote((*texts(2, "salad", of=8), *texts(2, "control", of=8))), says=["4 of 16"]),
        ),
    ],
}
NEARLY: Cases = {
    "GQA705": [
        ("3 of 16", lambda: Case(wrote(texts(3, "loops")))),
        ("2 of 2", lambda: Case(wrote(texts(2, "loops", of=2)))),
        ("garbled only", lambda: Case(wrote(texts(16, "salad", "control")))),
        ("5 of 16 beside 0", lambda: Case(wrote(texts(5, "loops"), texts(0)))),
        ("9 of 16 beside 2", lambda: Case(wrote(texts(9, "loops"), texts(2, "loops")))),
        ("a base that always loops, too", lambda: Case(wrote(texts(16, "loops"), texts(12, "repeats")))),
        ("a language that is not judged", lambda: Case(wrote((*texts(8, "loops", language="chinese"), *texts(0))))),
        ("no text at all", lambda: Case(wrote(()))),
    ],
    "GQA706": [
        ("3 of 16", lambda: Case(wrote(texts(3, "salad", "replacement")))),
        ("loops only", lambda: Case(wrote(texts(16, "loops")))),
        ("as garbled as the base", lambda: Case(wrote(texts(8, "control"), texts(5, "control")))),
    ],
}


@pytest.mark.parametrize(("code", "make"), cases(FIRES))
def test_rule_on_its_fault_fires(code: str, make: Make) -> None:
    make().fires(code)


@pytest.mark.parametrize(("code", "make"), cases(NEARLY))
def test_rule_on_what_is_nearly_its_fault_is_silent(code: str, make: Make) -> None:
    make().silent(code)


@pytest.mark.parametrize("code", ["GQA705", "GQA706"])
def test_rule_without_texts_is_skipped(code: str) -> None:
    healthy = wrote(texts(0))
    skips(replace(healthy, runtime=None), code, needs="generate")
    skips(replace(healthy, runtime=RuntimeFacts()), code, needs="generate")
    asked = RuntimeFacts(asked=frozenset(("generation",)))
    for facts, says in (
        (asked, "it was not measured"),
        (replace(asked, non_finite=3), "the logits are NaN or infinite (GQA702)"),
        (replace(asked, failure="no position left", failure_stage="generation"), "no position left"),
    ):
        assert says in skips(replace(healthy, runtime=facts), code, needs="generate").reason


def test_gqa706_shows_the_worst_text_escaped_and_shortened() -> None:
    hostile = "\x1b[31mred\u202e" + "word " * 100
    samples = (*texts(15, "salad"), replace(texts(1, "control", "salad")[0], text=hostile, controls=3))
    found = fires(wrote(samples, worst=15), "GQA706", says=["\\x1b[31mred", "3 control characters and is word salad"])
    assert found.message.isprintable()
    assert len(found.message) < 400


def test_gqa705_shows_a_looping_text_when_the_worst_one_is_only_garbled() -> None:
    samples = (*texts(4, "loops", of=4, text="the the the", loop_period=1), *texts(12, "salad", of=12, text="salad"))
    fires(wrote(samples, worst=15), "GQA705", says=["the the the", "loop of 1 token"])


def test_least_flagged_is_the_fewest_that_chance_does_not_make() -> None:
    assert [least_flagged(n) for n in (0, 1, 2, 3, 4, 8, 16, 32)] == [None, None, None, 3, 3, 4, 4, 6]
    tail = sum(comb(16, k) * 0.015**k * 0.985 ** (16 - k) for k in range(4, 17))
    assert tail == pytest.approx(8e-5, rel=0.05)
    assert tail < FALSE_ALARM


@given(st.integers(0, 12), st.integers(1, 12), st.integers(0, 12), st.integers(1, 12))
def test_chance_of_is_the_upper_tail_of_the_hypergeometric(a: int, n: int, b: int, m: int) -> None:
    a, b = min(a, n), min(b, m)
    total = comb(n + m, a + b)
    tail = sum(comb(n, k) * comb(m, a + b - k) for k in range(a, n + 1) if 0 <= a + b - k <= m) / total
    assert chance_of(a, n, b, m) == pytest.approx(tail)
    assert chance_of(a, n, b, m) <= 1


def test_false_alarm_beside_a_base_stays_below_what_is_documented() -> None:
    def alarm(rate: float) -> float:
        odds = [comb(16, k) * rate**k * (1 - rate) ** (16 - k) for k in range(17)]
        return sum(
            odds[k] * odds[b] for k in range(4, 17) for b in range(17) if chance_of(k, 16, b, 16) <= CLEARLY_WORSE
        )

    assert alarm(0.015) < 1e-7
    assert alarm(0.07) < 2e-4
    assert max(alarm(i / 100) for i in range(1, 100)) < 0.004


def test_neither_rule_speaks_of_a_healthy_model() -> None:
    for code in ("GQA705", "GQA706"):
        silent(wrote(texts(1, *FLAGS), texts(1, *FLAGS)), code)
        silent(wrote(texts(1, *FLAGS)), code)
