"""The HTML report in a real browser: hostile names stay text, nothing is loaded or run, and it fits on a telephone."""

from __future__ import annotations

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from chromium import Browser
from report_everything import EVIL, everything, hostile, required, whole_report
from report_samples import misaligned, sound_child, unreadable

from gqacheck.report.html import render_html
from gqacheck.result import CheckpointReport, Report

FACTS = """
const all = [...document.querySelectorAll("*")];
return {
  happened: window.happened,
  title: document.title,
  tags: [...new Set(all.map(one => one.localName))],
  handlers: all.filter(one => [...one.attributes].some(a => a.name.startsWith("on"))).length,
  wide: document.documentElement.scrollWidth, window: window.innerWidth,
  shown: document.body.innerText,
};
"""
OVERFLOW = """
const edge = document.documentElement.clientWidth + 1;
const inside = one => one.closest(".wide, svg");
const beyond = one => !inside(one) && one.getBoundingClientRect().right > edge;
return [...document.querySelectorAll("main, main *")].filter(beyond)
  .map(one => one.outerHTML.slice(0, 120));
"""
CONTRAST = """
const channel = v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
const light = c => 0.2126 * channel(c[0]) + 0.7152 * channel(c[1]) + 0.0722 * channel(c[2]);
const colour = text => (text.match(/[\\d.]+/g) || []).map(Number);
const behind = one => {
  for (; one; one = one.parentElement) {
    const c = colour(getComputedStyle(one).backgroundColor);
    if (c.length === 3 || c[3] > 0) return c;
  }
  return [255, 255, 255];
};
const bad = [];
for (const one of document.querySelectorAll("main *")) {
  if (one.closest("svg") || ![...one.childNodes].some(n => n.nodeType === 3 && n.data.trim())) continue;
  const [a, b] = [light(colour(getComputedStyle(one).color)), light(behind(one))].sort((x, y) => y - x);
  const ratio = (a + 0.05) / (b + 0.05);
  if (ratio < 4.5) bad.push([one.localName, one.className, one.textContent.slice(0, 40), ratio]);
}
return bad;
"""
PAGES = {
    "everything": (everything(),),
    "hostile": (hostile(),),
    "several": (sound_child(), misaligned(), unreadable(), required(), hostile()),
    "long": (hostile("x" * 5000), hostile(EVIL * 300)),
}


@pytest.fixture(params=PAGES)
def page(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A report in a file."""
    return write(tmp_path, whole_report(*PAGES[request.param]))


def write(folder: Path, report: Report) -> Path:
    path = folder / "report.html"
    path.write_text(render_html(report), encoding="ascii")
    return path


def test_page_runs_nothing_loads_nothing_and_has_no_element_of_a_name(browser: Browser, page: Path) -> None:
    browser.open(page)
    facts: dict[str, Any] = browser.run(FACTS)
    assert facts["happened"] == []
    assert facts["handlers"] == 0
    assert not {"script", "img", "iframe", "object", "embed", "link", "form", "input", "b2"} & set(facts["tags"])
    assert browser.requests() == [page.resolve().as_uri()]


@pytest.mark.parametrize("width", [360, 320, 1400])
def test_page_is_never_wider_than_the_window(browser: Browser, page: Path, width: int) -> None:
    browser.open(page, width=width)
    browser.run("for (const one of document.querySelectorAll('details')) one.open = true;")
    facts = browser.run(FACTS)
    assert facts["wide"] <= facts["window"] == width
    assert browser.run(OVERFLOW) == []


def test_hostile_name_reads_as_it_was_written(browser: Browser, tmp_path: Path) -> None:
    browser.open(write(tmp_path, whole_report(hostile())))
    facts = browser.run(FACTS)
    assert "<script>alert(1)</script><img src=x onerror=alert(2)>&\"'" in facts["shown"]
    assert "\\u202e" in facts["shown"]
    assert facts["title"].startswith("FAIL: <script>alert(1)</script>")


class Listener(BaseHTTPRequestHandler):
    """Writes down what is asked of it."""

    def do_GET(self) -> None:
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        self.send_error(404)

    def log_message(self, *_: Any) -> None:
        """Nothing: a test speaks through its assertions."""


@pytest.fixture
def listener() -> Iterator[tuple[str, list[str]]]:
    """The address of a server on this machine, and what was asked of it so far."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Listener)
    server.asked = []  # type: ignore[attr-defined]
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", server.asked  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        server.server_close()


def test_watch_sees_what_a_page_does(browser: Browser, tmp_path: Path, listener: tuple[str, list[str]]) -> None:
    """The tests above can fail: a page without the report's care is caught by each of them."""
    address, asked = listener
    path = tmp_path / "bad.html"
    image = f'<img src="{address}/x" onerror="alert(1)">'
    path.write_text(f'<body><main style="width:2000px">x{image}<script>alert(2)</script></main>')
    browser.open(path, width=360)
    facts = browser.run(FACTS)
    assert "called alert" in facts["happened"]
    assert facts["handlers"] == 1
    assert facts["wide"] > facts["window"]
    assert browser.run(OVERFLOW) != []
    assert f"{address}/x" in browser.requests()
    assert asked == ["/x"]


def test_policy_stops_what_gets_into_the_page_all_the_same(
    browser: Browser, tmp_path: Path, listener: tuple[str, list[str]]
) -> None:
    """Were something ever not escaped, the page's own policy would still keep it from running or loading."""
    address, asked = listener
    text = render_html(whole_report(sound_child()))
    path = tmp_path / "torn.html"
    image = f'<img src="{address}/x" onerror="window.happened.push(1)">'
    torn = f'<main><script>window.happened.push("ran")</script>{image}'
    path.write_text(text.replace("<main>", torn), encoding="ascii")
    browser.open(path)
    happened = browser.run(FACTS)["happened"]
    assert {"ran", 1}.isdisjoint(happened)
    assert {"wanted inline", f"wanted {address}/x"} <= set(happened)
    assert asked == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast_in_light_and_dark(browser: Browser, tmp_path: Path, scheme: str) -> None:
    browser.open(write(tmp_path, whole_report(everything(), sound_child(), unreadable(), required())), scheme=scheme)
    browser.run("for (const one of document.querySelectorAll('details')) one.open = true;")
    assert browser.run(CONTRAST) == []
    colour = browser.run("return getComputedStyle(document.body).backgroundColor")
    assert colour == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(15, 18, 22)")


def test_pages_of_two_checkpoints_draw_two_figures_in_their_own_colours(browser: Browser, tmp_path: Path) -> None:
    browser.open(write(tmp_path, whole_report(sound_child(), misaligned())))
    paper = "getComputedStyle(figure.querySelector(':scope > path')).fill"
    fills = browser.run(f"return [...document.querySelectorAll('.map svg')].map(figure => {paper})")
    assert fills == ["rgb(255, 255, 255)"] * 2


def test_page_is_printed(browser: Browser, tmp_path: Path) -> None:
    browser.open(write(tmp_path, whole_report(everything())), scheme="dark")
    paper = tmp_path / "report.pdf"
    browser.paper(paper)
    assert paper.read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize("width", [320, 1400])
def test_what_the_head_map_says_is_read_without_scrolling_sideways(
    browser: Browser, tmp_path: Path, width: int
) -> None:
    browser.open(write(tmp_path, whole_report(misaligned())), width=width)
    told = "document.querySelector('.told')"
    assert browser.run(f"return {told}.getBoundingClientRect().right") <= width
    shown = browser.run(f"return {told}.innerText")
    assert "500 of the 600 query heads in layers 4-28 read a KV head that they were not trained with" in shown
    assert "layers 4-28: 20 of 24 misread" in shown


def test_verdict_is_seen_without_scrolling_on_a_telephone(browser: Browser, tmp_path: Path) -> None:
    verdicts: tuple[tuple[CheckpointReport, str], ...] = ((misaligned(), "FAIL"), (unreadable(), "COULD NOT CHECK"))
    for report, word in verdicts:
        browser.open(write(tmp_path, whole_report(report)), width=360, height=640)
        place = browser.run("return document.querySelector('.word').getBoundingClientRect().bottom")
        assert place < 200
        assert browser.run("return document.querySelector('.word').innerText") == word
