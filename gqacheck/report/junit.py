"""The JUnit report: a test suite per checkpoint, a test case per rule, for every server that reads such files.

A rule that found something failed, one that did not run is skipped with its reason, and what could not be checked is an
``error`` element: no server counts that as passed. The numbers stand in ``properties``, the text report in
``system-out``. ASCII only, and no character that XML forbids, whatever the checkpoint's names hold.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from gqacheck.report.findings import headline
from gqacheck.report.runtime_json import metrics_data
from gqacheck.report.runtime_words import runtime_words
from gqacheck.report.text import render_checkpoint
from gqacheck.report.told import claim_text, is_known, quantity_words, remarks_of
from gqacheck.report.whence import whence
from gqacheck.report.words import STATE_WORDS, layers_words
from gqacheck.result import CheckpointReport, Report, Verdict
from gqacheck.rules.rule import Finding, Severity
from gqacheck.text import printable

OPENING = "<?xml version='1.0' encoding='us-ascii'?>\n<testsuites name=\"gqacheck\""
"""How every file begins, by which a later run knows that it may be replaced."""
LONGEST = 1500
"""Characters of one text: longer than any honest message."""
WHOLE = "checkpoint"
"""Name of the test case that stands for the checkpoint as a whole, where a rule's cannot say what is wrong."""


def render_junit(report: Report) -> str:
    """The report as one JUnit document: ASCII, ending in a newline."""
    root = Element("testsuites", name="gqacheck")
    for checkpoint in report.checkpoints:
        root.append(_suite(checkpoint, report))
    for key in ("tests", "failures", "errors"):
        root.set(key, str(sum(int(suite.attrib[key]) for suite in root)))
    root.set("time", _time(sum(map(_seconds, report.checkpoints))))
    ElementTree.indent(root, " ")
    text: str = ElementTree.tostring(root, "us-ascii", xml_declaration=True).decode("ascii")
    return text + "\n"


def _suite(report: CheckpointReport, whole: Report) -> Element:
    suite = Element("testsuite", name=_text(report.path))
    properties = SubElement(suite, "properties")
    for name, value in _properties(report, whole):
        SubElement(properties, "property", name=_text(name, 200), value=_text(value))
    cases = [*_whole_case(report), *_rule_cases(report)]
    failed = any(case.find("failure") is not None or case.find("error") is not None for case in cases)
    if report.verdict is not Verdict.PASS and not failed:
        cases.insert(0, _case(report, WHOLE, "failure", "verdict", " ".join(headline(report))))
    suite.extend(cases)
    for attribute, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(attribute, str(sum(case.find(tag) is not None for case in cases)))
    suite.set("tests", str(len(cases)))
    suite.set("time", _time(_seconds(report)))
    SubElement(suite, "system-out").text = "\n".join(map(_text, render_checkpoint(report).splitlines()))
    return suite


def _whole_case(report: CheckpointReport) -> Iterator[Element]:
    """The test case of what could not be checked; none where everything asked for was."""
    if report.verdict is Verdict.ERROR or report.error or report.exit_code >= 3:
        reasons = [report.error] if report.error else list(report.notes)
        said = "; ".join(reasons) or "something that was asked for could not be checked"
        yield _case(report, WHOLE, "error", "could-not-check", said)


def _case(report: CheckpointReport, name: str, tag: str = "", kind: str = "", message: str = "") -> Element:
    case = Element("testcase", classname=_classname(report.path), name=_text(name, 200), time="0")
    if tag:
        SubElement(case, tag, type=_text(kind, 200), message=_text(message)).text = _text(message)
    return case


def _classname(path: str) -> str:
    """``gqacheck.<path>`` with no other dot: servers take what stands before the last one for a package."""
    return f"gqacheck.{_text(path).replace('.', '_')}"


def _rule_cases(report: CheckpointReport) -> Iterator[Element]:
    """One test case per rule: those that found something, were skipped, or ran and found nothing; in order of code."""
    from gqacheck.rules import RULES

    found: dict[str, list[Finding]] = {}
    for finding in report.findings:
        found.setdefault(finding.code, []).append(finding)
    reasons = {skip.code: skip for skip in report.skipped}
    slugs = {rule.code: rule.slug for rule in RULES}
    slugs |= {code: findings[0].slug for code, findings in found.items()}
    read = report.geometry is not None
    for code in sorted({*found, *reasons, *(slugs if read else ())}):
        name = f"{code} {slugs.get(code, '')}".rstrip()
        if code in found:
            yield _found_case(report, name, found[code])
        elif code in reasons:
            yield _case(report, name, "skipped", reasons[code].needs, reasons[code].reason)
        else:
            yield _case(report, name)


def _found_case(report: CheckpointReport, name: str, findings: Sequence[Finding]) -> Element:
    """What a rule found: a failure where it counts, told in ``system-out`` of a passed case where it does not."""
    case = _case(report, name)
    new = sorted(
        (finding for finding in findings if not is_known(report, finding)), key=lambda finding: -finding.severity.rank
    )
    text = "\n\n".join("\n".join(map(_text, _told(report, finding))) for finding in findings)
    worst = new[0].severity if new else Severity.NOTE
    if worst is Severity.ERROR or (worst is Severity.WARNING and _warnings_count(report)):
        more = f" (and {len(findings) - 1:,} more)" if len(findings) > 1 else ""
        message = f"{_where(new[0])}{new[0].message}{more}"
        SubElement(case, "failure", type=worst.value, message=_text(message)).text = text
    else:
        SubElement(case, "system-out").text = text
    return case


def _warnings_count(report: CheckpointReport) -> bool:
    """Whether warnings made it fail (``--fail-on warning``)."""
    errors = [f for f in report.findings if f.severity is Severity.ERROR and not is_known(report, f)]
    return report.verdict is Verdict.FAIL and not errors


def _where(finding: Finding) -> str:
    return f"{layers_words(finding.layers)}: " if finding.layers else ""


def _told(report: CheckpointReport, finding: Finding) -> Iterator[str]:
    """Everything about one finding, a line each."""
    yield f"{finding.severity.value}: {_where(finding)}{finding.message}"
    if is_known(report, finding):
        yield "known: it is in the baseline and did not fail the check"
    for name, quantity in (("expected", finding.expected), ("actual", finding.actual)):
        if quantity is not None:
            yield f"{name}: {quantity_words(quantity)}"
    for name, text in (
        ("source", finding.source),
        ("cause", finding.cause),
        ("effect", finding.consequence),
        ("fix", finding.fix),
    ):
        if text:
            yield f"{name}: {text}"
    yield from (f"tensor: {tensor}" for tensor in finding.tensors)
    yield f"fingerprint: {finding.fingerprint}"


def _properties(report: CheckpointReport, whole: Report) -> Iterator[tuple[str, object]]:
    """Claims and numbers, each under a name of its own."""
    yield "gqacheck.version", whole.version
    yield "verdict", report.verdict.value
    yield "verdict.words", headline(report)[1]
    yield "exit_code", report.exit_code
    for claim in report.claims:
        yield f"claim.{claim.name}", claim.state.value
        yield f"claim.{claim.name}.words", f"{STATE_WORDS[claim.state]}: {claim_text(report, claim, skips=False)}"
    if report.base is not None:
        yield "base", report.base.path
    checkpoint, geometry = report.checkpoint, report.geometry
    if checkpoint is not None:
        yield "format", checkpoint.format
        yield "parameters", checkpoint.parameters
        yield "file_bytes", checkpoint.file_bytes
        yield "bytes_read", checkpoint.bytes_read
    if checkpoint is not None and geometry is not None:
        yield "family", geometry.family.name
        yield "n_layers", geometry.n_layers
    remarks = remarks_of(report) if checkpoint is not None and geometry is not None else []
    yield from _numbered("note", [*report.notes, *remarks, *whole.notes])
    if report.runtime is not None:
        yield from _numbered("ran", runtime_words(report.runtime))
        yield from _numbered("cause", map(whence, report.runtime.counterfactuals))
        metrics = metrics_data(report.runtime)
        yield from _flat("perplexity", metrics["perplexity"])
        yield from _flat("counterfactual", metrics["counterfactual"])


def _numbered(name: str, values: Any) -> Iterator[tuple[str, object]]:
    yield from ((f"{name}.{number}", value) for number, value in enumerate(values))


def _flat(name: str, value: Any) -> Iterator[tuple[str, object]]:
    """The leaves of a JSON value under dotted names; what is null or empty is left out."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(f"{name}.{key}", inner)
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _flat(f"{name}.{number}", inner)
    elif value is not None and value != "":
        yield name, value


def _seconds(report: CheckpointReport) -> float:
    parts = (report.lineage, report.pairing_fit, report.runtime)
    return report.seconds + sum(part.seconds for part in parts if part is not None)


def _time(seconds: float) -> str:
    return f"{seconds:.3f}"


def _text(value: object, limit: int = LONGEST) -> str:
    """``value`` on one line, of bounded length, without a character that XML forbids."""
    return printable(value, limit)
