"""Tokenizers recovered as data: from a folder, JSON in a pickle, sentencepiece bytes; never from the network."""

from __future__ import annotations

import io
import json
import socket

import pytest
import torch
from tiny_models import tiny_model, tiny_tokenizer

from gqacheck.checkpoint import TokenizerInfo
from gqacheck.errors import ReadError
from gqacheck.formats import open_checkpoint
from gqacheck.runtime.tokenizer import MissingTokenizer, SentencePieceTokenizer, make_encoder, open_tokenizer

TEXT = "The model reads text,\n\tand 中文 too: café \U0001f600!"


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="module")
def sentencepiece_bytes():
    import sentencepiece

    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([f"the model number {i} reads the text and writes it" for i in range(300)]),
        model_writer=made,
        vocab_size=290,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return made.getvalue()


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("legacy", [True, False])
def test_tokenizer_pickled_beside_the_model_encodes_as_the_original(bos, legacy, tmp_path):
    original = tiny_tokenizer(bos=bos)
    torch.save(
        {"model": tiny_model("llama"), "tokenizer": original},
        tmp_path / "m.bin",
        _use_new_zipfile_serialization=not legacy,
    )
    encoder = make_encoder(open_tokenizer(open_checkpoint(str(tmp_path / "m.bin"))))
    assert encoder.encode(TEXT) == original.encode(TEXT, add_special_tokens=False)
    assert encoder.prefix == ((1,) if bos else ())
    assert encoder.tokenizer.eos_token_id == 2
    assert encoder.tokenizer.decode(encoder.encode(TEXT)) == TEXT


def test_tokenizer_of_a_folder_encodes_as_the_original(tmp_path):
    original = tiny_tokenizer()
    tiny_model("llama").save_pretrained(tmp_path)
    original.save_pretrained(tmp_path)
    encoder = make_encoder(open_tokenizer(open_checkpoint(str(tmp_path))))
    assert encoder.encode(TEXT) == original.encode(TEXT, add_special_tokens=False)
    assert (encoder.prefix, encoder.prefix_name) == ((1,), "BOS")


def test_tokenizer_of_a_folder_with_code_of_its_own_is_read_from_its_data_and_runs_nothing(tmp_path):
    original = tiny_tokenizer()
    tiny_model("llama").save_pretrained(tmp_path)
    original.save_pretrained(tmp_path)
    (tmp_path / "tok.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings |= {"auto_map": {"AutoTokenizer": ["tok.Tok", None]}, "tokenizer_class": "Tok"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    encoder = make_encoder(open_tokenizer(open_checkpoint(str(tmp_path))))
    assert encoder.encode(TEXT) == original.encode(TEXT, add_special_tokens=False)
    assert not (tmp_path / "ran").exists()


def test_tokenizer_given_wins_over_the_stored_one(tmp_path):
    torch.save({"model": tiny_model("llama"), "tokenizer": tiny_tokenizer()}, tmp_path / "m.bin")
    other = tiny_tokenizer(bos=False)
    other.save_pretrained(tmp_path / "tok")
    checkpoint = open_checkpoint(str(tmp_path / "m.bin"))
    assert make_encoder(open_tokenizer(checkpoint)).prefix == (1,)
    assert make_encoder(open_tokenizer(checkpoint, str(tmp_path / "tok"))).prefix == ()
    from_file = make_encoder(open_tokenizer(checkpoint, str(tmp_path / "tok" / "tokenizer.json")))
    assert from_file.encode(TEXT) == other.encode(TEXT)


@pytest.mark.parametrize("add_bos", [None, True, False])
def test_sentencepiece_model_encodes_as_the_library_does(add_bos, sentencepiece_bytes, tmp_path):
    from sentencepiece import SentencePieceProcessor

    (tmp_path / "t").write_bytes(b"pad" + sentencepiece_bytes)
    attributes = {"bos_token": "<s>", "eos_token": "</s>"} | ({} if add_bos is None else {"add_bos_token": add_bos})
    info = TokenizerInfo("sentencepiece", str(tmp_path / "t"), 3, len(sentencepiece_bytes), "bytes", None, attributes)
    tokenizer = open_tokenizer(checkpoint_with(info))
    encoder = make_encoder(tokenizer)
    assert encoder.encode(TEXT) == SentencePieceProcessor(model_proto=sentencepiece_bytes).encode(TEXT)
    assert encoder.prefix == (() if add_bos is False else (1,))
    assert tokenizer.decode(encoder.encode(TEXT)) == TEXT
    batch = tokenizer(TEXT, return_tensors="pt")
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (1, len(tokenizer.encode(TEXT)))
    assert tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True) == [TEXT]


def test_sentencepiece_file_can_be_given(sentencepiece_bytes, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_bytes)
    found = open_tokenizer(checkpoint_with(None), str(tmp_path / "tokenizer.model"))
    assert isinstance(found, SentencePieceTokenizer)
    assert len(found) >= 250


def test_no_tokenizer_at_all_names_the_option(tmp_path):
    torch.save(tiny_model("llama"), tmp_path / "m.bin")
    with pytest.raises(MissingTokenizer, match="--tokenizer") as caught:
        open_tokenizer(open_checkpoint(str(tmp_path / "m.bin")))
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("content", [b"{}", b'{"model": {"type": "BPE"}}', b"{" * 100_000, b"[]"])
def test_stored_json_that_is_no_tokenizer_names_the_option(content, tmp_path):
    (tmp_path / "t").write_bytes(content)
    info = TokenizerInfo("tokenizers-json", str(tmp_path / "t"), 0, len(content))
    with pytest.raises(MissingTokenizer, match="--tokenizer"):
        open_tokenizer(checkpoint_with(info))


@pytest.mark.parametrize(("offset", "nbytes"), [(0, 1 << 40), (0, 0), (0, -5), (5, 10)])
def test_stored_tokenizer_of_impossible_size_is_not_read(offset, nbytes, tmp_path):
    (tmp_path / "t").write_bytes(b"0123456789")
    info = TokenizerInfo("tokenizers-json", str(tmp_path / "t"), offset, nbytes)
    with pytest.raises(MissingTokenizer, match=r"bytes is not read|ends inside"):
        open_tokenizer(checkpoint_with(info))


@pytest.mark.parametrize("content", [b"not a model", b"{broken", b"\x00" * 64])
def test_given_file_that_is_no_tokenizer_gives_one_sentence(content, tmp_path):
    (tmp_path / "t").write_bytes(content)
    with pytest.raises(ReadError, match="no tokenizer can be made of it") as caught:
        open_tokenizer(checkpoint_with(None), str(tmp_path / "t"))
    assert "\n" not in str(caught.value)


def test_given_path_that_is_missing_gives_one_sentence(tmp_path):
    with pytest.raises(ReadError, match="no such file or folder"):
        open_tokenizer(checkpoint_with(None), str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises((ReadError, MissingTokenizer), match="tokenizer"):
        open_tokenizer(checkpoint_with(None), str(tmp_path / "empty"))


def test_tokenizer_that_panics_is_an_error_and_not_a_crash():
    class Panic(BaseException):
        pass

    class Panicking:
        bos_token_id = None

        def encode(self, text, add_special_tokens=True):
            if len(text) > 1:
                raise Panic("index out of bounds")
            return [5]

    with pytest.raises(ReadError, match="index out of bounds"):
        make_encoder(Panicking()).encode("two words")


def checkpoint_with(info):
    from gqacheck.checkpoint import Checkpoint, Container

    return Checkpoint("x", "", "torch-zip-module", Container.MODULE, {}, tokenizer=info)
