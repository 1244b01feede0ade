"""The runner: stamping, merging, skipping, capping, and choosing rules."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_samples import UNKNOWN, rule, subject

from gqacheck.errors import UsageError
from gqacheck.geometry.facts import Subject
from gqacheck.rules.rule import Quantity, Severity, Skipped, Violation
from gqacheck.rules.run import NEEDS_REPAIR, NEEDS_SELECTION, choose_rules, find_rules, run_rules

HERE = subject()
RULES = (
    rule("GQA101", slug="q-rows"),
    rule("GQA104", slug="q-kv-indivisible"),
    rule("GQA201", slug="out-features-stale"),
    rule("GQA701", slug="does-not-run", claim="runtime"),
)


def violation(layer: int | None = 3, message: str = "5 rows are not 4", **fields: object) -> Violation:
    return Violation(message=message, layer=layer, **fields)  # type: ignore[arg-type]


def test_run_rules_on_a_violation_stamps_code_slug_and_severity() -> None:
    findings, skipped = run_rules(HERE, [rule("GQA104", violation(), slug="q-kv-indivisible")])
    assert [(f.code, f.slug, f.severity, f.layers) for f in findings] == [
        ("GQA104", "q-kv-indivisible", Severity.ERROR, (3,))
    ]
    assert not skipped


def test_run_rules_on_a_violation_with_its_own_severity_keeps_it() -> None:
    findings, _ = run_rules(HERE, [rule("GQA403", violation(severity=Severity.WARNING))])
    assert findings[0].severity is Severity.WARNING


def test_run_rules_on_equal_violations_merges_their_layers_and_tensors_in_order() -> None:
    made = [violation(layer, tensors=(f"t{layer}",)) for layer in (7, 2, 2, 5)]
    findings, _ = run_rules(HERE, [rule("GQA104", *made)])
    assert [(f.layers, f.tensors) for f in findings] == [((2, 5, 7), ("t2", "t5", "t7"))]


@pytest.mark.parametrize(
    "other",
    [
        violation(message="6 rows are not 4"),
        violation(expected=Quantity(4, "rows")),
        violation(actual=Quantity(4, "rows")),
        violation(source="config.json"),
        violation(consequence="it raises"),
        violation(fix="mend it"),
        violation(severity=Severity.NOTE),
        violation(layer=None),
    ],
)
def test_run_rules_on_violations_that_differ_keeps_them_apart(other: Violation) -> None:
    findings, _ = run_rules(HERE, [rule("GQA104", violation(), other)])
    assert len(findings) == 2


def test_run_rules_on_layers_and_none_puts_the_model_first_then_layers() -> None:
    made = [violation(9, "b"), violation(1, "c"), violation(None, "a")]
    findings, _ = run_rules(HERE, [rule("GQA104", *made)])
    assert [f.message for f in findings] == ["a", "c", "b"]


def test_run_rules_on_a_rule_that_cannot_run_skips_it_with_the_reason() -> None:
    asked: list[Subject] = []

    def skip(given_subject: Subject) -> tuple[str, str]:
        asked.append(given_subject)
        return "config", "there is no config"

    findings, skipped = run_rules(HERE, [rule("GQA403", violation(), skip=skip)])
    assert (findings, skipped) == ((), (Skipped("GQA403", "config", "there is no config"),))
    assert asked == [HERE]


def broken_check(given_subject: Subject) -> Iterator[Violation]:
    yield violation()
    raise ZeroDivisionError("by a bug")


def test_run_rules_tolerant_on_a_rule_that_raises_skips_it_and_runs_the_rest() -> None:
    rules = [rule("GQA101", check=broken_check), rule("GQA104", violation())]
    findings, skipped = run_rules(HERE, rules, tolerant=True)
    assert [f.code for f in findings] == ["GQA104"]
    assert [(s.code, s.needs) for s in skipped] == [("GQA101", NEEDS_REPAIR)]
    assert "ZeroDivisionError: by a bug" in skipped[0].reason


def test_run_rules_on_a_rule_that_raises_lets_the_exception_pass() -> None:
    with pytest.raises(ZeroDivisionError):
        run_rules(HERE, [rule("GQA101", check=broken_check)])


@pytest.mark.parametrize(
    ("code", "severity", "expected"),
    [
        ("GQA104", Severity.ERROR, Severity.WARNING),
        ("GQA104", Severity.NOTE, Severity.NOTE),
        ("GQA012", Severity.ERROR, Severity.ERROR),
        ("GQA701", Severity.ERROR, Severity.ERROR),
    ],
)
def test_run_rules_on_an_unknown_family_caps_what_depends_on_the_family(
    code: str, severity: Severity, expected: Severity
) -> None:
    findings, _ = run_rules(subject(family=UNKNOWN), [rule(code, violation(severity=severity))])
    assert findings[0].severity is expected


def test_run_rules_on_a_known_family_caps_nothing() -> None:
    findings, _ = run_rules(HERE, [rule("GQA104", violation())])
    assert findings[0].severity is Severity.ERROR


@settings(derandomize=True, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["a", "b"]), st.one_of(st.none(), st.integers(0, 9)))))
def test_run_rules_on_any_violations_loses_no_layer_and_repeats_none(pairs: list[tuple[str, int | None]]) -> None:
    findings, _ = run_rules(HERE, [rule("GQA104", *(violation(layer, message) for message, layer in pairs))])
    told = [(f.message, layer) for f in findings for layer in (f.layers or (None,))]
    assert sorted(told, key=str) == sorted(set(pairs), key=str)
    assert all(list(f.layers) == sorted(set(f.layers)) for f in findings)


@settings(derandomize=True, deadline=None)
@given(st.permutations([violation(layer, message) for layer in (1, 2, None) for message in "xy"]))
def test_run_rules_on_violations_in_any_order_gives_the_same_fingerprints(made: list[Violation]) -> None:
    findings, _ = run_rules(HERE, [rule("GQA104", *made)])
    straight, _ = run_rules(HERE, [rule("GQA104", *sorted(made, key=lambda v: (v.layer or -1, v.message)))])
    assert {f.fingerprint for f in findings} == {f.fingerprint for f in straight}


@pytest.mark.parametrize(
    ("select", "ignore", "chosen"),
    [
        ((), (), ["GQA101", "GQA104", "GQA201", "GQA701"]),
        (("GQA1",), (), ["GQA101", "GQA104"]),
        (("gqa1",), ("q-rows",), ["GQA104"]),
        (("out-features-stale", "GQA701"), (), ["GQA201", "GQA701"]),
        ((), ("GQA10", "GQA701"), ["GQA201"]),
        (("GQA104",), ("GQA1",), []),
    ],
)
def test_choose_rules_by_code_slug_or_prefix(
    select: tuple[str, ...], ignore: tuple[str, ...], chosen: list[str]
) -> None:
    rules, left_out = choose_rules(RULES, select, ignore)
    assert [r.code for r in rules] == chosen
    assert sorted([*chosen, *(s.code for s in left_out)]) == [r.code for r in RULES]
    assert all(s.needs == NEEDS_SELECTION and s.reason for s in left_out)


@pytest.mark.parametrize(
    ("name", "hint"),
    [("GQA105", "GQA10"), ("q-row", "q-rows"), ("GQA9", "gqacheck rules"), ("", "gqacheck rules"), ("104", "GQA104")],
)
def test_find_rules_on_a_name_that_fits_nothing_raises_with_a_suggestion(name: str, hint: str) -> None:
    with pytest.raises(UsageError, match=hint):
        find_rules(RULES, name)


def test_find_rules_on_a_code_that_is_a_prefix_of_none_but_itself_finds_one() -> None:
    assert [r.code for r in find_rules(RULES, "GQA104")] == ["GQA104"]
