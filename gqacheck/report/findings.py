"""Findings in the text report: the verdict in words, then one block per rule."""

from __future__ import annotations

from collections.abc import Sequence

from gqacheck.report.document import Block, Line, Span, Style, line
from gqacheck.report.head_map import MAP_CODES, head_map_blocks
from gqacheck.report.whence import NOISE_CODES, whence_blocks, whence_words
from gqacheck.report.words import SEVERITY_LETTERS, VERDICT_WORDS, layers_words, plural
from gqacheck.result import CheckpointReport, Verdict
from gqacheck.rules.rule import Finding, Severity

MESSAGES_PER_RULE = 8
"""Different messages shown for one rule; the layers of the rest are still named."""
MESSAGES_ON_LINEAGE = 3
"""The same for the rules on lineage (GQA6), whose messages differ in every layer."""
HEADER_WIDTH = 46
SEVERITY_STYLES: dict[Severity, Style] = {
    Severity.ERROR: "error",
    Severity.WARNING: "warning",
    Severity.NOTE: "note",
}
PAIRING_CODES = frozenset(("GQA601", "GQA602", "GQA603", "GQA605", "GQA608"))
SHAPE_PREFIXES = ("GQA1", "GQA2", "GQA3", "GQA4")
NOISE = "the model runs, and its output is noise"
GROUPS = (
    ("GQA604", "gate, up and down are not of one channel"),
    ("GQA0", "the file itself is damaged or ambiguous"),
    ("GQA1", "the attention heads do not fit together"),
    ("GQA2", "the module attributes do not say what the tensors are"),
    ("GQA3", "the MLP widths do not fit together"),
    ("GQA4", "the config or the layer list does not fit the tensors"),
    ("GQA701", "the model does not run"),
    ("GQA702", "the model runs, and its output is NaN or Inf"),
    ("GQA703", NOISE),
    ("GQA704", "the model runs, and is clearly worse than its base"),
    ("GQA705", "what it writes repeats itself"),
    ("GQA706", "what it writes is garbled"),
    ("GQA707", "its output depends on which attention code runs it"),
    ("GQA708", "decoding with a cache gives other output than reading the whole text"),
    ("GQA709", "its output depends on the padding of the batch"),
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
        return word, "; ".join(_meanings(report, [f.code for f in errors])[:2]) or "errors were found"
    if report.verdict is Verdict.ERROR:
        return word, report.error or "something that --require insists on was not checked"
    if report.known:
        return word, f"nothing new: {plural(len(report.known), 'finding')} that the baseline knows"
    warnings = sum(f.severity is Severity.WARNING for f in report.findings)
    if warnings:
        return word, f"no errors, but {plural(warnings, 'warning')} to read"
    return word, "nothing wrong was found in what was checked"


def _meanings(report: CheckpointReport, codes: Sequence[str]) -> list[str]:
    """What errors of these codes mean: wrong pairing first, for no error text of any library ever shows it."""
    meanings = []
    if PAIRING_CODES & set(codes):
        clean = not any(code.startswith(SHAPE_PREFIXES) for code in codes)
        text = "the shapes are right, the heads are not" if clean else "heads stand beside others than their own"
        meanings.append(f"broken pairing: {text}")
    meanings += [text for prefix, text in GROUPS if any(code.startswith(prefix) for code in codes)]
    whence = whence_words(report.runtime)
    if whence and NOISE in meanings:
        meanings[meanings.index(NOISE)] = whence
    return meanings


def finding_blocks(report: CheckpointReport) -> list[Block]:
    """One block per rule and severity, each after an empty line."""
    by_rule: dict[tuple[str, Severity], list[Finding]] = {}
    for finding in report.findings:
        by_rule.setdefault((finding.code, finding.severity), []).append(finding)
    codes = [code for code, _ in by_rule]
    mapped = next((code for code in codes if code in MAP_CODES), "")
    noisy = next((code for code in codes if code in NOISE_CODES), "")
    blocks: list[Block] = []
    for (code, _), group in by_rule.items():
        picture: list[Block] = []
        if code == mapped and report.lineage is not None:
            picture = head_map_blocks(report.lineage, sorted({index for f in group for index in f.layers}))
            mapped = ""
        if code == noisy:
            picture = whence_blocks(report.runtime)
            noisy = ""
        blocks.append(Line())
        known = all(finding.fingerprint in report.known for finding in group)
        blocks.extend(_rule_blocks(group, picture, known=known))
    if not any(code in NOISE_CODES for code in codes) and (whence := whence_blocks(report.runtime)):
        blocks += [Line(), *whence]
    return blocks


def _rule_blocks(group: Sequence[Finding], picture: Sequence[Block], *, known: bool = False) -> list[Block]:
    """The block of one rule; ``picture`` stands between what was found and what to do about it."""
    first = group[0]
    layers = layers_words(sorted({index for f in group for index in f.layers}))
    title = f"{first.code} {first.slug}{' (known)' if known else ''}"
    blocks: list[Block] = [
        line(
            Span(title, "strong"),
            f"{'':{max(2, HEADER_WIDTH - len(title))}}{layers}" if layers else "",
            label=(Span(SEVERITY_LETTERS[first.severity], SEVERITY_STYLES[first.severity]), " "),
        )
    ]
    n_shown = MESSAGES_ON_LINEAGE if first.code.startswith("GQA6") else MESSAGES_PER_RULE
    shown, left = group[:n_shown], group[n_shown:]
    apart = len({f.layers for f in group}) > 1
    shared = {
        name for name, texts in zip(ADVICE, zip(*map(_advice, shown), strict=True), strict=True) if len(set(texts)) == 1
    }
    for finding in shown:
        where = f"{layers_words(finding.layers)}: " if apart and finding.layers else ""
        blocks.append(line(f"{where}{finding.message}", label="  "))
        blocks += _fields(finding, set(ADVICE) - shared)
    if left:
        rest = layers_words(sorted({index for f in left for index in f.layers}))
        blocks.append(line(f"and {len(left):,} more{f' in {rest}' if rest else ''} (--format json)", label="  "))
    blocks += picture
    blocks += _tensors(group)
    blocks += _fields(first, shared)
    return blocks


ADVICE = ("cause", "effect", "fix")


def _advice(finding: Finding) -> tuple[str, str, str]:
    return finding.cause, finding.consequence, finding.fix


def _fields(finding: Finding, names: set[str]) -> list[Block]:
    return [_field(name, text) for name, text in zip(ADVICE, _advice(finding), strict=True) if text and name in names]


def _tensors(group: Sequence[Finding]) -> list[Block]:
    names = list(dict.fromkeys(name for finding in group for name in finding.tensors))
    if not names:
        return []
    more = f" and {len(names) - 1:,} more" if len(names) > 1 else ""
    return [_field("in", f"{names[0]}{more}")]


def _field(name: str, text: str) -> Line:
    return line(text, label=("  ", Span(f"{name:7} ", "dim")))
