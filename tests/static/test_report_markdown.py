"""The Markdown report: fits into a comment, and nothing of a checkpoint becomes markup, a mention or a link."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from report_everything import EVIL, everything, hostile, missing_facts, required, states, whole_report
from report_samples import broken, finding, healthy, layer_origin, lineage, misaligned, unreadable

from gqacheck.report.markdown import LIMIT, MARK, render_markdown
from gqacheck.report.markdown_text import BREAK, as_typed, code, prose
from gqacheck.result import CheckpointReport, Verdict

TAGS = frozenset(
    ("h2", "h3", "p", "strong", "table", "thead", "tbody", "tr", "th", "td", "details", "summary", "ul", "li", "code",
     "b", "sub", "pre")
)  # fmt: skip


class Shown(HTMLParser):
    """What a browser would make of rendered Markdown: the tags with their attributes, and the text."""

    def __init__(self, markdown: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.parts: list[str] = []
        self.feed(MarkdownIt("commonmark").enable("table").render(markdown))
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.parts.append(data)

    @property
    def text(self) -> str:
        """The text, without the breaks that keep GitHub from linking."""
        return "".join(self.parts).replace(BREAK, "")


def shown(*checkpoints: CheckpointReport) -> Shown:
    return Shown(render_markdown(whole_report(*checkpoints)))


def test_markdown_puts_the_verdict_first_and_the_claims_in_a_table() -> None:
    text = render_markdown(whole_report(misaligned()))
    lines = text.splitlines()
    assert lines[0] == MARK
    assert lines[1] == "## ❌ FAIL <code>ckpt.bin</code>"
    assert lines[3] == "**broken pairing: the shapes are right, the heads are not**"
    assert "| pairing | ❌ FAIL | 1 error: GQA601; 8 rules ran |" in lines
    assert "| runtime | ⬜ NOT CHECKED | not asked for &#40;--ppl runs the model&#41; |" in lines


def test_markdown_tells_every_fact() -> None:
    assert missing_facts(shown(everything()).text) == []


def test_markdown_shows_which_heads_are_misread() -> None:
    text = shown(misaligned()).text
    assert re.search(r"trained on +k0 +k1 +k2 +k3 +k4 +k5", text)


def test_markdown_is_green_exactly_where_the_checkpoint_passed() -> None:
    for report, passed in states():
        heading = render_markdown(whole_report(report)).splitlines()[1]
        assert ("✅" in heading) == passed, report
    assert "## ⚠️ COULD NOT CHECK" in render_markdown(whole_report(unreadable()))
    required_text = render_markdown(whole_report(required()))
    assert "pairing was required and not checked" in required_text.partition("| claim")[0]


def test_markdown_of_several_names_the_worst_first() -> None:
    text = render_markdown(whole_report(healthy(), unreadable(), broken()))
    assert text.splitlines()[1] == "## ⚠️ gqacheck: 3 checkpoints: 1 failed, 1 could not be checked, 1 passed"
    headings = [line.split()[2] for line in text.splitlines() if line.startswith("### ")]
    assert headings == ["FAIL", "COULD", "PASS"]


def test_markdown_of_known_findings_says_so() -> None:
    known = finding()
    text = shown(broken(verdict=Verdict.PASS, exit_code=0, findings=(known,), known=(known.fingerprint,))).text
    assert "known: in the baseline" in text


@pytest.mark.parametrize("n", [1, 10, 100, 3000])
def test_markdown_of_ever_more_findings_fits_and_counts_what_it_leaves_out(n: int) -> None:
    findings = tuple(finding(message=f"message {i} " + "x" * 200, layers=(i,)) for i in range(n))
    text = render_markdown(whole_report(broken(findings=findings)))
    assert len(text.encode()) < LIMIT
    listed = len(re.findall(r"^- .*message \d+ ", text, re.M))
    left = re.search(r"- and ([\d,]+) more", text)
    assert listed >= 1
    assert listed + (int(left[1].replace(",", "")) if left else 0) == n


def test_markdown_of_many_checkpoints_fits_and_keeps_the_failed_ones() -> None:
    made = [replace(everything(), path=f"good{i}", verdict=Verdict.PASS, exit_code=0) for i in range(40)]
    text = render_markdown(whole_report(*made, broken(path="bad")))
    assert len(text.encode()) < LIMIT
    assert "41 checkpoints: 1 failed, 40 passed" in text
    assert "<code>bad</code>" in text
    assert re.search(r"and \d+ more: \d+ checkpoints: \d+ passed", text)


def test_markdown_of_many_differing_layers_fits() -> None:
    layers = [layer_origin(i, [(h + i) % 32 for h in range(32)], range(8)) for i in range(126)]
    assert len(render_markdown(whole_report(misaligned(lineage=lineage(layers)))).encode()) < LIMIT


def test_markdown_of_hostile_names_is_text() -> None:
    for text in (EVIL, EVIL * 20_000, "中" * 100_000, "|" * 5000, "<" * 5000):
        made = render_markdown(whole_report(hostile(text)))
        assert len(made.encode()) < LIMIT
        page = Shown(made)
        assert {name for name, _ in page.tags} <= TAGS
        assert {key for _, attributes in page.tags for key in attributes} <= {"open", "style"}
    page = shown(hostile())
    assert "<script>alert(1)</script>" in page.text


def test_markdown_breaks_whatever_github_would_link() -> None:
    mentions = ("@someone", "#12", "GH-12", "gh-3", "a@b.example", ":smile:", "org/repo#1", "org/repo@abc")
    for text in (*mentions, "https://evil.example", "http://x", "www.evil.example"):
        made = prose(f"x {text} y")
        assert BREAK in made, text
        assert Shown(made).text.strip() == f"x {text} y"
    assert BREAK not in prose("model.layers.0: 31 query heads (q_proj) do not divide")


def test_markdown_code_is_copied_as_it_is() -> None:
    for path in ("org/model@main#2.bin", "a::b/GH-12/:smile:.bin", "https://x/www.y.bin", "layers.0.*.q_proj"):
        made = code(path)
        assert BREAK not in made
        assert "://" not in made
        assert "www." not in made
        assert "".join(Shown(f"x {made} y").parts).strip() == f"x {path} y"
        assert "".join(Shown("\n".join(as_typed([path]))).parts).strip() == path
    assert code("a_b.c") == "<code>a&#95;b.c</code>"


def test_markdown_tells_what_several_findings_have_in_common_once() -> None:
    alike = {"cause": "one cut", "consequence": "noise"}
    findings = [finding(message=f"message {n}", layers=(n,), fix=f"fix {n // 7}", **alike) for n in range(8)]
    lines = shown(broken(findings=tuple(findings))).text.splitlines()
    assert [line for line in lines if "one cut" in line or "noise" in line] == ["cause: one cut", "effect: noise"]
    assert sum("fix: fix" in line for line in lines) == 8
    assert lines.index("cause: one cut") > max(n for n, line in enumerate(lines) if "message" in line)
    same = tuple(finding(message=f"message {n}") for n in range(8))
    assert shown(broken(findings=same)).text.count("fix: ") == 1


@settings(max_examples=150, deadline=None)
@given(st.text(st.sampled_from("`*_~|<>&[](){}!$^\\\"'#@+-=:.0a \n/"), max_size=14))
@example("- a")
@example("1. a")
@example("    indented")
@example("# a")
@example("```")
@example("=")
def test_markdown_text_comes_back_as_it_was(text: str) -> None:
    wanted = text.replace("\n", "\\n")
    for page in (Shown(f"- {prose(text)}"), Shown(f"| a | b |\n|---|---|\n| {prose(text)} | {code(text)} |")):
        assert {name for name, _ in page.tags} <= TAGS
    inline = Shown(f"x {prose(text)} y")
    assert re.sub(r"\s+", " ", inline.text).strip() == re.sub(r"\s+", " ", f"x {wanted} y")
    assert [name for name, _ in inline.tags] == ["p"]
    item = Shown(f"- {prose(text)}")
    assert re.sub(r"\s+", " ", item.text).strip() == re.sub(r"\s+", " ", wanted).strip()
    assert [name for name, _ in item.tags][:2] == ["ul", "li"]
    assert {name for name, _ in item.tags} <= {"ul", "li", "p"}
