"""The files around the weights: what lies in a model folder, its config, its tokenizer, and what is left alone."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from gqacheck.checkpoint import ConfigInfo, Defect, Plain, TokenizerInfo
from gqacheck.errors import NotACheckpoint, ReadError
from gqacheck.formats.identify import describe_text
from gqacheck.formats.source import Source
from gqacheck.formats.strict_json import describe_twice, read_plain
from gqacheck.text import printable, printable_list

MAX_ENTRIES = 100_000
MAX_CONFIG_BYTES = 16_000_000
MAX_INDEX_BYTES = 60_000_000

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")

TOKENIZER_FILES = frozenset(
    {
        "tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model",
        "tekken.json", "tokenizer.model.v3", "tokenizer.tiktoken", "qwen.tiktoken",
    }
)  # fmt: skip

_TRAINING = "training state, not read"
LEFT_ALONE: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        (
            "optimizer*.pt", "optimizer*.bin", "optimizer*.pth", "scheduler*.pt", "scheduler*.bin", "scaler.pt",
            "rng_state*.pth", "random_states_*.pkl", "training_args.bin", "trainer_state.json", "optimizer_*",
        ),
        _TRAINING,
    ),
    (("consolidated*", "original", "params.json"), "the model in its maker's own layout, not read"),
    (("*.gguf",), "a GGUF copy (llama.cpp), not read"),
    (("*.onnx", "*.onnx_data", "onnx"), "an ONNX copy, not read"),
    (
        ("tf_model*.h5", "flax_model*.msgpack", "rust_model.ot", "model.ckpt*", "*.mlpackage", "openvino*"),
        "weights for another framework, not read",
    ),
    (("global_step*", "zero_to_fp32.py", "*_optim_states.pt", "*_model_states.pt"), "DeepSpeed shards, not read"),
    (("pytorch_model_fsdp_*", "*.distcp", ".metadata"), "distributed checkpoint shards, not read"),
    (("adapter_model.*", "adapter_config.json"), "an adapter beside the model, not read and not applied"),
)  # fmt: skip
"""Patterns of names (with one ``*`` at most) that may lie beside a model, and why they are left alone."""


@dataclass(frozen=True, slots=True)
class Listing:
    """The names in one folder, sorted. ``broken`` are links that lead nowhere."""

    folder: str
    files: tuple[str, ...]
    folders: tuple[str, ...]
    broken: tuple[str, ...] = ()


def list_folder(folder: str) -> Listing:
    """What lies in ``folder``. Raises ``ReadError`` when it cannot be listed or holds too many entries."""
    files: list[str] = []
    folders: list[str] = []
    broken: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for count, entry in enumerate(entries):
                if count >= MAX_ENTRIES:
                    raise ReadError(
                        f"{printable(folder)}: holds more than {MAX_ENTRIES:,} entries; give the file itself"
                    )
                if _is_folder(entry):
                    folders.append(entry.name)
                elif entry.is_symlink() and not os.path.exists(entry.path):
                    broken.append(entry.name)
                else:
                    files.append(entry.name)
    except OSError as error:
        reason = (error.strerror or "it cannot be listed").lower()
        raise ReadError(f"{printable(folder)}: {reason}") from None
    return Listing(folder, tuple(sorted(files)), tuple(sorted(folders)), tuple(sorted(broken)))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def read_json(path: str, limit: int = MAX_CONFIG_BYTES) -> tuple[dict[str, Plain], tuple[str, ...], int]:
    """The JSON object in the file ``path``, the keys that stand in it twice, and the bytes read.

    Raises ``ReadError`` when the file is no JSON object, naming what it is instead where that shows.
    """
    shown = printable(path)
    with Source.open(path) as source:
        if source.size == 0:
            raise ReadError(f"{shown}: is empty (0 bytes); fetch or save it again")
        if source.size > limit:
            raise ReadError(f"{shown}: is {source.size:,} bytes long; more than {limit:,} are not read as JSON")
        data = source.read(0, source.size)
    if data.lstrip()[:1] != b"{":
        said = describe_text(data[:512])
        if said is not None and "weight file" not in said:
            raise NotACheckpoint(f"{shown}: is {said}")
    values, twice = read_plain(data, shown)
    return values, twice, len(data)


def read_config(path: str, source: str) -> tuple[ConfigInfo, tuple[Defect, ...], int]:
    """The config in the file ``path``, named ``source`` in messages, its defects, and the bytes read."""
    values, twice, nbytes = read_json(path)
    defects: tuple[Defect, ...] = ()
    if twice:
        what = printable(os.path.basename(path))
        defects = (Defect("ambiguous", describe_twice(twice, what), fix="keep each key once"),)
    return ConfigInfo(values, source), defects, nbytes


def read_generation_config(listing: Listing) -> tuple[ConfigInfo | None, str | None, int]:
    """generation_config.json where there is one; else a sentence why it was not read; and the bytes read."""
    name = "generation_config.json"
    if name not in listing.files:
        return None, None, 0
    try:
        values, _, nbytes = read_json(os.path.join(listing.folder, name))
    except ReadError as error:
        return None, f"{name}: not read ({error})", 0
    return ConfigInfo(values, name), None, nbytes


def find_tokenizer(listing: Listing) -> TokenizerInfo | None:
    """The folder as the place of its tokenizer, when tokenizer files lie in it."""
    if TOKENIZER_FILES.isdisjoint(listing.files):
        return None
    return TokenizerInfo("folder", listing.folder)


def brings_own_code(config: Mapping[str, Plain], files: Iterable[str]) -> bool:
    """Whether ``auto_map`` names a model class whose .py file lies in the folder."""
    auto_map = config.get("auto_map")
    if not isinstance(auto_map, Mapping):
        return False
    present = set(files)
    for key, value in auto_map.items():
        for reference in value if isinstance(value, tuple) else (value,):
            if key.startswith("AutoModel") and isinstance(reference, str):
                module = reference.rpartition("--")[2].rpartition(".")[0]
                if module and f"{module.replace('.', '/')}.py" in present:
                    return True
    return False


def reason_left_alone(name: str) -> str | None:
    """Why a file or folder of this name beside a model is left alone; None when it is not known."""
    for patterns, reason in LEFT_ALONE:
        if any(_matches(name, pattern) for pattern in patterns):
            return reason
    if "ema" in re.split(r"[^a-z]+", name.lower()) and (name.endswith(WEIGHT_SUFFIXES) or name.lower() == "ema"):
        return "an EMA copy, not read"
    return None


def _matches(name: str, pattern: str) -> bool:
    head, star, tail = pattern.partition("*")
    return name == pattern if not star else name.startswith(head) and name.endswith(tail, len(head))


def group_notes(notes: Iterable[str]) -> tuple[str, ...]:
    """The notes, printable; those that say one thing of many entries (``a: why``, ``b: why``) joined into one."""
    groups: dict[str, list[str]] = {}
    for note in dict.fromkeys(notes):
        groups.setdefault(note.partition(": ")[2] or note, []).append(note)
    told: list[str] = []
    for reason, same in groups.items():
        if len(same) > 2:
            names = printable_list([note.partition(": ")[0] for note in same], 2)
            told.append(f"{names}: {printable(reason)}")
        else:
            told.extend(printable(note, 300) for note in same)
    return tuple(told)


def tell_ignored(listing: Listing, read: Iterable[str]) -> tuple[str, ...]:
    """One sentence per reason for the files and folders that were seen and left alone; ``read`` were not."""
    groups: dict[str, list[str]] = {}
    used = set(read)
    for name in (*listing.files, *listing.folders):
        if name in used:
            continue
        reason = reason_left_alone(name)
        if reason is None and name in listing.files and name.endswith(WEIGHT_SUFFIXES):
            reason = "not part of the weights that were read"
        if reason is not None:
            groups.setdefault(reason, []).append(name)
    return tuple(f"{printable_list(names)}: {reason}" for reason, names in groups.items())
