"""The HTML report: one file that needs no network and no JavaScript, verdict first.

Everything of a checkpoint goes through ``html_elements``, which escapes it; and the page's own Content Security Policy
forbids whatever would load or run all the same.
"""

from __future__ import annotations

from gqacheck.report.document import plain
from gqacheck.report.findings import headline
from gqacheck.report.html_elements import Element, Markup, Node, code, e, written
from gqacheck.report.html_findings import claims, findings, skipped
from gqacheck.report.html_layers import head_map, layers, misplaced
from gqacheck.report.html_measured import measured, texts
from gqacheck.report.html_style import STYLE
from gqacheck.report.told import base_lines, identity_line, last_line, remarks_of
from gqacheck.report.words import STATE_WORDS, VERDICT_WORDS, plural
from gqacheck.result import CheckpointReport, Report, Verdict
from gqacheck.rules.rule import Severity
from gqacheck.text import printable

POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def render_html(report: Report) -> str:
    """The whole report as one HTML document, in ASCII."""
    several = len(report.checkpoints) > 1
    explained: set[str] = set()
    head = e(
        "head",
        e("meta", charset="utf-8"),
        e("meta", http_equiv="Content-Security-Policy", content=POLICY),
        e("meta", name="viewport", content="width=device-width, initial-scale=1"),
        e("meta", name="color-scheme", content="light dark"),
        e("meta", name="referrer", content="no-referrer"),
        e("title", f"{VERDICT_WORDS[report.verdict]}: {_subject(report)}"),
        e("style", Markup(STYLE)),
    )
    main = e(
        "main",
        e("h1", "gqacheck report"),
        _overview(report) if several else None,
        *(_checkpoint(one, number, explained) for number, one in enumerate(report.checkpoints)),
        _footer(report),
    )
    page = written(e("html", head, e("body", main), lang="en", data_gqacheck="report"))
    return f"<!doctype html>\n{page}\n"


def _subject(report: Report) -> str:
    if len(report.checkpoints) == 1:
        return f"{report.checkpoints[0].path} - gqacheck"
    return f"{plural(len(report.checkpoints), 'checkpoint')} - gqacheck"


def _overview(report: Report) -> Element:
    """All checkpoints in a table, each with a link to its part of the page."""
    names = ("checkpoint", "verdict", "shapes", "pairing", "runtime", "errors", "warnings")
    rows = []
    for number, one in enumerate(report.checkpoints):
        states = {claim.name: STATE_WORDS[claim.state] for claim in one.claims}
        counted = [sum(f.severity is severity for f in one.findings) for severity in (Severity.ERROR, Severity.WARNING)]
        rows.append(
            e(
                "tr",
                e("th", e("a", code(one.path, 80), href=f"#c{number}"), scope="row"),
                e("td", e("b", VERDICT_WORDS[one.verdict], class_=f"{one.verdict.value}-text")),
                *(e("td", states.get(name, "NOT CHECKED")) for name in names[2:5]),
                *(e("td", str(n)) for n in counted),
            )
        )
    head = e("thead", e("tr", *(e("th", name, scope="col") for name in names)))
    counts = {verdict: sum(one.verdict is verdict for one in report.checkpoints) for verdict in Verdict}
    words = {Verdict.FAIL: "failed", Verdict.ERROR: "could not be checked", Verdict.PASS: "passed"}
    told = ", ".join(f"{counts[verdict]:,} {text}" for verdict, text in words.items() if counts[verdict])
    title = e("h2", f"{plural(len(report.checkpoints), 'checkpoint')}: {told}")
    return e("section", title, e("div", e("table", head, e("tbody", *rows)), class_="wide"), class_="overview")


def _checkpoint(report: CheckpointReport, number: int, explained: set[str]) -> Element:
    found, figure = findings(report, explained), head_map(report, number)
    return e(
        "article",
        _verdict(report),
        claims(report),
        *((figure, found) if misplaced(report) else (found, figure)),
        measured(report),
        texts(report),
        layers(report),
        skipped(report),
        _how(report),
        id=f"c{number}",
    )


def _verdict(report: CheckpointReport) -> Element:
    word, text = headline(report)
    error = report.error if report.error and report.error != text else None
    return e(
        "header",
        e("p", word, class_="word"),
        e("h2", _capital(text, report)),
        e("p", f"{VERDICT_WORDS[Verdict.ERROR]}: {error}", class_="could-not") if error else None,
        *(e("p", note, class_="could-not") for note in report.notes),
        e("p", code(report.path), class_="path"),
        *(e("p", told, class_="identity dim") for told in _identity(report)),
        class_=f"verdict {report.verdict.value}",
    )


def _capital(text: str, report: CheckpointReport) -> str:
    """A sentence with a capital letter, unless it begins with the name of a file."""
    shown = printable(text, 600)
    return shown if report.checkpoint is None else shown[:1].upper() + shown[1:]


def _identity(report: CheckpointReport) -> list[str]:
    if report.checkpoint is None or report.geometry is None:
        return []
    return plain([identity_line(report, named=False), *base_lines(report)]).splitlines()


def _how(report: CheckpointReport) -> Node:
    """How it was checked, and what was seen and left alone."""
    if report.checkpoint is None:
        return None
    told = [*plain([last_line(report)]).split(" · "), *(remarks_of(report) if report.geometry is not None else [])]
    return e(
        "section", e("h3", "How it was checked"), e("ul", *(e("li", line.strip()) for line in told), class_="said")
    )


def _footer(report: Report) -> Element:
    return e("footer", *(e("p", note) for note in report.notes), e("p", f"gqacheck {printable(report.version)}"))
