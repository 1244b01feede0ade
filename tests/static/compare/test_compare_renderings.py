"""The same table as text, Markdown and JSON: what a person sees, and nothing that a file could make of it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from saved_entries import HOSTILE, SETTINGS, beside, entry, layer, reading, sample, write

from gqacheck.compare import compare
from gqacheck.compare.facts import Speed, SpeedRow, Table
from gqacheck.compare.json import render_json
from gqacheck.compare.markdown import escape, render_markdown
from gqacheck.compare.text import compare_blocks
from gqacheck.report.document import plain
from gqacheck.report.terminal import render_terminal


def three(folder: Path) -> Table:
    """A parent, a broken and a healthy child, all from reports."""
    texts = {"settings": SETTINGS, "judged": ["english"], "samples": [sample(["salad"], rep_4=0.25)] * 4}
    broken = entry(
        "runs/truncated",
        beside(718107.2, 14.1) | {"complete": False, "stopped_early": True, "windows": 4},
        base={"path": "parent"},
        verdict="fail",
        exit_code=1,
        findings=[{"code": "GQA601", "severity": "error"}, {"code": "GQA011", "severity": "note"}],
    )
    broken["metrics"]["generation"] = texts
    children = write(
        folder / "children.json", broken, entry("runs/groups", beside(26.0, 14.1), base={"path": "parent"})
    )
    parent = entry(
        "parent", reading(14.1), parameters=8_030_261_248, geometry={"layers": [layer(i) for i in range(32)]}
    )
    return compare([children], base=write(folder / "parent.json", parent))


def test_text_of_three_models_is_the_table_people_make_by_hand(tmp_path: Path) -> None:
    shown = plain(compare_blocks(three(tmp_path)))
    table = shown.split("\n\n")[0]
    assert max(map(len, table.splitlines())) <= 100
    rows = [re.split(r"  +", line.strip()) for line in table.splitlines()]
    for row in (
        ["base", "truncated", "groups"],
        ["verdict", "PASS (exit 0)", "FAIL (exit 1)", "PASS (exit 0)"],
        ["errors", "GQA601"],
        ["parameters", "8.03 B", "6.63 B", "6.63 B"],
        ["of the base", "82.6 %", "82.6 %"],
        ["q:kv heads", "32:8", "32:8 in 0-3, 29-31", "32:8 in 0-3, 29-31"],
        ["and", "24:6 in 4-28", "24:6 in 4-28"],
        ["MLP width", "14336", "14336", "14336"],
        ["PPL smoke [1]", "14.10 ± 0.40", "718,107 ± 0.40", "26.00 ± 0.40"],
        ["NOT COMPARABLE", "stopped at 4 of 16"],
        ["of the base", "×50,930 ± 1,019", "×1.84 ± 0.04"],
        ["flagged texts [2]", "4 of 4"],
        ["mean rep-4", "0.25"],
    ):
        assert row in rows, (row, table)
    for part in ("windows-512: non-overlapping", "text 7a929927d444", "8,204 tokens", SETTINGS, "children.json says"):
        assert part in shown


def test_text_on_a_narrow_terminal_keeps_every_number(tmp_path: Path) -> None:
    table = three(tmp_path)
    narrow = render_terminal(compare_blocks(table), width=40, colour=False)
    assert max(map(len, narrow.splitlines())) <= 40
    flat = " ".join(narrow.split())
    for part in ("718,107", "×1.84 ± 0.04", "24:6 in 4-28", "6.63 B"):
        assert part in flat


def test_markdown_of_three_models_has_one_cell_per_column(tmp_path: Path) -> None:
    lines = [line for line in render_markdown(three(tmp_path)).splitlines() if line.startswith("|")]
    assert lines[1] == "| --- | ---: | ---: | ---: |"
    assert "| q:kv heads | 32:8 | 32:8 in 0-3, 29-31; 24:6 in 4-28 | 32:8 in 0-3, 29-31; 24:6 in 4-28 |" in lines
    assert {line.count("|") for line in lines} == {5}


def test_markdown_of_hostile_strings_has_no_markup_of_theirs(tmp_path: Path) -> None:
    bad = entry(HOSTILE, reading(20, corpus=HOSTILE, protocol=HOSTILE), error=HOSTILE, verdict="error", exit_code=3)
    shown = render_markdown(compare([write(tmp_path / "a.json", bad, entry("b"))]))
    for line in shown.splitlines():
        if line.startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", line)) == 4
    ours = shown.replace("<!-- -->", "")
    assert not re.findall(r"(?<!\\)[<`]", ours)
    assert not re.findall(r"(?<!\\)\!(?<!\\)\[", shown)
    assert "http:" not in shown
    assert "@you" not in shown
    assert "\x1b" not in shown


def test_markdown_of_a_pipe_in_a_name_stays_in_its_cell(tmp_path: Path) -> None:
    made = compare([write(tmp_path / "a.json", entry("a|b", reading(20, corpus="c|d")), entry("`x`"))])
    lines = render_markdown(made).splitlines()
    assert lines[0] == "|  | a\\|b | \\`x\\` |"
    assert any(line.startswith("| PPL c\\|d ") for line in lines)


def test_escape_leaves_plain_words_alone_and_keeps_them_on_one_line() -> None:
    assert escape("llama 24:6, 1.5 ± 0.1") == "llama 24:6, 1.5 ± 0.1"
    assert "\n" not in escape("a\nb")


def test_text_of_hostile_strings_holds_no_control_characters(tmp_path: Path) -> None:
    bad = entry(HOSTILE, reading(20, corpus=HOSTILE, protocol=HOSTILE), error=HOSTILE, verdict="error", exit_code=3)
    table = compare([write(tmp_path / "a.json", bad, entry("b"))])
    assert "\x1b" not in plain(compare_blocks(table))
    assert "\x1b" not in render_terminal(compare_blocks(table), width=100, colour=False)
    assert table.exit_code == 3


def test_json_has_the_schema_and_a_value_per_column(tmp_path: Path) -> None:
    data = json.loads(render_json(three(tmp_path)))
    assert list(data) == [
        "schema", "version", "exit_code", "base", "base_path", "columns", "perplexity", "generation", "speed", "notes"
    ]  # fmt: skip
    assert (data["schema"], data["exit_code"], data["base"], data["speed"]) == ("gqacheck-compare/1", 0, 0, None)
    (row,) = data["perplexity"]
    assert [value["comparable"] for value in row["values"]] == [True, False, True]
    assert row["values"][1]["not_comparable"] == "stopped at 4 of 16"
    assert row["values"][2]["ratio_way"] == "same windows"
    assert [one and one["flagged"] for one in data["generation"][0]["values"]] == [None, 4, None]


def test_json_of_an_infinite_value_is_valid(tmp_path: Path) -> None:
    table = compare([write(tmp_path / "a.json", entry("a", reading(None, value_text="inf")), entry("b"))])
    value = json.loads(render_json(table))["perplexity"][0]["values"][0]
    assert (value["value"], value["value_text"]) == (None, "inf")


def test_heads_of_scattered_layers_are_summed_up(tmp_path: Path) -> None:
    layers = [layer(i, 24 if i % 2 else 32, 8, 1000 + i) for i in range(32)]
    shown = plain(
        compare_blocks(compare([write(tmp_path / "a.json", entry("a", geometry={"layers": layers}), entry("b"))]))
    )
    assert "32:8 ×16" in shown
    assert "24:8 ×16" in shown
    assert "27 other widths" in shown


def speeds(*cells: Speed | None) -> SpeedRow:
    return SpeedRow("batch 1", 0, cells)


def test_speed_is_the_median_of_the_rounds_with_the_spread_of_the_ratios(tmp_path: Path) -> None:
    from dataclasses import replace

    made = replace(
        three(tmp_path),
        speed=speeds(
            Speed((100, 110, 90), (5, 6, 7)),
            None,
            Speed((120, 130, 110), (8, 8, 8), (1.2, 1.18, 1.22), (1.6, 1.33, 1.14)),
        ),
    )
    rows = [re.split(r"  +", line.strip()) for line in plain(compare_blocks(made)).splitlines()]
    assert ["prefill tok/s [3]", "100", "120"] in rows
    assert ["of base", "×1.20 (1.18-1.22)"] in rows
    assert ["decode tok/s [3]", "6.00", "8.00"] in rows
    data: Any = json.loads(render_json(made))["speed"]
    assert data["values"][1] is None
    assert data["values"][2]["decode_ratio"]["least"] == 1.14
