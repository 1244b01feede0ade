"""Rows of JSON files: the column that is read, and everything in a file of unknown origin that is no text."""

from __future__ import annotations

import contextlib
import gzip
import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gqacheck.errors import ReadError, UsageError
from gqacheck.runtime.corpora import files
from gqacheck.runtime.corpora.files import read_rows

ROWS = [{"id": 1, "text": "one, 一"}, {"id": 2, "text": "two\nlines"}, {"id": 3, "text": ""}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", LINES),
        ("a.ndjson", "\n" + LINES.replace("\n", "\r\n")),
        ("a.json", LINES),
        ("a.json", json.dumps(ROWS, indent=1)),
        ("a.json", "\ufeff" + json.dumps(ROWS)),
        ("a.jsonl.gz", LINES),
        ("A.JSON.GZ", LINES),
    ],
)
def test_read_rows_of_every_json_form_gives_the_same_texts(name, content, tmp_path):
    path = tmp_path / name
    data = content.encode()
    path.write_bytes(gzip.compress(data) if name.lower().endswith("gz") else data)
    assert read_rows(str(path)).texts == ("one, 一", "two\nlines", "")


def test_read_rows_with_a_limit_stops_there_and_never_looks_further(tmp_path):
    (tmp_path / "a.jsonl").write_text(LINES + "not json")
    assert read_rows(str(tmp_path / "a.jsonl"), limit=2).texts == ("one, 一", "two\nlines")
    with pytest.raises(ReadError, match=r"row 4 of .* is not JSON"):
        read_rows(str(tmp_path / "a.jsonl"))


@pytest.mark.parametrize(
    ("row", "column", "outcome"),
    [
        ({"body": "b", "n": 1}, "", "b"),
        ({"title": "t", "text": "x"}, "", "x"),
        ({"title": "t", "sentence": "s"}, "", "s"),
        ({"title": "t", "text": "x"}, "title", "t"),
        ({"title": "t", "body": "b"}, "", "has the text columns title, body: say which one"),
        ({"n": 1}, "", "has no column of text; it has n"),
        ({"n": 1, "m": "x"}, "mm", "has no column mm; it has n, m"),
        ({"n": 1, "m": "x"}, "n", "holds int, not text"),
        ({"\x1b[31m": "x", "b": "y"}, "", r"has the text columns \\x1b\[31m, b"),
    ],
)
def test_read_rows_chooses_the_only_text_column_or_says_which_there_are(row, column, outcome, tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    if " " not in outcome:
        found = read_rows(str(tmp_path / "a.jsonl"), column)
        assert found.texts == (outcome,)
        assert row[found.column] == outcome
        return
    with pytest.raises((UsageError, ReadError), match=outcome):
        read_rows(str(tmp_path / "a.jsonl"), column)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
@pytest.mark.parametrize(
    ("rows", "outcome"),
    [
        ([{"id": "1", "text": None}, {"id": "2", "text": "x"}], "row 1 of .* holds nothing, not text"),
        ([{"id": "1"}, {"id": "2", "text": "x"}], "row 1 of .* has no column text"),
        ([{"id": "1", "sentence": 5}], "row 1 of .* holds int, not text"),
        ([{"id": "1", "text": ["x"]}, {"id": "2", "text": ["y"]}], "row 1 of .* holds list, not text"),
        ([{"id": 1, "body": None}, {"id": 2, "body": "x"}], "row 1 of .* holds nothing, not text"),
        ([{"a": None, "body": "x"}, {"a": "y", "body": "z"}], "has the text columns a, body"),
        ([{"a": "x", "body": "x"}, {"a": 5, "body": "z"}], "body"),
        ([{"n": 1}, {"n": 2}], "has no column of text"),
    ],
)
def test_column_is_chosen_by_the_first_rows_and_one_called_text_is_never_passed_over(rows, outcome, name, tmp_path):
    (tmp_path / name).write_text("\n".join(map(json.dumps, rows)))
    if " " not in outcome:
        assert read_rows(str(tmp_path / name)).column == outcome
        return
    with pytest.raises((UsageError, ReadError), match=outcome):
        read_rows(str(tmp_path / name))


@pytest.mark.parametrize("content", [{"data": [{"text": "x"}]}, {"text": 5}, {"n": 1}])
def test_file_in_which_there_is_no_text_could_not_be_read_and_is_no_wrong_usage(content, tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(ReadError):
        read_rows(str(tmp_path / "a.json"))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b'{"text": "a"}\n{"text": null}', "row 2 of .* holds nothing, not text"),
        (b'{"text": "a"}\n{"txt": "b"}', "row 2 of .* has no column text"),
        (b'{"text": "a\\u0000b"}', "holds a NUL"),
        (b'{"text": "a\\ud800"}', "holds half of a surrogate pair"),
        (b'{"text": "a", "text": "b"}', "names text twice"),
        (b'{"text": "a", "x": {"y": 1, "y": 2}}', "names y twice"),
        (b'{"text": "caf\xe9"}', r"is not UTF-8 \(byte 13\)"),
        (b'{"text": "a", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "is nested too deeply"),
        (b'{"text": "a", "x": [' + b"[]," * 600_000 + b"[]]}", "more than 1000000 parts"),
        (b'{"text": "a", "n": ' + b"9" * 5000 + b"}", "is not JSON"),
        (b'{"text": "a"', "is not JSON"),
        (b'"a"', "row 1 of .* is not a JSON object with columns"),
        (b"[1, 2]", "is not a JSON object with columns|row 1 of .* is not a JSON object"),
        (b"", "is empty"),
        (b'{"text": " "}', "is empty"),
        (b"\x80\x02}q\x00.", "is not UTF-8"),
    ],
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_read_rows_of_a_hostile_file_is_one_sentence(content, sentence, name, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ReadError, match=sentence) as caught:
        read_rows(str(tmp_path / name))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(tmp_path))


def test_read_rows_of_too_much_text_says_how_to_take_a_part(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_TEXT_BYTES", 100)
    (tmp_path / "a.jsonl").write_text('{"text": "%s"}\n' % ("x" * 30) * 10)
    with pytest.raises(ReadError, match="more than 100 bytes of text; read its first rows alone, with rows=1"):
        read_rows(str(tmp_path / "a.jsonl"))
    assert len(read_rows(str(tmp_path / "a.jsonl"), limit=3).texts) == 3
    (tmp_path / "b.json").write_text(json.dumps(ROWS * 3, indent=1))
    with pytest.raises(ReadError, match="one JSON list of more than 100 bytes"):
        read_rows(str(tmp_path / "b.json"))


def test_read_rows_of_a_compressed_bomb_or_a_torn_one_is_one_sentence(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b" " * (files.MAX_TEXT_BYTES + 9)))
    with pytest.raises(ReadError, match=f"a line of more than {files.MAX_TEXT_BYTES} bytes"):
        read_rows(str(path))
    whole = gzip.compress(LINES.encode() * 1000)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ReadError, match="cannot be decompressed"):
        read_rows(str(path))
    path.write_bytes(LINES.encode())
    with pytest.raises(ReadError, match="cannot be decompressed"):
        read_rows(str(path))


def test_read_rows_of_a_pipe_or_a_folder_does_not_wait(tmp_path):
    os.mkfifo(tmp_path / "a.jsonl")
    with pytest.raises(ReadError, match="not a regular file"):
        read_rows(str(tmp_path / "a.jsonl"))
    (tmp_path / "b.jsonl").mkdir()
    with pytest.raises(ReadError):
        read_rows(str(tmp_path / "b.jsonl"))


@given(st.binary(max_size=60), st.sampled_from(["a.jsonl", "a.json"]))
def test_read_rows_of_any_bytes_is_text_or_one_error(tmp_path_factory, data, name):
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(data)
    with contextlib.suppress(ReadError, UsageError):
        assert any(row.strip() for row in read_rows(str(path)).texts)
