"""Stored tensors against the classes that will load them: which one becomes which, under which name, and what is left.

The classes are built as a stranger's ``from_pretrained`` builds them, from the config that is about to be written.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from gqacheck.checkpoint import Checkpoint, TensorInfo
from gqacheck.export.content import Content, Planned, Stored, Zeros
from gqacheck.export.facts import Refused
from gqacheck.export.padded import Ones, Padded
from gqacheck.export.padding import Spread, Target, spreads
from gqacheck.geometry.facts import Geometry
from gqacheck.text import printable

CONFIG = "config.json"
_VALIDATION = re.compile(r"^Class validation error for validator '\w+': (?:\w+: )?")


@dataclass(frozen=True, slots=True)
class Built:
    """A config and a model without weights, made of files that lie in ``folder``."""

    config: Any
    model: Any


@dataclass(frozen=True, slots=True)
class Fit:
    """Every tensor that the model needs, and the stored ones that it does not.

    left: stored names without a place. zeros: names of biases that the class has, the checkpoint has not, and zeros
    stand in for. added: numbers that pad.
    """

    tensors: tuple[Planned, ...]
    left: tuple[str, ...] = ()
    zeros: tuple[str, ...] = ()
    added: int = 0


def build(folder: str, values: Mapping[str, Any], code: Mapping[str, str]) -> Built:
    """What ``AutoModelForCausalLM`` builds of ``values`` in config.json and the files ``code`` beside it.

    Raises:
        Refused: the classes do not accept it.
    """
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    from gqacheck.runtime.configure import one_line
    from gqacheck.runtime.skeleton import construct

    os.makedirs(folder)
    for name, source in code.items():
        with open(os.path.join(folder, name), "x", encoding="utf-8") as stream:
            stream.write(source)
    with open(os.path.join(folder, CONFIG), "x", encoding="utf-8") as stream:
        json.dump(values, stream)
    name = CONFIG_MAPPING_NAMES.get(values["model_type"], values["model_type"])
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=bool(code), local_files_only=True)
        return Built(config, construct(config, own_code=bool(code)))
    except Exception as error:  # config and model classes raise whatever they like; the sentence goes to the user
        said = _VALIDATION.sub("", one_line(error))
        raise Refused(f"{name} refuses it: {said[:1].lower()}{said[1:]}") from error


def fit(
    built: Built,
    checkpoint: Checkpoint,
    geometry: Geometry,
    *,
    tied: bool,
    dtype: str | None,
    target: Target | None = None,
) -> Fit:
    """The tensors that ``built`` loads, made of the checkpoint's.

    dtype: of all weights; None keeps each as it is stored. target: what every layer is padded to with zeros.

    Raises:
        Refused: something is missing, has another shape, or would be dropped although the source runs with it.
        CannotRun: two stored tensors are one, or the experts of a layer do not stack.
    """
    from gqacheck.runtime.rebuild import path_of, sources_of

    model = built.model
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    sources = sources_of(model, checkpoint, geometry)
    if tied:
        head = path_of(model, model.get_output_embeddings())
        wanted.pop(f"{head}.weight", None)
        sources.pop(f"{head}.weight", None)
    # a bias of zeros is no bias: it may stand where one switch gives all of them to the class
    switched = any(getattr(built.config, key, False) is True for key in geometry.family.bias_switch.values())
    contents: dict[str, tuple[Content, ...]] = {}
    zeros = []
    spread = {} if target is None else spreads(geometry, target)
    dropped = {} if target is None else _dropped(model, geometry, wanted)
    for name, shape in wanted.items():
        source = sources.get(name)
        if name in dropped:  # stored or not: it is not run
            contents[name] = (dropped[name],)
        elif source is None and switched and _weight_of(name) in sources:
            zeros.append(name)
            contents[name] = (Zeros(shape[0]),)
        elif source is None:
            raise Refused(f"{type(model).__name__} needs {name}, which is not stored")
        else:
            parts = tuple(_padded(part, spread) for part in source.parts)
            made = _joined_shape(parts, source.per_expert)
            if made != shape:
                raise Refused(f"{type(model).__name__} builds {name} with {_x(shape)}, and {_x(made)} is stored")
            contents[name] = parts
    usual = "" if not dropped else dtype or _usual_dtype(sources)
    tensors = tuple(
        planned
        for name, shape in wanted.items()
        for planned in _on_disk(
            model, name, shape, contents[name], usual if name in dropped else _dtype(name, sources, dtype)
        )
    )
    added = sum(each.numel - each.info.numel for parts in contents.values() for each in parts if type(each) is Padded)
    added += sum(each.numel for parts in contents.values() for each in parts if isinstance(each, Zeros | Ones))
    idle = tuple(part.name for name in dropped if name in sources for part in sources[name].parts)
    return Fit(tensors, (*_left(model, wanted, sources, geometry), *idle), tuple(zeros), added)


def _padded(part: TensorInfo, spread: Mapping[str, Spread]) -> Stored | Padded:
    axes = spread.get(part.name)
    return Padded(part, axes) if axes is not None and len(axes) == len(part.shape) else Stored(part)


def _joined_shape(parts: Sequence[Stored | Padded], per_expert: int) -> tuple[int, ...]:
    """The shape of a live tensor that is one stored one, or one per expert (gate and up in turn)."""
    first = parts[0].shape
    if not per_expert:
        return first
    rows = sum(part.shape[0] for part in parts[:per_expert])
    return (len(parts) // per_expert, rows, *first[1:])


def _dropped(model: Any, geometry: Geometry, wanted: Mapping[str, tuple[int, ...]]) -> dict[str, Zeros | Ones]:
    """Live names of the blocks that the checkpoint does not have, and what makes them add nothing."""
    from gqacheck.runtime.dropped import dropped_parts
    from gqacheck.runtime.skeleton import live_layers

    path, live = live_layers(model, geometry)
    found: dict[str, Zeros | Ones] = {}
    for position, layer in enumerate(geometry.layers):
        prefixes = tuple(f"{path}.{position}.{part}." for part in dropped_parts(live[position], layer, geometry.family))
        for name, shape in wanted.items():
            if prefixes and name.startswith(prefixes):
                norm = len(shape) == 1 and "norm" in name and not name.endswith("bias")
                found[name] = Ones(prod(shape)) if norm else Zeros(prod(shape))
    return found


def _usual_dtype(sources: Mapping[str, Any]) -> str:
    """The dtype that most numbers are stored in."""
    sizes: Counter[str] = Counter()
    for source in sources.values():
        for part in source.parts:
            sizes[_written(part.dtype)] += part.numel
    return sizes.most_common(1)[0][0]


def _weight_of(bias: str) -> str:
    return f"{bias.removesuffix('bias')}weight" if bias.endswith(".bias") else ""


def _dtype(name: str, sources: Mapping[str, Any], asked: str | None) -> str:
    """The dtype to write; a bias that is not stored has its weight's."""
    from gqacheck.runtime.weights import is_floating

    first = (sources[name] if name in sources else sources[_weight_of(name)]).parts[0]
    stored: str = first.dtype
    if not is_floating(stored):
        raise Refused(f"{printable(first.name)} is stored as {stored}, not as real numbers")
    return asked or _written(stored)


def _written(stored: str) -> str:
    """The dtype that a stored one is kept in."""
    # bfloat16 holds every number of an 8-bit float exactly, and a class computes in it
    return "bfloat16" if stored.startswith("float8") else stored


def _left(model: Any, wanted: Mapping[str, object], sources: Mapping[str, Any], geometry: Geometry) -> tuple[str, ...]:
    """Stored names that the model has no place for.

    Raises:
        Refused: one of them is a bias of a projection, which the source runs with.
    """
    from torch import nn

    from gqacheck.runtime.rebuild import is_leftover

    buffers = dict(model.named_buffers())
    modules = dict(model.named_modules())
    left = []
    for name, source in sources.items():
        if name in wanted or name in buffers or is_leftover(name) or source.parts[0].kind == "buffer":
            continue
        if name.endswith(".bias") and isinstance(modules.get(name.removesuffix(".bias")), nn.Linear):
            raise Refused(f"{type(model).__name__} has no place for {name}")
        left.append(source.parts[0].name)
    return tuple(left)


def _on_disk(
    model: Any, name: str, shape: tuple[int, ...], contents: tuple[Content, ...], dtype: str
) -> tuple[Planned, ...]:
    """One live tensor as the files of this transformers hold it: renamed, or taken apart into experts."""
    names = disk_names(model, name, shape)
    if len(names) == 1:
        ((stored, size),) = names.items()
        if size != shape:
            raise Refused(f"{name} is stored as {_x(size)} in files of this transformers, which is not written")
        return (Planned(stored, shape, dtype, contents),)
    entries = _expert_entries(names, shape, name)
    made = []
    for stored, (expert, start, rows) in entries.items():
        made.append(Planned(stored, names[stored], dtype, _part(contents, shape, expert, start, rows)))
    return tuple(made)


def disk_names(model: Any, name: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Names and shapes under which the installed transformers writes one live tensor."""
    import torch

    try:
        from transformers.core_model_loading import revert_weight_conversion
    except ImportError:  # before 5.0 the names on disk are the live ones
        return {name: shape}
    made = revert_weight_conversion(model, {name: torch.empty(shape, device="meta")})
    return {key: tuple(tensor.shape) for key, tensor in made.items()}


def _expert_entries(
    names: Mapping[str, tuple[int, ...]], shape: tuple[int, ...], name: str
) -> dict[str, tuple[int, int, int]]:
    """Name on disk -> (expert, first row, rows) of the stacked tensor [experts, rows, columns]."""
    from gqacheck.runtime.layouts import EXPERT, EXPERT_PARTS

    found: dict[str, tuple[int, int, int]] = {}
    for stored, size in names.items():
        match = EXPERT.match(stored)
        if match is None or len(shape) != 3 or size[1:] != shape[2:]:
            raise Refused(f"{name} is taken apart into {printable(stored)} on disk, which is not known")
        start = size[0] if EXPERT_PARTS[match["part"]] == "up" else 0
        found[stored] = (int(match["index"]), start, size[0])
    if sum(rows for _, _, rows in found.values()) != shape[0] * shape[1]:
        raise Refused(f"{name} does not come out whole on disk")
    return found


def _part(
    contents: tuple[Content, ...], shape: tuple[int, ...], expert: int, start: int, rows: int
) -> tuple[Content, ...]:
    """Rows ``start`` and on of one expert, out of one stacked tensor or of one per expert and part."""
    if len(contents) == 1 and isinstance(contents[0], Zeros):
        return (Zeros(rows * shape[2]),)
    if len(contents) == 1 and isinstance(contents[0], Stored | Padded) and len(contents[0].shape) == 3:
        return (contents[0].entry(expert).rows(start, rows),)
    begin, at = expert * shape[1] + start, 0
    for content in contents:
        assert isinstance(content, Stored | Padded)
        if at == begin and content.shape[0] == rows:
            return (content,)
        at += content.shape[0]
    raise Refused(f"the parts of expert {expert} are not stored one by one")


def _x(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "one number"
