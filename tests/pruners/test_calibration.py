"""Texts to calibrate on, and the ids made of them."""

from __future__ import annotations

import logging
import sys
from itertools import pairwise

import pytest
import torch
from tiny_models import tiny_tokenizer

from gqacheck.errors import MissingDependency, ReadError, UsageError
from pruners.calibration import CalibrationError, calibration_batches, calibration_text

TEXT = " ".join(f"word{number}" for number in range(400))


def test_batches_are_windows_of_the_text_that_do_not_overlap():
    tokenizer = tiny_tokenizer(bos=False)
    ids = tokenizer(TEXT)["input_ids"]
    found = calibration_batches(tokenizer, TEXT, n_examples=7, seq_len=33, seed=5)
    assert found.shape == (7, 33)
    assert found.dtype == torch.long
    starts = []
    for row in found.tolist():
        starts += [at for at in range(len(ids)) if ids[at : at + 33] == row]
    assert len(starts) == 7
    assert all(b - a >= 33 for a, b in pairwise(starts))


def test_batches_are_the_same_for_a_seed_and_others_for_another():
    tokenizer = tiny_tokenizer(bos=False)
    one, again, other = (calibration_batches(tokenizer, TEXT, seq_len=16, seed=seed) for seed in (1, 1, 2))
    assert one.shape == (10, 16)
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_a_token_that_the_tokenizer_puts_in_front_is_in_front_of_every_window():
    found = calibration_batches(tiny_tokenizer(bos=True), TEXT, n_examples=4, seq_len=16)
    assert found.shape == (4, 16)
    assert (found[:, 0] == 1).all()
    assert not (found[:, 1:] == 1).any()


def test_a_text_of_exactly_the_length_is_enough_and_one_token_less_is_not():
    tokenizer = tiny_tokenizer(bos=False)
    count = len(tokenizer(TEXT)["input_ids"])
    seq_len = count // 10
    text = tokenizer.decode(tokenizer(TEXT)["input_ids"][: 10 * seq_len])
    assert len(tokenizer(text)["input_ids"]) == 10 * seq_len
    assert calibration_batches(tokenizer, text, n_examples=10, seq_len=seq_len).numel() == 10 * seq_len
    with pytest.raises(CalibrationError, match=f"has {10 * seq_len - 1:,} tokens and 10 examples of {seq_len} need"):
        calibration_batches(tokenizer, text[:-1], n_examples=10, seq_len=seq_len)


@pytest.mark.parametrize(("examples", "length"), [(0, 16), (4, 1), (-1, 8)])
def test_no_examples_or_positions_is_a_usage_error(examples, length):
    with pytest.raises(UsageError, match=f"not {examples} of {length}"):
        calibration_batches(tiny_tokenizer(), TEXT, n_examples=examples, seq_len=length)


def test_smoke_text_and_files_are_read_up_to_a_length(tmp_path):
    assert len(calibration_text("smoke")) > 30_000
    assert len(calibration_text("smoke", max_chars=100)) == 100
    (tmp_path / "own").write_text("Nur ein Satz.", encoding="utf-8")
    assert calibration_text(str(tmp_path / "own")) == "Nur ein Satz."
    (tmp_path / "empty.txt").write_text(" \n")
    with pytest.raises(ReadError, match="empty"):
        calibration_text(str(tmp_path / "empty.txt"))
    with pytest.raises(CalibrationError, match="no such text file"):
        calibration_text(str(tmp_path / "missing.txt"))


def test_datasets_are_read_from_folders_and_one_that_cannot_be_had_is_one_line(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    rows = {"mine": ['{"id": 1, "text": "first"}', '{"id": 2, "text": "second"}'], "numbers": ['{"id": 1}']}
    for name, lines in rows.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.jsonl").write_text("\n".join(lines))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    assert calibration_text(str(tmp_path / "mine")) == "first\n\nsecond"
    with pytest.raises(CalibrationError, match="no column of text: its columns are id"):
        calibration_text(str(tmp_path / "numbers"))
    with pytest.raises(CalibrationError) as raised:
        calibration_text("nobody/nothing-of-this-name")
    said = str(raised.value)
    assert said.startswith("nobody/nothing-of-this-name is no text file and the dataset of this name cannot be loaded")
    assert "(offline)" in said
    assert "\n" not in said
    assert len(said) < 300


def test_what_libraries_say_of_their_retries_and_of_long_texts_is_not_passed_on(monkeypatch, caplog):
    datasets = pytest.importorskip("datasets")

    def load(*_, **__):
        logging.getLogger("huggingface_hub.utils._http").warning("Retrying in 1s")
        raise ConnectionError("nobody there")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(CalibrationError, match="nobody there"):
        calibration_text("nobody/nothing")
    tokenizer = tiny_tokenizer()
    tokenizer.model_max_length = 16
    logging.getLogger("transformers").setLevel(logging.WARNING)
    calibration_batches(tokenizer, "a b c d " * 100, n_examples=2, seq_len=8)
    assert caplog.text == ""


def test_an_empty_file_is_said_to_be_empty(tmp_path):
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(CalibrationError, match=r"empty\.txt has no text to calibrate on"):
        calibration_text(str(tmp_path / "empty.txt"))


def test_a_dataset_without_the_library_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingDependency, match=r"\[run\]"):
        calibration_text("wikitext:wikitext-2-raw-v1")
