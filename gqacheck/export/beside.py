"""What lies beside the weights: the tokenizer, the generation settings, and the files that a licence asks for."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from typing import Any

from gqacheck.checkpoint import Checkpoint, Container
from gqacheck.errors import GqacheckError, ReadError
from gqacheck.formats.model_files import TOKENIZER_FILES, list_folder
from gqacheck.formats.source import Source
from gqacheck.text import printable

_MAX_COPIED = 256 << 20
_CHUNK = 1 << 24
_TOKENIZER_SET = TOKENIZER_FILES | {
    "added_tokens.json", "chat_template.jinja", "chat_template.json", "merges.txt", "special_tokens_map.json",
    "tokenizer_config.json",
}  # fmt: skip
_PAPERS = ("LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE", "NOTICE.txt", "README.md", "USE_POLICY.md")
_SETTINGS = "tokenizer_config.json"
_ALWAYS = ("bos_token_id", "eos_token_id", "pad_token_id")
# What generation does anyway when nothing is said.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "max_length": (20,), "num_beams": (1,), "num_beam_groups": (1,), "temperature": (1.0,), "top_k": (50,),
    "top_p": (1.0,), "typical_p": (1.0,), "repetition_penalty": (1.0,), "encoder_repetition_penalty": (1.0,),
    "length_penalty": (1.0,), "num_return_sequences": (1,), "use_cache": (True,), "num_assistant_tokens": (5, 20),
    "num_assistant_tokens_schedule": ("heuristic", "constant"), "assistant_confidence_threshold": (0.4,),
    "assistant_lookbehind": (10,), "target_lookbehind": (10,),
}  # fmt: skip
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p")


def write_generation_config(folder: str, checkpoint: Checkpoint, config: Mapping[str, Any]) -> list[str]:
    """Writes generation_config.json: the checkpoint's settings that say something, and the ids of its special tokens.

    Returns sentences on what was changed.
    """
    import transformers

    from gqacheck.runtime.configure import plain_copy

    stated = checkpoint.generation_config or checkpoint.config
    values = plain_copy(stated.values) if stated is not None else {}
    known = set(transformers.GenerationConfig().to_dict())
    kept = {key: value for key, value in values.items() if key in known and _says_something(key, value)}
    kept = {key: config.get(key) for key in _ALWAYS if config.get(key) is not None} | kept
    kept.pop("transformers_version", None)
    notes = []
    idle = [key for key in _SAMPLING if key in kept and kept.get("do_sample") is not True]
    if idle:
        for key in idle:
            del kept[key]
        notes.append(
            f"generation_config: {', '.join(idle)} left out: nothing samples, and transformers 5 refuses to save it"
        )
    refused = _refused_settings(kept)
    if refused:
        kept = {key: config[key] for key in _ALWAYS if config.get(key) is not None}
        notes = [f"generation_config: left out but for the special tokens, because transformers refuses it ({refused})"]
    kept["transformers_version"] = transformers.__version__
    with open(os.path.join(folder, "generation_config.json"), "x", encoding="utf-8") as stream:
        json.dump(kept, stream, indent=2, sort_keys=True)
        stream.write("\n")
    return notes


def _refused_settings(values: Mapping[str, Any]) -> str:
    """Why the class of transformers does not take these generation settings, "" when it does."""
    from transformers import GenerationConfig

    from gqacheck.runtime.configure import one_line

    try:
        json.dumps(values, sort_keys=True, allow_nan=False)
        GenerationConfig.from_dict(dict(values))
    except Exception as error:  # a config class raises whatever it likes
        return printable(one_line(error))
    return ""


def _says_something(key: str, value: Any) -> bool:
    if key in _ALWAYS:
        return value is not None
    return bool(value) and not key.startswith("_") and value not in _NEUTRAL.get(key, ())


def write_tokenizer(folder: str, checkpoint: Checkpoint, given: str | None, *, code_too: bool = False) -> str:
    """Writes the tokenizer: the files of the checkpoint's folder, or what can be recovered of a pickled one.

    code_too: the Python files of the folder are in ``folder`` already. Returns what became of it, in a clause.

    Raises:
        ReadError: ``given`` (a folder or file) cannot be read.
    """
    if given is not None:
        return _write_given(folder, given)
    info = checkpoint.tokenizer
    if info is None:
        return "none is stored with the checkpoint"
    if info.kind == "folder" and (code_too or not _needs_code(info.file)):
        return f"copied ({_copy_tokenizer(info.file, folder, code_too=code_too)})"
    from gqacheck.runtime.tokenizer import MissingTokenizer, open_tokenizer

    try:
        tokenizer = open_tokenizer(checkpoint)
    except MissingTokenizer as error:
        return f"none: {_reason(error)}"
    return save_tokenizer(folder, tokenizer, checkpoint)


def _reason(error: GqacheckError) -> str:
    """What is said of a tokenizer, without the advice to name another."""
    return printable(str(error).partition(": name ")[0], 300)


def _write_given(folder: str, given: str) -> str:
    if os.path.isdir(given):
        if TOKENIZER_FILES.isdisjoint(list_folder(given).files):
            raise ReadError(f"--tokenizer {printable(given)}: no tokenizer lies in that folder")
        if not _needs_code(given):
            return f"copied from {printable(given)} ({_copy_tokenizer(given, folder)})"
    from gqacheck.runtime.tokenizer import open_tokenizer

    tokenizer = open_tokenizer(Checkpoint("", "", "", Container.FOLDER, {}), given)
    return save_tokenizer(folder, tokenizer, None)


def tokenizer_fault(folder: str, checkpoint: Checkpoint, given: str | None, *, own_code: bool) -> str:
    """Why ``AutoTokenizer`` does not read the source's tokenizer from the folder; "" when it does or there is none."""
    from transformers import AutoTokenizer

    from gqacheck.runtime.configure import one_line
    from gqacheck.runtime.corpora.asked import SMOKE
    from gqacheck.runtime.corpus import load_corpus
    from gqacheck.runtime.tokenizer import open_tokenizer, pass_on

    if TOKENIZER_FILES.isdisjoint(os.listdir(folder)):
        return ""
    try:
        source = open_tokenizer(checkpoint, given)
    except GqacheckError as error:
        return f"its files are copied as they are, and nothing here reads them: {_reason(error)}"
    try:
        made = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=own_code)
        for segment in load_corpus(SMOKE).segments:
            if list(made.encode(segment.text)) != list(source.encode(segment.text)):
                return f"AutoTokenizer reads it as {type(made).__name__} and gives other ids for the built-in text"
    except BaseException as error:  # a third-party tokenizer raises whatever it likes; a panic in Rust is no Exception
        pass_on(error)
        return f"AutoTokenizer cannot read it: {printable(one_line(error), 200)}"
    return ""


def _needs_code(folder: str) -> bool:
    """Whether the tokenizer in ``folder`` is Python of its own; with a tokenizer.json it is all there without."""
    if os.path.isfile(os.path.join(folder, "tokenizer.json")) or not os.path.isfile(os.path.join(folder, _SETTINGS)):
        return False
    try:
        return bool(_read_settings(folder).get("auto_map"))
    except (OSError, TypeError, ValueError, RecursionError):
        return False


def _copy_tokenizer(folder: str, to: str, *, code_too: bool = False) -> str:
    """Copies the tokenizer's files; their names, as words."""
    names = _copy(folder, to, _TOKENIZER_SET)
    said = _settle_settings(to, code_too=code_too)
    return ", ".join(names) + said


def save_tokenizer(folder: str, tokenizer: Any, checkpoint: Checkpoint | None, *, code_too: bool = False) -> str:
    """Writes a tokenizer in memory, recovered from ``checkpoint`` where that is one; what became of it, in a clause.

    code_too: it is the caller's own, and so is the Python that it may bring along.
    """
    from gqacheck.runtime.configure import one_line
    from gqacheck.runtime.quiet import quiet_and_offline
    from gqacheck.runtime.tokenizer import SentencePieceTokenizer, pass_on

    try:
        with quiet_and_offline():
            if isinstance(tokenizer, SentencePieceTokenizer):
                from gqacheck.export.sentencepiece import fast_tokenizer

                info = checkpoint.tokenizer if checkpoint is not None else None
                tokenizer = fast_tokenizer(tokenizer, info.attributes if info is not None else {})
            tokenizer.save_pretrained(folder)
        _settle_settings(folder, code_too=code_too)
    except OSError:
        raise
    except BaseException as error:  # as above; the model is worth having without
        pass_on(error)
        if "os error 28" in str(error):  # the tokenizers library writes for itself
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        for name in os.listdir(folder):
            if name in _TOKENIZER_SET:
                os.unlink(os.path.join(folder, name))
        return f"none: it cannot be written ({printable(one_line(error), 200)})"
    if checkpoint is None or checkpoint.tokenizer is None:
        return "written from --tokenizer"
    return f"recovered from the {'folder' if checkpoint.tokenizer.kind == 'folder' else 'pickle'}"


def _read_settings(folder: str) -> dict[str, Any]:
    """tokenizer_config.json as transformers reads it: by the same parser, whatever a stricter one says of it.

    Raises:
        OSError: it is not there.
        TypeError, ValueError, RecursionError: it is no JSON object.
    """
    with open(os.path.join(folder, _SETTINGS), encoding="utf-8") as stream:
        values = json.load(stream)
    if not isinstance(values, dict):
        raise TypeError(_SETTINGS)
    return values


def _settle_settings(folder: str, *, code_too: bool = False) -> str:
    """Makes the tokenizer_config.json in ``folder`` one that either transformers reads and that leads to no code.

    The class and the added tokens are said in the words of transformers 4, which 5 reads too. ``auto_map`` names Python
    that would be run, from here or from anywhere, wherever ``trust_remote_code`` is given for the model's sake.
    Returns what was left out, in a clause.
    """
    path = os.path.join(folder, _SETTINGS)
    try:
        values = _read_settings(folder)
    except FileNotFoundError:
        return ""
    except (TypeError, ValueError, RecursionError):
        os.unlink(path)  # what is not understood here must not be understood elsewhere
        return f"; {_SETTINGS} left out: it is no JSON object"
    said, left = dict(values), ""
    if not code_too and said.pop("auto_map", None) is not None:
        if os.path.exists(os.path.join(folder, "tokenizer.json")):
            said["tokenizer_class"] = "PreTrainedTokenizerFast"
        left = "; its own code left out"
    if said.get("tokenizer_class") == "TokenizersBackend":
        said["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(said.get("extra_special_tokens"), list | tuple) and "additional_special_tokens" not in said:
        said["additional_special_tokens"] = said.pop("extra_special_tokens")
    if said != values:
        with open(path, "w", encoding="utf-8") as written:
            json.dump(said, written, indent=2)
            written.write("\n")
    return left


def write_papers(folder: str, checkpoint: Checkpoint, *, card: bool = True) -> None:
    """Copies licence and notice of a folder; with ``card`` its model card too."""
    if checkpoint.container is Container.FOLDER and os.path.isdir(checkpoint.root):
        _copy(checkpoint.root, folder, _PAPERS if card else tuple(name for name in _PAPERS if name != "README.md"))


def _copy(folder: str, to: str, wanted: Any) -> list[str]:
    """Copies the files of ``folder`` that are ``wanted``; their names."""
    found = []
    for name in list_folder(folder).files:
        path = os.path.join(folder, name)
        if name not in wanted or os.path.lexists(os.path.join(to, name)) or os.path.getsize(path) > _MAX_COPIED:
            continue
        with Source.open(path) as source, open(os.path.join(to, name), "xb") as stream:
            for at in range(0, source.size, _CHUNK):
                stream.write(source.read(at, min(_CHUNK, source.size - at)))
        found.append(name)
    return found
