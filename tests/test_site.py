"""The documentation as a site: built strictly, complete, and without the network."""

from __future__ import annotations

import compileall
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gqacheck.rules import RULES

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tests" / "browser"))
LOADED = re.compile(r"""<(?:script|link|img|iframe)\b[^>]*?\b(?:src|href)=["']?([^"'\s>]+)""")
BESIDE = ("mkdocs.yml", "CHANGELOG.md", "CONTRIBUTING.md", "README.md", "README.zh-CN.md", "benchmarks/README.md",
          "fixtures/README.md", "gqacheck/report/schema/gqacheck-1.json")  # fmt: skip


def build(root: Path, out: Path) -> tuple[int, str]:
    made = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(out)], cwd=root, capture_output=True, text=True,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, check=False,
    )  # fmt: skip
    return made.returncode, made.stdout + made.stderr


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    compileall.compile_dir(ROOT / "docs", quiet=2)  # as whoever has run the generator before
    code, said = build(ROOT, out)
    assert code == 0, said
    return out


def pages(site: Path) -> dict[str, str]:
    return {path.relative_to(site).as_posix(): path.read_text(encoding="utf-8") for path in site.rglob("*.html")}


def test_site_has_a_page_of_every_rule_and_names_each_in_the_navigation(site: Path) -> None:
    index = (site / "rules" / "index.html").read_text(encoding="utf-8")
    navigation = index.partition('<nav class="md-nav md-nav--primary')[2].partition("</nav>\n</div>")[0]
    for rule in RULES:
        assert (site / "rules" / f"{rule.code}.html").is_file()
        assert f'href="{rule.code}.html"' in navigation, rule.code


def test_site_holds_pages_and_nothing_of_what_makes_them(site: Path) -> None:
    assert [path.name for path in site.rglob("*.py*")] == []


def test_site_asks_the_network_for_nothing(site: Path) -> None:
    for name, text in pages(site).items():
        wanted = [link for link in LOADED.findall(text) if re.match(r"\w+:|//", link)]
        assert wanted == [], name
    for path in site.rglob("*.css"):
        assert not re.search(r"""url\(["']?(?:https?:)?//|@import""", path.read_text(encoding="utf-8")), path.name


def test_links_out_of_docs_lead_to_copies_on_the_site(site: Path) -> None:
    found = pages(site)
    assert 'href="benchmarks/index.html"' in found["pairing.html"]
    assert 'href="../pairing.html"' in found["benchmarks/index.html"]
    assert 'href="../gqacheck/report/schema/gqacheck-1.json"' in found["how-to/reports.html"]
    assert (site / "gqacheck" / "report" / "schema" / "gqacheck-1.json").is_file()
    assert {name for name, text in found.items() if re.search(r'href="(?!\w+:)[^"]*\.md["#]', text)} == set()
    assert not list(site.rglob("*.py"))


def test_broken_link_fails_the_build_and_is_named(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "docs", tmp_path / "docs", ignore=shutil.ignore_patterns("__pycache__"))
    for name in BESIDE:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    page = tmp_path / "docs" / "install.md"
    page.write_text(page.read_text(encoding="utf-8") + "\n[there](nowhere.md)\n", encoding="utf-8")
    code, said = build(tmp_path, tmp_path / "out")
    assert code == 1
    assert "'install.md' contains a link 'nowhere.md'" in said
    assert "Aborted with 1 warnings" in said


def test_search_works_from_the_disk_in_a_browser(site: Path) -> None:
    from chromium import Missing, chromium

    try:
        with chromium() as browser:
            browser.open(site / "how-to" / "pytest.html", width=1300)
            browser.command("Page.bringToFront")
            where = "const r = document.querySelector('.md-search__input').getBoundingClientRect(); return [r.x, r.y]"
            x, y = browser.run(where)
            for kind in ("mousePressed", "mouseReleased"):
                place = {"x": x + 20, "y": y + 10, "button": "left", "clickCount": 1}
                browser.command("Input.dispatchMouseEvent", type=kind, **place)
            browser.command("Input.insertText", text="regrouped")
            browser.command("Input.dispatchKeyEvent", type="keyUp", key="d")
            said = ""
            for _ in range(150):
                said = browser.run("return document.querySelector('.md-search-result').innerText")
                if "head-regrouped" in said:
                    break
                time.sleep(0.2)
            assert "GQA601 head-regrouped" in said
            assert [url for url in browser.requests() if not url.startswith(("file:", "data:"))] == []
            assert browser.run("return window.happened") == []
    except Missing as error:
        pytest.skip(str(error))


def test_codes_of_rules_are_links_but_not_in_code_and_not_on_their_own_page(site: Path) -> None:
    def article(code: str) -> str:
        text = (site / "rules" / f"{code}.html").read_text(encoding="utf-8")
        return text.partition("<article")[2].partition("</article")[0]

    assert '<a href="GQA601.html">GQA601</a>' in article("GQA104")
    assert '<a href="GQA607.html">' not in article("GQA607")
    assert "E GQA601 head-regrouped" in (site / "tutorial.html").read_text(encoding="utf-8")
