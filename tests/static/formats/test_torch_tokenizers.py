"""Pickled tokenizers as data: where their bytes lie, how they are encoded, and their special tokens."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest

from gqacheck.checkpoint import TokenizerInfo
from gqacheck.formats.source import Source
from gqacheck.formats.torch_zip import TorchFile, read_torch_zip
from gqacheck.testing.sketch import sketch_llama
from gqacheck.testing.writers import Global, Instance, Raw, Reduce

TEXT = json.dumps(
    {"version": "1.0", "model": {"type": "BPE", "vocab": {f"é{i}中": i for i in range(60)}}}, ensure_ascii=False
)
SKETCH = sketch_llama(n_layers=1, hidden_size=24, n_q_heads=3, n_kv_heads=1, vocab_size=8, intermediate_size=8)

END = Instance(Global("tokenizers", "AddedToken"), {"content": "</s>"})


def backend(state: object) -> Reduce:
    # Tokenizer's own state is bytes, not a dict, so it is built with REDUCE's state here
    return Reduce(Global("tokenizers", "Tokenizer"), (), state=state)


def fast(text: str = TEXT, **attributes: Any) -> Instance:
    state = {"_tokenizer": backend(text.encode())} | attributes
    return Instance(Global("transformers.tokenization_utils_fast", "PreTrainedTokenizerFast"), state)


def read(path: Path, tokenizer: object, *, key: str = "tokenizer") -> TorchFile:
    SKETCH.write_module(path / "x.bin", extra={key: tokenizer})
    with Source.open(path / "x.bin") as source:
        return read_torch_zip(source)


def content(info: TokenizerInfo | None) -> bytes:
    """The bytes at the place that the information names, decoded as it says."""
    assert info is not None
    with Source.open(info.file) as source:
        raw = source.read(info.offset, info.nbytes)
    return raw.decode("utf-8").encode("latin-1") if info.encoding == "latin-1-utf-8" else raw


def test_protocol_2_tokenizer_is_found_as_text_of_its_bytes(tmp_path: Path) -> None:
    info = read(tmp_path, fast()).tokenizer
    assert content(info) == TEXT.encode()
    assert info is not None
    assert (info.kind, info.encoding) == ("tokenizers-json", "latin-1-utf-8")
    assert info.class_name == "transformers.tokenization_utils_fast.PreTrainedTokenizerFast"


@pytest.mark.parametrize("text", [TEXT, TEXT.replace("é", "e" * 1000)], ids=["short", "long"])
def test_protocol_4_tokenizer_is_found_as_bytes(tmp_path: Path, text: str) -> None:
    raw = text.encode()
    stored = Raw(b"\x8e" + len(raw).to_bytes(8, "little") + raw)
    holder = Instance(Global("transformers", "TokenizersBackend"), {"_tokenizer": backend(stored)})
    info = read(tmp_path, holder).tokenizer
    assert content(info) == raw
    assert info is not None
    assert info.encoding == "utf-8"


def test_tokenizer_longer_than_what_is_read_is_found(tmp_path: Path) -> None:
    text = TEXT.replace('"BPE"', '"' + "B" * 100_000 + '"')
    assert content(read(tmp_path, fast(text)).tokenizer) == text.encode()


def test_bare_tokenizers_object_is_found(tmp_path: Path) -> None:
    info = read(tmp_path, backend(TEXT.encode())).tokenizer
    assert content(info) == TEXT.encode()


def test_tokenizer_under_another_key_is_found(tmp_path: Path) -> None:
    assert content(read(tmp_path, fast(), key="processor").tokenizer) == TEXT.encode()


@pytest.mark.parametrize(
    "attributes",
    [
        {"_bos_token": "<s>", "_eos_token": END},
        {"_special_tokens_map": {"bos_token": "<s>", "eos_token": END, "unk_token": None}},
        {"init_kwargs": {"bos_token": "<s>", "eos_token": "</s>"}},
        {"_bos_token": "<s>", "_eos_token": "</s>", "init_kwargs": {"bos_token": "<old>", "eos_token": "<old>"}},
        {"_bos_token": "<s>", "_eos_token": Reduce(Global("tokenizers", "AddedToken"), ("</s>",))},
    ],
)  # fmt: skip
def test_special_tokens_are_read_wherever_the_version_keeps_them(tmp_path: Path, attributes: dict[str, Any]) -> None:
    info = read(tmp_path, fast(**attributes)).tokenizer
    assert info is not None
    assert {key: info.attributes.get(key) for key in ("bos_token", "eos_token", "unk_token")} == {
        "bos_token": "<s>", "eos_token": "</s>", "unk_token": None,
    }  # fmt: skip


def test_plain_attributes_come_along(tmp_path: Path) -> None:
    info = read(
        tmp_path, fast(model_max_length=10**30, padding_side="left", _add_bos_token=True, deprecation={}, x=1)
    ).tokenizer
    assert info is not None
    assert dict(info.attributes) == {"model_max_length": 10**30, "padding_side": "left", "add_bos_token": True}


def test_sentencepiece_model_is_found(tmp_path: Path) -> None:
    proto = bytes(range(256)) * 8
    state = {
        "sp_model": None,
        "sp_model_proto": proto,
        "vocab_file": "/x/tokenizer.model",
        "sp_model_kwargs": {"alpha": 0.1},
    }
    info = read(tmp_path, Instance(Global("transformers", "LlamaTokenizer"), state)).tokenizer
    assert info is not None
    assert (info.kind, info.encoding) == ("sentencepiece", "latin-1-utf-8")
    assert content(info) == proto
    assert info.attributes["vocab_file"] == "/x/tokenizer.model"
    assert info.attributes["sp_model_kwargs"] == {"alpha": 0.1}


def test_tokenizer_that_only_names_its_file_is_told(tmp_path: Path) -> None:
    found = read(tmp_path, Instance(Global("transformers", "LlamaTokenizer"), {"vocab_file": "/x/tokenizer.model"}))
    assert found.tokenizer is None
    assert "reads '/x/tokenizer.model', which is not in this file; name one with --tokenizer" in found.ignored[0]


@pytest.mark.parametrize(
    "value", [5, "text", [1], Instance(Global("a", "Tokenizer"), {}), Reduce(Global("a", "Tokenizer"), ())]
)
def test_tokenizer_that_is_no_tokenizer_is_told(tmp_path: Path, value: object) -> None:
    found = read(tmp_path, value)
    assert found.tokenizer is None
    assert "tokenizer" in found.ignored[0]


def test_absent_tokenizer_is_no_remark(tmp_path: Path) -> None:
    found = read(tmp_path, None)
    assert (found.tokenizer, found.ignored) == (None, ())


@pytest.mark.parametrize("state", [TEXT.encode(), Raw(b"B\x00\x04\x00\x00" + b"{" * 1024)], ids=["text", "bytes"])
def test_tokenizer_in_a_compressed_pickle_has_no_place_and_is_told(tmp_path: Path, state: object) -> None:
    holder = Instance(Global("transformers", "PreTrainedTokenizerFast"), {"_tokenizer": backend(state)})
    SKETCH.write_module(tmp_path / "x.bin", extra={"tokenizer": holder})
    packed = tmp_path / "packed.bin"
    with zipfile.ZipFile(tmp_path / "x.bin") as old, zipfile.ZipFile(packed, "w") as new:
        for entry in old.infolist():
            method = zipfile.ZIP_DEFLATED if entry.filename.endswith("data.pkl") else zipfile.ZIP_STORED
            new.writestr(entry.filename, old.read(entry), method)
    with Source.open(packed) as source:
        found = read_torch_zip(source)
    assert found.kind == "module"
    assert found.tokenizer is None
    assert "cannot be recovered" in found.ignored[0]


def test_writer_of_these_tests_writes_what_pickle_reads() -> None:
    # _codecs.encode over latin-1 text is what protocol 2 makes of bytes
    assert b"_codecs" in pickle.dumps(TEXT.encode(), 2)
