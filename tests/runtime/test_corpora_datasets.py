"""Data sets: the cache of the library, its offline mode, a hub that is not there or does not answer, saved folders."""

from __future__ import annotations

import logging
import socket
import threading

import datasets
import huggingface_hub.constants as hub_constants
import pytest

from gqacheck.errors import ReadError, UsageError
from gqacheck.runtime.corpora import files, hub
from gqacheck.runtime.corpus import load_corpus
from tests.runtime.data_sets import cache_data_set

ROWS = ("", " = A Title = \n", "", " Some text of it . \n")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of data sets, and a hub that is switched off."""
    folder = tmp_path / "cache"
    folder.mkdir()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(folder))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub_constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.fixture
def online(cache, monkeypatch):
    """Sets the address of the hub."""

    def at(address: str) -> None:
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", address)

    return at


def test_wikitext2_in_the_cache_is_read_offline_and_joined_as_the_tools_do(cache):
    cache_data_set(cache, "Salesforce/wikitext", "wikitext-2-raw-v1", {"test": ROWS, "train": ("other",)})
    corpus = load_corpus("wikitext2@gptq-2048")
    assert corpus.segments[0].rows == ROWS
    assert corpus.segments[0].text == "\n\n".join(ROWS)
    assert (corpus.name, corpus.known, corpus.protocol.name) == ("wikitext2", "wikitext2", "gptq-2048")
    assert load_corpus("wikitext2@llama.cpp").segments[0].text == " \n = A Title = \n \n Some text of it . \n"


def test_wikitext2_of_another_configuration_in_the_cache_is_not_taken_for_it(cache):
    cache_data_set(cache, "Salesforce/wikitext", "wikitext-103-raw-v1", {"test": ROWS})
    with pytest.raises(ReadError, match="wikitext2 is not available"):
        load_corpus("wikitext2")


def test_wikitext2_downloaded_as_a_file_of_the_hub_is_found(cache, tmp_path):
    snapshot = tmp_path / "hub" / "datasets--Salesforce--wikitext" / "snapshots" / ("a" * 40) / "wikitext-2-raw-v1"
    snapshot.mkdir(parents=True)
    (snapshot.parents[2] / "refs").mkdir()
    (snapshot.parents[2] / "refs" / "main").write_text("a" * 40)
    datasets.Dataset.from_dict({"text": list(ROWS)}).to_parquet(str(snapshot / "test-00000-of-00001.parquet"))
    assert load_corpus("wikitext2").segments[0].rows == ROWS


def test_wikitext2_that_is_not_there_says_what_was_tried_and_how_to_give_it(cache):
    with pytest.raises(ReadError) as caught:
        load_corpus("wikitext2@llm-pruner-128")
    message = str(caught.value)
    assert "not in the cache of datasets" in message
    assert "the hub is switched off" in message
    assert "--ppl wikitext2=FILE" in message
    assert "\n" not in message


def test_data_set_with_no_network_fails_at_once_and_in_one_line(online):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        online(f"http://127.0.0.1:{free.getsockname()[1]}")
    with pytest.raises(ReadError, match=r"^wikitext2 is not available: .* the hub does not answer \(Connect") as caught:
        load_corpus("wikitext2")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("limit", ["ANSWER_SECONDS", "FETCH_SECONDS"])
def test_data_set_from_a_hub_that_never_answers_comes_to_an_end(online, monkeypatch, limit):
    monkeypatch.setattr(hub, limit, 0.3)
    if limit == "FETCH_SECONDS":
        monkeypatch.setattr(hub, "_ask_hub", lambda *_: None)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        online(f"http://127.0.0.1:{silent.getsockname()[1]}")
        if limit == "FETCH_SECONDS":
            monkeypatch.setattr(datasets, "load_dataset", _only_offline(datasets.load_dataset))
        with pytest.raises(ReadError, match=r"does not answer|did not arrive from the hub within 0 s"):
            load_corpus("datasets:some/thing?split=test")


def _only_offline(real):
    def load(*args, **settings):
        if datasets.config.HF_HUB_OFFLINE:
            return real(*args, **settings)
        threading.Event().wait(5)

    return load


@pytest.mark.parametrize("asked", ["datasets:org/new", "datasets:org/new?split=test&column=text&rows=2"])
def test_data_set_of_the_hub_is_streamed_and_only_what_is_read_is_fetched(asked, online, monkeypatch, tmp_path):
    """The hub is a folder here; everything from the library's own streams on is real."""
    datasets.Dataset.from_dict({"text": [f"row {i}" for i in range(5)]}).to_parquet(str(tmp_path / "t.parquet"))
    real = datasets.load_dataset
    seen = {}

    def load(source, name=None, **settings):
        if datasets.config.HF_HUB_OFFLINE:
            return real(source, name, **settings)
        seen.update(settings, bars=datasets.utils.logging.is_progress_bar_enabled())
        return real("parquet", data_files={"test": str(tmp_path / "t.parquet")}, **settings)

    online("http://127.0.0.1:9")
    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(hub, "_ask_hub", lambda *_: None)
    rows = load_corpus(asked).segments[0].rows
    assert rows == tuple(f"row {i}" for i in range(2 if "rows" in asked else 5))
    assert seen["streaming"] is True
    assert seen["bars"] is False
    assert "trust_remote_code" not in seen


def test_data_set_made_by_a_script_is_never_run(online, monkeypatch):
    def load(source, name=None, **settings):
        if datasets.config.HF_HUB_OFFLINE:
            raise ConnectionError
        raise RuntimeError("Dataset scripts are no longer supported, but found ptb.py")

    online("http://127.0.0.1:9")
    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(hub, "_ask_hub", lambda *_: None)
    with pytest.raises(ReadError, match=r"made by a script, which is never run; save its rows as \.jsonl"):
        load_corpus("datasets:org/ptb")


def test_data_set_without_a_split_is_its_test_split_and_its_only_text_column(cache):
    cache_data_set(cache, "org/some", "default", {"train": ("a",), "test": ("b", "c")}, "body")
    corpus = load_corpus("datasets:org/some")
    assert corpus.segments[0].rows == ("b", "c")
    assert corpus.segments[0].text == "b\n\nc"
    assert corpus.note == "2 rows of column body, an empty line between two"
    assert load_corpus("datasets:org/some?split=train").segments[0].rows == ("a",)
    limited = load_corpus("datasets:org/some?rows=1&column=body@windows-64")
    assert limited.segments[0].rows == ("b",)
    assert limited.note == "the first 1 rows of column body, as asked"


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ("datasets:org/some?split=nope", "nope"),
        ("datasets:org/some?column=nope", "has no column nope; it has body"),
        ("datasets:org/two", r"\?name=NAME.*one.*two|\?name=NAME.*two.*one"),
        ("datasets:org/odd", r"has the splits a, b: say which one, with \?split=NAME"),
    ],
)
def test_data_set_asked_for_in_a_way_it_is_not_says_which_ways_there_are(asked, sentence, cache):
    cache_data_set(cache, "org/some", "default", {"test": ("b",)}, "body")
    cache_data_set(cache, "org/two", "one", {"test": ("b",)})
    cache_data_set(cache, "org/two", "two", {"test": ("b",)})
    cache_data_set(cache, "org/odd", "default", {"a": ("b",), "b": ("b",)})
    with pytest.raises(UsageError, match=sentence) as caught:
        load_corpus(asked)
    assert "\n" not in str(caught.value)


def test_data_set_too_large_to_hold_is_refused_with_the_way_to_cut_it(cache, monkeypatch):
    monkeypatch.setattr(files, "MAX_TEXT_BYTES", 100)
    cache_data_set(cache, "org/some", "default", {"test": ["x" * 30] * 10})
    with pytest.raises(ReadError, match="more than 100 bytes of text; read its first rows alone, with rows=1 after"):
        load_corpus("datasets:org/some")
    assert len(load_corpus("datasets:org/some?rows=3").segments[0].rows) == 3


def test_saved_folder_is_read_by_datasets_and_as_a_named_corpus(tmp_path, cache):
    datasets.Dataset.from_dict({"text": list(ROWS), "n": [1, 2, 3, 4]}).save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict(
        {s: datasets.Dataset.from_dict({"sentence": [s]}) for s in ("train", "validation")}
    ).save_to_disk(str(tmp_path / "many"))
    assert load_corpus(f"datasets:{tmp_path}/one").segments[0].rows == ROWS
    assert load_corpus(f"wikitext2={tmp_path}/one").segments[0].rows == ROWS
    assert load_corpus(f"ptb={tmp_path}/many").segments[0].rows == ("validation",)
    assert load_corpus(f"datasets:{tmp_path}/many?split=train").segments[0].rows == ("train",)
    with pytest.raises(UsageError, match="has no split 'test'; it has train, validation"):
        load_corpus(f"datasets:{tmp_path}/many?split=test")
    with pytest.raises(UsageError, match="not a data set as save_to_disk writes it"):
        load_corpus(f"datasets:{tmp_path}")


def test_loading_a_data_set_leaves_the_library_as_it_was(cache, capfd):
    cache_data_set(cache, "org/some", "default", {"test": ("b",)})
    capfd.readouterr()
    logging.getLogger("datasets").setLevel(logging.WARNING)
    before = (
        logging.getLogger("datasets").level,
        datasets.config.STREAMING_READ_MAX_RETRIES,
        hub_constants.HF_HUB_OFFLINE,
    )
    load_corpus("datasets:org/some")
    assert before == (
        logging.getLogger("datasets").level,
        datasets.config.STREAMING_READ_MAX_RETRIES,
        hub_constants.HF_HUB_OFFLINE,
    )
    assert datasets.utils.logging.is_progress_bar_enabled()
    assert capfd.readouterr() == ("", "")
