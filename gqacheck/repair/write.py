"""A repaired checkpoint as files, in the kind of container that it came in."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gqacheck.checkpoint import Checkpoint, Container, TensorInfo
from gqacheck.errors import UsageError
from gqacheck.formats.model_files import TOKENIZER_FILES, Listing, list_folder
from gqacheck.formats.safetensors import read_safetensors
from gqacheck.formats.source import Source
from gqacheck.repair.config import ConfigEdits
from gqacheck.repair.facts import CannotRepair
from gqacheck.repair.place import names_a_file
from gqacheck.repair.tensor_files import told_when_full, write_safetensors, write_torch
from gqacheck.text import printable, printable_list

Progress = Callable[[str, int, int], None]
WORK_NAME = "out"
"""What is written is called so until it is moved to its place."""
_CHUNK = 1 << 24
_MAX_COPIED = 256 << 20
_BESIDE_A_FILE = TOKENIZER_FILES | {
    "added_tokens.json", "chat_template.jinja", "chat_template.json", "generation_config.json", "merges.txt",
    "special_tokens_map.json", "tokenizer_config.json",
}  # fmt: skip
_COPIED = _BESIDE_A_FILE | {
    "preprocessor_config.json", "processor_config.json", "LICENSE", "LICENSE.txt", "NOTICE", "README.md",
    "USE_POLICY.md",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Written:
    """What lies in the workplace: ``path`` is to be moved, ``check`` is what a user would check inside it.

    config: a config.json to check it with where it carries none. notes: what was not carried over.
    """

    path: str
    check: str
    config: str | None = None
    notes: tuple[str, ...] = ()


def refuse_destination(checkpoint: Checkpoint, out: str) -> None:
    """Nothing, when this kind of checkpoint can be written under the name ``out``.

    Raises:
        UsageError: it cannot.
    """
    if out.endswith(".safetensors") and checkpoint.container is not Container.STATE_DICT:
        kind = "a whole module" if checkpoint.container is Container.MODULE else "a folder with its config"
        raise UsageError(f"-o {printable(out)}: {kind} does not fit into one safetensors file; name a folder")


def write_checkpoint(
    made: Checkpoint,
    rebuild_model: Callable[[], Any],
    edits: ConfigEdits | None,
    source: Checkpoint,
    homes: Mapping[str, str],
    work: str,
    out: str,
    *,
    progress: Progress | None = None,
) -> Written:
    """Writes ``made`` under ``work``/out; its tensors may lie in ``source``'s files and in a patch.

    rebuild_model: gives (model, tokenizer) where a whole module is to be written. homes: tensor -> name of its file.
    """
    target = os.path.join(work, WORK_NAME + (os.path.splitext(out)[1] if names_a_file(out) else ""))
    as_file = names_a_file(out)
    if not as_file:
        os.mkdir(target)
    if made.container is Container.MODULE or (made.container is Container.FOLDER and as_file):
        return _write_module(made, rebuild_model, source, target, as_file=as_file)
    if made.container is Container.FOLDER:
        return _write_folder(made, edits, source, homes, target, progress)
    return _write_state_dict(made, edits, source, target, as_file=as_file)


def _write_module(
    made: Checkpoint, rebuild_model: Callable[[], Any], source: Checkpoint, target: str, *, as_file: bool
) -> Written:
    import torch

    model, tokenizer = rebuild_model()
    notes = []
    if made.container is Container.FOLDER:
        content: Any = {"model": model, "tokenizer": tokenizer}
        notes.append("written as one whole module, because a single file has no config beside it")
    else:
        content = model
        for key in reversed(made.unwrapped):
            content = {key: content}
        if len(made.unwrapped) == 1 and tokenizer is not None:
            content["tokenizer"] = tokenizer
        if made.format.startswith("torch-legacy"):
            notes.append("written in the zip format of torch 1.6 and later, not in the older one")
    path = target
    if not as_file:
        name = "pytorch_model.bin" if os.path.isdir(source.path) else os.path.basename(source.path)
        path = os.path.join(target, name)
        notes += _copy_beside(source, target, (name, "config.json"))
        if os.path.isdir(source.path) and os.path.isfile(os.path.join(source.root, "config.json")):
            _write_json(os.path.join(target, "config.json"), json.loads(model.config.to_json_string(use_diff=False)))
    with told_when_full(target), open(path, "xb") as stream:
        torch.save(content, stream)
    return Written(target, target, notes=tuple(notes))


def _write_folder(
    made: Checkpoint,
    edits: ConfigEdits | None,
    source: Checkpoint,
    homes: Mapping[str, str],
    target: str,
    progress: Progress | None,
) -> Written:
    files = _by_file(made, homes)
    for done, (name, tensors) in enumerate(files.items()):
        if progress is not None:
            progress("write", done, len(files))
        path = os.path.join(target, name)
        if made.format.startswith("folder-safetensors"):
            write_safetensors(path, tensors, _metadata_of(source, name))
        else:
            write_torch(path, tensors, made.unwrapped)
    if made.format.endswith("-sharded"):
        _write_index(target, files, made.format)
    if edits is not None:
        _write_config(os.path.join(target, "config.json"), edits, source)
    notes = _copy_beside(source, target, (*files, "config.json"))
    return Written(target, target, notes=tuple(notes))


def _write_state_dict(
    made: Checkpoint, edits: ConfigEdits | None, source: Checkpoint, target: str, *, as_file: bool
) -> Written:
    path = target if as_file else os.path.join(target, os.path.basename(source.path))
    tensors = dict(made.tensors)
    notes: list[str] = []
    if path.endswith(".safetensors"):
        write_safetensors(path, tensors, {"format": "pt"})
    else:
        write_torch(path, tensors, made.unwrapped)
    config = None
    if edits is not None:
        # a lone file has no place for it, but the check needs it
        config = os.path.join(os.path.dirname(target) if as_file else target, "config.json")
        _write_config(config, edits, source)
    if not as_file:
        notes += _copy_beside(source, target, (os.path.basename(path), "config.json"))
    elif edits is not None and edits.sentences:
        notes.append("the config beside the file is not touched and has to change too; -o FOLDER writes both")
    return Written(target, path, config, tuple(notes))


def find_homes(patched: Checkpoint, source: Checkpoint, names: Mapping[str, str]) -> dict[str, str]:
    """New name -> the file that holds it in the source; a tensor that is new goes where the one before it is.

    patched: the source with its changed tensors, under the source's names. names: of these -> new names.
    """
    homes: dict[str, str] = {}
    last = ""
    for name in patched.tensors:
        stored = source.tensors[name].storage if name in source.tensors else None
        last = stored.file if stored is not None else last
        homes[names[name]] = os.path.basename(last)
    return homes


def _by_file(made: Checkpoint, homes: Mapping[str, str]) -> dict[str, dict[str, TensorInfo]]:
    files: dict[str, dict[str, TensorInfo]] = {}
    for name, info in made.tensors.items():
        if not homes[name]:
            raise CannotRepair(f"{printable(name)} has no bytes in the file")
        files.setdefault(homes[name], {})[name] = info
    return files


def _metadata_of(source: Checkpoint, name: str) -> Mapping[str, str]:
    """The free text of the shard's own header, where it is of reasonable length."""
    path = next(
        (i.storage.file for i in source.tensors.values() if i.storage and os.path.basename(i.storage.file) == name), ""
    )
    with Source.open(path) as stream:
        found = read_safetensors(stream).metadata
    return {**found, "format": "pt"} if sum(map(len, found.values())) < 1 << 20 else {"format": "pt"}


def _write_index(target: str, files: Mapping[str, Mapping[str, TensorInfo]], form: str) -> None:
    name = "model.safetensors.index.json" if "safetensors" in form else "pytorch_model.bin.index.json"
    total = sum(info.nbytes for tensors in files.values() for info in tensors.values())
    weight_map = {tensor: file for file, tensors in files.items() for tensor in tensors}
    _write_json(os.path.join(target, name), {"metadata": {"total_size": total}, "weight_map": weight_map})


def _write_config(path: str, edits: ConfigEdits, source: Checkpoint) -> None:
    original = os.path.join(source.root, "config.json")
    taken = source.config is not None and source.config.source.startswith("config.json")
    if not edits.sentences and taken and os.path.isfile(original):
        _copy(original, path)
    else:
        _write_json(path, edits.values)


def _write_json(path: str, values: Mapping[str, Any]) -> None:
    with open(path, "x", encoding="utf-8") as stream:
        json.dump(values, stream, indent=2)
        stream.write("\n")


def _copy_beside(source: Checkpoint, target: str, written: Sequence[str]) -> list[str]:
    """Copies tokenizer and the like; sentences on what was left behind."""
    whole = os.path.isdir(source.path)  # a single file: only the tokenizer beside it is its own
    if not whole and (source.tokenizer is None or source.tokenizer.kind != "folder"):
        return []
    listing: Listing = list_folder(source.root)
    code = source.own_code or bool(source.config and source.config.values.get("auto_map"))
    left = []
    for name in listing.files:
        if name in written or os.path.lexists(os.path.join(target, name)):
            continue
        path = os.path.join(source.root, name)
        wanted = name in (_COPIED if whole else _BESIDE_A_FILE) or (whole and code and name.endswith(".py"))
        if wanted and os.path.isfile(path) and os.path.getsize(path) <= _MAX_COPIED:
            _copy(path, os.path.join(target, name))
        elif not name.endswith(".index.json"):
            left.append(name)
    left += listing.folders
    return [f"not copied from the folder: {printable_list(left)}"] if left and whole else []


def _copy(path: str, to: str) -> None:
    with Source.open(path) as source, open(to, "xb") as stream:
        for at in range(0, source.size, _CHUNK):
            stream.write(source.read(at, min(_CHUNK, source.size - at)))
