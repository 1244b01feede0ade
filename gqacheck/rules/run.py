"""Runs rules over one subject: stamps code, slug and severity, merges layers, and keeps what did not run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gqacheck.errors import UsageError
from gqacheck.geometry.facts import Subject
from gqacheck.rules.rule import Finding, Rule, Severity, Skipped, Violation

NEEDS_REPAIR = "repair"
"""``Skipped.needs`` of a rule that failed itself: what it would have said is unknown, so nothing may pass on it."""

NEEDS_SELECTION = "selection"
"""``Skipped.needs`` of a rule that the caller left out by ``--select`` or ``--ignore``."""


def run_rules(
    subject: Subject, rules: Iterable[Rule], *, tolerant: bool = False
) -> tuple[tuple[Finding, ...], tuple[Skipped, ...]]:
    """Findings in the order of ``rules`` (then of layers), and the rules that could not run, each with the reason.

    Violations of one rule that differ in nothing but layer and tensors become one finding. With ``tolerant`` a
    rule that raises becomes a ``Skipped`` whose ``needs`` is ``NEEDS_REPAIR``; without it the exception passes.
    """
    findings: list[Finding] = []
    skipped: list[Skipped] = []
    for rule in rules:
        try:
            why = rule.skip(subject)
            if why is not None:
                skipped.append(Skipped(rule.code, *why))
                continue
            findings.extend(_merge(rule, tuple(rule.check(subject)), _cap(rule, subject)))
        except Exception as error:
            if not tolerant:
                raise
            reason = f"the rule itself failed ({type(error).__name__}: {error}); please report this"
            skipped.append(Skipped(rule.code, NEEDS_REPAIR, reason))
    return tuple(findings), tuple(skipped)


def _cap(rule: Rule, subject: Subject) -> Severity:
    """The worst that the rule may say: an unknown family may mean other things by the same names.

    Container rules (GQA0xx) and what was measured by running (GQA7xx) do not depend on the family.
    """
    depends_on_family = not rule.code.startswith(("GQA0", "GQA7"))
    return Severity.WARNING if subject.geometry.family.generic and depends_on_family else Severity.ERROR


def _merge(rule: Rule, violations: Sequence[Violation], cap: Severity) -> list[Finding]:
    groups: dict[tuple[object, ...], list[Violation]] = {}
    for v in violations:
        in_layer = v.layer is not None
        key = (v.message, v.expected, v.actual, v.source, v.consequence, v.fix, v.cause, v.severity, in_layer)
        groups.setdefault(key, []).append(v)
    findings = [_finding(rule, group, cap) for group in groups.values()]
    findings.sort(key=lambda finding: finding.layers[:1])
    return findings


def _finding(rule: Rule, group: Sequence[Violation], cap: Severity) -> Finding:
    first = group[0]
    ordered = sorted(group, key=lambda v: -1 if v.layer is None else v.layer)
    severity = rule.severity if first.severity is None else first.severity
    return Finding(
        code=rule.code,
        slug=rule.slug,
        severity=severity if severity.rank <= cap.rank else cap,
        message=first.message,
        layers=tuple(dict.fromkeys(v.layer for v in ordered if v.layer is not None)),
        tensors=tuple(dict.fromkeys(name for v in ordered for name in v.tensors)),
        expected=first.expected,
        actual=first.actual,
        source=first.source,
        consequence=first.consequence,
        fix=first.fix,
        cause=first.cause,
    )


def choose_rules(
    rules: Sequence[Rule], select: Sequence[str] = (), ignore: Sequence[str] = ()
) -> tuple[tuple[Rule, ...], tuple[Skipped, ...]]:
    """The rules to run, and those the caller left out. Names are codes, slugs or prefixes of codes (``GQA1``).

    Without ``select`` all are chosen; ``ignore`` wins over ``select``. Raises UsageError for a name that fits nothing.
    """
    selected = {rule.code for name in select for rule in find_rules(rules, name)}
    ignored = {rule.code for name in ignore for rule in find_rules(rules, name)}
    chosen: list[Rule] = []
    left_out: list[Skipped] = []
    for rule in rules:
        if rule.code in ignored:
            left_out.append(Skipped(rule.code, NEEDS_SELECTION, "ignored by --ignore"))
        elif select and rule.code not in selected:
            left_out.append(Skipped(rule.code, NEEDS_SELECTION, "not in --select"))
        else:
            chosen.append(rule)
    return tuple(chosen), tuple(left_out)


def find_rules(rules: Sequence[Rule], name: str) -> tuple[Rule, ...]:
    """The rules that ``name`` means: a code, a slug, or a prefix of codes. Raises UsageError when there is none."""
    wanted = name.strip()
    code = wanted.upper()
    found = tuple(rule for rule in rules if rule.slug == wanted.lower() or rule.code == code)
    if not found and code.startswith("GQA"):
        found = tuple(rule for rule in rules if rule.code.startswith(code))
    if not found:
        from difflib import get_close_matches

        known = [text for rule in rules for text in (rule.code, rule.slug)]
        close = get_close_matches(code, known, n=1, cutoff=0.8) or get_close_matches(wanted.lower(), known, n=1)
        hint = f"did you mean {close[0]}?" if close else "`gqacheck rules` lists them"
        raise UsageError(f"no rule is called {wanted[:60]!r}; {hint}")
    return found
