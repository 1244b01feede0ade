"""The HTML report's figures and what was measured: the head map, sizes per layer, perplexities, generated texts."""

from __future__ import annotations

import math
from collections.abc import Iterator

from gqacheck.geometry.facts import Geometry, Layer
from gqacheck.geometry.outcomes import Counterfactual, Generation, Perplexity, RuntimeFacts, Sample
from gqacheck.report.document import cell_text
from gqacheck.report.html_elements import Element, Markup, Node, e
from gqacheck.report.html_figures import Columns, Measured, columns, perplexities
from gqacheck.report.runtime_words import about_sample, consistency_words, generation_words, perplexity_words
from gqacheck.report.svg import head_map_svg
from gqacheck.report.svg_rows import rows_of
from gqacheck.report.table import head_dim_sources, layer_grid
from gqacheck.report.told import kept_of
from gqacheck.report.whence import whence
from gqacheck.report.words import plural
from gqacheck.result import CheckpointReport
from gqacheck.rules.perplexity import band_of, perplexity_text, worse_than_guessing
from gqacheck.rules.rule import Severity
from gqacheck.text import printable

SAMPLE = 1200
"""Characters of a generated text."""
FAR = 5.0
"""Times the base's perplexity from which on a value is drawn as an error."""
MLP_WIDTH = "MLP width"
MLP_CODES = ("GQA206", "GQA3", "GQA404", "GQA604")
"""Rules on the MLP; the layers that others name are marked where the heads are drawn."""


def head_map(report: CheckpointReport, number: int) -> Node:
    """Layers x heads; None where no weights were compared."""
    if not any(row.drawn for row in rows_of(report.lineage)):
        return None
    figure = e("div", Markup(head_map_svg(report, f"gqm{number}")), class_="wide map", tabindex="0", role="region",
               aria_label="head map: which KV head each query head reads")  # fmt: skip
    kept = [e("p", words, class_="dim") for words in kept_of(report)]
    return e("section", e("h3", "Which KV head each query head reads"), figure, *kept)


def layers(report: CheckpointReport) -> Node:
    """Heads, widths and parameters per layer beside the base's, and the table that they come from."""
    geometry = report.geometry
    if geometry is None or not geometry.layers:
        return None
    base = report.base.geometry if report.base else None
    drawn = [columns(made, _wrong(report, made)) for made in _columns(report, geometry, base)]
    legend: list[Node] = [e("span", "this checkpoint", class_="key now")]
    if base is not None:
        legend.append(e("span", "the base", class_="key before"))
    if any(f.severity is Severity.ERROR and f.layers for f in report.findings):
        legend.append(e("span", "has errors", class_="key wrong"))
    return e(
        "section",
        e("h3", "Layers", e("span", plural(geometry.n_layers, "layer"), class_="dim")),
        e("div", *drawn, class_="grid") if drawn else None,
        e("p", *legend, class_="legend") if drawn else None,
        _table(report, geometry, base),
    )


def _wrong(report: CheckpointReport, made: Columns) -> frozenset[int]:
    """Layers with an error that is about what the figure shows: the heads or the MLP."""
    if made.unit:
        return frozenset()
    errors = [f for f in report.findings if f.severity is Severity.ERROR]
    about_mlp = made.title == MLP_WIDTH
    return frozenset(
        i for f in errors if f.code.startswith(MLP_CODES) == about_mlp for i in f.layers if i in made.values
    )


def _columns(report: CheckpointReport, geometry: Geometry, base: Geometry | None) -> Iterator[Columns]:
    parents = _parents(report, geometry, base)
    for title in ("query heads", "KV heads", MLP_WIDTH):
        values = {layer.index: float(n) for layer in geometry.layers if (n := _size(layer, title)) is not None}
        before = {index: float(n) for index, layer in parents.items() if (n := _size(layer, title)) is not None}
        if values:
            yield Columns(title, values, {i: before[i] for i in values if i in before} or None)
    mine, theirs = _parameters(report), _parameters(report.base)
    kept = {
        layer.index: 100 * mine[layer.index] / theirs[parents[layer.index].index]
        for layer in geometry.layers
        if layer.index in mine and layer.index in parents and theirs.get(parents[layer.index].index)
    }
    if kept:
        yield Columns("parameters kept", kept, dict.fromkeys(kept, 100.0), "%")


def _size(layer: Layer, title: str) -> int | None:
    if title == MLP_WIDTH:
        return layer.mlp.intermediate_size
    return layer.attention.n_q_heads if title == "query heads" else layer.attention.n_kv_heads


def _parents(report: CheckpointReport, geometry: Geometry, base: Geometry | None) -> dict[int, Layer]:
    """The base's layer behind each layer: as the weights say, else by number where both have equally many."""
    if base is None:
        return {}
    by_index = {layer.index: layer for layer in base.layers}
    if report.lineage is not None and report.lineage.compared:
        told = {one.index: one.parent for one in report.lineage.layers if one.parent is not None}
    else:
        told = {layer.index: layer.index for layer in geometry.layers if geometry.n_layers == base.n_layers}
    return {index: by_index[parent] for index, parent in told.items() if parent in by_index}


def _parameters(report: CheckpointReport | None) -> dict[int, int]:
    """Elements of all tensors of each layer, by its index."""
    if report is None or report.checkpoint is None or report.geometry is None:
        return {}
    owners = {f"{layer.path}.": layer.index for layer in report.geometry.layers}
    depth = {path.count(".") for path in owners}
    counted: dict[int, int] = {}
    for name, tensor in report.checkpoint.tensors.items():
        parts = name.split(".")
        for n in depth:
            index = owners.get(".".join(parts[:n]) + ".")
            if index is not None and tensor.kind != "buffer":
                counted[index] = counted.get(index, 0) + tensor.numel
    return counted


def _table(report: CheckpointReport, geometry: Geometry, base: Geometry | None) -> Element:
    grid = layer_grid(geometry, base, report.findings)
    last = [*(["beside the base"] if base is not None else []), "errors"]
    names = [name for name in grid.header if name]
    names += last[: len(grid.header) - len(names)]
    head = e("tr", *(e("th", name, scope="col") for name in names))
    rows = [
        e("tr", e("th", cell_text(row[0]), scope="row"), *(e("td", cell_text(cell)) for cell in row[1:]))
        for row in grid.rows
    ]
    sources = head_dim_sources(geometry.layers)
    return e(
        "div",
        e("table", e("thead", head), e("tbody", *rows), class_="numbers"),
        e("p", f"head_dim from {', '.join(sources)}", class_="dim") if sources else None,
        class_="wide",
    )


def measured(report: CheckpointReport) -> Node:
    """Perplexities with error bars, where they come from, and what else running it showed."""
    runtime = report.runtime
    if runtime is None:
        return None
    parts: list[Node] = []
    for number, perplexity in enumerate(runtime.perplexities):
        base = runtime.bases[number] if number < len(runtime.bases) else None
        parts.append(_perplexity(perplexity, base))
    parts += [_cause(one) for one in runtime.counterfactuals]
    said = consistency_words(runtime.consistency) if runtime.consistency else []
    if said:
        parts.append(e("ul", *(e("li", words) for words in said), class_="said"))
    return e("section", e("h3", "Measured"), *parts, _ran(runtime)) if parts else None


def _perplexity(one: Perplexity, base: Perplexity | None) -> Element:
    rows = [Measured("this checkpoint", one.value, _value(one), one.stderr, "bad" if _bad(one) else "now")]
    if base is not None:
        rows.insert(0, Measured("the base", base.value, _value(base), base.stderr, "before"))
    guess = float(one.vocab_size) if one.vocab_size > 1 else None
    band = band_of(one)
    legend = [e("span", f"guessing blindly: {guess:,.0f}", class_="key guess")] if guess else []
    if band is not None:
        legend.append(e("span", f"healthy 7B models: {band.healthy[0]:g} to {band.healthy[1]:g}", class_="key healthy"))
    return e(
        "figure",
        e("figcaption", e("b", f"perplexity on {printable(one.corpus)}"), e("span", "lower is better", class_="dim")),
        perplexities(rows, guess, band.healthy if band else None),
        e("p", *legend, class_="legend"),
        e("p", perplexity_words(one), class_="dim"),
        class_="ppl",
    )


def _bad(one: Perplexity) -> bool:
    """Whether it is drawn in the colour of errors: worse than guessing on every segment, or far above its base."""
    relative = one.relative
    far = relative is not None and not relative.base_broken and relative.ratio >= FAR
    return not math.isfinite(one.value) or worse_than_guessing(one) or far


def _value(one: Perplexity) -> str:
    error = f" ± {perplexity_text(one.stderr)}" if one.stderr is not None else ""
    return perplexity_text(one.value) + error


def _cause(one: Counterfactual) -> Element:
    """The base, the base with the same heads masked, and this file, on the same windows."""
    wrong = one.verdict in ("pairing", "loader")
    rows = [
        Measured("the base", one.base, perplexity_text(one.base), kind="before"),
        Measured("the base, same heads masked", one.masked, perplexity_text(one.masked), kind="masked"),
        Measured("this checkpoint", one.child, perplexity_text(one.child), kind="bad" if wrong else "now"),
    ]
    title = e("b", f"where it comes from, on {printable(one.corpus)}")
    method = f"the same {one.tokens:,} tokens in {plural(one.windows, 'window')} for all three; {one.protocol}"
    return e(
        "figure",
        e("figcaption", title, e("span", "lower is better", class_="dim")),
        perplexities(rows, None),
        e("p", whence(one)),
        e("p", method, class_="dim"),
        class_="ppl",
    )


def _ran(runtime: RuntimeFacts) -> Node:
    return e("p", f"on {runtime.device} in {runtime.dtype}", class_="dim")


def texts(report: CheckpointReport) -> Node:
    """What it wrote, the worst first, beside what the base wrote after the same words."""
    made = report.runtime.generation if report.runtime else None
    if made is None:
        return None
    order = sorted(range(len(made.samples)), key=lambda n: (n != made.worst, not made.samples[n].flags))
    shown = [_pair(made, n) for n in order]
    rest = e("details", e("summary", f"{len(shown) - 1} more"), *shown[1:]) if len(shown) > 1 else None
    counted = plural(len(made.samples), "text")
    return e(
        "section",
        e("h3", "What it writes", e("span", counted, class_="dim")),
        e("p", generation_words(made), class_="dim"),
        *shown[:1],
        rest,
    )


def _pair(made: Generation, n: int) -> Element:
    sample = made.samples[n]
    columns_: list[Node] = [_text("this checkpoint", sample)]
    if n < len(made.base_samples):
        columns_.append(_text("the base", made.base_samples[n]))
    prompt = e("p", e("span", "after ", class_="dim"), e("q", printable(sample.prompt, 300), dir="auto"))
    return e("div", prompt, e("div", *columns_, class_="pair"), class_="sample")


def _text(who: str, sample: Sample) -> Element:
    kind = "bad" if sample.flags else "good"
    said = e("blockquote", printable(sample.text, SAMPLE) or "(nothing)", dir="auto")
    return e("div", e("h4", who), said, e("p", about_sample(sample), class_="dim facts"), class_=f"text {kind}")
