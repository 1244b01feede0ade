"""``gqacheck explain`` and ``gqacheck rules``: what the docstrings of the rules say."""

from __future__ import annotations

from collections.abc import Sequence

from gqacheck.errors import UsageError
from gqacheck.report.document import Block, Grid, Line, Span, line
from gqacheck.rules.rule import Rule

HEADINGS = ("What it checks", "Why it matters", "What you would see", "Fix", "Known misses", "Source")
"""The headings of every rule's docstring, in this order; each stands on a line of its own."""


def explain(name: str, rules: Sequence[Rule] | None = None, *, reflow: bool = False) -> list[Block]:
    """The documentation of one rule, by code or slug; with ``reflow`` each paragraph is one line, for a terminal.

    Raises UsageError when there is no such rule, or more than one.
    """
    from gqacheck.rules.run import find_rules

    found = find_rules(_all(rules), name)
    if len(found) > 1:
        raise UsageError(f"explain takes one code; {name!r} means {', '.join(rule.code for rule in found)}")
    rule = found[0]
    title = line(Span(f"{rule.code} {rule.slug}", "strong"), f"   {rule.severity.value} · claim: {rule.claim}")
    blocks: list[Block] = [title, Line()]
    lines = rule.doc.splitlines()
    for text in _paragraphs(lines) if reflow else lines:
        heading = text.strip().rstrip(":") in HEADINGS
        blocks.append(line(Span(text.strip(), "strong" if heading else ""), label=" " * _indent(text)))
    return blocks


def _paragraphs(lines: Sequence[str]) -> list[str]:
    """The lines with those of one paragraph joined: same indent, and none of them a heading or the start of an item."""
    joined: list[str] = []
    for text in lines:
        before = joined[-1] if joined else ""
        bare = text.strip()
        starts = not bare or bare in HEADINGS or bare.startswith(("- ", "* ", "|", ">>>", "::"))
        follows = before.strip() and before.strip() not in HEADINGS and _indent(before) == _indent(text)
        if follows and not starts:
            joined[-1] = f"{before} {bare}"
        else:
            joined.append(text)
    return joined


def _indent(text: str) -> int:
    return len(text) - len(text.lstrip())


def rules_blocks(rules: Sequence[Rule] | None = None) -> list[Block]:
    """All rules as a table: code, slug, default severity, claim, first sentence of the documentation."""
    rows = tuple((r.code, r.slug, r.severity.value, r.claim, summary(r)) for r in _all(rules))
    return [Grid(("code", "slug", "severity", "claim", "fires when"), rows, left=frozenset(range(5)), indent=0)]


def rules_json(rules: Sequence[Rule] | None = None) -> str:
    """The same as a JSON list, with the documentation of each rule."""
    import json

    data = [
        {
            "code": rule.code,
            "slug": rule.slug,
            "severity": rule.severity.value,
            "claim": rule.claim,
            "summary": summary(rule),
            "doc": rule.doc,
        }
        for rule in _all(rules)
    ]
    return json.dumps(data, indent=1) + "\n"


def summary(rule: Rule) -> str:
    """The first sentence of a rule's documentation."""
    first = rule.doc.partition("\n")[0].strip()
    return first.removesuffix(".")


def _all(rules: Sequence[Rule] | None) -> Sequence[Rule]:
    if rules is not None:
        return rules
    from gqacheck.rules import RULES

    return RULES
