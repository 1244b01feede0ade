"""Findings in the text report: the verdict in words, then one block per rule."""

from __future__ import annotations

from collections.abc import Sequence

from gqacheck.report.document import Block, Line, Span, Style, line
from gqacheck.report.words import SEVERITY_LETTERS, VERDICT_WORDS, layers_words, plural
from gqacheck.result import CheckpointReport, Verdict
from gqacheck.rules.rule import Finding, Severity

MESSAGES_PER_RULE = 8
"""Different messages shown for one rule; the layers of the rest are still named."""
HEADER_WIDTH = 46
SEVERITY_STYLES: dict[Severity, Style] = {
    Severity.ERROR: "error",
    Severity.WARNING: "warning",
    Severity.NOTE: "note",
}
GROUPS = (
    ("GQA0", "the file itself is damaged or ambiguous"),
    ("GQA1", "the attention heads do not fit together"),
    ("GQA2", "the module attributes do not say what the tensors are"),
    ("GQA3", "the MLP widths do not fit together"),
    ("GQA4", "the config or the layer list does not fit the tensors"),
    ("GQA701", "the model does not run"),
    ("GQA702", "the model runs, and its output is NaN or Inf"),
    ("GQA703", "the model runs, and its output is noise"),
)
"""What errors of one group mean in words, by prefix of code; a headline names the first two that apply."""


def headline(report: CheckpointReport) -> tuple[str, str]:
    """The verdict's word, and what it means for this checkpoint in a sentence."""
    word = VERDICT_WORDS[report.verdict]
    if report.verdict is Verdict.FAIL:
        errors = [f for f in report.findings if f.severity is Severity.ERROR]
        if not errors:
            n = sum(f.severity is Severity.WARNING for f in report.findings)
            return word, f"no errors, but {plural(n, 'warning')}, and --fail-on warning makes them count"
        meanings = [text for prefix, text in GROUPS if any(f.code.startswith(prefix) for f in errors)]
        return word, "; ".join(meanings[:2]) or "errors were found"
    if report.verdict is Verdict.ERROR:
        return word, report.error or "something that --require insists on was not checked"
    warnings = sum(f.severity is Severity.WARNING for f in report.findings)
    if warnings:
        return word, f"no errors, but {plural(warnings, 'warning')} to read"
    return word, "nothing wrong was found in what was checked"


def finding_blocks(findings: Sequence[Finding]) -> list[Block]:
    """One block per rule and severity, each after an empty line."""
    by_rule: dict[tuple[str, Severity], list[Finding]] = {}
    for finding in findings:
        by_rule.setdefault((finding.code, finding.severity), []).append(finding)
    blocks: list[Block] = []
    for group in by_rule.values():
        blocks.append(Line())
        blocks.extend(_rule_blocks(group))
    return blocks


def _rule_blocks(group: Sequence[Finding]) -> list[Block]:
    first = group[0]
    layers = layers_words(sorted({index for f in group for index in f.layers}))
    title = f"{first.code} {first.slug}"
    blocks: list[Block] = [
        line(
            Span(title, "strong"),
            f"{'':{max(2, HEADER_WIDTH - len(title))}}{layers}" if layers else "",
            label=(Span(SEVERITY_LETTERS[first.severity], SEVERITY_STYLES[first.severity]), " "),
        )
    ]
    shown, left = group[:MESSAGES_PER_RULE], group[MESSAGES_PER_RULE:]
    apart = len({f.layers for f in group}) > 1
    same_effect, same_fix = len({f.consequence for f in shown}) == 1, len({f.fix for f in shown}) == 1
    for finding in shown:
        where = f"{layers_words(finding.layers)}: " if apart and finding.layers else ""
        blocks.append(line(f"{where}{finding.message}", label="  "))
        blocks += _advice("" if same_effect else finding.consequence, "" if same_fix else finding.fix)
    if left:
        rest = layers_words(sorted({index for f in left for index in f.layers}))
        blocks.append(line(f"and {len(left):,} more{f' in {rest}' if rest else ''} (--format json)", label="  "))
    blocks += _tensors(group)
    blocks += _advice(first.consequence if same_effect else "", first.fix if same_fix else "")
    return blocks


def _tensors(group: Sequence[Finding]) -> list[Block]:
    names = list(dict.fromkeys(name for finding in group for name in finding.tensors))
    if not names:
        return []
    more = f" and {len(names) - 1:,} more" if len(names) > 1 else ""
    return [_field("in", f"{names[0]}{more}")]


def _advice(consequence: str, fix: str) -> list[Block]:
    return [_field(name, text) for name, text in (("effect", consequence), ("fix", fix)) if text]


def _field(name: str, text: str) -> Line:
    return line(text, label=("  ", Span(f"{name:7} ", "dim")))
