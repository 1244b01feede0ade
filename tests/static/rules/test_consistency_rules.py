"""GQA707 to GQA709 and GQA712 on runs that disagree and on those that nearly do. Facts made by hand: no torch here."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest
from harness import Case, Cases, Make, cases, fires, silent, skips
from hypothesis import given
from hypothesis import strategies as st

from gqacheck.geometry.facts import Subject
from gqacheck.geometry.outcomes import Comparison, Consistency, Induction, RuntimeFacts
from gqacheck.rules.consistency import share_kept
from gqacheck.testing.sketch import sketch_llama

WAYS = {
    "backends": "eager beside sdpa attention",
    "cache": "33 tokens, a chunk of 8 and 9 single ones with a KV cache beside one full forward pass",
    "prefix": "the same beginning before two different endings",
    "padding": "a text padded on the left beside the same text alone",
}
COPIES = Induction(5.65, 0.09, (0.0, 0.78, 0.01))
REASON = "sdpa is refused: Gemma2ForCausalLM does not support it"


def comparison(
    check: str, difference: float = 1e-6, where: str = "position 3, token 12", skipped: str = ""
) -> Comparison:
    return Comparison(check, WAYS[check], difference, 0.005, where, skipped)  # type: ignore[arg-type]


def ran(*found: Comparison, dtype: str = "float32", non_finite: int = 0, **more: Induction) -> Subject:
    """A healthy checkpoint with what its consistency run is said to have shown; checks not given agree."""
    given_checks = {each.check for each in found}
    rest = [comparison(check) for check in WAYS if check not in given_checks]
    consistency = Consistency((*found, *rest), dtype=dtype, **more)
    facts = RuntimeFacts(logits_seen=1000, non_finite=non_finite, dtype=dtype, consistency=consistency)
    return replace(Case(sketch_llama(n_layers=1)).subject(), runtime=facts)


def copying(child: Induction, base: Induction = COPIES) -> Subject:
    return ran(induction=child, base_induction=base)


CODES = {"backends": "GQA707", "cache": "GQA708", "prefix": "GQA708", "padding": "GQA709"}
RAISES = "eager raises RuntimeError: The size of tensor a (32) must match the size of tensor b (16)"

FIRES: Cases = {
    "GQA707": [
        (
            "differ",
            lambda: Case(
                ran(comparison("backends", 0.84)),
                says=["eager beside sdpa", "differ by 0.84", "float32 explains 0.005", "position 3, token 12"],
                severity="error",
                count=1,
            ),
        ),
        ("one raises", lambda: Case(ran(comparison("backends", math.inf, RAISES)), says=[RAISES], count=1)),
        (
            "NaN one way",
            lambda: Case(
                ran(comparison("backends", math.nan, "NaN or infinite one way only")), says=["logits are NaN"]
            ),
        ),
        (
            "half precision",
            lambda: Case(ran(comparison("backends", 2.0), dtype="bfloat16"), fixes=["--dtype float32"]),
        ),
        (
            "escape codes in an error",
            lambda: Case(ran(comparison("backends", math.inf, "eager raises \x1b[31mX\nY")), says=["eager raises"]),
        ),
    ],
    "GQA708": [
        (
            "cache",
            lambda: Case(ran(comparison("cache", 0.0051)), says=["KV cache", "0.0051"], severity="error", count=1),
        ),
        ("looks ahead", lambda: Case(ran(comparison("prefix", 2.7)), says=["two different endings"], count=1)),
        ("both", lambda: Case(ran(comparison("cache", 1.0), comparison("prefix", 1.0)), count=2)),
        (
            "one of them skipped",
            lambda: Case(ran(comparison("cache", skipped="no cache"), comparison("prefix", 1.0)), count=1),
        ),
    ],
    "GQA709": [
        (
            "one side",
            lambda: Case(
                ran(comparison("padding", 1.5), comparison("padding")),
                says=["padded on the left"],
                severity="error",
                count=1,
            ),
        ),
        ("NaN without any in the plain run", lambda: Case(ran(comparison("padding", math.nan, "NaN")), says=["NaN"])),
    ],
    "GQA712": [
        (
            "all lost",
            lambda: Case(
                copying(Induction(6.7, 6.6)),
                says=["6.60", "6.70", "0.09", "5.65", "0 % of what copying saves"],
                severity="warning",
                count=1,
            ),
        ),
        ("just under half", lambda: Case(copying(Induction(5.65, 2.90)), says=["49 %"])),
        ("worse on the first copy is no merit", lambda: Case(copying(Induction(12.0, 5.0)), says=["12 %"])),
        ("NaN in the second copy", lambda: Case(copying(Induction(5.6, math.nan)))),
    ],
}
NEARLY: Cases = {
    "GQA707": [
        ("at the line", lambda: Case(ran(comparison("backends", 0.005)))),
        ("another check", lambda: Case(ran(comparison("cache", 9.0), comparison("padding", 9.0)))),
    ],
    "GQA708": [("at the line", lambda: Case(ran(comparison("cache", 0.005), comparison("prefix", 0.005))))],
    "GQA709": [("at the line", lambda: Case(ran(comparison("padding", 0.005))))],
    "GQA712": [
        ("half kept", lambda: Case(copying(Induction(5.65, 2.86)))),
        ("worse on both and still copying", lambda: Case(copying(Induction(6.3, 1.25)))),
        ("better than the base", lambda: Case(copying(Induction(6.2, 0.06)))),
    ],
}


@pytest.mark.parametrize(("code", "make"), cases(FIRES))
def test_rule_on_its_fault_fires(code: str, make: Make) -> None:
    make().fires(code)


@pytest.mark.parametrize(("code", "make"), cases(NEARLY))
def test_rule_on_what_is_nearly_its_fault_is_silent(code: str, make: Make) -> None:
    make().silent(code)


@pytest.mark.parametrize("code", ["GQA707", "GQA708", "GQA709", "GQA712"])
def test_rule_without_a_consistency_run_is_skipped(code: str) -> None:
    healthy = Case(sketch_llama(n_layers=1)).subject()
    assert "--consistency" in skips(healthy, code, needs="consistency").reason
    skips(replace(healthy, runtime=RuntimeFacts()), code, needs="consistency")


@pytest.mark.parametrize("code", ["GQA707", "GQA708", "GQA709", "GQA712"])
def test_rule_whose_run_came_to_nothing_is_skipped_with_what_happened_though_it_was_asked(code: str) -> None:
    healthy = Case(sketch_llama(n_layers=1)).subject()
    asked = RuntimeFacts(asked=frozenset(("ppl", "consistency")))
    stopped = replace(asked, failure="the forward pass raises RuntimeError: \x1b no", failure_stage="forward")
    for facts, says in ((stopped, r"it did not come to that: .* RuntimeError: \\x1b no"), (asked, "was not measured")):
        reason = skips(replace(healthy, runtime=facts), code, needs="consistency").reason
        assert re.search(says, reason)
        assert "not asked" not in reason


def test_nan_under_one_backend_fires_also_where_the_plain_run_had_it_and_says_what_to_look_for() -> None:
    where = "NaN or infinite under sdpa only, first at position 0"
    subject = ran(comparison("backends", math.nan, where), non_finite=7)
    found = fires(subject, "GQA707", says=["logits are NaN or infinite under sdpa only"])
    assert "num_key_value_groups" not in found.fix
    assert "GQA707" in fires(subject, "GQA702").fix


@pytest.mark.parametrize("check", ["backends", "padding"])
def test_rule_whose_comparison_was_skipped_is_skipped_with_the_reason(check: str) -> None:
    subject = ran(comparison(check, skipped=REASON))
    assert skips(subject, CODES[check], needs=check).reason == REASON


def test_cache_rule_is_skipped_when_neither_comparison_was_made() -> None:
    subject = ran(comparison("cache", skipped="no cache"), comparison("prefix", skipped="one token"))
    assert skips(subject, "GQA708", needs="cache").reason == "no cache; one token"
    silent(ran(comparison("cache", skipped="no cache")), "GQA708")


def test_rule_without_any_comparison_is_skipped_and_not_passed() -> None:
    subject = ran()
    assert subject.runtime is not None
    empty = replace(subject, runtime=replace(subject.runtime, consistency=Consistency()))
    for check in ("backends", "cache", "padding"):
        skips(empty, CODES[check], needs=check)


def test_induction_rule_accuses_no_model_without_a_base_that_copies() -> None:
    lost = Induction(12.4, 12.5)
    skips(ran(induction=lost), "GQA712", needs="base")
    skips(ran(), "GQA712", needs="induction")
    for base in (Induction(12.3, 12.4), Induction(6.0, 5.01), Induction(6.0, math.nan)):
        assert "does not copy either" in skips(copying(lost, base), "GQA712", needs="induction").reason
    fires(copying(lost, Induction(6.0, 5.0)), "GQA712")


def test_induction_rule_leaves_not_a_number_to_the_rule_on_logits() -> None:
    silent(ran(induction=Induction(math.nan, math.nan), base_induction=COPIES, non_finite=3), "GQA712")


def test_share_kept_of_not_a_number_is_nothing() -> None:
    assert share_kept(Induction(5.6, math.nan), COPIES) == 0


@given(st.floats(0, 20), st.floats(0, 20), st.floats(1, 10), st.floats(0, 5))
def test_share_kept_is_never_raised_by_a_worse_first_copy(first: float, second: float, drop: float, low: float) -> None:
    base = Induction(low + drop, low)
    kept = share_kept(Induction(first, second), base)
    assert share_kept(Induction(first + 1, second), base) <= max(kept, (base.first - second) / base.drop) + 1e-9
    assert share_kept(base, base) == 1
