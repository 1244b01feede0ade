"""What may stand side by side: one text, one protocol, the same tokens; ratios to one base."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from saved_entries import SETTINGS, beside, entry, reading, sample

from gqacheck.compare.column import column_of
from gqacheck.compare.facts import Column
from gqacheck.compare.group import base_of_all, group_readings, group_texts, with_names


def columns(*entries: dict[str, Any], base: bool = False) -> tuple[Column, ...]:
    """Columns of these entries; the first is the base when told so."""
    from dataclasses import replace

    made = [column_of(one, "report") for one in entries]
    return with_names([replace(c, is_base=base and not i) for i, c in enumerate(made)])


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"fingerprint": "b" * 64}, "another text"),
        ({"protocol": "gptq-2048: ...", "protocol_name": "gptq-2048"}, "another protocol"),
        ({"protocol": "windows-512: no BOS"}, "another protocol"),
        ({"text_tokens": 9000}, "another tokenizer (the text has 9,000 tokens here and 8,204 above)"),
        ({"protocol": "", "protocol_name": ""}, "its protocol or its text is not known and another protocol"),
    ],
)
def test_group_of_what_is_not_comparable_is_two_rows_with_the_reason(changes: dict[str, Any], why: str) -> None:
    rows = group_readings(columns(entry("a", reading(20)), entry("b", reading(25) | changes)), None, None)
    assert [[cell is not None for cell in row.cells] for row in rows] == [[True, False], [False, True]]
    assert [row.apart for row in rows] == ["", why]


def test_group_of_the_same_text_under_another_name_is_one_row() -> None:
    made = columns(entry("a", reading(20, corpus="wikitext2")), entry("b", reading(25, corpus="wikitext2=file.txt")))
    (row,) = group_readings(made, None, None)
    assert [cell.reading.value for cell in row.cells if cell] == [20, 25]


def test_group_of_two_values_with_unknown_text_are_two_rows() -> None:
    made = columns(entry("a", reading(20, fingerprint="")), entry("b", reading(20, fingerprint="")))
    assert len(group_readings(made, None, None)) == 2


def test_group_of_a_report_that_measures_the_same_twice_shows_both() -> None:
    made = columns(entry("a", reading(20), reading(21)), entry("b", reading(22)))
    rows = group_readings(made, None, None)
    assert [[c.reading.value if c else None for c in row.cells] for row in rows] == [[20, 22], [21, None]]


KEY = st.tuples(st.sampled_from("ab"), st.sampled_from("pq"), st.sampled_from([1, 2]))


@settings(derandomize=True, deadline=None)
@given(st.lists(st.lists(KEY, max_size=4), min_size=1, max_size=4))
def test_group_loses_no_reading_and_mixes_none(keys: list[list[tuple[str, str, int]]]) -> None:
    made = columns(
        *(
            entry(str(n), *(reading(5, fingerprint=f, protocol=p, protocol_name=p, text_tokens=t) for f, p, t in each))
            for n, each in enumerate(keys)
        )
    )
    rows = group_readings(made, None, None)
    assert sum(cell is not None for row in rows for cell in row.cells) == sum(map(len, keys))
    for row in rows:
        for cell in filter(None, row.cells):
            found = cell.reading
            assert (found.fingerprint, found.protocol, found.text_tokens) == (
                row.fingerprint,
                row.protocol,
                row.text_tokens,
            )


def ratio_of(*entries: dict[str, Any]) -> tuple[float | None, str, str]:
    """Ratio, its way and why there is none, of the last of these beside the first, which is the base."""
    made = columns(*entries, base=True)
    rows = group_readings(made, 0, made[0].path)
    cell = next(row.cells[-1] for row in rows if row.cells[-1] is not None)
    assert cell is not None
    return (cell.ratio.value, cell.ratio.way, "") if cell.ratio else (None, "", cell.no_ratio)


def test_ratio_beside_the_same_base_is_the_one_of_the_check_with_its_error() -> None:
    made = columns(entry("p", reading(20)), entry("a", beside(30, 20), base={"path": "p"}), base=True)
    cell = group_readings(made, 0, "p")[0].cells[1]
    assert cell is not None
    assert cell.ratio is not None
    assert (cell.ratio.value, cell.ratio.way, cell.ratio.stderr) == (1.5, "same windows", pytest.approx(0.03))


def test_ratio_beside_another_base_is_taken_from_the_row() -> None:
    assert ratio_of(entry("p", reading(10)), entry("a", beside(30, 20), base={"path": "q"})) == (3.0, "quotient", "")


def test_ratio_without_a_base_in_the_report_is_taken_from_the_row() -> None:
    assert ratio_of(entry("p", reading(10)), entry("a", reading(30))) == (3.0, "quotient", "")


@pytest.mark.parametrize(
    ("base", "child", "why"),
    [
        (reading(10, complete=False, windows=3), reading(30), "not comparable"),
        (reading(10), reading(30, complete=False, windows=3), "not comparable"),
        (reading(10), reading(30, fingerprint="b"), "no base value"),
        (reading(0.0), reading(30), "no base value"),
        (reading(None), reading(30), "no base value"),
        (reading(None, value_text="inf"), reading(30), "no base value"),
        (reading(20), beside(30, 20, base_broken=True), "base broken"),
        (reading(10), beside(30, 20), "base differs"),
    ],
)
def test_ratio_that_would_compare_unlike_values_is_left_out(
    base: dict[str, Any], child: dict[str, Any], why: str
) -> None:
    assert ratio_of(entry("p", base), entry("a", child, base={"path": "p"})) == (None, "", why)


def test_ratio_of_an_infinite_value_is_infinite() -> None:
    assert ratio_of(entry("p", reading(10)), entry("a", reading(None, value_text="inf")))[0] == math.inf


def test_base_of_reports_beside_different_bases_is_none_with_a_note() -> None:
    made = columns(*(entry(x, beside(30, 20), base={"path": f"p{x}"}) for x in "ab"))
    path, note = base_of_all(made, None)
    assert path is None
    assert "pa and pb; name one with --base" in note
    rows = group_readings(made, None, path)
    assert all(cell is not None and cell.ratio is None for cell in rows[0].cells)


def test_group_of_texts_with_other_settings_is_two_rows() -> None:
    made = []
    for name, words in (("a", SETTINGS), ("b", SETTINGS), ("c", "8 texts, greedy")):
        one = entry(name)
        one["metrics"]["generation"] = {"settings": words, "judged": ["english"], "samples": [sample([])]}
        made.append(one)
    rows = group_texts(columns(*made))
    assert [[cell is not None for cell in row.cells] for row in rows] == [[True, True, False], [False, False, True]]


@settings(derandomize=True, deadline=None)
@given(st.lists(st.text("ab/.", max_size=6), min_size=1, max_size=6))
def test_names_of_columns_are_never_alike(paths: list[str]) -> None:
    names = [column.name for column in columns(*(entry(path) for path in paths))]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["x/a", "x/b.bin"], ["a", "b.bin"]),
        (["x/a/pytorch_model.bin", "x/b/pytorch_model.bin"], ["a", "b"]),
        (["x/1/out", "x/2/out"], ["1/out", "2/out"]),
        (["m", "m"], ["m", "m #2"]),
        (["m #2", "m", "m"], ["m #2", "m", "m #3"]),
        (["pytorch_model.bin", "y"], ["pytorch_model.bin", "y"]),
    ],
)
def test_names_are_the_shortest_ends_that_tell_columns_apart(paths: list[str], names: list[str]) -> None:
    assert [column.name for column in columns(*(entry(path) for path in paths))] == names
