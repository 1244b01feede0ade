"""Hugging Face model folders: the weights that a loader would take, joined with the config and tokenizer beside them.

Source: the order of files in ``from_pretrained`` (``_get_resolved_checkpoint_files`` of transformers 5.23):
model.safetensors, its index, pytorch_model.bin, its index.
"""

from __future__ import annotations

import os

from gqacheck.checkpoint import Checkpoint, ConfigInfo, Container, Defect
from gqacheck.errors import NotACheckpoint, ReadError
from gqacheck.formats import foreign
from gqacheck.formats.identify import FileKind
from gqacheck.formats.model_files import (
    Listing,
    brings_own_code,
    find_tokenizer,
    group_notes,
    list_folder,
    read_config,
    read_generation_config,
    tell_ignored,
)
from gqacheck.formats.quantized import detect_quantization
from gqacheck.formats.shards import Joined, join_indexed, join_numbered, read_index
from gqacheck.formats.weight_sets import WeightSet, explain_no_weights, find_weight_sets
from gqacheck.formats.weights import read_weights
from gqacheck.text import printable, printable_list

MAX_COMPARED = 2
"""Further weight sets of one folder whose shapes are compared with those that were read."""


def open_folder(folder: str, *, config: ConfigInfo | None = None, only: WeightSet | None = None) -> Checkpoint:
    """The checkpoint in a model folder, as ``from_pretrained`` would take it.

    ``config`` replaces config.json; ``only`` is the weight set to read instead of the one that a loader would choose.
    ``seconds`` is left to the caller. Raises ``NotACheckpoint`` when the folder is another tool's, and ``ReadError``
    when it holds no weights that can be read.
    """
    listing = list_folder(folder)
    beside, defects, bytes_read, unreadable = _read_own_config(listing)
    found = find_weight_sets(listing)
    chosen = only or _named_in_config(listing, config or beside) or (found[0] if found else None)
    if chosen is None:
        raise explain_no_weights(listing)
    joined, nbytes = _read_set(listing, chosen)
    bytes_read += nbytes
    refuse_foreign(joined, folder, listing)

    first = joined.shards[0]
    is_module = first.kind == "module"
    notes: list[str] = []
    if config is None and is_module and first.config is not None:
        config, defects = first.config, ()
    elif config is None:
        if unreadable is not None and not is_module:
            raise unreadable
        config = beside
        if unreadable is not None:
            notes.append(f"config.json was not read: {unreadable}")
        elif config is None:
            notes.append("there is no config.json in the folder, and from_pretrained needs one")
    else:
        defects = ()
    generation, note, nbytes = read_generation_config(listing)
    bytes_read += nbytes
    quantization, remark = detect_quantization(joined.tensors, config)
    notes.extend(text for text in (note, remark) if text)
    others = tuple(other for other in found if other.name != chosen.name)
    used = {os.path.relpath(weights.path, folder) for weights in joined.shards}
    told, differences, nbytes = _compare_sets(listing, chosen, joined, others)
    bytes_read += nbytes
    notes.extend(told)
    used.update(name for other in others for name in other.files(listing))
    notes.extend(group_notes(note for weights in joined.shards for note in weights.ignored))
    return Checkpoint(
        path=folder,
        root=folder,
        format=_name_format(first.file_kind, is_module, chosen.is_sharded),
        container=Container.MODULE if is_module else Container.FOLDER,
        tensors=joined.tensors,
        modules=first.modules,
        config=config,
        generation_config=generation or first.generation_config,
        tokenizer=first.tokenizer or find_tokenizer(listing),
        globals=tuple(sorted({name for weights in joined.shards for name in weights.globals})),
        unwrapped=first.unwrapped,
        defects=(*joined.defects, *defects, *differences),
        ignored=(*notes, *tell_ignored(listing, used)),
        quantization=quantization,
        own_code=config is not None and brings_own_code(config.values, listing.files),
        file_bytes=sum(weights.size for weights in joined.shards),
        bytes_read=bytes_read,
    )


def refuse_foreign(joined: Joined, path: str, listing: Listing) -> None:
    """Raise ``NotACheckpoint`` when the tensors are another tool's, or an adapter's."""
    mistral = "consolidated.safetensors" in listing.files or "tekken.json" in listing.files
    base = foreign.read_adapter_base(listing)
    said = foreign.name_foreign_layout(joined.tensors, mistral=mistral, adapter_base=base)
    if said is not None:
        raise NotACheckpoint(f"{printable(path)}: {said}")


def _read_own_config(listing: Listing) -> tuple[ConfigInfo | None, tuple[Defect, ...], int, ReadError | None]:
    """config.json with its defects and bytes; where it cannot be read, the reason instead."""
    if "config.json" not in (*listing.files, *listing.broken):
        return None, (), 0, None
    try:
        config, defects, nbytes = read_config(os.path.join(listing.folder, "config.json"), "config.json")
    except ReadError as error:
        return None, (), 0, error
    return config, defects, nbytes, None


def _named_in_config(listing: Listing, config: ConfigInfo | None) -> WeightSet | None:
    """The file that the config names with ``transformers_weights`` (transformers 5), which wins over all others."""
    name = config.values.get("transformers_weights") if config else None
    if not isinstance(name, str) or name not in listing.files:
        return None
    return WeightSet(name, index=name if name.endswith(".index.json") else None)


def _read_set(listing: Listing, chosen: WeightSet) -> tuple[Joined, int]:
    """One weight set, joined, and the bytes read for it."""
    nbytes = 0
    if chosen.index is not None:
        index = read_index(listing.folder, chosen.index)
        nbytes = index.nbytes
        joined = join_indexed(listing.folder, index)
    elif chosen.is_sharded:
        joined = join_numbered(listing.folder, chosen.numbered, chosen.missing)
    else:
        path = os.path.join(listing.folder, chosen.name)
        if chosen.name in listing.broken:
            raise ReadError(f"{printable(path)}: is a link that leads nowhere; finish the download")
        weights = read_weights(path)
        joined = Joined(weights.tensors, (weights,), weights.defects)
    return joined, nbytes + sum(weights.bytes_read for weights in joined.shards)


def _compare_sets(
    listing: Listing, chosen: WeightSet, joined: Joined, others: tuple[WeightSet, ...]
) -> tuple[list[str], list[Defect], int]:
    """What else the folder holds: a sentence per further set, a defect for one whose shapes differ, and bytes read."""
    notes: list[str] = []
    defects: list[Defect] = []
    nbytes = 0
    name = printable(chosen.name)
    for other in others[:MAX_COMPARED]:
        second = printable(other.name)
        try:
            theirs, read = _read_set(listing, other)
        except ReadError as error:
            notes.append(f"{second}: a second set of weights beside {name}, not used and not readable ({error})")
            continue
        nbytes += read
        differing = tuple(
            key
            for key, tensor in theirs.tensors.items()
            if key in joined.tensors and joined.tensors[key].shape != tensor.shape
        )
        notes.append(f"{second}: a second set of weights, not used; {name} is what was read and what loaders prefer")
        if differing:
            key = differing[0]
            defects.append(
                Defect(
                    "ambiguous",
                    f"{name} and {second} in one folder hold different shapes for {len(differing):,} tensors "
                    f"({printable(key)}: {list(joined.tensors[key].shape)} and {list(theirs.tensors[key].shape)}); "
                    f"loaders that prefer the second get another model",
                    differing,
                    expected=str(list(joined.tensors[key].shape)),
                    actual=str(list(theirs.tensors[key].shape)),
                    unit="shape",
                    fix="keep one set of weights in the folder",
                )
            )
    if len(others) > MAX_COMPARED:
        rest = printable_list(other.name for other in others[MAX_COMPARED:])
        notes.append(f"{rest}: further sets of weights, not used and not looked into")
    return notes, defects, nbytes


def _name_format(kind: FileKind, is_module: bool, sharded: bool) -> str:
    if is_module:
        return f"{kind.value}-module"
    stem = "folder-safetensors" if kind is FileKind.SAFETENSORS else "folder-torch"
    return f"{stem}-sharded" if sharded else stem
