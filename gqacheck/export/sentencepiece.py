"""A sentencepiece model as tokenizer.json, so that a tokenizer pickled by an older transformers loads in any newer one.

Whether it gives the same ids is tried on the built-in texts; where it does not, none is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gqacheck.runtime.tokenizer import SentencePieceTokenizer

_UNIGRAM, _BPE = 1, 2
_UNKNOWN, _CONTROL, _USER, _BYTE = 2, 3, 4, 6
_SPACE = "▁"
_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token")


class NotTheSame(Exception):
    """What can be written would give other ids; the message says where."""


def fast_tokenizer(tokenizer: SentencePieceTokenizer, attributes: Mapping[str, Any]) -> Any:
    """The tokenizer as a ``PreTrainedTokenizerFast``.

    Raises:
        NotTheSame: it gives other ids on the built-in texts, or the model is of a kind that cannot be written.
    """
    from sentencepiece import sentencepiece_model_pb2
    from transformers import PreTrainedTokenizerFast

    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(tokenizer.model_proto)
    backend = _backend(proto, tokenizer)
    pieces = {piece.piece for piece in proto.pieces}
    named = {name: attributes[name] for name in _NAMES if attributes.get(name) in pieces}
    for name, number in (("bos_token", tokenizer.bos_token_id), ("eos_token", tokenizer.eos_token_id)):
        if number is not None:
            named.setdefault(name, proto.pieces[number].piece)
    unknown = next((piece.piece for piece in proto.pieces if piece.type == _UNKNOWN), None)
    if unknown is not None:
        named.setdefault("unk_token", unknown)
    passed = {name: attributes[name] for name in ("padding_side", "model_max_length") if attributes.get(name)}
    made = PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **named, **passed)
    _compare(tokenizer, made)
    return made


def _backend(proto: Any, tokenizer: SentencePieceTokenizer) -> Any:
    from tokenizers import AddedToken, Tokenizer, models, normalizers

    kind = proto.trainer_spec.model_type
    pieces = list(proto.pieces)
    unknown = next((number for number, piece in enumerate(pieces) if piece.type == _UNKNOWN), None)
    byte_fallback = any(piece.type == _BYTE for piece in pieces)
    model: Any
    if kind == _BPE:
        vocabulary = {piece.piece: number for number, piece in enumerate(pieces)}
        model = models.BPE(
            vocab=vocabulary,
            merges=_merges(pieces, vocabulary),
            unk_token=pieces[unknown].piece if unknown is not None else None,
            fuse_unk=True,
            byte_fallback=byte_fallback,
        )
    elif kind == _UNIGRAM:
        entries = [(piece.piece, piece.score) for piece in pieces]
        model = models.Unigram(entries, unk_id=unknown, byte_fallback=byte_fallback)
    else:
        raise NotTheSame(f"sentencepiece models of type {kind} have no counterpart")
    backend = Tokenizer(model)
    special = [piece.piece for piece in pieces if piece.type in (_CONTROL, _UNKNOWN)]
    backend.add_special_tokens([AddedToken(piece, normalized=False, special=True) for piece in special])
    backend.add_tokens([AddedToken(p.piece, normalized=False, special=False) for p in pieces if p.type == _USER])
    steps = _normalizers(proto.normalizer_spec)
    if steps:
        backend.normalizer = normalizers.Sequence(steps)
    backend.decoder = _decoder(proto.normalizer_spec.add_dummy_prefix, byte_fallback)
    _frame(backend, tokenizer, pieces)
    return backend


def _merges(pieces: list[Any], vocabulary: Mapping[str, int]) -> list[tuple[str, str]]:
    """Pairs in the order in which sentencepiece joins them: by the score of what they make."""
    found = []
    for piece in pieces:
        text = piece.piece
        splits = [(text[:at], text[at:]) for at in range(1, len(text))]
        pairs = [(left, right) for left, right in splits if left in vocabulary and right in vocabulary]
        found += [(piece.score, pair) for pair in sorted(pairs, key=lambda p: (vocabulary[p[0]], vocabulary[p[1]]))]
    return [pair for _, pair in sorted(found, key=lambda entry: -entry[0])]


def _normalizers(spec: Any) -> list[Any]:
    from tokenizers import Regex, normalizers

    steps: list[Any] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend(_SPACE))
    if spec.escape_whitespaces:
        steps.append(normalizers.Replace(" ", _SPACE))
    return steps


def _decoder(prefixed: bool, byte_fallback: bool) -> Any:
    from tokenizers import decoders

    steps: list[Any] = [decoders.Replace(_SPACE, " ")]
    if byte_fallback:
        steps.append(decoders.ByteFallback())
    steps.append(decoders.Fuse())
    if prefixed:
        steps.append(decoders.Strip(content=" ", left=1))
    return decoders.Sequence(steps)


def _frame(backend: Any, tokenizer: SentencePieceTokenizer, pieces: list[Any]) -> None:
    """Puts BOS in front and EOS behind where the tokenizer does."""
    from tokenizers import processors

    frame = {"bos": tokenizer.bos_token_id if tokenizer.add_bos_token else None,
             "eos": tokenizer.eos_token_id if tokenizer.add_eos_token else None}  # fmt: skip
    named = {end: (pieces[number].piece, number) for end, number in frame.items() if number is not None}
    if not named:
        return
    front = f"{named['bos'][0]} " if "bos" in named else ""
    behind = f" {named['eos'][0]}" if "eos" in named else ""
    backend.post_processor = processors.TemplateProcessing(
        single=f"{front}$A{behind}", pair=f"{front}$A{behind} {front}$B{behind}", special_tokens=list(named.values())
    )


def _compare(tokenizer: SentencePieceTokenizer, made: Any) -> None:
    from gqacheck.runtime.corpora.asked import SMOKE
    from gqacheck.runtime.corpus import load_corpus

    for segment in load_corpus(SMOKE).segments:
        for text in (segment.text[:20_000], *segment.text.splitlines()[:200], "a  b ", ""):
            for special in (True, False):
                ours = tokenizer.encode(text, add_special_tokens=special)
                if list(made.encode(text, add_special_tokens=special)) != ours:
                    raise NotTheSame("its sentencepiece model gives other ids once it is written as tokenizer.json")
