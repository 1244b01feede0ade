"""The measured sizes written into a live config: one number where layers agree, a list for each size where not."""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Any

from gqacheck.geometry.config import LAYER_LISTS
from gqacheck.geometry.facts import Geometry, Layer
from gqacheck.runtime.configure import known_keys

_QUERY_HEADS, _KV_HEADS = "num_attention_heads", "num_key_value_heads"
_DENSE, _EXPERT, _SHARED = "dense", "expert", "shared"
_WIDTH_KEYS = {
    _DENSE: ("intermediate_size_mlp", "ffn_hidden_size", "intermediate_size"),
    _EXPERT: ("moe_intermediate_size", "intermediate_size"),
    _SHARED: ("shared_expert_intermediate_size",),
}
_OURS = {"ffn_hidden_size": "intermediate_size"}
"""In the lists every family's size is called the same."""


def settle_config(config: Any, geometry: Geometry) -> None:
    """Writes the measured sizes into ``config``, past the refusals of its class.

    A number is the size of every layer that has such a block; where they differ it is the largest, and
    ``gqacheck_layers`` has a list with one entry per layer for each size. An entry is 0 where the block was removed.
    """
    lists: dict[str, list[int]] = {}
    _heads(config, geometry, lists)
    _widths(config, geometry, lists)
    _switches(config, geometry)
    if "intermediate_size" not in lists:  # experts only, under a key of their own
        lists["intermediate_size"] = [layer.mlp.intermediate_size or 0 for layer in geometry.layers]
    if any(len(set(entries)) > 1 for entries in lists.values()):
        setattr(config, LAYER_LISTS, lists)
    _head_dim(config, geometry)


def stated_heads(config: Any) -> tuple[int | None, int | None]:
    """The head counts (query, KV) that ``config`` says."""
    kv = getattr(config, _KV_HEADS, None)
    return getattr(config, _QUERY_HEADS, None), getattr(config, "num_kv_heads", None) if kv is None else kv


def _head_dim(config: Any, geometry: Geometry) -> None:
    """A list of head_dim where the class computes it, has no key for it, and would compute another one (Falcon)."""
    dims = {layer.attention.head_dim.value for layer in geometry.layers if layer.attention.head_dim is not None}
    if len(dims) == 1 and isinstance(getattr(type(config), "head_dim", None), property) and config.head_dim not in dims:
        lists = getattr(config, LAYER_LISTS, None) or {}
        setattr(config, LAYER_LISTS, {**lists, "head_dim": [*dims] * geometry.n_layers})


def _heads(config: Any, geometry: Geometry, lists: dict[str, list[int]]) -> None:
    attentions = [layer.attention for layer in geometry.layers]
    for key, spellings, counts in (
        (_QUERY_HEADS, (_QUERY_HEADS,), [a.n_q_heads if a.kind == "full" else None for a in attentions]),
        (_KV_HEADS, (_KV_HEADS, "num_kv_heads"), [a.n_kv_heads if a.kind == "full" else None for a in attentions]),
    ):
        most = max((count for count in counts if count), default=None)
        if most is None:
            continue
        for spelling in spellings:
            if hasattr(config, spelling):
                setattr(config, spelling, most)
        lists[key] = [
            0 if attention.kind == "dropped" else count or most
            for attention, count in zip(attentions, counts, strict=True)
        ]


def _widths(config: Any, geometry: Geometry, lists: dict[str, list[int]]) -> None:
    keys = known_keys(type(config))
    for key, widths in widths_by_key(geometry, keys).items():
        most = max(widths.values())
        setattr(config, key, most)
        if hasattr(config, _OURS.get(key, key)):
            setattr(config, _OURS.get(key, key), most)
        lists[_OURS.get(key, key)] = [
            0 if layer.mlp.kind == "dropped" else widths.get(position, most)
            for position, layer in enumerate(geometry.layers)
        ]
    for key, count in shared_experts(geometry, keys).items():
        setattr(config, key, count)


def widths_by_key(geometry: Geometry, keys: Container[str]) -> dict[str, dict[int, int]]:
    """Under each of a config's ``keys`` that says a width: position of a layer -> what is measured there.

    Dense MLPs, routed experts and shared ones have keys of their own, where the class has them.
    """
    found: dict[str, dict[int, int]] = {}
    for position, layer in enumerate(geometry.layers):
        for part, width in _widths_of(layer):
            key = next((key for key in _WIDTH_KEYS[part] if key in keys), None)
            if key is not None and width:
                found.setdefault(key, {})[position] = width
    return found


def shared_experts(geometry: Geometry, keys: Container[str]) -> dict[str, int]:
    """The number of shared experts, for a class that sizes the shared one as so many routed ones."""
    if "n_shared_experts" not in keys or "shared_expert_intermediate_size" in keys:
        return {}
    sizes = [dict(_widths_of(layer)) for layer in geometry.layers]
    shared, routed = (max((each.get(part) or 0 for each in sizes), default=0) for part in (_SHARED, _EXPERT))
    return {"n_shared_experts": shared // routed} if shared and routed and shared % routed == 0 else {}


def bias_switches(geometry: Geometry, keys: Container[str]) -> dict[str, set[bool]]:
    """Under each of a config's ``keys`` that switches biases: whether the projections that it speaks of have one."""
    said: dict[str, set[bool]] = {}
    for layer in geometry.layers:
        a, m = layer.attention, layer.mlp
        for projection in (a.q, a.k, a.v, a.o, a.fused, m.gate, m.up, m.down, m.fused):
            key = None if projection is None else geometry.family.bias_switch.get(projection.role)
            if projection is not None and key is not None and key in keys:
                said.setdefault(key, set()).add(projection.bias is not None)
    return said


def _widths_of(layer: Layer) -> Iterable[tuple[str, int | None]]:
    mlp = layer.mlp
    if mlp.kind in ("gated", "plain"):
        yield _DENSE, mlp.intermediate_size
    elif mlp.kind == "moe":
        yield _EXPERT, mlp.intermediate_size
        for expert in mlp.experts:
            if expert.index == "shared" and expert.up is not None:
                yield _SHARED, expert.up.rows


def _switches(config: Any, geometry: Geometry) -> None:
    """Keys that say whether projections have a bias, where all that they speak of agree."""
    for key, answers in bias_switches(geometry, known_keys(type(config))).items():
        if len(answers) == 1:
            setattr(config, key, answers.pop())
