"""What is wrong with one text: counted by hand, and on texts where nothing is."""

from __future__ import annotations

import random
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gqacheck.runtime.degenerate import (
    LOOP_TOKENS,
    ZLIB_RATIO,
    control_characters,
    loop_period,
    mixed_scripts,
    repeated_ngrams,
    replacements,
    zlib_ratio,
)

SMOKE = Path(__file__).parents[3] / "gqacheck" / "data" / "smoke"
IDS = st.lists(st.integers(0, 5), max_size=80)


def test_repeated_ngrams_counts_those_that_occurred_before() -> None:
    assert repeated_ngrams([1, 2, 3, 4, 1, 2, 3, 4]) == pytest.approx(1 / 5)
    assert repeated_ngrams([7] * 13) == pytest.approx(9 / 10)
    assert repeated_ngrams(range(100)) == 0
    assert repeated_ngrams([1, 1], n=1) == 0.5


@given(IDS)
def test_repeated_ngrams_of_anything_is_the_share_left_after_removing_doubles(ids: list[int]) -> None:
    grams = [tuple(ids[i : i + 4]) for i in range(len(ids) - 3)]
    seen: list[tuple[int, ...]] = []
    again = 0
    for gram in grams:
        again += gram in seen
        seen.append(gram)
    assert repeated_ngrams(ids) == pytest.approx(again / len(grams) if grams else 0)


@pytest.mark.parametrize(
    ("ids", "period"),
    [
        ([7] * LOOP_TOKENS, 1),
        ([7] * (LOOP_TOKENS - 1), 0),
        ([*range(100, 140), *[1, 2, 3] * 11], 3),
        ([*range(100, 140), *[1, 2, 3] * 11, 1, 2], 3),  # cut off inside a turn
        ([*[1, 2, 3] * 30, 9], 0),  # it found the way out
        ([*range(20)] * 3, 20),
        ([*range(20)] * 2, 0),
        ([*range(20)] * 2 + [*range(19)], 0),  # one id short of three turns
        ([*range(100, 160), *([*range(20)] * 2)], 0),  # two turns, however much stands before
        ([], 0),
        ([1], 0),
    ],
)
def test_loop_period_is_that_of_an_exact_tail(ids: list[int], period: int) -> None:
    assert loop_period(ids) == period


@given(st.lists(st.integers(0, 2), max_size=120))
def test_loop_period_of_anything_is_the_smallest_that_covers_enough(ids: list[int]) -> None:
    def loops(period: int) -> bool:
        need = max(LOOP_TOKENS, 3 * period)
        return len(ids) >= need and all(ids[-i] == ids[-i - period] for i in range(1, need - period + 1))

    assert loop_period(ids) == next((p for p in range(1, 41) if loops(p)), 0)


def test_zlib_ratio_is_bytes_by_deflated_bytes() -> None:
    text = "le chat noir " * 20
    assert zlib_ratio(text) == pytest.approx(len(text) / len(zlib.compress(text.encode(), 9)))
    assert zlib_ratio(text) > ZLIB_RATIO
    assert zlib_ratio("") == 0
    assert zlib_ratio("\ud800 lone surrogate") > 0


@pytest.mark.parametrize(
    ("text", "count"), [("a\ufffdb", 1), ("ab\ufffd\ufffd", 0), ("\ufffda\ufffd", 1), ("\ufffd", 0), ("plain", 0)]
)
def test_replacements_are_counted_inside_alone(text: str, count: int) -> None:
    assert replacements(text) == count


def test_control_characters_leave_layout_out() -> None:
    assert control_characters("a\n\tb\r\nc") == 0
    assert control_characters("\x00\x1b[31m\x7f\x85") == 4
    assert control_characters("zero\u200bwidth, right\u202eto left") == 0  # format characters are no controls


@pytest.mark.parametrize(
    "text",
    [
        "Plain English with a naïve café.",
        "我们用 Python 编程，变量叫 α 和 β。",
        "カタカナとひらがなと漢字と English",
        "한국어 문장 안의 漢字 and English",
        "Москва is the capital, Санкт-Петербург is not, says the guide",
        "the angle α and the angle β, the group Σ, the letter ж, the letter ש",
        "Names: 北京市 in Chinese, and a long English sentence about many other things that go on and on, Москва once, "
        + "and more of the same in plain English, word after word after word, until it is long enough. " * 3,
        "𝒻 = 𝑚𝑎, ＡＢＣ ½ ² ª",
        "",
        "1234 !?",
    ],
)
def test_mixed_scripts_of_ordinary_text_are_none(text: str) -> None:
    assert mixed_scripts(text) == ()


def test_mixed_scripts_of_salad_are_named_most_frequent_first() -> None:
    salad = "words and more words привет мир слово عربي عربي 한국"
    assert mixed_scripts(salad)[:2] == ("Latin", "Cyrillic")
    assert set(mixed_scripts(salad)) == {"Latin", "Cyrillic", "Arabic"}  # two letters of Hangul are not enough
    assert "Han" in mixed_scripts("words 的一是不了 привет мир дело")


@given(st.text(max_size=200))
def test_every_measure_of_any_text_is_a_number(text: str) -> None:
    assert zlib_ratio(text) >= 0
    assert 0 <= replacements(text) <= len(text)
    assert 0 <= control_characters(text) <= len(text)
    assert len(mixed_scripts(text)) in (0, *range(3, 30))


@pytest.mark.parametrize("name", ["english.txt", "chinese.txt"])
def test_shipped_prose_has_no_fault(name: str) -> None:
    text = (SMOKE / name).read_text(encoding="utf-8")
    for start in range(0, len(text) - 400, 400):
        part = text[start : start + 400]
        assert zlib_ratio(part) < ZLIB_RATIO
        assert not replacements(part) + control_characters(part)
        assert mixed_scripts(part) == ()


def test_word_salad_is_not_seen_by_deflation() -> None:
    words = (SMOKE / "english.txt").read_text(encoding="utf-8").split()
    random.Random(1).shuffle(words)
    assert zlib_ratio(" ".join(words[:100])) < ZLIB_RATIO
