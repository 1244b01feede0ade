"""The HTML report's pictures of layers: the head map, and heads, widths and parameters per layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from gqacheck.geometry.facts import Geometry, Layer
from gqacheck.report.document import cell_text
from gqacheck.report.html_elements import Element, Markup, Node, e
from gqacheck.report.html_figures import Columns, columns
from gqacheck.report.svg import head_map_svg, verdict_lines
from gqacheck.report.svg_rows import Row, remark_of, rows_of
from gqacheck.report.table import head_dim_sources, layer_grid
from gqacheck.report.told import kept_of
from gqacheck.report.words import layers_words, plural
from gqacheck.result import CheckpointReport
from gqacheck.rules.rule import Severity

SHORT = 12
"""Layers of a head map that are shown whole, however few of them are wrong."""
REMARKS = 8
"""Different remarks on layers that are told beside the head map."""
MLP_WIDTH = "MLP width"
MLP_CODES = ("GQA206", "GQA3", "GQA404", "GQA604")
"""Rules on the MLP; the layers that others name are marked where the heads are drawn."""


def misplaced(report: CheckpointReport) -> bool:
    """Whether the head map shows what is wrong, and not that all is well."""
    return any(map(_is_wrong, rows_of(report.lineage)))


def _is_wrong(row: Row) -> bool:
    return bool(row.tally.wrong or row.tally.moved_o or row.tally.moved_v)


def head_map(report: CheckpointReport, number: int) -> Node:
    """Layers x heads; None where no weights were compared.

    What it says stands beside it as text too. Where few of many layers are wrong, those come first, the rest is folded.
    """
    rows = rows_of(report.lineage)
    if report.lineage is None or not any(row.drawn for row in rows):
        return None
    wrong = [row for row in rows if row.drawn and _is_wrong(row)]
    told: list[Node] = [
        e("p", words, class_="fail-text" if kind == "bad" else None) for words, kind in verdict_lines(rows)
    ]
    told += [e("p", f"{layers_words(where)}: {remark}", class_="dim") for remark, where in _remarks(wrong).items()]
    told += [e("p", words, class_="dim") for words in kept_of(report)]
    figures: list[Node] = [_map(report, f"gqm{number}")]
    if wrong and len(rows) > SHORT and 2 * len(wrong) < len(rows):
        only = replace(report.lineage, layers=tuple(row.layer for row in wrong))
        summary = e("summary", f"all {len(rows):,} layers")
        figures = [_map(replace(report, lineage=only), f"gqw{number}"), e("details", summary, *figures)]
    return e("section", e("h3", "Which KV head each query head reads"), e("div", *told, class_="told"), *figures)


def _map(report: CheckpointReport, prefix: str) -> Element:
    return e("div", Markup(head_map_svg(report, prefix)), class_="wide map", tabindex="0", role="region",
             aria_label="head map: which KV head each query head reads")  # fmt: skip


def _remarks(rows: Sequence[Row]) -> dict[str, list[int]]:
    """What is wrong in a layer, and the layers in which it is; the most frequent ones."""
    found: dict[str, list[int]] = {}
    for row in rows:
        found.setdefault(remark_of(row)[0], []).append(row.layer.index)
    most = sorted(found, key=lambda remark: -len(found[remark]))[:REMARKS]
    return {remark: layers for remark, layers in found.items() if remark in most}


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
