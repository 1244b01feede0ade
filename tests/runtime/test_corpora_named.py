"""wikitext2, ptb and c4 from local files: each in the form in which each protocol's tool reads it."""

from __future__ import annotations

import gzip
import hashlib
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gqacheck.errors import ReadError, UsageError
from gqacheck.runtime import corpus as corpora
from gqacheck.runtime.corpus import load_corpus

RAW = " \n = A Title = \n \n One @-@ two , three . \n \n = Another = \n \n Du Fu 's text . \n"
ROWS = ("", " = A Title = \n", "", " One @-@ two , three . \n", "", " = Another = \n", "", " Du Fu 's text . \n")


@pytest.fixture(params=["wiki.test.raw", "w.parquet", "w.jsonl"])
def wikitext(request, tmp_path):
    """The same lines as the raw file, as parquet and as JSON lines."""
    path = tmp_path / request.param
    if request.param.endswith("raw"):
        path.write_text(RAW)
    elif request.param.endswith("parquet"):
        pq.write_table(pa.table({"text": ROWS}), path)
    else:
        path.write_text("".join(json.dumps({"text": row}) + "\n" for row in ROWS))
    return path


@pytest.mark.parametrize("protocol", ["windows-64", "gptq-2048", "llm-pruner-128", "hf-stride"])
def test_wikitext2_file_is_its_lines_with_two_newlines_between(wikitext, protocol):
    corpus = load_corpus(f"wikitext2={wikitext}@{protocol}")
    assert corpus.segments[0].text == "\n\n".join(ROWS)
    assert corpus.known == "wikitext2"
    assert corpus.name == f"wikitext2={wikitext}"


def test_wikitext2_file_under_llama_cpp_is_the_raw_file(wikitext):
    assert load_corpus(f"wikitext2={wikitext}@llama.cpp").segments[0].text == RAW


def test_wikitext2_file_under_lm_eval_is_detokenised_pages_and_their_originals(wikitext):
    segment = load_corpus(f"wikitext2={wikitext}@lm-eval").segments[0]
    assert segment.originals == (
        " = A Title = \n \n One @-@ two , three . \n ",
        " = Another = \n \n Du Fu 's text . \n",
    )
    assert segment.rows == (" = A Title =\n\nOne-two, three.\n", " = Another =\n\nDu Fu's text.\n")


def test_wikitext2_file_that_is_not_the_whole_test_split_says_so(wikitext, monkeypatch):
    corpus = load_corpus(f"wikitext2={wikitext}")
    assert corpus.note == "8 lines that are not the 4358 of the wikitext-2 test split"
    assert not corpus.genuine
    monkeypatch.setattr(corpora, "TEST_SHA256", hashlib.sha256(RAW.encode()).hexdigest())
    for protocol in ("windows-64", "lm-eval", "llama.cpp"):
        corpus = load_corpus(f"wikitext2={wikitext}@{protocol}")
        assert (corpus.note, corpus.genuine) == ("", True)


@pytest.mark.parametrize(
    ("protocol", "joiner"),
    [("windows-64", "\n\n"), ("llm-pruner-128", "\n\n"), ("gptq-2048", " "), ("hf-stride", "\n\n")],
)
@pytest.mark.parametrize("name", ["ptb.valid.txt", "ptb.jsonl"])
def test_ptb_file_is_its_stripped_lines_joined_as_that_tool_does(protocol, joiner, name, tmp_path):
    lines = ["no it was n't <unk> monday", "but while N %"]
    if name.endswith("txt"):
        (tmp_path / name).write_text("".join(f" {line} \n" for line in lines))
    else:
        (tmp_path / name).write_text("".join(json.dumps({"sentence": line}) + "\n" for line in lines))
    corpus = load_corpus(f"ptb={tmp_path / name}@{protocol}")
    assert corpus.segments[0].text == joiner.join(lines)
    assert corpus.known == "ptb"
    assert "the literal <unk> is read as it stands" in corpus.note


@pytest.mark.parametrize(
    ("lines", "protocol", "note", "genuine"),
    [
        (3370, "llm-pruner-128", "validation split; the literal", True),
        (3370, "gptq-2048", "validation split, where the tools of gptq read the test split; the", False),
        (3761, "gptq-2048", "test split; the literal", True),
        (3761, "llm-pruner-128", "test split, where the tools of llm-pruner read the validation split; the", False),
        (12, "windows-64", "12 lines, not those of a split of the Penn Treebank; the", False),
    ],
)
def test_ptb_note_names_the_split_that_was_read(lines, protocol, note, genuine, tmp_path):
    (tmp_path / "p.txt").write_text(" a line \n" * lines)
    corpus = load_corpus(f"ptb={tmp_path}/p.txt@{protocol}")
    assert corpus.note.startswith(note)
    assert corpus.genuine is genuine


def test_ptb_file_under_llama_cpp_is_the_file_itself(tmp_path):
    (tmp_path / "p.txt").write_text(" a line \n b \n")
    assert load_corpus(f"ptb={tmp_path}/p.txt@llama.cpp").segments[0].text == " a line \n b \n"


def test_c4_file_is_its_first_documents_joined_by_a_blank_and_the_rest_is_never_read(tmp_path):
    lines = "".join(json.dumps({"text": f"d{i}", "url": "u"}) + "\n" for i in range(1100)) + "not json"
    (tmp_path / "c4.json.gz").write_bytes(gzip.compress(lines.encode()))
    corpus = load_corpus(f"c4={tmp_path}/c4.json.gz@gptq-2048")
    assert corpus.segments[0].text == " ".join(f"d{i}" for i in range(1100))
    assert corpus.note == "the first 1100 documents of the file"
    assert corpus.genuine
    (tmp_path / "few.jsonl").write_text(json.dumps({"text": "one"}))
    assert load_corpus(f"c4={tmp_path}/few.jsonl").note == "1 documents, fewer than the 1100 that gptq reads"
    (tmp_path / "t.txt").write_text("one")
    with pytest.raises(UsageError, match="is plain text, and c4 is documents"):
        load_corpus(f"c4={tmp_path}/t.txt")


@pytest.mark.parametrize("name", ["gone.txt", "gone.jsonl", "gone.parquet"])
def test_named_corpus_from_a_file_that_is_not_there_is_one_sentence(name):
    with pytest.raises(ReadError, match=rf"cannot read the text file {name}: No such file"):
        load_corpus(f"wikitext2={name}")


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + b"\0" * 64 + b"PAR1", b"PAR1\xff\xff\xff\x7fPAR1"])
def test_parquet_file_that_is_none_is_one_sentence(content, tmp_path):
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(ReadError, match="is not a sound parquet file") as caught:
        load_corpus(f"{tmp_path}/a.parquet")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("columns", "asked", "outcome"),
    [
        ({"n": [1], "body": ["b"]}, "", "b"),
        ({"title": ["t"], "sentence": ["s"]}, "", "s"),
        ({"title": ["t"], "body": ["b"]}, "", "has the text columns title, body"),
        ({"n": [1], "body": ["b"]}, "?column=n", "column n of .* holds no text"),
        ({"n": [1], "body": ["b"]}, "?column=x", "has no column x; it has n, body"),
        ({"n": [1]}, "", "has no column of text; it has n"),
        ({"body": [None]}, "?column=body", "holds no text|holds nothing, not text"),
        ({"body": ["a\0"]}, "", "holds a NUL"),
        ({"text": pa.array(["d"]).dictionary_encode()}, "", "d"),
        ({"text": pa.array(["v"], pa.string_view())}, "", "v"),
        ({"text": pa.array(["l"], pa.large_string())}, "", "l"),
        ({"meta": [{"text": "x"}], "meta.text": ["f"]}, "", "f"),
        ({"meta.text": ["f"], "meta": [{"text": "x"}], "b": ["y"]}, "?column=meta.text", "f"),
        ({"meta": [{"text": "x"}]}, "", "has no column of text; it has meta"),
        ({"text": [5], "body": ["b"]}, "", "column text of .* holds no text; name another one"),
        ({"text": [5], "sentence": ["s"]}, "", "s"),
    ],
)
def test_parquet_file_reads_the_column_that_is_meant(columns, asked, outcome, tmp_path):
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    if len(outcome) == 1:
        assert load_corpus(f"{tmp_path}/a.parquet{asked}").segments[0].rows == (outcome,)
        return
    with pytest.raises((UsageError, ReadError), match=outcome):
        load_corpus(f"{tmp_path}/a.parquet{asked}")


def test_parquet_file_with_two_columns_of_one_name_is_refused(tmp_path):
    pq.write_table(pa.table([pa.array(["a"]), pa.array(["b"])], names=["text", "text"]), tmp_path / "a.parquet")
    with pytest.raises(ReadError, match="more than one column text"):
        load_corpus(f"{tmp_path}/a.parquet")


def test_parquet_file_cut_anywhere_is_one_sentence(tmp_path):
    pq.write_table(pa.table({"text": [f"some text {i}" for i in range(50)]}), tmp_path / "a.parquet")
    data = (tmp_path / "a.parquet").read_bytes()
    for at in range(0, len(data), max(1, len(data) // 40)):
        (tmp_path / "b.parquet").write_bytes(data[:at])
        with pytest.raises(ReadError):
            load_corpus(f"{tmp_path}/b.parquet")
        (tmp_path / "b.parquet").write_bytes(data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :])
        try:
            load_corpus(f"{tmp_path}/b.parquet")
        except (ReadError, UsageError):
            continue
