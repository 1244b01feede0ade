"""The text report: what the file is, its layers, the verdict in words, the findings, the three claims.

A file without errors or warnings gets at most six lines, beside a parent a few more; everything else the long form.
"""

from __future__ import annotations

from collections.abc import Sequence

from gqacheck.report.document import Block, Line, Span, Style, line, plain
from gqacheck.report.findings import finding_blocks, headline
from gqacheck.report.head_map import MAP_CODES
from gqacheck.report.kept import kept_words, lineage_remarks
from gqacheck.report.runtime_words import base_words, runtime_words, sample_blocks
from gqacheck.report.table import head_dim_sources, layer_grid, layers_sentence
from gqacheck.report.whence import whence_blocks
from gqacheck.report.words import (
    STATE_WORDS,
    VERDICT_WORDS,
    bytes_words,
    code_ranges,
    format_words,
    layers_words,
    plural,
    scaled,
    seconds_words,
    skipped_words,
)
from gqacheck.result import CheckpointReport, ClaimResult, ClaimState, Report, Verdict
from gqacheck.rules.rule import Severity, Skipped
from gqacheck.rules.run import NEEDS_SELECTION
from gqacheck.text import printable

STATE_STYLES: dict[ClaimState, Style] = {
    ClaimState.PASS: "ok",
    ClaimState.FAIL: "error",
    ClaimState.NOT_CHECKED: "unknown",
    ClaimState.NOT_APPLICABLE: "dim",
}
ABSENT_PARTS = frozenset(("pickle", "shards", "file", "module", "torch-file", "biases"))
"""Needs that this file does not meet and does not have to: the rule is about a part that it does not have."""
VERDICT_STYLES: dict[Verdict, Style] = {Verdict.PASS: "ok", Verdict.FAIL: "error", Verdict.ERROR: "unknown"}


def render_text(report: Report) -> str:
    """The whole report as plain text."""
    return plain(document(report))


def render_checkpoint(report: CheckpointReport) -> str:
    """The report on one checkpoint as plain text."""
    return plain(checkpoint_blocks(report, named=False))


def document(report: Report, *, quiet: bool = False) -> list[Block]:
    """The blocks of a report; with ``quiet`` one line per checkpoint."""
    several = len(report.checkpoints) > 1
    blocks: list[Block] = [line(Span(f"note: {note}", "dim")) for note in report.notes]
    for position, checkpoint in enumerate(report.checkpoints):
        if quiet:
            blocks.append(_quiet_line(checkpoint))
            continue
        if position:
            blocks.append(Line())
        blocks.extend(checkpoint_blocks(checkpoint, named=several))
    if several:
        blocks.extend(() if quiet else (Line(),))
        blocks.append(_summary(report))
    return blocks


def _quiet_line(report: CheckpointReport) -> Line:
    verdict = Span(VERDICT_WORDS[report.verdict], VERDICT_STYLES[report.verdict])
    if report.error and not report.findings:
        rest = report.error
    else:
        codes = ", ".join(dict.fromkeys(f.code for f in report.findings if f.severity is not Severity.NOTE))
        claims = ", ".join(f"{claim.name} {STATE_WORDS[claim.state]}" for claim in report.claims)
        rest = f"{_counts(report)}{f' ({codes})' if codes else ''}; {claims}"
        rest += "".join(f"; {note}" for note in ([report.error] if report.error else report.notes))
    return line(verdict, f"  {rest}", label=f"{report.path}: ")


def _summary(report: Report) -> Line:
    words = {Verdict.PASS: "passed", Verdict.FAIL: "failed", Verdict.ERROR: "could not be checked"}
    counts = [(v, sum(c.verdict is v for c in report.checkpoints)) for v in (Verdict.FAIL, Verdict.ERROR, Verdict.PASS)]
    text = ", ".join(f"{n} {words[verdict]}" for verdict, n in counts if n)
    return line(Span(f"{plural(len(report.checkpoints), 'checkpoint')}: {text}", "strong"))


def checkpoint_blocks(report: CheckpointReport, *, named: bool) -> list[Block]:
    """The blocks of one checkpoint; ``named`` puts its path before them."""
    if report.checkpoint is None or report.geometry is None:
        return [_unread(report)]
    if _is_calm(report):
        return _short(report, named)
    return _long(report, named)


def _unread(report: CheckpointReport) -> Line:
    """The one line of a checkpoint that could not be read."""
    reason = report.error or "unknown"
    path = "" if reason.startswith(printable(report.path)) else f"{report.path}: "
    return line(f"{path}{reason}", label=Span("COULD NOT CHECK  ", "unknown"))


def _short(report: CheckpointReport, named: bool) -> list[Block]:
    """Six lines without a parent; with one also its name, what was kept of it, and the table where no weights tell."""
    assert report.geometry is not None
    compared = report.lineage is not None and report.lineage.compared
    sentence = layers_sentence(report.geometry) if report.base is None or compared else None
    blocks: list[Block] = [*_base_lines(report), _identity(report, named, sentence or "")]
    blocks += [] if sentence else _table(report)
    if report.lineage is not None:
        blocks += [line(words, label=Span("kept     ", "dim")) for words in kept_words(report.lineage)]
    notes = [*_notes(report), *report.notes, *_remarks(report)]
    if notes:
        blocks.append(line("; ".join(notes), label=Span("notes    ", "dim")))
    blocks.extend(_claim_lines(report, skips=True))
    blocks.extend(sample_blocks(report.runtime))
    blocks.extend(whence_blocks(report.runtime))
    blocks.append(_last_line(report))
    return blocks


def _table(report: CheckpointReport) -> list[Block]:
    assert report.geometry is not None
    if not report.geometry.layers:
        return []
    parent = report.base.geometry if report.base else None
    blocks: list[Block] = [Line(), layer_grid(report.geometry, parent, report.findings)]
    sources = head_dim_sources(report.geometry.layers)
    if sources:
        blocks.append(line(Span(f"head_dim from {', '.join(sources)}", "dim"), label="  "))
    return [*blocks, Line()]


def _long(report: CheckpointReport, named: bool) -> list[Block]:
    blocks: list[Block] = [*_base_lines(report), _identity(report, named), *(_table(report) or [Line()])]
    word, text = headline(report)
    blocks.append(line(Span(text, "strong"), label=(Span(word, VERDICT_STYLES[report.verdict]), "  ")))
    blocks += finding_blocks(report)
    remarks = [line(words, label=Span("kept     ", "dim")) for words in _kept(report)]
    remarks += [line(words, label=Span("note     ", "dim")) for words in (*report.notes, *_remarks(report))]
    if remarks:
        blocks += [Line(), *remarks]
    blocks += [Line(), *_claim_lines(report, skips=False), *sample_blocks(report.runtime)]
    blocks += [line(words, label=Span("skipped  ", "dim")) for words in _skips(report)]
    blocks += [Line(), _last_line(report)]
    return blocks


def _kept(report: CheckpointReport) -> list[str]:
    """What was kept of the parent, unless findings show where it went wrong."""
    if report.lineage is None or any(f.code in MAP_CODES for f in report.findings):
        return []
    return kept_words(report.lineage)


def _is_calm(report: CheckpointReport) -> bool:
    """Whether it passed, and there is nothing to do about it."""
    return report.verdict is Verdict.PASS and all(f.severity is Severity.NOTE for f in report.findings)


def _notes(report: CheckpointReport) -> list[str]:
    """Findings in one line each, for a report in which all of them are notes."""
    return [
        f"{f.code} {f.slug}: {f'{layers_words(f.layers)}: ' if f.layers else ''}{f.message}" for f in report.findings
    ]


def _base_lines(report: CheckpointReport) -> list[Block]:
    base = report.base
    if base is None or base.checkpoint is None:
        return []
    ran = base_words(report.runtime)
    told = f"; {ran}" if ran else ""
    return [line(f"base: {base.path} ({format_words(base.checkpoint.format)}; measured, not judged{told})")]


def _identity(report: CheckpointReport, named: bool, sentence: str = "") -> Line:
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


def _remarks(report: CheckpointReport) -> list[str]:
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


def _claim_lines(report: CheckpointReport, *, skips: bool) -> list[Block]:
    width = max((len(STATE_WORDS[claim.state]) for claim in report.claims), default=0)
    blocks: list[Block] = []
    for claim in report.claims:
        label = (
            Span(f"{claim.name:8} ", "strong"),
            Span(STATE_WORDS[claim.state].ljust(width), STATE_STYLES[claim.state]),
            "  ",
        )
        blocks.append(line(_claim_text(report, claim, skips=skips), label=label))
    return blocks


def _claim_text(report: CheckpointReport, claim: ClaimResult, *, skips: bool) -> str:
    parts: list[str] = []
    if claim.name == "runtime" and report.runtime:
        parts += runtime_words(report.runtime)
    if claim.reason:
        parts.append(claim.reason)
    if claim.name == "shapes":
        parts.append(plural(claim.rules_run, "rule") + " ran")
        if skips:
            parts += [f"skipped {words}" for words in _skips(report)]
    return "; ".join(parts)


def _skips(report: CheckpointReport) -> list[str]:
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


def _counts(report: CheckpointReport) -> str:
    parts = []
    for severity in (Severity.ERROR, Severity.WARNING, Severity.NOTE):
        n = sum(f.severity is severity for f in report.findings)
        if n or severity is Severity.ERROR:
            parts.append(plural(n, severity.value))
    return ", ".join(parts)


def _last_line(report: CheckpointReport) -> Line:
    """``2 errors · read 152 KB of 16.06 GB in 0.09 s; nothing was executed · gqacheck explain GQA601``."""
    checkpoint = report.checkpoint
    assert checkpoint is not None
    parts = [_counts(report)]
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
