"""The JUnit report: valid for the servers that read it, and never green where something could not be checked."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_everything import EVIL, everything, hostile, missing_facts, required, states, whole_report
from report_samples import broken, finding, healthy, misaligned, unreadable

from gqacheck.report.junit import render_junit
from gqacheck.result import CheckpointReport, Verdict
from gqacheck.rules import RULES
from gqacheck.rules.rule import Severity

SCHEMA = Path(__file__).parents[1] / "data" / "schemas" / "junit.xsd"


def parsed(*checkpoints: CheckpointReport) -> Element:
    """The document, valid for the schema where lxml is there to tell (test_schema_… is skipped where it is not)."""
    text = render_junit(whole_report(*checkpoints))
    assert text.isascii()
    if find_spec("lxml"):
        from lxml import etree

        etree.XMLSchema(etree.parse(str(SCHEMA))).assertValid(etree.fromstring(text.encode()))
    return ElementTree.fromstring(text)


def case(root: Element, code: str) -> Element:
    """The test case of one rule."""
    return next(node for node in root.iter("testcase") if node.attrib["name"].split()[0] == code)


def outcome(root: Element, code: str) -> str:
    """What became of a rule: ``failure``, ``skipped`` or ``passed``."""
    return next((node.tag for node in case(root, code) if node.tag in ("failure", "skipped", "error")), "passed")


def red(suite: Element) -> bool:
    """Whether a server shows the suite as not passed."""
    return any(node.tag in ("failure", "error") for node in suite.iter())


def everything_in(root: Element) -> str:
    """All texts and attributes."""
    return "\n".join([*root.itertext(), *(value for node in root.iter() for value in node.attrib.values())])


def test_schema_refuses_a_suite_without_its_counts() -> None:
    etree = pytest.importorskip("lxml.etree", reason="lxml is what validates XML here")
    schema = etree.XMLSchema(etree.parse(str(SCHEMA)))
    assert not schema.validate(etree.fromstring('<testsuites><testsuite name="a"/></testsuites>'))


@pytest.mark.parametrize("made", list(states()), ids=lambda made: made[0].verdict.value)
def test_junit_is_green_exactly_where_the_checkpoint_passed(made: tuple[CheckpointReport, bool]) -> None:
    report, passed = made
    (suite,) = parsed(report).iter("testsuite")
    assert red(suite) != passed
    assert int(suite.attrib["failures"]) + int(suite.attrib["errors"]) == sum(
        red(node) for node in suite.iter("testcase")
    )
    assert (int(suite.attrib["errors"]) > 0) == (report.exit_code == 3)


def test_junit_of_a_broken_checkpoint_fails_the_rule_and_passes_the_others() -> None:
    root = parsed(broken())
    assert outcome(root, "GQA104") == "failure"
    assert outcome(root, "GQA103") == "passed"
    assert outcome(root, "GQA701") == "skipped"
    assert case(root, "GQA701")[0].attrib["message"] == "perplexity was not asked for (--ppl)"
    names = {node.attrib["name"].split()[0] for node in root.iter("testcase")}
    assert names == {rule.code for rule in RULES}
    told = "".join(case(root, "GQA104").itertext())
    for part in (
        "layer 4: ",
        "expected: 28 query heads",
        "actual: 31 query heads",
        "fix: keep 28",
        finding().fingerprint,
    ):
        assert part in told


def test_junit_of_warnings_fails_only_where_warnings_count() -> None:
    warning = finding("GQA013", Severity.WARNING)
    assert outcome(parsed(healthy(findings=(warning,))), "GQA013") == "passed"
    assert "31 query heads" in "".join(case(parsed(healthy(findings=(warning,))), "GQA013").itertext())
    counted = healthy(findings=(warning,), verdict=Verdict.FAIL, exit_code=1)
    assert outcome(parsed(counted), "GQA013") == "failure"


def test_junit_of_known_findings_passes_and_says_so() -> None:
    known = finding()
    root = parsed(broken(verdict=Verdict.PASS, exit_code=0, findings=(known,), known=(known.fingerprint,)))
    assert not red(root)
    assert "known: it is in the baseline" in "".join(case(root, "GQA104").itertext())
    new = replace(known, message="another one", layers=(5,))
    root = parsed(broken(findings=(known, new), known=(known.fingerprint,)))
    assert outcome(root, "GQA104") == "failure"
    assert "another one" in case(root, "GQA104").find("failure").attrib["message"]  # type: ignore[union-attr]


def test_junit_of_what_could_not_be_checked_is_an_error_with_its_reason() -> None:
    for report, reason in ((unreadable(), "no such file"), (required(), "pairing was required and not checked")):
        root = parsed(report)
        error = next(root.iter("error"))
        assert reason in error.attrib["message"]
        assert root.attrib["errors"] == "1"
    assert [node.attrib["name"] for node in parsed(unreadable()).iter("testcase")] == ["checkpoint"]


def test_junit_of_what_failed_and_was_not_checked_as_required_is_both() -> None:
    note = "--require pairing: not checked: no base was given"
    root = parsed(broken(exit_code=3, notes=(note,)))
    assert (root.attrib["failures"], root.attrib["errors"]) == ("1", "1")
    whole = next(root.iter("testcase"))
    assert whole.attrib["name"] == "checkpoint"
    assert note in next(whole.iter("error")).attrib["message"]


@pytest.mark.parametrize("turned", [False, True])
def test_junit_of_a_rule_that_warned_and_failed_is_a_failure_that_tells_the_error(turned: bool) -> None:
    findings = (finding(severity=Severity.WARNING, message="a warning"), finding(message="an error"))
    failure = case(parsed(broken(findings=findings[::-1] if turned else findings)), "GQA104").find("failure")
    assert failure is not None
    assert failure.attrib["type"] == "error"
    assert failure.attrib["message"] == "layer 4: an error (and 1 more)"


def test_junit_shows_every_checkpoint_under_a_class_of_its_own() -> None:
    root = parsed(broken(path="out/v1.2/a.bin"), broken(path="out/v1.2/b.bin"))
    assert [suite.attrib["name"] for suite in root] == ["out/v1.2/a.bin", "out/v1.2/b.bin"]
    classes = [{node.attrib["classname"] for node in suite.iter("testcase")} for suite in root]
    assert classes == [{"gqacheck.out/v1_2/a_bin"}, {"gqacheck.out/v1_2/b_bin"}]


def test_junit_of_what_could_not_be_read_keeps_the_notes() -> None:
    assert "settings were read from x.toml" in everything_in(parsed(unreadable(notes=("a note",))))
    assert "a note" in everything_in(parsed(unreadable(notes=("a note",))))


def test_junit_tells_every_fact() -> None:
    assert missing_facts(everything_in(parsed(everything()))) == []


def test_junit_of_several_checkpoints_is_a_suite_each_and_their_sum() -> None:
    root = parsed(healthy(), broken(), unreadable(), misaligned())
    assert len(root) == 4
    for key in ("tests", "failures", "errors"):
        assert int(root.attrib[key]) == sum(int(suite.attrib[key]) for suite in root)
    assert [suite.attrib["failures"] for suite in root] == ["0", "1", "0", "1"]
    assert len(parsed()) == 0


def test_junit_of_hostile_names_is_valid_and_bounded() -> None:
    root = parsed(hostile())
    assert "\\x1b[31mred" in everything_in(root)
    assert {node.tag for node in root.iter()} <= {
        "testsuites", "testsuite", "testcase", "properties", "property", "failure", "error", "skipped", "system-out",
    }  # fmt: skip
    assert len(render_junit(whole_report(hostile(EVIL * 50_000)))) < 400_000


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=60))
def test_junit_of_any_name_is_xml(text: str) -> None:
    report = broken(path=text, findings=(finding(message=text, tensors=(text,), fix=text),))
    root = ElementTree.fromstring(render_junit(whole_report(report)))
    assert outcome(root, "GQA104") == "failure"
