"""The HTML report as a document: well-formed, self-contained, accessible, and true to the report."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_everything import EVIL, everything, hostile, missing_facts, ran, states, whole_report
from report_samples import (
    broken,
    checkpoint,
    finding,
    geometry,
    healthy,
    layer,
    lineage,
    misaligned,
    perplexity,
    regrouped,
    sound_child,
    truncated,
    unreadable,
    whole,
)

from gqacheck.checkpoint import TensorInfo
from gqacheck.geometry.outcomes import BaseRelative, Perplexity
from gqacheck.report.html import POLICY, render_html
from gqacheck.report.html_elements import e, written
from gqacheck.report.html_figures import Columns, Measured, columns, perplexities
from gqacheck.result import CheckpointReport, Verdict

VOID = {"meta", "br"}
TAGS = frozenset(
    ("html", "head", "meta", "title", "style", "body", "main", "header", "footer", "section", "article", "h1",
     "h2", "h3", "h4", "h5", "p", "span", "b", "code", "q", "blockquote", "ul", "li", "dl", "dt", "dd", "div",
     "details", "summary", "table", "thead", "tbody", "tr", "th", "td", "a", "figure", "figcaption", "svg", "g",
     "rect", "line", "circle", "text", "path", "defs", "pattern", "desc")
)  # fmt: skip


class Page(HTMLParser):
    """A parsed page; every tag is closed, known, and has no attribute that runs or loads anything."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.parts: list[str] = []
        self.stack: list[str] = []
        assert text.isascii()
        self.feed(text)
        self.close()
        assert self.stack == []
        ids = self.values("id")
        assert len(ids) == len(set(ids))
        assert {link.removeprefix("#") for link in self.values("href")} <= set(ids)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in TAGS
        for key, value in attrs:
            assert not key.startswith("on")
            assert key not in ("src", "srcset", "style", "action", "data", "xlink:href")
            assert key != "href" or (value or "").startswith("#")
        self.tags.append((tag, {key: value or "" for key, value in attrs}))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.stack:
            self.parts.append(data)

    def values(self, attribute: str) -> list[str]:
        """All values of one attribute."""
        return [attributes[attribute] for _, attributes in self.tags if attribute in attributes]

    def classes(self, tag: str) -> list[str]:
        """The class of every such tag."""
        return [attributes.get("class", "") for name, attributes in self.tags if name == tag]

    @property
    def text(self) -> str:
        """What can be read."""
        return "".join(self.parts)


def page(*checkpoints: CheckpointReport) -> Page:
    return Page(render_html(whole_report(*checkpoints)))


def with_tensors(report: CheckpointReport, share: float) -> CheckpointReport:
    """The report with a tensor of 1,000 elements in every layer, of which ``share`` is left."""
    assert report.geometry is not None
    tensors = {
        f"{layer.path}.w": TensorInfo("w", (int(1000 * share),), "float16", (1,)) for layer in report.geometry.layers
    }
    return replace(report, checkpoint=checkpoint(tensors=tensors))


def test_html_forbids_everything_before_anything_else() -> None:
    text = render_html(whole_report(everything()))
    assert text.startswith('<!doctype html>\n<html lang="en" data-gqacheck="report"><head><meta charset="utf-8">'
                           '<meta http-equiv="Content-Security-Policy"')  # fmt: skip
    assert POLICY.startswith("default-src 'none'")
    style = re.findall(r"<style>(.*?)</style>", text, re.S)
    assert not any(re.search(r"@import|url\((?!#)|expression", sheet) for sheet in style)
    assert "prefers-color-scheme:" in style[0].replace(" ", "")
    assert "@media print" in style[0]


def test_html_tells_every_fact() -> None:
    made = page(everything())
    assert missing_facts(made.text.replace("Broken", "broken")) == []


def test_html_of_every_state_shows_pass_only_where_it_passed() -> None:
    for report, passed in states():
        made = page(report)
        (kind,) = [name for name in made.classes("header") if name.startswith("verdict")]
        assert (kind == "verdict pass") == passed, report


def test_html_explains_each_rule_once() -> None:
    made = page(misaligned(), misaligned())
    assert made.text.count("about GQA601") == 1
    assert "Why it matters" in made.text


def test_html_of_known_findings_says_so() -> None:
    known = finding()
    made = page(broken(verdict=Verdict.PASS, exit_code=0, findings=(known,), known=(known.fingerprint,)))
    assert "known: in the baseline" in made.text
    assert "card error" not in made.classes("div")


def test_html_of_several_links_to_each() -> None:
    made = page(healthy(), unreadable(), misaligned(), everything())
    assert made.values("href") == ["#c0", "#c1", "#c2", "#c3"]
    assert made.values("id")[0] == "c0"
    assert "4 checkpoints: 2 failed, 1 could not be checked, 1 passed" in made.text


def test_html_is_accessible() -> None:
    made = page(healthy(), everything())
    tags = [name for name, _ in made.tags]
    assert (tags.count("main"), tags.count("h1")) == (1, 1)
    levels = [int(name[1]) for name in tags if re.fullmatch("h[1-6]", name)]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert all("scope" in attributes for name, attributes in made.tags if name == "th")
    for name, attributes in made.tags:
        if name == "svg":
            assert attributes.get("role") == "img"
    assert "query heads per layer: 32 in layers 0-3, 29-31; 24 in layers 4-28" in made.values("aria-label")


def test_html_draws_what_was_kept_of_each_layer() -> None:
    report = with_tensors(sound_child(), 0.75)
    assert report.base is not None
    report = replace(report, base=with_tensors(report.base, 1.0))
    labels = page(report).values("aria-label")
    assert "parameters kept per layer: 75.0 % in layers 0-31" in labels
    assert not any("parameters kept" in label for label in page(sound_child()).values("aria-label"))


class Figure(Page):
    """The first perplexity of a page: its points by name, each with its class, and the text of the figure."""

    def __init__(self, one: Perplexity, base: Perplexity | None) -> None:
        bases = (base,) if base is not None else ()
        report = everything(runtime=ran(perplexities=(one,), bases=bases, counterfactuals=()))
        figure = render_html(whole_report(report)).partition('<figure class="ppl">')[2].partition("</figure>")[0]
        super().__init__(f"<figure>{figure}</figure>")
        label = next(value for value in self.values("aria-label") if value.startswith("perplexity: "))
        self.rows = dict(zip(label.removeprefix("perplexity: ").split("; "), self.classes("circle"), strict=True))


def beside(**changes: object) -> BaseRelative:
    """5,368 beside the base's 298, on two windows."""
    return replace(BaseRelative(298.1, 5368.0, 18.0, 2.89, 0.06, 510, 2), **changes)  # type: ignore[arg-type]


EARLY: dict[str, object] = {"complete": False, "stopped_early": True, "windows": 4, "windows_in_all": 86}
BASE = perplexity(5377.0)


def test_html_draws_a_run_that_stopped_early_hollow_and_beside_the_base_on_the_same_windows_alone() -> None:
    made = Figure(perplexity(28_235.0, relative=beside(left_out=("chinese",)), **EARLY), BASE)
    assert made.rows == {"the base 298.1": "before hollow", "this checkpoint 5,368 (18.00 x)": "bad hollow"}
    assert "on 2 of 86 windows, without chinese, which the base does not read: not comparable" in made.text
    assert "5,377" not in made.text
    assert not any(name == "line" and a["class"].startswith("error") for name, a in made.tags)


def test_html_draws_no_base_beside_what_is_not_related_to_it() -> None:
    broken_base = beside(base_broken=True, ratio=math.nan)
    for relative, base in ((None, None), (None, BASE), (broken_base, BASE)):
        made = Figure(perplexity(28_235.0, relative=relative, **EARLY), base)
        assert made.rows == {"this checkpoint 28,235 ± 0.41": "now hollow"}
        assert "on 4 of 86 windows: not comparable" in made.text


def test_html_draws_segments_that_the_base_reads_where_it_does_not_read_all() -> None:
    made = Figure(perplexity(28_235.0, relative=beside(left_out=("chinese",), windows=70), windows_in_all=86), BASE)
    assert made.rows == {"the base 298.1": "before", "this checkpoint 5,368 (18.00 x)": "bad"}
    assert "on 70 of 86 windows, without chinese" in made.text


def test_html_draws_a_whole_text_beside_the_base_with_their_errors() -> None:
    wikitext = {"corpus": "wikitext2", "known_corpus": "wikitext2", "protocol_name": "llm-pruner-128"}
    made = Figure(perplexity(6.0, relative=beside(ratio=1.1), **wikitext), perplexity(5.5, **wikitext))
    assert made.rows == {"the base 5.50 ± 0.41": "before", "this checkpoint 6.00 ± 0.41": "now"}
    assert "not comparable" not in made.text
    assert "healthy 7B models" in made.text
    cut = Figure(perplexity(6.0, complete=False, windows_in_all=86, **wikitext), None)
    assert cut.rows == {"this checkpoint 6.00 ± 0.41": "now hollow"}
    assert "key healthy" in made.classes("span")
    for part in (cut, Figure(perplexity(6.0, relative=beside(left_out=("chinese",)), **wikitext), None)):
        assert "key healthy" not in part.classes("span")


def eighty() -> CheckpointReport:
    """80 layers of which three are misread."""
    bad = (10, 11, 70)
    layers = [layer(i, 24, 6, 10752) if i in bad else layer(i) for i in range(80)]
    origins = lineage(truncated(i) if i in bad else whole(i) for i in range(80))
    return misaligned(lineage=origins, geometry=geometry(layers), findings=tuple(regrouped((i,)) for i in bad))


def test_html_shows_the_broken_layers_first_and_says_so_as_text() -> None:
    text = render_html(whole_report(eighty()))
    assert text.index("Which KV head each query head reads") < text.index('class="findings"')
    told = text.partition('<div class="told">')[2].partition("</div>")[0]
    assert "60 of the 72 query heads in layers 10-11, 70 read a KV head that they were not trained with" in told
    assert "layers 10-11, 70: 20 of 24 misread" in told
    broken_ones, _, all_of_them = text.partition("<summary>all 80 layers</summary>")
    assert [broken_ones.count(f">layer {i}</text>") for i in (9, 10, 11, 70)] == [0, 1, 1, 1]
    assert [all_of_them.count(f">layer {i}</text>") for i in (0, 9, 10, 70, 79)] == [1] * 5
    page(eighty(), eighty())


def test_html_shows_one_map_where_most_layers_are_broken_and_after_the_findings_where_none_is() -> None:
    assert "layers</summary>" not in render_html(whole_report(misaligned()))
    text = render_html(whole_report(sound_child()))
    assert text.index('class="findings"') < text.index("Which KV head each query head reads")
    assert "layers</summary>" not in text


def test_html_marks_the_layers_with_errors_where_the_heads_are() -> None:
    made = page(misaligned())
    figure = [attributes for name, attributes in made.tags if name == "rect"]
    assert sum(one["class"] == "wrong" for one in figure) == 2 * 25
    assert not any(one["class"] == "wrong" for one in (a for n, a in page(healthy()).tags if n == "rect"))


def test_columns_are_as_high_as_their_values() -> None:
    made = Page(written(columns(Columns("heads", {0: 8.0, 1: 4.0}, {0: 8.0, 1: 8.0}), frozenset((1,)))))
    bars = [attributes for name, attributes in made.tags if name == "rect"]
    assert [(bar["class"], bar["height"]) for bar in bars] == [
        ("before", "72.0"), ("now", "72.0"), ("before", "72.0"), ("wrong", "36.0"),
    ]  # fmt: skip
    assert bars[2]["x"] == bars[3]["x"] == "50.000%"


def test_perplexities_stand_on_one_log_scale_with_their_errors() -> None:
    rows = [Measured("a", 10.0, "10", 1.0), Measured("b", 1000.0, "1,000")]
    made = Page(written(perplexities(rows, guess=100.0)))
    x = [float(attributes["cx"].rstrip("%")) for name, attributes in made.tags if name == "circle"]
    lines = {attributes["class"]: attributes for name, attributes in made.tags if name == "line"}
    guess = float(lines["guess"]["x1"].rstrip("%"))
    assert guess == pytest.approx((x[0] + x[1]) / 2, abs=0.02)
    assert float(lines["error now"]["x1"].rstrip("%")) < x[0] < float(lines["error now"]["x2"].rstrip("%"))


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0, -1.0, 1e308, 1.0, 1e-300])
@pytest.mark.parametrize("stderr", [None, 0.0, math.nan, math.inf, 1e308])
def test_html_of_any_perplexity_has_coordinates_inside_the_figure(value: float, stderr: float | None) -> None:
    made = page(everything(runtime=ran(perplexities=(perplexity(value, stderr=stderr),), bases=())))
    for name, attributes in made.tags:
        if name in ("circle", "line", "rect"):
            for key in ("cx", "x1", "x2", "x"):
                place = attributes.get(key, "0").rstrip("%")
                assert 0 <= float(place) <= 100, attributes


def test_html_of_hostile_names_is_text_of_bounded_length() -> None:
    made = page(hostile(), hostile())
    assert "<script>alert(1)</script><img src=x onerror=alert(2)>" in made.text
    assert "\u202e" not in made.text
    assert len(render_html(whole_report(hostile(EVIL * 50_000)))) < 400_000


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=40))
def test_html_of_any_name_keeps_its_structure(text: str) -> None:
    def named(name: str) -> list[tuple[str, dict[str, str]]]:
        report = broken(path=name, findings=(finding(slug=name, message=name, tensors=(name,), fix=name or "x"),))
        return [(tag, {}) for tag, _ in page(report).tags]

    assert named(text) == named("a")


def test_html_of_thousands_of_findings_counts_what_it_leaves_out() -> None:
    findings = tuple(finding(message=f"m{n}") for n in range(2100))
    made = page(broken(findings=findings))
    assert "and 100 more (--format json)" in made.text


def test_element_escapes_its_text_and_its_attributes() -> None:
    assert written(e("p", "a<b> & \"c\" 'd' \u202e\u4e2d")) == (
        "<p>a&lt;b&gt; &amp; &quot;c&quot; &#39;d&#39; \\u202e&#20013;</p>"
    )
    assert written(e("p", title="\"'><x>", open=True, lang=None)) == '<p title="&quot;&#39;&gt;&lt;x&gt;" open=""></p>'


def test_html_colours_a_perplexity_as_the_rules_judge_it() -> None:
    def colour(one: Perplexity) -> str:
        made = page(everything(runtime=ran(perplexities=(one,), bases=(), counterfactuals=())))
        return next(attributes["class"] for name, attributes in made.tags if name == "circle")

    assert colour(perplexity(14_000.0)) == "now"  # one segment of three is bad, and lifts the mean
    lost = tuple(replace(segment, nll=12.5) for segment in perplexity().segments)
    assert colour(perplexity(718_107.0, segments=lost)) == "bad"


@pytest.mark.parametrize("bad", [{"onclick": "x"}, {"src": "x"}, {"href": "https://x"}, {"style": "x"}])
def test_element_refuses_an_attribute_that_runs_or_loads(bad: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="no report has an attribute"):
        e("p", **bad)


def test_element_refuses_a_script() -> None:
    with pytest.raises(ValueError, match="no report has an element"):
        e("script", "alert(1)")
