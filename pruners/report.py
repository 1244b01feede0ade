"""What ``gqaprune`` did as text blocks, for a pipe and a terminal alike."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from gqacheck.export.facts import Form
from gqacheck.geometry.outcomes import Perplexity
from gqacheck.report.document import Block, Grid, Span, Style, line
from gqacheck.report.words import bytes_words, layer_ranges, scaled, seconds_words
from gqacheck.result import ClaimState
from gqacheck.rules.rule import Severity
from gqacheck.text import printable
from pruners.plan import LayerShape, PruningPlan
from pruners.run import PruneReport
from pruners.save import PICKLE, Saved

_KINDS = (("query heads", "n_q_heads"), ("KV heads", "n_kv_heads"), ("MLP channels", "channels"))


def prune_blocks(report: PruneReport) -> tuple[Block, ...]:
    """What goes, how it was chosen, what it costs, and where the result lies."""
    return tuple(_blocks(report))


def _blocks(report: PruneReport) -> Iterator[Block]:
    plan, saved = report.plan, report.saved
    yield line(Span("plan" if saved is None else "cut", "strong"), f" {report.scored}")
    if saved is None:
        yield layer_table(plan)
    for name, text in _totals(plan):
        yield line(text, label=f"  {name:<13}")
    if report.refitted:
        yield line(report.refitted, label=f"  {'refitted':<13}")
    if report.notes:
        yield line(Span("to know", "strong"))
        for note in report.notes:
            yield line(f"  {note}")
    if report.before or report.after:
        yield line(Span("perplexity", "strong"))
        for text in _perplexity(report.before, report.after):
            yield line(f"  {text}")
    if report.plan_saved:
        yield line(Span("plan saved", "ok"), f" {report.plan_saved}")
    if saved is None:
        yield line(Span("nothing was written", "dim"), " (--dry-run)")
        return
    yield line(Span("checked", "strong"))
    yield from _checked(saved)
    if not saved.placed:
        return
    yield line(Span("loads with", "strong"), f" {_call(report.out, saved.written.form)}")
    if PICKLE in saved.files:
        yield line(Span("and with", "strong"), f'   torch.load("{report.out}/{PICKLE}", weights_only=False)["model"]')
    yield line(
        Span("written", "ok" if not report.exit_code else "warning"),
        f" {report.out} · {bytes_words(saved.bytes_written)} in {seconds_words(report.seconds)}; "
        f"{report.base} is as it was",
    )
    yield line(Span("next", "strong"), f" gqacheck {report.out} --base {report.base} --ppl")


def _call(out: str, form: Form) -> str:
    if form.way == "as-stored":
        return "the code of its own family"
    trust = ", trust_remote_code=True" if form.way == "own-code" else ""
    why = f"  ({form.architecture}: {form.why})" if form.why else f"  ({form.architecture})"
    return f'AutoModelForCausalLM.from_pretrained("{printable(out)}"{trust}){why}'


def _totals(plan: PruningPlan) -> Iterator[tuple[str, str]]:
    parent, child = plan.parent, plan.child
    if child.n_layers != parent.n_layers:
        gone = [index for index, layer in enumerate(plan.layers) if layer is None]
        which = f"{'layer' if len(gone) == 1 else 'layers'} {layer_ranges(gone)} dropped"
        yield "layers", f"{parent.n_layers} → {child.n_layers} ({which})"
    for name, key in _KINDS:
        before, after = (sum(getattr(layer, key) for layer in shape.layers) for shape in (parent, child))
        if before != after:
            yield name, f"{before:,} → {after:,} (-{1 - after / before:.1%})"
    before, after = (sum(sum(layer.experts.values()) for layer in shape.layers) for shape in (parent, child))
    if before != after:
        yield "experts", f"{before:,} → {after:,} channels (-{1 - after / before:.1%})"
    share = f"(-{plan.share_removed:.1%})" if not plan.whole else "(nothing goes)"
    yield "parameters", f"{scaled(parent.parameters)} → {scaled(child.parameters)} {share}"


def layer_table(plan: PruningPlan) -> Grid:
    """Heads, channels and parameters of every layer before and after; layers of one kind share a row."""
    rows: dict[tuple[str, ...], list[int]] = {}
    for index, layer in enumerate(plan.layers):
        shape = plan.parent.layers[index]
        rows.setdefault(_row(shape, None if layer is None else _child_layer(plan, index)), []).append(index)
    moe = any(layer.experts for layer in plan.parent.layers)
    header = ("layers", "q heads", "kv heads", "mlp", *(("experts",) if moe else ()), "parameters", "")
    made = []
    for cells, layers in sorted(rows.items(), key=lambda item: item[1][0]):
        shown = cells if moe else (*cells[:3], *cells[4:])
        made.append((layer_ranges(layers), *shown))
    return Grid(header, tuple(made), left=frozenset({0}))


def _child_layer(plan: PruningPlan, index: int) -> LayerShape:
    return plan.child.layers[plan.kept_layers.index(index)]


def _row(before: LayerShape, after: LayerShape | None) -> tuple[str, ...]:
    if after is None:
        return ("-", "-", "-", "-", f"{before.parameters:,} → 0", "dropped")
    experts = [max(shape.experts.values(), default=0) for shape in (before, after)]
    share = 1 - after.parameters / before.parameters if before.parameters else 0.0
    return (
        _step(before.n_q_heads, after.n_q_heads),
        _step(before.n_kv_heads, after.n_kv_heads),
        _step(before.channels, after.channels),
        _step(*experts),
        _step(before.parameters, after.parameters),
        f"-{share:.1%}" if share else "",
    )


def _step(before: int, after: int) -> str:
    if not before:
        return "-"
    return f"{before:,}" if before == after else f"{before:,} → {after:,}"


def _perplexity(before: Sequence[Perplexity], after: Sequence[Perplexity]) -> Iterator[str]:
    theirs = {each.corpus: each for each in before}
    for each in after:
        base = theirs.pop(each.corpus, None)
        if base is None or not (math.isfinite(base.value) and math.isfinite(each.value)):
            yield f"{each.corpus}: {each.value:.4g} ({each.protocol})"
            continue
        excess = math.log(each.value / base.value)
        yield f"{each.corpus}: {base.value:.4g} → {each.value:.4g}, ln {excess:+.3f} ({each.protocol})"
    for each in theirs.values():
        yield f"{each.corpus}: {each.value:.4g} before ({each.protocol})"


def _checked(saved: Saved) -> Iterator[Block]:
    for claim in saved.check.claims:
        if claim.name == "runtime" and claim.state is ClaimState.NOT_CHECKED:
            continue
        word, style = _state(claim.state)
        yield line(f"  {claim.name:<9}", Span(word, style), f"  {claim.reason}" if claim.reason else "")
    comparison = saved.written.comparison
    if comparison.ran:
        apart = comparison.difference or 0.0
        said = "equal to" if not apart else f"apart by {apart:.1e} of their standard deviation from"
        text = f"  {said} those in memory over {comparison.tokens} tokens, loaded by plain transformers"
        yield line(f"  {'logits':<9}", Span("ok", "ok"), text)
    else:
        yield line(f"  {'logits':<9}", Span("NOT CHECKED", "unknown"), f"  {comparison.reason}")
    for finding in saved.check.findings:
        if finding.severity is not Severity.NOTE:
            grave: Style = "error" if finding.severity is Severity.ERROR else "warning"
            yield line(Span(f"  {finding.code}", grave), f" {finding.message}")


def _state(state: ClaimState) -> tuple[str, Style]:
    found: dict[ClaimState, tuple[str, Style]] = {
        ClaimState.PASS: ("ok", "ok"),
        ClaimState.FAIL: ("FAIL", "error"),
        ClaimState.NOT_CHECKED: ("NOT CHECKED", "unknown"),
    }
    return found.get(state, ("n/a", "dim"))
