"""The tensors that stand outside the layers: embedding, final norm, lm_head, towers, and what nothing explains."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from gqacheck.checkpoint import ModuleInfo, TensorInfo
from gqacheck.geometry.facts import Norm, Projection
from gqacheck.geometry.family import Family
from gqacheck.geometry.names import SIDE_MODELS, TOWERS, LayerList, Names
from gqacheck.geometry.pieces import Piece, projection
from gqacheck.geometry.slots import Slots

_EMBEDDINGS = ("embed_tokens", "word_embeddings", "wte", "tok_embeddings", "embed_in", "embedding.word_embeddings")
_FINAL_NORMS = ("norm", "ln_f", "final_layernorm", "final_norm", "norm_f")
_LM_HEADS = ("lm_head", "output", "output_layer", "embed_out")
_OTHER_HEADS = frozenset(
    {"score", "classifier", "qa_outputs", "v_head", "value_head", "reward_head", "regression_head"}
)
_LANGUAGE = frozenset({"language_model", "text_model", "llm", "thinker"})


@dataclass(slots=True)
class Places:
    """Where a family's own modules stand in this file. ``stem``: the module that holds the list of layers."""

    prefix: str
    stem: str
    embeddings: list[str]
    final_norms: list[str]
    lm_heads: list[str]


@dataclass(slots=True)
class Outside:
    """What was found outside the layers. ``other_head``: a head that is no lm_head (``score``)."""

    places: Places
    embedding: Projection | None = None
    final_norm: Norm | None = None
    lm_head: Projection | None = None
    other_head: str | None = None
    inv_freq: int | None = None
    unknown: list[str] = field(default_factory=list)
    not_checked: list[str] = field(default_factory=list)


def places_of(family: Family, path: str) -> Places:
    """The paths of embedding, final norm and lm_head, given where the layers were found."""
    stem = path.rpartition(".")[0]
    own_stem = family.layers.rpartition(".")[0]
    if path == family.layers or path.endswith("." + family.layers):
        prefix = path[: -len(family.layers)]
        embeddings, norms, heads = [prefix + family.embedding], [prefix + family.final_norm], [prefix + family.lm_head]
    else:
        prefix = stem + "." if stem else ""
        embeddings = [prefix + family.embedding.removeprefix(own_stem + ".")]
        norms = [prefix + family.final_norm.removeprefix(own_stem + ".")]
        heads = [_join(stem.rpartition(".")[0].rpartition(".")[0], family.lm_head)]
    if not family.final_norm:
        norms = []
    own_heads = [family.lm_head.rpartition(".")[2]]
    if family.generic:
        inside = f"{stem}." if stem else ""
        embeddings += [inside + name for name in _EMBEDDINGS]
        norms += [inside + name for name in _FINAL_NORMS]
        own_heads += _LM_HEADS
    ancestor = stem
    while True:
        heads += [_join(ancestor, name) for name in own_heads]
        if not ancestor:
            break
        ancestor = ancestor.rpartition(".")[0]
    return Places(prefix, stem, embeddings, norms, heads)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def sort_outside(
    names: Names,
    group: LayerList,
    family: Family,
    slots: Slots,
    modules: Mapping[str, ModuleInfo],
    wrapped: bool,
) -> Outside:
    """Every tensor outside ``group`` by what it is. wrapped: the config is a multimodal model's."""
    places = places_of(family, group.path)
    result = Outside(places)
    rest = dict(names.outside)
    result.embedding = _take("embedding", places.embeddings, rest, modules)
    result.lm_head = _take("lm_head", places.lm_heads, rest, modules)
    for path in places.final_norms:
        weight = rest.pop(f"{path}.weight", None)
        if weight is not None:
            rest.pop(f"{path}.bias", None)
            result.final_norm = Norm("final", path.rpartition(".")[2], weight.name, weight.shape)
            break
    lists = [other for other in names.lists.values() if other is not group]
    multimodal = (
        wrapped
        or bool(group.parts & _LANGUAGE)
        or any(other.parts & TOWERS for other in lists)
        or any(part in TOWERS for name in rest for part in name.split(".")[:3])
    )
    seen: Counter[str] = Counter()
    for other in lists:
        seen[_part_name(other.path, places.stem)] += other.count
    inside = places.stem + "." if places.stem else ""
    for name, tensor in rest.items():
        parts = name.split(".")
        if name.endswith("inv_freq") and "rotary" in name and name.startswith(inside):
            result.inv_freq = result.inv_freq or buffer_length(tensor)
            continue
        if slots.is_leftover("." + name):
            continue
        if not TOWERS.isdisjoint(parts) or not SIDE_MODELS.isdisjoint(parts):
            seen[_part_name(name, places.stem)] += 1
        elif not _OTHER_HEADS.isdisjoint(parts[:-1]):
            head = next(part for part in parts if part in _OTHER_HEADS)
            result.other_head = head
            seen[head] += 1
        elif multimodal and not (inside and name.startswith(inside)):
            seen[_part_name(name, places.stem)] += 1
        else:
            result.unknown.append(tensor.name)
    result.not_checked = [f"{part}: {_tensors(count)}" for part, count in sorted(seen.items())]
    return result


def _tensors(count: int) -> str:
    return f"{count:,} tensor" if count == 1 else f"{count:,} tensors"


def _take(
    role: str, paths: list[str], rest: dict[str, TensorInfo], modules: Mapping[str, ModuleInfo]
) -> Projection | None:
    for path in paths:
        weight = rest.pop(f"{path}.weight", None)
        if weight is not None:
            return projection(role, Piece(path, weight, rest.pop(f"{path}.bias", None)), "", modules)
    return None


def _part_name(path: str, stem: str) -> str:
    """The part of a model that ``path`` lies in: up to the tower's name, else its first name beside the text model."""
    parts = path.split(".")
    for i, part in enumerate(parts):
        if part in TOWERS or part in SIDE_MODELS:
            return ".".join(parts[: i + 1])
    shared = 0
    for own, other in zip(parts, stem.split("."), strict=False):
        if own != other:
            break
        shared += 1
    return ".".join(parts[: shared + 1])


def buffer_length(tensor: TensorInfo) -> int | None:
    """Length of a rotary buffer, None when it is no vector of a sensible length."""
    if len(tensor.shape) == 1 and 0 < tensor.shape[0] <= 1 << 15:
        return tensor.shape[0]
    return None
