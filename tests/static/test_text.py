"""Text from files never reaches a terminal raw."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from gqacheck.text import printable, printable_list


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("model.layers.0.weight", "model.layers.0.weight"),
        ("", ""),
        ("权重 é", "权重 é"),
        ("a\x1b[31mb", r"a\x1b[31mb"),
        ("a\nb\r\t", r"a\nb\r\t"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("\ud800", r"\ud800"),
        ("\U000e0001", r"\U000e0001"),
        (17, "17"),
    ],
)
def test_printable_escapes_what_a_terminal_would_obey(text: object, shown: str) -> None:
    assert printable(text) == shown


def test_printable_long_text_keeps_both_ends() -> None:
    shown = printable("a" * 500 + "z" * 500, 30)
    assert len(shown) == 30
    assert shown.startswith("aaaa")
    assert shown.endswith("zzzz")
    assert "…" in shown
    assert printable("x" * 30, 30) == "x" * 30


@hypothesis_settings(derandomize=True)
@given(st.text(st.characters(codec=None)), st.integers(2, 60))
def test_printable_any_text_is_one_bounded_printable_line(text: str, limit: int) -> None:
    shown = printable(text, limit)
    assert shown.isprintable()
    assert len(shown) <= limit


def test_printable_list_counts_what_it_leaves_out() -> None:
    assert printable_list(["a", "b"]) == "a, b"
    assert printable_list(["a", "\x07", "c", "d", "e", "f"]) == r"a, \x07, c, d and 2 more"
    assert printable_list(map(str, range(1234)), 1) == "0 and 1,233 more"
