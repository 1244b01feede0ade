"""The checkpoint's tokenizer, recovered as data: from its folder, its ``tokenizers`` JSON or its sentencepiece model.

Nothing is unpickled, no code from a folder is run, and the hub is never asked.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gqacheck.checkpoint import Checkpoint, Plain, TokenizerInfo
from gqacheck.errors import GqacheckError, ReadError
from gqacheck.formats.model_files import read_json
from gqacheck.runtime.configure import CannotRun, one_line
from gqacheck.runtime.tokenizer_bounds import refuse_expansion
from gqacheck.text import printable

MAX_TOKENIZER_BYTES = 128 << 20
_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_PASSED_ON = ("padding_side", "truncation_side", "model_max_length", "clean_up_tokenization_spaces", "chat_template")
# What the slow classes do when their state does not say: Llama's and Gemma's put BOS in front.
_SENTENCEPIECE_BOS = True


class MissingTokenizer(GqacheckError):
    """No tokenizer can be recovered, so no text can be measured; name one with ``--tokenizer`` (exit 3)."""


@dataclass(frozen=True, slots=True)
class TextEncoder:
    """Text to ids. ``prefix``: the ids that the tokenizer itself puts in front of a text (BOS, mostly, or none)."""

    tokenizer: Any
    prefix: tuple[int, ...]
    prefix_name: str

    def encode(self, text: str) -> list[int]:
        """The ids of ``text``, without anything in front or behind.

        Raises:
            ReadError: the tokenizer fails on the text.
        """
        return self._encode(text, add_special_tokens=False)

    def encode_whole(self, text: str) -> list[int]:
        """The ids of ``text`` with all that the tokenizer itself adds to one, as ``tokenizer(text)`` gives them.

        Raises:
            ReadError: the tokenizer fails on the text.
        """
        return self._encode(text)

    def encode_document(self, text: str) -> list[int]:
        """The ids of one of many documents: ``encode_whole``, unless the text itself begins with BOS.

        Raises:
            ReadError: the tokenizer fails on the text.
        """
        bos = self.special("bos")
        written = self.tokenizer.decode([bos]) if bos is not None else ""
        return self.encode(text) if written and text.startswith(written) else self.encode_whole(text)

    def special(self, name: str) -> int | None:
        """The id of the tokenizer's ``bos``, ``eos`` or ``pad`` token, None when it has none."""
        found = getattr(self.tokenizer, f"{name}_token_id", None)
        return found if isinstance(found, int) else None

    def rolling_prefix(self) -> int:
        """What stands before a document that must be scored from its first token: BOS, or EOS where there is none.

        Raises:
            ReadError: the tokenizer has neither.
        """
        bos = self.special("bos")
        found = self.special("eos") if bos is None else bos
        if found is None:
            raise ReadError(
                "this protocol puts BOS or EOS before each document and the tokenizer has neither: use windows-512"
            )
        return found

    def name_of(self, token: int) -> str:
        """``BOS``, ``EOS`` or ``token 7``."""
        names = {self.special("eos"): "EOS", self.special("bos"): "BOS"}
        return names.get(token, f"token {token}")

    def _encode(self, text: str, **options: bool) -> list[int]:
        try:
            return list(self.tokenizer.encode(text, **options))
        except BaseException as error:  # whatever a third-party tokenizer raises; a panic in Rust is no Exception
            pass_on(error)
            raise ReadError(f"the tokenizer cannot encode the text: {one_line(error)}") from error

    def check_ids(self, tokens: Sequence[Sequence[int]], rows: int) -> None:
        """Nothing, when every id has a row in the embedding.

        Raises:
            CannotRun: at stage ``tokenizer``, with the largest id.
        """
        top = max((max(ids) for ids in (*tokens, self.prefix) if ids), default=0)
        if top >= rows:
            raise CannotRun(
                f"the tokenizer gives ids up to {top} but the embedding has {rows} rows: it belongs to another model; "
                "name the right one with --tokenizer",
                stage="tokenizer",
            )


def make_encoder(tokenizer: Any) -> TextEncoder:
    """An encoder around ``tokenizer``; what it puts in front of a text is found by encoding one.

    Raises:
        MissingTokenizer: it fails on a single letter.
    """
    try:
        with_special = list(tokenizer.encode("a"))
        bare = list(tokenizer.encode("a", add_special_tokens=False))
    except BaseException as error:  # a panic in Rust is no Exception
        pass_on(error)
        raise MissingTokenizer(
            f"the tokenizer of the checkpoint cannot encode ({one_line(error)}): name another with --tokenizer"
        ) from error
    for start in range(len(with_special) - len(bare) + 1):
        if with_special[start : start + len(bare)] == bare:
            prefix = tuple(with_special[:start])
            break
    else:
        prefix = ()
    bos = getattr(tokenizer, "bos_token_id", None)
    return TextEncoder(tokenizer, prefix, "BOS" if prefix == (bos,) else f"the tokenizer's prefix of {len(prefix)} ids")


def open_tokenizer(checkpoint: Checkpoint, given: str | None = None) -> Any:
    """A tokenizer with the interface of transformers: ``given`` (a folder or file) or the checkpoint's own.

    Raises:
        MissingTokenizer: there is none, or it cannot be recovered.
        ReadError: ``given`` cannot be read.
    """
    from gqacheck.runtime.quiet import quiet_and_offline

    with quiet_and_offline():
        if given is not None:
            return _open_given(given)
        info = checkpoint.tokenizer
        if info is None:
            raise MissingTokenizer(
                "no tokenizer is stored with the checkpoint: name a folder or tokenizer file with --tokenizer"
            )
        try:
            return _recover(info)
        except MissingTokenizer:
            raise
        except BaseException as error:  # hostile data can make the libraries raise anything
            pass_on(error)
            raise MissingTokenizer(
                f"the tokenizer of the checkpoint cannot be used ({one_line(error)}): name one with --tokenizer"
            ) from error


def _open_given(path: str) -> Any:
    try:
        if os.path.isdir(path):
            return _from_folder(path, {})
        if not os.path.isfile(path):
            raise ReadError(f"--tokenizer {printable(path)}: no such file or folder")
        data = _read(path, 0, os.path.getsize(path))
        if data.lstrip()[:1] == b"{":  # a sentencepiece model starts with a newline, too
            return _from_json(data.decode("utf-8"), {})
        return _from_sentencepiece(data, {})
    except ReadError:
        raise
    except BaseException as error:  # as above
        pass_on(error)
        raise ReadError(
            f"--tokenizer {printable(path)}: no tokenizer can be made of it: {printable(one_line(error))}"
        ) from error


def _recover(info: TokenizerInfo) -> Any:
    if info.kind == "folder":
        return _from_folder(info.file, info.attributes)
    data = _read(info.file, info.offset, info.nbytes)
    if info.encoding == "latin-1-utf-8":
        data = data.decode("utf-8").encode("latin-1")
    if info.kind == "tokenizers-json":
        return _from_json(data.decode("utf-8"), info.attributes)
    return _from_sentencepiece(data, info.attributes)


def _read(path: str, offset: int, nbytes: int) -> bytes:
    if not 0 < nbytes <= MAX_TOKENIZER_BYTES:
        raise ReadError(f"a tokenizer of {nbytes} bytes is not read (at most {MAX_TOKENIZER_BYTES})")
    with open(path, "rb") as stream:
        stream.seek(offset)
        data = stream.read(nbytes)
    if len(data) != nbytes:
        raise ReadError(f"{printable(path)} ends inside the tokenizer")
    return data


def _from_folder(folder: str, attributes: Any) -> Any:
    from transformers import AutoTokenizer

    stored = os.path.join(folder, "tokenizer.json")
    if os.path.isfile(stored):
        refuse_expansion(_read(stored, 0, os.path.getsize(stored)).decode("utf-8"))
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except BaseException as error:  # a folder whose class is unknown or remote may still hold the data
        pass_on(error)
        attributes = attributes or _settings_of(folder)
        for name, make in (("tokenizer.json", None), ("tokenizer.model", _from_sentencepiece)):
            path = os.path.join(folder, name)
            if os.path.isfile(path):
                data = _read(path, 0, os.path.getsize(path))
                return make(data, attributes) if make else _from_json(data.decode("utf-8"), attributes)
        raise MissingTokenizer(
            f"no tokenizer can be read from {printable(folder)} ({one_line(error)}): name one with --tokenizer"
        ) from error


def _settings_of(folder: str) -> dict[str, Plain]:
    """What tokenizer_config.json says, a special token by its text."""
    try:
        values, _, _ = read_json(os.path.join(folder, "tokenizer_config.json"))
    except ReadError:
        return {}
    return {key: value.get("content") if isinstance(value, Mapping) else value for key, value in values.items()}


def pass_on(error: BaseException) -> None:
    """Raises ``error`` again when it is not one of a library: somebody wants to leave."""
    if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit):
        raise error


def _from_json(text: str, attributes: Any) -> Any:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    refuse_expansion(text)
    backend = Tokenizer.from_str(text)
    backend.no_padding()
    backend.no_truncation()
    passed: dict[str, Plain] = {name: attributes[name] for name in (*_SPECIAL, *_PASSED_ON) if attributes.get(name)}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **passed)


def _from_sentencepiece(data: bytes, attributes: Any) -> Any:
    return SentencePieceTokenizer(data, attributes)


class SentencePieceTokenizer:
    """A sentencepiece model with the few methods of a transformers tokenizer that measuring and generating need."""

    def __init__(self, model: bytes, attributes: Any) -> None:
        from sentencepiece import SentencePieceProcessor

        self.model_proto = model
        self._model = SentencePieceProcessor(model_proto=model)
        self.bos_token_id = self._special(attributes.get("bos_token"), self._model.bos_id())
        self.eos_token_id = self._special(attributes.get("eos_token"), self._model.eos_id())
        self.pad_token_id = self._special(attributes.get("pad_token"), self._model.pad_id())
        stated = attributes.get("add_bos_token")
        self.add_bos_token = stated if isinstance(stated, bool) else _SENTENCEPIECE_BOS
        self.add_eos_token = attributes.get("add_eos_token") is True

    def _special(self, token: Any, fallback: int) -> int | None:
        if isinstance(token, str):
            found = int(self._model.piece_to_id(token))
            if self._model.id_to_piece(found) == token:
                return found
        return int(fallback) if fallback >= 0 else None

    def __len__(self) -> int:
        return int(self._model.get_piece_size())

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """The ids of ``text``; with BOS in front when the model was made so and ``add_special_tokens``."""
        ids = [int(token) for token in self._model.encode(text)]
        if add_special_tokens and self.add_bos_token and self.bos_token_id is not None:
            ids = [self.bos_token_id, *ids]
        if add_special_tokens and self.add_eos_token and self.eos_token_id is not None:
            ids = [*ids, self.eos_token_id]
        return ids

    def __call__(self, text: str, return_tensors: str | None = None, add_special_tokens: bool = True) -> Any:
        """A mapping with ``input_ids`` and ``attention_mask`` of one text, as ``model.generate(**...)`` takes it."""
        from transformers import BatchEncoding

        ids = self.encode(text, add_special_tokens=add_special_tokens)
        found: dict[str, Any] = {"input_ids": ids, "attention_mask": [1] * len(ids)}
        if return_tensors is not None:
            found = {key: [value] for key, value in found.items()}
        return BatchEncoding(found, tensor_type=return_tensors)

    def decode(self, ids: Any, skip_special_tokens: bool = False) -> str:
        """The text of ``ids`` (a list or a one-dimensional tensor)."""
        numbers = [int(token) for token in ids]
        special = {self.bos_token_id, self.eos_token_id, self.pad_token_id}
        kept = [n for n in numbers if n < len(self) and not (skip_special_tokens and n in special)]
        return str(self._model.decode(kept))

    def batch_decode(self, sequences: Any, skip_special_tokens: bool = False) -> list[str]:
        """The texts of several sequences of ids."""
        return [self.decode(ids, skip_special_tokens) for ids in sequences]
