"""What lies beside the weights: the tokenizer, the generation settings, and the files that a licence asks for."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from typing import Any

from gqacheck.checkpoint import Checkpoint, Container
from gqacheck.errors import GqacheckError, ReadError
from gqacheck.formats.model_files import TOKENIZER_FILES, list_folder, read_json
from gqacheck.formats.source import Source
from gqacheck.text import printable

_MAX_COPIED = 256 << 20
_CHUNK = 1 << 24
_TOKENIZER_SET = TOKENIZER_FILES | {
    "added_tokens.json", "chat_template.jinja", "chat_template.json", "merges.txt", "special_tokens_map.json",
    "tokenizer_config.json",
}  # fmt: skip
_PAPERS = ("LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE", "NOTICE.txt", "README.md", "USE_POLICY.md")
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
    kept["transformers_version"] = transformers.__version__
    with open(os.path.join(folder, "generation_config.json"), "x", encoding="utf-8") as stream:
        json.dump(kept, stream, indent=2, sort_keys=True)
        stream.write("\n")
    return notes


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
    if info.kind == "folder" and (code_too or not _brings_code(info.file)):
        names = _copy(info.file, folder, _TOKENIZER_SET)
        _name_for_both(folder)
        return f"copied ({', '.join(names)})"
    from gqacheck.runtime.tokenizer import MissingTokenizer, open_tokenizer

    try:
        tokenizer = open_tokenizer(checkpoint)
    except MissingTokenizer as error:
        return f"none: {printable(str(error).partition(': name ')[0], 300)}"
    return save_tokenizer(folder, tokenizer, checkpoint)


def _write_given(folder: str, given: str) -> str:
    if os.path.isdir(given):
        names = _copy(given, folder, _TOKENIZER_SET)
        if TOKENIZER_FILES.isdisjoint(names):
            raise ReadError(f"--tokenizer {printable(given)}: no tokenizer lies in that folder")
        _name_for_both(folder)
        return f"copied from {printable(given)} ({', '.join(names)})"
    from gqacheck.runtime.tokenizer import open_tokenizer

    tokenizer = open_tokenizer(Checkpoint("", "", "", Container.FOLDER, {}), given)
    return save_tokenizer(folder, tokenizer, None)


def tokenizer_fault(folder: str, checkpoint: Checkpoint, given: str | None, *, own_code: bool) -> str:
    """Why ``AutoTokenizer`` does not read the source's tokenizer from the folder; "" when it does or there is none."""
    from transformers import AutoTokenizer

    from gqacheck.runtime.configure import one_line
    from gqacheck.runtime.corpus import SMOKE, load_corpus
    from gqacheck.runtime.tokenizer import open_tokenizer

    if TOKENIZER_FILES.isdisjoint(os.listdir(folder)):
        return ""
    try:
        source = open_tokenizer(checkpoint, given)
    except GqacheckError:
        return ""  # its files are copied, and nothing here can read them
    try:
        made = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=own_code)
        for segment in load_corpus(SMOKE).segments:
            if list(made.encode(segment.text)) != list(source.encode(segment.text)):
                return f"AutoTokenizer reads it as {type(made).__name__} and gives other ids for the built-in text"
    except Exception as error:  # a third-party tokenizer raises whatever it likes
        return f"AutoTokenizer cannot read it: {printable(one_line(error), 200)}"
    return ""


def _brings_code(folder: str) -> bool:
    """Whether the tokenizer in ``folder`` wants Python of that folder to be run."""
    path = os.path.join(folder, "tokenizer_config.json")
    try:
        return os.path.isfile(path) and bool(read_json(path)[0].get("auto_map"))
    except GqacheckError:
        return False


def save_tokenizer(folder: str, tokenizer: Any, checkpoint: Checkpoint | None) -> str:
    """Writes a tokenizer in memory, recovered from ``checkpoint`` where that is one; what became of it, in a clause."""
    from gqacheck.runtime.configure import one_line
    from gqacheck.runtime.quiet import quiet_and_offline
    from gqacheck.runtime.tokenizer import SentencePieceTokenizer

    try:
        with quiet_and_offline():
            if isinstance(tokenizer, SentencePieceTokenizer):
                from gqacheck.export.sentencepiece import fast_tokenizer

                info = checkpoint.tokenizer if checkpoint is not None else None
                tokenizer = fast_tokenizer(tokenizer, info.attributes if info is not None else {})
            tokenizer.save_pretrained(folder)
        _name_for_both(folder)
    except OSError:
        raise
    except Exception as error:  # a third-party tokenizer raises whatever it likes; the model is worth having without
        if "os error 28" in str(error):  # the tokenizers library writes for itself
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        for name in os.listdir(folder):
            if name in _TOKENIZER_SET:
                os.unlink(os.path.join(folder, name))
        return f"none: it cannot be written ({printable(one_line(error), 200)})"
    return "recovered from the pickle" if checkpoint is not None else "written from --tokenizer"


def _name_for_both(folder: str) -> None:
    """Says in the words of transformers 4 what 5 has other words for and reads in either: the class, added tokens."""
    path = os.path.join(folder, "tokenizer_config.json")
    try:
        with open(path, encoding="utf-8") as stream:
            values = json.load(stream)
        said = dict(values)
    except (FileNotFoundError, TypeError, ValueError, RecursionError):
        return  # as it is; whether it can be read is tried and told
    if said.get("tokenizer_class") == "TokenizersBackend":
        said["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(said.get("extra_special_tokens"), list | tuple) and "additional_special_tokens" not in said:
        said["additional_special_tokens"] = said.pop("extra_special_tokens")
    if said != values:
        with open(path, "w", encoding="utf-8") as written:
            json.dump(said, written, indent=2)
            written.write("\n")


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
