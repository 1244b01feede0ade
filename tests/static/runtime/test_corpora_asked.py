"""What a word after --ppl asks for, taken apart without opening anything."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gqacheck.errors import UsageError
from gqacheck.runtime.corpora.asked import Asked, parse_asked, rebased, split_asked


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("smoke", Asked("smoke", known="smoke")),
        ("smoke@windows-64", Asked("smoke", "windows-64", known="smoke")),
        ("wikitext2@llm-pruner-128", Asked("wikitext2", "llm-pruner-128", known="wikitext2")),
        ("wikitext2=a/w.raw@llama.cpp-512", Asked("wikitext2=a/w.raw", "llama.cpp-512", "wikitext2", "a/w.raw")),
        ("ptb=p.jsonl?column=s", Asked("ptb=p.jsonl?column=s", "", "ptb", "p.jsonl", options={"column": "s"})),
        ("me@host.txt", Asked("me@host.txt", source="me@host.txt")),
        ("a@B/c.txt", Asked("a@B/c.txt", source="a@B/c.txt")),
        ("gone.txt@hf-stride-1024-512", Asked("gone.txt", "hf-stride-1024-512", source="gone.txt")),
        (
            "x.parquet?column=a%26b&rows=7@lm-eval",
            Asked("x.parquet?column=a%26b&rows=7", "lm-eval", "", "x.parquet", options={"column": "a&b", "rows": "7"}),
        ),
        (
            "datasets:org/name?name=raw&split=validation&column=text&revision=main@gptq-2048",
            Asked("datasets:org/name?name=raw&split=validation&column=text&revision=main", "gptq-2048", "", "org/name",
                  True, {"name": "raw", "split": "validation", "column": "text", "revision": "main"}),
        ),
    ],
)  # fmt: skip
def test_parse_asked_takes_a_corpus_its_options_and_its_protocol_apart(asked, expected):
    assert parse_asked(asked) == expected


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ("datasets:org/name?nmae=x", r"no option 'nmae' here; did you mean name\?"),
        ("a.jsonl?zzz=x", "no option 'zzz' here; there are column, rows"),
        ("ptb=f.jsonl?rows=5", "no option 'rows' here"),
        ("a.jsonl?column=x&column=y", "column of a corpus was given twice"),
        ("a.jsonl?column=", r"column of a corpus needs a value"),
        ("a.jsonl?column", r"column of a corpus needs a value"),
        ("a.jsonl?rows=0", "rows takes how many"),
        ("a.jsonl?rows=-3", "rows takes how many"),
        ("a.jsonl?rows=٣", "rows takes how many"),
        ("datasets:org/name?split=test[:10%]", r"no split of a data set; to read a part of a split, add rows=N"),
        ("datasets:../../nowhere", "neither the id of a data set"),
        ("datasets:hf://x/y", "neither the id of a data set"),
        ("datasets:", "names no source: --ppl datasets:ORG/NAME"),
        ("ptb=", "names no source: --ppl ptb=FILE"),
        ("smoke=a.txt", "smoke is built in and takes no file"),
        ("wikitext2?column=text", r"takes no options; they belong to a file: wikitext2=FILE\?column=NAME"),
        ("smoke@", "name a protocol, as in smoke@windows-512"),
    ],
)
def test_parse_asked_refuses_what_it_does_not_understand_in_one_sentence(asked, sentence):
    with pytest.raises(UsageError, match=sentence) as caught:
        parse_asked(asked)
    assert "\n" not in str(caught.value)


def test_parse_asked_on_a_file_that_is_there_keeps_its_odd_name_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a@windows-64", "b?column=x", "c@b.txt"):
        (tmp_path / name).write_text("text")
        assert parse_asked(name).source == name
    assert parse_asked("a@windows-64@windows-32") == Asked("a@windows-64", "windows-32", source="a@windows-64")
    assert parse_asked("b?column=x@windows-32").source == "b?column=x"


def test_parse_asked_on_a_file_named_like_a_corpus_means_the_corpus(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("ptb", "smoke"):
        (tmp_path / name).write_text("text")
        assert parse_asked(name).known == name
        assert parse_asked(f"./{name}") == Asked(f"./{name}", source=f"./{name}")


@given(
    st.text(max_size=40)
    | st.from_regex(r"(datasets:|ptb=|)[a-z./]{0,6}(\?[a-z&=]{0,9})?(@[a-z0-9.-]{0,9})?", fullmatch=True)
)
def test_parse_asked_on_any_text_gives_its_pieces_back_or_one_usage_error(text):
    parts = split_asked(text)
    assert parts.name + ("" if parts.protocol is None else f"@{parts.protocol}") == text
    try:
        parse_asked(text)
    except UsageError:
        return


def test_rebased_joins_only_the_path_of_what_is_there(tmp_path, monkeypatch):
    (tmp_path / "t.txt").write_text("text")
    (tmp_path / "r.jsonl").write_text("{}")
    (tmp_path / "smoke").write_text("text")
    (tmp_path / "saved").mkdir()
    folder = str(tmp_path)
    at = tmp_path.as_posix()
    for asked, expected in {
        "t.txt": f"{at}/t.txt",
        "t.txt@windows-64": f"{at}/t.txt@windows-64",
        "r.jsonl?column=x@gptq-2048": f"{at}/r.jsonl?column=x@gptq-2048",
        "wikitext2=t.txt@llama.cpp": f"wikitext2={at}/t.txt@llama.cpp",
        "datasets:saved?split=test": f"datasets:{at}/saved?split=test",
        "datasets:org/name": "datasets:org/name",
        "gone.txt@windows-64": "gone.txt@windows-64",
        "smoke": "smoke",
        "wikitext2": "wikitext2",
        f"{os.sep}abs.txt": f"{os.sep}abs.txt",
    }.items():
        assert rebased(asked, folder) == expected
