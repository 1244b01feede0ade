"""A plan as JSON, one line per layer, and back."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from gqacheck.text import printable
from pruners.plan import Costs, ExpertName, KvGroup, LayerPlan, LayerShape, ModelShape, PlanError, PruningPlan

SCHEMA = "gqacheck/pruning-plan/1"
MAX_LENGTH = 1 << 28
"""Characters; a plan for 128 layers of 65,536 channels takes a quarter of this."""
_MOST_DIGITS = 18
_LAYER_KEYS = ("layer", "dropped", "groups", "channels", "experts")


def plan_to_json(plan: PruningPlan) -> str:
    """The plan as text; ``plan_from_json`` reads it back as an equal plan."""
    head = {"schema": SCHEMA, "parent": _shape_json(plan.parent)}
    lines = [json.dumps(_layer_json(index, layer)) for index, layer in enumerate(plan.layers)]
    body = json.dumps(head, indent=1).removesuffix("\n}")
    return body + ',\n "layers": [\n  ' + ",\n  ".join(lines) + "\n ]\n}\n"


def plan_from_json(text: str) -> PruningPlan:
    """The plan that ``plan_to_json`` wrote.

    Raises:
        PlanError: it is not one, or one that makes no sense.
    """
    try:
        found = json.loads(text, object_pairs_hook=_object, parse_int=_integer)
    except (ValueError, RecursionError) as error:
        raise PlanError(f"the plan cannot be read as JSON: {printable(error)}") from error
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        said = found.get("schema") if isinstance(found, dict) else None
        raise PlanError(f"the plan's schema is {printable(said, 60)}, and this version reads {SCHEMA}")
    try:
        parent = _shape_from(found["parent"])
        layers = tuple(_layer_from(index, entry) for index, entry in enumerate(found["layers"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        said = f"{type(error).__name__}: {printable(error, 100)}"
        raise PlanError(f"the plan is incomplete or malformed ({said})") from error
    return PruningPlan(parent, layers)


def read_plan(path: str | os.PathLike[str]) -> PruningPlan:
    """The plan in a file.

    Raises:
        PlanError: it cannot be read, or is no plan.
    """
    try:
        with open(path, encoding="utf-8") as stream:
            text = stream.read(MAX_LENGTH + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(f"{printable(os.fspath(path))} cannot be read as a plan: {error}") from error
    if len(text) > MAX_LENGTH:
        raise PlanError(f"{printable(os.fspath(path))} is longer than {MAX_LENGTH:,} characters: it is no plan")
    return plan_from_json(text)


def _shape_json(shape: ModelShape) -> dict[str, Any]:
    return {
        "family": shape.family,
        "hidden_size": shape.hidden_size,
        "head_dim": shape.head_dim,
        "outside": shape.outside,
        "layers": [_layer_shape_json(layer) for layer in shape.layers],
    }


def _layer_shape_json(layer: LayerShape) -> dict[str, Any]:
    costs = layer.costs
    return {
        "n_q_heads": layer.n_q_heads,
        "n_kv_heads": layer.n_kv_heads,
        "channels": layer.channels,
        "experts": {str(name): width for name, width in layer.experts.items()},
        "costs": {
            "query": costs.query,
            "kv": costs.kv,
            "channel": costs.channel,
            "experts": {str(name): cost for name, cost in costs.experts.items()},
            "rest": costs.rest,
        },
    }


def _shape_from(found: Mapping[str, Any]) -> ModelShape:
    layers = tuple(_layer_shape_from(entry) for entry in found["layers"])
    sizes = [_size(found[key]) for key in ("hidden_size", "head_dim", "outside")]
    return ModelShape(str(found["family"]), sizes[0], sizes[1], layers, sizes[2])


def _layer_shape_from(entry: Mapping[str, Any]) -> LayerShape:
    costs = entry["costs"]
    return LayerShape(
        _size(entry["n_q_heads"]),
        _size(entry["n_kv_heads"]),
        _size(entry["channels"]),
        {_expert(name): _size(width) for name, width in entry["experts"].items()},
        Costs(
            _size(costs["query"]),
            _size(costs["kv"]),
            _size(costs["channel"]),
            {_expert(name): _size(cost) for name, cost in costs["experts"].items()},
            _size(costs["rest"]),
        ),
    )


def _layer_json(index: int, plan: LayerPlan | None) -> dict[str, Any]:
    if plan is None:
        return {"layer": index, "dropped": True}
    found: dict[str, Any] = {"layer": index}
    if plan.groups is not None:
        found["groups"] = {str(group.kv_head): list(group.queries) for group in plan.groups}
    if plan.channels is not None:
        found["channels"] = list(plan.channels)
    if plan.experts:
        found["experts"] = {str(name): list(channels) for name, channels in plan.experts.items()}
    return found


def _layer_from(index: int, entry: Mapping[str, Any]) -> LayerPlan | None:
    unknown = sorted(entry.keys() - _LAYER_KEYS)
    if unknown:
        raise ValueError(f"entry {index} has {unknown[0]}, which is none of {', '.join(_LAYER_KEYS)}")
    if _size(entry["layer"]) != index:
        raise ValueError(f"entry {index} is for layer {entry['layer']}")
    dropped = entry.get("dropped", False)
    if type(dropped) is not bool or (dropped and len(entry) > 2):
        raise ValueError(f"layer {index} is dropped, which is true or false, and if true says nothing else")
    if dropped:
        return None
    groups, channels = entry.get("groups"), entry.get("channels")
    return LayerPlan(
        None if groups is None else tuple(KvGroup(_number(head), tuple(queries)) for head, queries in groups.items()),
        None if channels is None else tuple(channels),
        {_expert(name): tuple(kept) for name, kept in entry.get("experts", {}).items()},
    )


def _expert(name: str) -> ExpertName:
    return name if name == "shared" else _number(name)


def _number(key: str) -> int:
    """A key that says a number, in the one way that ``str`` writes it: two spellings of one number are two keys."""
    if not (key.isascii() and key.isdigit() and (key == "0" or key[0] != "0")):
        raise ValueError(f"{key} is not a number")
    return _integer(key)


def _integer(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"{digits[:20]}… has {len(digits):,} digits")
    return int(digits)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{key} is written twice")
        found[key] = value
    return found


def _size(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{str(value)[:40]!r} is not a size")
    return value
