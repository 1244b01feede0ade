"""Bytes to ``Checkpoint``: what a path holds, read by its headers alone, with nothing executed."""

from __future__ import annotations

import os
import time
from dataclasses import replace

from gqacheck.checkpoint import Checkpoint, ConfigInfo, Container, Defect
from gqacheck.errors import NotACheckpoint, ReadError
from gqacheck.formats import hub_cache
from gqacheck.formats.huggingface import open_folder, refuse_foreign
from gqacheck.formats.identify import FileKind
from gqacheck.formats.model_files import (
    Listing,
    brings_own_code,
    find_tokenizer,
    group_notes,
    list_folder,
    read_config,
)
from gqacheck.formats.quantized import detect_quantization
from gqacheck.formats.shards import Joined, find_index, parse_shard_name
from gqacheck.formats.weight_sets import WeightSet, numbered_set
from gqacheck.formats.weights import Weights, read_weights
from gqacheck.text import printable

__all__ = ["open_checkpoint"]

MAX_MESSAGE = 600
"""Characters of an error; longer ones, made of names in the file, lose their middle."""


def open_checkpoint(path: str | os.PathLike[str], *, config: str | os.PathLike[str] | None = None) -> Checkpoint:
    """The facts of the checkpoint at ``path``: a weight file, an index, a model folder or a name in the HF cache.

    What it is is decided by content. Headers are read, weights are not, and nothing is executed. ``config`` is a
    JSON file (or a folder with a config.json) that replaces the checkpoint's own config.

    - A folder is read as ``from_pretrained`` would (``Container.FOLDER``), an index as the folder that it lies in, and
      so is one numbered shard, since a shard alone is no model.
    - A file is read by itself: a whole-module pickle runs from its modules (``Container.MODULE``); a state dict or a
      safetensors file is ``Container.STATE_DICT`` even inside a model folder, because whoever names the file may
      build anything around it. The config.json beside it is used where the file has no config of its own, and is
      then called ``config.json beside the file``.

    Raises ``NotACheckpoint`` for a file of another kind, naming the command that converts it, and ``ReadError`` for
    what cannot be read at all. Both are one line.

        >>> open_checkpoint("model.safetensors").format     # doctest: +SKIP
        'safetensors'
    """
    started = time.perf_counter()
    given = os.fsdecode(os.fspath(path))
    try:
        where = _locate(given)
        replacement, defects, nbytes = _read_replacement(config)
        if os.path.isdir(where):
            checkpoint = open_folder(where, config=replacement)
        else:
            checkpoint = _open_file(where, replacement)
    except ReadError as error:
        raise type(error)(printable(error, MAX_MESSAGE)) from None
    return replace(
        checkpoint,
        path=given,
        defects=checkpoint.defects + defects,
        bytes_read=checkpoint.bytes_read + nbytes,
        seconds=time.perf_counter() - started,
    )


def _locate(path: str) -> str:
    """The path on disk; names that are not on disk are looked up in the Hugging Face cache."""
    shown = printable(path)
    if not path:
        raise ReadError("the path is empty; give a weight file or a model folder")
    try:
        os.stat(path)
    except FileNotFoundError:
        if os.path.islink(path):
            raise ReadError(f"{shown}: is a link to {printable(os.readlink(path))}, which does not exist") from None
        return hub_cache.find_in_cache(path)
    except (OSError, ValueError) as error:
        reason = (getattr(error, "strerror", None) or "this is no path that the system accepts").lower()
        raise ReadError(f"{shown}: {reason}") from None
    if hub_cache.is_cache_entry(path):
        return hub_cache.find_snapshot(path)
    return path


def _read_replacement(path: str | os.PathLike[str] | None) -> tuple[ConfigInfo | None, tuple[Defect, ...], int]:
    if path is None:
        return None, (), 0
    name = os.fsdecode(os.fspath(path))
    if os.path.isdir(name):
        name = os.path.join(name, "config.json")
    return read_config(name, f"--config {printable(os.path.basename(name), 60)}")


def _open_file(path: str, replacement: ConfigInfo | None) -> Checkpoint:
    folder, name = os.path.split(path)
    folder = folder or "."
    if name.endswith(".json") and ".index" in name:
        return open_folder(folder, config=replacement, only=WeightSet(name, index=name))
    whole = _find_whole_set(folder, name)
    if whole is not None:
        checkpoint = open_folder(folder, config=replacement, only=whole)
        note = f"{printable(name)} is one shard of several: the whole set was read"
        return replace(checkpoint, ignored=(note, *checkpoint.ignored))
    return _build_from_file(read_weights(path), folder, replacement)


def _find_whole_set(folder: str, name: str) -> WeightSet | None:
    """The set that the numbered shard ``name`` belongs to; None when it is no shard, or the only one.

    Raises ``NotACheckpoint`` when the others are not beside it.
    """
    shard = parse_shard_name(name)
    if shard is None or int(shard.total) == 1:
        return None
    listing = list_folder(folder)
    index = find_index(listing.files, shard)
    if index is not None:
        return WeightSet(index, index=index)
    whole = numbered_set(listing, shard)
    if len(whole.numbered) == 1:
        raise NotACheckpoint(
            f"{printable(os.path.join(folder, name))}: is shard {shard.number:,} of {int(shard.total):,} and the "
            f"others are not beside it; give the folder that holds all of them"
        )
    return whole


def _build_from_file(weights: Weights, folder: str, replacement: ConfigInfo | None) -> Checkpoint:
    listing = _list_beside(folder)
    refuse_foreign(Joined(weights.tensors, (weights,), ()), weights.path, listing)
    config = replacement or weights.config
    defects = weights.defects
    notes = list(group_notes(weights.ignored))
    bytes_read = weights.bytes_read
    if config is None and "config.json" in listing.files:
        try:
            config, found, nbytes = read_config(os.path.join(folder, "config.json"), "config.json beside the file")
            defects += found
            bytes_read += nbytes
        except ReadError as error:
            notes.append(f"config.json beside the file was not read: {error}")
    quantization, note = detect_quantization(weights.tensors, config)
    if note:
        notes.append(note)
    return Checkpoint(
        path=weights.path,
        root=folder,
        format=_name_format(weights),
        container=Container.MODULE if weights.kind == "module" else Container.STATE_DICT,
        tensors=weights.tensors,
        modules=weights.modules,
        config=config,
        generation_config=weights.generation_config,
        tokenizer=weights.tokenizer or find_tokenizer(listing),
        globals=weights.globals,
        unwrapped=weights.unwrapped,
        defects=defects,
        ignored=tuple(notes),
        quantization=quantization,
        own_code=config is not None and brings_own_code(config.values, listing.files),
        file_bytes=weights.size,
        bytes_read=bytes_read,
    )


def _list_beside(folder: str) -> Listing:
    """What lies beside the file; nothing where that cannot be told, for the file was given by name."""
    try:
        return list_folder(folder)
    except ReadError:
        return Listing(folder, (), ())


def _name_format(weights: Weights) -> str:
    if weights.file_kind is FileKind.SAFETENSORS:
        return "safetensors"
    return f"{weights.file_kind.value}-{weights.kind}"
