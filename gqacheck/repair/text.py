"""A repair report as text blocks, for a pipe and a terminal alike."""

from __future__ import annotations

from collections.abc import Iterator

from gqacheck.repair.facts import Reference, RepairReport
from gqacheck.report.document import Block, Span, line
from gqacheck.report.words import bytes_words, layers_words, plural, seconds_words
from gqacheck.result import ClaimState

_HELPED_BY_BASE = frozenset(
    ("GQA103", "GQA104", "GQA105", "GQA106", "GQA108", "GQA301", "GQA302", "GQA304", "GQA410")
)  # fmt: skip
"""Rules about which the parent's weights often tell what to do."""


def repair_blocks(report: RepairReport) -> tuple[Block, ...]:
    """What was found, what was or would be changed, what was not, and how it was verified."""
    return tuple(_blocks(report))


def _blocks(report: RepairReport) -> Iterator[Block]:
    if report.refused:
        yield from _refused(report)
        return
    if not report.changes:
        yield line(Span("nothing to mend", "ok"), f" in {report.path}: nothing was written")
        yield from _pairing(report)
        yield from _left(report)
        return
    title = "would be changed" if report.dry_run else "changed"
    yield line(Span(title, "strong"))
    for change in report.changes:
        yield line(change.what, label=f"  {_where(change.layers)}")
    if report.plans:
        n = len(report.plans)
        yield line(f"  {plural(n, 'layer')} touched; every other weight stays byte for byte")
    yield from _left(report)
    if report.dry_run:
        yield from _pairing(report)
        yield line(Span("nothing was written", "note"), " (--dry-run)")
        return
    yield line(Span("verified", "strong"))
    yield from _verified(report)
    yield line(
        Span("written", "ok"),
        f" {report.out} · {bytes_words(report.bytes_written)} in {seconds_words(report.seconds)}; {report.path} is "
        "as it was",
    )


def _where(layers: tuple[int, ...]) -> str:
    return f"{layers_words(layers)}: " if layers else ""


def _refused(report: RepairReport) -> Iterator[Block]:
    yield line(Span("cannot be mended", "error"), f": nothing was written ({report.path} is as it was)")
    for refusal in report.refused:
        code = f"{refusal.code} " if refusal.code else ""
        yield line(refusal.sentence, label=f"  {code}{_where(refusal.layers)}")
    codes = {refusal.code for refusal in report.refused}
    if report.base is None and codes & _HELPED_BY_BASE:
        yield line("  ", Span("the parent's weights may tell more: give --base PARENT", "note"))
    if "GQA405" in codes:
        yield line("  ", Span("a whole module may hold layers that differ: -o FILE.bin writes one", "note"))


def _left(report: RepairReport) -> Iterator[Block]:
    if report.left_alone:
        yield line(Span("left alone", "strong"))
        for sentence in report.left_alone:
            yield line(f"  {sentence}")


def _pairing(report: RepairReport) -> Iterator[Block]:
    """Never a bare "nothing to mend": without the parent, nobody looked whether heads read their own KV heads."""
    claim = next((claim for claim in report.before.claims if claim.name == "pairing"), None)
    if claim is not None and claim.state is ClaimState.NOT_CHECKED:
        yield line(Span("pairing NOT CHECKED", "unknown"), f": {claim.reason}")


def _verified(report: RepairReport) -> Iterator[Block]:
    after = report.after
    if after is not None:
        for claim in after.claims:
            if claim.name == "runtime":
                continue
            passed = claim.state is ClaimState.PASS
            words = "ok" if passed else "NOT CHECKED"
            reason = f"  {claim.reason}" if claim.reason else ""
            yield line(f"  {claim.name:<9}", Span(words, "ok" if passed else "unknown"), reason)
    if report.reference is not None:
        yield _reference(report.reference)


def _reference(reference: Reference) -> Block:
    label = f"  {'logits':<9}"
    if not reference.ran:
        return line(label, Span("NOT CHECKED", "unknown"), f"  not compared with the masked parent: {reference.reason}")
    what = (
        "the checkpoint's own heads and channels in the parent's places"
        if reference.expanded
        else "the parent with the rest masked"
    )
    return line(
        label,
        Span("ok", "ok"),
        f"  equal to {what}: they differ by {reference.difference:.1e} of their standard deviation over "
        f"{reference.tokens} tokens",
    )
