"""The Markdown report: a comment on a pull request, verdict first, never longer than GitHub takes.

What does not fit is left out by one rule: first the generated texts and tables get shorter, then the messages of each
rule, then whole checkpoints, those that passed first; every place says how much was left out.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from gqacheck.geometry.outcomes import Sample
from gqacheck.report.document import Grid, cell_text, plain
from gqacheck.report.findings import headline
from gqacheck.report.head_map import MAP_CODES, head_map_blocks
from gqacheck.report.markdown_text import as_typed, code, folded, prose, table
from gqacheck.report.runtime_words import about_sample, consistency_words, generation_words, perplexity_words
from gqacheck.report.table import head_dim_sources, layer_grid
from gqacheck.report.told import (
    base_lines,
    count_words,
    every_layer,
    identity_line,
    is_known,
    kept_of,
    last_line,
    quantity_words,
    remarks_of,
)
from gqacheck.report.whence import whence
from gqacheck.report.words import STATE_WORDS, VERDICT_WORDS, layers_words, plural, skipped_words
from gqacheck.result import CheckpointReport, ClaimResult, ClaimState, Report, Verdict
from gqacheck.rules.rule import Finding, Severity

MARK = "<!-- gqacheck report -->"
"""First line, by which a later run finds its comment or file again."""
LIMIT = 65_536
"""Longest comment that GitHub takes: characters there, counted as bytes of UTF-8 here, which is never less."""
ROOM = 2_000
"""Left for whoever puts a line of his own before or after it."""
_ICONS = {Verdict.PASS: "✅", Verdict.FAIL: "❌", Verdict.ERROR: "⚠️"}
_STATE_ICONS = {
    ClaimState.PASS: "✅",
    ClaimState.FAIL: "❌",
    ClaimState.NOT_CHECKED: "⬜",
    ClaimState.NOT_APPLICABLE: "➖",
}
_SEVERITY_ICONS = {Severity.ERROR: "❌", Severity.WARNING: "⚠️", Severity.NOTE: "ℹ️"}


@dataclass(frozen=True, slots=True)
class _Depth:
    """How much is told: messages per rule, names of tensors per finding, rows of the layer table, generated texts,
    characters of one text, whole checkpoints."""

    messages: int
    tensors: int
    rows: int
    samples: int
    text: int
    checkpoints: int


_DEPTHS = (
    _Depth(50, 8, 100, 16, 1000, 50),
    _Depth(10, 4, 40, 8, 1000, 50),
    _Depth(3, 1, 12, 1, 600, 20),
    _Depth(1, 1, 6, 0, 300, 10),
    _Depth(1, 0, 0, 0, 160, 4),
    _Depth(0, 0, 0, 0, 160, 1),
)


def render_markdown(report: Report, limit: int = LIMIT - ROOM) -> str:
    """The report as Markdown for GitHub, at most ``limit`` bytes of UTF-8."""
    text = ""
    for depth in _DEPTHS:
        text = "\n".join(_document(report, depth)) + "\n"
        if len(text.encode()) <= limit:
            break
    return text


def _document(report: Report, depth: _Depth) -> Iterator[str]:
    several = len(report.checkpoints) > 1
    yield MARK
    if several:
        yield f"## {_ICONS[report.verdict]} gqacheck: {_tally(report.checkpoints)}"
        yield ""
    worst_first = sorted(report.checkpoints, key=lambda c: (c.verdict is Verdict.PASS, c.verdict is Verdict.ERROR))
    for checkpoint in worst_first[: depth.checkpoints]:
        yield from _checkpoint(checkpoint, depth, "###" if several else "##")
    left = worst_first[depth.checkpoints :]
    if left:
        yield f"and {len(left):,} more: {_tally(left)}"
        yield ""
    yield from (f"- {prose(note)}" for note in report.notes)
    yield ""
    yield f"<sub>gqacheck {prose(report.version)}</sub>"


def _tally(checkpoints: Sequence[CheckpointReport]) -> str:
    words = {Verdict.FAIL: "failed", Verdict.ERROR: "could not be checked", Verdict.PASS: "passed"}
    counts = [(sum(c.verdict is verdict for c in checkpoints), text) for verdict, text in words.items()]
    return f"{plural(len(checkpoints), 'checkpoint')}: {', '.join(f'{n:,} {text}' for n, text in counts if n)}"


def _checkpoint(report: CheckpointReport, depth: _Depth, hashes: str) -> Iterator[str]:
    word, text = headline(report)
    yield f"{hashes} {_ICONS[report.verdict]} {word} {code(report.path)}"
    yield ""
    yield f"**{prose(text, depth.text)}**"
    yield ""
    if report.error and report.error != text:
        yield f"{_ICONS[Verdict.ERROR]} {VERDICT_WORDS[Verdict.ERROR]}: {prose(report.error, depth.text)}"
        yield ""
    for note in report.notes:
        yield f"{_ICONS[Verdict.ERROR]} {prose(note, depth.text)}"
        yield ""
    if report.claims:
        yield from table(("claim", "", "what stands behind it"), (_claim(claim, depth) for claim in report.claims))
    yield from _findings(report, depth)
    yield from _measured(report, depth)
    yield from _about(report, depth)


def _claim(claim: ClaimResult, depth: _Depth) -> tuple[str, str, str]:
    rules = f"{plural(claim.rules_run, 'rule')} ran" if claim.rules_run else ""
    told = "; ".join(part for part in (claim.reason, rules) if part)
    return prose(claim.name), f"{_STATE_ICONS[claim.state]} {STATE_WORDS[claim.state]}", prose(told, depth.text)


def _findings(report: CheckpointReport, depth: _Depth) -> Iterator[str]:
    by_rule: dict[tuple[str, Severity], list[Finding]] = {}
    for finding in report.findings:
        by_rule.setdefault((finding.code, finding.severity), []).append(finding)
    if not by_rule:
        return
    yield count_words(report)
    yield ""
    mapped = next((name for name, _ in by_rule if name in MAP_CODES), "")
    for (name, severity), group in by_rule.items():
        layers = layers_words(every_layer(group))
        title = f"{_SEVERITY_ICONS[severity]} {severity.value} <b>{prose(name)}</b> {prose(group[0].slug)}"
        known = all(is_known(report, finding) for finding in group)
        title = f"{title}{', known' if known else ''}"
        alike = {told for told in _advice(group[0]) if all(told in _advice(finding) for finding in group[1:])}
        alike = alike if len(group) > 1 and depth.messages else set()
        lines = [line for finding in group[: depth.messages] for line in _finding(report, finding, depth, alike)]
        if len(group) > depth.messages:
            lines.append(f"- and {len(group) - depth.messages:,} more")
        lines += [f"- {name}: {prose(text, depth.text)}" for name, text in _advice(group[0]) if (name, text) in alike]
        if name == mapped and report.lineage is not None and depth.rows:
            lines += ["", *as_typed(plain(head_map_blocks(report.lineage, every_layer(group))).splitlines())]
        yield from folded(
            f"{title}{f', {prose(layers)}' if layers else ''}", lines, open_=severity is Severity.ERROR and not known
        )


def _advice(finding: Finding) -> list[tuple[str, str]]:
    """Cause, effect and fix, as far as there are any."""
    named = (("cause", finding.cause), ("effect", finding.consequence), ("fix", finding.fix))
    return [(name, text) for name, text in named if text]


def _finding(
    report: CheckpointReport, finding: Finding, depth: _Depth, alike: Collection[tuple[str, str]]
) -> Iterator[str]:
    """One finding, without the advice that is ``alike`` for all of its rule, which stands under them."""
    where = f"{layers_words(finding.layers)}: " if finding.layers else ""
    known = " (known: in the baseline)" if is_known(report, finding) else ""
    yield f"- {prose(where + finding.message, depth.text)}{known}"
    own = [told for told in _advice(finding) if told not in alike]
    yield from (f"  - {name}: {prose(text, depth.text)}" for name, text in own)
    for name, quantity in (("expected", finding.expected), ("actual", finding.actual)):
        if quantity is not None:
            yield f"  - {name}: {prose(quantity_words(quantity))}"
    source = f" ({prose(finding.source)})" if finding.source else ""
    names = finding.tensors[: depth.tensors]
    if names:
        more = f" and {len(finding.tensors) - len(names):,} more" if len(finding.tensors) > len(names) else ""
        yield f"  - in {', '.join(map(code, names))}{more}{source}"
    elif source:
        yield f"  - source: {prose(finding.source)}"


def _measured(report: CheckpointReport, depth: _Depth) -> Iterator[str]:
    runtime = report.runtime
    if runtime is None:
        return
    said = [perplexity_words(p) for p in runtime.perplexities]
    said += [f"where it comes from: {whence(c)}" for c in runtime.counterfactuals]
    said += [generation_words(runtime.generation)] if runtime.generation else []
    said += consistency_words(runtime.consistency) if runtime.consistency else []
    if said:
        yield from folded("measured", [f"- {prose(words, depth.text)}" for words in said], open_=True)
    if runtime.generation and runtime.generation.samples and depth.samples:
        made = runtime.generation
        order = sorted(range(len(made.samples)), key=lambda n: n != made.worst)
        shown = [made.samples[n] for n in order[: depth.samples]]
        lines = [_sample(sample) for sample in shown]
        if len(made.samples) > len(shown):
            lines.append(f"- and {len(made.samples) - len(shown):,} more")
        lines += [f"- the base: {_sample(sample)[2:]}" for sample in made.base_samples[: max(0, depth.samples // 4)]]
        yield from folded(f"{plural(len(made.samples), 'text')} that it wrote", lines)


def _sample(sample: Sample) -> str:
    return f"- {code(sample.prompt, 80)} → {code(sample.text, 400)} ({prose(about_sample(sample))})"


def _about(report: CheckpointReport, depth: _Depth) -> Iterator[str]:
    """What the file is, what was kept, what was skipped, and how it was done; folded."""
    lines = [f"- {prose(words, depth.text)}" for words in _identity(report)]
    if report.geometry is not None and report.geometry.layers and depth.rows:
        parent = report.base.geometry if report.base else None
        lines += ["", *_layers(layer_grid(report.geometry, parent, report.findings), depth)]
        lines += [f"- head_dim from {prose(source)}" for source in head_dim_sources(report.geometry.layers)[:4]]
    lines += [f"- skipped {prose(words, depth.text)}" for words in skipped_words(report.skipped)]
    if report.checkpoint is not None:
        lines.append(f"- {prose(plain([last_line(report)]).strip(), depth.text)}")
    if lines:
        yield from folded("layers, what was skipped, how it was checked", lines)


def _identity(report: CheckpointReport) -> list[str]:
    if report.checkpoint is None or report.geometry is None:
        return []
    told = plain([identity_line(report, named=False), *base_lines(report)]).splitlines()
    return [*told, *(f"kept {words}" for words in kept_of(report)), *remarks_of(report)]


def _layers(grid: Grid, depth: _Depth) -> list[str]:
    shown = grid.rows[: depth.rows]
    rows = [tuple(prose(cell_text(cell), 200) for cell in row) for row in shown]
    lines = table(tuple(prose(name) for name in grid.header), rows, set(range(len(grid.header))) - grid.left)
    if len(grid.rows) > len(shown):
        lines.append(f"and {plural(len(grid.rows) - len(shown), 'more row')}")
    return [*lines, ""]
