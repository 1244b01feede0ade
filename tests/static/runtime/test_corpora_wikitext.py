"""Wikitext as its readers see it: the raw file out of the rows, pages, and lm-evaluation-harness's detokeniser."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gqacheck.runtime.corpora.wikitext import detokenised, pages_of, raw_of, rows_of
from tests.export.strangers import consumer

RAW = (
    " \n = Robert Boulter = \n \n Robert Boulter is an English film , television and theatre actor . \n"
    " \n = = Career = = \n \n = = = 2000 – 2005 = = = \n \n He was 5 @.@ 2 , \" so \" ( he said ) 's . \n"
    " \n = Du Fu = \n \n Du Fu ( Chinese : 杜甫 ; 712 – 770 ) was 10 @,@ 000 @-@ fold . \n"
)  # fmt: skip
PIECES = [
    " ", "\n", "\t", "'", '"', "(", ")", "[", "]", "{", "}", "=", "/", "°", "N", "s", "7", " 's ", " @-@ ", " @,@ ",
    " @.@ ", " : ", " . ", " , ", "= = ", "/' 7/", "s '", "\u00a0", "\u3000", "\x1c", "中", "\\1", "e\u0301",
]  # fmt: skip


@pytest.fixture(scope="module")
def theirs() -> Callable[[dict[str, str]], str]:
    """lm-evaluation-harness's own function."""
    path = consumer("lm-eval") / "lm_eval" / "tasks" / "wikitext" / "preprocess_wikitext.py"
    spec = importlib.util.spec_from_file_location("preprocess_wikitext", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.wikitext_detokenizer


@settings(max_examples=600, deadline=None)
@example(RAW)
@example("a N b ° c \n d 's = = = = e = = = f = = g s ' h /' 7/ i @-@ j @,@ k @.@ l : m ; n . o ! p ? q , r")
@example("( a ) [ b ] { c } \" d \" ' e ' ( f [ g ) h ] ( ( i ) ) '\n' ()")
@given(st.lists(st.sampled_from(PIECES), max_size=30).map("".join) | st.text(max_size=60))
def test_detokenised_page_is_that_of_the_harness(theirs, page):
    assert detokenised(page) == theirs({"page": page})


def test_detokenised_page_reads_as_text_does():
    text = detokenised(pages_of(RAW)[0])
    assert "film, television and theatre actor.\n" in text
    assert '"so" (he said)\'s' in text
    assert "5.2" in text


def test_detokenised_hostile_page_takes_time_in_proportion():
    page = "(" + " " * 200_000 + "[" * 200_000  # regular expressions with white space on both sides would need hours
    assert detokenised(page) == page


def test_rows_hold_nothing_for_a_blank_line_and_give_the_raw_file_back():
    rows = rows_of(RAW)
    assert rows[:3] == ("", " = Robert Boulter = \n", "")
    assert raw_of(rows) == RAW
    assert rows_of(RAW.replace("\n", "\r\n")) == rows
    assert rows_of("a\nb") == ("a\n", "b")


@given(
    st.lists(st.sampled_from([" \n", " = T = \n", " = = S = = \n", " text \n", " = odd \n"]), max_size=20).map("".join)
)
def test_pages_put_together_are_the_raw_file_and_each_has_one_title_at_its_start(raw):
    pages = pages_of(raw)
    assert "\n".join(pages).strip() == raw.strip()
    for page in pages[1:]:
        assert page.startswith(" = T = ")
        assert page.count(" = T = \n") <= 1


@pytest.mark.parametrize("line", [" = = S = = ", " = = = S = = = ", " = Odd = = = ", " = no end", "x = y =", "=T="])
def test_pages_do_not_start_at_a_line_that_is_no_title(line):
    assert len(pages_of(f" = T = \n {line}\n text \n")) == 1


def test_pages_start_at_their_title_and_keep_sections():
    first, second = pages_of(RAW)
    assert first.startswith(" = Robert Boulter = \n \n Robert")
    assert " = = Career = = \n" in first
    assert second.startswith(" = Du Fu = \n")
