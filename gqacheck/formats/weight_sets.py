"""Which files of a folder make one set of weights, and which set a loader takes first."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

from gqacheck.errors import NotACheckpoint, ReadError
from gqacheck.formats import foreign
from gqacheck.formats.identify import identify
from gqacheck.formats.model_files import WEIGHT_SUFFIXES, Listing, find_tokenizer, list_folder, reason_left_alone
from gqacheck.formats.shards import ShardName, find_index, parse_shard_name
from gqacheck.formats.source import Source
from gqacheck.text import printable, printable_list

MAX_LOOKED_INTO = 64
"""Loose files, or folders, that are looked into to tell which of them hold weights."""


@dataclass(frozen=True, slots=True)
class WeightSet:
    """One set of weights in a folder, known by ``name``: a single file, an index, or numbered shards without one.

    ``numbered`` and ``missing`` are the shards of the last kind that are there and that are not.
    """

    name: str
    index: str | None = None
    numbered: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def is_sharded(self) -> bool:
        """Whether the set is several files by design."""
        return self.index is not None or len(self.numbered) + len(self.missing) > 1

    def files(self, listing: Listing) -> tuple[str, ...]:
        """The files of ``listing`` that belong to the set, as far as their names tell."""
        if self.index is None:
            return (self.name, *self.numbered)
        shards = (name for name in listing.files if (parsed := parse_shard_name(name)) is not None
                  and find_index((self.name,), parsed) is not None)  # fmt: skip
        return (self.name, *shards)


def find_weight_sets(listing: Listing) -> tuple[WeightSet, ...]:
    """The weight sets in a folder, the one that ``from_pretrained`` takes first.

    The two standard names and their indexes, then their variants (``model.fp16.safetensors``), then numbered shards
    without an index, then one file under any other name, EMA copies last of all.
    """
    found = [*_find_standard(listing), *_find_variants(listing), *_find_numbered(listing)]
    if not found:
        loose = find_loose(listing)
        if len(loose) == 1 or (loose and loose[0].startswith("consolidated")):
            found.append(WeightSet(loose[0]))
    if not found:
        copies = [name for name in listing.files if reason_left_alone(name) == "an EMA copy, not read"]
        if len(copies) == 1:
            found.append(WeightSet(copies[0]))
    return tuple(found)


def numbered_set(listing: Listing, shard: ShardName) -> WeightSet:
    """All the numbered shards of the set that ``shard`` belongs to, those in the folder and those that are missing."""
    present = {
        parsed.number: name
        for name in listing.files
        if (parsed := parse_shard_name(name)) is not None and parsed.group == shard.group
    }
    names = tuple(present[number] for number in sorted(present))
    missing = tuple(shard.sibling(number) for number in range(1, int(shard.total) + 1) if number not in present)
    return WeightSet(names[0], numbered=names, missing=missing)


def find_loose(listing: Listing) -> list[str]:
    """Weight files under names of their own, those that are none by content left out when there are several."""
    names = [
        name
        for name in listing.files
        if name.endswith(WEIGHT_SUFFIXES)
        and parse_shard_name(name) is None
        and (name.startswith("consolidated") or reason_left_alone(name) is None)
    ]
    if 1 < len(names) <= MAX_LOOKED_INTO:
        names = [name for name in names if _is_container(os.path.join(listing.folder, name))] or names
    return names


def explain_no_weights(listing: Listing) -> ReadError:
    """Why a folder has no weights that can be read, and where they may be."""
    shown = printable(listing.folder)
    return NotACheckpoint(f"{shown}: {said}") if (said := _name_foreign(listing)) else ReadError(
        f"{shown}: {_hint_at_weights(listing)}"
    )  # fmt: skip


def _find_standard(listing: Listing) -> Iterator[WeightSet]:
    present = {*listing.files, *listing.broken}
    for name in ("model.safetensors", "pytorch_model.bin"):
        if name in present:
            yield WeightSet(name)
        if f"{name}.index.json" in present:
            yield WeightSet(f"{name}.index.json", index=f"{name}.index.json")


def _find_variants(listing: Listing) -> Iterator[WeightSet]:
    for name in listing.files:
        parts = name.split(".")
        if reason_left_alone(name) is not None or parse_shard_name(name) is not None:
            continue
        if len(parts) == 3 and (parts[0], parts[2]) in (("model", "safetensors"), ("pytorch_model", "bin")):
            yield WeightSet(name)
        if len(parts) == 5 and name.startswith(("model.safetensors.index.", "pytorch_model.bin.index.")):
            yield WeightSet(name, index=name)


def _find_numbered(listing: Listing) -> Iterator[WeightSet]:
    groups: dict[tuple[str, str, str], ShardName] = {}
    for name in listing.files:
        parsed = parse_shard_name(name)
        if parsed is not None and reason_left_alone(name) is None:
            groups.setdefault(parsed.group, parsed)
    for _, shard in sorted(groups.items()):
        if find_index((*listing.files, *listing.broken), shard) is None:
            yield numbered_set(listing, shard)


def _name_foreign(listing: Listing) -> str | None:
    folder, files = listing.folder, listing.files
    if ".metadata" in files or any(name.endswith(".distcp") for name in files):
        return f"is {foreign.describe_dcp(folder)}"
    fsdp = next((name for name in listing.folders if name.startswith("pytorch_model_fsdp_")), None)
    if fsdp is not None:
        where = printable(os.path.join(folder, fsdp))
        return f"holds FSDP shards; join them first: accelerate merge-weights {where} OUT"
    if "zero_to_fp32.py" in files or any(name.endswith(("_optim_states.pt", "_model_states.pt")) for name in files):
        return f"is {foreign.DEEPSPEED}"
    if "adapter_config.json" in files:
        return f"is {foreign.describe_adapter(foreign.read_adapter_base(listing))}"
    if "model_index.json" in files:
        return "is a diffusers pipeline; give the folder of its language model"
    for suffix, what in (
        (".gguf", "GGUF files (llama.cpp)"),
        (".onnx", "ONNX models"),
        (".h5", "TensorFlow weights"),
        (".msgpack", "Flax weights"),
    ):
        if any(name.endswith(suffix) for name in files):
            return f"holds only {what}; check the folder that they were converted from"
    left = [name for name in files if name.endswith(WEIGHT_SUFFIXES)]
    if left and not find_loose(listing):
        return f"holds training state and no weights ({printable_list(left)})"
    return None


def _hint_at_weights(listing: Listing) -> str:
    loose = find_loose(listing)
    if loose:
        return f"holds several weight files and no index ({printable_list(loose)}); give one of them"
    if listing.broken:
        return f"holds no weights, and {printable_list(listing.broken)} lead nowhere (links); finish the download"
    inside = [name for name in listing.folders[:MAX_LOOKED_INTO] if _holds_weights(os.path.join(listing.folder, name))]
    if inside:
        latest = max(inside, key=_sort_by_number)
        where = printable(os.path.join(listing.folder, latest))
        return f"holds no weights itself, but folders inside do ({printable_list(inside)}); give one, such as {where}"
    if find_tokenizer(listing) is not None or "config.json" in listing.files:
        return "holds a config or a tokenizer, but no weights"
    return "holds no weights (no .safetensors, .bin, .pt or .pth)"


def _sort_by_number(name: str) -> tuple[int, str]:
    """checkpoint-1000 after checkpoint-500."""
    digits = name.rpartition("-")[2]
    return (int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 12 else -1, name)


def _holds_weights(folder: str) -> bool:
    try:
        return bool(find_weight_sets(list_folder(folder)))
    except ReadError:
        return False


def _is_container(path: str) -> bool:
    try:
        with Source.open(path) as source:
            identify(source)
    except ReadError:
        return False
    return True
