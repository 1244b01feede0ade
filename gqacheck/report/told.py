"""What every report tells of one checkpoint in the same words: what it is, its claims, what was left out, and how."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from gqacheck.report.document import Block, Line, Span, line
from gqacheck.report.head_map import MAP_CODES
from gqacheck.report.kept import kept_words, lineage_remarks
from gqacheck.report.runtime_words import base_words, runtime_words
from gqacheck.report.words import bytes_words, code_ranges, format_words, plural, scaled, seconds_words, skipped_words
from gqacheck.result import CheckpointReport, ClaimResult, ClaimState
from gqacheck.rules.rule import Finding, Quantity, Severity, Skipped
from gqacheck.rules.run import NEEDS_SELECTION

_SEVERAL = re.compile(r"(?<![\w_-])((?!bias|out_|in_)[a-zA-Z-]+?)s(?![\w_])")
"""The first plural of a unit; names of attributes (out_features) are none."""
ABSENT_PARTS = frozenset(("pickle", "shards", "file", "module", "torch-file", "biases"))
"""Needs that this file does not meet and does not have to: the rule is about a part that it does not have."""


def base_lines(report: CheckpointReport) -> list[Block]:
    """The line that names the base, with its own perplexities; [] without one."""
    base = report.base
    if base is None or base.checkpoint is None:
        return []
    ran = base_words(report.runtime)
    told = f"; {ran}" if ran else ""
    return [line(f"base: {base.path} ({format_words(base.checkpoint.format)}; measured, not judged{told})")]


def identity_line(report: CheckpointReport, named: bool, sentence: str = "") -> Line:
    """``llama · torch zip, whole module · 6.63 B parameters (base 8.03 B, -17.4 %)``."""
    checkpoint, geometry = report.checkpoint, report.geometry
    assert checkpoint is not None
    assert geometry is not None
    family = "unknown family" if geometry.family.generic else geometry.family.name
    parts: list[str | Span] = []
    if named:
        parts += [Span(report.path, "strong"), ": "]
    under = f" (under {'.'.join(checkpoint.unwrapped)})" if checkpoint.unwrapped else ""
    parts += [Span(family, "strong"), f" · {format_words(checkpoint.format)}{under}"]
    if checkpoint.quantization:
        parts.append(f" · quantised ({checkpoint.quantization})")
    parts.append(f" · {_parameters(report)}")
    if sentence:
        parts.append(f" · {sentence}")
    return line(*parts)


def _parameters(report: CheckpointReport) -> str:
    assert report.checkpoint is not None
    n = report.checkpoint.parameters
    text = f"{scaled(n)} parameters"
    base = report.base.checkpoint if report.base else None
    if base is None or not base.parameters:
        return text
    change = 100 * (n - base.parameters) / base.parameters
    return f"{text} (base {scaled(base.parameters)}, {change:+.1f} %)"


def remarks_of(report: CheckpointReport) -> list[str]:
    """What was seen and left alone, and what running the model had to say."""
    checkpoint, geometry = report.checkpoint, report.geometry
    assert checkpoint is not None
    assert geometry is not None
    remarks = []
    if geometry.prefix:
        remarks.append(f"the prefix {geometry.prefix} was seen through")
    remarks += [f"ignored: {sentence}" for sentence in checkpoint.ignored]
    remarks += [f"not checked: {sentence}" for sentence in geometry.not_checked]
    if report.runtime:
        remarks += report.runtime.notes
    return remarks + lineage_remarks(report)


def kept_of(report: CheckpointReport) -> list[str]:
    """What was kept of the parent, unless findings show where it went wrong."""
    if report.lineage is None or any(f.code in MAP_CODES for f in report.findings):
        return []
    return kept_words(report.lineage)


def claim_text(report: CheckpointReport, claim: ClaimResult, *, skips: bool) -> str:
    """What stands behind one claim: what was measured, why, how many rules; with ``skips`` also what was left out."""
    parts: list[str] = []
    if claim.name == "runtime" and report.runtime:
        parts += runtime_words(report.runtime)
    if claim.reason:
        parts.append(claim.reason)
    if claim.name == "shapes":
        parts.append(plural(claim.rules_run, "rule") + " ran")
        if skips:
            parts += [f"skipped {words}" for words in skip_words(report)]
    return "; ".join(parts)


def skip_words(report: CheckpointReport) -> list[str]:
    """Skipped rules: those about parts that this file lacks in one entry, the rest by reason.

    Of the rules on lineage and running (GQA6, GQA7) their claim says why they did not run, unless they were left out.
    """
    left = [s for s in report.skipped if s.needs == NEEDS_SELECTION or not _said_by_claim(s, report.claims)]
    absent = [s for s in left if s.needs in ABSENT_PARTS]
    words = skipped_words(s for s in left if s.needs not in ABSENT_PARTS)
    if absent:
        words.append(f"{code_ranges(s.code for s in absent)}: about parts that this file does not have")
    return words


def _said_by_claim(skip: Skipped, claims: Sequence[ClaimResult]) -> bool:
    if skip.code.startswith("GQA7") or (skip.code == "GQA504" and skip.needs in ("values", "no-base")):
        return True
    unchecked = [c for c in claims if c.name == "pairing" and c.state is not ClaimState.PASS]
    return (
        skip.code.startswith("GQA6")
        and bool(unchecked)
        and (skip.needs == "base" or skip.reason in unchecked[0].reason)
    )


def count_words(report: CheckpointReport) -> str:
    """``2 errors, 1 warning``."""
    parts = []
    for severity in (Severity.ERROR, Severity.WARNING, Severity.NOTE):
        n = sum(f.severity is severity for f in report.findings)
        if n or severity is Severity.ERROR:
            parts.append(plural(n, severity.value))
    return ", ".join(parts)


def last_line(report: CheckpointReport) -> Line:
    """``2 errors · read 152 KB of 16.06 GB in 0.09 s; nothing was executed · gqacheck explain GQA601``."""
    checkpoint = report.checkpoint
    assert checkpoint is not None
    parts = [count_words(report)]
    if checkpoint.format == "live-module":
        parts.append(f"the live module was described in {seconds_words(report.seconds)}")
    else:
        read = f"read {bytes_words(checkpoint.bytes_read)} of {bytes_words(checkpoint.file_bytes)}"
        took = seconds_words(report.seconds)
        executed = "no code of the file was executed" if report.runtime else "nothing was executed"
        parts.append(f"{read} in {took}; {executed}")
    if report.lineage and report.lineage.bytes_read:
        lineage = report.lineage
        parts.append(f"compared {bytes_words(lineage.bytes_read)} of weights in {seconds_words(lineage.seconds)}")
    if report.pairing_fit and report.pairing_fit.bytes_read:
        fit = report.pairing_fit
        parts.append(f"looked at {bytes_words(fit.bytes_read)} of weights in {seconds_words(fit.seconds)}")
    if report.runtime:
        runtime = report.runtime
        parts.append(f"ran {seconds_words(runtime.seconds)} on {runtime.device} in {runtime.dtype}")
    worst = _explained(report)
    if worst:
        parts.append(f"gqacheck explain {worst}")
    return line(" · ".join(parts))


def _explained(report: CheckpointReport) -> str:
    findings: Sequence[str] = [f.code for f in report.findings if f.severity is not Severity.NOTE]
    return findings[0] if findings else ""


def every_layer(findings: Iterable[Finding]) -> list[int]:
    """The indices of all layers that these findings name, in order."""
    return sorted({index for finding in findings for index in finding.layers})


def quantity_words(quantity: Quantity) -> str:
    """``28 query heads``, ``1 query head``, ``96,188 perplexity``."""
    value = quantity.value
    shown = f"{value:,}" if isinstance(value, int) else f"{value:,.6g}" if isinstance(value, float) else value
    unit = _SEVERAL.sub(_one, quantity.unit, count=1) if value in (1, "1") else quantity.unit
    return f"{shown} {unit}"


def _one(match: re.Match[str]) -> str:
    return f"{match[1][:-2]}y" if match[1].endswith("ie") else match[1]


def is_known(report: CheckpointReport, finding: Finding) -> bool:
    """Whether a baseline knows this finding, which then did not fail the check."""
    return bool(report.known) and finding.fingerprint in report.known
