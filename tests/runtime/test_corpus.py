"""Corpora: the built-in one, text files, and every way in which a file is no text."""

from __future__ import annotations

import hashlib
import os

import pytest

from gqacheck.errors import ReadError, UsageError
from gqacheck.runtime.corpus import MAX_TEXT_BYTES, load_corpus


def test_smoke_corpus_has_three_segments_and_the_promised_sizes():
    corpus = load_corpus("smoke")
    sizes = {segment.name: len(segment.text.encode()) for segment in corpus.segments}
    assert list(sizes) == ["english", "chinese", "code"]
    assert sizes["english"] >= 24 * 1024
    assert sizes["chinese"] + sizes["code"] >= 8 * 1024
    assert corpus.protocol.name == "windows-512"
    assert (corpus.known, corpus.note) == ("smoke", "")


def test_text_file_is_read_whole_and_its_fingerprint_is_the_sha256_of_its_text(tmp_path):
    text = "A line.\r\n\r\n  Two spaces, 中文, and an end without a newline"
    (tmp_path / "t.txt").write_bytes(text.encode())
    corpus = load_corpus(str(tmp_path / "t.txt"))
    assert corpus.segments[0].text == text
    assert corpus.fingerprint == hashlib.sha256(text.encode()).hexdigest()


def test_text_file_with_a_byte_order_mark_is_the_text_without_it(tmp_path):
    (tmp_path / "t.txt").write_bytes(b"\xef\xbb\xbfabc")
    assert load_corpus(str(tmp_path / "t.txt")).segments[0].text == "abc"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty"),
        (b" \n\t ", "is empty"),
        (b"abc\0def", "is binary"),
        (b"\x80\x02}q\x00.", "is binary"),
        (b"caf\xe9 au lait", r"is not UTF-8 text \(byte 3\)"),
    ],
)
def test_text_file_that_is_no_text_gives_one_sentence(content, sentence, tmp_path):
    (tmp_path / "t.txt").write_bytes(content)
    with pytest.raises(ReadError, match=sentence):
        load_corpus(str(tmp_path / "t.txt"))


def test_text_file_that_is_too_large_a_folder_or_a_pipe_gives_one_sentence(tmp_path):
    with open(tmp_path / "big.txt", "wb") as stream:
        stream.truncate(MAX_TEXT_BYTES + 1)
    with pytest.raises(ReadError, match=f"more than {MAX_TEXT_BYTES}"):
        load_corpus(str(tmp_path / "big.txt"))
    with pytest.raises(ReadError):
        load_corpus(str(tmp_path))
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(ReadError, match="not a regular file"):  # and it does not wait for a writer
        load_corpus(str(tmp_path / "pipe.txt"))


@pytest.mark.parametrize("name", ["ptb", "c4"])
def test_corpus_that_needs_a_file_says_which_and_how(name):
    with pytest.raises(ReadError, match=rf"--ppl {name}=FILE") as caught:
        load_corpus(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("word", "meant"), [("smok", "smoke"), ("wikitext", "wikitext2"), ("PTB", "ptb"), ("pile", "")]
)
def test_corpus_that_nobody_knows_is_a_usage_error_and_a_missing_file_a_read_error(word, meant):
    with pytest.raises(
        UsageError, match=f"unknown corpus '{word}': " + (rf"did you mean {meant}\?" if meant else "use")
    ):
        load_corpus(word)
    with pytest.raises(ReadError, match="no such text file"):
        load_corpus("nowhere/text.txt")


def test_protocol_after_the_at_sign_sets_the_window(tmp_path):
    assert load_corpus("smoke@windows-128").protocol.positions == 128
    odd = tmp_path / "a@b.txt"
    odd.write_text("some text")
    assert load_corpus(str(odd)).protocol.positions == 512
    assert load_corpus(f"{odd}@windows-64").protocol.positions == 64
    assert load_corpus(f"{odd}@lm-eval").name == str(odd)


@pytest.mark.parametrize("asked", ["smoke@gptq2048", "smoke@windows-8", "smoke@windows-999999", "smoke@strides"])
def test_protocol_that_is_not_known_is_a_usage_error(asked):
    with pytest.raises(UsageError, match=r"unknown protocol|positions"):
        load_corpus(asked)


@pytest.mark.parametrize("protocol", ["windows-64", "gptq-2048", "llm-pruner-128", "hf-stride", "lm-eval", "llama.cpp"])
def test_text_file_is_the_same_one_text_under_every_protocol(protocol, tmp_path):
    (tmp_path / "t.txt").write_text("= A =\n\n text @-@ text \n")
    corpus = load_corpus(f"{tmp_path}/t.txt@{protocol}")
    assert corpus.segments[0].rows == ("= A =\n\n text @-@ text \n",)
    assert corpus.segments[0].originals == ()


def test_text_file_with_options_of_a_table_is_a_usage_error(tmp_path):
    (tmp_path / "t.txt").write_text("text")
    with pytest.raises(UsageError, match=r"is plain text, without columns or rows: leave out \?column"):
        load_corpus(f"{tmp_path}/t.txt?column=text")
    (tmp_path / "t.txt.gz").write_bytes(b"\x1f\x8b")
    with pytest.raises(ReadError, match="is compressed text: decompress it first"):
        load_corpus(f"{tmp_path}/t.txt.gz")


def test_rows_of_a_data_file_are_joined_by_an_empty_line_and_the_note_says_so(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"a": "x", "b": "1"}\n{"a": "y", "b": "2"}\n')
    corpus = load_corpus(f"{tmp_path}/t.jsonl?column=b@windows-64")
    assert corpus.segments[0].text == "1\n\n2"
    assert corpus.note == "2 rows of column b, an empty line between two"
    assert load_corpus(f"{tmp_path}/t.jsonl?column=a&rows=1").note == "the first 1 rows of column a, as asked"
    assert corpus.name == f"{tmp_path}/t.jsonl?column=b"
    assert load_corpus(corpus.name).fingerprint == corpus.fingerprint == hashlib.sha256(b"1\n\n2").hexdigest()
