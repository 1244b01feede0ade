"""Reports out of files that anybody may have written: read within bounds, and never trusted."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from saved_entries import HOSTILE, beside, entry, layer, reading, report, sample, write

from gqacheck.compare import compare
from gqacheck.compare import saved as saved_module
from gqacheck.compare.column import column_of
from gqacheck.compare.json import render_json
from gqacheck.compare.markdown import render_markdown
from gqacheck.compare.saved import is_report, read_report
from gqacheck.compare.text import compare_blocks
from gqacheck.compare.untrusted import real, text, whole
from gqacheck.errors import GqacheckError, ReadError
from gqacheck.report.document import plain

WRONG = st.sampled_from(
    [None, True, -1, 0, 3.5, 1e308, 10**400, -(10**30), math.nan, math.inf, "", "inf", HOSTILE, "x" * 3000, [], [[]],
     {}, {"a": 1}, [1, "a", None], "error", "pass", "full", [{}], [{"index": "x"}], [None] * 5000]
)  # fmt: skip


def full() -> dict[str, Any]:
    """An entry in which everything that is read is there."""
    generation = {"settings": "s", "judged": ["english"], "samples": [sample(["loops"]), sample([])]}
    made = entry("a", beside(30, 20), base={"path": "p"}, findings=[{"code": "GQA601", "severity": "error"}])
    made["metrics"]["generation"] = generation
    return made


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where every value of a document stands."""
    found = [path] if path else []
    pairs = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    for key, inner in pairs:
        found += places(inner, (*path, key))
    return found


PLACES = places(report(full()))


@settings(
    derandomize=True, deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    changes=st.lists(st.tuples(st.sampled_from(PLACES), st.one_of(WRONG, st.just("DELETE"))), min_size=1, max_size=4)
)
def test_report_with_any_wrong_values_is_a_table_or_one_sentence(
    tmp_path: Path, changes: list[tuple[tuple[Any, ...], Any]]
) -> None:
    made = report(full())
    for place, value in changes:
        owner: Any = made
        try:
            for key in place[:-1]:
                owner = owner[key]
            if value == "DELETE":
                del owner[place[-1]]
            else:
                owner[place[-1]] = value
        except (KeyError, IndexError, TypeError):
            continue
    hostile = tmp_path / "hostile.json"
    hostile.write_text(json.dumps(made), encoding="utf-8")
    good = write(tmp_path / "good.json", entry("b", reading(20)))
    if not is_report(str(hostile)):
        return
    said = ""
    try:
        table = compare([str(hostile), good])
    except GqacheckError as error:
        said = str(error)
    if said:
        assert "\n" not in said
        assert len(said) < 1000
        return
    shown = plain(compare_blocks(table))
    assert "\x1b" not in shown
    json.loads(render_json(table))
    lines = [line for line in render_markdown(table).splitlines() if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1


@settings(derandomize=True, deadline=None, max_examples=100)
@given(
    st.recursive(
        WRONG, lambda inner: st.dictionaries(st.sampled_from(["path", "metrics", "geometry", "layers", "x"]), inner)
    )
)
def test_column_of_any_value_is_a_column_with_unknowns(value: Any) -> None:
    column = column_of(
        value if isinstance(value, dict) else {"metrics": value, "geometry": {"layers": value}}, "report"
    )
    assert column.verdict == "unknown"
    assert column.parameters is None
    assert len(column.path) <= 1000


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'{"schema": "gqacheck/1", ', "cannot be read as a report: it is not JSON"),
        (b'{"schema": "gqacheck/2", "checkpoints": []}', "its schema is gqacheck/2, not gqacheck/1"),
        (b'{"schema": "gqacheck-compare/1"}', "it is a table of gqacheck compare; give the reports"),
        (b'{"schema": "gqacheck/1", "checkpoints": []}', "holds no checkpoints"),
        (b'{"schema": "gqacheck/1", "checkpoints": {"a": 1}}', "holds no checkpoints"),
        (b'{"schema": "gqacheck/1", "checkpoints": [1, "a"]}', "holds no checkpoints"),
        (b'{"schema": "gqacheck/1", "checkpoints": [' + b"{}," * 64 + b"{}]}", "holds 65 checkpoints"),
        (b'{"schema": "gqacheck/1", "a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "cannot be read as a report"),
        (b'{"schema": "gqacheck/1", "a": ' + b"9" * 5000 + b"}", "a number of 5,000 digits"),
        (b'{"schema": "gqacheck/1", "a": "\xff"}', "it is not UTF-8 text"),
    ],
)
def test_read_report_on_what_is_none_says_so_in_one_sentence(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "r.json"
    path.write_bytes(content)
    assert is_report(str(path))
    with pytest.raises(ReadError, match=r"r\.json") as caught:
        read_report(str(path))
    assert says in str(caught.value)


def test_read_report_larger_than_the_limit_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saved_module, "LARGEST", 2 << 20)
    path = tmp_path / "r.json"
    path.write_bytes(b'{"schema": "gqacheck/1",' + b" " * (3 << 20))
    with pytest.raises(ReadError, match="larger than 2 MB, which no report is"):
        read_report(str(path))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_read_report_as_a_shell_of_windows_writes_it(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "r.json"
    path.write_text(json.dumps(report(entry("模型")), ensure_ascii=False, indent=1), encoding=encoding)
    assert is_report(str(path))
    assert read_report(str(path))[0]["path"] == "模型"


def test_read_report_with_sorted_keys_is_still_a_report(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text(json.dumps(report(*[entry(f"m{i}") for i in range(5)]), sort_keys=True))
    assert path.read_bytes()[:4096].find(b"schema") < 0
    assert is_report(str(path))


@pytest.mark.parametrize(
    "content", [b'{"weight_map": {}}', b'{"model_type": "llama"}', b"PK\x03\x04", b"", b'[{"schema": "gqacheck/1"}]']
)
def test_is_report_is_false_for_a_checkpoint_or_its_config(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    assert not is_report(str(path))
    assert not is_report(str(tmp_path))
    assert not is_report("no such file\0")


def test_column_of_a_report_keeps_infinities_and_nan() -> None:
    made = entry("a", reading(None, value_text="inf"), reading(None, value_text="nan", fingerprint="b"), reading(-3.0))
    values = [one.value for one in column_of(made, "report").readings]
    assert values[0] == math.inf
    assert values[1] is not None
    assert math.isnan(values[1])
    assert values[2] is None


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({}, ""),
        ({"complete": False, "windows": 4}, "4 of 16 windows"),
        ({"complete": True, "windows": 4}, "4 of 16 windows"),
        ({"complete": "yes"}, "16 of 16 windows"),
        ({"complete": False, "windows": None}, "part of the text"),
        ({"stopped_early": True, "complete": False, "windows": 2}, "stopped at 2 of 16"),
        ({"stopped_early": True, "windows": []}, "stopped early"),
        ({"fingerprint": ""}, "unknown text"),
        ({"protocol": 3}, "unknown protocol"),
        ({"value": "20"}, "no value"),
    ],
)
def test_column_of_a_value_that_is_not_whole_says_why_it_is_not_comparable(changes: dict[str, Any], why: str) -> None:
    (found,) = column_of(entry("a", reading(20.0) | changes), "report").readings
    assert found.not_comparable == why


def test_column_of_generated_texts_counts_judged_languages_only() -> None:
    made = entry("a")
    made["metrics"]["generation"] = {
        "settings": "s",
        "judged": ["english"],
        "samples": [sample(["loops", "salad"], rep_4=0.5), sample([], rep_4=0.1), sample(["salad"], "chinese", 0.9)],
    }
    texts = column_of(made, "report").texts
    assert texts is not None
    assert (texts.judged, texts.flagged, texts.rep_4) == (2, 1, pytest.approx(0.3))


def test_column_of_a_report_whose_required_part_was_not_checked_says_which() -> None:
    made = entry("a", verdict="error", exit_code=3, notes=["pairing was not checked, and --require names it"])
    assert column_of(made, "report").problem == "pairing was not checked, and --require names it"


def test_column_of_layers_that_are_no_layers_is_unknown() -> None:
    assert column_of(entry("a", geometry={"layers": [layer(0), 3]}), "report").layers is None
    assert column_of(entry("a", geometry={"layers": [layer(0)] * 5000}), "report").layers is None


@pytest.mark.parametrize("value", [-1, True, 1.0, "3", None, 10**30, [3]])
def test_whole_number_of_anything_else_is_unknown(value: Any) -> None:
    assert whole(value) is None
    assert whole(10**12) == 10**12


@pytest.mark.parametrize("value", [True, "3.5", [], 10**400])
def test_real_number_of_anything_else_is_unknown(value: Any) -> None:
    assert real({"a": value}, "a") is None
    assert real({"a": 3}, "a") == 3.0


def test_text_of_a_file_is_printable_and_bounded() -> None:
    assert text("a\x1b\n", 20) == "a\\x1b\\n"
    assert len(text("x" * 1000, 20)) == 20
    assert text(["a"]) == ""
