"""The HTML report's claims, findings with the rule's own explanation folded under each, and what was skipped."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from gqacheck.report.explain import HEADINGS
from gqacheck.report.html_elements import Element, Node, code, e
from gqacheck.report.told import claim_text, count_words, every_layer, is_known, quantity_words
from gqacheck.report.words import STATE_WORDS, code_ranges, layers_words
from gqacheck.result import CheckpointReport
from gqacheck.rules.rule import Finding, Severity
from gqacheck.text import printable

SHOWN = 40
"""Findings of one rule that stand open; the rest is folded."""
MOST = 2000
"""Findings of one rule at most; how many more there are is said."""
TENSORS = 4
_LITERAL = re.compile(r"(``[^`]+``|`[^`]+`)")


def claims(report: CheckpointReport) -> Node:
    """The three claims, each with its state and what stands behind it."""
    if not report.claims:
        return None
    cards = [
        e(
            "li",
            e("h3", claim.name, e("span", STATE_WORDS[claim.state], class_="state")),
            e("p", _claim(report, claim.name)),
            class_=f"claim {claim.state.value}",
        )
        for claim in report.claims
    ]
    return e("ul", *cards, class_="claims", aria_label="the three claims")


def _claim(report: CheckpointReport, name: str) -> str:
    """What stands behind a claim; what running it showed has a section of its own."""
    claim = next(one for one in report.claims if one.name == name)
    if report.runtime is None or name != "runtime":
        return claim_text(report, claim, skips=False)
    return claim.reason or "see what it measured, below"


def findings(report: CheckpointReport, explained: set[str]) -> Node:
    """Every finding, one card per rule and severity; a rule is explained once on a page (``explained``)."""
    if not report.findings:
        return None
    by_rule: dict[tuple[str, Severity], list[Finding]] = {}
    for finding in report.findings:
        by_rule.setdefault((finding.code, finding.severity), []).append(finding)
    cards = [_card(report, group, explained) for group in by_rule.values()]
    return e("section", e("h3", "Findings", e("span", count_words(report), class_="dim")), *cards, class_="findings")


def _card(report: CheckpointReport, group: Sequence[Finding], explained: set[str]) -> Element:
    first = group[0]
    layers = layers_words(every_layer(group))
    known = all(is_known(report, finding) for finding in group)
    head = e(
        "h4",
        e("span", first.severity.value, class_="badge"),
        e("span", first.code, class_="code"),
        " ",
        e("span", first.slug),
        e("span", "known: in the baseline", class_="dim") if known else None,
        e("span", layers, class_="dim where") if layers else None,
    )
    apart = len({finding.layers for finding in group}) > 1
    alike = {name for name in ("cause", "effect", "fix") if len({_advice(f)[name] for f in group}) == 1}
    told = [
        _told(finding, apart=apart, alike=alike, known=not known and is_known(report, finding))
        for finding in group[:MOST]
    ]
    body: list[Node] = list(told[:SHOWN])
    if told[SHOWN:]:
        body.append(e("details", e("summary", f"{len(told) - SHOWN:,} more"), *told[SHOWN:]))
    if len(group) > MOST:
        body.append(e("p", f"and {len(group) - MOST:,} more (--format json)", class_="dim"))
    advice = [(name, text) for name, text in _advice(first).items() if text and name in alike]
    return e(
        "div",
        head,
        *body,
        _list(advice),
        _explained(first, explained),
        class_=f"card {'note' if known else first.severity.value}",
    )


def _advice(finding: Finding) -> dict[str, str]:
    return {"cause": finding.cause, "effect": finding.consequence, "fix": finding.fix}


def _told(finding: Finding, *, apart: bool, alike: set[str], known: bool) -> Element:
    where = f"{layers_words(finding.layers)}: " if apart and finding.layers else ""
    own = [(name, text) for name, text in _advice(finding).items() if text and name not in alike]
    return e(
        "div",
        e("p", where, finding.message, " (known)" if known else None, class_="message"),
        _list(own),
        _facts(finding),
        class_="finding",
    )


def _facts(finding: Finding) -> Node:
    """Numbers, source and tensors in small print."""
    parts: list[Node] = []
    for name, quantity in (("expected", finding.expected), ("found", finding.actual)):
        if quantity is not None:
            parts += [f"{name} {quantity_words(quantity)}", " · "]
    if finding.source:
        parts += [f"from {finding.source}", " · "]
    for tensor in finding.tensors[:TENSORS]:
        parts += [code(tensor), " "]
    if len(finding.tensors) > TENSORS:
        parts.append(f"and {len(finding.tensors) - TENSORS:,} more")
    while parts and parts[-1] in (" · ", " "):
        parts.pop()
    return e("p", *parts, class_="dim facts") if parts else None


def _list(entries: Sequence[tuple[str, str]]) -> Node:
    if not entries:
        return None
    return e("dl", *(e("div", e("dt", name), e("dd", text), class_=name) for name, text in entries))


def _explained(finding: Finding, explained: set[str]) -> Node:
    """The documentation of the rule, folded; only under its first finding on a page."""
    from gqacheck.rules import RULES

    rule = next((rule for rule in RULES if rule.code == finding.code), None)
    if rule is None or finding.code in explained:
        return None
    explained.add(finding.code)
    return e("details", e("summary", f"about {finding.code}"), *_documented(rule.doc), class_="about")


def _documented(doc: str) -> Iterator[Element]:
    """Headings and paragraphs of a rule's docstring; what is in backticks is code."""
    paragraph: list[str] = []
    for line in [*doc.splitlines(), ""]:
        heading = line.strip() in HEADINGS
        if paragraph and (heading or not line.strip()):
            yield e("p", *_literals(" ".join(paragraph)))
            paragraph = []
        if heading:
            yield e("h5", line.strip())
        elif line.strip():
            paragraph.append(line.strip())


def _literals(text: str) -> Iterator[Node]:
    for part in _LITERAL.split(text):
        literal = part.startswith("`") and part.endswith("`") and len(part) > 2
        yield e("code", part.strip("`")) if literal else part


def skipped(report: CheckpointReport) -> Node:
    """Rules that did not run, by reason."""
    if not report.skipped:
        return None
    by_reason: dict[str, list[str]] = {}
    for skip in report.skipped:
        by_reason.setdefault(skip.reason, []).append(skip.code)
    head = e("thead", e("tr", e("th", "rules", scope="col"), e("th", "why they did not run", scope="col")))
    rows = [
        e("tr", e("th", printable(code_ranges(codes), 1000), scope="row"), e("td", reason))
        for reason, codes in by_reason.items()
    ]
    n = len({skip.code for skip in report.skipped})
    summary = e("summary", e("h3", "Skipped"), e("span", f"{n} rule{'' if n == 1 else 's'}", class_="dim"))
    return e("details", summary, e("div", e("table", head, e("tbody", *rows)), class_="wide"), class_="fold")
