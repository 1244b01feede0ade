"""In which form a checkpoint can be written so that plain transformers loads it, and what stands in it then."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gqacheck.checkpoint import Checkpoint
from gqacheck.export.biases import added_biases
from gqacheck.export.config import finished, hub_name, layer_lists, raw_values, without_llama_keys
from gqacheck.export.content import Planned
from gqacheck.export.facts import CannotExport, Form, Refused, Way
from gqacheck.export.fit import Built, Fit, build, fit
from gqacheck.export.pad import choices, padding_note, told
from gqacheck.export.padding import Target
from gqacheck.geometry.config import LAYER_LISTS, is_true
from gqacheck.geometry.facts import Geometry
from gqacheck.report.words import layer_ranges, layers_words
from gqacheck.text import printable, printable_list

_SHOWN = 4
_GROUPED_BYTES = 16  # torch 2.13: a grouped product wants rows that are multiples of this


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be written, and where files may be laid down to try things.

    tied: lm_head is the embedding. dtype: of all weights, None keeps each as stored. pad: zeros may be added so that a
    stock class holds it.
    """

    checkpoint: Checkpoint
    geometry: Geometry
    folder: str
    tied: bool
    dtype: str | None = None
    pad: bool = False


@dataclass(frozen=True, slots=True)
class _Try:
    """One way: the class of config, the config's values, and the code that goes with it.

    target: what every layer is padded to.
    """

    way: Way
    values: Mapping[str, Any]
    code: Mapping[str, str]
    auto_map: Mapping[str, str]
    why: str = ""
    target: Target | None = None


def choose_form(wanted: Wanted) -> Form:
    """The first form that holds the checkpoint: its own stock class, another of the same mathematics, own code.

    Raises:
        CannotExport: none does, with the reasons.
    """
    from gqacheck.runtime.configure import CannotRun, config_class

    geometry = wanted.geometry
    if geometry.family.generic or not geometry.family.stock_class:
        from gqacheck.export.as_stored import as_stored

        if wanted.pad:
            raise CannotExport(
                f"{printable(wanted.checkpoint.path)}: transformers has no class of its own for it that zeros could "
                "make it fit: leave --pad out"
            )
        return as_stored(wanted)
    try:
        cls, notes = config_class(wanted.checkpoint, geometry)
        refusals: list[str] = []
        for number, attempt in enumerate(_tries(wanted, cls, refusals)):
            try:
                return _form(wanted, attempt, f"{wanted.folder}/try-{number}", notes)
            except Refused as refusal:
                refusals.append(str(refusal))
    except CannotRun as error:
        raise CannotExport(f"{printable(wanted.checkpoint.path)}: {error}") from error
    without = "it cannot be padded" if wanted.pad else "no class can hold it"
    instead = (
        "without --pad it may do" if wanted.pad else "--pad may make it fit; gqacheck.load_model runs what can be run"
    )
    raise CannotExport(
        f"{printable(wanted.checkpoint.path)}: {without} ({'; '.join(dict.fromkeys(refusals))}); {instead}"
    )


def _tries(wanted: Wanted, cls: type[Any], refusals: list[str]) -> Iterator[_Try]:
    """Ways to try in turn; ``refusals`` holds why those before were not taken."""
    from gqacheck.export import code

    geometry, tied = wanted.geometry, wanted.tied
    values = raw_values(geometry, cls, tied=tied)
    differing = differs(geometry)
    if differing:
        refusals.append(differing)
    else:
        yield _Try("stock", values, {}, {})
        for other in _same_mathematics(geometry, cls):
            why = refusals[0]
            yield _Try("other-class", raw_values(geometry, other, tied=tied) | _as_llama(other), {}, {}, why)
    if wanted.pad:
        yield from _padded_tries(wanted, cls, refusals)
        return
    family = geometry.family.name
    if not code.can_build(family, cls.__name__):
        refusals.append(f"no modelling file is written for {printable(cls.model_type)}")
    else:
        why = refusals[0]
        try:
            own = raw_values(geometry, cls, tied=tied, own_code=True) | {LAYER_LISTS: layer_lists(geometry)}
        except Refused as refusal:
            refusals.append(str(refusal))
            return
        own |= {"model_type": code.model_type(family), "auto_map": code.auto_map(family)}
        name, source = code.modelling_file(family)
        yield _Try("own-code", own, {name: source}, code.auto_map(family), why)


def _padded_tries(wanted: Wanted, cls: type[Any], refusals: list[str]) -> Iterator[_Try]:
    """The stock class, or another of the same mathematics, with zeros: what costs least first."""
    geometry, why = wanted.geometry, refusals[0]
    own = raw_values(geometry, cls, tied=wanted.tied)
    others = [
        (other, without_llama_keys(raw_values(geometry, other, tied=wanted.tied) | _as_llama(other)))
        for other in _same_mathematics(geometry, cls)
    ]
    try:
        found = choices(geometry, [(cls, own), *others])
    except Refused as refusal:
        refusals.append(str(refusal))
        return
    for choice in found:
        yield _Try("padded", choice.values, {}, {}, why, choice.target)


def differs(geometry: Geometry) -> str:
    """How the layers differ in a way that one number per size cannot say; "" when they do not."""
    attention = [layer.index for layer in geometry.layers if layer.attention.kind == "dropped"]
    mlp = [layer.index for layer in geometry.layers if layer.mlp.kind == "dropped"]
    if attention or mlp:
        blocks = (("attention", attention), ("MLP", mlp))
        return " and ".join(f"{layers_words(where)} without {block}" for block, where in blocks if where)
    if geometry.uniform:
        return ""
    parts = []
    for name, counts in (
        ("query heads", Counter(a.n_q_heads for a in _full(geometry))),
        ("KV heads", Counter(a.n_kv_heads for a in _full(geometry))),
        ("MLP channels", Counter(x.mlp.intermediate_size for x in geometry.layers if x.mlp.kind in ("gated", "plain"))),
        ("expert channels", Counter(x.mlp.intermediate_size for x in geometry.layers if x.mlp.kind == "moe")),
    ):
        found = sorted(count for count in counts if count)
        if len(found) > 1:
            parts.append(f"{found[0]} to {found[-1]} {name}")
    return f"layers have {', '.join(parts)}" if parts else "layers differ in size"


def _full(geometry: Geometry) -> list[Any]:
    return [layer.attention for layer in geometry.layers if layer.attention.kind == "full"]


def _same_mathematics(geometry: Geometry, cls: type[Any]) -> list[type[Any]]:
    """Config classes whose models compute what a Llama computes, for the biases that are stored."""
    from transformers import MistralConfig, Qwen2Config

    if cls.model_type != "llama":
        return []
    biased = {
        projection.role
        for layer in geometry.layers
        for projection in (layer.attention.q, layer.attention.k, layer.attention.v, layer.attention.o,
                           layer.mlp.gate, layer.mlp.up, layer.mlp.down)
        if projection is not None and projection.bias is not None
    }  # fmt: skip
    if not biased:
        return [MistralConfig]
    return [Qwen2Config] if biased == {"q", "k", "v"} else []


def _as_llama(cls: type[Any]) -> dict[str, Any]:
    """What turns off in ``cls`` what a Llama does not do."""
    values: dict[str, Any] = {"sliding_window": None}
    if cls.model_type == "qwen2":
        values |= {"use_sliding_window": False}
    return values


def _form(wanted: Wanted, attempt: _Try, folder: str, notes: Sequence[str]) -> Form:
    """The form of one way.

    Raises:
        Refused: it does not fit.
    """
    values = dict(attempt.values)
    if attempt.way == "other-class":
        values = without_llama_keys(values)
    built = build(folder, values, attempt.code)
    added = added_biases(built, wanted.checkpoint, wanted.geometry) if attempt.way == "own-code" else []
    if added:
        values[LAYER_LISTS] = values[LAYER_LISTS] | {"added_biases": added}
        built = build(f"{folder}-biased", values, attempt.code)
        count = sum(map(len, added))
        notes = [*notes, f"{count} bias{'es' if count > 1 else ''} that the stock class does not have: kept, as stored"]
    fitted = fit(built, wanted.checkpoint, wanted.geometry, tied=wanted.tied, dtype=wanted.dtype, target=attempt.target)
    architecture = type(built.model).__name__
    dtype = main_dtype(fitted.tensors)
    config = finished(built.config, dtype=dtype, architecture=architecture, auto_map=attempt.auto_map)
    if _odd_experts(built.model, dtype):
        config["experts_implementation"] = "eager"
        notes = [*notes, "the experts' width does not fit torch's grouped product: the config says to run them singly"]
    config = _as_meant(folder, config, built, attempt.code)
    name = hub_name(wanted.checkpoint.config.values) if wanted.checkpoint.config is not None else None
    if name is not None:
        config["_name_or_path"] = name  # where the model came from; --base auto finds the parent by it
    notes = [*notes, *_fit_notes(fitted, wanted.geometry), *_other_notes(wanted, fitted)]
    padding = None
    if attempt.target is not None:
        written = sum(each.numel for each in fitted.tensors)
        padding = told(wanted.geometry, attempt.target, stored=written - fitted.added, written=written)
        notes = [padding_note(padding), *notes]
    elif wanted.pad:
        notes = ["--pad: nothing had to be padded", *notes]
    return Form(
        attempt.way, config, fitted.tensors, architecture, attempt.why, attempt.code, tuple(notes), padding=padding
    )


def main_dtype(tensors: Sequence[Planned]) -> str:
    """The dtype that most numbers are written in."""
    sizes: Counter[str] = Counter()
    for each in tensors:
        sizes[each.dtype] += each.numel
    return max(sizes, key=lambda name: sizes[name], default="float32")


def _odd_experts(model: Any, dtype: str) -> bool:
    from gqacheck.runtime.weights import torch_dtype

    size = torch_dtype(dtype).itemsize
    return any(
        parameter.dim() == 3 and "experts" in name and any(side * size % _GROUPED_BYTES for side in parameter.shape[1:])
        for name, parameter in model.named_parameters()
    )


def _as_meant(folder: str, config: dict[str, Any], built: Built, code: Mapping[str, str]) -> dict[str, Any]:
    """``config`` when it is read as it was meant; without the older names where those change what is read.

    Raises:
        Refused: neither is.
    """
    older = ("rope_theta", "rope_scaling", "rope_local_base_freq", "partial_rotary_factor")
    new = {key: value for key, value in config.items() if key not in older}
    for number, candidate in enumerate((config, new)):
        again = build(f"{folder}-again-{number}", candidate, code)
        if _meaning(again.config) == _meaning(built.config):
            return candidate
    raise Refused("its config is not read back as it was written")


def _meaning(config: Any) -> dict[str, Any]:
    """What a model built of the config can see."""
    left_out = {
        "architectures", "auto_map", "dtype", "transformers_version", "_name_or_path", "id2label", "label2id",
        "rope_theta", "rope_scaling", "rope_local_base_freq", "partial_rotary_factor", "experts_implementation",
    }  # fmt: skip
    return {key: value for key, value in config.to_dict().items() if key not in left_out and value is not None}


def _fit_notes(fitted: Fit, geometry: Geometry) -> Iterator[str]:
    inside = f"{geometry.layers_path}."
    gone = [name for name in fitted.left if name.startswith(inside) and name not in geometry.unknown]
    if gone:
        yield f"{_tensors(len(gone))} of blocks that are not run left out: {printable_list(gone, _SHOWN)}"
    unknown = [name for name in fitted.left if name in geometry.unknown]
    if len(unknown) + len(gone) < len(fitted.left):
        count = len(fitted.left) - len(unknown) - len(gone)
        parts = "; ".join(line for line in geometry.not_checked if "tensor" in line)
        yield f"{_tensors(count)} beside the language model left out{f' ({parts})' if parts else ''}"
    if unknown:
        yield f"{_tensors(len(unknown))} that the model does not have left out: {printable_list(unknown, _SHOWN)}"
    if fitted.zeros:
        count = len(fitted.zeros)
        yield (
            f"{count} bias{'es' if count > 1 else ''} of zeros written, because the class has them in every layer or "
            f"in none: {printable_list(fitted.zeros, _SHOWN)}"
        )


def _other_notes(wanted: Wanted, fitted: Fit) -> Iterator[str]:
    geometry = wanted.geometry
    if not wanted.tied and is_true(geometry.config, "tie_word_embeddings", geometry.family.ties_by_default):
        yield "lm_head is stored apart from the embedding although the config ties them: written apart, and said so"
    numbers = [layer.index for layer in geometry.layers]
    if numbers != list(range(len(numbers))):
        yield f"layers {layer_ranges(numbers)} are numbered 0-{len(numbers) - 1} now"
    dtypes = sorted({each.dtype for each in fitted.tensors})
    if len(dtypes) > 1:
        yield (
            f"weights are stored in {' and '.join(dtypes)}, and from_pretrained makes all of them "
            f"{main_dtype(fitted.tensors)} unless dtype= says otherwise"
        )


def _tensors(count: int) -> str:
    return f"{count:,} stored tensor" if count == 1 else f"{count:,} stored tensors"
