"""Comparisons that run models: the numbers are those of the check, from a checkpoint and from its report alike."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from fixtures.zoo import ZOO, build_case
from gqacheck.cli import main
from gqacheck.compare import compare
from gqacheck.compare.facts import Table
from gqacheck.runtime import speed

FIXTURES = Path(__file__).parents[2] / "fixtures"
PARENT = str(FIXTURES / "llama-32x8")
LIMIT = 16


@pytest.fixture(scope="module")
def children(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The truncated child and the sound one, as files."""
    folder = tmp_path_factory.mktemp("zoo")
    cases = {case.name: case for case in ZOO}
    return {name: str(build_case(cases[name], folder)) for name in ("llama-truncated-bin", "llama-groups-legacy")}


def run(*words: str) -> tuple[int, str]:
    """Exit code and standard output; nothing on standard error."""
    out, err = io.StringIO(), io.StringIO()
    code = main(words, out, err)
    assert err.getvalue() == ""
    return code, out.getvalue()


@pytest.fixture(scope="module")
def table(children: dict[str, str]) -> Table:
    """Parent, truncated and sound child on a few windows."""
    return compare(list(children.values()), base=PARENT, ppl=["smoke"], limit=LIMIT)


def test_compare_of_the_fixtures_tells_the_broken_child_from_the_sound_one(table: Table) -> None:
    base, truncated, groups = table.columns
    assert (base.verdict, truncated.verdict, groups.verdict) == ("pass", "fail", "pass")
    assert "GQA601" in truncated.errors
    (row,) = table.readings
    cells = [cell for cell in row.cells if cell is not None]
    assert len(cells) == 3
    assert cells[0].ratio is None
    assert cells[1].ratio is not None
    assert cells[2].ratio is not None
    assert cells[1].ratio.value > 5
    assert 0.9 < cells[2].ratio.value < 1.5
    assert cells[2].ratio.way == "same windows"
    assert [cell.reading.not_comparable for cell in cells] == [
        f"{LIMIT} of 86 windows",
        "stopped at 4 of 86",
        f"{LIMIT} of 86 windows",
    ]
    assert table.exit_code == 0


def test_compare_of_saved_reports_makes_the_same_table(children: dict[str, str], table: Table, tmp_path: Path) -> None:
    code, out = run(*children.values(), "--base", PARENT, "--ppl", "smoke", "--limit", str(LIMIT), "--format", "json")
    assert code == 1
    (tmp_path / "children.json").write_text(out)
    code, out = run(PARENT, "--ppl", "smoke", "--limit", str(LIMIT), "--format", "json")
    (tmp_path / "parent.json").write_text(out)
    again = compare([str(tmp_path / "children.json")], base=str(tmp_path / "parent.json"))
    assert again.readings == table.readings
    assert [c.layers for c in again.columns] == [c.layers for c in table.columns]
    assert {c.source for c in again.columns} == {"report"}


def test_compare_of_another_tokenizer_never_shares_a_row(children: dict[str, str]) -> None:
    other = str(FIXTURES / "qwen2-28x4")
    made = compare([children["llama-groups-legacy"], other], ppl=["smoke@windows-64"], limit=2)
    assert [[cell is not None for cell in row.cells] for row in made.readings] == [[True, False], [False, True]]
    assert "another tokenizer" in made.readings[1].apart


def test_compare_with_a_corpus_that_is_not_there_is_3_in_every_column(children: dict[str, str]) -> None:
    code, out = run("compare", *children.values(), "--ppl", "gone.txt", "--format", "json")
    data: Any = json.loads(out)
    assert code == 3
    assert [c["missing"] for c in data["columns"]] == [["perplexity"]] * 2
    assert all("gone.txt" in c["problem"] for c in data["columns"])


def test_compare_with_speed_measures_every_checkpoint_and_no_report(
    children: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "LEAST_SECONDS", 0.0)
    _, out = run(children["llama-groups-legacy"], "--format", "json")
    (tmp_path / "r.json").write_text(out)
    code, out = run("compare", children["llama-truncated-bin"], str(tmp_path / "r.json"), "--base", PARENT, "--speed")
    assert code == 0
    line = next(line for line in out.splitlines() if "decode tok/s" in line)
    assert len(line.split()) == 5  # decode tok/s [1] and two values
    assert "in turns with base, all in memory together" in out
