"""Weights in several files: what the index says, what the shards hold, and where the two disagree."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from gqacheck.checkpoint import Defect, TensorInfo
from gqacheck.errors import ReadError
from gqacheck.formats.model_files import MAX_INDEX_BYTES, read_json
from gqacheck.formats.strict_json import describe_twice
from gqacheck.formats.weights import Weights, read_weights
from gqacheck.text import printable, printable_list

MAX_SHARDS = 10_000
MAX_TENSORS = 1_000_000
MAX_HEADER_BYTES = 200_000_000
"""Bytes read, and tensors found, in all shards of one set together. The largest models have 100,000 tensors."""

_FIX_SHARDS = "fetch or save the missing files again, or save the model once more with save_pretrained"
_FIX_INDEX = "save the model once more with save_pretrained, which writes shards and index together"


@dataclass(frozen=True, slots=True)
class ShardName:
    """``model-00002-of-00004.safetensors``: ``model``, 2, 5 digits, ``00004`` and ``.safetensors``."""

    stem: str
    number: int
    digits: int
    total: str
    suffix: str

    @property
    def group(self) -> tuple[str, str, str]:
        """What all shards of one set share."""
        return self.stem, self.total, self.suffix

    def sibling(self, number: int) -> str:
        """The name of another shard of the set."""
        return f"{self.stem}-{number:0{self.digits}d}-of-{self.total}{self.suffix}"


@dataclass(frozen=True, slots=True)
class Index:
    """A ``*.index.json``: the shard of each tensor, the stated bytes of all tensors, and the keys that stand twice."""

    name: str
    weight_map: Mapping[str, str]
    total_size: int | None
    twice: tuple[str, ...]
    nbytes: int

    @property
    def shards(self) -> tuple[str, ...]:
        """The shard files, in order of first mention."""
        return tuple(dict.fromkeys(self.weight_map.values()))


@dataclass(frozen=True, slots=True)
class Joined:
    """Several shards as one: the tensors of all, the shards as read, and the defects of the whole."""

    tensors: Mapping[str, TensorInfo]
    shards: tuple[Weights, ...]
    defects: tuple[Defect, ...]


def parse_shard_name(name: str) -> ShardName | None:
    """The parts of ``model-00002-of-00004.safetensors``; None for a name of another kind."""
    match = re.fullmatch(r"(.+)-(\d{1,9})-of-(\d{1,9})((?:\.\w+)?\.(?:safetensors|bin|pt|pth))", name, re.ASCII)
    if match is None or not 0 < int(match[2]) <= int(match[3]) <= MAX_SHARDS:
        return None
    return ShardName(match[1], int(match[2]), len(match[2]), match[3], match[4])


def find_index(files: Iterable[str], shard: ShardName) -> str | None:
    """The index among ``files`` that a set of numbered shards goes by, variants (``fp16``) included."""
    names = [f"{shard.stem}{shard.suffix}.index.json"]
    stem, _, variant = shard.stem.partition(".")
    if variant:  # model.fp16-00001-of-00002.safetensors
        names.append(f"{stem}{shard.suffix}.index.{variant}.json")
    _, variant, *suffix = shard.suffix.split(".")
    if suffix:  # model-00001-of-00002.fp16.safetensors
        names.append(f"{shard.stem}.{suffix[0]}.index.{variant}.json")
    present = set(files)
    return next((name for name in names if name in present), None)


def read_index(folder: str, name: str) -> Index:
    """The index ``name`` in ``folder``.

    Raises ``ReadError`` when it is no index, or when it names a file outside the folder.
    """
    path = os.path.join(folder, name)
    shown = printable(path)
    values, twice, nbytes = read_json(path, MAX_INDEX_BYTES)
    weight_map = values.get("weight_map")
    if not isinstance(weight_map, Mapping) or not weight_map:
        raise ReadError(f"{shown}: is no weight index (it has no weight_map); give the model folder or a weight file")
    checked: dict[str, str] = {}
    known: dict[str, str] = {}
    for key, value in weight_map.items():
        if not isinstance(value, str):
            raise ReadError(f"{shown}: the weight_map entry {printable(key)} is not a file name")
        if value not in known:
            _refuse_traversal(value, shown)
            known[value] = value
        checked[key] = known[value]
    if len(known) > MAX_SHARDS:
        raise ReadError(f"{shown}: names {len(known):,} shard files; more than {MAX_SHARDS:,} are not read")
    metadata = values.get("metadata")
    total = metadata.get("total_size") if isinstance(metadata, Mapping) else None
    size: int | None = None
    if isinstance(total, (int, float)) and not isinstance(total, bool) and 0 <= total < 2**63:
        size = int(total)
    return Index(name, checked, size, twice, nbytes)


def _refuse_traversal(value: str, shown: str) -> None:
    parts = value.replace("\\", "/").split("/")
    if "\0" in value or parts[0] == "" or parts[0].endswith(":") or ".." in parts:
        raise ReadError(f"{shown}: names the shard {printable(value)}, which lies outside its folder; it is not opened")


def join_indexed(folder: str, index: Index) -> Joined:
    """The shards that ``index`` names, joined, with every disagreement between them and the index.

    A shard that is missing or cannot be read is a defect as long as another one can be.
    """
    read, failures = _read_all(folder, index.shards)
    defects: list[Defect] = []
    if index.twice:
        defects.append(
            Defect("ambiguous", describe_twice(index.twice, printable(index.name)), index.twice, fix=_FIX_INDEX)
        )
    defects.extend(_tell_failures(failures, index.weight_map, len(index.shards)))
    tensors, places, twice = _merge(read, index.weight_map)
    defects.extend(twice)
    defects.extend(_compare_with_index(index, places, set(read)))
    if not failures and index.total_size is not None:
        defects.extend(_check_total_size(index, tensors))
    defects.extend(defect for weights in read.values() for defect in weights.defects)
    return Joined(tensors, tuple(read.values()), tuple(defects))


def join_numbered(folder: str, names: tuple[str, ...], missing: tuple[str, ...]) -> Joined:
    """The shards ``names``, joined without an index: every reader needs one, so its absence is a defect."""
    read, failures = _read_all(folder, names + missing)
    defects = [
        Defect(
            "shard-index",
            f"{len(names) + len(missing):,} numbered shards and no index file beside them, so no loader knows which "
            f"tensor is where",
            fix=_FIX_INDEX,
        )
    ]
    defects.extend(_tell_failures(failures, {}, len(names) + len(missing)))
    tensors, _, twice = _merge(read, {})
    defects.extend(twice)
    defects.extend(defect for weights in read.values() for defect in weights.defects)
    return Joined(tensors, tuple(read.values()), tuple(defects))


def _read_all(folder: str, names: tuple[str, ...]) -> tuple[dict[str, Weights], dict[str, ReadError | None]]:
    """The shards that can be read, and for the others why not (None: not there). All failing raises the first."""
    read: dict[str, Weights] = {}
    failures: dict[str, ReadError | None] = {}
    nbytes = tensors = 0
    for name in names:
        path = os.path.join(folder, name)
        if not os.path.lexists(path):
            failures[name] = None
            continue
        try:
            read[name] = read_weights(path)
        except ReadError as error:
            failures[name] = error
            continue
        nbytes += read[name].bytes_read
        tensors += len(read[name].tensors)
        if nbytes > MAX_HEADER_BYTES or tensors > MAX_TENSORS:
            raise ReadError(
                f"{printable(folder)}: the first {len(read):,} of {len(names):,} shards have {tensors:,} tensors and "
                f"{nbytes:,} bytes of headers; more than {MAX_TENSORS:,} and {MAX_HEADER_BYTES:,} are not read"
            )
    if not read:
        first = next((error for error in failures.values() if error is not None), None)
        if first is not None:
            raise first
        raise ReadError(
            f"{printable(folder)}: none of the {len(names):,} shard files that it should hold is there "
            f"({printable_list(names)}); fetch them again"
        )
    return read, failures


def _tell_failures(
    failures: Mapping[str, ReadError | None], weight_map: Mapping[str, str], total: int
) -> Iterator[Defect]:
    missing = [name for name, error in failures.items() if error is None]
    if missing:
        lost = tuple(key for key, shard in weight_map.items() if shard in set(missing))
        held = f", with {len(lost):,} of {len(weight_map):,} tensors" if weight_map else ""
        yield Defect(
            "shard-index",
            f"{len(missing):,} of {total:,} shard files are missing{held}: {printable_list(missing)}",
            lost,
            expected=total,
            actual=total - len(missing),
            unit="shard files",
            fix=_FIX_SHARDS,
        )
    for name, error in failures.items():
        if error is not None:
            lost = tuple(key for key, shard in weight_map.items() if shard == name)
            yield Defect("shard-index", f"a shard cannot be read: {error}", lost, fix=_FIX_SHARDS)


def _merge(
    read: Mapping[str, Weights], weight_map: Mapping[str, str]
) -> tuple[dict[str, TensorInfo], dict[str, list[str]], list[Defect]]:
    """All tensors, the shards that hold each, and the defects for those that stand in two.

    Where two shards hold one name, the shard that the index names is believed, else the last.
    """
    tensors: dict[str, TensorInfo] = {}
    places: dict[str, list[str]] = {}
    for shard, weights in read.items():
        for key, tensor in weights.tensors.items():
            held = places.setdefault(key, [])
            held.append(shard)
            if len(held) == 1 or weight_map.get(key, shard) == shard:
                tensors[key] = tensor
    twice = [key for key, shards in places.items() if len(shards) > 1]
    if not twice:
        return tensors, places, []
    first = places[twice[0]]
    message = (
        f"{len(twice):,} tensors are stored in more than one shard ({printable(twice[0])} in {printable_list(first)})"
    )
    return tensors, places, [Defect("shard-index", message, tuple(twice), fix=_FIX_INDEX)]


def _compare_with_index(index: Index, places: Mapping[str, list[str]], read: set[str]) -> Iterator[Defect]:
    name = printable(index.name)
    extra = [key for key in places if key not in index.weight_map]
    if extra:
        yield Defect(
            "shard-index",
            f"the shards hold {len(extra):,} tensors that {name} does not list: {printable_list(extra, 2)}",
            tuple(extra), expected=len(index.weight_map), actual=len(places), unit="tensors", fix=_FIX_INDEX,
        )  # fmt: skip
    absent: list[str] = []
    elsewhere: list[str] = []
    for key, shard in index.weight_map.items():
        held = places.get(key)
        if held is None:
            if shard in read:
                absent.append(key)
        elif shard not in held:
            elsewhere.append(key)
    if absent:
        yield Defect(
            "shard-index",
            f"{name} lists {len(absent):,} tensors that no shard holds: {printable_list(absent, 2)}",
            tuple(absent), expected=len(index.weight_map), actual=len(index.weight_map) - len(absent), unit="tensors",
            fix=_FIX_INDEX,
        )  # fmt: skip
    if elsewhere:
        key = elsewhere[0]
        yield Defect(
            "shard-index",
            f"{len(elsewhere):,} tensors lie in another shard than {name} says: {printable(key)} is in "
            f"{printable_list(places[key])}, not in {printable(index.weight_map[key])}",
            tuple(elsewhere), expected=printable(index.weight_map[key]), actual=printable(places[key][0]),
            unit="shard file", fix=_FIX_INDEX,
        )  # fmt: skip


def _check_total_size(index: Index, tensors: Mapping[str, TensorInfo]) -> Iterator[Defect]:
    """total_size counts the bytes of all tensors, or of the distinct ones: writers differ over tied weights."""
    every = sum(tensor.nbytes for tensor in tensors.values())
    distinct = {
        (tensor.storage.file, tensor.storage.key, tensor.storage_offset) if tensor.storage else (name,): tensor.nbytes
        for name, tensor in tensors.items()
    }
    if index.total_size in (every, sum(distinct.values())):
        return
    yield Defect(
        "shard-size",
        f"{printable(index.name)} says total_size={index.total_size:,} bytes, the tensors in the shards need {every:,}",
        expected=index.total_size,
        actual=every,
        unit="bytes",
        fix=_FIX_INDEX,
    )
