"""A pickled tokenizer as data: where its JSON or its sentencepiece model lies, and its special tokens."""

from __future__ import annotations

from typing import Literal

from gqacheck.checkpoint import Plain, TokenizerInfo
from gqacheck.formats.pickle_values import Global, Obj, Slice, Value
from gqacheck.formats.torch_plain import class_path, mapping_of, plain_mapping, text_of

SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

_KEPT = frozenset(
    {
        "model_max_length", "padding_side", "truncation_side", "clean_up_tokenization_spaces", "chat_template",
        "add_bos_token", "add_eos_token", "add_prefix_space", "legacy", "split_special_tokens", "name_or_path",
        "vocab_file", "sp_model_kwargs", "model_input_names",
    }
)  # fmt: skip


def is_tokenizer(value: Value) -> bool:
    """Whether the value is an object of a tokenizer class, judged by its name."""
    path = class_path(value)
    if path is None:
        return False
    name = path.rpartition(".")[2]
    return "Tokenizer" in name or name == "TokenizersBackend" or name.endswith("Processor")


def tokenizer_of(value: Value, file: str) -> tuple[TokenizerInfo | None, str]:
    """The recoverable tokenizer in ``value`` and, when there is none, a sentence that says why."""
    name = class_path(value)
    if type(value) is not Obj or name is None:
        return None, "the pickled tokenizer is no object that could be recovered as data"
    state = value.state if type(value.state) is dict else {}
    attributes = _attributes(state)
    backend = value if name.endswith("tokenizers.Tokenizer") else state.get("_tokenizer")
    if type(backend) is Obj and class_path(backend) == "tokenizers.Tokenizer":
        place = _place(backend.state)
        if place is not None:
            offset, nbytes, as_text = place
            encoding: Literal["utf-8", "latin-1-utf-8"] = "latin-1-utf-8" if as_text else "utf-8"
            return TokenizerInfo("tokenizers-json", file, offset, nbytes, encoding, name, attributes), ""
    for key in ("sp_model_proto", "sp_model"):
        model = state.get(key)
        if type(model) is Obj and type(model.state) is dict:
            model = model.state.get("proto") or model.state.get("serialized")
        place = _place(model)
        if place is not None:
            offset, nbytes, as_text = place
            kind: Literal["latin-1-utf-8", "bytes"] = "latin-1-utf-8" if as_text else "bytes"
            return TokenizerInfo("sentencepiece", file, offset, nbytes, kind, name, attributes), ""
    vocabulary = text_of(state.get("vocab_file"))
    why = (
        f"it reads {vocabulary!r}, which is not in this file" if vocabulary else "its vocabulary is not stored as data"
    )
    return None, f"the pickled tokenizer ({name}) cannot be recovered: {why}; name one with --tokenizer"


def _place(value: Value) -> tuple[int, int, bool] | None:
    """Offset, bytes and whether it is text whose code points are the bytes (protocol 2), for stored bytes."""
    if type(value) is Slice and value.offset >= 0 and not value.is_text:
        return value.offset, value.nbytes, False
    if type(value) is Obj and type(value.callee) is Global and value.callee.path == "_codecs.encode" and value.args:
        text = value.args[0]
        if type(text) is Slice and text.offset >= 0 and text.is_text:
            return text.offset, text.nbytes, True
    return None


def _attributes(state: dict[Value, Value]) -> dict[str, Plain]:
    kept = {
        key.removeprefix("_"): value
        for key, value in state.items()
        if type(key) is str and key.removeprefix("_") in _KEPT
    }
    # older init arguments first, so that what was set later on the object wins
    arguments = mapping_of(state.get("init_kwargs"))
    if arguments is not None:
        kept = {k: v for k, v in arguments.items() if type(k) is str and k in _KEPT} | kept
    made = plain_mapping(kept)
    mapped = mapping_of(state.get("_special_tokens_map")) or {}
    for name in SPECIAL_TOKENS:
        for value in (state.get(f"_{name}"), state.get(name), mapped.get(name), (arguments or {}).get(name)):
            content = _token(value)
            if content is not None:
                made[name] = content
                break
    return made


def _token(value: Value) -> str | None:
    """The text of a special token: a str, or an AddedToken, whose state or first argument holds it."""
    if type(value) is Obj:
        if type(value.state) is dict:
            return text_of(value.state.get("content"))
        return text_of(value.args[0]) if value.args else None
    return text_of(value)
