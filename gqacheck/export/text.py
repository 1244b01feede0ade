"""An export report as text blocks, for a pipe and a terminal alike."""

from __future__ import annotations

from collections.abc import Iterator

from gqacheck.export.facts import ExportReport
from gqacheck.export.pad import cost_words
from gqacheck.report.document import Block, Span, Style, line
from gqacheck.report.words import bytes_words, plural, scaled, seconds_words
from gqacheck.result import ClaimState
from gqacheck.text import printable

_SHOWN = 6


def export_blocks(report: ExportReport) -> tuple[Block, ...]:
    """How the folder loads and why so, what is not as it was stored, and how it was verified."""
    return tuple(_blocks(report))


def _blocks(report: ExportReport) -> Iterator[Block]:
    yield line(Span("loads with", "strong"))
    yield line(f"  {_call(report)}")
    for label, text in _facts(report):
        yield line(text, label=f"  {label:<10}")
    if report.notes:
        yield line(Span("not as it was stored", "strong"))
        for note in report.notes:
            yield line(f"  {note}")
    if report.cured:
        yield line(Span(f"wrong in the source, right in the {_kind(report)}", "strong"))
        for sentence in report.cured[:_SHOWN]:
            yield line(f"  {sentence}")
        if len(report.cured) > _SHOWN:
            yield line(f"  and {len(report.cured) - _SHOWN} more")
    yield line(Span("verified", "strong"))
    yield from _verified(report)
    yield line(
        Span("written", "ok"),
        f" {report.out} · {bytes_words(report.bytes_written)} in {seconds_words(report.seconds)}; {report.path} is "
        "as it was",
    )


def _kind(report: ExportReport) -> str:
    return "pickle" if report.way == "llm-pruner" else "folder"


def _call(report: ExportReport) -> str:
    if report.way == "as-stored":
        return "the code of its own family"
    if report.way == "llm-pruner":
        return f'torch.load("{printable(report.out)}", weights_only=False)["model"]'
    trust = ", trust_remote_code=True" if report.way == "own-code" else ""
    return f'AutoModelForCausalLM.from_pretrained("{printable(report.out)}"{trust})'


def _facts(report: ExportReport) -> Iterator[tuple[str, str]]:
    if report.architecture:
        yield "class", report.architecture
    if report.why:
        yield "because", report.why
    yield "weights", f"{scaled(report.parameters)} parameters, {report.dtype}, {plural(report.shards, 'file')}"
    if report.padding is not None:
        yield "zeros", cost_words(report.padding)
    yield "tokenizer", report.tokenizer


def _cast(report: ExportReport) -> str:
    """What was done to numbers that are not written as they were stored."""
    source = report.before.checkpoint
    stored = {info.dtype for info in source.tensors.values()} if source is not None else set()
    return "" if set(report.dtype.split(", ")) <= stored else f", each of them cast to {report.dtype}"


def _verified(report: ExportReport) -> Iterator[Block]:
    for claim in report.after.claims:
        if claim.name == "runtime":
            continue
        passed = claim.state is ClaimState.PASS
        word = "ok" if passed else "FAIL" if claim.state is ClaimState.FAIL else "NOT CHECKED"
        style: Style = "ok" if passed else "error" if claim.state is ClaimState.FAIL else "unknown"
        yield line(f"  {claim.name:<9}", Span(word, style), f"  {claim.reason}" if claim.reason else "")
    yield line(
        f"  {'bytes':<9}", Span("ok", "ok"), f"  every weight read back and equal to the source's{_cast(report)}"
    )
    comparison = report.comparison
    if not comparison.ran:
        yield line(f"  {'logits':<9}", Span("NOT CHECKED", "unknown"), f"  {comparison.reason}")
        return
    apart = comparison.difference or 0.0
    said = "equal to" if not apart else f"apart by {apart:.1e} of their standard deviation from"
    how = "rebuilt from the pickle as data" if report.way == "llm-pruner" else "loaded by plain transformers"
    yield line(
        f"  {'logits':<9}",
        Span("ok", "ok"),
        f"  {said} the source's over {comparison.tokens} tokens, {how}, in {comparison.dtype}",
    )
