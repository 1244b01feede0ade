"""The text report: what the file is, its layers, the verdict in words, the findings, the three claims.

A file without errors or warnings gets at most six lines, beside a parent a few more; everything else the long form.
"""

from __future__ import annotations

from gqacheck.report.copying import copying_blocks
from gqacheck.report.document import Block, Line, Span, Style, line, plain
from gqacheck.report.findings import finding_blocks, headline
from gqacheck.report.kept import kept_words
from gqacheck.report.runtime_words import sample_blocks
from gqacheck.report.table import head_dim_sources, layer_grid, layers_sentence
from gqacheck.report.told import (
    base_lines,
    claim_text,
    count_words,
    identity_line,
    kept_of,
    last_line,
    remarks_of,
    skip_words,
)
from gqacheck.report.whence import whence_blocks
from gqacheck.report.words import STATE_WORDS, VERDICT_WORDS, layers_words, plural
from gqacheck.result import CheckpointReport, ClaimState, Report, Verdict
from gqacheck.rules.rule import Severity
from gqacheck.text import printable

STATE_STYLES: dict[ClaimState, Style] = {
    ClaimState.PASS: "ok",
    ClaimState.FAIL: "error",
    ClaimState.NOT_CHECKED: "unknown",
    ClaimState.NOT_APPLICABLE: "dim",
}
VERDICT_STYLES: dict[Verdict, Style] = {Verdict.PASS: "ok", Verdict.FAIL: "error", Verdict.ERROR: "unknown"}


def render_text(report: Report) -> str:
    """The whole report as plain text."""
    return plain(document(report))


def render_checkpoint(report: CheckpointReport) -> str:
    """The report on one checkpoint as plain text."""
    return plain(checkpoint_blocks(report, named=False))


def document(report: Report, *, quiet: bool = False, verbose: bool = False) -> list[Block]:
    """The blocks of a report; with ``quiet`` one line per checkpoint.

    verbose: also what was measured per layer.
    """
    several = len(report.checkpoints) > 1
    blocks: list[Block] = [line(Span(f"note: {note}", "dim")) for note in report.notes]
    for position, checkpoint in enumerate(report.checkpoints):
        if quiet:
            blocks.append(_quiet_line(checkpoint))
            continue
        if position:
            blocks.append(Line())
        blocks.extend(checkpoint_blocks(checkpoint, named=several, verbose=verbose))
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
        rest = f"{count_words(report)}{f' ({codes})' if codes else ''}; {claims}"
        rest += "".join(f"; {note}" for note in ([report.error] if report.error else report.notes))
    return line(verdict, f"  {rest}", label=f"{report.path}: ")


def _summary(report: Report) -> Line:
    words = {Verdict.PASS: "passed", Verdict.FAIL: "failed", Verdict.ERROR: "could not be checked"}
    counts = [(v, sum(c.verdict is v for c in report.checkpoints)) for v in (Verdict.FAIL, Verdict.ERROR, Verdict.PASS)]
    text = ", ".join(f"{n} {words[verdict]}" for verdict, n in counts if n)
    return line(Span(f"{plural(len(report.checkpoints), 'checkpoint')}: {text}", "strong"))


def checkpoint_blocks(report: CheckpointReport, *, named: bool, verbose: bool = False) -> list[Block]:
    """The blocks of one checkpoint; ``named`` puts its path before them, ``verbose`` is as for ``document``."""
    if report.checkpoint is None or report.geometry is None:
        return [_unread(report)]
    by_layer = copying_blocks(report.runtime) if verbose else []
    if _is_calm(report):
        return _short(report, named, by_layer)
    return _long(report, named, by_layer)


def _unread(report: CheckpointReport) -> Line:
    """The one line of a checkpoint that could not be read."""
    reason = report.error or "unknown"
    path = "" if reason.startswith(printable(report.path)) else f"{report.path}: "
    return line(f"{path}{reason}", label=Span("COULD NOT CHECK  ", "unknown"))


def _short(report: CheckpointReport, named: bool, by_layer: list[Block]) -> list[Block]:
    """Six lines without a parent; with one also its name, what was kept of it, and the table where no weights tell."""
    assert report.geometry is not None
    compared = report.lineage is not None and report.lineage.compared
    sentence = layers_sentence(report.geometry) if report.base is None or compared else None
    blocks: list[Block] = [*base_lines(report), identity_line(report, named, sentence or "")]
    blocks += [] if sentence else _table(report)
    if report.lineage is not None:
        blocks += [line(words, label=Span("kept     ", "dim")) for words in kept_words(report.lineage)]
    notes = [*_notes(report), *report.notes, *remarks_of(report)]
    if notes:
        blocks.append(line("; ".join(notes), label=Span("notes    ", "dim")))
    blocks.extend(_claim_lines(report, skips=True))
    blocks.extend([*sample_blocks(report.runtime), *by_layer])
    blocks.extend(whence_blocks(report.runtime))
    blocks.append(last_line(report))
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


def _long(report: CheckpointReport, named: bool, by_layer: list[Block]) -> list[Block]:
    blocks: list[Block] = [*base_lines(report), identity_line(report, named), *(_table(report) or [Line()])]
    word, text = headline(report)
    blocks.append(line(Span(text, "strong"), label=(Span(word, VERDICT_STYLES[report.verdict]), "  ")))
    blocks += finding_blocks(report)
    remarks = [line(words, label=Span("kept     ", "dim")) for words in kept_of(report)]
    stopped = [report.error] if report.error and report.verdict is Verdict.FAIL else []  # else it is the headline
    remarks += [line(words, label=Span("note     ", "dim")) for words in (*stopped, *report.notes, *remarks_of(report))]
    if remarks:
        blocks += [Line(), *remarks]
    blocks += [Line(), *_claim_lines(report, skips=False), *sample_blocks(report.runtime), *by_layer]
    blocks += [line(words, label=Span("skipped  ", "dim")) for words in skip_words(report)]
    blocks += [Line(), last_line(report)]
    return blocks


def _is_calm(report: CheckpointReport) -> bool:
    """Whether it passed, and there is nothing to do about it."""
    return report.verdict is Verdict.PASS and all(f.severity is Severity.NOTE for f in report.findings)


def _notes(report: CheckpointReport) -> list[str]:
    """Findings in one line each, for a report in which all of them are notes."""
    return [
        f"{f.code} {f.slug}: {f'{layers_words(f.layers)}: ' if f.layers else ''}{f.message}" for f in report.findings
    ]


def _claim_lines(report: CheckpointReport, *, skips: bool) -> list[Block]:
    width = max((len(STATE_WORDS[claim.state]) for claim in report.claims), default=0)
    blocks: list[Block] = []
    for claim in report.claims:
        label = (
            Span(f"{claim.name:8} ", "strong"),
            Span(STATE_WORDS[claim.state].ljust(width), STATE_STYLES[claim.state]),
            "  ",
        )
        blocks.append(line(claim_text(report, claim, skips=skips), label=label))
    return blocks
